//! What can be wrong with a checkpoint's files.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use thiserror::Error;

use super::{CONFIG_FILE, INDEX_FILE, SINGLE_FILE};

/// Why a checkpoint cannot be opened. Every message names the file and, where
/// there is one, the tensor, and says what would put it right.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The path is not a folder.
    #[error(
        "{} is not a folder; a checkpoint is a folder with {CONFIG_FILE} and {SINGLE_FILE} in it",
        folder.display()
    )]
    NotAFolder {
        /// The path that was given.
        folder: PathBuf,
    },

    /// There is no `config.json`.
    #[error(
        "{} has no {CONFIG_FILE}, which says what the model is; copy it from where the weights came from",
        folder.display()
    )]
    NoConfig {
        /// The checkpoint's folder.
        folder: PathBuf,
    },

    /// There are no safetensors.
    #[error(
        "{} has neither {SINGLE_FILE} nor {INDEX_FILE}{}",
        folder.display(),
        match other {
            Some(file) => format!(
                "; it has {file}, which kiln does not read: save the model again with \
                 `model.save_pretrained(folder, safe_serialization=True)`"
            ),
            None => "; copy the weights into it".to_owned(),
        }
    )]
    NoWeights {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// A file with weights in a format that is not read, if there is one.
        other: Option<String>,
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

    /// A file's header is no safetensors header.
    #[error("{file} is no safetensors file: {problem}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong with its header.
        problem: HeaderProblem,
    },

    /// A file ends before its tensors do.
    #[error(
        "{file} is truncated: tensor `{tensor}` ({dtype}, shape {shape:?}) ends at byte {wanted}, \
         the file at byte {found}{}; fetch or copy it again",
        and_more(*others)
    )]
    Truncated {
        /// The file.
        file: String,
        /// The first tensor, in the order of the data, that is cut off.
        tensor: String,
        /// The tensor's type.
        dtype: Dtype,
        /// The tensor's shape.
        shape: Vec<usize>,
        /// The file's length in bytes that this tensor asks for.
        wanted: u64,
        /// The file's length in bytes.
        found: u64,
        /// How many further tensors are cut off.
        others: usize,
    },

    /// A file goes on after its last tensor.
    #[error(
        "{file} holds {found} bytes, but its header describes {wanted}; \
         it has been altered: fetch or copy it again"
    )]
    TooLong {
        /// The file.
        file: String,
        /// The length in bytes that the header describes.
        wanted: u64,
        /// The file's length in bytes.
        found: u64,
    },

    /// A tensor's byte range does not fit its type and shape.
    #[error(
        "tensor `{tensor}` in {file} has {found} bytes, but {dtype} of shape {shape:?} takes {wanted}; \
         the header is corrupt: fetch or copy the file again"
    )]
    SizeMismatch {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The tensor's type.
        dtype: Dtype,
        /// The tensor's shape.
        shape: Vec<usize>,
        /// The bytes that type and shape ask for; `u64::MAX` when beyond it.
        wanted: u64,
        /// The bytes that the header gives it.
        found: u64,
    },

    /// A tensor's bytes do not begin where the previous tensor's end.
    #[error(
        "tensor `{tensor}` in {file} begins at byte {found} of the data where byte {wanted} was expected; \
         the header is corrupt: fetch or copy the file again"
    )]
    Misplaced {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where the previous tensor ends.
        wanted: u64,
        /// Where this one begins.
        found: u64,
    },

    /// A tensor is stored twice.
    #[error(
        "tensor `{tensor}` is stored twice, in {first} and in {second}; \
         remove one of them (a shard left over from an earlier save?)"
    )]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// The file that has it first.
        first: String,
        /// The file that has it again; may be the same.
        second: String,
    },

    /// The index of a sharded checkpoint cannot be followed.
    #[error("{}: {problem}", index.display())]
    Index {
        /// The index file.
        index: PathBuf,
        /// What is wrong.
        problem: IndexProblem,
    },
}

/// What is wrong with a safetensors header.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// The file is what git leaves when the weights themselves were not
    /// fetched.
    #[error("it is a Git LFS pointer; run `git lfs pull` in its folder")]
    LfsPointer,
    /// The file has no room for the header's length.
    #[error(
        "it is {found} bytes long, and the length of the header alone takes 8; fetch or copy it again"
    )]
    TooShort {
        /// The file's length in bytes.
        found: u64,
    },
    /// The header is said to be longer than the file.
    #[error(
        "its header should be {wanted} bytes long, and only {found} bytes follow; fetch or copy it again"
    )]
    HeaderCutOff {
        /// The length the file states.
        wanted: u64,
        /// The bytes there are.
        found: u64,
    },
    /// The header is said to be implausibly long.
    #[error(
        "its header should be {wanted} bytes long, where at most {limit} are allowed; fetch or copy it again"
    )]
    HeaderTooLong {
        /// The length the file states.
        wanted: u64,
        /// The limit of the format.
        limit: u64,
    },
    /// The header is not the JSON it should be.
    #[error("its header cannot be parsed: {0}; fetch or copy it again")]
    NotJson(#[source] serde_json::Error),
}

/// What is wrong with the index of a sharded checkpoint.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// The index is not the JSON it should be.
    #[error("the index cannot be parsed: {0}; fetch or copy it again")]
    NotJson(#[source] serde_json::Error),
    /// The index lists nothing.
    #[error("the index's `weight_map` lists no tensor; fetch or copy it again")]
    Empty,
    /// The index names a file outside the checkpoint.
    #[error(
        "the index puts tensor `{tensor}` into `{shard}`, which is no file name within the folder"
    )]
    BadShardName {
        /// A tensor that is said to be in it.
        tensor: String,
        /// The name.
        shard: String,
    },
    /// The index names a file that is not there.
    #[error(
        "the index puts {count} tensors, `{tensor}` among them, into `{shard}`, which is not there; \
         copy that shard into the folder"
    )]
    AbsentShard {
        /// The shard's file name.
        shard: String,
        /// One of its tensors.
        tensor: String,
        /// How many tensors it should hold.
        count: usize,
    },
    /// The index names a tensor that is not in its shard.
    #[error(
        "the index puts tensor `{tensor}` into `{shard}`, {}; \
         index and shards are from different saves: fetch or copy them again",
        match found {
            Some(file) => format!("but it is in {file}"),
            None => "which does not hold it".to_owned(),
        }
    )]
    AbsentTensor {
        /// The tensor.
        tensor: String,
        /// The shard it should be in.
        shard: String,
        /// The file it is in, if any.
        found: Option<String>,
    },
}

impl CheckpointError {
    /// `NoWeights`, with a hint about weights in another format.
    pub(super) fn no_weights(folder: &Path) -> Self {
        const OTHER_FORMATS: [&str; 6] = [
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.ckpt.index",
            "rust_model.ot",
        ];
        let other = OTHER_FORMATS
            .iter()
            .find(|name| folder.join(name).exists())
            .map(|name| (*name).to_owned());
        CheckpointError::NoWeights {
            folder: folder.to_owned(),
            other,
        }
    }
}

fn and_more(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => ", and 1 more tensor is cut off".to_owned(),
        n => format!(", and {n} more tensors are cut off"),
    }
}
