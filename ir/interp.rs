//! The reference interpreter: what every op means, as code that can be read.
//!
//! [`Interpreter`] evaluates a [`Graph`] on the host, in `f32` or `f64`. It is
//! what passes and kernels are held against, and the `cpu` device of the command
//! line. Fused ops are evaluated by their own definition, not by
//! [`crate::decompose`], so that each checks the other.
//!
//! Details that an op's one-line description leaves open:
//!
//! - Sums of reductions and normalisations are made in `f64`; the inner sums of
//!   matrix products in several partial sums of the element type.
//! - Integers wrap. `a / 0` is `a`, as in WGSL.
//! - A cast from a real number to `i32` saturates; to `bool`, it asks whether
//!   the number differs from zero.
//! - A score that attention hides is [`crate::MASK_VALUE`]. A query that sees no
//!   key at all therefore gives every key the same probability; with no keys,
//!   the result is zero.
//!
//! ```
//! use std::collections::BTreeMap;
//! use kiln_ir::{DType, GraphBuilder};
//! use kiln_ir::interp::{HostTensor, run};
//!
//! let mut g = GraphBuilder::new("double");
//! let n = g.symbol("n", 16)?;
//! let x = g.input("x", DType::F32, [n])?;
//! let y = g.add(x, x)?;
//! g.output("y", y)?;
//!
//! let params = BTreeMap::<String, Vec<f32>>::new();
//! let inputs = BTreeMap::from([("x".to_owned(), HostTensor::f([3], [1.0, 2.0, 3.0]))]);
//! let out = run::<f64>(&g.finish(), &params, &inputs, &mut BTreeMap::new())?;
//! assert_eq!(out["y"].as_f(), Some(&[2.0, 4.0, 6.0][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod tests;

mod eval;
mod fused;
mod matmul;
mod real;
mod reduce;
mod tensor;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::dim::{Bindings, DimError, Symbol};
use crate::graph::{Graph, ValueId};
use crate::op::Op;
use crate::params::ParamSource;
use crate::types::{DType, TensorType};
use crate::verify::{VerifyErrors, verify};
use eval::{Tensor, eval};
use tensor::{Buf, View};

pub use real::Real;
pub use tensor::{HostData, HostTensor};

/// Tensors by name.
pub type Tensors<T> = BTreeMap<String, HostTensor<T>>;

