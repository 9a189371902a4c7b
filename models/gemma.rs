//! Gemma 3, the models of text: *Gemma 3 Technical Report*, Gemma Team, 2025
//! (<https://arxiv.org/abs/2503.19786>).
//!
//! What differs from Llama: embeddings are scaled, norms stand behind attention
//! and the feed-forward part too, gains are stored less one, and of two kinds of
//! layers most reach back no further than a window and turn by angles of their
//! own. [`GemmaConfig`] says what may differ between the models of the family.

mod config;
mod weights;

use kiln_ir::{GraphBuilder, GraphError, ValueId};

use crate::adapter::{Part, Placement};
use crate::config::ConfigError;
use crate::decoder::{Blocks, Decoder, DecoderModel};
use crate::nn::{
    Angles, Built, Embedding, GatedMlp, GroupedAttention, Linear, RmsNorm, Rotary, Sequential, Span,
};
use crate::registry::{Family, Model};
use crate::stored;

pub use config::GemmaConfig;
use config::{ARCHITECTURES, MODEL_TYPE};

/// The family's line in the registry.
pub(crate) const FAMILY: Family = Family {
    model_types: &[MODEL_TYPE],
    architectures: &ARCHITECTURES,
    from_config: |text| model(GemmaConfig::from_json(text)?, text),
    presets: || GemmaConfig::preset_names().collect(),
    preset: |name| {
        let config = GemmaConfig::preset(name)?;
        let text = config.to_json();
        model(config, &text).ok()
    },
};

fn model(config: GemmaConfig, text: &str) -> Result<Box<dyn Model>, ConfigError> {
    Ok(Box::new(DecoderModel::new(Gemma::new(config), text)?))
}

/// The model.
#[derive(Clone, Debug)]
pub struct Gemma {
    config: GemmaConfig,
    embed_tokens: Embedding,
    /// How heads turn in layers that see all tokens, and in those with a window.
    rotary: [Rotary; 2],
    layers: Sequential<Block>,
    norm: RmsNorm,
    /// The head, where it has a matrix of its own.
    lm_head: Linear,
}

impl Gemma {
    /// The model that `config` describes.
    pub fn new(config: GemmaConfig) -> Self {
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let rotary = [&config.rope, &config.local_rope]
            .map(|rope| Rotary::new(rope.frequencies(config.head_dim)));
        let blocks = (0..config.num_hidden_layers).map(|layer| Block::new(&config, layer, &rotary));
        Gemma {
            embed_tokens: Embedding::new("embed_tokens", vocab, width),
            layers: Sequential::new("layers", blocks),
            norm: RmsNorm::new("norm", width, config.rms_norm_eps),
            lm_head: Linear::new("lm_head", width, vocab).without_bias(),
            rotary,
            config,
        }
    }

    /// What the model is.
    pub fn config(&self) -> &GemmaConfig {
        &self.config
    }

    /// The rows of `ids`, times the root of their width. transformers rounds that
    /// factor to the type that it computes in; kiln computes in f32.
    fn embedded(&self, g: &mut GraphBuilder, ids: ValueId) -> Built {
        let x = self.embed_tokens.forward(g, ids)?;
        g.scope("embed_tokens", |g| {
            let scale = g.f32((self.config.hidden_size as f64).sqrt())?;
            g.mul(x, scale)
        })
    }
}

impl Decoder for Gemma {
    fn family(&self) -> &'static str {
        MODEL_TYPE
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
        let x = self.embedded(g, span.ids)?;
        // All layers of a kind turn by the same angles and share a mask.
        let [whole, local] = &self.rotary;
        let whole = g.scope("rotary_emb", |g| whole.angles(g, span.positions))?;
        let local = g.scope("rotary_emb_local", |g| local.angles(g, span.positions))?;
        let window = self.config.sliding_window.size;
        let windowed = g.scope("mask", |g| span.windowed(g, window))?;
        let mut attentions = Vec::new();
        let output = self.layers.forward(g, x, |block, g, x| {
            let (angles, mask) = match block.slides {
                true => (local, windowed),
                false => (whole, span.mask),
            };
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
        stored::parts(parameter, self.config.heads())
    }
}

/// Attention, then the feed-forward part, each between two norms and added to the
/// residual stream.
#[derive(Clone, Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: GroupedAttention,
    /// Whether attention reaches back no further than the model's window.
    slides: bool,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
}

impl Block {
    fn new(config: &GemmaConfig, layer: usize, [whole, local]: &[Rotary; 2]) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| RmsNorm::new(name, width, config.rms_norm_eps);
        let slides = config.sliding_window.slides(layer);
        let rotary = if slides { local } else { whole };
        Block {
            input_layernorm: norm("input_layernorm"),
            self_attn: GroupedAttention::new(width, config.heads(), rotary)
                .with_bias(config.attention_bias, config.attention_bias)
                .with_head_norms(config.rms_norm_eps)
                .with_divisor(config.query_pre_attn_scalar.sqrt()),
            slides,
            post_attention_layernorm: norm("post_attention_layernorm"),
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm"),
            mlp: GatedMlp::new(width, inner, config.hidden_activation),
            post_feedforward_layernorm: norm("post_feedforward_layernorm"),
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
        let attended = self.post_attention_layernorm.forward(g, attended)?;
        let x = g.add(x, attended)?;
        let normed = self.pre_feedforward_layernorm.forward(g, x)?;
        let fed = self.mlp.forward(g, normed)?;
        let fed = self.post_feedforward_layernorm.forward(g, fed)?;
        Ok((g.add(x, fed)?, probabilities))
    }
}
