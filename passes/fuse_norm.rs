//! Layer norm and RMS norm.

use kiln_ir::{BinaryOp, Norm, Op, ReduceOp, UnaryOp, ValueId};

use crate::matcher::{Matcher, about, rewrite};
use crate::{Changed, Pass, PassError, in_pass};
use kiln_ir::Graph;

/// Recognises, over the last axis,
///
/// - `d * rsqrt(mean(d * d) + eps) * gain + bias` with `d = x - mean(x)`, which
///   becomes a layer norm,
/// - `x * rsqrt(mean(x * x) + eps) * gain`, which becomes an RMS norm,
///
/// in any order of the factors; with `d ^ 2` for the square, `/ sqrt(..)`,
/// `* (1 / sqrt(..))` or `^ -0.5` for the root, and a sum over a constant count
/// for a mean.
pub struct FuseNorm;

impl Pass for FuseNorm {
    fn name(&self) -> &'static str {
        "fuse_layer_norm"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let mut changed = in_pass(self.name(), rewrite(graph, layer_norm, build))?;
        // What is left of a layer norm without a bias is an RMS norm of `d`;
        // hence layer norms first.
        changed += in_pass(self.name(), rewrite(graph, rms_norm, build))?;
        Ok(changed)
    }
}

struct Found {
    norm: Norm,
    operands: Vec<ValueId>,
}

fn build(graph: &mut Graph, root: ValueId, found: Found) -> Result<ValueId, kiln_ir::GraphError> {
    let source = graph.value(root).source.clone();
    graph.insert_before(root, Op::Normalize(found.norm), &found.operands, &source)
}

/// `normalised * gain + bias`.
fn layer_norm(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    m.either(root, BinaryOp::Add).find_map(|(scaled, bias)| {
        let mut found = Scaled::find(m, scaled)?;
        found.interior.push(scaled);
        // d = x - mean(x)
        let (x, mean) = m.binary(found.centred, BinaryOp::Sub)?;
        if mean_of(m, mean, &mut found.interior)? != x {
            return None;
        }
        found.interior.extend([found.centred, mean]);
        let fits = is_vector(m, bias, x) && m.ty(root) == m.ty(x);
        (fits && m.closed(root, &found.interior)).then(|| Found {
            norm: Norm::Layer { eps: found.eps },
            operands: vec![x, found.gain, bias],
        })
    })
}

/// `normalised * gain`.
fn rms_norm(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let found = Scaled::find(m, root)?;
    let fits = m.ty(root) == m.ty(found.centred);
    (fits && m.closed(root, &found.interior)).then(|| Found {
        norm: Norm::Rms { eps: found.eps },
        operands: vec![found.centred, found.gain],
    })
}

/// `d * rsqrt(mean(d * d) + eps) * gain`
struct Scaled {
    centred: ValueId,
    gain: ValueId,
    eps: f64,
    /// What stands between `d` and the root, both excluded.
    interior: Vec<ValueId>,
}

impl Scaled {
    /// In any order of the three factors.
    fn find(m: &Matcher<'_>, root: ValueId) -> Option<Scaled> {
        let gain_last = || {
            // (d * r) * gain, (d / s) * gain
            m.either(root, BinaryOp::Mul)
                .find_map(|(normalised, gain)| {
                    let mut found = Self::normalised(m, normalised, gain)?;
                    found.interior.push(normalised);
                    Some(found)
                })
        };
        let gain_first = || {
            // d * (r * gain)
            m.either(root, BinaryOp::Mul).find_map(|(d, factor)| {
                m.either(factor, BinaryOp::Mul).find_map(|(r, gain)| {
                    let mut found = Self::times_root(m, d, r, gain)?;
                    found.interior.push(factor);
                    Some(found)
                })
            })
        };
        let gain_inside = || {
            // (d * gain) * r, (d * gain) / s
            let roots = m.either(root, BinaryOp::Mul).map(|(a, r)| (a, r, false));
            let quotient = m.binary(root, BinaryOp::Div).map(|(a, s)| (a, s, true));
            roots.chain(quotient).find_map(|(product, r, divides)| {
                m.either(product, BinaryOp::Mul).find_map(|(d, gain)| {
                    let mut found = if divides {
                        Self::over_root(m, d, r, gain)?
                    } else {
                        Self::times_root(m, d, r, gain)?
                    };
                    found.interior.push(product);
                    Some(found)
                })
            })
        };
        gain_last().or_else(gain_first).or_else(gain_inside)
    }

