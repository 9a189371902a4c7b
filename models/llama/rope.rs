//! The frequencies of Llama's rotary embedding.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use crate::config::{ConfigError, Settings};

/// How fast the pairs of a head's elements turn (`rope_theta` and
/// `rope_scaling`, or `rope_parameters`; where a file has both, `rope_scaling`
/// holds).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base: of `d/2` pairs, pair `i` turns by `theta^(-2i/d)` radians a
    /// position.
    pub theta: f64,
    /// How that is changed for contexts longer than those of the training.
    pub scaling: Option<Llama3Scaling>,
}

/// The stretching of Llama 3.1 and later (`rope_type` `llama3`): pairs that turn
/// slowly, seen from the context of the training, turn `factor` times slower
/// still; fast ones stay; in between is a smooth transition.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// By how much slow pairs are slowed down.
    pub factor: f64,
    /// Pairs that turn less often than so many times over the original context
    /// are slow.
    pub low_freq_factor: f64,
    /// Pairs that turn more often than so many times are fast.
    pub high_freq_factor: f64,
    /// The context of the training, in tokens.
    pub original_max_position_embeddings: f64,
}

impl Rope {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling`, the older
    /// form, for a model whose longest context is `context`.
    pub(super) fn from_settings(settings: &Settings, context: usize) -> Result<Self, ConfigError> {
        // As in transformers: files that have both are newer ones to which
        // someone added the older form, and mean that.
        let older = settings.object("rope_scaling")?;
        let inner = match older.filter(|inner| inner.keys().next().is_some()) {
            Some(inner) => Some(inner),
            None => settings.object("rope_parameters")?,
        };
        let mut theta = settings.positive("rope_theta")?;
        let mut scaling = None;
        for settings in [Some(settings), inner.as_ref()].into_iter().flatten() {
            if let Some(part) = settings.get("partial_rotary_factor")
                && part.as_f64() != Some(1.0)
            {
                let whole = "only heads that turn whole are, for which it is 1";
                return Err(settings.unsupported("partial_rotary_factor", part, whole));
            }
        }
        if let Some(inner) = &inner {
            refuse_parts(inner)?;
            theta = inner.positive("rope_theta")?.or(theta);
            scaling = scaling_of(settings, inner, context)?;
        }
        Ok(Rope {
            theta: theta.unwrap_or(10_000.0),
            scaling,
        })
    }

    /// What `config.json` says of it: the settings' names and values.
    pub(super) fn to_settings(&self) -> Map<String, Value> {
        let scaling = self.scaling.as_ref().map(|scaling| {
            json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            })
        });
        Map::from_iter([
            ("rope_theta".to_owned(), json!(self.theta)),
            ("rope_scaling".to_owned(), json!(scaling)),
        ])
    }

    /// How fast each pair of a head of `head_dim` elements turns, in radians a
    /// position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let pairs = 0..head_dim / 2;
        let plain = pairs.map(|i| self.theta.powf(-((2 * i) as f64) / head_dim as f64));
        match &self.scaling {
            None => plain.collect(),
            Some(scaling) => plain.map(|f| scaling.apply(f)).collect(),
        }
    }
}

impl Llama3Scaling {
    fn apply(&self, frequency: f64) -> f64 {
        let turns = self.original_max_position_embeddings * frequency / TAU;
        // From 0, slow, to 1, fast.
        let fast = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let fast = fast.clamp(0.0, 1.0);
        frequency * (fast + (1.0 - fast) / self.factor)
    }
}

/// Refuses frequencies that differ from layer to layer.
fn refuse_parts(settings: &Settings) -> Result<(), ConfigError> {
    for key in settings.keys() {
        if let Some(value) = settings.get(key)
            && value.is_object()
        {
            let supported = "only one set of frequencies for all layers is";
            return Err(settings.unsupported(key, value, supported));
        }
    }
    Ok(())
}

/// The scaling that `inner` says, which lies inside of `outer`.
fn scaling_of(
    outer: &Settings,
    inner: &Settings,
    context: usize,
) -> Result<Option<Llama3Scaling>, ConfigError> {
    // Older files call it `type`.
    let key = match inner.get("rope_type") {
        Some(_) => "rope_type",
        None => "type",
    };
    match inner.text(key)? {
        None | Some("default") => return Ok(None),
        // All positions divided by the factor.
        Some("linear") if inner.positive("factor")? == Some(1.0) => return Ok(None),
        Some("llama3") => {}
        Some(other) => {
            let supported = "those it does are default and llama3";
            return Err(inner.unsupported(key, format!("\"{other}\""), supported));
        }
    }
    let number = |key: &'static str| {
        inner.positive(key)?.ok_or_else(|| ConfigError::Missing {
            key: inner.full_name(key),
            supported: "for llama3 it should be a number greater than 0".to_owned(),
        })
    };
    // As in transformers: outside it holds before the one inside.
    const ORIGINAL: &str = "original_max_position_embeddings";
    let original = match outer.positive(ORIGINAL)? {
        Some(original) => Some(original),
        None => inner.positive(ORIGINAL)?,
    };
    let scaling = Llama3Scaling {
        factor: number("factor")?,
        low_freq_factor: number("low_freq_factor")?,
        high_freq_factor: number("high_freq_factor")?,
        original_max_position_embeddings: original.unwrap_or(context as f64),
    };
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        let low = scaling.low_freq_factor;
        return Err(inner.invalid(
            "high_freq_factor",
            &json!(scaling.high_freq_factor),
            format!("greater than `low_freq_factor`, which is {low}"),
        ));
    }
    Ok(Some(scaling))
}