/// Why a graph could not be run.
#[derive(Debug, thiserror::Error)]
pub enum InterpError {
    /// The graph is not valid.
    #[error(transparent)]
    Invalid(#[from] VerifyErrors),
    /// An input or state was not supplied.
    #[error("{kind} `{name}` is missing; expected {expected}")]
    Missing {
        /// `input` or `state`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Its type.
        expected: TensorType,
    },
    /// An input was supplied that the graph does not have.
    #[error("there is no input `{name}`")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// An input or state is not of its type.
    #[error("{kind} `{name}`: expected {expected}, found {found}")]
    Mismatch {
        /// `input`, `state` or `parameter`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Its type.
        expected: String,
        /// What was supplied.
        found: String,
    },
    /// A size exceeds its symbol's maximum.
    #[error("`{symbol}` is {value}, over its maximum of {max}")]
    TooLarge {
        /// The symbol.
        symbol: Symbol,
        /// The size that was supplied.
        value: u64,
        /// The largest size allowed.
        max: u64,
    },
    /// A parameter could not be had.
    #[error("parameter `{name}`: {reason}")]
    Param {
        /// Its name.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// A value has no shape under the symbols' values.
    #[error("{value}{}: {reason}", at(source_name))]
    Shape {
        /// The value.
        value: ValueId,
        /// The module that built it.
        source_name: String,
        /// What went wrong.
        reason: DimError,
    },
    /// A value could not be computed.
    #[error("{value} = {op}{}: {reason}", at(source_name))]
    Value {
        /// The value.
        value: ValueId,
        /// Its op.
        op: &'static str,
        /// The module that built it.
        source_name: String,
        /// What went wrong.
        reason: String,
    },
}

fn at(source: &str) -> String {
    if source.is_empty() {
        String::new()
    } else {
        format!(" in `{source}`")
    }
}

/// A graph with its parameters at hand, ready to be run many times.
///
/// Parameters are read when it is made. In `f32` they are borrowed from the
/// source where it lends them, in `f64` converted once.
#[derive(Debug)]
pub struct Interpreter<'a, T: Real> {
    graph: Cow<'a, Graph>,
    params: BTreeMap<String, Buf<'a, T>>,
    /// For each position in the order: the values that no later one needs.
    dead_after: Vec<Vec<ValueId>>,
    /// For each value, by index: whether anything needs it.
    live: Vec<bool>,
}

/// Runs a graph once; see [`Interpreter`] for more often.
///
/// # Errors
/// See [`Interpreter::run`].
pub fn run<T: Real>(
    graph: &Graph,
    params: &dyn ParamSource,
    inputs: &Tensors<T>,
    states: &mut Tensors<T>,
) -> Result<Tensors<T>, InterpError> {
    Interpreter::new(graph, params)?.run(inputs, states)
}

/// What each state of `graph` holds at these sizes, all zeros: with `past` of 0,
/// the states of a new session.
///
/// # Errors
/// When a state's shape has a symbol that is not bound.
pub fn zero_states<T: Real>(graph: &Graph, bindings: &Bindings) -> Result<Tensors<T>, InterpError> {
    let mut states = Tensors::new();
    for (id, value) in graph.iter() {
        if let Op::State { name, ty } = &value.op {
            let shape = eval_shape(graph, id, ty, bindings)?;
            let n = shape.iter().product();
            let tensor = match ty.dtype {
                DType::F32 => HostTensor::f(shape, vec![T::default(); n]),
                DType::I32 => HostTensor::i32(shape, vec![0; n]),
                DType::Bool => HostTensor::bool(shape, vec![false; n]),
            };
            states.insert(name.clone(), tensor);
        }
    }
    Ok(states)
}

fn eval_shape(
    graph: &Graph,
    id: ValueId,
    ty: &TensorType,
    bindings: &Bindings,
) -> Result<Vec<usize>, InterpError> {
    ty.eval_shape(bindings)
        .map_err(|reason| InterpError::Shape {
            value: id,
            source_name: graph.get(id).map_or_else(String::new, |v| v.source.clone()),
            reason,
        })
}

fn failed(graph: &Graph, id: ValueId, reason: impl ToString) -> InterpError {
    let value = graph.get(id);
    InterpError::Value {
        value: id,
        op: value.map_or("?", |v| v.op.name()),
        source_name: value.map_or_else(String::new, |v| v.source.clone()),
        reason: reason.to_string(),
    }
}

impl<'a, T: Real> Interpreter<'a, T> {
    /// Reads the parameters of `graph`, lent or owned, from `source`.
    ///
    /// # Errors
    /// When the graph is not valid, or a parameter cannot be read or has another
    /// size than the graph says.
    pub fn new(
        graph: impl Into<Cow<'a, Graph>>,
        source: &'a dyn ParamSource,
    ) -> Result<Self, InterpError> {
        Self::with_params(graph.into(), source, BTreeMap::new())
    }

    /// An interpreter of another graph that shares this one's parameters; only
    /// those that this one does not have are read from `source`.
    ///
    /// # Errors
    /// See [`Interpreter::new`].
    pub fn sharing(
        &self,
        graph: impl Into<Cow<'a, Graph>>,
        source: &'a dyn ParamSource,
    ) -> Result<Self, InterpError> {
        Self::with_params(graph.into(), source, self.params.clone())
    }

