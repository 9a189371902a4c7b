//! Attention that reaches back no further than a window.

use serde_json::Value;

use crate::config::{ConfigError, Settings};

/// Attention of some layers that reaches back no further than a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// How many tokens a token sees, itself among them (`sliding_window`).
    pub size: usize,
    /// Which layers have the window; the others see all tokens.
    pub layers: Vec<bool>,
}

/// The setting that says which layers have a window.
const KEY: &str = "layer_types";

/// What `layer_types` calls layers without a window and with one.
pub(crate) const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

impl SlidingWindow {
    /// Whether a layer has the window.
    pub fn slides(&self, layer: usize) -> bool {
        self.layers.get(layer).copied().unwrap_or(false)
    }

    /// What `config.json` says in `layer_types`.
    pub(crate) fn layer_types(&self) -> Value {
        let types = self.layers.iter();
        let types = types.map(|slides| LAYER_TYPES[usize::from(*slides)]);
        types.collect()
    }
}

/// Which layers have a window by `layer_types`.
pub(crate) fn layer_types(settings: &Settings) -> Result<Option<Vec<bool>>, ConfigError> {
    let Some(told) = settings.get(KEY) else {
        return Ok(None);
    };
    let list = || settings.invalid(KEY, told, "a list of names");
    let slides = told.as_array().ok_or_else(list)?.iter().map(|name| {
        let known = LAYER_TYPES.iter().position(|known| *name == *known);
        known.map(|at| at == 1).ok_or_else(|| {
            let known = format!("those it does are {}", LAYER_TYPES.join(" and "));
            settings.unsupported(KEY, name, known)
        })
    });
    slides.collect::<Result<_, _>>().map(Some)
}

/// Refuses `layer_types` of another number of layers.
pub(crate) fn one_for_each(
    settings: &Settings,
    types: &[bool],
    layers: usize,
) -> Result<(), ConfigError> {
    match settings.get(KEY) {
        Some(told) if types.len() != layers => {
            let wanted = format!("a list with a name for each of {layers} layers");
            Err(settings.invalid(KEY, told, wanted))
        }
        _ => Ok(()),
    }
}
