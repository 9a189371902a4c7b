//! Text to token ids and back.
//!
//! A model's tokens come from `tokenizer.json`; for a GPT-2 also from
//! `vocab.json` with `merges.txt`, as it was first published, or, if it has
//! 50,257 tokens and neither, from GPT-2's own vocabulary, which the program
//! carries. Models of other families may have a `vocab.json` too, but that does
//! not say how they split a text. Tokens that are found before a text is split may be
//! named in `tokenizer_config.json` alone. Whichever it was, [`Tokenizer::to_json`]
//! writes it as a `tokenizer.json`, so that a compiled artifact always holds the same
//! one thing.
//!
//! ```
//! use kiln_models::tokenizer::Tokenizer;
//!
//! let tokenizer = Tokenizer::gpt2()?;
//! assert_eq!(tokenizer.encode("Hello, world")?, [15496, 11, 995]);
//! let mut stream = tokenizer.stream();
//! let mut text = String::new();
//! for id in [15496, 11, 995] {
//!     text += &stream.push(id)?;
//! }
//! text += &stream.finish()?;
//! assert_eq!(text, "Hello, world");
//! # Ok::<(), kiln_models::tokenizer::TokenizerError>(())
//! ```

mod added;
mod byte_level;
mod stream;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokenizers::DecoderWrapper;

use crate::chat::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE};
use crate::config::Settings;

pub use stream::DecodeStream;

/// A tokenizer in the format of the crate `tokenizers`.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// GPT-2's vocabulary: a map from token to id.
pub const VOCAB_FILE: &str = "vocab.json";
/// GPT-2's merges, one a line, most frequent first.
pub const MERGES_FILE: &str = "merges.txt";
/// Tokens that were added to `vocab.json` later: a map from token to id.
pub const ADDED_TOKENS_FILE: &str = "added_tokens.json";
/// GPT-2's vocabulary, special token included.
pub const GPT2_VOCAB_SIZE: usize = 50_257;

/// The family whose tokenizer need not be a `tokenizer.json`.
pub(crate) const FAMILY: &str = crate::gpt2::MODEL_TYPE;

/// What models call the token after which a text is over, most usual first.
const END_TOKENS: [&str; 4] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"];

/// A tokenizer, from whichever source.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    decoding: Decoding,
    eos: Option<u32>,
    /// Ids from here on have no row in the model's embedding.
    limit: Option<usize>,
}

/// How ids become text.
#[derive(Clone, Debug)]
enum Decoding {
    /// Every id is some bytes; the text is their concatenation. A map, since
    /// a file may give any number to a token.
    Bytes(HashMap<u32, Box<[u8]>>),
    /// What an id becomes depends on its neighbours.
    Contextual,
}

