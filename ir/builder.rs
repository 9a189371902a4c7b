//! Builds graphs of primitive ops.
//!
//! ```
//! use kiln_ir::{Bindings, DType, GraphBuilder};
//!
//! let mut g = GraphBuilder::new("double");
//! let n = g.symbol("n", 16)?;
//! let x = g.input("x", DType::F32, [n])?;
//! let two = g.f32(2.0)?;
//! let y = g.mul(x, two)?;
//! g.output("y", y)?;
//! let graph = g.finish();
//! assert_eq!(graph.outputs().len(), 1);
//! # Ok::<(), kiln_ir::GraphError>(())
//! ```

use std::collections::BTreeMap;

use crate::dim::Dim;
use crate::graph::{Graph, GraphError, ValueId};
use crate::op::{BinaryOp, Op, ReduceOp, Scalar, UnaryOp};
use crate::types::{DType, TensorType};

type Built = Result<ValueId, GraphError>;

/// Appends ops to a [`Graph`]. Each method infers the type of its result.
///
/// A builder carries the dotted name of the module that is being built
/// ([`GraphBuilder::scope`]); values and parameters take their names from it.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    scope: Vec<String>,
    params: BTreeMap<String, ValueId>,
}

impl GraphBuilder {
    /// A builder of an empty graph of this name.
    pub fn new(name: &str) -> Self {
        GraphBuilder {
            graph: Graph::new(name),
            scope: Vec::new(),
            params: BTreeMap::new(),
        }
    }

