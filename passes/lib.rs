//! Graph to graph: clean-ups, and the fusions that turn a model's primitive ops
//! into the few ops that have kernels.
//!
//! A pass is a [`Pass`]; [`pipeline`] lists them all, top to bottom, in the
//! order in which they run; [`optimize`] runs the list and verifies the graph
//! after each pass. One file holds one pass.
//!
//! # Laws of rewriting
//!
//! - A rewrite never makes the program worse: a fused op replaces at least the
//!   work that it does, and nothing that it replaces is computed a second time.
//!   Where an intermediate of an idiom has another use, the idiom stays. (The one
//!   exception: attention probabilities that are an output come to be an op
//!   beside attention, for attention never writes them.)
//! - A rewrite keeps the numbers, up to the rounding of a reassociated constant.
//!   What must be equal, such as the offset of a causal mask, is compared
//!   exactly, as a symbolic dimension; what was typed by a person, such as
//!   `sqrt(2/pi)`, to six digits.
//! - A rewritten value keeps the source name of the value that it stands for, so
//!   that `h.3.attn.c_attn` can be found in every stage.
//! - One rule, one comment. A rule tests shapes and uses, never names.
//!
//! # Adding a pass
//!
//! A file with a [`Pass`], a line in [`pipeline`], and a folder `cases/NAME` with
//! graphs in the text form: before and after where it fires, one graph alone
//! where it must not. The tests run every case, and hold the numbers before and
//! after against each other with the reference interpreter; so they do with
//! random graphs and with the models' own.
//!
//! # Example
//!
//! ```
//! use kiln_ir::{DType, GraphBuilder, Op};
//!
//! let mut g = GraphBuilder::new("relu");
//! let x = g.input("x", DType::F32, [4u64])?;
//! let zero = g.f32(0.0)?;
//! let y = g.max(x, zero)?;
//! g.output("y", y)?;
//! let mut graph = g.finish();
//! let mut trace = Vec::new();
//! kiln_passes::optimize(&mut graph, &mut |name, _, changed| {
//!     if changed.any() {
//!         trace.push(name);
//!     }
//! })?;
//! assert_eq!(trace, ["fuse_activation"]);
//! assert!(graph.iter().any(|(_, v)| matches!(v.op, Op::Activate(_))));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention_heads;
mod attention_mask;
mod clean_up;
mod fold_constants;
mod fuse_activation;
mod fuse_attention;
mod fuse_epilogue;
mod fuse_linear;
mod fuse_norm;
mod fuse_norm_into_linear;
mod fuse_rotary;
pub mod matcher;
mod polynomial;
mod simplify_movement;
mod sink_slice;

use std::collections::BTreeMap;

use kiln_ir::verify::{VerifyErrors, verify};
use kiln_ir::{Graph, GraphError, Op, TensorType, ValueId};

pub use clean_up::{Cse, Dce};
pub use fold_constants::FoldConstants;
pub use fuse_activation::FuseActivation;
pub use fuse_attention::FuseAttention;
pub use fuse_epilogue::FuseEpilogue;
pub use fuse_linear::FuseLinear;
pub use fuse_norm::FuseNorm;
pub use fuse_norm_into_linear::FuseNormIntoLinear;
pub use fuse_rotary::FuseRotary;
pub use simplify_movement::SimplifyMovement;
pub use sink_slice::SinkSlice;

/// A step from a graph to a graph that computes the same.
pub trait Pass {
    /// The pass's name, as in `--print-after NAME`.
    fn name(&self) -> &'static str;

    /// Rewrites `graph`.
    ///
    /// # Errors
    /// When the pass builds a value that has no type, which is a bug in it, or
    /// when it cannot do its work.
    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError>;
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// How many rewrites it made; zero leaves the graph as it was.
    pub rewrites: usize,
}

impl Changed {
    /// Whether the graph is another one now.
    pub fn any(self) -> bool {
        self.rewrites > 0
    }
}

impl std::ops::AddAssign for Changed {
    fn add_assign(&mut self, other: Changed) {
        self.rewrites += other.rewrites;
    }
}

/// Why a pass failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// The pass built a value that has no type.
    #[error("pass `{pass}`: {error}")]
    Build {
        /// The pass.
        pass: &'static str,
        /// What the typing rules say.
        error: GraphError,
    },
    /// The graph that was handed in is not valid.
    #[error("before the first pass: {0}")]
    Input(VerifyErrors),
    /// The pass left a graph that the verifier refuses.
    #[error("after pass `{pass}`: {errors}")]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// All that the verifier says.
        errors: VerifyErrors,
    },
    /// The pass changed what the graph takes or gives.
    #[error(
        "after pass `{pass}`: {kind} `{name}`: expected {expected}, found {found}; a pass keeps \
         the names and types of inputs, outputs and states"
    )]
    Signature {
        /// The pass.
        pass: &'static str,
        /// Input, output, state, or a state's value after the run.
        kind: &'static str,
        /// The name.
        name: String,
        /// The type before the pass, or `none`.
        expected: String,
        /// The type after it, or `none`.
        found: String,
    },
    /// The pass cannot do its work, for a reason of its own.
    #[error("pass `{pass}`: {reason}")]
    Failed {
        /// The pass.
        pass: &'static str,
        /// A sentence.
        reason: String,
    },
}

