//! Llama: *The Llama 3 Herd of Models*, Grattafiori et al., 2024, and its
//! relatives Mistral, SmolLM2, Qwen 2 and Qwen 3.
//!
//! What differs from GPT-2: norms by the root mean square alone, positions by a
//! rotary embedding of queries and keys, keys and values that groups of query
//! heads share, and a feed-forward part with a gate. Modules are called what the
//! published checkpoints call them. [`LlamaConfig`] says what may differ between
//! the models of the family, and the file `weights.rs` beside it how they are
//! stored.

mod config;
mod rope;
mod weights;

use kiln_ir::{Activation, GraphBuilder, GraphError, ValueId};

use crate::adapter::{Part, Placement};
use crate::config::ConfigError;
use crate::decoder::{Blocks, Decoder, DecoderModel};
use crate::nn::{
    self, Angles, Attended, Built, Embedding, Linear, RmsNorm, Rotary, Sequential, Span,
};
use crate::registry::{Family, Model};

pub use config::{LlamaConfig, SlidingWindow, Variant};
pub use rope::{Llama3Scaling, Rope};

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
            let mask = windowed.filter(|_| block.self_attn.slides);
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
        weights::place(stored, self.config.head)
    }

    fn parts(&self, parameter: &str) -> Vec<Part> {
        weights::parts(parameter, &self.config)
    }
}

/// Attention, then the feed-forward part, each added to the residual stream.
#[derive(Clone, Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn new(config: &LlamaConfig, layer: usize, rotary: &Rotary) -> Self {
        let norm = |name| RmsNorm::new(name, config.hidden_size, config.rms_norm_eps);
        Block {
            input_layernorm: norm("input_layernorm"),
            self_attn: Attention::new(config, layer, rotary),
            post_attention_layernorm: norm("post_attention_layernorm"),
            mlp: Mlp::new(config),
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

/// Causal self-attention, groups of query heads sharing keys and values.
#[derive(Clone, Debug)]
struct Attention {
    /// Queries, keys and values, side by side; stored as three.
    qkv_proj: Linear,
    o_proj: Linear,
    /// Of the queries and of the keys of each head, in Qwen 3.
    head_norms: Option<[RmsNorm; 2]>,
    rotary: Rotary,
    /// Whether it reaches back no further than the model's window.
    slides: bool,
    /// Query heads.
    heads: usize,
    /// Key and value heads.
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    fn new(config: &LlamaConfig, layer: usize, rotary: &Rotary) -> Self {
        let (width, queries, keys) = (config.hidden_size, config.query_width(), config.key_width());
        Attention {
            qkv_proj: Linear::new("qkv_proj", width, queries + 2 * keys).with_bias(config.qkv_bias),
            o_proj: Linear::new("o_proj", queries, width).with_bias(config.o_bias),
            head_norms: (config.variant == Variant::Qwen3).then(|| {
                ["q_norm", "k_norm"]
                    .map(|name| RmsNorm::new(name, config.head_dim, config.rms_norm_eps))
            }),
            rotary: rotary.clone(),
            slides: config.window(layer).is_some(),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    fn forward(
        &self,
        g: &mut GraphBuilder,
        x: ValueId,
        angles: Angles,
        span: &Span,
        mask: ValueId,
    ) -> Result<(ValueId, ValueId), GraphError> {
        g.scope("self_attn", |g| {
            let qkv = self.qkv_proj.forward(g, x)?;
            let q_end = self.heads * self.head_dim;
            let k_end = q_end + self.kv_heads * self.head_dim;
            let v_end = k_end + self.kv_heads * self.head_dim;
            let qk = g.slice(qkv, 2, 0, k_end)?;
            let v = g.slice(qkv, 2, k_end, v_end)?;
            let qk = match &self.head_norms {
                Some([q_norm, k_norm]) => {
                    let q = g.slice(qk, 2, 0, q_end)?;
                    let k = g.slice(qk, 2, q_end, k_end)?;
                    let q = for_each_head(g, q_norm, q, self.heads)?;
                    let k = for_each_head(g, k_norm, k, self.kv_heads)?;
                    g.concat(&[q, k], 2)?
                }
                None => qk,
            };
            // Queries and keys turn together.
            let qk = g.scope("rotary_emb", |g| self.rotary.forward(g, qk, angles))?;
            let q = g.slice(qk, 2, 0, q_end)?;
            let k = g.slice(qk, 2, q_end, k_end)?;
            let k = span.cached(g, "k", k)?;
            let v = span.cached(g, "v", v)?;

            let group = self.heads / self.kv_heads;
            let q = nn::split_heads(g, q, self.heads)?;
            let k = nn::split_heads(g, k, self.kv_heads)?;
            let k = nn::repeat_heads(g, k, group)?;
            let v = nn::split_heads(g, v, self.kv_heads)?;
            let v = nn::repeat_heads(g, v, group)?;
            let divisor = (self.head_dim as f64).sqrt();
            let Attended {
                output,
                probabilities,
            } = nn::attention(g, q, k, v, mask, &[divisor])?;
            let merged = nn::merge_heads(g, output)?;
            Ok((self.o_proj.forward(g, merged)?, probabilities))
        })
    }
}

/// `x[.., heads * d]`, each head normalised.
fn for_each_head(g: &mut GraphBuilder, norm: &RmsNorm, x: ValueId, heads: usize) -> Built {
    let whole = g.shape(x);
    let apart = nn::heads_apart(g, x, heads)?;
    let normed = norm.forward(g, apart)?;
    g.reshape(normed, whole)
}

/// The feed-forward part, with a gate: SwiGLU where the nonlinearity is SiLU
/// (Shazeer, <https://arxiv.org/abs/2002.05202>).
#[derive(Clone, Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl Mlp {
    fn new(config: &LlamaConfig) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear =
            |name, inputs, outputs| Linear::new(name, inputs, outputs).with_bias(config.mlp_bias);
        Mlp {
            gate_proj: linear("gate_proj", width, inner),
            up_proj: linear("up_proj", width, inner),
            down_proj: linear("down_proj", inner, width),
            activation: config.hidden_act,
        }
    }

    fn forward(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        g.scope("mlp", |g| {
            let gate = self.gate_proj.forward(g, x)?;
            let gate = g.scope("act_fn", |g| nn::activation(g, self.activation, gate))?;
            let up = self.up_proj.forward(g, x)?;
            let gated = g.mul(gate, up)?;
            self.down_proj.forward(g, gated)
        })
    }
}
