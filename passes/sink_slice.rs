//! Rows that nobody reads are not computed.

use std::collections::BTreeMap;

use kiln_ir::{Dim, Graph, GraphError, Norm, Op, ValueId};

use crate::clean_up::share;
use crate::matcher::{Matcher, rewrite_all};
use crate::{Changed, Pass, PassError, in_pass};

/// A slice of rows moves up through the ops that work row by row: elementwise
/// ones, norms, nonlinearities, rotary embeddings, linear ops, and attention, whose rows are its
/// queries. So of the last layer only the last position is computed where only
/// that is wanted.
///
/// A slice moves only if it is the one use of what it slices; else that is
/// computed whole anyway, and the slice stays as a view of it. For the same
/// reason it does not move through other movements: a view of a value costs
/// nothing, a reshape of a view may cost a copy.
pub struct SinkSlice;

impl Pass for SinkSlice {
    fn name(&self) -> &'static str {
        "sink_slice"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        in_pass(self.name(), run(graph))
    }
}

fn run(graph: &mut Graph) -> Result<Changed, GraphError> {
    let mut changed = Changed::default();
    loop {
        let moved = rewrite_all(graph, find, build)?;
        if !moved.any() {
            return Ok(changed);
        }
        changed += moved;
        // The slices of a residual stream that came by two ways are one, which
        // may then be the only use.
        share(graph);
    }
}

struct Found {
    /// What is sliced.
    of: ValueId,
    /// For each operand: the axis along which it is sliced, if at all.
    axes: Vec<Option<usize>>,
    start: Dim,
    end: Dim,
}

fn find(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let (Op::Slice { axis, start, end }, [of]) = (m.op(root), m.inputs(root)) else {
        return None;
    };
    let rank = m.ty(*of).rank();
    // Rows: the last axis is what they consist of.
    if *axis + 1 >= rank || !m.used_once(*of) {
        return None;
    }
    let size = m.shape(*of).get(*axis)?;
    let operands = m.inputs(*of);
    // Operands broadcast: what does not vary along the axis is not sliced.
    let broadcast = |id: &ValueId| {
        let operand = (axis + m.ty(*id).rank()).checked_sub(rank)?;
        (m.shape(*id).get(operand)? == size && !size.is_one()).then_some(operand)
    };
    let axes: Vec<Option<usize>> = match m.op(*of) {
        Op::Unary(_) | Op::Binary(_) | Op::Where | Op::Cast(_) | Op::Activate(_) | Op::Rotary => {
            operands.iter().map(broadcast).collect()
        }
        Op::Normalize(_) => first_only(*axis, operands),
        Op::Linear { norm, .. } => {
            let mut axes = first_only(*axis, operands);
            // The weight and the norm's vectors have no rows.
            let of_steps = 2 + norm.map_or(0, Norm::operands);
            for (axis, id) in axes.iter_mut().zip(operands).skip(of_steps) {
                *axis = broadcast(id);
            }
            axes
        }
        // The mask is aligned to the last query, so the last queries see what
        // they saw before; others would not.
        Op::Attention(spec) if *axis == 1 && (!spec.causal || end == size) => {
            first_only(*axis, operands)
        }
        _ => return None,
    };
    // Along an axis of size one nothing varies, and no operand would be sliced: the
    // slice, which may be of another size, would be gone.
    if axes.iter().all(Option::is_none) {
        return None;
    }
    Some(Found {
        of: *of,
        axes,
        start: start.clone(),
        end: end.clone(),
    })
}

/// The first operand has the rows.
fn first_only(axis: usize, operands: &[ValueId]) -> Vec<Option<usize>> {
    let mut axes = vec![None; operands.len()];
    if let Some(first) = axes.first_mut() {
        *first = Some(axis);
    }
    axes
}

fn build(graph: &mut Graph, root: ValueId, found: Found) -> Result<ValueId, GraphError> {
    let of = graph.value(found.of).clone();
    let slice_source = graph.value(root).source.clone();
    let mut slices = BTreeMap::new();
    let mut operands = Vec::new();
    for (id, axis) in of.inputs.iter().zip(found.axes) {
        operands.push(match axis {
            None => *id,
            Some(axis) => match slices.get(&(*id, axis)) {
                Some(slice) => *slice,
                None => {
                    let op = Op::Slice {
                        axis,
                        start: found.start.clone(),
                        end: found.end.clone(),
                    };
                    let slice = graph.insert_before(root, op, &[*id], &slice_source)?;
                    slices.insert((*id, axis), slice);
                    slice
                }
            },
        });
    }
    graph.insert_before(root, of.op, &operands, &of.source)
}
