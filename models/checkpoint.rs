//! Checkpoints: the tensors of a model as someone stored them.
//!
//! A checkpoint is a folder in the Hugging Face layout, `config.json` beside
//! `model.safetensors` or beside `model.safetensors.index.json` and the shards
//! it names. The files are memory-mapped: opening one reads its header only,
//! and a tensor's bytes are paged in when they are converted.
//!
//! This module knows files and tensors and nothing of models: which tensors
//! there ought to be, and how they are laid out, is the business of
//! [`crate::adapter`].
//!
//! ```no_run
//! use kiln_models::checkpoint::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("models/gpt2")?;
//! for name in checkpoint.names() {
//!     if let Some(tensor) = checkpoint.tensor(name) {
//!         let _: (safetensors::Dtype, &[usize]) = (tensor.dtype, tensor.shape);
//!     }
//! }
//! # Ok::<(), kiln_models::checkpoint::CheckpointError>(())
//! ```

mod convert;
mod error;
mod header;
mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::Dtype;

pub use convert::{UnsupportedDtype, is_supported};
pub use error::{CheckpointError, HeaderProblem, IndexProblem};

/// The weights of a checkpoint that has a single file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a checkpoint that is split into shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The model's description, in every checkpoint.
pub const CONFIG_FILE: &str = "config.json";
/// How texts are generated with it, in some checkpoints.
pub const GENERATION_FILE: &str = "generation_config.json";

/// An opened checkpoint: the text of its `config.json` (and that of its
/// `generation_config.json`, if it has one) and its tensors.
#[derive(Debug)]
pub struct Checkpoint {
    origin: String,
    folder: Option<PathBuf>,
    config: String,
    generation_config: Option<String>,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Entry>,
}

/// One safetensors file.
#[derive(Debug)]
struct TensorFile {
    /// How messages call it: a path, or a name for bytes in memory.
    label: String,
    data: Data,
    /// Where the tensors' data begins; offsets in the header count from here.
    data_start: usize,
}

#[derive(Debug)]
enum Data {
    Mapped(Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map,
            Data::Static(bytes) => bytes,
            Data::Owned(bytes) => bytes,
        }
    }
}

/// Where a tensor is: offsets are relative to the file's `data_start` and have
/// been checked against the file's length.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A tensor as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    /// The name it is stored under.
    pub name: &'a str,
    /// The file that holds it.
    pub file: &'a str,
    /// The type of an element.
    pub dtype: Dtype,
    /// The stored shape, outermost dimension first.
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian. Nothing is promised about
    /// alignment.
    pub bytes: &'a [u8],
}

