//! Feed-forward parts with a gate.

use kiln_ir::{Activation, GraphBuilder, ValueId};

use super::{Built, Linear, activation};

/// A feed-forward part with a gate, `down(f(gate(x)) * up(x))`: SwiGLU where the
/// nonlinearity is SiLU, GEGLU where it is GELU (Shazeer,
/// <https://arxiv.org/abs/2002.05202>).
#[derive(Clone, Debug, PartialEq)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// A part, `mlp`, of layers `gate_proj`, `up_proj` and `down_proj` without
    /// biases, `inner` wide inside.
    pub fn new(width: usize, inner: usize, activation: Activation) -> Self {
        let linear = |name, inputs, outputs| Linear::new(name, inputs, outputs).without_bias();
        GatedMlp {
            gate_proj: linear("gate_proj", width, inner),
            up_proj: linear("up_proj", width, inner),
            down_proj: linear("down_proj", inner, width),
            activation,
        }
    }

    /// The same part, its layers with or without biases.
    #[must_use]
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.gate_proj = self.gate_proj.with_bias(bias);
        self.up_proj = self.up_proj.with_bias(bias);
        self.down_proj = self.down_proj.with_bias(bias);
        self
    }

    /// `x[.., width]` to the same.
    ///
    /// # Errors
    /// When the last axis of `x` is not `width` long.
    pub fn forward(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        g.scope("mlp", |g| {
            let gate = self.gate_proj.forward(g, x)?;
            let gate = g.scope("act_fn", |g| activation(g, self.activation, gate))?;
            let up = self.up_proj.forward(g, x)?;
            let gated = g.mul(gate, up)?;
            self.down_proj.forward(g, gated)
        })
    }
}
