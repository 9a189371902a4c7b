//! Printing of dimensions and literals as WGSL.

use kiln_ir::dim::Atom;
use kiln_ir::{Dim, Scalar, Symbol};

/// A dimension as a WGSL expression of type `u32`, with symbols read from the
/// uniform block. Compound expressions are parenthesised. Positive terms come
/// first, so that no intermediate result is negative when the value is not.
pub(crate) fn dim(dim: &Dim) -> String {
    if let Some(value) = dim.as_const() {
        return format!("{value}u");
    }
    let mut compound = dim.terms().count() > 1;
    let mut terms: Vec<(String, bool, bool)> = dim
        .terms()
        .map(|(atoms, coefficient)| {
            let mut factors: Vec<String> = atoms.iter().map(atom).collect();
            if coefficient.unsigned_abs() != 1 || factors.is_empty() {
                factors.push(format!("{}u", coefficient.unsigned_abs()));
            }
            compound |= factors.len() > 1;
            (factors.join(" * "), coefficient < 0, atoms.is_empty())
        })
        .collect();
    terms.sort_by_key(|(_, negative, constant)| (*negative, *constant));
    let mut out = String::new();
    for (i, (text, negative, _)) in terms.iter().enumerate() {
        match (i, negative) {
            (0, false) => {}
            // Only for a value that is never positive; wraps as u32 does.
            (0, true) => out.push_str("0u - "),
            (_, false) => out.push_str(" + "),
            (_, true) => out.push_str(" - "),
        }
        out.push_str(text);
    }
    if compound { format!("({out})") } else { out }
}

fn atom(atom: &Atom) -> String {
    match atom {
        Atom::Symbol(s) => symbol(s),
        Atom::CeilDiv(d, n) => {
            let rounded = d.as_ref().clone() + (*n - 1);
            format!("({} / {n}u)", self::dim(&rounded))
        }
    }
}

/// A symbol, read from the uniform block.
pub(crate) fn symbol(symbol: &Symbol) -> String {
    format!("sym.{symbol}")
}

/// A constant as a WGSL literal.
pub(crate) fn literal(scalar: Scalar) -> String {
    match scalar {
        Scalar::F32(v) => float(v),
        // The most negative i32 has no literal of its own.
        Scalar::I32(i32::MIN) => "(-2147483647i - 1i)".to_owned(),
        Scalar::I32(v) if v < 0 => format!("({v}i)"),
        Scalar::I32(v) => format!("{v}i"),
        Scalar::Bool(v) => v.to_string(),
    }
}

/// A real number, rounded to `f32`, as a literal that reads back exactly.
/// Infinities and NaN, which WGSL has no literals for, become the nearest
/// finite numbers and zero.
pub(crate) fn float(value: f64) -> String {
    let single = if value.is_nan() {
        0.0
    } else {
        (value as f32).clamp(f32::MIN, f32::MAX)
    };
    let text = format!("{:?}f", f64::from(single));
    if single < 0.0 {
        format!("({text})")
    } else {
        text
    }
}

/// `a * b` for two printed factors, where one may be the literal 1 or 0.
pub(crate) fn times(a: &str, b: &str) -> String {
    match (a, b) {
        ("0u", _) | (_, "0u") => "0u".to_owned(),
        ("1u", x) | (x, "1u") => x.to_owned(),
        _ => format!("{a} * {b}"),
    }
}

/// `a + b` for printed summands, without the zeros; `0u` for none.
pub(crate) fn sum<S: AsRef<str>>(terms: impl IntoIterator<Item = S>) -> String {
    let mut out = String::new();
    for term in terms {
        let term = term.as_ref();
        if term == "0u" {
            continue;
        }
        if !out.is_empty() {
            out.push_str(" + ");
        }
        out.push_str(term);
    }
    if out.is_empty() { "0u".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions() {
        let text = |s: &str| dim(&s.parse().unwrap());
        assert_eq!(text("7"), "7u");
        assert_eq!(text("seq"), "sym.seq");
        assert_eq!(text("past + seq"), "(sym.past + sym.seq)");
        assert_eq!(text("seq - 1"), "(sym.seq - 1u)");
        assert_eq!(text("-past + seq"), "(sym.seq - sym.past)");
        assert_eq!(
            text("ceil(batch*seq / 16)"),
            "((sym.batch * sym.seq + 15u) / 16u)"
        );
    }

    #[test]
    fn literals_read_back() {
        assert_eq!(float(0.5), "0.5f");
        assert_eq!(float(kiln_ir::MASK_VALUE), "(-3.4028234663852886e38f)");
        assert_eq!(float(f64::INFINITY), "3.4028234663852886e38f");
        assert_eq!(float(f64::NAN), "0.0f");
        assert_eq!(literal(Scalar::I32(-3)), "(-3i)");
    }

    #[test]
    fn sums_and_products_drop_the_trivial() {
        assert_eq!(sum(["0u", "a", "0u", "b"]), "a + b");
        assert_eq!(sum(Vec::<String>::new()), "0u");
        assert_eq!(times("1u", "a"), "a");
        assert_eq!(times("a", "0u"), "0u");
    }
}
