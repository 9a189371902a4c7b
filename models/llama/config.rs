//! What a `config.json` of the Llama family says.

use kiln_ir::Activation;
use serde_json::{Value, json};

use crate::config::{
    ConfigError, MAX_HEAD_DIM, MAX_LAYERS, Settings, activation_name, check_heads,
};
use crate::head::Head;
use crate::nn::Heads;
use crate::rope::{Llama3Scaling, Rope, Scaling};
use crate::window::{SlidingWindow, layer_types, one_for_each};

/// The members of the family that differ in more than sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Llama 2 and 3, SmolLM2, and all who share their form.
    Llama,
    /// Mistral: attention may reach back no further than a window
    /// (<https://arxiv.org/abs/2310.06825>).
    Mistral,
    /// Qwen 2 and 2.5: queries, keys and values have biases.
    Qwen2,
    /// Qwen 3: the queries and the keys of each head are normalised
    /// (<https://arxiv.org/abs/2505.09388>).
    Qwen3,
}

/// What transformers takes for settings that are absent, where variants differ.
struct Defaults {
    vocab_size: usize,
    max_position_embeddings: usize,
    intermediate_size: usize,
    /// As many as query heads, if `None`.
    num_key_value_heads: Option<usize>,
    /// The width of the residual stream by the number of query heads, if `None`.
    head_dim: Option<usize>,
    eos_token_id: Option<u32>,
}

impl Variant {
    const ALL: [Variant; 4] = [
        Variant::Llama,
        Variant::Mistral,
        Variant::Qwen2,
        Variant::Qwen3,
    ];

    /// What it is called in `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Variant::Llama => "llama",
            Variant::Mistral => "mistral",
            Variant::Qwen2 => "qwen2",
            Variant::Qwen3 => "qwen3",
        }
    }

    fn defaults(self) -> Defaults {
        let llama = Defaults {
            vocab_size: 32_000,
            max_position_embeddings: 2048,
            intermediate_size: 11_008,
            num_key_value_heads: None,
            head_dim: None,
            eos_token_id: Some(2),
        };
        let qwen2 = Defaults {
            vocab_size: 151_936,
            max_position_embeddings: 32_768,
            intermediate_size: 22_016,
            num_key_value_heads: Some(32),
            head_dim: None,
            eos_token_id: None,
        };
        match self {
            Variant::Llama => llama,
            Variant::Mistral => Defaults {
                max_position_embeddings: 131_072,
                intermediate_size: 14_336,
                num_key_value_heads: Some(8),
                ..llama
            },
            Variant::Qwen2 => qwen2,
            Variant::Qwen3 => Defaults {
                head_dim: Some(128),
                ..qwen2
            },
        }
    }

    /// The classes with and without a head in `architectures`.
    fn architectures(self) -> [&'static str; 2] {
        match self {
            Variant::Llama => ["LlamaForCausalLM", "LlamaModel"],
            Variant::Mistral => ["MistralForCausalLM", "MistralModel"],
            Variant::Qwen2 => ["Qwen2ForCausalLM", "Qwen2Model"],
            Variant::Qwen3 => ["Qwen3ForCausalLM", "Qwen3Model"],
        }
    }

    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        settings.refuse_others(&Self::ALL.map(Self::model_type))?;
        let model_type = settings.text("model_type")?;
        let architecture = settings.architecture()?;
        let found = Self::ALL.into_iter().find(|variant| match model_type {
            Some(name) => variant.model_type() == name,
            None => architecture.is_some_and(|name| variant.architectures().contains(&name)),
        });
        Ok(found.unwrap_or(Variant::Llama))
    }
}

