//! What ends a launch.

/// What a kernel did that ends its launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text is not WGSL, or nothing that the emulator knows.
    #[error("the kernel is not valid: {0}")]
    Invalid(String),
    /// The kernel uses something that is not emulated.
    #[error("{0} is not emulated")]
    Unsupported(String),
    /// The kernel has a binding that nothing was given for, or nothing of the kind.
    #[error("`{name}` is at binding {binding}, where no {what} is given")]
    Unbound {
        /// The variable.
        name: String,
        /// Its binding.
        binding: u32,
        /// What it has to be: `buffer` or `image`.
        what: &'static str,
    },
    /// An index lies beyond what it is an index of.
    #[error("`{name}` has {len} elements, and {who} uses number {index}")]
    OutOfBounds {
        /// The variable.
        name: String,
        /// The index.
        index: u64,
        /// The first that is too large.
        len: u64,
        /// Who uses it.
        who: Invocation,
    },
    /// Workgroup memory is read that was never written.
    #[error("{who} reads word {word} of `{name}`, which nobody has written")]
    Unwritten {
        /// The variable.
        name: String,
        /// Which of its scalars.
        word: usize,
        /// Who reads it.
        who: Invocation,
    },
    /// Two invocations use an element and nothing orders them.
    #[error("{who} {does} word {word} of `{name}`, which {other} {did}, and no barrier is between")]
    Race {
        /// The variable.
        name: String,
        /// Which of its scalars, or of its buffer's words.
        word: usize,
        /// Who comes second here.
        who: Invocation,
        /// `reads`, `writes`, or `changes` by an atomic.
        does: &'static str,
        /// Who came first.
        other: Invocation,
        /// `read`, `wrote` or `changed`.
        did: &'static str,
    },
    /// An operation of many that some of them do not reach.
    #[error("{what} is not reached by all that take part in it: {missing} is missing")]
    Divergent {
        /// The operation.
        what: &'static str,
        /// One that should be there.
        missing: Invocation,
    },
    /// An operation whose operands have to be the same for all that take part.
    #[error("{what} has operands that are not the same for all that take part in it")]
    NotUniform {
        /// The operation.
        what: &'static str,
    },
    /// A loop went round so often that it has no end, as far as can be told.
    #[error("a loop of `{function}` has gone round {rounds} times")]
    Endless {
        /// The function.
        function: String,
        /// How often.
        rounds: u64,
    },
}

/// An invocation, by its place in the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The workgroup, counted through the grid.
    pub workgroup: usize,
    /// Its index within it.
    pub index: usize,
}

impl std::fmt::Display for Invocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "invocation {} of workgroup {}",
            self.index, self.workgroup
        )
    }
}
