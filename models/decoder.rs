//! What all decoder-only language models have in common: their entry points.
//!
//! A family says how tokens go through its blocks, what the final norm is and
//! what the head ([`Decoder`]); [`DecoderModel`] makes a [`Model`] of that.
//!
//! | entry | takes | gives |
//! |---|---|---|
//! | `forward` | `ids i32[batch, seq]` | `hidden f32[batch, seq, width]` after the final norm, `logits f32[batch, seq, vocab]` |
//! | `forward_attentions` | the same | that, and `attentions.N f32[batch, heads, seq, seq]` of each block |
//! | `step` | `ids i32[batch, seq]`, `start i32[batch]`, and what earlier steps left | `logits f32[batch, vocab]` of the last token |
//!
//! A model without a head gives `hidden` alone, of the last token in `step`.
//!
//! `forward` takes whole sequences, those of different lengths padded on the
//! right. `step` takes the next tokens of sequences that end together: where
//! they are of different lengths, they are padded on the left, and `start` says
//! how many tokens of each are padding. Keys and values stay in states, `past`
//! tokens of each sequence.

use kiln_ir::plan::ModelInfo;
use kiln_ir::{Graph, GraphBuilder, GraphError, ValueId};

use crate::adapter::{AdapterError, Parameter, Part, Placement, Weights, count};
use crate::checkpoint::Checkpoint;
use crate::config::ConfigError;
use crate::nn::{Built, Span, SpanLimits};
use crate::registry::{DEFAULT_CONTEXT, EntryOptions, Model, ModelError};

/// Whole sequences to hidden states and logits.
pub const FORWARD: &str = "forward";
/// [`FORWARD`], and the attention probabilities.
pub const FORWARD_ATTENTIONS: &str = "forward_attentions";
/// The next tokens to the logits of the last one.
pub const STEP: &str = "step";

const ENTRIES: [&str; 3] = [FORWARD, FORWARD_ATTENTIONS, STEP];

/// What a family of decoder-only models consists of.
pub trait Decoder: Send + Sync {
    /// The family's name.
    fn family(&self) -> &'static str;

    /// The number of tokens.
    fn vocab_size(&self) -> usize;

    /// The longest context, in tokens.
    fn max_context(&self) -> usize;

    /// The tokens after which a text is over.
    fn eos_tokens(&self) -> &[u32];

    /// Tokens through the embedding and all blocks.
    ///
    /// # Errors
    /// When ops do not fit together.
    fn blocks(&self, g: &mut GraphBuilder, span: &Span) -> Result<Blocks, GraphError>;

    /// The norm between blocks and head: `[.., width]` to the same.
    ///
    /// # Errors
    /// When ops do not fit together.
    fn norm(&self, g: &mut GraphBuilder, x: ValueId) -> Built;

    /// Logits of hidden states, `[.., width]` to `[.., vocab]`; `None` where
    /// the model has no head.
    ///
    /// # Errors
    /// When ops do not fit together.
    fn head(&self, g: &mut GraphBuilder, hidden: ValueId) -> Result<Option<ValueId>, GraphError>;

    /// The weight adapter: what the tensor stored under this name is.
    fn place(&self, stored: &str) -> Placement;

    /// The parts that checkpoints store a parameter in; none where it is stored
    /// whole.
    fn parts(&self, parameter: &str) -> Vec<Part> {
        let _ = parameter;
        Vec::new()
    }
}

/// What the blocks give.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// The residual stream, `f32[batch, seq, width]`.
    pub output: ValueId,
    /// The attention probabilities of each block,
    /// `f32[batch, heads, seq, past + seq]`.
    pub attentions: Vec<ValueId>,
}

/// A decoder with its `config.json` and its list of parameters.
#[derive(Clone, Debug)]
pub struct DecoderModel<D> {
    decoder: D,
    config: String,
    parameters: Vec<Parameter>,
}

impl<D: Decoder> DecoderModel<D> {
    /// The model that `config`, the text of a `config.json`, describes.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Unbuildable`], when the decoder's ops do not fit together.
    pub fn new(decoder: D, config: &str) -> Result<Self, ConfigError> {
        // The graph is what says which parameters there are; sizes of runs do
        // not matter to it.
        let any = SpanLimits {
            batch: 1,
            seq: 1,
            context: 1,
        };
        let graph = build(&decoder, FORWARD, any).map_err(|reason| ConfigError::Unbuildable {
            reason: reason.to_string(),
        })?;
        let parameters = graph.params().map(|(name, ty)| {
            let shape = ty
                .shape
                .iter()
                .map(|dim| dim.as_const().unwrap_or(0) as usize);
            Parameter::new(name, shape.collect::<Vec<usize>>()).stored_in(decoder.parts(name))
        });
        let parameters = parameters.collect();
        Ok(DecoderModel {
            decoder,
            config: config.to_owned(),
            parameters,
        })
    }

