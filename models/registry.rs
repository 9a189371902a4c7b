//! The models that kiln knows.
//!
//! A family of models is a file that describes it, and a line in this one. What
//! the rest of kiln asks of a model is the trait [`Model`]: its parameters, its
//! graphs, and where a checkpoint's tensors belong.
//!
//! ```
//! use kiln_models::registry::{EntryOptions, preset};
//!
//! let model = preset("gpt2").expect("a known size");
//! let step = model.graph("step", &EntryOptions::default())?;
//! assert_eq!(step.outputs()[0].0, "logits");
//! assert_eq!(model.info(&EntryOptions::default()).parameters, 124_439_808);
//! # Ok::<(), kiln_models::registry::ModelError>(())
//! ```

use kiln_ir::plan::ModelInfo;
use kiln_ir::{Graph, GraphError};
use thiserror::Error;

use crate::adapter::{AdapterError, Parameter, Weights};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{ConfigError, Settings};
use crate::gemma;
use crate::gpt2;
#[cfg(feature = "hub")]
use crate::hub::HubError;
use crate::llama;
use crate::tokenizer::TokenizerError;

/// All families. A new one is a line here.
const FAMILIES: &[Family] = &[gpt2::FAMILY, llama::FAMILY, gemma::FAMILY];

/// How a family is found, and made.
pub(crate) struct Family {
    /// What its models call themselves in `model_type`.
    pub(crate) model_types: &'static [&'static str],
    /// What they are called in `architectures`, for files without a
    /// `model_type`.
    pub(crate) architectures: &'static [&'static str],
    /// The model that the text of a `config.json` describes.
    pub(crate) from_config: fn(&str) -> Result<Box<dyn Model>, ConfigError>,
    /// The names of published sizes, smallest first.
    pub(crate) presets: fn() -> Vec<&'static str>,
    /// The published size of a name.
    pub(crate) preset: fn(&str) -> Option<Box<dyn Model>>,
}

/// A model: which parameters it has, and what it computes from them.
pub trait Model: Send + Sync {
    /// The family's name in the registry.
    fn family(&self) -> &'static str;

    /// All parameters, in the order of the module tree; tied ones once.
    fn parameters(&self) -> Vec<Parameter>;

    /// The names of the entry points; see [`crate::decoder`] for what they
    /// take and give.
    fn entries(&self) -> Vec<&'static str>;

    /// The graph of an entry point, in primitive ops.
    ///
    /// # Errors
    ///
    /// [`ModelError::Entry`] when there is no such entry point,
    /// [`ModelError::Option`] when the options do not suit the model.
    fn graph(&self, entry: &str, options: &EntryOptions) -> Result<Graph, ModelError>;

    /// What a compiled artifact says of the model. How weights are stored is
    /// not the model's to say, and left empty.
    fn info(&self, options: &EntryOptions) -> ModelInfo;

    /// The parameters in a checkpoint, each tensor in its place.
    ///
    /// # Errors
    ///
    /// [`AdapterError`], with every tensor that is missing, superfluous or
    /// misshapen.
    fn weights(&self, checkpoint: Checkpoint) -> Result<Weights, AdapterError>;
}

impl std::fmt::Debug for dyn Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let info = self.info(&EntryOptions::default());
        f.debug_struct("Model")
            .field("family", &info.family)
            .field("parameters", &info.parameters)
            .finish_non_exhaustive()
    }
}

/// The maxima of a graph's symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryOptions {
    /// Sequences in a run.
    pub max_batch: u64,
    /// Tokens of a sequence, prompt and generated together; if `None`, the
    /// model's own maximum, or [`DEFAULT_CONTEXT`] where that is more.
    pub max_context: Option<u64>,
    /// Tokens of a sequence in one step; a longer prompt takes several. Capped
    /// by the context, and by what the compiler finds buffers for.
    pub prefill_chunk: u64,
}