/// A Llama, or a model of its family.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Which member of the family it is (`model_type`).
    pub variant: Variant,
    /// The tokens (`vocab_size`).
    pub vocab_size: usize,
    /// The longest context, in tokens (`max_position_embeddings`).
    pub max_position_embeddings: usize,
    /// Where attention does not reach back over the whole context.
    pub sliding_window: Option<SlidingWindow>,
    /// The width of the residual stream (`hidden_size`).
    pub hidden_size: usize,
    /// The width inside the feed-forward part of a block (`intermediate_size`).
    pub intermediate_size: usize,
    /// The blocks (`num_hidden_layers`).
    pub num_hidden_layers: usize,
    /// The query heads of a block (`num_attention_heads`).
    pub num_attention_heads: usize,
    /// The key and value heads of a block (`num_key_value_heads`); divides the
    /// query heads.
    pub num_key_value_heads: usize,
    /// The width of a head, an even number (`head_dim`).
    pub head_dim: usize,
    /// The nonlinearity of the feed-forward part's gate (`hidden_act`).
    pub hidden_act: Activation,
    /// Added to the mean square in norms (`rms_norm_eps`).
    pub rms_norm_eps: f64,
    /// The rotary embedding's frequencies.
    pub rope: Rope,
    /// Whether queries, keys and values have biases (`attention_bias`; always
    /// in Qwen2, never in Mistral).
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias (`attention_bias`; never in
    /// Qwen2 and Mistral).
    pub o_bias: bool,
    /// Whether the feed-forward part's layers have biases (`mlp_bias`; in Llama
    /// alone).
    pub mlp_bias: bool,
    /// The head: tied, its own, or none.
    pub head: Head,
    /// The tokens after which a text is over (`eos_token_id`).
    pub eos_token_ids: Vec<u32>,
}

impl LlamaConfig {
    /// Reads the text of a `config.json`.
    ///
    /// A setting that is absent has the value that transformers gives it.
    /// Settings that only concern training (dropout, initialisation) are not
    /// looked at.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the setting, the value it has and those it may
    /// have.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let settings = Settings::parse(text)?;
        let variant = Variant::from_settings(&settings)?;
        let size = |key, default| Ok(settings.size(&[key])?.unwrap_or(default));
        let defaults = variant.defaults();
        let hidden_size = size("hidden_size", 4096)?;
        let num_hidden_layers = settings
            .size_up_to(&["num_hidden_layers"], MAX_LAYERS)?
            .unwrap_or(32);
        let num_attention_heads = size("num_attention_heads", 32)?;
        let attention_bias = settings.switch("attention_bias")?.unwrap_or(false);
        let max_position_embeddings =
            size("max_position_embeddings", defaults.max_position_embeddings)?;
        let vocab_size = size("vocab_size", defaults.vocab_size)?;
        // A setting of `null` means as many as query heads, whatever the variant.
        let kv_heads = match settings.is_absent("num_key_value_heads") {
            true => defaults.num_key_value_heads,
            false => None,
        };
        let config = LlamaConfig {
            variant,
            vocab_size,
            max_position_embeddings,
            sliding_window: sliding_window(
                &settings,
                variant,
                num_hidden_layers,
                max_position_embeddings,
            )?,
            hidden_size,
            intermediate_size: size("intermediate_size", defaults.intermediate_size)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: size(
                "num_key_value_heads",
                kv_heads.unwrap_or(num_attention_heads),
            )?,
            head_dim: match (settings.is_absent("head_dim"), defaults.head_dim) {
                (true, Some(head_dim)) => head_dim,
                _ => head_dim(&settings, hidden_size, num_attention_heads)?,
            },
            hidden_act: settings
                .activation("hidden_act")?
                .unwrap_or(Activation::Silu),
            rms_norm_eps: settings.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope: Rope::from_settings(&settings, max_position_embeddings)?,
            qkv_bias: match variant {
                Variant::Llama | Variant::Qwen3 => attention_bias,
                Variant::Mistral => false,
                Variant::Qwen2 => true,
            },
            o_bias: match variant {
                Variant::Llama | Variant::Qwen3 => attention_bias,
                Variant::Mistral | Variant::Qwen2 => false,
            },
            mlp_bias: variant == Variant::Llama && settings.switch("mlp_bias")?.unwrap_or(false),
            head: Head::from_settings(&settings, variant.architectures(), false)?,
            eos_token_ids: settings.eos_tokens(defaults.eos_token_id, vocab_size),
        };
        config.check()?;
        Ok(config)
    }

    /// The text of a `config.json` that says the same: the inverse of
    /// [`from_json`](Self::from_json), for what that gives.
    pub fn to_json(&self) -> String {
        let [with_head, without] = self.variant.architectures();
        let mut config = json!({
            "model_type": self.variant.model_type(),
            "architectures": [if self.head == Head::None { without } else { with_head }],
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": activation_name(self.hidden_act),
            "rms_norm_eps": self.rms_norm_eps,
            "attention_bias": self.o_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.head == Head::Tied,
            "eos_token_id": self.eos_token_ids,
            "sliding_window": self.sliding_window.as_ref().map(|window| window.size),
            "use_sliding_window": self.sliding_window.is_some(),
        });
        if let Value::Object(map) = &mut config {
            map.extend(self.rope.to_settings());
            if let Some(window) = &self.sliding_window {
                map.insert("layer_types".to_owned(), window.layer_types());
            }
        }
        format!("{config:#}\n")
    }

    /// The published model of this name; see
    /// [`preset_names`](Self::preset_names).
    pub fn preset(name: &str) -> Option<Self> {
        let preset = PRESETS.iter().find(|preset| preset.name == name)?;
        Some(preset.config())
    }

    /// The names of the published models, smallest first.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.name)
    }

    /// How many tokens a token sees in a layer, itself among them; `None` for all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        window.slides(layer).then_some(window.size)
    }

    /// The heads of a block's attention.
    pub fn heads(&self) -> Heads {
        Heads {
            queries: self.num_attention_heads,
            keys: self.num_key_value_heads,
            width: self.head_dim,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.head_dim > MAX_HEAD_DIM {
            return Err(ConfigError::Invalid {
                key: "head_dim".to_owned(),
                found: self.head_dim.to_string(),
                wanted: format!(
                    "at most {MAX_HEAD_DIM}; where it is not set, it is `hidden_size` divided by \
                     `num_attention_heads`"
                ),
            });
        }
        check_heads(self.heads())
    }
}

