//! Weights made up on the spot, for measuring and for tests without a
//! checkpoint.

use std::borrow::Cow;

use kiln_ir::params::{ParamError, ParamSource};
use rayon::prelude::*;

use crate::adapter::{ModelParams, Parameter, ParameterError};

/// Random values for every parameter of a model, the same for the same seed on
/// every machine.
///
/// They are spread so that a deep model's activations neither vanish nor grow
/// without bound: a matrix `[out, in]` has a standard deviation of
/// `1 / sqrt(in)`, gains are near one, biases near zero.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    parameters: Vec<Parameter>,
    seed: u64,
}

impl RandomWeights {
    /// Values for `parameters`.
    pub fn new(parameters: Vec<Parameter>, seed: u64) -> Self {
        RandomWeights { parameters, seed }
    }
}

impl ParamSource for RandomWeights {
    fn param(&self, name: &str) -> Result<Cow<'_, [f32]>, ParamError> {
        let parameter = self.parameters.iter().find(|p| p.name == name);
        let parameter = parameter.ok_or_else(|| ParameterError::Unknown {
            name: name.to_owned(),
        })?;
        let len = usize::try_from(parameter.len())?;
        let (mean, deviation) = spread(parameter);
        let key = self.seed ^ hash(name);
        let values = (0..len).into_par_iter().with_min_len(1 << 14);
        let values = values.map(|i| mean + deviation * normal(key, i as u64));
        Ok(Cow::Owned(values.collect()))
    }
}

impl ModelParams for RandomWeights {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
}

/// The mean and the standard deviation of a parameter's values.
fn spread(parameter: &Parameter) -> (f32, f32) {
    match parameter.shape.as_slice() {
        [_] if parameter.name.ends_with("weight") => (1.0, 0.1),
        [.., inputs] if parameter.shape.len() > 1 => (0.0, (*inputs as f32).sqrt().recip()),
        _ => (0.0, 0.1),
    }
}

/// A number that is nearly normal, of mean zero and deviation one: the sum of
/// four that are uniform. Which one it is depends on its place alone, so that
/// values can be made in any order.
fn normal(key: u64, at: u64) -> f32 {
    let bits = mix(key.wrapping_add(at.wrapping_mul(GOLDEN)));
    let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
    // Four uniform numbers over 0..=1 have mean 2 and variance 1/3.
    let centred = sum as f32 / f32::from(u16::MAX) - 2.0;
    centred * 3f32.sqrt()
}

/// The golden ratio in 64 bits, which spreads consecutive numbers far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea and Flood, *Fast Splittable
/// Pseudorandom Number Generators*, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, a hash that does not change between releases of the standard
/// library.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = values
            .iter()
            .map(|v| (f64::from(*v) - mean).powi(2))
            .sum::<f64>()
            / n;
        (mean, variance.sqrt())
    }

    fn weights(seed: u64) -> RandomWeights {
        let parameters = vec![
            Parameter::new("up.weight", [200, 400]),
            Parameter::new("down.weight", [200, 400]),
            Parameter::new("ln.weight", [10_000]),
            Parameter::new("ln.bias", [10_000]),
        ];
        RandomWeights::new(parameters, seed)
    }

    #[test]
    fn values_are_spread_as_promised() {
        let weights = weights(1);
        for (name, mean, deviation) in [
            ("up.weight", 0.0, 0.05),
            ("ln.weight", 1.0, 0.1),
            ("ln.bias", 0.0, 0.1),
        ] {
            let (found_mean, found_deviation) = moments(&weights.param(name).unwrap());
            assert!(
                (found_mean - mean).abs() < 0.05 * deviation,
                "{name}: {found_mean}"
            );
            assert!(
                (found_deviation / deviation - 1.0).abs() < 0.02,
                "{name}: {found_deviation}"
            );
        }
    }

    #[test]
    fn a_seed_and_a_name_decide_on_the_values() {
        let values = |seed, name| weights(seed).param(name).unwrap().into_owned();
        assert_eq!(values(1, "up.weight"), values(1, "up.weight"));
        assert_ne!(values(1, "up.weight"), values(2, "up.weight"));
        assert_ne!(values(1, "up.weight"), values(1, "down.weight"));
        let neighbours: Vec<f32> = values(1, "up.weight");
        let products: Vec<f32> = neighbours.windows(2).map(|w| w[0] * w[1] * 400.0).collect();
        assert!(
            moments(&products).0.abs() < 0.02,
            "neighbours are not alike"
        );
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        assert_eq!(
            weights(1).param("nope").unwrap_err().to_string(),
            "the model has no parameter `nope`"
        );
    }
}