/// The longest context that a model gets without being asked for a longer one,
/// in tokens. Keys and values are allocated for the whole context, which for a
/// model that could take 131,072 tokens would be gigabytes a sequence.
pub const DEFAULT_CONTEXT: u64 = 4096;

impl Default for EntryOptions {
    fn default() -> Self {
        EntryOptions {
            max_batch: 8,
            max_context: None,
            prefill_chunk: 1024,
        }
    }
}

/// The model that the text of a `config.json` describes: of the family that
/// `model_type` names or, without that, `architectures`.
///
/// # Errors
///
/// [`ConfigError::Unsupported`] for families and settings that are not known,
/// by name; other variants for what is no description of a model.
pub fn from_config(text: &str) -> Result<Box<dyn Model>, ConfigError> {
    let settings = Settings::parse(text)?;
    let (key, name, names): (_, _, fn(&Family) -> &[&str]) =
        if let Some(name) = settings.text("model_type")? {
            ("model_type", name, |family| family.model_types)
        } else if let Some(name) = settings.architecture()? {
            ("architectures", name, |family| family.architectures)
        } else {
            return Err(ConfigError::Missing {
                key: "model_type".to_owned(),
                supported: format!("kiln supports {}", known(|family| family.model_types)),
            });
        };
    match FAMILIES.iter().find(|family| names(family).contains(&name)) {
        Some(family) => (family.from_config)(text),
        None => {
            let of_images = match name {
                "gemma3" | "Gemma3ForConditionalGeneration" => {
                    "this is a model of images and text, of which kiln has those of text alone, such as \
                     gemma-3-1b; "
                }
                _ => "",
            };
            let supported = format!("{of_images}those it does are {}", known(names));
            Err(settings.unsupported(key, format!("\"{name}\""), supported))
        }
    }
}

fn known(names: fn(&Family) -> &[&str]) -> String {
    let names: Vec<&str> = FAMILIES.iter().flat_map(names).copied().collect();
    names.join(", ")
}

/// The published model of this name, such as `gpt2-medium`.
pub fn preset(name: &str) -> Option<Box<dyn Model>> {
    FAMILIES.iter().find_map(|family| (family.preset)(name))
}

/// The names of the published models that [`preset`] knows, family by family,
/// smallest first.
pub fn preset_names() -> Vec<&'static str> {
    FAMILIES
        .iter()
        .flat_map(|family| (family.presets)())
        .collect()
}

/// Why there is no model, or not all of it. Every message is whole: it names
/// the file and says what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The checkpoint's files cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint's `config.json` describes no model that can be built.
    #[error("{origin}: {reason}")]
    Config {
        /// The checkpoint.
        origin: String,
        /// What is wrong with its `config.json`.
        reason: ConfigError,
    },
    /// The checkpoint's `generation_config.json` cannot be read.
    #[error(
        "{origin}: generation_config.json {reason}; copy it again from where the model came from, or remove \
         it, for the model can do without"
    )]
    GenerationConfig {
        /// The checkpoint.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint's tensors are not the model's parameters.
    #[error(transparent)]
    Weights(#[from] AdapterError),
    /// The model's tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model could not be fetched.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] HubError),
    /// There is no published size of this name.
    #[error("there is no model `{found}`; those known by name are {}", known.join(", "))]
    Preset {
        /// The name.
        found: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// The model has no such entry point.
    #[error("the model has no entry point `{found}`; it has {}", known.join(", "))]
    Entry {
        /// The name.
        found: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// An option does not suit the model.
    #[error("`{option}` is {found}; for this model it should be {}", match most {
        Some(most) => format!("from 1 to {most}"),
        None => "at least 1".to_owned(),
    })]
    Option {
        /// A field of [`EntryOptions`].
        option: &'static str,
        /// Its value.
        found: u64,
        /// The largest value it may have, if there is one.
        most: Option<u64>,
    },
    /// The model's ops do not fit together, for which the model's code is to
    /// blame.
    #[error("the model cannot be built: {0}; this is a fault in kiln")]
    Graph(#[from] GraphError),
}
