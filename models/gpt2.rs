//! GPT-2: *Language Models are Unsupervised Multitask Learners*, Radford et
//! al., 2019.
//!
//! A stack of transformer decoder blocks with the norms in front of each part
//! and one at the end, learned positions, and a head that shares the
//! embedding's matrix. Modules are called what the published checkpoints call
//! them. [`Gpt2Config`] says what may differ between the models of the family,
//! and the file `weights.rs` beside it how they are stored.

mod config;
mod weights;

use kiln_ir::{Activation, GraphBuilder, GraphError, ValueId};

use crate::adapter::Placement;
use crate::config::ConfigError;
use crate::decoder::{Blocks, Decoder, DecoderModel};
use crate::nn::{self, Attended, Built, Embedding, LayerNorm, Linear, Sequential, Span};
use crate::registry::{Family, Model};

pub use config::{Gpt2Config, MODEL_TYPE};

/// The family's line in the registry.
pub(crate) const FAMILY: Family = Family {
    model_types: &[MODEL_TYPE],
    architectures: &["GPT2LMHeadModel", "GPT2Model"],
    from_config: |text| model(Gpt2Config::from_json(text)?, text),
    presets: || Gpt2Config::preset_names().collect(),
    preset: |name| {
        let config = Gpt2Config::preset(name)?;
        let text = config.to_json();
        model(config, &text).ok()
    },
};

fn model(config: Gpt2Config, text: &str) -> Result<Box<dyn Model>, ConfigError> {
    Ok(Box::new(DecoderModel::new(Gpt2::new(config), text)?))
}

/// The model.
#[derive(Clone, Debug)]
pub struct Gpt2 {
    config: Gpt2Config,
    /// Token embedding.
    wte: Embedding,
    /// Position embedding.
    wpe: Embedding,
    h: Sequential<Block>,
    ln_f: LayerNorm,
    /// The head, where it has a matrix of its own.
    lm_head: Linear,
}

impl Gpt2 {
    /// The model that `config` describes.
    pub fn new(config: Gpt2Config) -> Self {
        let (vocab, width) = (config.vocab_size, config.n_embd);
        Gpt2 {
            wte: Embedding::new("wte", vocab, width),
            wpe: Embedding::new("wpe", config.n_positions, width),
            h: Sequential::new("h", (0..config.n_layer).map(|i| Block::new(&config, i))),
            ln_f: LayerNorm::new("ln_f", width, config.layer_norm_epsilon),
            lm_head: Linear::new("lm_head", width, vocab).without_bias(),
            config,
        }
    }

    /// What the model is.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }
}

impl Decoder for Gpt2 {
    fn family(&self) -> &'static str {
        MODEL_TYPE
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_context(&self) -> usize {
        self.config.n_positions
    }

    fn eos_tokens(&self) -> &[u32] {
        &self.config.eos_token_ids
    }

    fn blocks(&self, g: &mut GraphBuilder, span: &Span) -> Result<Blocks, GraphError> {
        let tokens = self.wte.forward(g, span.ids)?;
        let positions = self.wpe.forward(g, span.positions)?;
        let x = g.add(tokens, positions)?;
        let mut attentions = Vec::new();
        let output = self.h.forward(g, x, |block, g, x| {
            let (x, probabilities) = block.forward(g, x, span)?;
            attentions.push(probabilities);
            Ok(x)
        })?;
        Ok(Blocks { output, attentions })
    }

    fn norm(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        self.ln_f.forward(g, x)
    }

    fn head(&self, g: &mut GraphBuilder, x: ValueId) -> Result<Option<ValueId>, GraphError> {
        self.config.head.forward(g, x, &self.wte, &self.lm_head)
    }

    fn place(&self, stored: &str) -> Placement {
        weights::place(stored, self.config.head)
    }
}

/// Attention, then the feed-forward part, each added to the residual stream.
#[derive(Clone, Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(config: &Gpt2Config, layer: usize) -> Self {
        let norm = |name| LayerNorm::new(name, config.n_embd, config.layer_norm_epsilon);
        Block {
            ln_1: norm("ln_1"),
            attn: Attention::new(config, layer),
            ln_2: norm("ln_2"),
            mlp: Mlp::new(config),
        }
    }

    /// The residual stream after the block, and the attention probabilities.
    fn forward(
        &self,
        g: &mut GraphBuilder,
        x: ValueId,
        span: &Span,
    ) -> Result<(ValueId, ValueId), GraphError> {
        let normed = self.ln_1.forward(g, x)?;
        let (attended, probabilities) = self.attn.forward(g, normed, span)?;
        let x = g.add(x, attended)?;
        let normed = self.ln_2.forward(g, x)?;
        let fed = self.mlp.forward(g, normed)?;
        Ok((g.add(x, fed)?, probabilities))
    }
}

/// Causal self-attention of several heads.
#[derive(Clone, Debug)]
struct Attention {
    /// Queries, keys and values, side by side.
    c_attn: Linear,
    c_proj: Linear,
    width: usize,
    heads: usize,
    score_divisors: Vec<f64>,
}

impl Attention {
    fn new(config: &Gpt2Config, layer: usize) -> Self {
        let width = config.n_embd;
        Attention {
            c_attn: Linear::new("c_attn", width, 3 * width),
            c_proj: Linear::new("c_proj", width, width),
            width,
            heads: config.n_head,
            score_divisors: config.score_divisors(layer),
        }
    }

    fn forward(
        &self,
        g: &mut GraphBuilder,
        x: ValueId,
        span: &Span,
    ) -> Result<(ValueId, ValueId), GraphError> {
        g.scope("attn", |g| {
            let qkv = self.c_attn.forward(g, x)?;
            let w = self.width;
            let q = g.slice(qkv, 2, 0, w)?;
            let k = g.slice(qkv, 2, w, 2 * w)?;
            let v = g.slice(qkv, 2, 2 * w, 3 * w)?;
            let k = span.cached(g, "k", k)?;
            let v = span.cached(g, "v", v)?;

            let q = nn::split_heads(g, q, self.heads)?;
            let k = nn::split_heads(g, k, self.heads)?;
            let v = nn::split_heads(g, v, self.heads)?;
            let Attended {
                output,
                probabilities,
            } = nn::attention(g, q, k, v, span.mask, &self.score_divisors)?;
            let merged = nn::merge_heads(g, output)?;
            Ok((self.c_proj.forward(g, merged)?, probabilities))
        })
    }
}

/// The feed-forward part.
#[derive(Clone, Debug)]
struct Mlp {
    c_fc: Linear,
    activation: Activation,
    c_proj: Linear,
}

impl Mlp {
    fn new(config: &Gpt2Config) -> Self {
        Mlp {
            c_fc: Linear::new("c_fc", config.n_embd, config.n_inner),
            activation: config.activation,
            c_proj: Linear::new("c_proj", config.n_inner, config.n_embd),
        }
    }

    fn forward(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        g.scope("mlp", |g| {
            let x = self.c_fc.forward(g, x)?;
            let x = g.scope("act", |g| nn::activation(g, self.activation, x))?;
            self.c_proj.forward(g, x)
        })
    }
}
