//! Linear layers.

use kiln_ir::{GraphBuilder, ValueId};

use super::Built;

/// `x W^T + b`: `[.., in]` to `[.., out]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    name: String,
    inputs: usize,
    outputs: usize,
    bias: bool,
}

impl Linear {
    /// A layer with parameters `weight[outputs, inputs]` and `bias[outputs]`.
    pub fn new(name: &str, inputs: usize, outputs: usize) -> Self {
        Linear {
            name: name.to_owned(),
            inputs,
            outputs,
            bias: true,
        }
    }

    /// The same layer without its bias.
    #[must_use]
    pub fn without_bias(self) -> Self {
        self.with_bias(false)
    }

    /// The same layer with or without a bias.
    #[must_use]
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// `x[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// When the last axis of `x` is not `inputs` long.
    pub fn forward(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        g.scope(&self.name, |g| {
            let weight = g.param("weight", [self.outputs, self.inputs])?;
            let product = linear(g, x, weight)?;
            if !self.bias {
                return Ok(product);
            }
            let bias = g.param("bias", [self.outputs])?;
            g.add(product, bias)
        })
    }
}

/// `x W^T` for a matrix `weight[out, in]`: `[.., in]` to `[.., out]`.
///
/// # Errors
/// When the last axes of the two differ.
pub fn linear(g: &mut GraphBuilder, x: ValueId, weight: ValueId) -> Built {
    let transposed = g.transpose(weight, &[1, 0])?;
    g.matmul(x, transposed)
}
