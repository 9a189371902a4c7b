//! The nonlinearities.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use kiln_ir::{Activation, GraphBuilder, ValueId};

use super::Built;

/// The cubic term's factor in GELU's approximation by `tanh`.
const GELU_CUBIC: f64 = 0.044_715;

/// `f(x)`, elementwise. GELU and its approximation are those of Hendrycks and
/// Gimpel (<https://arxiv.org/abs/1606.08415>).
///
/// # Errors
/// When `x` is not real.
pub fn activation(g: &mut GraphBuilder, f: Activation, x: ValueId) -> Built {
    match f {
        Activation::GeluTanh => {
            let square = g.mul(x, x)?;
            let cube = g.mul(square, x)?;
            let factor = g.f32(GELU_CUBIC)?;
            let cubic = g.mul(cube, factor)?;
            let polynomial = g.add(x, cubic)?;
            let slope = g.f32(FRAC_2_PI.sqrt())?;
            let argument = g.mul(polynomial, slope)?;
            let gate = g.tanh(argument)?;
            half_gated(g, x, gate)
        }
        Activation::GeluErf => {
            let factor = g.f32(FRAC_1_SQRT_2)?;
            let argument = g.mul(x, factor)?;
            let gate = g.erf(argument)?;
            half_gated(g, x, gate)
        }
        Activation::Relu => {
            let zero = g.f32(0.0)?;
            g.max(x, zero)
        }
        Activation::Silu => {
            let negated = g.neg(x)?;
            let exp = g.exp(negated)?;
            let one = g.f32(1.0)?;
            let denominator = g.add(exp, one)?;
            g.div(x, denominator)
        }
        Activation::Tanh => g.tanh(x),
    }
}

/// `x/2 * (1 + gate)`
fn half_gated(g: &mut GraphBuilder, x: ValueId, gate: ValueId) -> Built {
    let half = g.f32(0.5)?;
    let halved = g.mul(x, half)?;
    let one = g.f32(1.0)?;
    let opened = g.add(gate, one)?;
    g.mul(halved, opened)
}
