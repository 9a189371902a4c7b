//! A norm joins the linear ops that read it.

use kiln_ir::{Graph, GraphError, Norm, Op, ValueId};

use crate::clean_up::remove_dead;
use crate::fuse_epilogue::MAX_OPERANDS;
use crate::matcher::Matcher;
use crate::{Changed, Pass, PassError, in_pass};

/// A norm whose every user is a linear op that reads it as its input joins each
/// of them, and is computed no more.
///
/// It pays as long as the linear op is not much taller than wide: every
/// workgroup reads the whole input row to compute the statistics anew, which is
/// little beside the weight rows it reads, while a launch and a round trip
/// through memory are saved. Hence the rule `out <= 8 * in`, which holds for the
/// layers of a block and not for a head over a vocabulary.
pub struct FuseNormIntoLinear;

/// The largest ratio of a linear op's outputs to its inputs.
const MAX_RATIO: u64 = 8;

impl Pass for FuseNormIntoLinear {
    fn name(&self) -> &'static str {
        "fuse_norm_into_linear"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        in_pass(self.name(), run(graph))
    }
}

fn run(graph: &mut Graph) -> Result<Changed, GraphError> {
    // A use by what nobody needs is none.
    let mut changed = remove_dead(graph);
    for id in graph.order().to_vec() {
        let Op::Normalize(norm) = graph.value(id).op else {
            continue;
        };
        let m = Matcher::new(graph);
        if m.users(id).is_empty()
            || m.is_named(id)
            || !m.users(id).iter().all(|u| pays(&m, id, *u, norm))
        {
            continue;
        }
        for user in m.users(id).to_vec() {
            let linear = join(graph, norm, id, user)?;
            graph.replace_uses(user, linear);
        }
        graph.remove_dead();
        changed.rewrites += 1;
    }
    Ok(changed)
}

/// Whether `user` can take the norm `id` in, and gains by it.
fn pays(m: &Matcher<'_>, id: ValueId, user: ValueId, norm: Norm) -> bool {
    let Op::Linear { norm: None, .. } = m.op(user) else {
        return false;
    };
    let [x, w, operands @ ..] = m.inputs(user) else {
        return false;
    };
    let [Some(out), Some(features)] = [0, 1].map(|axis| m.shape(*w).get(axis)?.as_const()) else {
        return false;
    };
    *x == id
        && *w != id
        && !operands.contains(&id)
        && operands.len() + norm.operands() <= MAX_OPERANDS
        && out <= MAX_RATIO * features
}

fn join(graph: &mut Graph, norm: Norm, id: ValueId, user: ValueId) -> Result<ValueId, GraphError> {
    let linear = graph.value(user);
    let (op, source) = (linear.op.clone(), linear.source.clone());
    let normalised = graph.value(id).inputs.clone();
    // (x, gain, bias) and (x, w, ..) make (x, w, gain, bias, ..).
    let mut operands = Vec::new();
    operands.extend(normalised.first());
    operands.extend(linear.inputs.get(1));
    operands.extend(normalised.get(1..).unwrap_or_default());
    operands.extend(linear.inputs.get(2..).unwrap_or_default());
    let op = match op {
        Op::Linear { steps, .. } => Op::Linear {
            norm: Some(norm),
            steps,
        },
        other => other,
    };
    graph.insert_before(user, op, &operands, &source)
}
