//! The clean-ups every compiler has: common subexpressions and dead code.

use std::collections::BTreeMap;

use kiln_ir::{Graph, Op, Scalar, ValueId};

use crate::{Changed, Pass, PassError};

/// Computes equal values once: those of the same op on the same operands. Parameters,
/// inputs and states never are, for each has a name of its own.
pub struct Cse;

impl Pass for Cse {
    fn name(&self) -> &'static str {
        "cse"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        Ok(share(graph))
    }
}

/// Removes what no output and no state needs.
pub struct Dce;

impl Pass for Dce {
    fn name(&self) -> &'static str {
        "dce"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        Ok(remove_dead(graph))
    }
}

/// Removes what no output and no state needs, and counts it.
pub(crate) fn remove_dead(graph: &mut Graph) -> Changed {
    let before = graph.order().len();
    graph.remove_dead();
    Changed {
        rewrites: before - graph.order().len(),
    }
}

/// Makes every value that equals an earlier one that one. What is counted is the values
/// that go: those, and what nobody needed to begin with.
pub(crate) fn share(graph: &mut Graph) -> Changed {
    // Values of one op name on the same operands; their attributes are compared.
    let mut seen: BTreeMap<(&'static str, Vec<ValueId>), Vec<ValueId>> = BTreeMap::new();
    for id in graph.order().to_vec() {
        let value = graph.value(id);
        // Inputs and states are the graph's signature.
        if matches!(value.op, Op::Input { .. } | Op::State { .. }) {
            continue;
        }
        let mut operands = value.inputs.clone();
        if matches!(value.op, Op::Binary(op) if op.is_commutative()) {
            operands.sort_unstable();
        }
        let same_key = seen.entry((value.op.name(), operands)).or_default();
        match same_key
            .iter()
            .find(|e| same(&graph.value(**e).op, &value.op))
        {
            Some(earlier) => graph.replace_uses(id, *earlier),
            None => same_key.push(id),
        }
    }
    remove_dead(graph)
}

/// Equality of ops, except that `0` and `-0` are two constants.
fn same(a: &Op, b: &Op) -> bool {
    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<u64>>();
    match (a, b) {
        (Op::Const(Scalar::F32(a)), Op::Const(Scalar::F32(b))) => a.to_bits() == b.to_bits(),
        (Op::Table(a), Op::Table(b)) => bits(a) == bits(b),
        _ => a == b,
    }
}