    /// The graph built so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.graph.ty(value)
    }

    /// The shape of a value.
    pub fn shape(&self, value: ValueId) -> Vec<Dim> {
        self.graph.ty(value).shape.clone()
    }

    /// Runs `build` inside the module called `name`: `h`, then `3`, then `attn`
    /// make `h.3.attn`.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn scope<T>(
        &mut self,
        name: &str,
        build: impl FnOnce(&mut Self) -> Result<T, GraphError>,
    ) -> Result<T, GraphError> {
        self.scope.push(name.to_owned());
        let built = build(self);
        self.scope.pop();
        built
    }

    /// The dotted name of the module that is being built.
    pub fn scope_name(&self) -> String {
        self.scope.join(".")
    }

    /// Appends any op.
    ///
    /// # Errors
    /// When the op does not take these operands.
    pub fn op(&mut self, op: Op, inputs: &[ValueId]) -> Built {
        let source = self.scope_name();
        self.graph.push(op, inputs, &source)
    }

    /// Declares a symbol with its inclusive maximum.
    ///
    /// # Errors
    /// When it is declared already.
    pub fn symbol(&mut self, name: &str, max: u64) -> Result<Dim, GraphError> {
        self.graph.declare_symbol(name, max)
    }

    /// The `f32` parameter called `name` inside the current module. Asked for a
    /// second time it is the same value: that is how weights are tied.
    ///
    /// # Errors
    /// When it was asked for with another shape.
    pub fn param<D: Into<Dim>>(&mut self, name: &str, shape: impl IntoIterator<Item = D>) -> Built {
        let mut full = self.scope_name();
        if !full.is_empty() {
            full.push('.');
        }
        full.push_str(name);
        self.root_param(&full, shape)
    }

    /// The `f32` parameter of this full name, whatever module is being built.
    ///
    /// # Errors
    /// When it was asked for with another shape.
    pub fn root_param<D: Into<Dim>>(
        &mut self,
        full: &str,
        shape: impl IntoIterator<Item = D>,
    ) -> Built {
        let ty = TensorType::new(DType::F32, shape);
        if let Some(id) = self.params.get(full) {
            if *self.graph.ty(*id) == ty {
                return Ok(*id);
            }
            return Err(GraphError::Duplicate {
                kind: "parameter",
                name: full.to_owned(),
            });
        }
        let op = Op::Param {
            name: full.to_owned(),
            ty,
        };
        let id = self.op(op, &[])?;
        self.params.insert(full.to_owned(), id);
        Ok(id)
    }

    /// A named input.
    ///
    /// # Errors
    /// When an input has this name already.
    pub fn input<D: Into<Dim>>(
        &mut self,
        name: &str,
        dtype: DType,
        shape: impl IntoIterator<Item = D>,
    ) -> Built {
        if self.graph.inputs().any(|(n, _)| n == name) {
            return Err(GraphError::Duplicate {
                kind: "input",
                name: name.to_owned(),
            });
        }
        let ty = TensorType::new(dtype, shape);
        let name = name.to_owned();
        self.op(Op::Input { name, ty }, &[])
    }

    /// What the state called `name` holds before the run.
    ///
    /// # Errors
    /// None today; the op takes no operands.
    pub fn state<D: Into<Dim>>(
        &mut self,
        name: &str,
        dtype: DType,
        shape: impl IntoIterator<Item = D>,
    ) -> Built {
        let ty = TensorType::new(dtype, shape);
        let name = name.to_owned();
        self.op(Op::State { name, ty }, &[])
    }

    /// Makes `value` what the state called `name` holds after the run.
    ///
    /// # Errors
    /// When the state is unknown or set already.
    pub fn set_state(&mut self, name: &str, value: ValueId) -> Result<(), GraphError> {
        self.graph.set_state(name, value)
    }

    /// Names `value` as an output.
    ///
    /// # Errors
    /// When an output has this name already.
    pub fn output(&mut self, name: &str, value: ValueId) -> Result<(), GraphError> {
        self.graph.add_output(name, value)
    }

    /// A real constant.
    ///
    /// # Errors
    /// None today; the op takes no operands.
    pub fn f32(&mut self, value: f64) -> Built {
        self.op(Op::Const(Scalar::F32(value)), &[])
    }

    /// An integer constant.
    ///
    /// # Errors
    /// None today; the op takes no operands.
    pub fn i32(&mut self, value: i32) -> Built {
        self.op(Op::Const(Scalar::I32(value)), &[])
    }

    /// Constants in a row, `f32[n]`.
    ///
    /// # Errors
    /// None today; the op takes no operands.
    pub fn table(&mut self, values: impl Into<Vec<f64>>) -> Built {
        self.op(Op::Table(values.into()), &[])
    }

    /// `start, start + 1, ..., end - 1` as `i32[end - start]`.
    ///
    /// # Errors
    /// None today; the op takes no operands.
    pub fn arange(&mut self, start: impl Into<Dim>, end: impl Into<Dim>) -> Built {
        let (start, end) = (start.into(), end.into());
        self.op(Op::Arange { start, end }, &[])
    }

    /// `if condition { a } else { b }`, broadcast.
    ///
    /// # Errors
    /// When the types do not fit.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Built {
        self.op(Op::Where, &[condition, a, b])
    }

    /// Another element type.
    ///
    /// # Errors
    /// None today.
    pub fn cast(&mut self, x: ValueId, to: DType) -> Built {
        self.op(Op::Cast(to), &[x])
    }

    /// Another shape for the same elements.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape<D: Into<Dim>>(
        &mut self,
        x: ValueId,
        shape: impl IntoIterator<Item = D>,
    ) -> Built {
        let shape = shape.into_iter().map(Into::into).collect();
        self.op(Op::Reshape { shape }, &[x])
    }

    /// Axes reordered.
    ///
    /// # Errors
    /// When `perm` is not a permutation of the axes.
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Built {
        let perm = perm.to_vec();
        self.op(Op::Transpose { perm }, &[x])
    }

    /// Broadcast to a shape.
    ///
    /// # Errors
    /// When the operand does not broadcast to it.
    pub fn broadcast<D: Into<Dim>>(
        &mut self,
        x: ValueId,
        shape: impl IntoIterator<Item = D>,
    ) -> Built {
        let shape = shape.into_iter().map(Into::into).collect();
        self.op(Op::Broadcast { shape }, &[x])
    }

    /// `start..end` of one axis.
    ///
    /// # Errors
    /// When there is no such axis or range.
    pub fn slice(
        &mut self,
        x: ValueId,
        axis: usize,
        start: impl Into<Dim>,
        end: impl Into<Dim>,
    ) -> Built {
        let (start, end) = (start.into(), end.into());
        self.op(Op::Slice { axis, start, end }, &[x])
    }

    /// Operands one after the other along an axis.
    ///
    /// # Errors
    /// When they differ in another axis or in type.
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> Built {
        self.op(Op::Concat { axis }, parts)
    }

    /// Rows of a table by id.
    ///
    /// # Errors
    /// When the ids are not `i32`.
    pub fn gather(&mut self, table: ValueId, ids: ValueId) -> Built {
        self.op(Op::Gather, &[table, ids])
    }

    /// A matrix product, batched over broadcast leading axes.
    ///
    /// # Errors
    /// When the inner sizes differ.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> Built {
        self.op(Op::MatMul, &[a, b])
    }

    /// `e^(x - max) / sum` along an axis.
    ///
    /// # Errors
    /// When there is no such axis.
    pub fn softmax(&mut self, x: ValueId, axis: usize) -> Built {
        self.op(Op::Softmax { axis }, &[x])
    }

    /// A reduction that keeps its axis with size one.
    ///
    /// # Errors
    /// When there is no such axis.
    pub fn reduce(&mut self, op: ReduceOp, x: ValueId, axis: usize) -> Built {
        self.op(Op::Reduce { op, axis }, &[x])
    }

    /// The mean along an axis, which stays with size one.
    ///
    /// # Errors
    /// When there is no such axis.
    pub fn mean(&mut self, x: ValueId, axis: usize) -> Built {
        self.reduce(ReduceOp::Mean, x, axis)
    }
}