    /// `d * r` or `d / s`.
    fn normalised(m: &Matcher<'_>, id: ValueId, gain: ValueId) -> Option<Scaled> {
        if let Some((d, s)) = m.binary(id, BinaryOp::Div) {
            return Self::over_root(m, d, s, gain);
        }
        m.either(id, BinaryOp::Mul)
            .find_map(|(d, r)| Self::times_root(m, d, r, gain))
    }

    /// `r` is `rsqrt(v)`, `1 / sqrt(v)` or `v ^ -0.5`.
    fn times_root(m: &Matcher<'_>, d: ValueId, r: ValueId, gain: ValueId) -> Option<Scaled> {
        let power = || {
            let (v, c) = m.with_number(r, BinaryOp::Pow)?;
            (c == -0.5).then_some(v)
        };
        let inverse = || {
            let (one, s) = m.binary(r, BinaryOp::Div)?;
            (m.number(one)? == 1.0).then_some(s)
        };
        let mut found = if let Some(s) = inverse() {
            Self::over_root(m, d, s, gain)?
        } else {
            let v = m.unary(r, UnaryOp::Rsqrt).or_else(power)?;
            Self::mean_square(m, d, v, gain)?
        };
        found.interior.push(r);
        Some(found)
    }

    /// `s` is `sqrt(v)` or `v ^ 0.5`.
    fn over_root(m: &Matcher<'_>, d: ValueId, s: ValueId, gain: ValueId) -> Option<Scaled> {
        let power = || {
            let (v, c) = m.with_number(s, BinaryOp::Pow)?;
            (c == 0.5).then_some(v)
        };
        let v = m.unary(s, UnaryOp::Sqrt).or_else(power)?;
        let mut found = Self::mean_square(m, d, v, gain)?;
        found.interior.push(s);
        Some(found)
    }

    /// `v` is `mean(d * d) + eps`.
    fn mean_square(m: &Matcher<'_>, d: ValueId, v: ValueId, gain: ValueId) -> Option<Scaled> {
        if !is_vector(m, gain, d) {
            return None;
        }
        let (variance, eps) = m.with_number(v, BinaryOp::Add)?;
        let mut interior = vec![v, variance];
        let square = mean_of(m, variance, &mut interior)?;
        let product = m.binary(square, BinaryOp::Mul) == Some((d, d));
        let power = m.with_number(square, BinaryOp::Pow) == Some((d, 2.0));
        interior.push(square);
        // An epsilon is there to keep the root away from zero.
        ((product || power) && eps >= 0.0).then_some(Scaled {
            centred: d,
            gain,
            eps,
            interior,
        })
    }
}

/// Whether `id` has the shape `[n]` of the last axis of `x`.
fn is_vector(m: &Matcher<'_>, id: ValueId, x: ValueId) -> bool {
    m.ty(x).rank() > 0 && m.shape(id) == [m.ty(x).last()]
}

/// `x` of `mean(x)`, or of `sum(x)` scaled by one over a constant count.
fn mean_of(m: &Matcher<'_>, id: ValueId, interior: &mut Vec<ValueId>) -> Option<ValueId> {
    if let Some(x) = m.reduced_last(id, ReduceOp::Mean) {
        return Some(x);
    }
    let (sum, scale) = m.scaled(id)?;
    let x = m.reduced_last(sum, ReduceOp::Sum)?;
    let count = m.ty(x).last().as_const()?;
    interior.push(sum);
    about(scale * count as f64, 1.0).then_some(x)
}
