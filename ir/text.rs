//! The text form of graphs: [`std::fmt::Display`] of [`Graph`] writes it,
//! [`parse`] and [`parse_all`] read it. Each undoes the other: text that was
//! printed is parsed and printed again to the same bytes.
//!
//! ```text
//! graph mlp {
//!   symbol rows <= 8
//!   %0 = input "x" : f32[rows, 768]
//!   %1 = param "mlp.weight" : f32[3072, 768]
//!   %2 = param "mlp.bias" : f32[3072]
//!   %3 = linear %0, %1, %2 {then=[add, gelu_tanh]} : f32[rows, 3072] @mlp
//!   output "y" = %3
//! }
//! ```
//!
//! - A statement declares a symbol with its inclusive maximum, defines a value,
//!   names an output, or gives a state its value after the run.
//! - A value is an op, its operands, its attributes in braces, its type after a
//!   colon and the module that built it after an `@`. The type may be left out,
//!   except of `param`, `input` and `state`: then it is inferred. A type that is
//!   given is taken as claimed; [`crate::verify`] checks the claim.
//! - Ids are any numbers, each defined once, before its first use; they are
//!   kept. Line breaks are as good as spaces, and `//` starts a comment, except within
//!   a quoted name, a number or a dimension.
//! - A source name that is not plain (`[A-Za-z0-9_.-]+`) is quoted, and so is a
//!   graph's name that is not.
//! - A real number is the shortest text that reads back to the same `f64`, with
//!   a point or an exponent. Infinities and NaN have no text.
//!
//! ```
//! use kiln_ir::text::parse;
//!
//! let text = "graph double {
//!   symbol n <= 16
//!   %0 = input \"x\" : f32[n]
//!   %1 = add %0, %0 : f32[n]
//!   output \"y\" = %1
//! }
//! ";
//! assert_eq!(parse(text)?.to_string(), text);
//!
//! let error = parse("graph double {\n  %1 = add %0, %0\n}").unwrap_err();
//! assert_eq!(error.to_string(), "line 2, column 12: %0 is not defined before this use");
//! # Ok::<(), kiln_ir::text::ParseError>(())
//! ```

mod parser;

use std::fmt;

use crate::graph::Graph;
use crate::op::{Attr, Op};

pub use parser::{MAX_ID, ParseError, parse, parse_all};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {} {{", Name(&self.name))?;
        for symbol in &self.symbols {
            writeln!(f, "  symbol {} <= {}", symbol.name, symbol.max)?;
        }
        for (id, value) in self.iter() {
            write!(f, "  {id} = {}", value.op.name())?;
            match &value.op {
                Op::Param { name, .. } | Op::Input { name, .. } | Op::State { name, .. } => {
                    write!(f, " {}", Quoted(name))?;
                }
                op => {
                    for (i, operand) in value.inputs.iter().enumerate() {
                        let comma = if i > 0 { "," } else { "" };
                        write!(f, "{comma} {operand}")?;
                    }
                    write_attrs(f, &op.attrs())?;
                }
            }
            write!(f, " : {}", value.ty)?;
            if !value.source.is_empty() {
                write!(f, " @{}", Name(&value.source))?;
            }
            f.write_str("\n")?;
        }
        for (name, id) in self.outputs() {
            writeln!(f, "  output {} = {id}", Quoted(name))?;
        }
        for (name, id) in self.states() {
            writeln!(f, "  state {} = {id}", Quoted(name))?;
        }
        f.write_str("}\n")
    }
}

fn write_attrs(f: &mut fmt::Formatter<'_>, attrs: &[(&str, Attr)]) -> fmt::Result {
    for (i, (key, value)) in attrs.iter().enumerate() {
        let open = if i > 0 { ", " } else { " {" };
        write!(f, "{open}{key}={value}")?;
    }
    if !attrs.is_empty() {
        f.write_str("}")?;
    }
    Ok(())
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Int(v) => write!(f, "{v}"),
            Attr::Float(v) => write!(f, "{v:?}"),
            Attr::Bool(v) => write!(f, "{v}"),
            Attr::Word(w) => f.write_str(w),
            Attr::Text(t) => write!(f, "{}", Quoted(t)),
            Attr::Dim(d) => write!(f, "{d}"),
            Attr::Type(t) => write!(f, "{t}"),
            Attr::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Whether a name needs no quotes.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.-".contains(c)
}

/// A name, quoted only if need be.
struct Name<'s>(&'s str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{}", Quoted(self.0))
        }
    }
}

/// A string in quotes.
struct Quoted<'s>(&'s str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests;
