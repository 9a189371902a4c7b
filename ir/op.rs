//! The closed set of operations and the table that describes them.
//!
//! An op is described in three places that stand side by side and that the
//! compiler keeps exhaustive: its name, arity and attributes here, its typing
//! rule in [`crate::infer`](mod@crate::infer), its meaning in [`crate::interp`]. Every value has
//! exactly one defining op, and every op exactly one result.
//!
//! *Primitive* ops are what model builders emit. *Fused* ops are ordinary ops
//! that passes introduce; [`crate::decompose`] gives each one's meaning in
//! primitive ops, and the interpreter evaluates them by their own definition,
//! so that one checks the other.

mod attrs;

use std::fmt;

use crate::dim::Dim;
use crate::types::{DType, TensorType};

pub use attrs::Attr;

/// An elementwise function of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnaryOp {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// Natural logarithm.
    Log,
    /// Hyperbolic tangent.
    Tanh,
    /// The error function.
    Erf,
    /// Square root.
    Sqrt,
    /// `1 / sqrt(x)`
    Rsqrt,
    /// `|x|`
    Abs,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Logical negation of a truth value.
    Not,
}

/// An elementwise function of two operands, which broadcast as in NumPy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The larger.
    Max,
    /// The smaller.
    Min,
    /// `a` to the power of `b`; a whole `b` allows a negative `a`.
    Pow,
    /// `a < b`
    Lt,
    /// `a <= b`
    Le,
    /// `a > b`
    Gt,
    /// `a >= b`
    Ge,
    /// `a == b`
    Eq,
    /// Both of two truth values.
    And,
    /// Either of two truth values.
    Or,
}

/// A reduction along one axis, which stays with size one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The arithmetic mean.
    Mean,
    /// The largest element.
    Max,
}

/// A nonlinearity that a fused op applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// GELU in its tanh approximation:
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// GELU with the error function: `x/2 * (1 + erf(x / sqrt(2)))`.
    GeluErf,
    /// `max(x, 0)`
    Relu,
    /// `x / (1 + e^-x)`
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

/// A normalisation over the last axis that a fused op applies to its input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// `(x - mean) / sqrt(var + eps) * gain + bias`, biased variance; takes
    /// two operands, gain and bias.
    Layer {
        /// Added to the variance.
        eps: f64,
    },
    /// `x / sqrt(mean(x^2) + eps) * gain`; takes one operand, the gain.
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
}

impl Norm {
    /// How many operands follow the normalised input.
    pub fn operands(self) -> usize {
        match self {
            Norm::Layer { .. } => 2,
            Norm::Rms { .. } => 1,
        }
    }

    /// The epsilon.
    pub fn eps(self) -> f64 {
        match self {
            Norm::Layer { eps } | Norm::Rms { eps } => eps,
        }
    }
}

/// One step of a linear op's epilogue, applied in order to the accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Adds an operand that broadcasts to the output: a bias `[out]`, or a
    /// residual of the output's shape.
    Add,
    /// Multiplies by an operand that broadcasts to the output.
    Mul,
    /// Applies a nonlinearity; takes no operand.
    Act(Activation),
}

impl Step {
    /// Whether the step takes an operand.
    pub fn has_operand(self) -> bool {
        !matches!(self, Step::Act(_))
    }
}

/// A constant scalar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A real number.
    F32(f64),
    /// An integer.
    I32(i32),
    /// A truth value.
    Bool(bool),
}

impl Scalar {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Scalar::F32(_) => DType::F32,
            Scalar::I32(_) => DType::I32,
            Scalar::Bool(_) => DType::Bool,
        }
    }
}

/// The number that stands for "minus infinity" in masks: the most negative
/// finite `f32`. Shaders may assume that infinities do not occur.
pub const MASK_VALUE: f64 = f32::MIN as f64;

