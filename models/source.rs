//! Where models come from: a folder, the program itself, a hub, or chance.
//!
//! ```
//! use kiln_models::registry::EntryOptions;
//! use kiln_models::source::open_demo;
//!
//! let demo = open_demo()?;
//! assert_eq!(demo.model.family(), "gpt2");
//! let ids = demo.tokenizer()?.encode("A trait is")?;
//! assert!(!ids.is_empty());
//! assert_eq!(demo.info(&EntryOptions::default()).max_context, 256);
//! # Ok::<(), kiln_models::registry::ModelError>(())
//! ```

use std::path::Path;

use kiln_ir::plan::ModelInfo;
use serde_json::Value;

use crate::adapter::ModelParams;
use crate::chat::{Chat, ChatError, Sampling};
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::demo;
#[cfg(feature = "hub")]
use crate::hub::{Hub, HubId};
use crate::random::RandomWeights;
use crate::registry::{EntryOptions, Model, ModelError, from_config, preset, preset_names};
use crate::tokenizer::{GPT2_VOCAB_SIZE, Tokenizer, TokenizerError};

/// A model, its weights, and its tokenizer.
pub struct Loaded {
    /// How messages call it: a path, or a name.
    pub origin: String,
    /// The model.
    pub model: Box<dyn Model>,
    /// The values of its parameters.
    pub params: Box<dyn ModelParams>,
    /// Its tokenizer. Without one, tokens are given by number.
    pub tokenizer: Option<Tokenizer>,
    /// What it needs to hold a conversation, with the settings of its
    /// `generation_config.json`; `None` for a model that only continues texts. That its
    /// files cannot be read matters to those alone who talk with it.
    pub chat: Result<Option<Chat>, ChatError>,
    /// The end tokens of its `generation_config.json`; empty without one.
    pub end_tokens: Vec<u32>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("origin", &self.origin)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl Loaded {
    /// The tokenizer, for those who cannot do without.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::None`], which says how to give it one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, TokenizerError> {
        self.tokenizer.as_ref().ok_or_else(|| TokenizerError::None {
            origin: self.origin.clone(),
            family: self.model.family().to_owned(),
            vocab_size: vocab_size(&*self.model),
        })
    }

    /// What an artifact says of the model; [`Model::info`], with the end tokens
    /// of `generation_config.json`, as in transformers, where it names some, and
    /// with the tokenizer's where neither that nor `config.json` does.
    pub fn info(&self, options: &EntryOptions) -> ModelInfo {
        let mut info = self.model.info(options);
        if !self.end_tokens.is_empty() {
            info.eos_tokens.clone_from(&self.end_tokens);
        }
        if info.eos_tokens.is_empty() {
            info.eos_tokens = self
                .tokenizer
                .iter()
                .filter_map(Tokenizer::eos_id)
                .collect();
        }
        info
    }

