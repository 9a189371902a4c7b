//! The tensor graph: an arena of values in SSA form.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::dim::{Dim, Symbol, SymbolDecl};
use crate::infer::{TypeError, infer};
use crate::op::Op;
use crate::types::TensorType;

/// A value of a [`Graph`]. Prints as in the text form: `%7`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(u32);

impl ValueId {
    /// The id with this index into the arena.
    pub fn from_index(index: usize) -> Self {
        ValueId(index as u32)
    }

    /// The index into the arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Debug for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A value: the op that computes it, its operands, its type, and where it comes
/// from.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// What computes it.
    pub op: Op,
    /// The operands.
    pub inputs: Vec<ValueId>,
    /// Its type.
    pub ty: TensorType,
    /// The dotted name of the module that built it (`h.3.attn.c_attn`); may be
    /// empty.
    pub source: String,
}

/// An error about one value of a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// An op was applied to operands that it does not take.
    #[error("{op}{}: {reason}", at(source_name))]
    Type {
        /// The op's name.
        op: &'static str,
        /// The module that was being built.
        source_name: String,
        /// The rule that was broken.
        reason: TypeError,
    },
    /// A name was given twice.
    #[error("there are two {kind}s called `{name}`")]
    Duplicate {
        /// Parameter, input, state, output or symbol.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A state is set that the graph does not read.
    #[error("state `{name}` is set, but no `state` op reads it")]
    UnknownState {
        /// The name.
        name: String,
    },
}

fn at(source: &str) -> String {
    if source.is_empty() {
        String::new()
    } else {
        format!(" in `{source}`")
    }
}

