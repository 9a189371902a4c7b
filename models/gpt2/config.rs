//! What a `config.json` of the GPT-2 family says.

use kiln_ir::Activation;

use serde_json::json;

use crate::config::{ConfigError, MAX_LAYERS, Settings, activation_name};
use crate::head::Head;

/// The name that `model_type` has in a GPT-2's `config.json`.
pub const MODEL_TYPE: &str = "gpt2";

/// The four published sizes: name, embedding, heads, layers.
const PRESETS: [(&str, usize, usize, usize); 4] = [
    ("gpt2", 768, 12, 12),
    ("gpt2-medium", 1024, 16, 24),
    ("gpt2-large", 1280, 20, 36),
    ("gpt2-xl", 1600, 25, 48),
];

/// A GPT-2, or a model of its family.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// The tokens (`vocab_size`).
    pub vocab_size: usize,
    /// The longest context, in tokens (`n_positions`).
    pub n_positions: usize,
    /// The width of the residual stream (`n_embd`).
    pub n_embd: usize,
    /// The blocks (`n_layer`).
    pub n_layer: usize,
    /// The attention heads of a block (`n_head`); divides `n_embd`.
    pub n_head: usize,
    /// The width inside the feed-forward part of a block (`n_inner`).
    pub n_inner: usize,
    /// The nonlinearity there (`activation_function`).
    pub activation: Activation,
    /// Added to the variance in layer norms (`layer_norm_epsilon`).
    pub layer_norm_epsilon: f64,
    /// Whether scores are divided by the root of a head's width
    /// (`scale_attn_weights`).
    pub scale_attn_weights: bool,
    /// Whether they are divided by the number of their block, counted from 1,
    /// too (`scale_attn_by_inverse_layer_idx`).
    pub scale_attn_by_inverse_layer_idx: bool,
    /// The head: tied, its own, or none.
    pub head: Head,
    /// The tokens after which a text is over (`eos_token_id`).
    pub eos_token_ids: Vec<u32>,
}

impl Gpt2Config {
    /// Reads the text of a `config.json`.
    ///
    /// A setting that is absent has the value that transformers gives it.
    /// Settings that only concern training (dropout, initialisation) are not
    /// looked at, and neither is `reorder_and_upcast_attn`, which guards f16
    /// against overflow where kiln computes in f32 anyway.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the setting, the value it has and those it may
    /// have.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let settings = Settings::parse(text)?;
        refuse_unsupported(&settings)?;
        let size = |keys: &[&'static str], default| Ok(settings.size(keys)?.unwrap_or(default));
        let n_embd = size(&["n_embd", "hidden_size"], 768)?;
        let vocab_size = size(&["vocab_size"], 50_257)?;
        let config = Gpt2Config {
            vocab_size,
            n_positions: size(&["n_positions", "max_position_embeddings"], 1024)?,
            n_embd,
            n_layer: settings
                .size_up_to(&["n_layer", "num_hidden_layers"], MAX_LAYERS)?
                .unwrap_or(12),
            n_head: size(&["n_head", "num_attention_heads"], 12)?,
            n_inner: size(&["n_inner"], 4 * n_embd)?,
            activation: settings
                .activation("activation_function")?
                .unwrap_or(Activation::GeluTanh),
            layer_norm_epsilon: settings.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
            scale_attn_weights: settings.switch("scale_attn_weights")?.unwrap_or(true),
            scale_attn_by_inverse_layer_idx: settings
                .switch("scale_attn_by_inverse_layer_idx")?
                .unwrap_or(false),
            head: Head::from_settings(&settings, ["GPT2LMHeadModel", "GPT2Model"], true)?,
            eos_token_ids: settings.eos_tokens(Some(50_256), vocab_size),
        };
        config.check()?;
        Ok(config)
    }

    /// The text of a `config.json` that says the same: the inverse of
    /// [`from_json`](Self::from_json).
    pub fn to_json(&self) -> String {
        let (architecture, tied) = match self.head {
            Head::Tied => ("GPT2LMHeadModel", true),
            Head::Own => ("GPT2LMHeadModel", false),
            Head::None => ("GPT2Model", true),
        };
        let config = json!({
            "model_type": MODEL_TYPE,
            "architectures": [architecture],
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": activation_name(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": tied,
            "eos_token_id": self.eos_token_ids,
        });
        format!("{config:#}\n")
    }

