//! Attention.

use kiln_ir::{Dim, GraphBuilder, GraphError, MASK_VALUE, ValueId};

use super::Built;

/// What attention gives.
#[derive(Clone, Copy, Debug)]
pub struct Attended {
    /// The values that each query attends to, weighted:
    /// `f32[batch, heads, queries, d]`.
    pub output: ValueId,
    /// How much each query attends to each key; rows add up to one:
    /// `f32[batch, heads, queries, keys]`.
    pub probabilities: ValueId,
}

/// Scaled dot-product attention (Vaswani et al.,
/// <https://arxiv.org/abs/1706.03762>): `softmax(q k^T / divisors, where mask) v`.
///
/// `q` is `[batch, heads, queries, d]`, `k` and `v` are
/// `[batch, heads, keys, d]`, and `mask`, true where a query sees a key,
/// broadcasts to `[batch, heads, queries, keys]`. Scores are divided by
/// `divisors` one after the other.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention(
    g: &mut GraphBuilder,
    q: ValueId,
    k: ValueId,
    v: ValueId,
    mask: ValueId,
    divisors: &[f64],
) -> Result<Attended, GraphError> {
    let transposed = g.transpose(k, &[0, 1, 3, 2])?;
    let mut scores = g.matmul(q, transposed)?;
    for divisor in divisors {
        let divisor = g.f32(*divisor)?;
        scores = g.div(scores, divisor)?;
    }
    let hidden = g.f32(MASK_VALUE)?;
    let masked = g.select(mask, scores, hidden)?;
    let probabilities = g.softmax(masked, 3)?;
    let output = g.matmul(probabilities, v)?;
    Ok(Attended {
        output,
        probabilities,
    })
}

/// `[batch, n, heads * d]` as `[batch, heads, n, d]`.
///
/// # Errors
/// When `x` has no three axes, or `heads` does not divide the last.
pub fn split_heads(g: &mut GraphBuilder, x: ValueId, heads: usize) -> Built {
    let split = heads_apart(g, x, heads)?;
    g.transpose(split, &[0, 2, 1, 3])
}

/// `[.., heads * d]` as `[.., heads, d]`.
///
/// # Errors
/// When `heads` does not divide the last axis.
pub fn heads_apart(g: &mut GraphBuilder, x: ValueId, heads: usize) -> Built {
    let mut shape = g.shape(x);
    // A width that is not known, or not divisible, fails in `reshape`, whose
    // error says which shapes do not fit.
    let width = shape.pop().and_then(|w| w.as_const()).unwrap_or(0);
    shape.extend([Dim::from(heads), Dim::constant(width / heads.max(1) as u64)]);
    g.reshape(x, shape)
}

/// `[batch, heads, n, d]` with each head `times` times, one beside the other:
/// the keys or values of grouped queries (Ainslie et al.,
/// <https://arxiv.org/abs/2305.13245>).
///
/// # Errors
/// When `x` has not four axes.
pub fn repeat_heads(g: &mut GraphBuilder, x: ValueId, times: usize) -> Built {
    if times == 1 {
        return Ok(x);
    }
    let mut shape = g.shape(x);
    shape.insert(2.min(shape.len()), 1.into());
    let apart = g.reshape(x, shape.clone())?;
    shape[2] = times.into();
    let repeated = g.broadcast(apart, shape.clone())?;
    let times = shape.remove(2);
    shape[1] = &shape[1] * &times;
    g.reshape(repeated, shape)
}

/// `[batch, heads, n, d]` as `[batch, n, heads * d]`.
///
/// # Errors
/// When `x` has not four axes.
pub fn merge_heads(g: &mut GraphBuilder, x: ValueId) -> Built {
    let swapped = g.transpose(x, &[0, 2, 1, 3])?;
    let mut shape = g.shape(swapped);
    let width = Dim::product(shape.split_off(2).iter());
    shape.push(width);
    g.reshape(swapped, shape)
}