    /// The longest context that `options` ask for.
    fn context(&self, options: &EntryOptions) -> u64 {
        let longest = self.decoder.max_context() as u64;
        options.max_context.unwrap_or(longest.min(DEFAULT_CONTEXT))
    }

    /// The sizes that `options` allow in `entry`.
    fn limits(&self, entry: &str, options: &EntryOptions) -> Result<SpanLimits, ModelError> {
        let longest = self.decoder.max_context() as u64;
        let context = self.context(options);
        let checks = [
            ("max_context", context, longest),
            ("max_batch", options.max_batch, u64::MAX),
            ("prefill_chunk", options.prefill_chunk, u64::MAX),
        ];
        for (option, found, most) in checks {
            if !(1..=most).contains(&found) {
                return Err(ModelError::Option {
                    option,
                    found,
                    most: (most != u64::MAX).then_some(most),
                });
            }
        }
        Ok(SpanLimits {
            batch: options.max_batch,
            seq: match entry {
                STEP => options.prefill_chunk.min(context),
                _ => context,
            },
            context,
        })
    }
}

impl<D: Decoder> Model for DecoderModel<D> {
    fn family(&self) -> &'static str {
        self.decoder.family()
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.parameters.clone()
    }

    fn entries(&self) -> Vec<&'static str> {
        ENTRIES.to_vec()
    }

    fn graph(&self, entry: &str, options: &EntryOptions) -> Result<Graph, ModelError> {
        if !ENTRIES.contains(&entry) {
            return Err(ModelError::Entry {
                found: entry.to_owned(),
                known: ENTRIES.to_vec(),
            });
        }
        let limits = self.limits(entry, options)?;
        Ok(build(&self.decoder, entry, limits)?)
    }

    fn info(&self, options: &EntryOptions) -> ModelInfo {
        let longest = self.decoder.max_context() as u64;
        ModelInfo {
            family: self.family().to_owned(),
            config: self.config.clone(),
            weight_dtype: String::new(),
            parameters: count(&self.parameters),
            vocab_size: self.decoder.vocab_size() as u64,
            max_context: self.context(options).min(longest),
            eos_tokens: self.decoder.eos_tokens().to_vec(),
        }
    }

    fn weights(&self, checkpoint: Checkpoint) -> Result<Weights, AdapterError> {
        let adapter = |stored: &str| self.decoder.place(stored);
        Weights::map(checkpoint, self.parameters(), &adapter)
    }
}

/// The graph of an entry.
fn build<D: Decoder>(decoder: &D, entry: &str, limits: SpanLimits) -> Result<Graph, GraphError> {
    let mut g = GraphBuilder::new(entry);
    match entry {
        STEP => step(decoder, &mut g, limits)?,
        _ => forward(decoder, &mut g, limits, entry == FORWARD_ATTENTIONS)?,
    }
    Ok(g.finish())
}

fn forward<D: Decoder>(
    decoder: &D,
    g: &mut GraphBuilder,
    limits: SpanLimits,
    with_attentions: bool,
) -> Result<(), GraphError> {
    let span = Span::whole(g, limits)?;
    let blocks = decoder.blocks(g, &span)?;
    let hidden = decoder.norm(g, blocks.output)?;
    g.output("hidden", hidden)?;
    if let Some(logits) = decoder.head(g, hidden)? {
        g.output("logits", logits)?;
    }
    if with_attentions {
        for (layer, probabilities) in blocks.attentions.into_iter().enumerate() {
            g.output(&format!("attentions.{layer}"), probabilities)?;
        }
    }
    Ok(())
}

fn step<D: Decoder>(
    decoder: &D,
    g: &mut GraphBuilder,
    limits: SpanLimits,
) -> Result<(), GraphError> {
    let span = Span::continued(g, limits)?;
    let blocks = decoder.blocks(g, &span)?;
    // Only the last token's row is asked for: the head, the largest matrix,
    // never sees the others.
    let last = span.last(g, blocks.output)?;
    let hidden = decoder.norm(g, last)?;
    match decoder.head(g, hidden)? {
        Some(logits) => g.output("logits", logits),
        None => g.output("hidden", hidden),
    }
}
