//! What can go wrong between a hub and its cache.

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::HFError;
use thiserror::Error;

use super::HubId;
use crate::checkpoint::{CheckpointError, INDEX_FILE, SINGLE_FILE};

/// Why a model could not be fetched. Every message names the id and says what
/// can be done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text is no id.
    #[error("`{id}` is no hub id, since {reason}; an id looks like `openai-community/gpt2`")]
    BadId {
        /// The text.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The client could not be made.
    #[error("cannot set up the hub client: {reason}; check HF_ENDPOINT")]
    Setup {
        /// What hf-hub said.
        reason: String,
    },
    /// There is no such model, or it is not shown.
    #[error(
        "{endpoint} has no model `{id}`; check the spelling, and if the model is private, \
         set HF_TOKEN to a token that may read it"
    )]
    NotFound {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
    },
    /// There is no such branch, tag or commit.
    #[error("model `{}` has no revision `{}`; see {endpoint}/{}/tree/main", id.repo(), id.revision(), id.repo())]
    NoRevision {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
    },
    /// The model's terms were not accepted.
    #[error(
        "model `{id}` is gated: accept its terms at {endpoint}/{} and set HF_TOKEN to a token of that account",
        id.repo()
    )]
    Gated {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
    },
    /// The model is there, but not in a format that is read.
    #[error("model `{id}` has no config.json, so it is none that kiln reads; see {endpoint}/{}", id.repo())]
    NoConfig {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
    },
    /// The weights are in another format.
    #[error(
        "model `{id}` has neither {SINGLE_FILE} nor {INDEX_FILE}; look at {endpoint}/{} for a version \
         with safetensors, or convert it with transformers' \
         `save_pretrained(folder, safe_serialization=True)`",
        id.repo()
    )]
    NoSafetensors {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
    },
    /// A shard is not there.
    #[error(
        "model `{id}` has no file {shard}, which its index names; tell its owner, or try another revision"
    )]
    NoShard {
        /// The model.
        id: HubId,
        /// The shard.
        shard: String,
    },
    /// The index of the shards cannot be followed.
    #[error(transparent)]
    Index(#[from] CheckpointError),
    /// The hub was not to be asked, and the cache has not the model.
    #[error(
        "model `{id}` is not in the cache, and HF_HUB_OFFLINE forbids fetching it; unset that to fetch it"
    )]
    NotCached {
        /// The model.
        id: HubId,
    },
    /// The hub was not to be asked, and the cache has not all of the model.
    #[error(
        "the cache has only part of model `{id}` but not its {file}, and HF_HUB_OFFLINE forbids fetching that; \
         unset it to fetch the rest"
    )]
    PartlyCached {
        /// The model.
        id: HubId,
        /// The first file that is missing.
        file: String,
    },
    /// The hub could not be asked for a tokenizer, and the cache has none.
    #[error(
        "the cache has model `{id}` without a tokenizer, and the hub cannot be asked for one ({reason}); \
         fetch it while the hub can be reached, or give the folder {} instead of the id to run \
         without one",
        folder.display()
    )]
    NoTokenizerCached {
        /// The model.
        id: HubId,
        /// Where the cache has it.
        folder: PathBuf,
        /// Why the hub cannot be asked.
        reason: String,
    },
    /// No connection.
    #[error(
        "cannot reach {endpoint} to fetch {file} of `{id}`: {reason}; check the network (and HF_ENDPOINT), \
         or give the path of a folder that has the model"
    )]
    Unreachable {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
        /// The file.
        file: String,
        /// What the network said.
        reason: String,
    },
    /// Fewer, or other, bytes came than were announced.
    #[error("{file} of `{id}` came with {found} bytes where {wanted} were announced; try again")]
    Incomplete {
        /// The model.
        id: HubId,
        /// The file.
        file: String,
        /// The bytes that came.
        found: u64,
        /// The bytes that should have.
        wanted: u64,
    },
    /// Too many requests.
    #[error(
        "{endpoint} refuses further requests for `{id}` for now; try again {}, or set HF_TOKEN for a higher limit",
        match retry_after {
            Some(wait) => format!("in {} s", wait.as_secs()),
            None => "later".to_owned(),
        }
    )]
    RateLimited {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
        /// How long the hub asks to wait.
        retry_after: Option<Duration>,
    },
    /// The cache cannot be read or written.
    #[error("cannot use {} in the hub's cache: {source}; HF_HOME says where the cache is", path.display())]
    Cache {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Anything else.
    #[error("fetching {file} of `{id}` failed: {source}")]
    Other {
        /// The model.
        id: HubId,
        /// The file.
        file: String,
        /// What hf-hub said.
        #[source]
        source: HFError,
    },
}

impl HubError {
    pub(super) fn setup(error: HFError) -> Self {
        HubError::Setup {
            reason: error.to_string(),
        }
    }

    /// What hf-hub's error means for the person who asked for `file` of `id`.
    pub(super) fn from_hf(id: &HubId, endpoint: &str, file: &str, error: HFError) -> Self {
        let (id, endpoint, file) = (id.clone(), endpoint.to_owned(), file.to_owned());
        match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                // A hub hides what it does not show behind the same answer as
                // what it does not have; only the terms have a code.
                match context.error_code.as_deref() {
                    Some("GatedRepo") => HubError::Gated { id, endpoint },
                    _ => HubError::NotFound { id, endpoint },
                }
            }
            HFError::RepoNotFound { .. } => HubError::NotFound { id, endpoint },
            HFError::RevisionNotFound { .. } => HubError::NoRevision { id, endpoint },
            HFError::RateLimited { retry_after, .. } => HubError::RateLimited {
                id,
                endpoint,
                retry_after,
            },
            HFError::Request { source, .. } => HubError::Unreachable {
                id,
                endpoint,
                file,
                reason: innermost(&source),
            },
            HFError::Http { context } if context.status.is_server_error() => {
                HubError::Unreachable {
                    id,
                    endpoint,
                    file,
                    reason: format!("it answered {}", context.status),
                }
            }
            HFError::Io(source) => HubError::Cache {
                path: file.into(),
                source,
            },
            source => HubError::Other { id, file, source },
        }
    }
}

/// The cause at the bottom, which says most: "connection refused" rather than
/// "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