/// What computes a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    // Leaves
    /// A parameter, supplied once, under a dotted name.
    Param {
        /// Dotted name, unique in the graph.
        name: String,
        /// Type.
        ty: TensorType,
    },
    /// An input, supplied with every run.
    Input {
        /// Name, unique among the inputs.
        name: String,
        /// Type.
        ty: TensorType,
    },
    /// The value of a state before the run; see [`crate::Graph::set_state`].
    State {
        /// Name, unique among the states.
        name: String,
        /// Type.
        ty: TensorType,
    },
    /// A scalar constant. Broadcasting makes larger ones.
    Const(Scalar),
    /// Constants in a row, `f32[n]`: what follows from a model's configuration
    /// and is no weight, such as the frequencies of a rotary embedding.
    Table(Vec<f64>),
    /// `start, start + 1, ..., end - 1` as `i32[end - start]`.
    Arange {
        /// First element.
        start: Dim,
        /// One past the last element.
        end: Dim,
    },

    // Elementwise
    /// `f(x)`
    Unary(UnaryOp),
    /// `f(a, b)`
    Binary(BinaryOp),
    /// `if condition { a } else { b }`, all three broadcast.
    Where,
    /// The nearest value of another element type (towards zero from `f32` to
    /// `i32`).
    Cast(DType),

    // Movement
    /// The same elements in the same order under another shape.
    Reshape {
        /// The new shape.
        shape: Vec<Dim>,
    },
    /// Axes reordered: output axis `i` is input axis `perm[i]`.
    Transpose {
        /// A permutation of `0..rank`.
        perm: Vec<usize>,
    },
    /// Broadcast to a shape, as in NumPy.
    Broadcast {
        /// The new shape.
        shape: Vec<Dim>,
    },
    /// `start..end` of one axis.
    Slice {
        /// The axis.
        axis: usize,
        /// First index.
        start: Dim,
        /// One past the last index.
        end: Dim,
    },
    /// Operands one after the other along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// Rows of a table: `(table[n, ...], ids i32[...]) -> [ids..., ...]`. An id
    /// outside the table is clamped to it.
    Gather,

    // Contractions and reductions
    /// `(a[..., m, k], b[..., k, n]) -> [..., m, n]`, leading axes broadcast.
    MatMul,
    /// A reduction.
    Reduce {
        /// Which.
        op: ReduceOp,
        /// Along which axis, which stays with size one.
        axis: usize,
    },
    /// `e^(x - max) / sum` along an axis.
    Softmax {
        /// The axis.
        axis: usize,
    },

    // Fused
    /// A normalisation over the last axis:
    /// `(x, gain[n], bias[n])` or `(x, gain[n])`.
    Normalize(Norm),
    /// A nonlinearity.
    Activate(Activation),
    /// `epilogue(norm(x)[..., k] . w[n, k]^T) -> [..., n]`. Operands: `x`, `w`,
    /// those of the norm, then those of the steps.
    Linear {
        /// Applied to `x` first.
        norm: Option<Norm>,
        /// Applied to the result in order.
        steps: Vec<Step>,
    },
    /// Rotary position embedding (Su et al., <https://arxiv.org/abs/2104.09864>)
    /// of heads that lie side by side in the last axis: `(x[.., heads*d],
    /// cos[.., d/2], sin[.., d/2]) -> [.., heads*d]`, where the leading axes of
    /// `cos` and `sin` broadcast to those of `x`. Element `i` of a head's first
    /// half turns with element `i` of its second, as in GPT-NeoX and Llama:
    /// `(a, b)` becomes `(a cos - b sin, b cos + a sin)`.
    Rotary,
    /// Multi-head attention with the heads side by side in the last axis:
    /// `(q[b, n, heads*d], k[b, m, kv_heads*d], v[b, m, kv_heads*d]) ->
    /// [b, n, heads*d]`; query head `h` uses key head `h / (heads/kv_heads)`.
    /// An optional fourth operand `start i32[b]` hides keys before it. What a query
    /// gets that sees no key, one of padding, is finite and means nothing: the mean of
    /// all values from the interpreter and from primitive ops, 0 from kernels.
    Attention(AttentionSpec),
    /// The probabilities of [`Op::Attention`]: `(q, k[, start]) ->
    /// [b, heads, n, m]`.
    AttentionProbs(AttentionSpec),
}

/// The attributes of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Multiplies the scores.
    pub scale: f64,
    /// Whether query `i` of `n` sees key `j` of `m` only for `j <= i + m - n`.
    pub causal: bool,
    /// A sliding window: of the keys that causality leaves a query, it sees so many of
    /// the last, one at least. All, if `None`, as always where there is no causality.
    pub window: Option<usize>,
}

/// How many operands an op takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly this many.
    Exactly(usize),
    /// From the first to the second, inclusive.
    Between(usize, usize),
    /// At least this many.
    AtLeast(usize),
}

impl Arity {
    /// Whether `n` operands are right.
    pub fn accepts(self, n: usize) -> bool {
        match self {
            Arity::Exactly(k) => n == k,
            Arity::Between(a, b) => (a..=b).contains(&n),
            Arity::AtLeast(k) => n >= k,
        }
    }
}

impl fmt::Display for Arity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arity::Exactly(k) => write!(f, "{k}"),
            Arity::Between(a, b) => write!(f, "{a} to {b}"),
            Arity::AtLeast(k) => write!(f, "at least {k}"),
        }
    }
}

macro_rules! words {
    ($type:ty { $($word:literal => $value:expr),* $(,)? }) => {
        impl $type {
            /// Every value of this type.
            pub const ALL: &'static [Self] = &[$($value),*];

            /// The word for it in the text form.
            pub fn word(self) -> &'static str {
                $(if self == $value { return $word; })*
                ""
            }

            /// The value for a word of the text form.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some($value),)* _ => None }
            }
        }
    };
}

