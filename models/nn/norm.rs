//! Normalisations.

use kiln_ir::{GraphBuilder, ValueId};

use super::Built;

/// Layer normalisation over the last axis (Ba, Kiros and Hinton,
/// <https://arxiv.org/abs/1607.06450>): `(x - mean) / sqrt(var + eps)`, times a
/// gain, plus a bias.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    name: String,
    width: usize,
    epsilon: f64,
}

impl LayerNorm {
    /// A norm with parameters `weight[width]`, the gain, and `bias[width]`.
    /// `epsilon` is added to the variance.
    pub fn new(name: &str, width: usize, epsilon: f64) -> Self {
        LayerNorm {
            name: name.to_owned(),
            width,
            epsilon,
        }
    }

    /// `x[.., width]`, normalised.
    ///
    /// # Errors
    /// When the last axis of `x` is not `width` long.
    pub fn forward(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        g.scope(&self.name, |g| {
            let axis = g.ty(x).rank().saturating_sub(1);
            let mean = g.mean(x, axis)?;
            let centred = g.sub(x, mean)?;
            let square = g.mul(centred, centred)?;
            let variance = g.mean(square, axis)?;
            let epsilon = g.f32(self.epsilon)?;
            let guarded = g.add(variance, epsilon)?;
            let factor = g.rsqrt(guarded)?;
            let normalised = g.mul(centred, factor)?;
            let gain = g.param("weight", [self.width])?;
            let scaled = g.mul(normalised, gain)?;
            let bias = g.param("bias", [self.width])?;
            g.add(scaled, bias)
        })
    }
}
