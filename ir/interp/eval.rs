//! One op on evaluated operands.

use super::fused;
use super::matmul::matmul;
use super::real::Real;
use super::reduce::{activation, reduce, softmax};
use super::tensor::{self, HostData, HostTensor, View, map, zip};
use crate::dim::Bindings;
use crate::op::{BinaryOp, Op, Scalar, UnaryOp};
use crate::types::DType;

/// A tensor of any element type.
#[derive(Clone, Debug)]
pub(super) enum Tensor<'a, T> {
    F(View<'a, T>),
    I(View<'a, i32>),
    B(View<'a, bool>),
}

impl<'a, T: Real> Tensor<'a, T> {
    /// A tensor over a caller's elements.
    pub(super) fn borrow(host: &'a HostTensor<T>) -> Self {
        let shape = host.shape.clone();
        match &host.data {
            HostData::F(d) => Tensor::F(View::of(shape, tensor::Buf::Borrowed(d))),
            HostData::I32(d) => Tensor::I(View::of(shape, tensor::Buf::Borrowed(d))),
            HostData::Bool(d) => Tensor::B(View::of(shape, tensor::Buf::Borrowed(d))),
        }
    }

    /// A tensor that outlives the run.
    pub(super) fn into_host(self) -> HostTensor<T> {
        match self {
            Tensor::F(v) => HostTensor::f(v.shape.clone(), v.into_vec()),
            Tensor::I(v) => HostTensor::i32(v.shape.clone(), v.into_vec()),
            Tensor::B(v) => HostTensor::bool(v.shape.clone(), v.into_vec()),
        }
    }

    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Tensor::F(v) => &v.shape,
            Tensor::I(v) => &v.shape,
            Tensor::B(v) => &v.shape,
        }
    }
}

/// The same expression on a view of whatever element type.
macro_rules! each {
    ($tensor:expr, $v:ident => $body:expr) => {
        match $tensor {
            Tensor::F($v) => Tensor::F($body),
            Tensor::I($v) => Tensor::I($body),
            Tensor::B($v) => Tensor::B($body),
        }
    };
}

type Operands<'s, 'a, T> = &'s [&'s Tensor<'a, T>];

fn mismatch<R>() -> Result<R, String> {
    Err("operands of another number or type than the op takes".to_owned())
}

fn real<'s, 'a, T>(operands: Operands<'s, 'a, T>, i: usize) -> Result<&'s View<'a, T>, String> {
    match operands.get(i) {
        Some(Tensor::F(v)) => Ok(v),
        _ => mismatch(),
    }
}

fn integers<'s, 'a, T>(
    operands: Operands<'s, 'a, T>,
    i: usize,
) -> Result<&'s View<'a, i32>, String> {
    match operands.get(i) {
        Some(Tensor::I(v)) => Ok(v),
        _ => mismatch(),
    }
}

fn any<'s, 'a, T>(operands: Operands<'s, 'a, T>, i: usize) -> Result<&'s Tensor<'a, T>, String> {
    operands.get(i).copied().map_or_else(mismatch, Ok)
}

fn reals<'s, 'a, T>(
    operands: Operands<'s, 'a, T>,
    from: usize,
) -> Result<Vec<&'s View<'a, T>>, String> {
    (from..operands.len()).map(|i| real(operands, i)).collect()
}

