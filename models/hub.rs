//! Models from a hub, fetched into its usual cache.
//!
//! A hub id such as `openai-community/gpt2` (or `openai-community/gpt2@v1.0` for
//! a branch, tag or commit) becomes the path of a folder in the Hugging Face
//! layout. Only the files that kiln reads are fetched: `config.json`,
//! `generation_config.json`, the tokenizer's, the chat template's, and the safetensors. The crate
//! hf-hub does the fetching, into the cache that every Hugging Face tool shares,
//! and so the environment variables are the usual ones: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_TOKEN` and its kin. `HF_HUB_OFFLINE=1` keeps to what is in the cache.
//!
//! ```no_run
//! use kiln_models::hub::{Hub, HubId};
//!
//! let id = HubId::parse("openai-community/gpt2")?;
//! let hub = Hub::from_env()?.with_progress(|p| {
//!     let _ = (&p.file, p.done, p.total);
//! });
//! let folder = hub.fetch(&id)?;
//! # let _ = folder;
//! # Ok::<(), kiln_models::hub::HubError>(())
//! ```

mod error;
mod id;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::progress::{DownloadEvent, FileProgress, Progress, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync};

pub use error::HubError;
pub use id::HubId;

use crate::chat::{SPECIAL_TOKENS_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE};
use crate::checkpoint::{CONFIG_FILE, GENERATION_FILE, INDEX_FILE, SINGLE_FILE, shards_of_index};
use crate::config::Settings;
use crate::tokenizer::{
    ADDED_TOKENS_FILE, FAMILY as VOCAB_FAMILY, MERGES_FILE, TOKENIZER_FILE, VOCAB_FILE,
};

/// How far the fetching of one file has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubProgress {
    /// The file's name in the repository.
    pub file: String,
    /// The bytes that are here.
    pub done: u64,
    /// All bytes of the file; 0 while that is unknown.
    pub total: u64,
}

type Report = Arc<dyn Fn(HubProgress) + Send + Sync>;

/// A hub and its cache.
#[derive(Clone)]
pub struct Hub {
    client: HFClientSync,
    endpoint: String,
    offline: bool,
    report: Option<Report>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .finish()
    }
}

/// What to take instead of the environment's settings; `None` leaves them.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// The hub's address, `https://huggingface.co` by default.
    pub endpoint: Option<String>,
    /// The cache folder.
    pub cache: Option<PathBuf>,
    /// The access token.
    pub token: Option<String>,
    /// How often a request that failed in passing is tried again.
    pub retries: Option<usize>,
    /// Whether to keep to what is in the cache.
    pub offline: Option<bool>,
}

impl Hub {
    /// The hub that the environment's variables describe.
    ///
    /// # Errors
    ///
    /// [`HubError::Setup`], when `HF_ENDPOINT` is no address.
    pub fn from_env() -> Result<Self, HubError> {
        Self::new(HubOptions::default())
    }

    /// The hub that the environment's variables describe, but for `options`.
    ///
    /// # Errors
    ///
    /// [`HubError::Setup`], when the endpoint is no address.
    pub fn new(options: HubOptions) -> Result<Self, HubError> {
        let mut builder = HFClient::builder();
        if let Some(endpoint) = options.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(cache) = options.cache {
            builder = builder.cache_dir(cache);
        }
        if let Some(token) = options.token {
            builder = builder.token(token);
        }
        if let Some(retries) = options.retries {
            builder = builder.retry_max_attempts(retries);
        }
        let client = builder.build().map_err(HubError::setup)?;
        let endpoint = client.endpoint().to_owned();
        let offline = options.offline.unwrap_or_else(|| {
            std::env::var("HF_HUB_OFFLINE")
                .is_ok_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        });
        let client = HFClientSync::from_inner(client).map_err(HubError::setup)?;
        Ok(Hub {
            client,
            endpoint,
            offline,
            report: None,
        })
    }

    /// The same hub; `report` hears of every piece that arrives, from another
    /// thread. It should return at once.
    #[must_use]
    pub fn with_progress(mut self, report: impl Fn(HubProgress) + Send + Sync + 'static) -> Self {
        self.report = Some(Arc::new(report));
        self
    }

