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
            let normalised = to_unit_length(g, centred, self.epsilon)?;
            let gain = g.param("weight", [self.width])?;
            let scaled = g.mul(normalised, gain)?;
            let bias = g.param("bias", [self.width])?;
            g.add(scaled, bias)
        })
    }
}

/// Normalisation by the root mean square of the last axis (Zhang and Sennrich,
/// <https://arxiv.org/abs/1910.07467>): `x / sqrt(mean(x^2) + eps)`, times a
/// gain.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    name: String,
    width: usize,
    epsilon: f64,
}

impl RmsNorm {
    /// A norm with the parameter `weight[width]`, the gain. `epsilon` is added
    /// to the mean square.
    pub fn new(name: &str, width: usize, epsilon: f64) -> Self {
        RmsNorm {
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
            let normalised = to_unit_length(g, x, self.epsilon)?;
            let gain = g.param("weight", [self.width])?;
            g.mul(normalised, gain)
        })
    }
}

/// `x / sqrt(mean(x^2) + eps)` over the last axis.
fn to_unit_length(g: &mut GraphBuilder, x: ValueId, epsilon: f64) -> Built {
    let axis = g.ty(x).rank().saturating_sub(1);
    let square = g.mul(x, x)?;
    let mean_square = g.mean(square, axis)?;
    let epsilon = g.f32(epsilon)?;
    let guarded = g.add(mean_square, epsilon)?;
    let factor = g.rsqrt(guarded)?;
    g.mul(x, factor)
}
