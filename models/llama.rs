//! Llama: *The Llama 3 Herd of Models*, Grattafiori et al., 2024, and its
//! relatives Mistral, SmolLM2, Qwen 2 and Qwen 3.
//!
//! What differs from GPT-2: norms by the root mean square alone, positions by a
//! rotary embedding of queries and keys, keys and values that groups of query
//! heads share, and a feed-forward part with a gate. Modules are called what the
//! published checkpoints call them. [`LlamaConfig`] says what may differ between
//! the models of the family.

mod config;

use kiln_ir::{GraphBuilder, GraphError, ValueId};

use crate::adapter::{Part, Placement};
use crate::config::ConfigError;
use crate::decoder::{Blocks, Decoder, DecoderModel};
use crate::nn::{
    Angles, Built, Embedding, GatedMlp, GroupedAttention, Linear, RmsNorm, Rotary, Sequential, Span,
};
use crate::registry::{Family, Model};
use crate::stored;

pub use config::{LlamaConfig, Variant};

/// The family's line in the registry.
pub(crate) const FAMILY: Family = Family {
    model_types: &["llama", "mistral", "qwen2", "qwen3"],
    architectures: &[
        "LlamaForCausalLM",
        "LlamaModel",
        "MistralForCausalLM",
        "MistralModel",
        "Qwen2ForCausalLM",
        "Qwen2Model",
        "Qwen3ForCausalLM",
        "Qwen3Model",
    ],
    from_config: |text| model(LlamaConfig::from_json(text)?, text),
    presets: || LlamaConfig::preset_names().collect(),
    preset: |name| {
        let config = LlamaConfig::preset(name)?;
        let text = config.to_json();
        model(config, &text).ok()
    },
};

fn model(config: LlamaConfig, text: &str) -> Result<Box<dyn Model>, ConfigError> {
    Ok(Box::new(DecoderModel::new(Llama::new(config), text)?))
}

/// The model.
#[derive(Clone, Debug)]
pub struct Llama {
    config: LlamaConfig,
    embed_tokens: Embedding,
    rotary: Rotary,
    layers: Sequential<Block>,
    norm: RmsNorm,
    /// The head, where it has a matrix of its own.
    lm_head: Linear,
}

impl Llama {
    /// The model that `config` describes.
    pub fn new(config: LlamaConfig) -> Self {
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let rotary = Rotary::new(config.rope.frequencies(config.head_dim));
        let blocks = (0..config.num_hidden_layers).map(|layer| Block::new(&config, layer, &rotary));
        Llama {
            embed_tokens: Embedding::new("embed_tokens", vocab, width),
            layers: Sequential::new("layers", blocks),
            norm: RmsNorm::new("norm", width, config.rms_norm_eps),
            lm_head: Linear::new("lm_head", width, vocab).without_bias(),
            rotary,
            config,
        }
    }

    /// What the model is.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }
}

impl Decoder for Llama {
    fn family(&self) -> &'static str {
        self.config.variant.model_type()
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_context(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn eos_tokens(&self) -> &[u32] {
        &self.config.eos_token_ids
    }

    fn blocks(&self, g: &mut GraphBuilder, span: &Span) -> Result<Blocks, GraphError> {
        let x = self.embed_tokens.forward(g, span.ids)?;
        // All layers turn by the same angles.
        let angles = g.scope("rotary_emb", |g| self.rotary.angles(g, span.positions))?;
        // All layers with a window share its mask.
        let windowed = match &self.config.sliding_window {
            Some(window) => Some(g.scope("mask", |g| span.windowed(g, window.size))?),
            None => None,
        };
        let mut attentions = Vec::new();
        let output = self.layers.forward(g, x, |block, g, x| {
            let mask = windowed.filter(|_| block.slides);
            let mask = mask.unwrap_or(span.mask);
            let (x, probabilities) = block.forward(g, x, angles, span, mask)?;
            attentions.push(probabilities);
            Ok(x)
        })?;
        Ok(Blocks { output, attentions })
    }

    fn norm(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        self.norm.forward(g, x)
    }

    fn head(&self, g: &mut GraphBuilder, x: ValueId) -> Result<Option<ValueId>, GraphError> {
        self.config
            .head
            .forward(g, x, &self.embed_tokens, &self.lm_head)
    }

    fn place(&self, stored: &str) -> Placement {
        stored::place(stored, self.config.head)
    }

    fn parts(&self, parameter: &str) -> Vec<Part> {
        stored::parts(parameter, self.config.heads())
    }
}

/// Attention, then the feed-forward part, each added to the residual stream.
#[derive(Clone, Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: GroupedAttention,
    /// Whether attention reaches back no further than the model's window.
    slides: bool,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    fn new(config: &LlamaConfig, layer: usize, rotary: &Rotary) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| RmsNorm::new(name, width, config.rms_norm_eps);
        let attention = GroupedAttention::new(width, config.heads(), rotary);
        let attention = attention.with_bias(config.qkv_bias, config.o_bias);
        Block {
            input_layernorm: norm("input_layernorm"),
            self_attn: match config.variant {
                Variant::Qwen3 => attention.with_head_norms(config.rms_norm_eps),
                Variant::Llama | Variant::Mistral | Variant::Qwen2 => attention,
            },
            slides: config.window(layer).is_some(),
            post_attention_layernorm: norm("post_attention_layernorm"),
            mlp: GatedMlp::new(width, inner, config.hidden_act).with_bias(config.mlp_bias),
        }
    }

    /// The residual stream after the block, and the attention probabilities.
    fn forward(
        &self,
        g: &mut GraphBuilder,
        x: ValueId,
        angles: Angles,
        span: &Span,
        mask: ValueId,
    ) -> Result<(ValueId, ValueId), GraphError> {
        let normed = self.input_layernorm.forward(g, x)?;
        let (attended, probabilities) = self.self_attn.forward(g, normed, angles, span, mask)?;
        let x = g.add(x, attended)?;
        let normed = self.post_attention_layernorm.forward(g, x)?;
        let fed = self.mlp.forward(g, normed)?;
        Ok((g.add(x, fed)?, probabilities))
    }
}