    /// Fetches what is not yet in the cache; gives the folder that holds the
    /// model. When the hub cannot be reached, a model that was fetched before
    /// is taken from the cache.
    ///
    /// # Errors
    ///
    /// [`HubError`]; its message names the id and says what can be done.
    pub fn fetch(&self, id: &HubId) -> Result<PathBuf, HubError> {
        let (owner, name) = hf_hub::split_id(id.repo());
        let mut fetch = Fetch {
            hub: self,
            id,
            repo: self.client.model(owner, name),
            revision: id.revision().to_owned(),
            fetched: Cell::new(false),
        };
        let Some(config) = fetch.file(CONFIG_FILE)? else {
            return Err(fetch.why_no_config());
        };
        let folder = config.parent().unwrap_or(Path::new("")).to_owned();
        // The rest is taken from the commit that the first file came from,
        // so that a push in between cannot mix two versions.
        if let Some(commit) = folder.file_name().and_then(|name| name.to_str()) {
            commit.clone_into(&mut fetch.revision);
        }
        fetch.weights()?;
        fetch.tokenizer(&folder, &family(&config)?)?;
        for name in [
            GENERATION_FILE,
            TOKENIZER_CONFIG_FILE,
            SPECIAL_TOKENS_FILE,
            TEMPLATE_FILE,
        ] {
            fetch.optional(name)?;
        }
        Ok(folder)
    }
}

/// The family that a model's `config.json` names; none if it is not to be had, which is said
/// when the model is opened.
fn family(config: &Path) -> Result<String, HubError> {
    let text = fs::read_to_string(config).map_err(|source| HubError::Cache {
        path: config.to_owned(),
        source,
    })?;
    let settings = Settings::parse(&text).ok();
    let family = settings
        .as_ref()
        .and_then(|s| s.get("model_type")?.as_str());
    Ok(family.unwrap_or_default().to_owned())
}

/// One model being fetched.
struct Fetch<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    repo: HFRepositorySync<RepoTypeModel>,
    revision: String,
    /// Whether a file came from the hub, which then can be reached.
    fetched: Cell<bool>,
}

impl Fetch<'_> {
    fn weights(&self) -> Result<(), HubError> {
        let index = match self.cached(INDEX_FILE) {
            // Who fetched the index found no single file, whether or not they
            // noted it; the hub need not be asked.
            Ok(index) if self.cached(SINGLE_FILE).is_err() => index,
            _ => {
                if self.file(SINGLE_FILE)?.is_some() {
                    return Ok(());
                }
                self.file(INDEX_FILE)?
                    .ok_or_else(|| HubError::NoSafetensors {
                        id: self.id.clone(),
                        endpoint: self.hub.endpoint.clone(),
                    })?
            }
        };
        let text = fs::read_to_string(&index).map_err(|source| HubError::Cache {
            path: index.clone(),
            source,
        })?;
        let shards = shards_of_index(&index, &text)?;
        for shard in shards {
            if self.file(&shard)?.is_none() {
                return Err(HubError::NoShard {
                    id: self.id.clone(),
                    shard,
                });
            }
        }
        Ok(())
    }

    /// A model may come without a tokenizer; whether it can do without one is
    /// not for the hub to say. But where the cache does not know, kiln must not
    /// take another tokenizer for it.
    fn tokenizer(&self, folder: &Path, family: &str) -> Result<(), HubError> {
        let not_asked = match self.file(TOKENIZER_FILE) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => None,
            Err(error) => Some(self.not_asked(error)?),
        };
        let mut found = Vec::new();
        for name in [VOCAB_FILE, MERGES_FILE, ADDED_TOKENS_FILE] {
            found.push(self.optional(name)?.is_some());
        }
        // These make a tokenizer for one family alone.
        let is_one = family == VOCAB_FAMILY && found[..2].iter().all(|found| *found);
        match not_asked {
            Some(reason) if !is_one => Err(HubError::NoTokenizerCached {
                id: self.id.clone(),
                folder: folder.to_owned(),
                reason,
            }),
            _ => Ok(()),
        }
    }

    /// Why the hub was not asked, if `error` says so and all that came before is
    /// from the cache too; else the error.
    fn not_asked(&self, error: HubError) -> Result<String, HubError> {
        match error {
            HubError::PartlyCached { .. } => Ok("HF_HUB_OFFLINE forbids it".to_owned()),
            HubError::Unreachable {
                endpoint, reason, ..
            } if !self.fetched.get() => Ok(format!("{endpoint} cannot be reached: {reason}")),
            other => Err(other),
        }
    }

    /// As [`file`](Self::file), for a file that a model can do without. Where
    /// all else comes from the cache and the hub cannot be asked, the cache has
    /// what there is.
    fn optional(&self, name: &str) -> Result<Option<PathBuf>, HubError> {
        self.file(name)
            .or_else(|error| self.not_asked(error).map(|_| None))
    }

    /// The file's path in the cache, where it now is; `None` when the model
    /// has no such file.
    fn file(&self, name: &str) -> Result<Option<PathBuf>, HubError> {
        // What the cache knows for certain about a commit needs no request,
        // that a file is not in it included.
        let cached = self.cached(name);
        let was_cached = cached.is_ok();
        match cached {
            Ok(path) if self.hub.offline || self.is_pinned() => return Ok(Some(path)),
            Err(HFError::EntryNotFound { .. }) if self.hub.offline || self.is_pinned() => {
                return Ok(None);
            }
            Err(HFError::LocalEntryNotFound { .. }) if self.hub.offline => {
                return match name {
                    CONFIG_FILE => Err(HubError::NotCached {
                        id: self.id.clone(),
                    }),
                    _ => Err(HubError::PartlyCached {
                        id: self.id.clone(),
                        file: name.to_owned(),
                    }),
                };
            }
            _ => {}
        }
        let expected = Arc::new(AtomicU64::new(0));
        let progress = Progress::new(Forward {
            file: name.to_owned(),
            expected: Arc::clone(&expected),
            done: AtomicU64::new(0),
            report: self.hub.report.clone(),
        });
        let fetched = self
            .repo
            .download_file()
            .filename(name)
            .revision(self.revision.as_str())
            .progress(progress)
            .send();
        match fetched {
            Ok(path) => {
                self.check_length(name, &path, expected.load(Ordering::Relaxed))?;
                if !was_cached {
                    self.fetched.set(true);
                }
                Ok(Some(path))
            }
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            Err(error) => Err(HubError::from_hf(self.id, &self.hub.endpoint, name, error)),
        }
    }

    fn cached(&self, name: &str) -> Result<PathBuf, HFError> {
        self.repo
            .download_file()
            .filename(name)
            .revision(self.revision.as_str())
            .local_files_only(true)
            .send()
    }

    /// Whether the revision is a commit, whose files never change.
    fn is_pinned(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// hf-hub stores whatever a server answers to the request for a file; an
    /// error page must not stay in the cache as weights.
    fn check_length(&self, name: &str, path: &Path, expected: u64) -> Result<(), HubError> {
        let cache = |source| HubError::Cache {
            path: path.to_owned(),
            source,
        };
        let found = fs::metadata(path).map_err(cache)?.len();
        if expected == 0 || found == expected {
            return Ok(());
        }
        // The path is a link to the content, where the system has links.
        let content = fs::canonicalize(path).map_err(cache)?;
        fs::remove_file(path).map_err(cache)?;
        if content != path {
            // Already gone where `path` was no link.
            let _ = fs::remove_file(content);
        }
        Err(HubError::Incomplete {
            id: self.id.clone(),
            file: name.to_owned(),
            found,
            wanted: expected,
        })
    }

    /// A hub answers alike when a model and when a file is not there; asks
    /// which it is.
    fn why_no_config(&self) -> HubError {
        let (id, endpoint) = (self.id.clone(), self.hub.endpoint.clone());
        match self.repo.exists().send() {
            Ok(true) => match self.repo.revision_exists().revision(id.revision()).send() {
                Ok(false) => HubError::NoRevision { id, endpoint },
                _ => HubError::NoConfig { id, endpoint },
            },
            _ => HubError::NotFound { id, endpoint },
        }
    }
}

