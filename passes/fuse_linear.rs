//! `x . w^T` becomes a linear op.

use kiln_ir::{Graph, Op, ValueId};

use crate::matcher::{Matcher, rewrite};
use crate::{Changed, Pass, PassError, in_pass};

/// `matmul(x, transpose(w, [1, 0]))` becomes [`Op::Linear`], where `w` is a
/// parameter. Such a weight is stored row by row of the output, the layout that
/// the kernels read; what is computed has the layout that it comes in.
pub struct FuseLinear;

impl Pass for FuseLinear {
    fn name(&self) -> &'static str {
        "fuse_linear"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let changed = rewrite(graph, find, |graph, root, operands| {
            let op = Op::Linear {
                norm: None,
                steps: Vec::new(),
            };
            let source = graph.value(root).source.clone();
            graph.insert_before(root, op, &operands, &source)
        });
        in_pass(self.name(), changed)
    }
}

fn find(m: &Matcher<'_>, root: ValueId) -> Option<[ValueId; 2]> {
    let (Op::MatMul, [x, wt]) = (m.op(root), m.inputs(root)) else {
        return None;
    };
    // The transpose is a view of the weight: whoever else uses it keeps it.
    let (w, perm) = m.transposed(*wt)?;
    let is_weight = perm == [1, 0] && matches!(m.op(w), Op::Param { .. });
    is_weight.then_some([*x, w])
}
