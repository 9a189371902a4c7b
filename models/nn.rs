//! Building blocks of models.
//!
//! A module knows its name and its sizes. Its `forward` takes the builder and
//! values, and gives back a value; parameters are named after the modules
//! around them (`h.3.attn.c_attn.weight`). Modules emit primitive ops and
//! nothing else: finding layer norms and attention among them, and fusing
//! those, is the compiler's work.
//!
//! ```
//! use kiln_ir::{Activation, DType, GraphBuilder};
//! use kiln_models::nn::{self, Linear};
//!
//! let mut g = GraphBuilder::new("mlp");
//! let n = g.symbol("n", 16)?;
//! let x = g.input("x", DType::F32, [n, 8.into()])?;
//!
//! let up = Linear::new("up", 8, 32).forward(&mut g, x)?;
//! let active = nn::activation(&mut g, Activation::GeluTanh, up)?;
//! let down = Linear::new("down", 32, 8).forward(&mut g, active)?;
//! g.output("y", down)?;
//!
//! let graph = g.finish();
//! let parameters: Vec<&str> = graph.params().map(|(name, _)| name).collect();
//! assert_eq!(parameters, ["up.weight", "up.bias", "down.weight", "down.bias"]);
//! # Ok::<(), kiln_ir::GraphError>(())
//! ```

mod activation;
mod attention;
mod embedding;
mod gated;
mod grouped;
mod linear;
mod norm;
mod rotary;
mod sequential;
mod span;

use kiln_ir::{GraphError, ValueId};

pub use activation::activation;
pub use attention::{Attended, attention, heads_apart, merge_heads, repeat_heads, split_heads};
pub use embedding::Embedding;
pub use gated::GatedMlp;
pub use grouped::{GroupedAttention, Heads};
pub use linear::{Linear, linear};
pub use norm::{LayerNorm, RmsNorm};
pub use rotary::{Angles, Rotary};
pub use sequential::Sequential;
pub use span::{Span, SpanLimits};

/// What building gives: a value, or why the ops do not fit together.
pub type Built = Result<ValueId, GraphError>;

#[cfg(test)]
mod tests;
