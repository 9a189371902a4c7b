//! What each fused op means, in primitive ops.
//!
//! The interpreter does not use this: it evaluates fused ops by a definition of
//! its own, and tests hold the two against each other.

use crate::dim::Dim;
use crate::graph::{Graph, GraphError, ValueId};
use crate::op::{
    Activation, AttentionSpec, BinaryOp, MASK_VALUE, Norm, Op, ReduceOp, Scalar, Step, UnaryOp,
};
use crate::types::TensorType;

/// The same computation with every fused op written out in primitive ones.
///
/// # Errors
/// When a fused op's operands are not those that it takes.
pub fn decompose(graph: &Graph) -> Result<Graph, GraphError> {
    let mut out = Graph::new(&graph.name);
    out.symbols.clone_from(&graph.symbols);
    let missing = ValueId::from_index(u32::MAX as usize);
    let mut map = vec![missing; graph.arena_len()];
    for (id, value) in graph.iter() {
        let mapped = |i: &ValueId| map.get(i.index()).copied().unwrap_or(missing);
        let inputs: Vec<ValueId> = value.inputs.iter().map(mapped).collect();
        if let Some(slot) = map.get_mut(id.index()) {
            *slot = if value.op.is_fused() {
                expand(&mut out, &value.op, &inputs, &value.source)?
            } else {
                let mut value = value.clone();
                value.inputs = inputs;
                out.push_unchecked(value)
            };
        }
    }
    let mapped = |i: &ValueId| map.get(i.index()).copied().unwrap_or(missing);
    for (name, id) in graph.outputs() {
        out.add_output(name, mapped(id))?;
    }
    for (name, id) in graph.states() {
        out.set_state(name, mapped(id))?;
    }
    Ok(out)
}

/// Appends `op` applied to `inputs` in primitive ops; a primitive op as it is.
///
/// # Errors
/// When the op does not take these operands.
pub fn expand(
    graph: &mut Graph,
    op: &Op,
    inputs: &[ValueId],
    source: &str,
) -> Result<ValueId, GraphError> {
    // Says what is wrong with the operands in the words of the fused op.
    let types: Option<Vec<&TensorType>> = inputs
        .iter()
        .map(|i| graph.get(*i).map(|v| &v.ty))
        .collect();
    let inferred = crate::infer::infer(op, &types.unwrap_or_default());
    inferred.map_err(|reason| GraphError::Type {
        op: op.name(),
        source_name: source.to_owned(),
        reason,
    })?;
    let mut e = Expander { graph, source };
    match (op, inputs) {
        (Op::Normalize(norm), [x, operands @ ..]) => e.norm(*norm, *x, operands),
        (Op::Activate(a), [x]) => e.activation(*a, *x),
        (Op::Linear { norm, steps }, [x, w, operands @ ..]) => {
            e.linear(*norm, steps, *x, *w, operands)
        }
        (Op::Rotary, [x, cos, sin]) => e.rotary(*x, *cos, *sin),
        (Op::Attention(spec), [q, k, v, start @ ..]) => e.attention(*spec, *q, *k, *v, start),
        (Op::AttentionProbs(spec), [q, k, start @ ..]) => e.probabilities(*spec, *q, *k, start),
        _ => e.op(op.clone(), inputs),
    }
}

type Built = Result<ValueId, GraphError>;

struct Expander<'g> {
    graph: &'g mut Graph,
    source: &'g str,
}

