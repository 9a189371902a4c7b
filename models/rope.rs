//! The frequencies of rotary embeddings, as a `config.json` tells them.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use crate::config::{ConfigError, Settings};

/// How fast the pairs of a head's elements turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base: of `d/2` pairs, pair `i` turns by `theta^(-2i/d)` radians a
    /// position.
    pub theta: f64,
    /// How that is changed for contexts longer than those of the training.
    pub scaling: Option<Scaling>,
}

/// How pairs are slowed down.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// All turn `factor` times slower (`rope_type` `linear`; Chen et al.,
    /// <https://arxiv.org/abs/2306.15595>).
    Linear {
        /// By how much.
        factor: f64,
    },
    /// The slow ones turn slower still (`rope_type` `llama3`).
    Llama3(Llama3Scaling),
}

/// The stretching of Llama 3.1 and later: pairs that turn slowly, seen from the
/// context of the training, turn `factor` times slower still; fast ones stay; in
/// between is a smooth transition.
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
    /// form, for a model whose longest context is `context` and all of whose
    /// layers turn alike; where a file has both, `rope_scaling` holds.
    pub(crate) fn from_settings(settings: &Settings, context: usize) -> Result<Self, ConfigError> {
        // As in transformers: files that have both are newer ones to which
        // someone added the older form, and mean that.
        let inner = match older_form(settings)? {
            Some(inner) => Some(inner),
            None => settings.object("rope_parameters")?,
        };
        if let Some(inner) = &inner {
            refuse_parts(inner)?;
        }
        // As in transformers: outside it holds before the one inside.
        let original = settings.positive(ORIGINAL)?;
        let theta = settings.positive("rope_theta")?.unwrap_or(10_000.0);
        refuse_partial(settings)?;
        Self::from_parameters(inner.as_ref(), theta, original, context)
    }

    /// Reads `parameters`, those of one kind of layers, for a model whose longest
    /// context is `context`. Without a `rope_theta` in there, the base is `theta`;
    /// `original`, where it is given, holds before the
    /// `original_max_position_embeddings` in there.
    pub(crate) fn from_parameters(
        parameters: Option<&Settings>,
        theta: f64,
        original: Option<f64>,
        context: usize,
    ) -> Result<Self, ConfigError> {
        let Some(parameters) = parameters else {
            return Ok(Rope {
                theta,
                scaling: None,
            });
        };
        refuse_partial(parameters)?;
        Ok(Rope {
            theta: parameters.positive("rope_theta")?.unwrap_or(theta),
            scaling: scaling(parameters, original, context)?,
        })
    }

    /// What `config.json` says of it in the older form: the settings' names and
    /// values.
    pub(crate) fn to_settings(&self) -> Map<String, Value> {
        let scaling = self.scaling.as_ref().map(|scaling| match scaling {
            Scaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Scaling::Llama3(scaling) => json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            }),
        });
        Map::from_iter([
            ("rope_theta".to_owned(), json!(self.theta)),
            ("rope_scaling".to_owned(), json!(scaling)),
        ])
    }

    /// What `config.json` says of it inside of `rope_parameters`: what
    /// [`from_parameters`](Self::from_parameters) reads.
    pub(crate) fn to_parameters(&self) -> Value {
        let mut all = self.to_settings();
        match all.remove("rope_scaling") {
            Some(Value::Object(scaling)) => all.extend(scaling),
            _ => all.extend([("rope_type".to_owned(), json!("default"))]),
        }
        Value::Object(all)
    }

    /// How fast each pair of a head of `head_dim` elements turns, in radians a
    /// position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let pairs = 0..head_dim / 2;
        let plain = pairs.map(|i| self.theta.powf(-((2 * i) as f64) / head_dim as f64));
        match &self.scaling {
            None => plain.collect(),
            Some(Scaling::Linear { factor }) => plain.map(|f| f / factor).collect(),
            Some(Scaling::Llama3(scaling)) => plain.map(|f| scaling.apply(f)).collect(),
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

/// The setting that says how long contexts were in the training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// `rope_scaling`, where it says anything.
pub(crate) fn older_form(settings: &Settings) -> Result<Option<Settings>, ConfigError> {
    let older = settings.object("rope_scaling")?;
    Ok(older.filter(|inner| inner.keys().next().is_some()))
}

/// Refuses heads of which only a part turns.
pub(crate) fn refuse_partial(settings: &Settings) -> Result<(), ConfigError> {
    match settings.get("partial_rotary_factor") {
        Some(part) if part.as_f64() != Some(1.0) => {
            let whole = "only heads that turn whole are, for which it is 1";
            Err(settings.unsupported("partial_rotary_factor", part, whole))
        }
        _ => Ok(()),
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

/// The scaling that `parameters` say.
fn scaling(
    parameters: &Settings,
    original: Option<f64>,
    context: usize,
) -> Result<Option<Scaling>, ConfigError> {
    // Older files call it `type`.
    let key = match parameters.get("rope_type") {
        Some(_) => "rope_type",
        None => "type",
    };
    let kind = match parameters.text(key)? {
        None | Some("default") => return Ok(None),
        Some(kind @ ("linear" | "llama3")) => kind,
        Some(other) => {
            let supported = "those it does are default, linear and llama3";
            return Err(parameters.unsupported(key, format!("\"{other}\""), supported));
        }
    };
    let number = |key: &'static str| {
        parameters
            .positive(key)?
            .ok_or_else(|| ConfigError::Missing {
                key: parameters.full_name(key),
                supported: format!("for {kind} it should be a number greater than 0"),
            })
    };
    let factor = number("factor")?;
    if kind == "linear" {
        // Positions divided by one are positions.
        return Ok((factor != 1.0).then_some(Scaling::Linear { factor }));
    }
    let original = match original {
        Some(original) => Some(original),
        None => parameters.positive(ORIGINAL)?,
    };
    let scaling = Llama3Scaling {
        factor,
        low_freq_factor: number("low_freq_factor")?,
        high_freq_factor: number("high_freq_factor")?,
        original_max_position_embeddings: original.unwrap_or(context as f64),
    };
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        let low = scaling.low_freq_factor;
        return Err(parameters.invalid(
            "high_freq_factor",
            &json!(scaling.high_freq_factor),
            format!("greater than `low_freq_factor`, which is {low}"),
        ));
    }
    Ok(Some(Scaling::Llama3(scaling)))
}
