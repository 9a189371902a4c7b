//! Arithmetic on the bits of scalars.

use std::cmp::Ordering;

use half::f16;
use naga::{
    BinaryOperator, Literal, MathFunction, Scalar, ScalarKind, SubgroupOperation, UnaryOperator,
};

use crate::fault::Fault;
use crate::lanes::Lanes;

/// The kinds of scalars that kernels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    U32,
    I32,
    Bool,
}

impl Kind {
    pub fn of(scalar: Scalar) -> Result<Self, Fault> {
        match (scalar.kind, scalar.width) {
            (ScalarKind::Float, 4) => Ok(Kind::F32),
            (ScalarKind::Float, 2) => Ok(Kind::F16),
            (ScalarKind::Uint, 4) => Ok(Kind::U32),
            (ScalarKind::Sint, 4) => Ok(Kind::I32),
            (ScalarKind::Bool, _) => Ok(Kind::Bool),
            _ => Err(Fault::Unsupported(format!("the scalar {scalar:?}"))),
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Kind::F32 | Kind::F16)
    }

    /// As an `f32`; a half is one exactly.
    pub fn real(self, bits: u32) -> f32 {
        match self {
            Kind::F16 => f16::from_bits(bits as u16).to_f32(),
            _ => f32::from_bits(bits),
        }
    }

    /// Rounded to the kind. One operation on halves that is computed in `f32` and then
    /// rounded is rounded as if once: `f32` has more than twice a half's bits.
    pub fn bits(self, real: f32) -> u32 {
        match self {
            Kind::F16 => u32::from(f16::from_f32(real).to_bits()),
            _ => real.to_bits(),
        }
    }
}

pub(crate) fn literal(literal: Literal) -> Result<u32, Fault> {
    match literal {
        Literal::F32(x) => Ok(x.to_bits()),
        Literal::F16(x) => Ok(u32::from(x.to_bits())),
        Literal::U32(x) => Ok(x),
        Literal::I32(x) => Ok(x as u32),
        Literal::Bool(x) => Ok(u32::from(x)),
        other => Err(Fault::Unsupported(format!("the literal {other:?}"))),
    }
}

fn unsupported<T>(what: &impl std::fmt::Debug, kind: Kind) -> Result<T, Fault> {
    Err(Fault::Unsupported(format!("{what:?} of {kind:?}")))
}

pub(crate) fn unary(op: UnaryOperator, kind: Kind, x: &Lanes) -> Result<Lanes, Fault> {
    Ok(match (op, kind) {
        (UnaryOperator::Negate, Kind::F32 | Kind::F16) => x.map(|x| kind.bits(-kind.real(x))),
        (UnaryOperator::Negate, Kind::I32) => x.map(u32::wrapping_neg),
        (UnaryOperator::LogicalNot, Kind::Bool) => x.map(|x| u32::from(x == 0)),
        (UnaryOperator::BitwiseNot, Kind::U32 | Kind::I32) => x.map(|x| !x),
        _ => return unsupported(&op, kind),
    })
}

/// `f` of real numbers, rounded. (Each function has code of its own, for a call for each
/// invocation would take most of the time; so it is in what follows.)
fn real(kind: Kind, a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    match kind {
        Kind::F32 => a.zip(b, |a, b| f(f32::from_bits(a), f32::from_bits(b)).to_bits()),
        _ => a.zip(b, |a, b| kind.bits(f(kind.real(a), kind.real(b)))),
    }
}

fn test(kind: Kind, a: &Lanes, b: &Lanes, f: impl Fn(&f32, &f32) -> bool) -> Lanes {
    match kind {
        Kind::F32 => a.zip(b, |a, b| {
            u32::from(f(&f32::from_bits(a), &f32::from_bits(b)))
        }),
        _ => a.zip(b, |a, b| u32::from(f(&kind.real(a), &kind.real(b)))),
    }
}

fn compare(kind: Kind, a: &Lanes, b: &Lanes, f: impl Fn(Ordering) -> bool) -> Lanes {
    match kind {
        Kind::I32 => a.zip(b, |a, b| u32::from(f((a as i32).cmp(&(b as i32))))),
        _ => a.zip(b, |a, b| u32::from(f(a.cmp(&b)))),
    }
}