/// Turns a typing error into the pass's own.
pub(crate) fn in_pass<T>(pass: &'static str, done: Result<T, GraphError>) -> Result<T, PassError> {
    done.map_err(|error| PassError::Build { pass, error })
}

/// Every pass, in the order in which they run.
pub fn pipeline() -> Vec<Box<dyn Pass>> {
    vec![
        // Bring what builders emit into one shape, so that the idioms below
        // need not know every way to write a constant or a view.
        Box::new(FoldConstants),
        Box::new(SimplifyMovement),
        Box::new(Cse),
        // Primitive idioms become ops that have kernels.
        Box::new(FuseNorm),
        Box::new(FuseActivation),
        Box::new(FuseLinear),
        Box::new(FuseRotary),
        Box::new(FuseAttention),
        // Only the last position of a prompt is wanted: compute no other.
        Box::new(SinkSlice),
        // Linear layers take in what stands around them.
        Box::new(FuseEpilogue),
        Box::new(FuseNormIntoLinear),
        Box::new(Dce),
    ]
}

/// Told after each pass: its name, the graph as it left it, and what it did.
pub type Observer<'a> = dyn FnMut(&'static str, &Graph, Changed) + 'a;

/// Runs the [`pipeline`] on `graph` and numbers its values anew.
///
/// # Errors
/// When the graph is not valid to begin with, or a pass fails or breaks it.
pub fn optimize(graph: &mut Graph, observer: &mut Observer<'_>) -> Result<(), PassError> {
    optimize_with(&pipeline(), graph, observer)
}

/// Runs `passes`, a pipeline of your own, on `graph`, verifying it before the
/// first and after each, and numbers its values anew.
///
/// A fusion of your own finds an idiom with a [`matcher::Matcher`], hands what
/// stands for it to [`matcher::rewrite`], and takes its place among the others:
///
/// ```
/// use kiln_ir::{BinaryOp, DType, Graph, GraphBuilder, Op, UnaryOp, ValueId};
/// use kiln_passes::matcher::{Matcher, rewrite};
/// use kiln_passes::{Changed, Pass, PassError, optimize_with, pipeline};
///
/// /// `log(e^x)` is `x`.
/// struct CancelLog;
///
/// impl Pass for CancelLog {
///     fn name(&self) -> &'static str {
///         "cancel_log"
///     }
///
///     fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
///         let find = |m: &Matcher<'_>, root: ValueId| {
///             let power = m.unary(root, UnaryOp::Log)?;
///             m.unary(power, UnaryOp::Exp)
///         };
///         rewrite(graph, find, |_, _, x| Ok(x)).map_err(|error| PassError::Build {
///             pass: self.name(),
///             error,
///         })
///     }
/// }
///
/// let mut g = GraphBuilder::new("example");
/// let x = g.input("x", DType::F32, [4u64])?;
/// let power = g.exp(x)?;
/// let y = g.log(power)?;
/// let z = g.add(y, x)?;
/// g.output("z", z)?;
/// let mut graph = g.finish();
///
/// let mut passes = pipeline();
/// passes.insert(0, Box::new(CancelLog));
/// optimize_with(&passes, &mut graph, &mut |_, _, _| {})?;
/// let left: Vec<&Op> = graph.iter().map(|(_, value)| &value.op).collect();
/// assert!(matches!(left[..], [Op::Input { .. }, Op::Binary(BinaryOp::Add)]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the graph is not valid to begin with, or a pass fails, breaks it, or changes the
/// names or types of its inputs, outputs or states.
pub fn optimize_with(
    passes: &[Box<dyn Pass>],
    graph: &mut Graph,
    observer: &mut Observer<'_>,
) -> Result<(), PassError> {
    verify(graph).map_err(PassError::Input)?;
    let wanted = signature(graph);
    for pass in passes {
        let (name, changed) = (pass.name(), pass.run(graph)?);
        verify(graph).map_err(|errors| PassError::Invalid { pass: name, errors })?;
        keeps(name, &wanted, &signature(graph))?;
        observer(name, graph, changed);
    }
    graph.compact();
    Ok(())
}

/// What callers of a graph know of it: by kind and name, the types of inputs, outputs
/// and states, before a run and after it.
type Signature = BTreeMap<(&'static str, String), TensorType>;

fn signature(graph: &Graph) -> Signature {
    let leaves = graph.iter().filter_map(|(_, value)| match &value.op {
        Op::Input { name, ty } => Some((("input", name.clone()), ty.clone())),
        Op::State { name, ty } => Some((("state", name.clone()), ty.clone())),
        _ => None,
    });
    let named = |kind, named: &[(String, ValueId)]| -> Vec<_> {
        let types = named.iter();
        types
            .map(|(name, id)| ((kind, name.clone()), graph.ty(*id).clone()))
            .collect()
    };
    leaves
        .chain(named("output", graph.outputs()))
        .chain(named("new value of state", graph.states()))
        .collect()
}

fn keeps(pass: &'static str, before: &Signature, after: &Signature) -> Result<(), PassError> {
    let mut names = before.keys().chain(after.keys());
    let changed = names.find(|name| before.get(name) != after.get(name));
    let Some((kind, name)) = changed else {
        return Ok(());
    };
    let of = |signature: &Signature| {
        let ty = signature.get(&(*kind, name.clone()));
        ty.map_or_else(|| "none".to_owned(), TensorType::to_string)
    };
    Err(PassError::Signature {
        pass,
        kind,
        name: name.clone(),
        expected: of(before),
        found: of(after),
    })
}
