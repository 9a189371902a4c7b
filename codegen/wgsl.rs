//! Printing of dimensions and literals as WGSL, and changes to text that is WGSL.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::iter;

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
        Atom::Min(d, n) => format!("min({}, {n}u)", self::dim(d)),
    }
}

/// A symbol, read from the uniform block.
pub(crate) fn symbol(symbol: &Symbol) -> String {
    format!("sym.{}", member(symbol.name()))
}

/// What a symbol is called in the uniform block: its name, unless WGSL has another use for
/// that.
pub(crate) fn member(symbol: &str) -> String {
    let is_reserved = naga::keywords::wgsl::RESERVED.contains(&symbol);
    let is_other = symbol.starts_with("symbol_");
    match is_reserved || is_other || symbol == "_" || symbol.starts_with("__") {
        true => format!("symbol_{symbol}"),
        false => symbol.to_owned(),
    }
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

/// A piece of WGSL text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'t> {
    /// An identifier or a keyword, but for the names of members and attributes.
    Word(&'t str),
    Other(&'t str),
}

/// The text cut into pieces.
fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    // All that is not ASCII stands in names and in comments.
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || !b.is_ascii();
    let mut rest = text;
    let mut after_sign = false;
    iter::from_fn(move || {
        let first = *rest.as_bytes().first()?;
        let end = |is_inside: &dyn Fn(u8) -> bool| {
            let end = rest.bytes().position(|b| !is_inside(b));
            end.unwrap_or(rest.len())
        };
        let length = if rest.starts_with("//") {
            end(&|b| b != b'\n')
        } else if first.is_ascii_digit() {
            end(&|b| is_word(b) || b == b'.')
        } else if is_word(first) {
            end(&is_word)
        } else if first == b' ' {
            end(&|b| b == b' ')
        } else {
            1
        };
        let (piece, others) = rest.split_at(length);
        rest = others;
        let names = is_word(first) && !first.is_ascii_digit() && !after_sign;
        after_sign = piece == "." || piece == "@";
        Some(match names {
            true => Token::Word(piece),
            false => Token::Other(piece),
        })
    })
}

/// The names that are declared at module scope.
pub(crate) fn declared(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut depth = 0;
    let mut declares = false;
    for token in tokens(text) {
        match token {
            Token::Other("{") => depth += 1,
            Token::Other("}") => depth -= 1,
            Token::Word("fn" | "const" | "struct" | "alias" | "var") if depth == 0 => {
                declares = true;
            }
            // `var<workgroup> name`
            Token::Word("workgroup" | "private") if declares => {}
            Token::Word(name) if declares => {
                out.push(name);
                declares = false;
            }
            _ => {}
        }
    }
    out
}

/// The text with every name in `names` replaced, wherever it is declared: what hides
/// another goes on hiding it.
pub(crate) fn rename(text: &str, names: &BTreeMap<&str, String>) -> String {
    let mut out = String::with_capacity(text.len() * 5 / 4);
    let names: HashMap<&str, &str> = names.iter().map(|(k, v)| (*k, v.as_str())).collect();
    for token in tokens(text) {
        match token {
            Token::Word(word) => out.push_str(names.get(word).copied().unwrap_or(word)),
            Token::Other(other) => out.push_str(other),
        }
    }
    out
}

/// The text with loops written out: behind a line `// unroll 0u 4u`, the body of the
/// `for` that follows once for each of these values of its variable, and behind
/// `// unroll COUNT` once for each value below one of `constants`. A loop ends at the
/// first bracket that is indented as it is.
pub(crate) fn unroll(text: &str, constants: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let values = line.trim_start().strip_prefix("// unroll ");
        let values = values.and_then(|values| values_of(values, constants));
        let variable = lines.peek().and_then(|next| {
            let declared = next.trim_start().strip_prefix("for (var ")?;
            Some(declared.split_once(' ')?.0)
        });
        let (Some(values), Some(variable)) = (values, variable) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let end = format!("{indent}}}");
        let body: Vec<&str> = lines.by_ref().skip(1).take_while(|l| *l != end).collect();
        let body = body.join("\n");
        for value in values {
            let names = [(variable, value)].into();
            let _ = writeln!(out, "{indent}{{\n{}\n{end}", rename(&body, &names));
        }
    }
    out
}

/// `text` with each `name[i]` as `function(i)`.
pub(crate) fn call_for_load(text: &str, name: &str, function: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, index, after)) = indexed(rest, name) {
        let index = call_for_load(index, name, function);
        let _ = write!(out, "{before}{function}({index})");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `text` with each `name[i] = v;` as `function(i, v);`.
pub(crate) fn call_for_store(text: &str, name: &str, function: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, index, after)) = indexed(rest, name) {
        let stored = after.strip_prefix(" = ").and_then(|v| v.split_once(';'));
        let Some((value, after)) = stored else {
            break;
        };
        let _ = write!(out, "{before}{function}({index}, {value});");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// What stands before the first `name[i]` of `text`, `i`, and what stands behind.
fn indexed<'t>(text: &'t str, name: &str) -> Option<(&'t str, &'t str, &'t str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let pattern = format!("{name}[");
    let mut places = text.match_indices(&pattern);
    let (at, _) = places.find(|(at, _)| !text[..*at].ends_with(is_part))?;
    let after = &text[at + pattern.len()..];
    let mut depth = 1;
    let end = after.find(|c| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        depth == 0
    })?;
    Some((&text[..at], &after[..end], &after[end + 1..]))
}