/// An operator on scalars of `kind`; comparisons give 0 and 1.
pub(crate) fn binary(op: BinaryOperator, kind: Kind, a: &Lanes, b: &Lanes) -> Result<Lanes, Fault> {
    use BinaryOperator as Op;
    if kind.is_float() {
        return Ok(match op {
            Op::Add => real(kind, a, b, |a, b| a + b),
            Op::Subtract => real(kind, a, b, |a, b| a - b),
            Op::Multiply => real(kind, a, b, |a, b| a * b),
            Op::Divide => real(kind, a, b, |a, b| a / b),
            Op::Modulo => real(kind, a, b, |a, b| a % b),
            Op::Equal => test(kind, a, b, f32::eq),
            Op::NotEqual => test(kind, a, b, f32::ne),
            Op::Less => test(kind, a, b, f32::lt),
            Op::LessEqual => test(kind, a, b, f32::le),
            Op::Greater => test(kind, a, b, f32::gt),
            Op::GreaterEqual => test(kind, a, b, f32::ge),
            _ => return unsupported(&op, kind),
        });
    }
    let signed = kind == Kind::I32;
    // Division by 0 gives the dividend, and its remainder 0, as WGSL says.
    Ok(match op {
        Op::Add => a.zip(b, u32::wrapping_add),
        Op::Subtract => a.zip(b, u32::wrapping_sub),
        Op::Multiply => a.zip(b, u32::wrapping_mul),
        Op::Divide if signed => a.zip(b, |a, b| match b {
            0 => a,
            b => (a as i32).wrapping_div(b as i32) as u32,
        }),
        Op::Divide => a.zip(b, |a, b| a.checked_div(b).unwrap_or(a)),
        Op::Modulo if signed => a.zip(b, |a, b| match b {
            0 => 0,
            b => (a as i32).wrapping_rem(b as i32) as u32,
        }),
        Op::Modulo => a.zip(b, |a, b| a.checked_rem(b).unwrap_or(0)),
        Op::Equal => compare(kind, a, b, Ordering::is_eq),
        Op::NotEqual => compare(kind, a, b, Ordering::is_ne),
        Op::Less => compare(kind, a, b, Ordering::is_lt),
        Op::LessEqual => compare(kind, a, b, Ordering::is_le),
        Op::Greater => compare(kind, a, b, Ordering::is_gt),
        Op::GreaterEqual => compare(kind, a, b, Ordering::is_ge),
        Op::And | Op::LogicalAnd => a.zip(b, |a, b| a & b),
        Op::InclusiveOr | Op::LogicalOr => a.zip(b, |a, b| a | b),
        Op::ExclusiveOr => a.zip(b, |a, b| a ^ b),
        Op::ShiftLeft => a.zip(b, |a, b| a << (b & 31)),
        Op::ShiftRight if signed => a.zip(b, |a, b| ((a as i32) >> (b & 31)) as u32),
        Op::ShiftRight => a.zip(b, |a, b| a >> (b & 31)),
    })
}

/// A conversion of values.
pub(crate) fn convert(from: Kind, to: Kind, x: &Lanes) -> Lanes {
    use Kind::{Bool, F16, F32, I32, U32};
    match (from, to) {
        (F32 | F16, F32 | F16) => x.map(|x| to.bits(from.real(x))),
        (F32 | F16, U32) => x.map(|x| from.real(x) as u32),
        (F32 | F16, I32) => x.map(|x| from.real(x) as i32 as u32),
        (F32 | F16, Bool) => x.map(|x| u32::from(from.real(x) != 0.0)),
        (I32, F32 | F16) => x.map(|x| to.bits(x as i32 as f32)),
        (U32 | Bool, F32 | F16) => x.map(|x| to.bits(x as f32)),
        (_, Bool) => x.map(|x| u32::from(x != 0)),
        (I32 | U32 | Bool, I32 | U32) => x.clone(),
    }
}

// What is no number stays so, for it to be seen.
fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() || a < b { a } else { b }
}

fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// A function of scalars, component by component. `args` has one or more of them.
pub(crate) fn math(
    function: MathFunction,
    kind: Kind,
    args: &[&Lanes],
    lanes: usize,
) -> Result<Lanes, Fault> {
    use MathFunction as F;
    let arg = |i: usize| {
        let found = args.get(i).copied();
        found.ok_or_else(|| Fault::Invalid(format!("{function:?} lacks an argument")))
    };
    let x = arg(0)?;
    if kind.is_float() {
        let one = |f: fn(f32) -> f32| Ok(x.map(|x| kind.bits(f(kind.real(x)))));
        let two = |f: fn(f32, f32) -> f32| Ok(real(kind, x, arg(1)?, f));
        let three = |f: fn(f32, f32, f32) -> f32| {
            let f = |a, b, c| kind.bits(f(kind.real(a), kind.real(b), kind.real(c)));
            Ok(x.zip3(arg(1)?, arg(2)?, lanes, f))
        };
        return match function {
            F::Abs => one(f32::abs),
            F::Min => Ok(real(kind, x, arg(1)?, min)),
            F::Max => Ok(real(kind, x, arg(1)?, max)),
            F::Clamp => three(|x, low, high| min(max(x, low), high)),
            F::Floor => one(f32::floor),
            F::Ceil => one(f32::ceil),
            F::Round => one(f32::round_ties_even),
            F::Trunc => one(f32::trunc),
            F::Fract => one(|x| x - x.floor()),
            F::Exp => one(f32::exp),
            F::Exp2 => one(f32::exp2),
            F::Log => one(f32::ln),
            F::Log2 => one(f32::log2),
            F::Pow => two(f32::powf),
            F::Tanh => one(f32::tanh),
            F::Sin => one(f32::sin),
            F::Cos => one(f32::cos),
            F::Sqrt => one(f32::sqrt),
            F::InverseSqrt => one(|x| 1.0 / x.sqrt()),
            F::Fma => three(f32::mul_add),
            F::Mix => three(|a, b, t| a * (1.0 - t) + b * t),
            F::Step => two(|edge, x| if edge <= x { 1.0 } else { 0.0 }),
            F::Sign => one(|x| match x {
                x if x > 0.0 => 1.0,
                x if x < 0.0 => -1.0,
                _ => 0.0,
            }),
            _ => unsupported(&function, kind),
        };
    }
    let signed = kind == Kind::I32;
    match function {
        F::Min if signed => Ok(x.zip(arg(1)?, |a, b| (a as i32).min(b as i32) as u32)),
        F::Max if signed => Ok(x.zip(arg(1)?, |a, b| (a as i32).max(b as i32) as u32)),
        F::Abs if signed => Ok(x.map(|x| (x as i32).wrapping_abs() as u32)),
        F::Clamp if signed => Ok(x.zip3(arg(1)?, arg(2)?, lanes, |x, low, high| {
            (x as i32).max(low as i32).min(high as i32) as u32
        })),
        F::Min => Ok(x.zip(arg(1)?, u32::min)),
        F::Max => Ok(x.zip(arg(1)?, u32::max)),
        F::Clamp => Ok(x.zip3(arg(1)?, arg(2)?, lanes, |x, low, high| x.max(low).min(high))),
        F::CountOneBits => Ok(x.map(u32::count_ones)),
        F::CountLeadingZeros => Ok(x.map(u32::leading_zeros)),
        F::CountTrailingZeros => Ok(x.map(u32::trailing_zeros)),
        F::ExtractBits => Ok(x.zip3(arg(1)?, arg(2)?, lanes, |x, offset, count| {
            let offset = offset.min(32);
            let count = count.min(32 - offset);
            if count == 0 {
                return 0;
            }
            let up = x << (32 - count - offset);
            match signed {
                true => ((up as i32) >> (32 - count)) as u32,
                false => up >> (32 - count),
            }
        })),
        _ => unsupported(&function, kind),
    }
}

/// Two scalars of a subgroup as one.
pub(crate) fn combine(op: SubgroupOperation, kind: Kind, a: u32, b: u32) -> Result<u32, Fault> {
    use SubgroupOperation as Op;
    let with = |op: BinaryOperator| binary(op, kind, &Lanes::Same(a), &Lanes::Same(b));
    let call =
        |function: MathFunction| math(function, kind, &[&Lanes::Same(a), &Lanes::Same(b)], 1);
    let both = match op {
        Op::Add => with(BinaryOperator::Add),
        Op::Mul => with(BinaryOperator::Multiply),
        Op::Min => call(MathFunction::Min),
        Op::Max => call(MathFunction::Max),
        Op::All | Op::And => with(BinaryOperator::And),
        Op::Any | Op::Or => with(BinaryOperator::InclusiveOr),
        Op::Xor => with(BinaryOperator::ExclusiveOr),
    };
    Ok(both?.at(0))
}