    fn with_params(
        graph: Cow<'a, Graph>,
        source: &'a dyn ParamSource,
        mut params: BTreeMap<String, Buf<'a, T>>,
    ) -> Result<Self, InterpError> {
        // Evaluation relies on the types.
        verify(&graph)?;
        for (id, value) in graph.iter() {
            let Op::Param { name, ty } = &value.op else {
                continue;
            };
            let shape = eval_shape(&graph, id, ty, &Bindings::new())?;
            let elements: usize = shape.iter().product();
            if !params.contains_key(name) {
                let values = source.param(name).map_err(|e| InterpError::Param {
                    name: name.clone(),
                    reason: e.to_string(),
                })?;
                params.insert(name.clone(), T::of_param(values).into());
            }
            let found = params.get(name).map_or(0, |p| p.slice().len());
            if ty.dtype != DType::F32 || found != elements {
                return Err(InterpError::Mismatch {
                    kind: "parameter",
                    name: name.clone(),
                    expected: format!("{ty} ({elements} elements)"),
                    found: format!("{found} real numbers"),
                });
            }
        }
        let (live, dead_after) = lifetimes(&graph);
        Ok(Interpreter {
            graph,
            params,
            dead_after,
            live,
        })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Computes the outputs, and replaces the states that the graph sets.
    ///
    /// Symbols take their values from the shapes of the inputs and states.
    /// `states` is unchanged when there is an error; states that the graph does
    /// not know are left alone.
    ///
    /// # Errors
    /// When an input or state is missing or not of its type, a size exceeds its
    /// symbol's maximum, or a value cannot be computed.
    pub fn run(
        &self,
        inputs: &Tensors<T>,
        states: &mut Tensors<T>,
    ) -> Result<Tensors<T>, InterpError> {
        self.run_with(inputs, states, &Bindings::new())
    }

    /// [`Interpreter::run`] with values for symbols that no shape tells.
    ///
    /// # Errors
    /// See [`Interpreter::run`].
    pub fn run_with(
        &self,
        inputs: &Tensors<T>,
        states: &mut Tensors<T>,
        symbols: &Bindings,
    ) -> Result<Tensors<T>, InterpError> {
        T::interpret(self, inputs, states, symbols)
    }

    /// [`Interpreter::run_with`], called through [`Real::interpret`] alone, so that this
    /// crate compiles it and not each of its users.
    fn compute(
        &self,
        inputs: &Tensors<T>,
        states: &mut Tensors<T>,
        symbols: &Bindings,
    ) -> Result<Tensors<T>, InterpError> {
        let bindings = self.bind(inputs, states, symbols)?;
        let mut values = self.evaluate(inputs, states, &bindings)?;
        let graph: &Graph = &self.graph;
        let mut named = graph.outputs().iter().chain(graph.states()).peekable();
        let mut results = Vec::new();
        while let Some((name, id)) = named.next() {
            let slot = values.get_mut(id.index());
            let needed_again = named.clone().any(|(_, other)| other == id);
            let tensor = match slot {
                Some(slot) if needed_again => slot.clone(),
                Some(slot) => slot.take(),
                None => None,
            };
            let tensor = tensor.ok_or_else(|| failed(graph, *id, "it is not in the order"))?;
            results.push((name.clone(), tensor.into_host()));
        }
        // What is left may borrow from the states.
        drop(values);
        states.extend(results.split_off(graph.outputs().len()));
        Ok(results.into_iter().collect())
    }

    /// The symbols' values: axes of inputs and states that are exactly a symbol
    /// give them, all others must agree.
    fn bind(
        &self,
        inputs: &Tensors<T>,
        states: &Tensors<T>,
        symbols: &Bindings,
    ) -> Result<Bindings, InterpError> {
        let mut ports = Vec::new();
        for (_, value) in self.graph.iter() {
            let (kind, name, ty, from) = match &value.op {
                Op::Input { name, ty } => ("input", name, ty, inputs),
                Op::State { name, ty } => ("state", name, ty, states),
                _ => continue,
            };
            match from.get(name) {
                Some(tensor) => ports.push((kind, name, ty, tensor)),
                None => {
                    return Err(InterpError::Missing {
                        kind,
                        name: name.clone(),
                        expected: ty.clone(),
                    });
                }
            }
        }
        let known = |name: &String| self.graph.inputs().any(|(n, _)| n == name);
        if let Some(name) = inputs.keys().find(|n| !known(n)) {
            return Err(InterpError::Unknown { name: name.clone() });
        }

        let mut bindings = symbols.clone();
        for (_, _, ty, tensor) in &ports {
            for (dim, size) in ty.shape.iter().zip(&tensor.shape) {
                if let Some(symbol) = dim.as_symbol()
                    && bindings.get(symbol).is_none()
                {
                    bindings.set(symbol.name(), *size as u64);
                }
            }
        }
        for decl in &self.graph.symbols {
            if let Some(value) = bindings.get(&decl.name)
                && value > decl.max
            {
                return Err(InterpError::TooLarge {
                    symbol: decl.name.clone(),
                    value,
                    max: decl.max,
                });
            }
        }
        for (kind, name, ty, tensor) in ports {
            let wanted = ty.eval_shape(&bindings);
            let elements: usize = tensor.shape.iter().product();
            if tensor.dtype() == ty.dtype
                && wanted.as_ref() == Ok(&tensor.shape)
                && tensor.len() == elements
            {
                continue;
            }
            let expected = match wanted {
                Ok(shape) if TensorType::new(ty.dtype, shape.clone()) != *ty => {
                    format!("{ty}, here {}", TensorType::new(ty.dtype, shape))
                }
                _ => ty.to_string(),
            };
            let mut found = TensorType::new(tensor.dtype(), tensor.shape.clone()).to_string();
            if tensor.len() != elements {
                found.push_str(&format!(" with {} elements", tensor.len()));
            }
            return Err(InterpError::Mismatch {
                kind,
                name: name.clone(),
                expected,
                found,
            });
        }
        Ok(bindings)
    }

    /// The values that outputs and states name; all others are dropped as soon
    /// as nothing needs them.
    fn evaluate<'r>(
        &'r self,
        inputs: &'r Tensors<T>,
        states: &'r Tensors<T>,
        bindings: &Bindings,
    ) -> Result<Vec<Option<Tensor<'r, T>>>, InterpError> {
        let graph: &Graph = &self.graph;
        let mut values: Vec<Option<Tensor<'r, T>>> = vec![None; graph.arena_len()];
        for ((id, value), dead) in graph.iter().zip(&self.dead_after) {
            if !self.live.get(id.index()).copied().unwrap_or(false) {
                continue;
            }
            let shape = eval_shape(graph, id, &value.ty, bindings)?;
            let tensor = match &value.op {
                Op::Param { name, .. } => {
                    let param = self.params.get(name).cloned();
                    param.map(|p| Tensor::F(View::of(shape, p)))
                }
                Op::Input { name, .. } => inputs.get(name).map(Tensor::borrow),
                Op::State { name, .. } => states.get(name).map(Tensor::borrow),
                op => {
                    let operands = value.inputs.iter();
                    let operands: Option<Vec<&Tensor<'r, T>>> = operands
                        .map(|i| values.get(i.index()).and_then(Option::as_ref))
                        .collect();
                    let operands =
                        operands.ok_or_else(|| failed(graph, id, "an operand has no value yet"))?;
                    let result = eval(op, &operands, &shape, bindings);
                    Some(result.map_err(|reason| failed(graph, id, reason))?)
                }
            };
            if let Some(tensor) = &tensor {
                debug_assert_eq!(
                    tensor.shape(),
                    value.ty.eval_shape(bindings).unwrap_or_default(),
                    "{id} = {}",
                    value.op.name()
                );
            }
            if let Some(slot) = values.get_mut(id.index()) {
                *slot = tensor;
            }
            for id in dead {
                if let Some(slot) = values.get_mut(id.index()) {
                    *slot = None;
                }
            }
        }
        Ok(values)
    }
}

/// Which values are needed at all, and after which position each is not.
fn lifetimes(graph: &Graph) -> (Vec<bool>, Vec<Vec<ValueId>>) {
    let mut live = vec![false; graph.arena_len()];
    let mut dead_after = vec![Vec::new(); graph.order().len()];
    for (_, id) in graph.outputs().iter().chain(graph.states()) {
        if let Some(live) = live.get_mut(id.index()) {
            *live = true;
        }
    }
    // Backwards: the first use met is the last one made.
    let positions = graph.iter().zip(dead_after.iter_mut()).collect::<Vec<_>>();
    for ((id, value), dead) in positions.into_iter().rev() {
        if !live.get(id.index()).copied().unwrap_or(false) {
            continue;
        }
        for input in &value.inputs {
            if let Some(live) = live.get_mut(input.index())
                && !*live
            {
                *live = true;
                dead.push(*input);
            }
        }
    }
    (live, dead_after)
}