/// Why there is no tokenizer, or what it cannot do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// There is nothing to take a tokenizer from.
    #[error(
        "{origin} has {}; copy a {TOKENIZER_FILE} into it, or give tokens by number",
        match family == FAMILY {
            true => format!(
                "neither {TOKENIZER_FILE} nor {VOCAB_FILE} with {MERGES_FILE}, and its vocabulary of \
                 {vocab_size} tokens is not GPT-2's of {GPT2_VOCAB_SIZE}"
            ),
            false => format!(
                "no {TOKENIZER_FILE}, and {VOCAB_FILE} with {MERGES_FILE} is read for {FAMILY} alone, \
                 not for {family}"
            ),
        }
    )]
    None {
        /// The folder or model.
        origin: String,
        /// The model's family.
        family: String,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// One of two files that belong together is missing.
    #[error("{} has {found} but no {missing}; copy the other from where the model came from", folder.display())]
    Half {
        /// The folder.
        folder: PathBuf,
        /// The file that is there.
        found: &'static str,
        /// The file that is not.
        missing: &'static str,
    },
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{file} cannot be read as a tokenizer: {reason}; fetch or copy it again")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A text has a token that the model does not know.
    #[error(
        "token {id} (`{token}`) is beyond the model's vocabulary of {vocab_size}; \
         the tokenizer belongs to another model, or tokens were added without retraining"
    )]
    BeyondVocabulary {
        /// The id.
        id: u32,
        /// Its text.
        token: String,
        /// The rows of the model's embedding.
        vocab_size: usize,
    },
    /// The tokenizer itself failed.
    #[error("the tokenizer failed on {what}: {reason}")]
    Failed {
        /// What it was given.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

impl Tokenizer {
    /// The tokenizer of the checkpoint in `folder`, whose model is of `family`
    /// and has `vocab_size` tokens.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::None`] when the folder has none that fits the family
    /// and GPT-2's own does not fit either; other variants when the files that
    /// are there cannot be read.
    pub fn open(folder: &Path, family: &str, vocab_size: usize) -> Result<Self, TokenizerError> {
        let json = folder.join(TOKENIZER_FILE);
        let found = if json.is_file() {
            Some(Self::from_json(&json.display().to_string(), &read(&json)?)?)
        } else if family == FAMILY {
            Self::open_gpt2(folder, vocab_size)?
        } else {
            // Others split a text by patterns of their own (Qwen) or are no
            // byte-level BPE at all, and the files do not say so.
            None
        };
        let tokenizer = found.ok_or_else(|| TokenizerError::None {
            origin: folder.display().to_string(),
            family: family.to_owned(),
            vocab_size,
        })?;
        Ok(tokenizer.with_tokens_of(folder)?.with_limit(vocab_size))
    }

    /// The same tokenizer with the tokens that other files of the checkpoint add.
    fn with_tokens_of(mut self, folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join(TOKENIZER_CONFIG_FILE);
        let malformed = |reason| TokenizerError::Malformed {
            file: path.display().to_string(),
            reason,
        };
        let config = settings(&path)?;
        let tokens = added::numbered(&self.inner, &config).map_err(malformed)?;
        let mut has_more = added::add(&mut self.inner, tokens).map_err(malformed)?;
        // As in transformers, the older file counts where the other has no such list.
        let older = match config.is_absent(added::NUMBERED) {
            true => settings(&folder.join(SPECIAL_TOKENS_FILE))?,
            false => Settings::default(),
        };
        let tokens = added::named(&self.inner, &config, &older);
        has_more |= added::add(&mut self.inner, tokens).map_err(malformed)?;
        Ok(match has_more {
            true => Self::new(self.inner),
            false => self,
        })
    }

    /// The tokenizer of a GPT-2 whose `folder` has no `tokenizer.json`.
    fn open_gpt2(folder: &Path, vocab_size: usize) -> Result<Option<Self>, TokenizerError> {
        let (vocab, merges) = (folder.join(VOCAB_FILE), folder.join(MERGES_FILE));
        match (vocab.is_file(), merges.is_file()) {
            (true, true) => {
                let added = folder.join(ADDED_TOKENS_FILE);
                let added = if added.is_file() {
                    Some(read(&added)?)
                } else {
                    None
                };
                let origin = folder.display().to_string();
                let (vocab, merges) = (read(&vocab)?, read(&merges)?);
                Self::from_vocab_and_merges(&origin, &vocab, &merges, added.as_deref()).map(Some)
            }
            (true, false) => Err(half(folder, VOCAB_FILE, MERGES_FILE)),
            (false, true) => Err(half(folder, MERGES_FILE, VOCAB_FILE)),
            (false, false) if vocab_size == GPT2_VOCAB_SIZE => Self::gpt2().map(Some),
            (false, false) => Ok(None),
        }
    }

    /// The tokenizer that the text of a `tokenizer.json` describes. `label` is
    /// how messages call the file.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Malformed`].
    pub fn from_json(label: &str, json: &str) -> Result<Self, TokenizerError> {
        let malformed = |error: tokenizers::Error| TokenizerError::Malformed {
            file: label.to_owned(),
            reason: error.to_string(),
        };
        let mut inner = json.parse::<tokenizers::Tokenizer>().map_err(malformed)?;
        // Files may carry settings of the training run: a prompt must neither
        // be cut nor padded here.
        inner.with_truncation(None).map_err(malformed)?;
        inner.with_padding(None);
        Ok(Self::new(inner))
    }

    /// The tokenizer that `vocab.json` and `merges.txt` describe, with the
    /// content of `added_tokens.json` where there is one. `origin` is how
    /// messages call the folder.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Malformed`], naming the file.
    pub fn from_vocab_and_merges(
        origin: &str,
        vocab: &str,
        merges: &str,
        added: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let malformed = |name: &str, reason: String| TokenizerError::Malformed {
            file: format!("{origin}/{name}"),
            reason,
        };
        let parse = |name: &str, text: &str| -> Result<BTreeMap<String, u32>, TokenizerError> {
            serde_json::from_str(text).map_err(|e| malformed(name, e.to_string()))
        };
        let vocab = parse(VOCAB_FILE, vocab)?;
        let merges =
            byte_level::parse_merges(merges).map_err(|reason| malformed(MERGES_FILE, reason))?;
        let added = added
            .map(|text| parse(ADDED_TOKENS_FILE, text))
            .transpose()?
            .unwrap_or_default();
        let inner = byte_level::tokenizer(vocab, merges, added)
            .map_err(|(name, reason)| malformed(name, reason))?;
        Ok(Self::new(inner))
    }

    /// GPT-2's own tokenizer: 50,257 tokens, the last of which is
    /// `<|endoftext|>`. The vocabulary is the one that the crate tiktoken-rs
    /// carries.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`], should that crate's vocabulary not be what
    /// it is.
    pub fn gpt2() -> Result<Self, TokenizerError> {
        let failed = |reason| TokenizerError::Failed {
            what: "GPT-2's own vocabulary",
            reason,
        };
        let (vocab, merges) = byte_level::gpt2_vocabulary().map_err(failed)?;
        let inner = byte_level::tokenizer(vocab, merges, BTreeMap::new())
            .map_err(|(_, reason)| failed(reason))?;
        Ok(Self::new(inner))
    }

    fn new(inner: tokenizers::Tokenizer) -> Self {
        let decoding = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => {
                Decoding::Bytes(byte_level::bytes_of_tokens(&inner))
            }
            _ => Decoding::Contextual,
        };
        let eos = END_TOKENS.iter().find_map(|token| inner.token_to_id(token));
        Tokenizer {
            inner,
            decoding,
            eos,
            limit: None,
        }
    }

    /// The same tokenizer for a model that has `vocab_size` tokens:
    /// [`encode`](Self::encode) refuses ids beyond them.
    #[must_use]
    pub fn with_limit(mut self, vocab_size: usize) -> Self {
        self.limit = Some(vocab_size);
        self.eos = self.eos.filter(|id| (*id as usize) < vocab_size);
        self
    }

    /// The same tokenizer with the end token that the model's `config.json`, or its
    /// `generation_config.json`, names. An id that the vocabulary does not have is not taken.
    #[must_use]
    pub fn with_eos(mut self, id: Option<u32>) -> Self {
        if let Some(id) = id
            && self.inner.id_to_token(id).is_some()
            && self.limit.is_none_or(|limit| (id as usize) < limit)
        {
            self.eos = Some(id);
        }
        self
    }

    /// The ids of a text. Special tokens written out in it, `<|endoftext|>`
    /// for one, become their ids.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::BeyondVocabulary`] when the model has no such token;
    /// [`TokenizerError::Failed`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, true)
    }

    /// The ids of a text that has all special tokens that it needs written out, such as a
    /// conversation ([`crate::chat`]): [`encode`](Self::encode) puts before a text what its
    /// tokenizer's file says, a `<s>` for one.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner
                .encode_fast(text, add_special)
                .map_err(|e| TokenizerError::Failed {
                    what: "a text to encode",
                    reason: e.to_string(),
                })?;
        let ids = encoding.get_ids();
        if let Some(limit) = self.limit
            && let Some(&id) = ids.iter().find(|id| **id as usize >= limit)
        {
            let token = self.inner.id_to_token(id).unwrap_or_default();
            return Err(TokenizerError::BeyondVocabulary {
                id,
                token,
                vocab_size: limit,
            });
        }
        Ok(ids.to_vec())
    }

    /// The text of some ids, special tokens included. Ids that the vocabulary
    /// does not have add nothing; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        match &self.decoding {
            Decoding::Bytes(table) => {
                let bytes: Vec<u8> = ids
                    .iter()
                    .flat_map(|id| bytes_of(table, *id))
                    .copied()
                    .collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Decoding::Contextual => {
                self.inner
                    .decode(ids, false)
                    .map_err(|e| TokenizerError::Failed {
                        what: "ids to decode",
                        reason: e.to_string(),
                    })
            }
        }
    }

    /// A decoder that takes one id at a time and gives out text as soon as it
    /// is whole.
    ///
    /// Its pieces joined are what [`decode`](Self::decode) gives, but for one
    /// case: where a vocabulary has tokens for single bytes (`<0x80>`), a byte
    /// that fits nowhere turns all bytes beside it into U+FFFD. Characters that
    /// were given out before it came stay.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self, &[])
    }

    /// A stream of what follows after `prompt`: its pieces joined are what
    /// [`decode`](Self::decode) gives for all ids, without what it gives for
    /// the prompt alone. Where a tokenizer puts a space before a text and takes
    /// it away again, as Llama 2's does, the first word of a continuation keeps
    /// its space so.
    pub fn stream_after(&self, prompt: &[u32]) -> DecodeStream<'_> {
        DecodeStream::new(self, prompt)
    }

    /// The id of a token by its text, if the vocabulary and the model have it.
    pub fn id(&self, token: &str) -> Option<u32> {
        let id = self.inner.token_to_id(token)?;
        self.limit
            .is_none_or(|limit| (id as usize) < limit)
            .then_some(id)
    }

    /// The token after which a text is over, if the vocabulary has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokenizer as the text of a `tokenizer.json`; the same bytes for the
    /// same tokenizer.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`].
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.inner
            .to_string(false)
            .map_err(|e| TokenizerError::Failed {
                what: "being written as JSON",
                reason: e.to_string(),
            })
    }
}

/// The bytes of an id; none for one that the vocabulary does not have.
fn bytes_of(table: &HashMap<u32, Box<[u8]>>, id: u32) -> &[u8] {
    table.get(&id).map(AsRef::as_ref).unwrap_or_default()
}

fn half(folder: &Path, found: &'static str, missing: &'static str) -> TokenizerError {
    TokenizerError::Half {
        folder: folder.to_owned(),
        found,
        missing,
    }
}

fn read(path: &Path) -> Result<String, TokenizerError> {
    std::fs::read_to_string(path).map_err(|source| TokenizerError::Io {
        path: path.to_owned(),
        source,
    })
}

/// The settings in a JSON file; none if there is no such file.
fn settings(path: &Path) -> Result<Settings, TokenizerError> {
    if !path.is_file() {
        return Ok(Settings::default());
    }
    Settings::from_json(&read(path)?).map_err(|e| TokenizerError::Malformed {
        file: path.display().to_string(),
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests;
