//! Arithmetic on constants, done once.

use kiln_ir::{BinaryOp, DType, Graph, Op, Scalar, UnaryOp, ValueId};

use crate::matcher::{Matcher, rewrite_all};
use crate::{Changed, Pass, PassError, in_pass};

/// Folds arithmetic on scalar constants, removes what does nothing (`x * 1`,
/// `x + 0`, `-(-x)`), and combines successive scalings by constants.
pub struct FoldConstants;

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold_constants"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let changed = rewrite_all(graph, find, |graph, root, found| {
            let source = graph.value(root).source.clone();
            match found {
                Folded::Same(x) => Ok(x),
                Folded::Const(c) => graph.insert_before(root, Op::Const(c), &[], &source),
                Folded::Scaled(x, op, c) => {
                    let c = graph.insert_before(root, Op::Const(Scalar::F32(c)), &[], &source)?;
                    graph.insert_before(root, Op::Binary(op), &[x, c], &source)
                }
            }
        });
        in_pass(self.name(), changed)
    }
}

/// What a value comes to.
enum Folded {
    /// Another value.
    Same(ValueId),
    /// A constant.
    Const(Scalar),
    /// `op(x, c)`.
    Scaled(ValueId, BinaryOp, f64),
}

fn find(m: &Matcher<'_>, root: ValueId) -> Option<Folded> {
    if let Some(c) = scalar(m, root) {
        return Some(Folded::Const(c));
    }
    if let Some(x) = identity(m, root)
        && m.ty(x) == m.ty(root)
    {
        return Some(Folded::Same(x));
    }
    successive_scalings(m, root)
}

/// An op on scalar constants only.
fn scalar(m: &Matcher<'_>, root: ValueId) -> Option<Scalar> {
    let constant = |x: &ValueId| match m.op(*x) {
        Op::Const(c) => Some(*c),
        _ => None,
    };
    let operands: Option<Vec<Scalar>> = m.inputs(root).iter().map(constant).collect();
    let operands = operands?;
    // What overflows is left to the device, whose rules are its own, and so is what is
    // too small. Its numbers are `f32`.
    let plain = |scalar: &Scalar| match scalar {
        Scalar::F32(v) => *v == 0.0 || (*v as f32).is_normal(),
        Scalar::I32(_) | Scalar::Bool(_) => true,
    };
    if !operands.iter().all(plain) {
        return None;
    }
    let folded = match (m.op(root), operands.as_slice()) {
        (Op::Unary(op), [x]) => unary(*op, *x)?,
        (Op::Binary(op), [a, b]) => binary(*op, *a, *b)?,
        (Op::Where, [Scalar::Bool(c), a, b]) => *if *c { a } else { b },
        (Op::Cast(DType::F32), [Scalar::I32(v)]) => Scalar::F32(f64::from(*v)),
        _ => return None,
    };
    plain(&folded).then_some(folded)
}

fn unary(op: UnaryOp, x: Scalar) -> Option<Scalar> {
    let real = match (op, x) {
        (UnaryOp::Not, Scalar::Bool(v)) => return Some(Scalar::Bool(!v)),
        (UnaryOp::Neg, Scalar::I32(v)) => return v.checked_neg().map(Scalar::I32),
        (UnaryOp::Abs, Scalar::I32(v)) => return v.checked_abs().map(Scalar::I32),
        (UnaryOp::Neg, Scalar::F32(v)) => -v,
        (UnaryOp::Abs, Scalar::F32(v)) => v.abs(),
        (UnaryOp::Exp, Scalar::F32(v)) => v.exp(),
        (UnaryOp::Log, Scalar::F32(v)) => v.ln(),
        (UnaryOp::Tanh, Scalar::F32(v)) => v.tanh(),
        (UnaryOp::Sqrt, Scalar::F32(v)) => v.sqrt(),
        (UnaryOp::Rsqrt, Scalar::F32(v)) => 1.0 / v.sqrt(),
        (UnaryOp::Sin, Scalar::F32(v)) => v.sin(),
        (UnaryOp::Cos, Scalar::F32(v)) => v.cos(),
        // The standard library has no `erf`.
        _ => return None,
    };
    Some(Scalar::F32(real))
}

