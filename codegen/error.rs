//! Why a graph could not be compiled.

use std::path::PathBuf;

use kiln_ir::{DimError, Packing, ParamError};

/// An error of the code generator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodegenError {
    /// A construct that no kernel exists for.
    #[error("`{value}` ({op}{}) cannot be compiled: {reason}", at(source_name))]
    Unsupported {
        /// The value, in text form.
        value: String,
        /// The op's name.
        op: &'static str,
        /// The module it comes from.
        source_name: String,
        /// What is missing.
        reason: String,
    },
    /// The graphs of one model disagree.
    #[error("the model's entry points disagree about {what} `{name}`: {found} and {other}")]
    Conflict {
        /// Parameter, state or symbol.
        what: &'static str,
        /// Its name.
        name: String,
        /// In one entry.
        found: String,
        /// In another.
        other: String,
    },
    /// A name that cannot be used.
    #[error("{what} `{name}` cannot be compiled: {reason}")]
    Name {
        /// Graph, symbol or parameter.
        what: &'static str,
        /// Its name.
        name: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A launch would bind more than devices have to let it.
    #[error(
        "`{label}` of entry `{entry}` binds {found} buffers in one launch, but devices need only \
         support {most}; make some of the values that it reads outputs, so that they are computed \
         beforehand"
    )]
    TooManyBuffers {
        /// The entry.
        entry: String,
        /// The launch.
        label: String,
        /// What it would bind.
        found: usize,
        /// What it may.
        most: u64,
    },
    /// A buffer would not fit a binding at the symbols' maxima.
    #[error(
        "buffer `{buffer}` of entry `{entry}` takes {bytes} bytes at the symbols' maxima, over the \
         binding limit of {limit}; compile for a smaller batch or context"
    )]
    TooLarge {
        /// The entry.
        entry: String,
        /// The buffer.
        buffer: String,
        /// What it takes.
        bytes: u64,
        /// What a binding may take.
        limit: u64,
    },
    /// Weights that cannot be split further do not fit a binding.
    #[error(
        "{what} of parameter `{name}` need a buffer of {bytes} bytes, over the binding limit of \
         {limit}; compile with a binding limit of at least {bytes}"
    )]
    WeightTooLarge {
        /// How much of the parameter.
        what: String,
        /// Its dotted name; several that share a buffer are joined by `+`.
        name: String,
        /// What it takes.
        bytes: u64,
        /// What a binding may take.
        limit: u64,
    },
    /// No kernel can make use of such a binding limit.
    #[error(
        "the binding limit is {found} bytes, but kernels address bytes in 32 bits; choose one \
         of at most {most}"
    )]
    BindingLimit {
        /// The limit.
        found: u64,
        /// The most it may be.
        most: u64,
    },
    /// Arrivals at a barrier are counted modulo 2^32.
    #[error(
        "a grid of {found} workgroups is not possible: the number must be a power of two, or 0 for \
         no grids"
    )]
    Grid {
        /// The number.
        found: u32,
    },
    /// A kernel's body cannot be made a part of a joined kernel.
    #[error(
        "the body `{body}` has no entry point `@compute @workgroup_size(WORKGROUP) fn main` of \
         builtins that name a workgroup, invocation or subgroup; write one, or compile without \
         joined launches (a grid of 0)"
    )]
    Join {
        /// The archetype.
        body: String,
    },
    /// A dimension could not be evaluated.
    #[error(transparent)]
    Dim(#[from] DimError),
    /// A generated kernel is not valid WGSL: a bug in the generator.
    #[error("kernel `{kernel}` is not valid for tier `{tier}`:\n{message}")]
    InvalidKernel {
        /// The kernel.
        kernel: String,
        /// The tier.
        tier: String,
        /// What naga says.
        message: String,
    },
    /// A kernel could not be translated.
    #[error("kernel `{kernel}` does not translate to {target}: {message}")]
    Translate {
        /// The kernel.
        kernel: String,
        /// The language.
        target: &'static str,
        /// What naga says.
        message: String,
    },
    /// A parameter could not be read.
    #[error("parameter `{name}`: {source}")]
    Param {
        /// Its dotted name.
        name: String,
        /// Why.
        source: ParamError,
    },
    /// A parameter has a weight that is not to be had in a packing.
    #[error(
        "parameter `{name}` has the weight {value}, but {} holds numbers up to {most}; compile with \
         --dtype f32",
        packing.name()
    )]
    ParamValue {
        /// Its dotted name.
        name: String,
        /// The weight.
        value: f32,
        /// The packing.
        packing: Packing,
        /// The largest that it holds.
        most: f32,
    },
    /// A parameter has a weight that is no number.
    #[error(
        "parameter `{name}` has a weight that is not a finite number ({value}); the checkpoint may \
         be damaged"
    )]
    NoNumber {
        /// Its dotted name.
        name: String,
        /// The weight.
        value: f32,
    },
    /// A parameter has another number of elements than its type.
    #[error("parameter `{name}` has {found} elements, expected {expected}")]
    ParamSize {
        /// Its dotted name.
        name: String,
        /// How many there are.
        found: usize,
        /// How many the graph wants.
        expected: u64,
    },
    /// A file could not be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that should go with a model has a name that an artifact's own files have, or
    /// one that is no file's beside them.
    #[error(
        "`{name}` cannot go with a model: give it the name of a file that no part of the model has"
    )]
    Companion {
        /// Its name.
        name: String,
    },
    /// What stands where an artifact should be written may not be replaced.
    #[error(
        "`{}` exists and {what}, so it is not replaced; choose another name, or move or remove \
         what is there",
        path.display()
    )]
    Occupied {
        /// The file or folder.
        path: PathBuf,
        /// What is in the way.
        what: String,
    },
    /// An artifact could be moved out of the way, but neither replaced nor moved back.
    #[error(
        "cannot put the new folder at `{}`: {source}; the one that was there is now `{}`",
        path.display(),
        old.display()
    )]
    Displaced {
        /// Where the new artifact should be.
        path: PathBuf,
        /// Where the old one is.
        old: PathBuf,
        /// Why it could not be replaced.
        source: std::io::Error,
    },
    /// The plan has no weight buffer of this name.
    #[error("the plan has no weight `{name}`")]
    NoSuchWeight {
        /// The name.
        name: String,
    },
    /// There is no tier of this name.
    #[error("there is no tier `{name}`; for these weights there are {available}")]
    NoSuchTier {
        /// The name.
        name: String,
        /// The tiers that there are.
        available: String,
    },
    /// Two values share a buffer while both are needed: a bug in the generator.
    #[error(
        "in entry `{entry}`, `{first}` and `{second}` share a buffer while both are needed, which \
         is a bug in kiln"
    )]
    Overlap {
        /// The entry.
        entry: String,
        /// One value.
        first: String,
        /// The other.
        second: String,
    },
    /// A body was given for an archetype that kiln does not have.
    #[error("there is no kernel archetype `{name}`; the archetypes are {available}")]
    NoSuchBody {
        /// The name.
        name: String,
        /// The archetypes that there are.
        available: String,
    },
    /// The plan breaks an invariant: a bug in the generator.
    #[error("this is a bug in kiln: {0}")]
    Plan(#[from] kiln_ir::plan::verify::PlanErrors),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] kiln_passes::PassError),
}

fn at(source: &str) -> String {
    if source.is_empty() {
        String::new()
    } else {
        format!(" in `{source}`")
    }
}
