//! What follows a linear op joins it.

use kiln_ir::{BinaryOp, Graph, Op, Step, ValueId};

use crate::matcher::{Matcher, rewrite};
use crate::{Changed, Pass, PassError, in_pass};

/// How many operands a linear op may have besides its input and its weight.
/// WebGPU's default limit is eight storage buffers a stage; the input, the
/// weight, its scales and the output leave four.
pub(crate) const MAX_OPERANDS: usize = 4;

/// A linear op whose result is used once, by an addition of a vector `[out]` or
/// of a value of the result's shape, by a product with such a value, or by a
/// nonlinearity, takes that in as a step of its epilogue; again and again, in
/// whatever order they come. The fused op stands where the last of them stood,
/// so that every operand is computed before it.
pub struct FuseEpilogue;

impl Pass for FuseEpilogue {
    fn name(&self) -> &'static str {
        "fuse_epilogue"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let changed = rewrite(graph, find, |graph, root, found| {
            // The value keeps the linear layer's name.
            let value = graph.value(found.linear);
            let (mut op, mut operands) = (value.op.clone(), value.inputs.clone());
            let source = value.source.clone();
            if let Op::Linear { steps, .. } = &mut op {
                steps.push(found.step);
            }
            operands.extend(found.operand);
            graph.insert_before(root, op, &operands, &source)
        });
        in_pass(self.name(), changed)
    }
}

struct Found {
    linear: ValueId,
    step: Step,
    operand: Option<ValueId>,
}

fn find(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let found = |linear, step, operand: Option<ValueId>| {
        let Op::Linear { .. } = m.op(linear) else {
            return None;
        };
        // Used once: otherwise the plain result must be there too. That the
        // operand is not computed from the result follows.
        let fits = m.used_once(linear)
            && m.ty(linear) == m.ty(root)
            && operand.is_none_or(|v| {
                let room = m.inputs(linear).len() - 2 < MAX_OPERANDS;
                room && (m.ty(v) == m.ty(root) || m.shape(v) == [m.ty(root).last()])
            });
        fits.then_some(Found {
            linear,
            step,
            operand,
        })
    };
    let (op, operands) = (m.op(root), m.inputs(root));
    let step = match (op, operands) {
        (Op::Activate(a), [x]) => return found(*x, Step::Act(*a), None),
        (Op::Binary(BinaryOp::Add), _) => Step::Add,
        (Op::Binary(BinaryOp::Mul), _) => Step::Mul,
        _ => return None,
    };
    let (a, b) = match operands {
        [a, b] => (*a, *b),
        _ => return None,
    };
    // Of two linear ops the later one takes the other's result: the other is
    // computed by then.
    let position = |id| m.graph().order().iter().position(|v| *v == id);
    let (early, late) = if position(a) < position(b) {
        (a, b)
    } else {
        (b, a)
    };
    found(late, step, Some(early)).or_else(|| found(early, step, Some(late)))
}