impl StoredTensor<'_> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Checkpoint {
    /// Opens the checkpoint in `folder` and reads the headers of its files.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`], when the folder has no `config.json` or no
    /// safetensors, when a file is truncated or malformed, when the index and
    /// the shards disagree, or when a tensor is stored twice.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            return Err(CheckpointError::NotAFolder {
                folder: folder.to_owned(),
            });
        }
        let config = read_text(&folder.join(CONFIG_FILE)).map_err(|error| match error {
            CheckpointError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                CheckpointError::NoConfig {
                    folder: folder.to_owned(),
                }
            }
            other => other,
        })?;
        let generation = folder.join(GENERATION_FILE);
        let generation_config = match generation.is_file() {
            true => Some(read_text(&generation)?),
            false => None,
        };
        let single = folder.join(SINGLE_FILE);
        let index = folder.join(INDEX_FILE);
        // As in transformers: where both are there, the single file is meant.
        let paths = if single.is_file() {
            None
        } else if index.is_file() {
            Some(index::read(&index)?)
        } else {
            return Err(CheckpointError::no_weights(folder));
        };
        let mut checkpoint = Checkpoint {
            origin: folder.display().to_string(),
            folder: Some(folder.to_owned()),
            config,
            generation_config,
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        match paths {
            None => checkpoint.add_path(&single)?,
            Some(weight_map) => {
                let shards = index::check_shards(&index, folder, &weight_map)?;
                for shard in &shards {
                    checkpoint.add_path(&folder.join(shard))?;
                }
                checkpoint.check_against_index(&index, folder, &weight_map)?;
            }
        }
        Ok(checkpoint)
    }

    /// A checkpoint from bytes that the program carries, such as the built-in
    /// model. `origin` is how messages call it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), for what can go wrong in a single file.
    pub fn from_static(
        origin: &str,
        config: &str,
        weights: &'static [u8],
    ) -> Result<Self, CheckpointError> {
        Self::from_data(origin, config, Data::Static(weights))
    }

    /// A checkpoint from bytes in memory. `origin` is how messages call it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), for what can go wrong in a single file.
    pub fn from_bytes(
        origin: &str,
        config: &str,
        weights: Vec<u8>,
    ) -> Result<Self, CheckpointError> {
        Self::from_data(origin, config, Data::Owned(weights))
    }

    fn from_data(origin: &str, config: &str, data: Data) -> Result<Self, CheckpointError> {
        let mut checkpoint = Checkpoint {
            origin: origin.to_owned(),
            folder: None,
            config: config.to_owned(),
            generation_config: None,
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        checkpoint.add_file(format!("{origin}/{SINGLE_FILE}"), data)?;
        Ok(checkpoint)
    }

    /// How messages call the checkpoint: the folder's path, or a given name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The folder it was opened from; `None` for bytes in memory.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The text of `config.json`, unparsed.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The text of `generation_config.json`, unparsed, if there is one.
    pub fn generation_config(&self) -> Option<&str> {
        self.generation_config.as_deref()
    }

    /// The names of all stored tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The stored tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let file = self.files.get(entry.file)?;
        let bytes = file
            .data
            .bytes()
            .get(file.data_start + entry.start..file.data_start + entry.end)?;
        Some(StoredTensor {
            name,
            file: &file.label,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes,
        })
    }

    /// The bytes that all stored tensors take together.
    pub fn data_len(&self) -> u64 {
        self.tensors
            .values()
            .map(|entry| (entry.end - entry.start) as u64)
            .sum()
    }

    fn add_path(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let io = |source| CheckpointError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // An empty file cannot be mapped on every system, and its message
        // should be about the file rather than about mapping.
        let data = if file.metadata().map_err(io)?.len() == 0 {
            Data::Static(&[])
        } else {
            Data::Mapped(map(&file).map_err(io)?)
        };
        self.add_file(path.display().to_string(), data)
    }

    fn add_file(&mut self, label: String, data: Data) -> Result<(), CheckpointError> {
        let parsed = header::parse(&label, data.bytes())?;
        let file = self.files.len();
        for tensor in parsed.tensors {
            let entry = Entry {
                file,
                dtype: tensor.info.dtype,
                shape: tensor.info.shape,
                start: tensor.info.data_offsets.0,
                end: tensor.info.data_offsets.1,
            };
            if let Some(first) = self.tensors.get(&tensor.name) {
                let first = self
                    .files
                    .get(first.file)
                    .map_or_else(|| label.clone(), |file| file.label.clone());
                return Err(CheckpointError::Duplicate {
                    tensor: tensor.name,
                    first,
                    second: label,
                });
            }
            self.tensors.insert(tensor.name, entry);
        }
        self.files.push(TensorFile {
            label,
            data,
            data_start: parsed.data_start,
        });
        Ok(())
    }

    /// Every tensor that the index lists must be in the shard it is said to
    /// be in.
    fn check_against_index(
        &self,
        index: &Path,
        folder: &Path,
        weight_map: &BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        for (tensor, shard) in weight_map {
            let expected = folder.join(shard).display().to_string();
            let found = self
                .tensors
                .get(tensor)
                .and_then(|entry| self.files.get(entry.file))
                .map(|file| file.label.as_str());
            if found != Some(expected.as_str()) {
                return Err(CheckpointError::Index {
                    index: index.to_owned(),
                    problem: IndexProblem::AbsentTensor {
                        tensor: tensor.clone(),
                        shard: shard.clone(),
                        found: found.map(str::to_owned),
                    },
                });
            }
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: a mapping is sound as long as nobody changes the file under it.
    // Checkpoints are written once and then only read; a program that rewrites
    // one while it is being compiled breaks its own input. Every reader of
    // mapped weights takes that risk, since the alternative is to copy
    // gigabytes. The mapping lives no longer than its `Checkpoint`.
    unsafe { Mmap::map(file) }
}

/// The shard files that the text of an index names, in order. `index` is how
/// messages call it.
///
/// # Errors
///
/// [`CheckpointError::Index`].
pub fn shards_of_index(index: &Path, text: &str) -> Result<BTreeSet<String>, CheckpointError> {
    match index::parse(text) {
        Ok(weight_map) => Ok(weight_map.into_values().collect()),
        Err(problem) => Err(CheckpointError::Index {
            index: index.to_owned(),
            problem,
        }),
    }
}

fn read_text(path: &Path) -> Result<String, CheckpointError> {
    std::fs::read_to_string(path).map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
