//! The graphs as built and after each pass, as the page wants them.

use kiln_ir::op::Attr;
use kiln_ir::{Graph, Op, Value, ValueId};
use serde::Serialize;

use super::intern::{Interner, runs};

/// The entry points' graphs at every stage. What recurs, which is nearly all, is
/// kept once and named by number.
#[derive(Default, Serialize)]
pub struct Graphs {
    types: Interner<String>,
    sources: Interner<String>,
    /// Ops with their attributes.
    ops: Interner<OpText>,
    entries: Vec<Entry>,
}

/// An op's name and its attributes, key and text.
type OpText = (&'static str, Vec<(&'static str, String)>);

#[derive(Serialize)]
struct Entry {
    name: String,
    /// Symbols and their maxima.
    symbols: Vec<(String, u64)>,
    /// Every value that is part of a stage: its id, the numbers of its op, type
    /// and source, and its operands' ids. Passes change operands in place, so an
    /// id may stand here more than once.
    values: Interner<Vec<usize>>,
    stages: Vec<Stage>,
}

#[derive(Serialize)]
struct Stage {
    /// The pass that led here.
    pass: &'static str,
    rewrites: usize,
    /// The stage's values in execution order, as [`runs`] of numbers in
    /// [`Entry::values`].
    order: Vec<usize>,
    outputs: Vec<(String, usize)>,
    states: Vec<(String, usize)>,
}

/// Takes down stages as they pass by.
#[derive(Default)]
pub struct Recorder {
    graphs: Graphs,
}

impl Recorder {
    /// Begins an entry point.
    pub fn begin(&mut self, graph: &Graph) {
        let symbols = graph.symbols.iter();
        self.graphs.entries.push(Entry {
            name: graph.name.clone(),
            symbols: symbols.map(|s| (s.name.to_string(), s.max)).collect(),
            values: Interner::default(),
            stages: Vec::new(),
        });
    }

    /// Takes down the graph as `pass` left it.
    pub fn see(&mut self, pass: &'static str, graph: &Graph, rewrites: usize) {
        let records: Vec<_> = graph
            .iter()
            .map(|(id, value)| self.record(id, value))
            .collect();
        let Some(entry) = self.graphs.entries.last_mut() else {
            return;
        };
        let named = |values: &[(String, ValueId)]| {
            let values = values.iter();
            values
                .map(|(name, id)| (name.clone(), id.index()))
                .collect()
        };
        entry.stages.push(Stage {
            pass,
            rewrites,
            order: runs(records.into_iter().map(|r| entry.values.number(r))),
            outputs: named(graph.outputs()),
            states: named(graph.states()),
        });
    }

    fn record(&mut self, id: ValueId, value: &Value) -> Vec<usize> {
        let graphs = &mut self.graphs;
        let what = [
            id.index(),
            graphs.ops.number(op_text(&value.op)),
            graphs.types.number(value.ty.to_string()),
            graphs.sources.number(value.source.clone()),
        ];
        let operands = value.inputs.iter().map(|id| id.index());
        what.into_iter().chain(operands).collect()
    }

    /// All that was taken down.
    pub fn finish(self) -> Graphs {
        self.graphs
    }
}

/// An op's type is its value's, and stands there.
fn op_text(op: &Op) -> OpText {
    let attrs = op
        .attrs()
        .into_iter()
        .filter_map(|(key, value)| match value {
            Attr::Type(_) => None,
            Attr::Text(text) => Some((key, text)),
            other => Some((key, other.to_string())),
        });
    (op.name(), attrs.collect())
}