    /// The model whose checkpoint this is, with the tokenizer that `tokenizer`
    /// finds for its family and number of tokens.
    fn from_checkpoint(
        checkpoint: Checkpoint,
        chat: Result<Option<Chat>, ChatError>,
        tokenizer: impl FnOnce(&str, usize) -> Result<Tokenizer, TokenizerError>,
    ) -> Result<Self, ModelError> {
        let origin = checkpoint.origin().to_owned();
        let model = from_config(checkpoint.config()).map_err(|reason| ModelError::Config {
            origin: origin.clone(),
            reason,
        })?;
        let (end_tokens, sampling) = match checkpoint.generation_config() {
            None => (Vec::new(), Sampling::default()),
            Some(text) => generation(text).map_err(|reason| ModelError::GenerationConfig {
                origin: origin.clone(),
                reason,
            })?,
        };
        let chat = chat.map(|chat| chat.map(|chat| chat.with_sampling(sampling)));
        let tokenizer = match tokenizer(model.family(), vocab_size(&*model)) {
            Ok(tokenizer) => {
                let info = model.info(&EntryOptions::default());
                let eos = end_tokens.first().or(info.eos_tokens.first());
                Some(tokenizer.with_eos(eos.copied()))
            }
            Err(TokenizerError::None { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let params = Box::new(model.weights(checkpoint)?);
        Ok(Loaded {
            origin,
            model,
            params,
            tokenizer,
            chat,
            end_tokens,
        })
    }
}

/// What the text of a `generation_config.json` says: end tokens, and how tokens are chosen.
fn generation(text: &str) -> Result<(Vec<u32>, Sampling), String> {
    let settings = Settings::from_json(text).map_err(|e| format!("cannot be parsed: {e}"))?;
    Ok((end_tokens(&settings)?, sampling(&settings)))
}

/// How tokens are chosen. As in transformers, nothing is drawn unless `do_sample` says so.
/// It is advice, and what makes no sense of it is passed over.
fn sampling(settings: &Settings) -> Sampling {
    let number = |key| settings.get(key).and_then(Value::as_f64).map(|n| n as f32);
    let within = |key, range: std::ops::RangeInclusive<f32>| {
        number(key).filter(|number| range.contains(number))
    };
    let above_zero = |number: &f32| *number > 0.0;
    let penalty = within("repetition_penalty", 0.0..=f32::MAX).filter(above_zero);
    let usual = Sampling {
        repetition_penalty: penalty,
        ..Sampling::default()
    };
    if settings.get("do_sample") != Some(&Value::Bool(true)) {
        return usual;
    }
    let top_k = settings.get("top_k").and_then(Value::as_u64);
    Sampling {
        // What transformers takes where nothing is said.
        temperature: Some(within("temperature", 0.0..=f32::MAX).unwrap_or(1.0)),
        top_k: Some(top_k.map_or(50, |k| k as usize)),
        top_p: within("top_p", 0.0..=1.0).filter(above_zero),
        min_p: within("min_p", 0.0..=1.0),
        ..usual
    }
}

/// The end tokens.
fn end_tokens(settings: &Settings) -> Result<Vec<u32>, String> {
    let key = "eos_token_id";
    let ids = match settings.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
    };
    let mut tokens = Vec::new();
    for id in ids {
        match id.as_i64() {
            // Some files have a negative number for "none".
            Some(none) if none < 0 => {}
            Some(id) if u32::try_from(id).is_ok() => tokens.extend(u32::try_from(id)),
            _ => {
                return Err(format!(
                    "sets `{key}` to {id}; it should be a token's number, or a list of them"
                ));
            }
        }
    }
    Ok(tokens)
}

/// The model in a folder in the Hugging Face layout: `config.json`, safetensors,
/// and, if it has them, its tokenizer's files, its chat template and
/// `generation_config.json`.
///
/// # Errors
///
/// [`ModelError`], when one of them is missing, damaged, or not supported.
pub fn open_folder(folder: impl AsRef<Path>) -> Result<Loaded, ModelError> {
    let folder = folder.as_ref();
    let checkpoint = Checkpoint::open(folder)?;
    let chat = Chat::open(folder);
    Loaded::from_checkpoint(checkpoint, chat, |family, vocab_size| {
        Tokenizer::open(folder, family, vocab_size)
    })
}

/// The built-in model: a small GPT-2 that continues a prompt with prose in the
/// manner of the Rust documentation.
///
/// # Errors
///
/// None, unless the program was built from altered files.
pub fn open_demo() -> Result<Loaded, ModelError> {
    Loaded::from_checkpoint(demo::checkpoint()?, Ok(None), |_, _| demo::tokenizer())
}

/// The model of a hub id, fetched where it is not in the hub's cache.
///
/// # Errors
///
/// [`ModelError::Hub`] when it cannot be fetched, and those of [`open_folder`].
#[cfg(feature = "hub")]
pub fn open_hub(hub: &Hub, id: &HubId) -> Result<Loaded, ModelError> {
    open_folder(hub.fetch(id)?)
}

/// A published model, such as `gpt2-medium`, with random weights: for measuring
/// speed, which does not depend on their values.
///
/// # Errors
///
/// [`ModelError::Preset`], when there is no model of that name.
pub fn random_weights(name: &str, seed: u64) -> Result<Loaded, ModelError> {
    let model = preset(name).ok_or_else(|| ModelError::Preset {
        found: name.to_owned(),
        known: preset_names(),
    })?;
    let tokenizer = match vocab_size(&*model) {
        GPT2_VOCAB_SIZE => Some(Tokenizer::gpt2()?),
        _ => None,
    };
    Ok(Loaded {
        origin: format!("{name} with random weights"),
        params: Box::new(RandomWeights::new(model.parameters(), seed)),
        model,
        tokenizer,
        chat: Ok(None),
        end_tokens: Vec::new(),
    })
}

fn vocab_size(model: &dyn Model) -> usize {
    model.info(&EntryOptions::default()).vocab_size as usize
}
