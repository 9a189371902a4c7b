//! What turns hidden states into logits.

use kiln_ir::{GraphBuilder, GraphError, ValueId};

use crate::adapter::{Layout, Placement};
use crate::config::{ConfigError, Settings};
use crate::nn::{self, Embedding, Linear};

/// The setting that makes the head a copy of the embedding.
pub(crate) const TIE: &str = "tie_word_embeddings";

/// What a head's own weight is called, by all families.
pub(crate) const HEAD_WEIGHT: &str = "lm_head.weight";

/// What turns hidden states into logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The embedding itself (`tie_word_embeddings`).
    Tied,
    /// A matrix of its own, `lm_head.weight`.
    Own,
    /// Nothing: hidden states are the answer, as of a `GPT2Model`.
    None,
}

impl Head {
    /// What `tie_word_embeddings`, which is `tied` if absent, and
    /// `architectures` say, where a family's classes are called
    /// `[with_head, without]`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Unsupported`] for another class.
    pub fn from_settings(
        settings: &Settings,
        [with_head, without]: [&str; 2],
        tied: bool,
    ) -> Result<Self, ConfigError> {
        let tied = settings.switch(TIE)?.unwrap_or(tied);
        match settings.architecture()? {
            Some(name) if name == without => Ok(Head::None),
            Some(name) if name != with_head => Err(settings.unsupported(
                "architectures",
                format!("[\"{name}\"]"),
                format!("those it does are {with_head} and {without}"),
            )),
            _ if tied => Ok(Head::Tied),
            _ => Ok(Head::Own),
        }
    }

    /// The logits of hidden states `x[.., width]`, `[.., vocab]`: by the
    /// embedding or by `own`, a layer called `lm_head`.
    ///
    /// # Errors
    /// When ops do not fit together.
    pub fn forward(
        self,
        g: &mut GraphBuilder,
        x: ValueId,
        embedding: &Embedding,
        own: &Linear,
    ) -> Result<Option<ValueId>, GraphError> {
        match self {
            Head::Tied => {
                let weight = embedding.weight(g)?;
                g.scope("lm_head", |g| nn::linear(g, x, weight)).map(Some)
            }
            Head::Own => own.forward(g, x).map(Some),
            Head::None => Ok(None),
        }
    }

    /// What the tensor `stored` is that holds a head's weight, where the
    /// embedding's is called `embedding`.
    pub fn place(self, stored: &str, embedding: &str) -> Placement {
        match self {
            Head::Tied => Placement::Copy {
                of: embedding.to_owned(),
                setting: TIE,
            },
            Head::Own => Placement::Parameter {
                name: stored.to_owned(),
                layout: Layout::AsStored,
            },
            // The body of a model may be taken from a checkpoint of the whole.
            Head::None => Placement::Ignored,
        }
    }
}
