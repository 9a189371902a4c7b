//! What a `config.json` of Gemma 3's text models says.

use kiln_ir::Activation;
use serde_json::{Value, json};

use crate::config::{
    ConfigError, MAX_HEAD_DIM, MAX_LAYERS, Settings, activation_name, check_heads,
};
use crate::head::Head;
use crate::nn::Heads;
use crate::rope::{Rope, older_form, refuse_partial};
use crate::window::{LAYER_TYPES, SlidingWindow, layer_types, one_for_each};

/// What the models call themselves in `model_type`.
pub(super) const MODEL_TYPE: &str = "gemma3_text";

/// The classes with and without a head in `architectures`.
pub(super) const ARCHITECTURES: [&str; 2] = ["Gemma3ForCausalLM", "Gemma3TextModel"];

/// A Gemma 3 of text.
#[derive(Clone, Debug, PartialEq)]
pub struct GemmaConfig {
    /// The tokens (`vocab_size`).
    pub vocab_size: usize,
    /// The longest context, in tokens (`max_position_embeddings`).
    pub max_position_embeddings: usize,
    /// The window, and which layers have it (`sliding_window`, `layer_types`).
    /// They turn by [`local_rope`](Self::local_rope), however long it is.
    pub sliding_window: SlidingWindow,
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
    /// By the root of which scores are divided (`query_pre_attn_scalar`).
    pub query_pre_attn_scalar: f64,
    /// The nonlinearity of the feed-forward part's gate (`hidden_activation`).
    pub hidden_activation: Activation,
    /// Added to the mean square in norms (`rms_norm_eps`).
    pub rms_norm_eps: f64,
    /// The rotary embedding's frequencies in layers that see all tokens
    /// (`rope_theta` and `rope_scaling`).
    pub rope: Rope,
    /// Those in layers with a window (`rope_local_base_freq`).
    pub local_rope: Rope,
    /// Whether queries, keys, values and the attention's output have biases
    /// (`attention_bias`).
    pub attention_bias: bool,
    /// The head: tied, its own, or none.
    pub head: Head,
    /// The tokens after which a text is over (`eos_token_id`).
    pub eos_token_ids: Vec<u32>,
}

impl GemmaConfig {
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
        settings.refuse_others(&[MODEL_TYPE])?;
        refuse_what_differs(&settings)?;
        let size = |key, default| Ok(settings.size(&[key])?.unwrap_or(default));
        let num_hidden_layers = settings
            .size_up_to(&["num_hidden_layers"], MAX_LAYERS)?
            .unwrap_or(26);
        let vocab_size = size("vocab_size", 262_208)?;
        let max_position_embeddings = size("max_position_embeddings", 131_072)?;
        let [rope, local_rope] = ropes(&settings, max_position_embeddings)?;
        let config = GemmaConfig {
            vocab_size,
            max_position_embeddings,
            sliding_window: sliding_window(&settings, num_hidden_layers)?,
            hidden_size: size("hidden_size", 2304)?,
            intermediate_size: size("intermediate_size", 9216)?,
            num_hidden_layers,
            num_attention_heads: size("num_attention_heads", 8)?,
            num_key_value_heads: size("num_key_value_heads", 4)?,
            head_dim: settings
                .size_up_to(&["head_dim"], MAX_HEAD_DIM)?
                .unwrap_or(256),
            query_pre_attn_scalar: settings.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
            hidden_activation: settings
                .activation("hidden_activation")?
                .unwrap_or(Activation::GeluTanh),
            rms_norm_eps: settings.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope,
            local_rope,
            attention_bias: settings.switch("attention_bias")?.unwrap_or(false),
            head: Head::from_settings(&settings, ARCHITECTURES, true)?,
            eos_token_ids: settings.eos_tokens(Some(1), vocab_size),
        };
        check_heads(config.heads())?;
        Ok(config)
    }

    /// The text of a `config.json` that says the same: the inverse of
    /// [`from_json`](Self::from_json), for what that gives.
    pub fn to_json(&self) -> String {
        let [with_head, without] = ARCHITECTURES;
        let [full, sliding] = LAYER_TYPES;
        let config = json!({
            "model_type": MODEL_TYPE,
            "architectures": [if self.head == Head::None { without } else { with_head }],
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "sliding_window": self.sliding_window.size,
            "layer_types": self.sliding_window.layer_types(),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "query_pre_attn_scalar": self.query_pre_attn_scalar,
            "hidden_activation": activation_name(self.hidden_activation),
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {
                full: self.rope.to_parameters(),
                sliding: self.local_rope.to_parameters(),
            },
            "attention_bias": self.attention_bias,
            "tie_word_embeddings": self.head == Head::Tied,
            "eos_token_id": self.eos_token_ids,
        });
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

    /// The heads of a block's attention.
    pub fn heads(&self) -> Heads {
        Heads {
            queries: self.num_attention_heads,
            keys: self.num_key_value_heads,
            width: self.head_dim,
        }
    }
}

