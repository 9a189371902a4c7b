//! What can go wrong, each case with what a person needs to mend it.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use kiln_ir::DimError;
use kiln_ir::plan::{BATCH, CONTEXT, PAST, SEQ};

use crate::sampling::SamplingError;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a part that this crate does not know.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a file differs from what the plan lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Altered {
    /// It is not there.
    Missing,
    /// Its content has another hash.
    Altered,
}

impl std::fmt::Display for Altered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Altered::Missing => "missing",
            Altered::Altered => "altered",
        })
    }
}

/// Why something could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the artifact is absent or changed.
    #[error(
        "`{file}` of the artifact `{}` is {how}; compile it again or copy the whole folder again",
        artifact.display()
    )]
    File {
        /// The artifact.
        artifact: PathBuf,
        /// The file, relative to the artifact.
        file: String,
        /// What is wrong with it.
        how: Altered,
    },
    /// The plan has a format this runtime does not know.
    #[error(
        "the plan has format version {found}, this kiln reads version {supported}; \
         compile the model again with this kiln"
    )]
    Version {
        /// The plan's version.
        found: u64,
        /// The version that is understood.
        supported: u32,
    },
    /// The artifact has no such text.
    #[error(
        "the artifact has no text `{file}`; `Artifact::kernel_files` and `graph_files` name those \
         that it has"
    )]
    NoSuchText {
        /// What was asked for.
        file: String,
    },
    /// The plan is not what its format demands.
    #[error("the plan is not valid: {0}")]
    Plan(String),
    /// A weight cannot be had.
    #[error("weight `{name}`: {reason}")]
    Weight {
        /// Its name in the weight file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// No adapter at all.
    #[error(
        "no graphics adapter was found. Install a driver: your GPU's Vulkan driver, or a software \
         one (on Debian and Ubuntu: `apt-get install mesa-vulkan-drivers`). Or use `--device cpu`, \
         which needs none and is slow"
    )]
    NoAdapter,
    /// No adapter fits the selector.
    #[error("no adapter is called `{selector}`; there are: {available}")]
    NoSuchAdapter {
        /// What was asked for.
        selector: String,
        /// What there is.
        available: String,
    },
    /// The adapter refused to open.
    #[error("the adapter {adapter} cannot be opened: {reason}")]
    Open {
        /// The adapter.
        adapter: String,
        /// The driver's reason.
        reason: String,
    },
    /// The device is gone.
    #[error(
        "the device was lost ({reason}); a driver restart, a removed device or a launch that took \
         too long can cause this"
    )]
    DeviceLost {
        /// The driver's reason.
        reason: String,
    },
    /// The device's memory does not suffice.
    #[error("out of device memory for {what}; a smaller batch or --max-context takes less")]
    OutOfMemory {
        /// What was to be allocated or done.
        what: String,
    },
    /// wgpu or the driver refused an operation.
    #[error("{what} was refused: {message}")]
    Refused {
        /// What was to be done.
        what: String,
        /// The reason.
        message: String,
    },
    /// There is no tier of this name.
    #[error("the artifact has no tier `{name}`; it has: {available}")]
    NoSuchTier {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// The adapter cannot run a tier.
    #[error("the adapter {adapter} cannot run the tier `{tier}`: it lacks {lacks}")]
    TierUnsupported {
        /// The tier.
        tier: String,
        /// The adapter.
        adapter: String,
        /// The missing features and limits.
        lacks: String,
    },
    /// The adapter cannot run any tier.
    #[error("the adapter {adapter} cannot run this artifact: {reasons}")]
    NoTier {
        /// The adapter.
        adapter: String,
        /// For each tier what is missing.
        reasons: String,
    },
    /// The adapter's driver does not do what a tier relies on.
    #[error(
        "the driver of {adapter} fails the check `{kernel}` of the tier `{tier}`: {reason}; without \
         --tier, kiln chooses another"
    )]
    Untrusted {
        /// The tier.
        tier: String,
        /// The adapter.
        adapter: String,
        /// The kernel that checks it.
        kernel: String,
        /// What is wrong.
        reason: String,
    },
    /// Something needs more than the adapter offers.
    #[error("{what} needs {limit} = {wanted}, the adapter offers {offered}; {advice}")]
    Limit {
        /// What exceeds the limit.
        what: String,
        /// The limit's WebGPU name in snake case.
        limit: &'static str,
        /// What is needed.
        wanted: u64,
        /// What there is.
        offered: u64,
        /// What to do.
        advice: &'static str,
    },
    /// There is no entry of this name.
    #[error("the artifact has no entry `{name}`; it has: {available}")]
    NoSuchEntry {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// An entry was not among those that were loaded.
    #[error("the entry `{0}` was not loaded with the model")]
    NotLoaded(String),
    /// An input is absent or of the wrong size.
    #[error("input `{name}`: {reason}")]
    Input {
        /// The input.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An entry has no output of this name.
    #[error("the entry `{entry}` has no output `{name}`; it has: {available}")]
    NoSuchOutput {
        /// The entry.
        entry: String,
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// A size is over its maximum, or too small.
    #[error("{symbol} = {value} is outside {least} to {max}; {advice}")]
    Size {
        /// The symbol.
        symbol: String,
        /// The value asked for.
        value: u64,
        /// The least.
        least: u64,
        /// The inclusive maximum.
        max: u64,
        /// What to do.
        advice: &'static str,
    },
    /// A slice of the model's is not within its axis at these sizes.
    #[error(
        "`{name}` takes {range} of an axis, which is {found} of {size} elements at these sizes; the model \
         needs others"
    )]
    Slice {
        /// What is sliced, or what becomes of it, as the model calls it.
        name: String,
        /// The slice's ends, which depend on sizes.
        range: String,
        /// What they are.
        found: String,
        /// What the axis has.
        size: i128,
    },
    /// A session has no room for more tokens.
    #[error(
        "the context is full: {past} of {context} positions are taken and {wanted} more are wanted"
    )]
    ContextFull {
        /// The session's capacity.
        context: u64,
        /// Positions taken.
        past: u64,
        /// Positions wanted.
        wanted: u64,
    },
    /// A decoder should go back to where it has not been.
    #[error("cannot go back to position {to}, for only {taken} are taken")]
    Rewind {
        /// Positions taken.
        taken: u64,
        /// The position asked for.
        to: u64,
    },
    /// A token id is outside the vocabulary.
    #[error(
        "token {id} of sequence {sequence} at position {position} is outside the vocabulary of {vocab}"
    )]
    Token {
        /// The sequence, from 0.
        sequence: usize,
        /// The position, from 0.
        position: usize,
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab: u64,
    },
    /// The token ids are not a batch.
    #[error("{0}")]
    Ids(String),
    /// A dimension has no value.
    #[error("a size of the plan has no value: {0}")]
    Dim(#[from] DimError),
    /// Sampling options or logits are not usable.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A caller's decoder, weight source or callback failed.
    #[error("{0}")]
    Other(#[source] BoxError),
}

impl Error {
    /// That a symbol's value is outside what an artifact was compiled for, with what to do
    /// about it.
    pub fn size(symbol: &str, value: u64, within: RangeInclusive<u64>) -> Self {
        let (least, max) = within.into_inner();
        Error::Size {
            symbol: symbol.to_owned(),
            value,
            least,
            max,
            advice: match symbol {
                BATCH => "compile the model with a larger --max-batch, or run fewer at a time",
                SEQ | PAST | CONTEXT => {
                    "use fewer tokens, or compile the model with a larger --max-context"
                }
                _ => "compile the model for larger sizes",
            },
        }
    }

    pub(crate) fn plan(message: impl Into<String>) -> Self {
        Error::Plan(message.into())
    }

    /// Wraps an error of a part that this crate does not know, such as a
    /// [`Decoder`](crate::Decoder) of the caller's.
    pub fn other(error: impl Into<BoxError>) -> Self {
        Error::Other(error.into())
    }
}