    /// The published size of this name: `gpt2`, `gpt2-medium`, `gpt2-large`
    /// or `gpt2-xl`.
    pub fn preset(name: &str) -> Option<Self> {
        let (_, n_embd, n_head, n_layer) = *PRESETS.iter().find(|preset| preset.0 == name)?;
        Some(Gpt2Config {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd,
            n_layer,
            n_head,
            n_inner: 4 * n_embd,
            activation: Activation::GeluTanh,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            head: Head::Tied,
            eos_token_ids: vec![50_256],
        })
    }

    /// The names of the published sizes, smallest first.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.0)
    }

    /// The width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// What attention scores of block `layer`, counted from 0, are divided by,
    /// one after the other as the reference does.
    pub fn score_divisors(&self, layer: usize) -> Vec<f64> {
        let mut divisors = Vec::new();
        if self.scale_attn_weights {
            divisors.push((self.head_dim() as f64).sqrt());
        }
        if self.scale_attn_by_inverse_layer_idx {
            divisors.push((layer + 1) as f64);
        }
        divisors
    }

    /// The same model without its head.
    #[must_use]
    pub fn body(mut self) -> Self {
        self.head = Head::None;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Err(ConfigError::Invalid {
                key: "n_head".to_owned(),
                found: self.n_head.to_string(),
                wanted: format!("a divisor of `n_embd`, which is {}", self.n_embd),
            });
        }
        Ok(())
    }
}