/// Passes hf-hub's events on.
struct Forward {
    file: String,
    expected: Arc<AtomicU64>,
    /// What was told last to be done.
    done: AtomicU64,
    report: Option<Report>,
}

impl Forward {
    fn report(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        if let Some(report) = &self.report {
            report(HubProgress {
                file: self.file.clone(),
                done,
                total,
            });
        }
    }
}

impl ProgressHandler for Forward {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                self.expected.store(*total_bytes, Ordering::Relaxed);
                self.report(0, *total_bytes);
            }
            DownloadEvent::Progress { files } => {
                for FileProgress {
                    bytes_completed,
                    total_bytes,
                    ..
                } in files
                {
                    self.report(*bytes_completed, *total_bytes);
                }
            }
            DownloadEvent::AggregateProgress {
                bytes_completed,
                total_bytes,
                ..
            } => {
                self.report(*bytes_completed, *total_bytes);
            }
            // Of what the cache has already, nothing may have been said since the start; and a
            // server need not say how long a file is.
            DownloadEvent::Complete => {
                let all = [&self.expected, &self.done].map(|n| n.load(Ordering::Relaxed));
                let total = all[0].max(all[1]).max(1);
                self.report(total, total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_file_that_was_there_is_told_to_its_end() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let forward = Forward {
            file: "a".to_owned(),
            expected: Arc::default(),
            done: AtomicU64::default(),
            report: Some(Arc::new(move |p: HubProgress| {
                sink.lock().unwrap().push((p.done, p.total));
            })),
        };
        let start = DownloadEvent::Start {
            total_files: 1,
            total_bytes: 10,
        };
        for event in [start, DownloadEvent::Complete] {
            forward.on_progress(&ProgressEvent::Download(event));
        }
        assert_eq!(*told.lock().unwrap(), [(0, 10), (10, 10)]);
    }
}