/// The value of `op`, whose result has this shape. Leaves that a run supplies
/// are not evaluated here.
pub(super) fn eval<'a, T: Real>(
    op: &Op,
    operands: Operands<'_, 'a, T>,
    shape: &[usize],
    bindings: &Bindings,
) -> Result<Tensor<'a, T>, String> {
    Ok(match op {
        Op::Param { .. } | Op::Input { .. } | Op::State { .. } => return mismatch(),
        Op::Const(Scalar::F32(v)) => Tensor::F(View::new(Vec::new(), vec![T::of(*v)])),
        Op::Const(Scalar::I32(v)) => Tensor::I(View::new(Vec::new(), vec![*v])),
        Op::Const(Scalar::Bool(v)) => Tensor::B(View::new(Vec::new(), vec![*v])),
        Op::Table(values) => {
            let values = values.iter().map(|v| T::of(*v));
            Tensor::F(View::new(shape.to_vec(), values.collect()))
        }
        Op::Arange { start, .. } => {
            let start = start.eval_wide(bindings).map_err(|e| e.to_string())?;
            let count = shape.iter().product::<usize>() as i128;
            let fits = |v: i128| i32::try_from(v).map_err(|_| format!("{v} does not fit i32"));
            let range = fits(start)?..fits(start.saturating_add(count))?;
            Tensor::I(View::new(shape.to_vec(), range.collect()))
        }

        Op::Unary(op) => unary(*op, any(operands, 0)?)?,
        Op::Binary(op) => binary(*op, any(operands, 0)?, any(operands, 1)?, shape)?,
        Op::Where => {
            let Tensor::B(condition) = any(operands, 0)? else {
                return mismatch();
            };
            match (any(operands, 1)?, any(operands, 2)?) {
                (Tensor::F(a), Tensor::F(b)) => Tensor::F(tensor::select(condition, a, b, shape)),
                (Tensor::I(a), Tensor::I(b)) => Tensor::I(tensor::select(condition, a, b, shape)),
                (Tensor::B(a), Tensor::B(b)) => Tensor::B(tensor::select(condition, a, b, shape)),
                _ => return mismatch(),
            }
        }
        Op::Cast(to) => cast(*to, any(operands, 0)?),

        Op::Reshape { .. } => each!(any(operands, 0)?, v => v.reshape(shape)),
        Op::Transpose { perm } => each!(any(operands, 0)?, v => v.transpose(perm)),
        Op::Broadcast { .. } => each!(any(operands, 0)?, v => v.broadcast(shape)),
        Op::Slice { axis, start, end } => {
            let x = any(operands, 0)?;
            let at = |d: &crate::dim::Dim| d.eval(bindings).map_err(|e| e.to_string());
            let (start, end) = (at(start)? as usize, at(end)? as usize);
            let size = x.shape()[*axis];
            if start > end || end > size {
                return Err(format!(
                    "expected a range within 0..{size}, found {start}..{end}"
                ));
            }
            each!(x, v => v.slice(*axis, start..end))
        }
        Op::Concat { axis } => match any(operands, 0)? {
            Tensor::F(_) => Tensor::F(tensor::concat(&reals(operands, 0)?, *axis)),
            Tensor::I(_) => {
                let parts: Result<Vec<_>, String> =
                    (0..operands.len()).map(|i| integers(operands, i)).collect();
                Tensor::I(tensor::concat(&parts?, *axis))
            }
            Tensor::B(_) => {
                let parts: Result<Vec<_>, String> = operands
                    .iter()
                    .map(|t| match t {
                        Tensor::B(v) => Ok(v),
                        _ => mismatch(),
                    })
                    .collect();
                Tensor::B(tensor::concat(&parts?, *axis))
            }
        },
        Op::Gather => {
            let ids = integers(operands, 1)?;
            each!(any(operands, 0)?, v => tensor::gather(v, ids)?)
        }

        Op::MatMul => Tensor::F(matmul(real(operands, 0)?, real(operands, 1)?, shape)),
        Op::Reduce { op, axis } => Tensor::F(reduce(*op, real(operands, 0)?, *axis)),
        Op::Softmax { axis } => Tensor::F(softmax(real(operands, 0)?, *axis)),

        Op::Normalize(norm) => {
            let rest = reals(operands, 1)?;
            Tensor::F(fused::norm(*norm, real(operands, 0)?, &rest))
        }
        Op::Activate(a) => Tensor::F(map(real(operands, 0)?, |x| activation(*a, x))),
        Op::Linear { norm, steps } => {
            let (x, w) = (real(operands, 0)?, real(operands, 1)?);
            let rest = reals(operands, 2)?;
            Tensor::F(fused::linear(*norm, steps, x, w, &rest))
        }
        Op::Rotary => {
            let (x, cos, sin) = (real(operands, 0)?, real(operands, 1)?, real(operands, 2)?);
            Tensor::F(fused::rotary(x, cos, sin))
        }
        Op::Attention(spec) => {
            let (q, k, v) = (real(operands, 0)?, real(operands, 1)?, real(operands, 2)?);
            let start = (operands.len() > 3).then(|| integers(operands, 3));
            Tensor::F(fused::attention(*spec, q, k, v, start.transpose()?))
        }
        Op::AttentionProbs(spec) => {
            let (q, k) = (real(operands, 0)?, real(operands, 1)?);
            let start = (operands.len() > 2).then(|| integers(operands, 2));
            Tensor::F(fused::attention_probs(*spec, q, k, start.transpose()?))
        }
    })
}

fn unary<'a, T: Real>(op: UnaryOp, x: &Tensor<'a, T>) -> Result<Tensor<'a, T>, String> {
    Ok(match (op, x) {
        (UnaryOp::Neg, Tensor::F(x)) => Tensor::F(map(x, |x| -x)),
        (UnaryOp::Neg, Tensor::I(x)) => Tensor::I(map(x, i32::wrapping_neg)),
        (UnaryOp::Abs, Tensor::F(x)) => Tensor::F(map(x, T::abs)),
        (UnaryOp::Abs, Tensor::I(x)) => Tensor::I(map(x, i32::wrapping_abs)),
        (UnaryOp::Exp, Tensor::F(x)) => Tensor::F(map(x, T::exp)),
        (UnaryOp::Log, Tensor::F(x)) => Tensor::F(map(x, T::ln)),
        (UnaryOp::Tanh, Tensor::F(x)) => Tensor::F(map(x, T::tanh)),
        (UnaryOp::Erf, Tensor::F(x)) => Tensor::F(map(x, T::erf)),
        (UnaryOp::Sqrt, Tensor::F(x)) => Tensor::F(map(x, T::sqrt)),
        (UnaryOp::Rsqrt, Tensor::F(x)) => Tensor::F(map(x, |x| T::of(1.0) / x.sqrt())),
        (UnaryOp::Sin, Tensor::F(x)) => Tensor::F(map(x, T::sin)),
        (UnaryOp::Cos, Tensor::F(x)) => Tensor::F(map(x, T::cos)),
        (UnaryOp::Not, Tensor::B(x)) => Tensor::B(map(x, |x| !x)),
        _ => return mismatch(),
    })
}

