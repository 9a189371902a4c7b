//! The number types that the interpreter computes in.

use std::borrow::Cow;
use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use super::{InterpError, Interpreter, Tensors};
use crate::dim::Bindings;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A floating-point type that stands for the graph's `f32`: `f32` itself, or
/// `f64` where a test wants to tell rounding from wrongness.
pub trait Real:
    sealed::Sealed
    + Copy
    + Default
    + PartialEq
    + PartialOrd
    + Debug
    + Display
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + 'static
{
    /// The nearest value.
    fn of(value: f64) -> Self;
    /// As `f64`, exactly.
    fn wide(self) -> f64;
    /// A parameter's elements; borrowed where no conversion is needed.
    fn of_param(values: Cow<'_, [f32]>) -> Cow<'_, [Self]>;
    /// The nearest value of an integer.
    fn of_i32(value: i32) -> Self;
    /// Towards zero, saturating; NaN gives 0.
    fn to_i32(self) -> i32;
    /// `e^x`
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `|x|`
    fn abs(self) -> Self;
    /// Sine of radians.
    fn sin(self) -> Self;
    /// Cosine of radians.
    fn cos(self) -> Self;
    /// `self` to the power of `exponent`.
    fn pow(self, exponent: Self) -> Self;
    /// The larger; the other one if one is NaN.
    fn larger(self, other: Self) -> Self;
    /// The smaller; the other one if one is NaN.
    fn smaller(self, other: Self) -> Self;

    /// [`Interpreter::run_with`]. Not generic, so that it is compiled once, in this
    /// crate and at its optimisation level, not in each of its users.
    #[doc(hidden)]
    fn interpret(
        interpreter: &Interpreter<'_, Self>,
        inputs: &Tensors<Self>,
        states: &mut Tensors<Self>,
        symbols: &Bindings,
    ) -> Result<Tensors<Self>, InterpError>;
}

macro_rules! real {
    ($t:ident, $erf:path, $of_param:expr) => {
        impl Real for $t {
            fn of(value: f64) -> Self {
                value as $t
            }
            fn wide(self) -> f64 {
                f64::from(self)
            }
            fn of_param(values: Cow<'_, [f32]>) -> Cow<'_, [Self]> {
                $of_param(values)
            }
            fn of_i32(value: i32) -> Self {
                value as $t
            }
            fn to_i32(self) -> i32 {
                self as i32
            }
            fn exp(self) -> Self {
                $t::exp(self)
            }
            fn ln(self) -> Self {
                $t::ln(self)
            }
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
            fn erf(self) -> Self {
                $erf(self)
            }
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            fn abs(self) -> Self {
                $t::abs(self)
            }
            fn sin(self) -> Self {
                $t::sin(self)
            }
            fn cos(self) -> Self {
                $t::cos(self)
            }
            fn pow(self, exponent: Self) -> Self {
                $t::powf(self, exponent)
            }
            fn larger(self, other: Self) -> Self {
                $t::max(self, other)
            }
            fn smaller(self, other: Self) -> Self {
                $t::min(self, other)
            }
            fn interpret(
                interpreter: &Interpreter<'_, Self>,
                inputs: &Tensors<Self>,
                states: &mut Tensors<Self>,
                symbols: &Bindings,
            ) -> Result<Tensors<Self>, InterpError> {
                interpreter.compute(inputs, states, symbols)
            }
        }
    };
}

real!(f32, libm::erff, |values| values);
real!(f64, libm::erf, |values: Cow<'_, [f32]>| Cow::Owned(
    values.iter().map(|v| f64::from(*v)).collect()
));