macro_rules! elementwise {
    ($($method:ident = $op:expr;)*) => {
        /// Elementwise functions; the two operands of a binary one broadcast.
        #[allow(clippy::missing_errors_doc, reason = "one line for all: the operand types must fit")]
        impl GraphBuilder {
            $(
                #[doc = concat!("See [`", stringify!($op), "`].")]
                pub fn $method(&mut self, a: ValueId, b: ValueId) -> Built {
                    self.op(Op::Binary($op), &[a, b])
                }
            )*
        }
    };
}
elementwise! {
    add = BinaryOp::Add;
    sub = BinaryOp::Sub;
    mul = BinaryOp::Mul;
    div = BinaryOp::Div;
    max = BinaryOp::Max;
    min = BinaryOp::Min;
    pow = BinaryOp::Pow;
    lt = BinaryOp::Lt;
    le = BinaryOp::Le;
    gt = BinaryOp::Gt;
    ge = BinaryOp::Ge;
    eq = BinaryOp::Eq;
    and = BinaryOp::And;
    or = BinaryOp::Or;
}

macro_rules! unary {
    ($($method:ident = $op:expr;)*) => {
        /// Elementwise functions of one operand.
        #[allow(clippy::missing_errors_doc, reason = "one line for all: the operand type must fit")]
        impl GraphBuilder {
            $(
                #[doc = concat!("See [`", stringify!($op), "`].")]
                pub fn $method(&mut self, x: ValueId) -> Built {
                    self.op(Op::Unary($op), &[x])
                }
            )*
        }
    };
}
unary! {
    neg = UnaryOp::Neg;
    exp = UnaryOp::Exp;
    log = UnaryOp::Log;
    tanh = UnaryOp::Tanh;
    erf = UnaryOp::Erf;
    sqrt = UnaryOp::Sqrt;
    rsqrt = UnaryOp::Rsqrt;
    abs = UnaryOp::Abs;
    sin = UnaryOp::Sin;
    cos = UnaryOp::Cos;
    not = UnaryOp::Not;
}