fn refuse_unsupported(settings: &Settings) -> Result<(), ConfigError> {
    settings.refuse_others(&[MODEL_TYPE])?;
    if settings.switch("add_cross_attention")? == Some(true) {
        return Err(settings.unsupported(
            "add_cross_attention",
            true,
            "only decoders without an encoder are, for which it is false",
        ));
    }
    if let Some(pruned) = settings.get("pruned_heads")
        && pruned.as_object().is_none_or(|heads| !heads.is_empty())
    {
        return Err(settings.unsupported("pruned_heads", pruned, "only models with all heads are"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ACTIVATIONS;

    fn message(text: &str) -> String {
        Gpt2Config::from_json(text).unwrap_err().to_string()
    }

    #[test]
    fn the_published_config_is_the_preset() {
        // What openai-community/gpt2 has in its config.json, in short.
        let published = r#"{
            "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_use_proj": true,
            "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
            "vocab_size": 50257
        }"#;
        assert_eq!(
            Gpt2Config::from_json(published).unwrap(),
            Gpt2Config::preset("gpt2").unwrap()
        );
    }

    #[test]
    fn every_setting_is_honoured() {
        let config = Gpt2Config::from_json(
            r#"{
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 100, "n_positions": 32,
            "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 50, "activation_function": "relu",
            "layer_norm_epsilon": 0.01, "scale_attn_weights": false, "scale_attn_by_inverse_layer_idx": true,
            "reorder_and_upcast_attn": true, "tie_word_embeddings": false, "eos_token_id": 5
        }"#,
        )
        .unwrap();
        let expected = Gpt2Config {
            vocab_size: 100,
            n_positions: 32,
            n_embd: 24,
            n_layer: 3,
            n_head: 4,
            n_inner: 50,
            activation: Activation::Relu,
            layer_norm_epsilon: 0.01,
            scale_attn_weights: false,
            scale_attn_by_inverse_layer_idx: true,
            head: Head::Own,
            eos_token_ids: vec![5],
        };
        assert_eq!(config, expected);
        assert_eq!(Gpt2Config::from_json(&config.to_json()), Ok(expected));
        assert_eq!(config.score_divisors(2), [3.0]);
        assert_eq!(config.head_dim(), 6);
    }

    #[test]
    fn absent_settings_are_those_of_transformers() {
        let expected = Gpt2Config::preset("gpt2").unwrap();
        assert_eq!(Gpt2Config::from_json("{}").unwrap(), expected);
        // `n_ctx` is in old files, and nobody reads it.
        let config =
            Gpt2Config::from_json(r#"{"n_embd": 48, "n_inner": null, "n_ctx": 64}"#).unwrap();
        assert_eq!((config.n_inner, config.n_positions), (192, 1024));
        let none = Gpt2Config::from_json(r#"{"eos_token_id": null}"#).unwrap();
        assert!(none.eos_token_ids.is_empty());
        let aliases = Gpt2Config::from_json(
            r#"{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}"#,
        )
        .unwrap();
        assert_eq!(
            (aliases.n_embd, aliases.n_head, aliases.n_layer),
            (16, 2, 1)
        );
    }

    #[test]
    fn every_activation_is_known_by_its_names() {
        for (name, activation) in ACTIVATIONS {
            let config =
                Gpt2Config::from_json(&format!(r#"{{"activation_function": "{name}"}}"#)).unwrap();
            assert_eq!(config.activation, activation);
        }
        assert_eq!(
            message(r#"{"activation_function": "quick_gelu"}"#),
            "config.json sets `activation_function` to \"quick_gelu\", which kiln does not support; those it does \
             are gelu_new, gelu_pytorch_tanh, gelu_python_tanh, gelu, gelu_python, relu, silu, swish, tanh"
        );
    }

    #[test]
    fn the_architecture_decides_on_the_head() {
        let head = |text| Gpt2Config::from_json(text).unwrap().head;
        assert_eq!(
            head(r#"{"architectures": ["GPT2LMHeadModel"]}"#),
            Head::Tied
        );
        assert_eq!(head(r#"{"architectures": ["GPT2Model"]}"#), Head::None);
        assert_eq!(head(r#"{"architectures": []}"#), Head::Tied);
        assert_eq!(head(r#"{"tie_word_embeddings": false}"#), Head::Own);
        assert_eq!(
            message(r#"{"architectures": ["GPT2ForSequenceClassification"]}"#),
            "config.json sets `architectures` to [\"GPT2ForSequenceClassification\"], which kiln does not support; \
             those it does are GPT2LMHeadModel and GPT2Model"
        );
        assert!(
            message(r#"{"architectures": ["GPT2DoubleHeadsModel"]}"#)
                .contains("GPT2DoubleHeadsModel")
        );
        assert_eq!(
            message(r#"{"architectures": "GPT2Model"}"#),
            "config.json sets `architectures` to \"GPT2Model\"; it should be a list with one name"
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        assert_eq!(
            message(r#"{"model_type": "gpt_neo"}"#),
            "config.json sets `model_type` to \"gpt_neo\", which kiln does not support; it is read here as \"gpt2\""
        );
        assert_eq!(
            message(r#"{"add_cross_attention": true}"#),
            "config.json sets `add_cross_attention` to true, which kiln does not support; only decoders without \
             an encoder are, for which it is false"
        );
        assert_eq!(
            message(r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#),
            "config.json sets `quantization_config` to \"gptq\", which kiln does not support; give it the \
             unquantised model and let kiln quantise it (--dtype q8 or q4)"
        );
        assert_eq!(
            message(r#"{"pruned_heads": {"0": [1]}}"#),
            "config.json sets `pruned_heads` to {\"0\":[1]}, which kiln does not support; only models with all \
             heads are"
        );
        assert!(
            Gpt2Config::from_json(r#"{"pruned_heads": {}, "quantization_config": null}"#).is_ok()
        );
    }

    #[test]
    fn layers_are_bounded() {
        assert_eq!(
            message(r#"{"n_layer": 2000000000}"#),
            "config.json sets `n_layer` to 2000000000; it should be a whole number from 1 to 4096"
        );
    }

    #[test]
    fn heads_divide_the_embedding() {
        assert_eq!(
            message(r#"{"n_embd": 10, "n_head": 4}"#),
            "config.json sets `n_head` to 4; it should be a divisor of `n_embd`, which is 10"
        );
    }
}
