//! Elementwise functions as WGSL.

use kiln_ir::{Activation, BinaryOp, UnaryOp};

use crate::kernel::Draft;

/// A nonlinearity's function.
pub(crate) fn activation(activation: Activation, four: bool) -> &'static str {
    match (activation, four) {
        (Activation::GeluTanh, false) => "gelu_tanh",
        (Activation::GeluTanh, true) => "gelu_tanh4",
        (Activation::GeluErf, false) => "gelu_erf",
        (Activation::GeluErf, true) => "gelu_erf4",
        (Activation::Relu, false) => "relu",
        (Activation::Relu, true) => "relu4",
        (Activation::Silu, false) => "silu",
        (Activation::Silu, true) => "silu4",
        (Activation::Tanh, false) => "safe_tanh",
        (Activation::Tanh, true) => "safe_tanh4",
    }
}

/// A function of one printed operand; `four` marks the form for four elements.
pub(crate) fn unary(op: UnaryOp, x: &str, four: &str, k: &mut Draft) -> String {
    let own = |k: &mut Draft, one: &'static str, wide: &'static str| {
        let name = k.function(if four.is_empty() { one } else { wide });
        format!("{name}({x})")
    };
    match op {
        UnaryOp::Neg => format!("(-{x})"),
        UnaryOp::Not => format!("(!{x})"),
        UnaryOp::Tanh => own(k, "safe_tanh", "safe_tanh4"),
        UnaryOp::Erf => own(k, "erf", "erf4"),
        UnaryOp::Exp => format!("exp({x})"),
        UnaryOp::Log => format!("log({x})"),
        UnaryOp::Sqrt => format!("sqrt({x})"),
        UnaryOp::Rsqrt => format!("inverseSqrt({x})"),
        UnaryOp::Abs => format!("abs({x})"),
        UnaryOp::Sin => own(k, "safe_sin", "safe_sin4"),
        UnaryOp::Cos => own(k, "safe_cos", "safe_cos4"),
    }
}

/// A function of two printed operands.
pub(crate) fn binary(op: BinaryOp, a: &str, b: &str, k: &mut Draft) -> String {
    let sign = match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => ">=",
        BinaryOp::Eq => "==",
        BinaryOp::And => "&&",
        BinaryOp::Or => "||",
        BinaryOp::Max => return format!("max({a}, {b})"),
        BinaryOp::Min => return format!("min({a}, {b})"),
        BinaryOp::Pow => return format!("{}({a}, {b})", k.function("safe_pow")),
    };
    format!("({a} {sign} {b})")
}