impl Expander<'_> {
    fn op(&mut self, op: Op, inputs: &[ValueId]) -> Built {
        self.graph.push(op, inputs, self.source)
    }

    fn unary(&mut self, op: UnaryOp, x: ValueId) -> Built {
        self.op(Op::Unary(op), &[x])
    }

    fn binary(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> Built {
        self.op(Op::Binary(op), &[a, b])
    }

    fn f32(&mut self, value: f64) -> Built {
        self.op(Op::Const(Scalar::F32(value)), &[])
    }

    fn with(&mut self, op: BinaryOp, x: ValueId, value: f64) -> Built {
        let value = self.f32(value)?;
        self.binary(op, x, value)
    }

    fn reshape(&mut self, x: ValueId, shape: Vec<Dim>) -> Built {
        self.op(Op::Reshape { shape }, &[x])
    }

    fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Built {
        let perm = perm.to_vec();
        self.op(Op::Transpose { perm }, &[x])
    }

    fn shape(&self, x: ValueId) -> Vec<Dim> {
        self.graph.ty(x).shape.clone()
    }

    fn norm(&mut self, norm: Norm, x: ValueId, operands: &[ValueId]) -> Built {
        let axis = self.graph.ty(x).rank().saturating_sub(1);
        let op = ReduceOp::Mean;
        let centred = match norm {
            Norm::Layer { .. } => {
                let mean = self.op(Op::Reduce { op, axis }, &[x])?;
                self.binary(BinaryOp::Sub, x, mean)?
            }
            Norm::Rms { .. } => x,
        };
        let square = self.binary(BinaryOp::Mul, centred, centred)?;
        let variance = self.op(Op::Reduce { op, axis }, &[square])?;
        let guarded = self.with(BinaryOp::Add, variance, norm.eps())?;
        let factor = self.unary(UnaryOp::Rsqrt, guarded)?;
        let mut out = self.binary(BinaryOp::Mul, centred, factor)?;
        for (operand, op) in operands.iter().zip([BinaryOp::Mul, BinaryOp::Add]) {
            out = self.binary(op, out, *operand)?;
        }
        Ok(out)
    }

    fn activation(&mut self, activation: Activation, x: ValueId) -> Built {
        match activation {
            Activation::GeluTanh => {
                let square = self.binary(BinaryOp::Mul, x, x)?;
                let cube = self.binary(BinaryOp::Mul, square, x)?;
                let cube = self.with(BinaryOp::Mul, cube, 0.044_715)?;
                let sum = self.binary(BinaryOp::Add, x, cube)?;
                let inner = self.with(BinaryOp::Mul, sum, (2.0 / std::f64::consts::PI).sqrt())?;
                let tanh = self.unary(UnaryOp::Tanh, inner)?;
                self.half_gated(x, tanh)
            }
            Activation::GeluErf => {
                let inner = self.with(BinaryOp::Mul, x, std::f64::consts::FRAC_1_SQRT_2)?;
                let erf = self.unary(UnaryOp::Erf, inner)?;
                self.half_gated(x, erf)
            }
            Activation::Relu => self.with(BinaryOp::Max, x, 0.0),
            Activation::Silu => {
                let negated = self.unary(UnaryOp::Neg, x)?;
                let exp = self.unary(UnaryOp::Exp, negated)?;
                let denominator = self.with(BinaryOp::Add, exp, 1.0)?;
                self.binary(BinaryOp::Div, x, denominator)
            }
            Activation::Tanh => self.unary(UnaryOp::Tanh, x),
        }
    }

    /// `x/2 * (1 + gate)`
    fn half_gated(&mut self, x: ValueId, gate: ValueId) -> Built {
        let half = self.with(BinaryOp::Mul, x, 0.5)?;
        let gate = self.with(BinaryOp::Add, gate, 1.0)?;
        self.binary(BinaryOp::Mul, half, gate)
    }

    fn linear(
        &mut self,
        norm: Option<Norm>,
        steps: &[Step],
        x: ValueId,
        w: ValueId,
        operands: &[ValueId],
    ) -> Built {
        let (of_norm, of_steps) = operands.split_at(norm.map_or(0, Norm::operands));
        let x = match norm {
            Some(norm) => self.norm(norm, x, of_norm)?,
            None => x,
        };
        let transposed = self.transpose(w, &[1, 0])?;
        let shape = self.shape(x);
        let mut out = if let [features] = shape.as_slice() {
            // A single row: `matmul` wants two axes.
            let row = self.reshape(x, vec![1.into(), features.clone()])?;
            let product = self.op(Op::MatMul, &[row, transposed])?;
            let shape = vec![self.graph.ty(product).last()];
            self.reshape(product, shape)?
        } else {
            self.op(Op::MatMul, &[x, transposed])?
        };
        let mut operands = of_steps.iter();
        for step in steps {
            out = match (step, step.has_operand().then(|| operands.next()).flatten()) {
                (Step::Act(a), _) => self.activation(*a, out)?,
                (Step::Mul, Some(y)) => self.binary(BinaryOp::Mul, out, *y)?,
                (Step::Add, Some(y)) => self.binary(BinaryOp::Add, out, *y)?,
                (Step::Add | Step::Mul, None) => out,
            };
        }
        Ok(out)
    }

    fn slice_last(&mut self, x: ValueId, start: u64, end: u64) -> Built {
        let slice = Op::Slice {
            axis: self.graph.ty(x).rank() - 1,
            start: Dim::constant(start),
            end: Dim::constant(end),
        };
        self.op(slice, &[x])
    }

    fn rotary(&mut self, x: ValueId, cos: ValueId, sin: ValueId) -> Built {
        let whole = self.shape(x);
        let constant = |dim: Dim| dim.as_const().unwrap_or(0);
        let (width, half) = (
            constant(self.graph.ty(x).last()),
            constant(self.graph.ty(cos).last()),
        );
        // Heads apart, and the same angle for all heads of a position.
        let mut apart = whole.clone();
        apart.pop();
        apart.extend([Dim::constant(width / (2 * half)), Dim::constant(2 * half)]);
        let axis = apart.len() - 1;
        let apart = self.reshape(x, apart)?;
        let mut of_position = self.shape(cos);
        of_position.insert(of_position.len() - 1, 1.into());
        let cos = self.reshape(cos, of_position.clone())?;
        let sin = self.reshape(sin, of_position)?;

        let first = self.slice_last(apart, 0, half)?;
        let second = self.slice_last(apart, half, 2 * half)?;
        let (a, b) = (
            self.binary(BinaryOp::Mul, first, cos)?,
            self.binary(BinaryOp::Mul, second, sin)?,
        );
        let turned_first = self.binary(BinaryOp::Sub, a, b)?;
        let (a, b) = (
            self.binary(BinaryOp::Mul, second, cos)?,
            self.binary(BinaryOp::Mul, first, sin)?,
        );
        let turned_second = self.binary(BinaryOp::Add, a, b)?;
        let turned = self.op(Op::Concat { axis }, &[turned_first, turned_second])?;
        self.reshape(turned, whole)
    }

    /// `[b, n, heads*d]` as `[b, heads, n, d]`.
    fn split_heads(&mut self, x: ValueId, heads: usize) -> Built {
        let mut shape = self.shape(x);
        let width = shape.pop().and_then(|w| w.as_const()).unwrap_or(0);
        shape.extend([Dim::from(heads), Dim::constant(width / heads as u64)]);
        let split = self.reshape(x, shape)?;
        self.transpose(split, &[0, 2, 1, 3])
    }

    /// Keys or values as `[b, heads, m, d]`, each repeated for the query heads
    /// that share it.
    fn key_heads(&mut self, spec: AttentionSpec, x: ValueId) -> Built {
        let split = self.split_heads(x, spec.kv_heads)?;
        if spec.heads == spec.kv_heads {
            return Ok(split);
        }
        let mut shape = self.shape(split);
        shape.insert(2, 1.into());
        let apart = self.reshape(split, shape.clone())?;
        shape[2] = (spec.heads / spec.kv_heads).into();
        let op = Op::Broadcast {
            shape: shape.clone(),
        };
        let repeated = self.op(op, &[apart])?;
        shape.remove(2);
        shape[1] = spec.heads.into();
        self.reshape(repeated, shape)
    }

    /// `start..start + count` along `axis` of four.
    fn positions(&mut self, start: &Dim, count: &Dim, axis: usize) -> Built {
        let range = Op::Arange {
            start: start.clone(),
            end: start + count,
        };
        let range = self.op(range, &[])?;
        let mut shape = vec![Dim::constant(1); 4];
        shape[axis] = count.clone();
        self.reshape(range, shape)
    }

    fn probabilities(
        &mut self,
        spec: AttentionSpec,
        q: ValueId,
        k: ValueId,
        start: &[ValueId],
    ) -> Built {
        let (n, m) = (self.shape(q)[1].clone(), self.shape(k)[1].clone());
        let batch = self.shape(q)[0].clone();
        let q = self.split_heads(q, spec.heads)?;
        let k = self.key_heads(spec, k)?;
        let k = self.transpose(k, &[0, 1, 3, 2])?;
        let scores = self.op(Op::MatMul, &[q, k])?;
        let mut scores = self.with(BinaryOp::Mul, scores, spec.scale)?;
        let mut seen = None;
        if spec.causal {
            // j <= i + m - n, without a subtraction that could be negative.
            let keys = self.positions(&n, &m, 3)?;
            let queries = self.positions(&m, &n, 2)?;
            let mut all = self.binary(BinaryOp::Le, keys, queries)?;
            if let Some(window) = spec.window {
                let back = self.binary(BinaryOp::Sub, queries, keys)?;
                // Types are inferred before: it is no larger.
                let window = i32::try_from(window).unwrap_or(i32::MAX);
                let window = self.op(Op::Const(Scalar::I32(window)), &[])?;
                let near = self.binary(BinaryOp::Lt, back, window)?;
                all = self.binary(BinaryOp::And, all, near)?;
            }
            seen = Some(all);
        }
        if let [start] = start {
            let one = Dim::constant(1);
            let start = self.reshape(*start, vec![batch, one.clone(), one.clone(), one])?;
            let keys = self.positions(&Dim::constant(0), &m, 3)?;
            let late = self.binary(BinaryOp::Ge, keys, start)?;
            seen = Some(match seen {
                Some(seen) => self.binary(BinaryOp::And, seen, late)?,
                None => late,
            });
        }
        if let Some(seen) = seen {
            let hidden = self.f32(MASK_VALUE)?;
            scores = self.op(Op::Where, &[seen, scores, hidden])?;
        }
        self.op(Op::Softmax { axis: 3 }, &[scores])
    }

    fn attention(
        &mut self,
        spec: AttentionSpec,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        start: &[ValueId],
    ) -> Built {
        let shape = self.shape(q);
        let probabilities = self.probabilities(spec, q, k, start)?;
        let v = self.key_heads(spec, v)?;
        let out = self.op(Op::MatMul, &[probabilities, v])?;
        let out = self.transpose(out, &[0, 2, 1, 3])?;
        self.reshape(out, shape)
    }
}