/// Values that are listed, or those below a constant.
fn values_of(text: &str, constants: &str) -> Option<Vec<String>> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return Some(text.split_whitespace().map(str::to_owned).collect());
    }
    let declared = constants
        .lines()
        .find_map(|l| l.strip_prefix(&format!("const {text}: u32 = ")))?;
    let count: u32 = declared.strip_suffix("u;")?.parse().ok()?;
    Some((0..count).map(|i| format!("{i}u")).collect())
}

/// A compute entry point that was made a function.
pub(crate) struct Entry {
    /// The builtins that were its parameters, in order.
    pub builtins: Vec<String>,
    /// The whole text.
    pub text: String,
}

impl Entry {
    /// Makes the entry point of a kernel's text a function; nothing if it has none
    /// whose parameters are all builtins.
    pub fn take(text: &str) -> Option<Entry> {
        let (before, rest) = text.split_once("@compute ")?;
        let (_, rest) = rest.split_once("fn ")?;
        let (name, rest) = rest.split_once('(')?;
        let (parameters, after) = rest.split_once(") {")?;
        let mut builtins = Vec::new();
        let mut plain = Vec::new();
        for parameter in parameters.split("@builtin(").skip(1) {
            let (builtin, rest) = parameter.split_once(')')?;
            builtins.push(builtin.to_owned());
            plain.push(rest.trim().trim_end_matches(',').to_owned());
        }
        Some(Entry {
            builtins,
            text: format!("{before}fn {name}({}) {{{after}", plain.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions() {
        let text = |s: &str| dim(&s.parse().unwrap());
        assert_eq!(text("7"), "7u");
        assert_eq!(text("seq"), "sym.seq");
        assert_eq!(text("new"), "sym.symbol_new");
        assert_eq!(text("past + seq"), "(sym.past + sym.seq)");
        assert_eq!(text("seq - 1"), "(sym.seq - 1u)");
        assert_eq!(text("-past + seq"), "(sym.seq - sym.past)");
        assert_eq!(
            text("min(batch*seq | 16)*2"),
            "(min((sym.batch * sym.seq), 16u) * 2u)"
        );
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

    const KERNEL: &str = "const N: u32 = 4u;\nvar<workgroup> row: array<f32, N>;\n\n\
        // N is no name here.\nfn f(row: u32) -> u32 {\n    let x = vec2<u32>(row, 1e3u).x;\n    return x * N;\n}\n\n\
        @compute @workgroup_size(N)\nfn main(\n    @builtin(workgroup_id) id: vec3<u32>,\n    \
        @builtin(local_invocation_index) x: u32,\n) {\n    row[x] = f32(f(x));\n}\n";

    #[test]
    fn names_change_and_members_and_comments_do_not() {
        assert_eq!(declared(KERNEL), ["N", "row", "f", "main"]);
        let names = ["N", "row", "f", "x", "e3u", "compute"].map(|n| (n, format!("s_{n}")));
        let text = rename(KERNEL, &names.into_iter().collect());
        assert!(
            text.contains("var<workgroup> s_row: array<f32, s_N>;"),
            "{text}"
        );
        assert!(text.contains("// N is no name here."), "{text}");
        assert!(text.contains("@compute "), "{text}");
        assert!(text.contains("fn s_f(s_row: u32)"), "{text}");
        assert!(text.contains("vec2<u32>(s_row, 1e3u).x;"), "{text}");
        assert!(text.contains("s_row[s_x] = f32(s_f(s_x));"), "{text}");
    }

    #[test]
    fn an_entry_point_becomes_a_function() {
        let entry = Entry::take(KERNEL).unwrap();
        assert_eq!(entry.builtins, ["workgroup_id", "local_invocation_index"]);
        assert!(entry.text.contains("\nfn main(id: vec3<u32>, x: u32) {\n"));
        assert!(!entry.text.contains('@'), "{}", entry.text);
        assert!(Entry::take("fn main() {}").is_none());
    }

    #[test]
    fn loads_and_stores_become_calls() {
        let text = "let v = w[n * w[0u] + a[1u]][k % 4u] + my_w[2u] + o.w[1u] + w.x + w[";
        assert_eq!(
            call_for_load(text, "w", "at"),
            "let v = at(n * at(0u) + a[1u])[k % 4u] + my_w[2u] + o.w[1u] + w.x + w["
        );
        let text =
            "    if a {\n        y[i + o[1u]] = v[0u];\n    } else {\n        y[i] = w;\n    }\n";
        assert_eq!(
            call_for_store(text, "y", "put"),
            "    if a {\n        put(i + o[1u], v[0u]);\n    } else {\n        put(i, w);\n    }\n"
        );
    }

    #[test]
    fn loops_are_written_out() {
        let text = "fn f() {\n    // unroll 0u 4u\n    for (var k = 0u; k < 8u; k += 4u) {\n        \
            if k > 0u {\n            g(k, v.k);\n        }\n    }\n    h();\n}\n";
        let copy = |k: &str| {
            format!(
                "    {{\n        if {k} > 0u {{\n            g({k}, v.k);\n        }}\n    }}\n"
            )
        };
        let wanted = format!("fn f() {{\n{}{}    h();\n}}\n", copy("0u"), copy("4u"));
        assert_eq!(unroll(text, ""), wanted);
        let text = text.replace("0u 4u\n", "COUNT\n");
        let wanted = format!("fn f() {{\n{}{}    h();\n}}\n", copy("0u"), copy("1u"));
        assert_eq!(
            unroll(&text, "const X: u32 = 1u;\nconst COUNT: u32 = 2u;\n"),
            wanted
        );
        assert_eq!(unroll(&text, "const COUNTER: u32 = 2u;\n"), text);
    }
}