/// A computation: values in an order in which operands come first, with named
/// outputs and states.
///
/// The arena only grows; [`Graph::order`] lists the values that are part of the
/// computation, and [`Graph::compact`] renumbers them densely. A *state* is a
/// tensor that outlives a run: an `Op::State` value reads what it was before,
/// and [`Graph::set_state`] names the value it has after.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// The graph's name; also the entry point's.
    pub name: String,
    /// The symbols, with their maxima, in declaration order.
    pub symbols: Vec<SymbolDecl>,
    values: Vec<Value>,
    order: Vec<ValueId>,
    outputs: Vec<(String, ValueId)>,
    states: Vec<(String, ValueId)>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Graph {
            name: name.to_owned(),
            ..Graph::default()
        }
    }

    /// Declares a symbol with its inclusive maximum.
    ///
    /// # Errors
    /// When the symbol is declared already.
    pub fn declare_symbol(&mut self, name: &str, max: u64) -> Result<Dim, GraphError> {
        let symbol = Symbol::new(name);
        if self.symbols.iter().any(|s| s.name == symbol) {
            return Err(GraphError::Duplicate {
                kind: "symbol",
                name: name.to_owned(),
            });
        }
        self.symbols.push(SymbolDecl { name: symbol, max });
        Ok(Dim::symbol(name))
    }

    /// The values in execution order.
    pub fn order(&self) -> &[ValueId] {
        &self.order
    }

    /// The values in execution order, with their ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ValueId, &Value)> {
        let order = self.order.iter();
        order.filter_map(|id| Some((*id, self.values.get(id.index())?)))
    }

    /// The number of ids handed out; every id's index is below it.
    pub fn arena_len(&self) -> usize {
        self.values.len()
    }

    /// A value. Ids come from this graph, so the index is in range; an id of
    /// another graph is a bug in the caller and may panic.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// A value, unless the id is out of range.
    pub fn get(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id.index())
    }

    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.value(id).ty
    }

    /// The outputs: name and value.
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// The states that the graph sets: name and value after the run.
    pub fn states(&self) -> &[(String, ValueId)] {
        &self.states
    }

    /// Appends a value; its type follows from the op and its operands.
    ///
    /// # Errors
    /// When the op does not take these operands.
    pub fn push(
        &mut self,
        op: Op,
        inputs: &[ValueId],
        source: &str,
    ) -> Result<ValueId, GraphError> {
        self.insert(self.order.len(), op, inputs, source)
    }

    /// Inserts a value into the order just before `anchor` (at the end if the
    /// anchor is not part of the order).
    ///
    /// # Errors
    /// When the op does not take these operands.
    pub fn insert_before(
        &mut self,
        anchor: ValueId,
        op: Op,
        inputs: &[ValueId],
        source: &str,
    ) -> Result<ValueId, GraphError> {
        let at = self.order.iter().position(|v| *v == anchor);
        self.insert(at.unwrap_or(self.order.len()), op, inputs, source)
    }

    fn insert(
        &mut self,
        at: usize,
        op: Op,
        inputs: &[ValueId],
        source: &str,
    ) -> Result<ValueId, GraphError> {
        let types: Vec<&TensorType> = inputs.iter().map(|i| self.ty(*i)).collect();
        let ty = infer(&op, &types).map_err(|reason| GraphError::Type {
            op: op.name(),
            source_name: source.to_owned(),
            reason,
        })?;
        let value = Value {
            op,
            inputs: inputs.to_vec(),
            ty,
            source: source.to_owned(),
        };
        Ok(self.insert_unchecked(at, value))
    }

    /// Inserts a value with the type it claims, for readers of the text form
    /// and for tests of the verifier, which checks the claim.
    pub fn push_unchecked(&mut self, value: Value) -> ValueId {
        self.insert_unchecked(self.order.len(), value)
    }

    /// Appends a value under an id of its own, which is not in the order yet.
    /// Ids below it that are not taken are left as holes, outside the order.
    pub(crate) fn place_unchecked(&mut self, id: ValueId, value: Value) {
        let hole = Value {
            op: Op::Const(crate::op::Scalar::Bool(false)),
            inputs: Vec::new(),
            ty: TensorType::scalar(crate::types::DType::Bool),
            source: String::new(),
        };
        if self.values.len() <= id.index() {
            self.values.resize(id.index() + 1, hole);
        }
        self.values[id.index()] = value;
        self.order.push(id);
    }

    /// The order, the outputs and the states, for tests that break them.
    #[cfg(test)]
    #[allow(clippy::type_complexity, reason = "three fields as they are")]
    pub(crate) fn parts_mut(
        &mut self,
    ) -> (
        &mut Vec<ValueId>,
        &mut Vec<(String, ValueId)>,
        &mut Vec<(String, ValueId)>,
    ) {
        (&mut self.order, &mut self.outputs, &mut self.states)
    }

    fn insert_unchecked(&mut self, at: usize, value: Value) -> ValueId {
        let id = ValueId::from_index(self.values.len());
        self.values.push(value);
        self.order.insert(at, id);
        id
    }

    /// The graph with every occurrence of `symbol` in a type or an op replaced: for
    /// sizes that are known. The symbol stays declared.
    #[must_use]
    pub fn substitute(&self, symbol: &Symbol, value: &Dim) -> Graph {
        let mut out = self.clone();
        let mut replace = |dim: &mut Dim| *dim = dim.substitute(symbol, value);
        for value in &mut out.values {
            value.ty.shape.iter_mut().for_each(&mut replace);
            value.op.for_each_dim(&mut replace);
        }
        out
    }

    /// Names `value` as an output.
    ///
    /// # Errors
    /// When an output has this name already.
    pub fn add_output(&mut self, name: &str, value: ValueId) -> Result<(), GraphError> {
        if self.outputs.iter().any(|(n, _)| n == name) {
            return Err(GraphError::Duplicate {
                kind: "output",
                name: name.to_owned(),
            });
        }
        self.outputs.push((name.to_owned(), value));
        Ok(())
    }

    /// Makes `value` what the state called `name` holds after the run.
    ///
    /// # Errors
    /// When no `Op::State` of this name exists, or it is set already.
    pub fn set_state(&mut self, name: &str, value: ValueId) -> Result<(), GraphError> {
        let known = |v: &Value| matches!(&v.op, Op::State { name: n, .. } if n == name);
        if !self.values.iter().any(known) {
            return Err(GraphError::UnknownState {
                name: name.to_owned(),
            });
        }
        if self.states.iter().any(|(n, _)| n == name) {
            return Err(GraphError::Duplicate {
                kind: "state",
                name: name.to_owned(),
            });
        }
        self.states.push((name.to_owned(), value));
        Ok(())
    }

    /// Makes every user of `old`, outputs and states included, use `new`.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        for id in &self.order {
            if *id == new {
                continue;
            }
            for input in &mut self.values[id.index()].inputs {
                if *input == old {
                    *input = new;
                }
            }
        }
        let named = self.outputs.iter_mut().chain(&mut self.states);
        for (_, value) in named.filter(|(_, v)| *v == old) {
            *value = new;
        }
    }

    /// For each value, by index: how often it is used as an operand, an output
    /// or a state.
    pub fn use_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.values.len()];
        let operands = self.order.iter().flat_map(|id| &self.value(*id).inputs);
        let named = self.outputs.iter().chain(&self.states).map(|(_, v)| v);
        for id in operands.chain(named) {
            counts[id.index()] += 1;
        }
        counts
    }

    /// For each value, by index: the values that take it as an operand, in
    /// order, each once.
    pub fn users(&self) -> Vec<Vec<ValueId>> {
        let mut users = vec![Vec::new(); self.values.len()];
        for (id, value) in self.iter() {
            let distinct: BTreeSet<ValueId> = value.inputs.iter().copied().collect();
            for input in distinct {
                users[input.index()].push(id);
            }
        }
        users
    }

    /// Removes values that no output and no state needs; inputs and states are
    /// the graph's signature and stay. Says whether any went.
    pub fn remove_dead(&mut self) -> bool {
        let mut live = vec![false; self.values.len()];
        let mut stack: Vec<ValueId> = self
            .outputs
            .iter()
            .chain(&self.states)
            .map(|(_, v)| *v)
            .collect();
        stack.extend(self.iter().filter_map(|(id, v)| {
            matches!(v.op, Op::Input { .. } | Op::State { .. }).then_some(id)
        }));
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut live[id.index()], true) {
                stack.extend(&self.values[id.index()].inputs);
            }
        }
        let before = self.order.len();
        self.order.retain(|id| live[id.index()]);
        self.order.len() != before
    }

    /// Renumbers the values densely in execution order and drops the rest of
    /// the arena.
    pub fn compact(&mut self) {
        let renumbered: BTreeMap<ValueId, ValueId> = self
            .order
            .iter()
            .enumerate()
            .map(|(i, id)| (*id, ValueId::from_index(i)))
            .collect();
        // An operand outside the order is the verifier's to report: keep an id
        // that is out of range.
        let missing = ValueId(u32::MAX);
        let map = |id: &ValueId| renumbered.get(id).copied().unwrap_or(missing);
        let values = self.order.iter().map(|id| {
            let mut value = self.values[id.index()].clone();
            value.inputs = value.inputs.iter().map(map).collect();
            value
        });
        self.values = values.collect();
        for (_, id) in self.outputs.iter_mut().chain(&mut self.states) {
            *id = map(id);
        }
        self.order = (0..self.values.len()).map(ValueId::from_index).collect();
    }

    /// The parameters: name and type, in order.
    pub fn params(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.iter().filter_map(|(_, v)| match &v.op {
            Op::Param { name, ty } => Some((name.as_str(), ty)),
            _ => None,
        })
    }

    /// The inputs: name and type, in order.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.iter().filter_map(|(_, v)| match &v.op {
            Op::Input { name, ty } => Some((name.as_str(), ty)),
            _ => None,
        })
    }
}

impl From<Graph> for Cow<'_, Graph> {
    fn from(graph: Graph) -> Self {
        Cow::Owned(graph)
    }
}

impl<'a> From<&'a Graph> for Cow<'a, Graph> {
    fn from(graph: &'a Graph) -> Self {
        Cow::Borrowed(graph)
    }
}