fn head_dim(settings: &Settings, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
    match settings.size(&["head_dim"])? {
        Some(head_dim) => Ok(head_dim),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(ConfigError::Invalid {
            key: "num_attention_heads".to_owned(),
            found: heads.to_string(),
            wanted: format!(
                "a divisor of `hidden_size`, which is {hidden}, or `head_dim` should be set"
            ),
        }),
    }
}

/// What `sliding_window` is where it is absent and layers have windows.
const DEFAULT_WINDOW: usize = 4096;

/// The layers without a window of a Qwen that does not say how many.
const DEFAULT_MAX_WINDOW_LAYERS: u64 = 28;

/// The window, if there is one that is shorter than a context and that layers have.
fn sliding_window(
    settings: &Settings,
    variant: Variant,
    layers: usize,
    context: usize,
) -> Result<Option<SlidingWindow>, ConfigError> {
    // What is said of layers is refused where it is not known, wanted or not.
    let types = layer_types(settings)?;
    let layers = match variant {
        // transformers knows no windows there.
        Variant::Llama => return Ok(None),
        // One for all layers, whatever is said of each.
        Variant::Mistral => vec![true; layers],
        Variant::Qwen2 | Variant::Qwen3 => {
            let without = match settings.get("max_window_layers") {
                None => DEFAULT_MAX_WINDOW_LAYERS,
                Some(value) => value.as_u64().ok_or_else(|| {
                    settings.invalid("max_window_layers", value, "a whole number from 0 on")
                })?,
            };
            let slides = match types {
                Some(slides) => {
                    one_for_each(settings, &slides, layers)?;
                    slides
                }
                None => (0..layers).map(|layer| layer as u64 >= without).collect(),
            };
            if !settings.switch("use_sliding_window")?.unwrap_or(false) {
                return Ok(None);
            }
            slides
        }
    };
    let size = match settings.is_absent("sliding_window") {
        true => Some(DEFAULT_WINDOW),
        false => settings.size(&["sliding_window"])?,
    };
    let size = size.filter(|size| *size < context && layers.contains(&true));
    Ok(size.map(|size| SlidingWindow { size, layers }))
}