words!(UnaryOp {
    "neg" => UnaryOp::Neg, "exp" => UnaryOp::Exp, "log" => UnaryOp::Log,
    "tanh" => UnaryOp::Tanh, "erf" => UnaryOp::Erf, "sqrt" => UnaryOp::Sqrt,
    "rsqrt" => UnaryOp::Rsqrt, "abs" => UnaryOp::Abs, "sin" => UnaryOp::Sin,
    "cos" => UnaryOp::Cos, "not" => UnaryOp::Not,
});
words!(BinaryOp {
    "add" => BinaryOp::Add, "sub" => BinaryOp::Sub, "mul" => BinaryOp::Mul,
    "div" => BinaryOp::Div, "max" => BinaryOp::Max, "min" => BinaryOp::Min,
    "pow" => BinaryOp::Pow, "lt" => BinaryOp::Lt, "le" => BinaryOp::Le,
    "gt" => BinaryOp::Gt, "ge" => BinaryOp::Ge, "eq" => BinaryOp::Eq,
    "and" => BinaryOp::And, "or" => BinaryOp::Or,
});
words!(ReduceOp {
    "reduce_sum" => ReduceOp::Sum, "reduce_mean" => ReduceOp::Mean,
    "reduce_max" => ReduceOp::Max,
});
words!(Activation {
    "gelu_tanh" => Activation::GeluTanh, "gelu_erf" => Activation::GeluErf,
    "relu" => Activation::Relu, "silu" => Activation::Silu,
    "tanh" => Activation::Tanh,
});

impl BinaryOp {
    /// Whether the result is a truth value of two numbers.
    pub fn is_comparison(self) -> bool {
        use BinaryOp::{Eq, Ge, Gt, Le, Lt};
        matches!(self, Lt | Le | Gt | Ge | Eq)
    }

    /// Whether the operands may change places.
    pub fn is_commutative(self) -> bool {
        use BinaryOp::{Add, And, Eq, Max, Min, Mul, Or};
        matches!(self, Add | Mul | Max | Min | Eq | And | Or)
    }
}

impl Op {
    /// Calls `f` with every dimension among the op's attributes.
    pub(crate) fn for_each_dim(&mut self, f: &mut dyn FnMut(&mut Dim)) {
        match self {
            Op::Param { ty, .. } | Op::Input { ty, .. } | Op::State { ty, .. } => {
                ty.shape.iter_mut().for_each(f);
            }
            Op::Arange { start, end } | Op::Slice { start, end, .. } => {
                f(start);
                f(end);
            }
            Op::Reshape { shape } | Op::Broadcast { shape } => shape.iter_mut().for_each(f),
            Op::Const(_)
            | Op::Table(_)
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Where
            | Op::Cast(_)
            | Op::Transpose { .. }
            | Op::Concat { .. }
            | Op::Gather
            | Op::MatMul
            | Op::Reduce { .. }
            | Op::Softmax { .. }
            | Op::Normalize(_)
            | Op::Activate(_)
            | Op::Linear { .. }
            | Op::Rotary
            | Op::Attention(_)
            | Op::AttentionProbs(_) => {}
        }
    }

    /// The op's name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Param { .. } => "param",
            Op::Input { .. } => "input",
            Op::State { .. } => "state",
            Op::Const(_) => "const",
            Op::Table(_) => "table",
            Op::Arange { .. } => "arange",
            Op::Unary(op) => op.word(),
            Op::Binary(op) => op.word(),
            Op::Where => "where",
            Op::Cast(_) => "cast",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Broadcast { .. } => "broadcast",
            Op::Slice { .. } => "slice",
            Op::Concat { .. } => "concat",
            Op::Gather => "gather",
            Op::MatMul => "matmul",
            Op::Reduce { op, .. } => op.word(),
            Op::Softmax { .. } => "softmax",
            Op::Normalize(Norm::Layer { .. }) => "layer_norm",
            Op::Normalize(Norm::Rms { .. }) => "rms_norm",
            Op::Activate(_) => "activate",
            Op::Linear { .. } => "linear",
            Op::Rotary => "rotary",
            Op::Attention(_) => "attention",
            Op::AttentionProbs(_) => "attention_probs",
        }
    }

    /// How many operands the op takes.
    pub fn arity(&self) -> Arity {
        match self {
            Op::Param { .. }
            | Op::Input { .. }
            | Op::State { .. }
            | Op::Const(_)
            | Op::Table(_)
            | Op::Arange { .. } => Arity::Exactly(0),
            Op::Unary(_)
            | Op::Cast(_)
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Broadcast { .. }
            | Op::Slice { .. }
            | Op::Reduce { .. }
            | Op::Softmax { .. }
            | Op::Activate(_) => Arity::Exactly(1),
            Op::Binary(_) | Op::Gather | Op::MatMul => Arity::Exactly(2),
            Op::Where | Op::Rotary => Arity::Exactly(3),
            Op::Concat { .. } => Arity::AtLeast(1),
            Op::Normalize(norm) => Arity::Exactly(1 + norm.operands()),
            Op::Linear { norm, steps } => Arity::Exactly(
                2 + norm.map_or(0, Norm::operands)
                    + steps.iter().filter(|s| s.has_operand()).count(),
            ),
            Op::Attention(_) => Arity::Between(3, 4),
            Op::AttentionProbs(_) => Arity::Between(2, 3),
        }
    }

    /// Whether passes introduce the op, rather than builders.
    pub fn is_fused(&self) -> bool {
        matches!(
            self,
            Op::Normalize(_)
                | Op::Activate(_)
                | Op::Linear { .. }
                | Op::Rotary
                | Op::Attention(_)
                | Op::AttentionProbs(_)
        )
    }
}
