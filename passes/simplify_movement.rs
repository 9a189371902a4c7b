//! Ops that only move elements, and cancel.

use kiln_ir::plan::always_within;
use kiln_ir::{Dim, Graph, GraphError, Op, ValueId};

use crate::matcher::{Matcher, rewrite_all};
use crate::{Changed, Pass, PassError, in_pass};

/// Joins chains of transposes, of reshapes and of broadcasts, and removes what
/// moves nothing.
pub struct SimplifyMovement;

impl Pass for SimplifyMovement {
    fn name(&self) -> &'static str {
        "simplify_movement"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        in_pass(self.name(), simplify(graph))
    }
}

/// The pass, for others that leave movements behind which cancel.
pub(crate) fn simplify(graph: &mut Graph) -> Result<Changed, GraphError> {
    rewrite_all(graph, find, |graph, root, found| {
        let source = graph.value(root).source.clone();
        match found {
            Simpler::Same(x) => Ok(x),
            Simpler::Op(op, x) => graph.insert_before(root, op, &[x], &source),
        }
    })
}

enum Simpler {
    Same(ValueId),
    Op(Op, ValueId),
}

fn find(m: &Matcher<'_>, root: ValueId) -> Option<Simpler> {
    let (op, [x]) = (m.op(root), m.inputs(root)) else {
        return None;
    };
    // What moves nothing: to the same shape, in the same order, all of an axis,
    // one part.
    let same = match op {
        Op::Reshape { shape } | Op::Broadcast { shape } => m.shape(*x) == shape,
        Op::Transpose { perm } => perm.iter().enumerate().all(|(i, p)| i == *p),
        Op::Slice { axis, start, end } => {
            *start == Dim::default() && m.shape(*x).get(*axis) == Some(end)
        }
        Op::Concat { .. } => true,
        _ => return None,
    };
    if same {
        return Some(Simpler::Same(*x));
    }
    match (op, m.op(*x), m.inputs(*x)) {
        // reshape(reshape(x)): only the last shape counts.
        (Op::Reshape { .. }, Op::Reshape { .. }, [y]) => Some(Simpler::Op(op.clone(), *y)),
        // broadcast(broadcast(x)): likewise.
        (Op::Broadcast { .. }, Op::Broadcast { .. }, [y]) => Some(Simpler::Op(op.clone(), *y)),
        // transpose(transpose(x)): one permutation, often none.
        (Op::Transpose { .. }, Op::Transpose { .. }, _) => {
            let (y, perm) = m.transposed(root)?;
            Some(Simpler::Op(Op::Transpose { perm }, y))
        }
        // slice(slice(x)) along one axis: the offsets add up. What the outer one takes has to
        // be there at all sizes, for the one that is left does not know where the inner ended.
        (
            Op::Slice { axis, start, end },
            Op::Slice {
                axis: inner_axis,
                start: offset,
                ..
            },
            [y],
        ) if axis == inner_axis
            && m.shape(*x)
                .get(*axis)
                .is_some_and(|size| always_within(start, end, size)) =>
        {
            let op = Op::Slice {
                axis: *axis,
                start: offset + start,
                end: offset + end,
            };
            Some(Simpler::Op(op, *y))
        }
        _ => None,
    }
}