/// A published model.
struct Preset {
    name: &'static str,
    variant: Variant,
    vocab: usize,
    context: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    /// Query heads, and key and value heads.
    heads: (usize, usize),
    head_dim: usize,
    theta: f64,
    /// The factor of its `llama3` scaling, if it has one.
    stretched: Option<f64>,
    eps: f64,
    eos: u32,
}

const PRESETS: [Preset; 8] = [
    Preset {
        name: "smollm2-135m",
        variant: Variant::Llama,
        vocab: 49_152,
        context: 8192,
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: (9, 3),
        head_dim: 64,
        theta: 1e5,
        stretched: None,
        eps: 1e-5,
        eos: 0,
    },
    Preset {
        name: "smollm2-360m",
        variant: Variant::Llama,
        vocab: 49_152,
        context: 8192,
        hidden: 960,
        intermediate: 2560,
        layers: 32,
        heads: (15, 5),
        head_dim: 64,
        theta: 1e5,
        stretched: None,
        eps: 1e-5,
        eos: 0,
    },
    Preset {
        name: "qwen2-0.5b",
        variant: Variant::Qwen2,
        vocab: 151_936,
        context: 131_072,
        hidden: 896,
        intermediate: 4864,
        layers: 24,
        heads: (14, 2),
        head_dim: 64,
        theta: 1e6,
        stretched: None,
        eps: 1e-6,
        eos: 151_643,
    },
    Preset {
        name: "qwen3-0.6b",
        variant: Variant::Qwen3,
        vocab: 151_936,
        context: 40_960,
        hidden: 1024,
        intermediate: 3072,
        layers: 28,
        heads: (16, 8),
        head_dim: 128,
        theta: 1e6,
        stretched: None,
        eps: 1e-6,
        eos: 151_645,
    },
    Preset {
        name: "llama-3.2-1b",
        variant: Variant::Llama,
        vocab: 128_256,
        context: 131_072,
        hidden: 2048,
        intermediate: 8192,
        layers: 16,
        heads: (32, 8),
        head_dim: 64,
        theta: 5e5,
        stretched: Some(32.0),
        eps: 1e-5,
        eos: 128_001,
    },
    Preset {
        name: "qwen2-1.5b",
        variant: Variant::Qwen2,
        vocab: 151_936,
        context: 131_072,
        hidden: 1536,
        intermediate: 8960,
        layers: 28,
        heads: (12, 2),
        head_dim: 128,
        theta: 1e6,
        stretched: None,
        eps: 1e-6,
        eos: 151_643,
    },
    Preset {
        name: "qwen3-1.7b",
        variant: Variant::Qwen3,
        vocab: 151_936,
        context: 40_960,
        hidden: 2048,
        intermediate: 6144,
        layers: 28,
        heads: (16, 8),
        head_dim: 128,
        theta: 1e6,
        stretched: None,
        eps: 1e-6,
        eos: 151_645,
    },
    Preset {
        name: "llama-3.2-3b",
        variant: Variant::Llama,
        vocab: 128_256,
        context: 131_072,
        hidden: 3072,
        intermediate: 8192,
        layers: 28,
        heads: (24, 8),
        head_dim: 128,
        theta: 5e5,
        stretched: Some(32.0),
        eps: 1e-5,
        eos: 128_001,
    },
];

impl Preset {
    fn config(&self) -> LlamaConfig {
        let (heads, kv_heads) = self.heads;
        LlamaConfig {
            variant: self.variant,
            vocab_size: self.vocab,
            max_position_embeddings: self.context,
            sliding_window: None,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: self.head_dim,
            hidden_act: Activation::Silu,
            rms_norm_eps: self.eps,
            rope: Rope {
                theta: self.theta,
                scaling: self.stretched.map(|factor| {
                    Scaling::Llama3(Llama3Scaling {
                        factor,
                        low_freq_factor: 1.0,
                        high_freq_factor: 4.0,
                        original_max_position_embeddings: 8192.0,
                    })
                }),
            },
            qkv_bias: self.variant == Variant::Qwen2,
            o_bias: false,
            mlp_bias: false,
            head: Head::Tied,
            eos_token_ids: vec![self.eos],
        }
    }
}

#[cfg(test)]
mod tests;