/// Refuses settings that Gemma 3's code has and none of its published models of
/// text uses.
fn refuse_what_differs(settings: &Settings) -> Result<(), ConfigError> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = settings.get(key) {
            return Err(settings.unsupported(key, cap, "only null is, for no cap"));
        }
    }
    const BOTH_WAYS: &str = "use_bidirectional_attention";
    match settings.switch(BOTH_WAYS)? {
        Some(true) => {
            let supported = "only false is, for models that generate text";
            Err(settings.unsupported(BOTH_WAYS, true, supported))
        }
        _ => Ok(()),
    }
}

/// What `sliding_window` is where it is absent.
const DEFAULT_WINDOW: usize = 4096;

/// Of how many layers the last sees all tokens, where that is not told.
const DEFAULT_PATTERN: usize = 6;

/// The window, and which layers have it.
fn sliding_window(settings: &Settings, layers: usize) -> Result<SlidingWindow, ConfigError> {
    const KEY: &str = "sliding_window";
    let size = match settings.size(&[KEY])? {
        Some(size) => size,
        None if settings.is_absent(KEY) => DEFAULT_WINDOW,
        None => return Err(settings.invalid(KEY, &Value::Null, "a number of tokens")),
    };
    // Read, and so refused, even where `layer_types` says more.
    let pattern = settings.size(&["sliding_window_pattern"])?;
    let slides = match layer_types(settings)? {
        Some(slides) => {
            one_for_each(settings, &slides, layers)?;
            slides
        }
        None => all_but_each(pattern.unwrap_or(DEFAULT_PATTERN), layers),
    };
    Ok(SlidingWindow {
        size,
        layers: slides,
    })
}

/// All layers but each so many-th: which have a window.
fn all_but_each(pattern: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|n| !n.is_multiple_of(pattern)).collect()
}

/// The frequencies of layers that see all tokens, and of those with a window:
/// from `rope_parameters`, which has an object for each kind, or from
/// `rope_theta`, `rope_scaling` and `rope_local_base_freq`, the older form.
fn ropes(settings: &Settings, context: usize) -> Result<[Rope; 2], ConfigError> {
    refuse_partial(settings)?;
    let bases = [("rope_theta", 1e6), ("rope_local_base_freq", 1e4)];
    let [base, local_base] =
        bases.map(|(key, default)| Ok(settings.positive(key)?.unwrap_or(default)));
    let (mut base, local_base) = (base?, local_base?);
    let both = settings.object("rope_parameters")?;
    if let Some(both) = &both
        && let Some(key) = both.keys().find(|key| !LAYER_TYPES.contains(key))
    {
        let found = both.get(key).unwrap_or(&Value::Null);
        let known = format!("those it does are {}", LAYER_TYPES.join(" and "));
        return Err(both.unsupported(key, found, known));
    }
    let of = |kind| both.as_ref().map_or(Ok(None), |both| both.object(kind));
    let [full, sliding] = LAYER_TYPES.map(of);
    let mut full = full?;
    // Where a file has both forms, the older one holds of layers that see all tokens, but
    // for the base. transformers takes each setting from the newer form that the older
    // lacks; one without a type is refused here.
    if let Some(older) = older_form(settings)? {
        if older.get("rope_type").is_none() {
            return Err(ConfigError::Missing {
                key: older.full_name("rope_type"),
                supported: "it should be default, linear or llama3".to_owned(),
            });
        }
        if let Some(told) = &full {
            base = told.positive("rope_theta")?.unwrap_or(base);
        }
        full = Some(older);
    }
    Ok([
        Rope::from_parameters(full.as_ref(), base, None, context)?,
        Rope::from_parameters(sliding?.as_ref(), local_base, None, context)?,
    ])
}

/// A published model.
struct Preset {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
}

const PRESETS: [Preset; 2] = [
    Preset {
        name: "gemma3-270m",
        hidden: 640,
        intermediate: 2048,
        layers: 18,
    },
    Preset {
        name: "gemma3-1b",
        hidden: 1152,
        intermediate: 6912,
        layers: 26,
    },
];

impl Preset {
    /// What the small models have in common, and what they have not.
    fn config(&self) -> GemmaConfig {
        let rope = |theta| Rope {
            theta,
            scaling: None,
        };
        GemmaConfig {
            vocab_size: 262_144,
            max_position_embeddings: 32_768,
            sliding_window: SlidingWindow {
                size: 512,
                layers: all_but_each(DEFAULT_PATTERN, self.layers),
            },
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: 4,
            num_key_value_heads: 1,
            head_dim: 256,
            query_pre_attn_scalar: 256.0,
            hidden_activation: Activation::GeluTanh,
            rms_norm_eps: 1e-6,
            rope: rope(1e6),
            local_rope: rope(1e4),
            attention_bias: false,
            head: Head::Tied,
            eos_token_ids: vec![1],
        }
    }
}

#[cfg(test)]
mod tests;
