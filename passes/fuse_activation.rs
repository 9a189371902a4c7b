//! The nonlinearities: GELU in both forms, SiLU, ReLU, tanh.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use kiln_ir::{Activation, BinaryOp, Graph, Op, UnaryOp, ValueId};

use crate::matcher::{Matcher, rewrite};
use crate::polynomial::Polynomial;
use crate::{Changed, Pass, PassError, in_pass};

/// Recognises
///
/// - `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`, GELU's approximation,
/// - `x/2 * (1 + erf(x / sqrt(2)))`, GELU itself,
/// - `x / (1 + e^-x)` and `x * (1 / (1 + e^-x))`, SiLU,
/// - `max(x, 0)`, ReLU,
/// - `tanh(x)` where it stands by itself,
///
/// however the polynomials in them are written.
pub struct FuseActivation;

impl Pass for FuseActivation {
    fn name(&self) -> &'static str {
        "fuse_activation"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let mut changed = Changed::default();
        // tanh comes last: the others have one inside.
        for find in [gelu, silu, relu, tanh] {
            let fused = rewrite(graph, find, |graph, root, (activation, x)| {
                let source = graph.value(root).source.clone();
                graph.insert_before(root, Op::Activate(activation), &[x], &source)
            });
            changed += in_pass(self.name(), fused)?;
        }
        Ok(changed)
    }
}

type Found = (Activation, ValueId);

/// How deep the curve of a GELU lies below its root, and its operand below the
/// curve, in the longest form.
const MAX_DEPTH: usize = 5;

/// `x/2 + x/2 * t`, where `t` is the `tanh` or the `erf` of a polynomial of `x`.
fn gelu(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    if !matches!(m.op(root), Op::Binary(_)) {
        return None;
    }
    let mut curves = below(m, root);
    curves.retain(|v| matches!(m.op(*v), Op::Unary(UnaryOp::Tanh | UnaryOp::Erf)));
    curves.into_iter().find_map(|t| {
        let argument = *m.inputs(t).first()?;
        below(m, argument)
            .into_iter()
            .find_map(|x| gelu_of(m, root, t, argument, x))
    })
}

fn gelu_of(
    m: &Matcher<'_>,
    root: ValueId,
    t: ValueId,
    argument: ValueId,
    x: ValueId,
) -> Option<Found> {
    let inner = Polynomial::of(m, argument, [x, t])?;
    let slope = FRAC_2_PI.sqrt();
    let activation = match m.op(t) {
        Op::Unary(UnaryOp::Tanh) if inner.is(&[((1, 0), slope), ((3, 0), slope * 0.044715)]) => {
            Activation::GeluTanh
        }
        Op::Unary(UnaryOp::Erf) if inner.is(&[((1, 0), FRAC_1_SQRT_2)]) => Activation::GeluErf,
        _ => return None,
    };
    let outer = Polynomial::of(m, root, [x, t])?;
    let mut interior = outer.interior;
    interior.retain(|v| *v != root);
    interior.push(t);
    interior.extend(inner.interior);
    let fits = outer.terms.len() == 2
        && Polynomial {
            terms: outer.terms,
            interior: Vec::new(),
        }
        .is(&[((1, 0), 0.5), ((1, 1), 0.5)]);
    (fits && m.ty(x) == m.ty(root) && m.closed(root, &interior)).then_some((activation, x))
}

/// The values that `root` is made of by arithmetic, itself included, nearest
/// first; constants left out, and no further than the idiom reaches.
fn below(m: &Matcher<'_>, root: ValueId) -> Vec<ValueId> {
    let mut found = vec![root];
    let mut level = vec![root];
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for id in level {
            let arithmetic = matches!(
                m.op(id),
                Op::Unary(UnaryOp::Neg)
                    | Op::Binary(
                        BinaryOp::Add
                            | BinaryOp::Sub
                            | BinaryOp::Mul
                            | BinaryOp::Div
                            | BinaryOp::Pow
                    )
            );
            let operands = m.inputs(id).iter().filter(|_| arithmetic);
            for x in operands.filter(|x| m.number(**x).is_none()) {
                if !found.contains(x) {
                    found.push(*x);
                    next.push(*x);
                }
            }
        }
        level = next;
    }
    found
}

/// `x / (1 + e^-x)`, `x * (1 / (1 + e^-x))`
fn silu(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let quotient = || {
        let (x, denominator) = m.binary(root, BinaryOp::Div)?;
        let interior = sigmoid_denominator(m, denominator, x)?;
        Some((x, interior))
    };
    let product = || {
        m.either(root, BinaryOp::Mul).find_map(|(x, sigmoid)| {
            let (one, denominator) = m.binary(sigmoid, BinaryOp::Div)?;
            let mut interior = sigmoid_denominator(m, denominator, x)?;
            interior.push(sigmoid);
            (m.number(one)? == 1.0).then_some((x, interior))
        })
    };
    let (x, interior) = quotient().or_else(product)?;
    let fits = m.ty(x) == m.ty(root) && m.closed(root, &interior);
    fits.then_some((Activation::Silu, x))
}

/// `1 + e^-x`: the values that it is made of.
fn sigmoid_denominator(m: &Matcher<'_>, id: ValueId, x: ValueId) -> Option<Vec<ValueId>> {
    let (exp, one) = m.with_number(id, BinaryOp::Add)?;
    let argument = m.unary(exp, UnaryOp::Exp)?;
    let negated = Polynomial::of(m, argument, [x, x])?;
    let mut interior = vec![id, exp];
    interior.extend(&negated.interior);
    (one == 1.0 && negated.is(&[((1, 0), -1.0)])).then_some(interior)
}

/// `max(x, 0)`
fn relu(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let (x, zero) = m.with_number(root, BinaryOp::Max)?;
    (zero == 0.0 && m.ty(x) == m.ty(root)).then_some((Activation::Relu, x))
}

/// `tanh(x)`
fn tanh(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let x = m.unary(root, UnaryOp::Tanh)?;
    Some((Activation::Tanh, x))
}