fn binary(op: BinaryOp, a: Scalar, b: Scalar) -> Option<Scalar> {
    match (a, b) {
        (Scalar::F32(a), Scalar::F32(b)) => Some(match op {
            BinaryOp::Add => Scalar::F32(a + b),
            BinaryOp::Sub => Scalar::F32(a - b),
            BinaryOp::Mul => Scalar::F32(a * b),
            BinaryOp::Div => Scalar::F32(a / b),
            BinaryOp::Max => Scalar::F32(a.max(b)),
            BinaryOp::Min => Scalar::F32(a.min(b)),
            BinaryOp::Pow => Scalar::F32(a.powf(b)),
            other => Scalar::Bool(compare(other, a, b)?),
        }),
        (Scalar::I32(a), Scalar::I32(b)) => match op {
            BinaryOp::Add => a.checked_add(b).map(Scalar::I32),
            BinaryOp::Sub => a.checked_sub(b).map(Scalar::I32),
            BinaryOp::Mul => a.checked_mul(b).map(Scalar::I32),
            BinaryOp::Max => Some(Scalar::I32(a.max(b))),
            BinaryOp::Min => Some(Scalar::I32(a.min(b))),
            // How integers are divided is the interpreter's to say.
            BinaryOp::Div | BinaryOp::Pow => None,
            other => compare(other, a, b).map(Scalar::Bool),
        },
        (Scalar::Bool(a), Scalar::Bool(b)) => match op {
            BinaryOp::And => Some(Scalar::Bool(a && b)),
            BinaryOp::Or => Some(Scalar::Bool(a || b)),
            BinaryOp::Eq => Some(Scalar::Bool(a == b)),
            _ => None,
        },
        _ => None,
    }
}

fn compare<T: PartialOrd>(op: BinaryOp, a: T, b: T) -> Option<bool> {
    Some(match op {
        BinaryOp::Lt => a < b,
        BinaryOp::Le => a <= b,
        BinaryOp::Gt => a > b,
        BinaryOp::Ge => a >= b,
        BinaryOp::Eq => a == b,
        _ => return None,
    })
}

/// An op that gives one of its operands back. The caller checks that no
/// broadcast makes it larger.
fn identity(m: &Matcher<'_>, root: ValueId) -> Option<ValueId> {
    let is = |id: ValueId, real: f64| match m.constant(id) {
        Some(Scalar::F32(v)) => v == real,
        Some(Scalar::I32(v)) => f64::from(v) == real,
        _ => false,
    };
    match (m.op(root), m.inputs(root)) {
        // x + 0, 0 + x, x * 1, 1 * x
        (Op::Binary(BinaryOp::Add), [x, c]) if is(*c, 0.0) => Some(*x),
        (Op::Binary(BinaryOp::Add), [c, x]) if is(*c, 0.0) => Some(*x),
        (Op::Binary(BinaryOp::Mul), [x, c]) if is(*c, 1.0) => Some(*x),
        (Op::Binary(BinaryOp::Mul), [c, x]) if is(*c, 1.0) => Some(*x),
        // x - 0, x / 1, x ^ 1
        (Op::Binary(BinaryOp::Sub), [x, c]) if is(*c, 0.0) => Some(*x),
        (Op::Binary(BinaryOp::Div | BinaryOp::Pow), [x, c]) if is(*c, 1.0) => Some(*x),
        // -(-x), not not x
        (Op::Unary(op @ (UnaryOp::Neg | UnaryOp::Not)), [x]) => m.unary(*x, *op),
        // A cast to the type that it has.
        (Op::Cast(to), [x]) if *to == m.ty(*x).dtype => Some(*x),
        // b and true, b or false: conditions that do not matter.
        (Op::Binary(op @ (BinaryOp::And | BinaryOp::Or)), [a, b]) => {
            let neutral = Some(Scalar::Bool(*op == BinaryOp::And));
            match (m.constant(*a) == neutral, m.constant(*b) == neutral) {
                (_, true) => Some(*a),
                (true, _) => Some(*b),
                _ => None,
            }
        }
        // where(true, a, b), where(false, a, b)
        (Op::Where, [c, a, b]) => match m.constant(*c)? {
            Scalar::Bool(true) => Some(*a),
            Scalar::Bool(false) => Some(*b),
            _ => None,
        },
        _ => None,
    }
}

/// `(x * a) * b`, `(x / a) * b`, `(x * a) / b`, `(x / a) / b`: one scaling. Only
/// where the first is used once, or it would be there for its other users
/// anyway, and an idiom that uses it twice would no longer be seen.
fn successive_scalings(m: &Matcher<'_>, root: ValueId) -> Option<Folded> {
    let scaling = |id| {
        let by = |op| m.with_number(id, op).map(|(x, c)| (x, op, c));
        by(BinaryOp::Mul).or_else(|| by(BinaryOp::Div))
    };
    let (inner, outer_op, outer) = scaling(root)?;
    let (x, inner_op, first) = scaling(inner)?;
    // Constants of the tensor's own size would make the result larger.
    if !m.used_once(inner) || m.ty(x) != m.ty(root) {
        return None;
    }
    let (op, c) = match (inner_op, outer_op) {
        (BinaryOp::Mul, BinaryOp::Mul) => (BinaryOp::Mul, first * outer),
        (BinaryOp::Div, BinaryOp::Div) => (BinaryOp::Div, first * outer),
        (BinaryOp::Mul, _) => (BinaryOp::Mul, first / outer),
        _ => (BinaryOp::Mul, outer / first),
    };
    // A product beyond what f32 holds would not be what the two steps give.
    let normal = |c: f64| (c as f32).is_normal();
    (normal(c) && normal(first) && normal(outer)).then_some(Folded::Scaled(x, op, c))
}