fn binary<'a, T: Real>(
    op: BinaryOp,
    a: &Tensor<'a, T>,
    b: &Tensor<'a, T>,
    shape: &[usize],
) -> Result<Tensor<'a, T>, String> {
    Ok(match (a, b) {
        (Tensor::F(a), Tensor::F(b)) => match op {
            BinaryOp::Add => Tensor::F(zip(a, b, shape, |a, b| a + b)),
            BinaryOp::Sub => Tensor::F(zip(a, b, shape, |a, b| a - b)),
            BinaryOp::Mul => Tensor::F(zip(a, b, shape, |a, b| a * b)),
            BinaryOp::Div => Tensor::F(zip(a, b, shape, |a, b| a / b)),
            BinaryOp::Max => Tensor::F(zip(a, b, shape, T::larger)),
            BinaryOp::Min => Tensor::F(zip(a, b, shape, T::smaller)),
            BinaryOp::Pow => Tensor::F(zip(a, b, shape, power)),
            BinaryOp::Lt => Tensor::B(zip(a, b, shape, |a, b| a < b)),
            BinaryOp::Le => Tensor::B(zip(a, b, shape, |a, b| a <= b)),
            BinaryOp::Gt => Tensor::B(zip(a, b, shape, |a, b| a > b)),
            BinaryOp::Ge => Tensor::B(zip(a, b, shape, |a, b| a >= b)),
            BinaryOp::Eq => Tensor::B(zip(a, b, shape, |a, b| a == b)),
            BinaryOp::And | BinaryOp::Or => return mismatch(),
        },
        (Tensor::I(a), Tensor::I(b)) => match op {
            BinaryOp::Add => Tensor::I(zip(a, b, shape, i32::wrapping_add)),
            BinaryOp::Sub => Tensor::I(zip(a, b, shape, i32::wrapping_sub)),
            BinaryOp::Mul => Tensor::I(zip(a, b, shape, i32::wrapping_mul)),
            BinaryOp::Div => Tensor::I(zip(a, b, shape, quotient)),
            BinaryOp::Max => Tensor::I(zip(a, b, shape, i32::max)),
            BinaryOp::Min => Tensor::I(zip(a, b, shape, i32::min)),
            BinaryOp::Lt => Tensor::B(zip(a, b, shape, |a: i32, b: i32| a < b)),
            BinaryOp::Le => Tensor::B(zip(a, b, shape, |a: i32, b: i32| a <= b)),
            BinaryOp::Gt => Tensor::B(zip(a, b, shape, |a: i32, b: i32| a > b)),
            BinaryOp::Ge => Tensor::B(zip(a, b, shape, |a: i32, b: i32| a >= b)),
            BinaryOp::Eq => Tensor::B(zip(a, b, shape, |a: i32, b: i32| a == b)),
            BinaryOp::Pow | BinaryOp::And | BinaryOp::Or => return mismatch(),
        },
        (Tensor::B(a), Tensor::B(b)) => match op {
            BinaryOp::And => Tensor::B(zip(a, b, shape, |a: bool, b: bool| a & b)),
            BinaryOp::Or => Tensor::B(zip(a, b, shape, |a: bool, b: bool| a | b)),
            BinaryOp::Eq => Tensor::B(zip(a, b, shape, |a: bool, b: bool| a == b)),
            _ => return mismatch(),
        },
        _ => return mismatch(),
    })
}

/// Squares and cubes, the powers that models take, without `powf`.
fn power<T: Real>(a: T, b: T) -> T {
    if b == T::of(2.0) {
        a * a
    } else if b == T::of(3.0) {
        a * a * a
    } else {
        a.pow(b)
    }
}

/// As WGSL has it: `a / 0` is `a`, and the quotient that overflows wraps.
fn quotient(a: i32, b: i32) -> i32 {
    if b == 0 { a } else { a.wrapping_div(b) }
}

fn cast<'a, T: Real>(to: DType, x: &Tensor<'a, T>) -> Tensor<'a, T> {
    let (zero, one) = (T::default(), T::of(1.0));
    match (to, x) {
        (DType::F32, Tensor::F(_)) | (DType::I32, Tensor::I(_)) | (DType::Bool, Tensor::B(_)) => {
            x.clone()
        }
        (DType::F32, Tensor::I(x)) => Tensor::F(map(x, T::of_i32)),
        (DType::F32, Tensor::B(x)) => Tensor::F(map(x, |x| if x { one } else { zero })),
        (DType::I32, Tensor::F(x)) => Tensor::I(map(x, T::to_i32)),
        (DType::I32, Tensor::B(x)) => Tensor::I(map(x, i32::from)),
        (DType::Bool, Tensor::F(x)) => Tensor::B(map(x, |x| x != zero)),
        (DType::Bool, Tensor::I(x)) => Tensor::B(map(x, |x| x != 0)),
    }
}
