//! The two intermediate representations of kiln.
//!
//! A [`Graph`] says *what* to compute: values in SSA form, each with a
//! [`TensorType`] whose dimensions are constants, symbols or expressions of
//! them. A [`plan::Plan`] says *how* it is launched on a device. Both are data
//! with a text form. This crate also holds what keeps the rest honest: typing
//! rules ([`infer`]), the [`verify`] module and a reference interpreter
//! ([`interp`]).

pub mod builder;
pub mod decompose;
pub mod dim;
pub mod graph;
pub mod infer;
pub mod interp;
pub mod op;
pub mod packing;
pub mod params;
pub mod plan;
#[cfg(test)]
mod testing;
pub mod text;
pub mod types;
pub mod verify;

pub use builder::GraphBuilder;
pub use dim::{Bindings, Dim, DimError, Symbol, SymbolDecl};
pub use graph::{Graph, GraphError, Value, ValueId};
pub use op::{
    Activation, AttentionSpec, BinaryOp, MASK_VALUE, Norm, Op, ReduceOp, Scalar, Step, UnaryOp,
};
pub use packing::{Packed, Packing};
pub use params::{ParamError, ParamSource};
pub use types::{DType, TensorType};
