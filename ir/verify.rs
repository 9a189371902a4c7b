//! The verifier: what has to hold of a [`Graph`] at any time between passes.
//!
//! 1. The order lists values of the arena, each at most once.
//! 2. Every operand is in the order, before its user.
//! 3. Every op has as many operands as it takes.
//! 4. Every value's type is the one that [`crate::infer`] gives.
//! 5. Every symbol in a type or attribute is declared.
//! 6. A symbol is declared once, is a name that the text form can read
//!    (`[A-Za-z_][A-Za-z0-9_]*`, and none of its words), and its maximum is at
//!    least 1 and below 2^31, for a size is an `i32` on a device.
//! 7. Every axis has a size, not negative and below 2^63, at the symbols'
//!    maxima.
//! 8. Parameters, inputs and states have names, unique among their kind.
//! 9. A parameter is of type `f32`, and its shape is constant.
//! 10. Outputs have names, unique among them, and their values are in the order.
//! 11. A state that is set is read by a `state` op, set once, and its value is in
//!     the order.
//! 12. A state's value after a run has the element type and the number of axes
//!     of the value before, and the same size along each axis that is constant
//!     before.
//! 13. Real attributes are finite as `f32`, and epsilons are not negative.
//! 14. A slice lies within its axis at the symbols' maxima: it starts at zero or later,
//!     ends where it starts or later, and no later than the axis.
//! 15. A value has fewer than 2^48 elements at the symbols' maxima, where an axis of no
//!     elements counts as one of one.
//! 16. The ends of an `arange` are of type `i32` at the symbols' maxima.
//!
//! All errors are collected: one mistake in a pass shows all its traces.
//!
//! ```
//! let text = "graph g { %0 = input \"x\" : f32[4] %1 = neg %0 : f32[5] @h.0.mlp }";
//! let graph = kiln_ir::text::parse(text)?;
//! let errors = kiln_ir::verify::verify(&graph).unwrap_err();
//! assert_eq!(
//!     errors.errors[0].to_string(),
//!     "%1 = neg in `h.0.mlp`: expected type f32[4], found f32[5]",
//! );
//! # Ok::<(), kiln_ir::text::ParseError>(())
//! ```

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::dim::{Bindings, Dim, DimError, Symbol};
use crate::graph::{Graph, Value, ValueId};
use crate::infer::infer;
use crate::op::{Op, Scalar};
use crate::types::{DType, TensorType};

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct VerifyError {
    /// The number of the invariant in the list at the head of this module.
    pub invariant: u8,
    /// The value, where the error is about one.
    pub value: Option<ValueId>,
    /// What the error is about: an op, or a name with its kind.
    pub subject: String,
    /// The dotted name of the module that built the value; may be empty.
    pub source_name: String,
    /// What has to hold.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(value) = self.value {
            write!(f, "{value} = ")?;
        }
        f.write_str(&self.subject)?;
        if !self.source_name.is_empty() {
            write!(f, " in `{}`", self.source_name)?;
        }
        write!(f, ": expected {}, found {}", self.expected, self.found)
    }
}

/// Every broken invariant of a graph; there is at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct VerifyErrors {
    /// The graph's name.
    pub graph: String,
    /// What is broken, in the order of the values.
    pub errors: Vec<VerifyError>,
}

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph `{}` is not valid:", self.graph)?;
        for error in &self.errors {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

/// Checks every invariant.
///
/// # Errors
/// All that do not hold.
pub fn verify(graph: &Graph) -> Result<(), VerifyErrors> {
    let mut verifier = Verifier {
        graph,
        place: vec![None; graph.arena_len()],
        at_max: Bindings::at_max(&graph.symbols),
        errors: Vec::new(),
    };
    verifier.symbols();
    verifier.order();
    let order = graph.order().iter().enumerate();
    for (place, id) in order {
        if let Some(value) = graph.get(*id) {
            verifier.value(place, *id, value);
        }
    }
    verifier.names();
    verifier.outputs();
    verifier.states();
    if verifier.errors.is_empty() {
        Ok(())
    } else {
        Err(VerifyErrors {
            graph: graph.name.clone(),
            errors: verifier.errors,
        })
    }
}

struct Verifier<'g> {
    graph: &'g Graph,
    /// For each value, by index: where it stands in the order.
    place: Vec<Option<usize>>,
    at_max: Bindings,
    errors: Vec<VerifyError>,
}

/// What no value may have as many elements as: then sizes in bytes, strides and indices
/// fit 63 bits, and no memory holds as many.
const MAX_ELEMENTS: u64 = 1 << 48;

/// Whether the text form reads `name` as a symbol.
pub(crate) fn is_symbol_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !["ceil", "min", "true", "false", "inf", "nan", "NaN"].contains(&name)
}

impl Verifier<'_> {
    fn graph_error(&mut self, invariant: u8, subject: String, expected: String, found: String) {
        self.errors.push(VerifyError {
            invariant,
            value: None,
            subject,
            source_name: String::new(),
            expected,
            found,
        });
    }

    fn value_error(
        &mut self,
        invariant: u8,
        id: ValueId,
        expected: impl Into<String>,
        found: impl ToString,
    ) {
        let value = self.graph.get(id);
        self.errors.push(VerifyError {
            invariant,
            value: Some(id),
            subject: value.map_or("?", |v| v.op.name()).to_owned(),
            source_name: value.map_or_else(String::new, |v| v.source.clone()),
            expected: expected.into(),
            found: found.to_string(),
        });
    }

    fn symbols(&mut self) {
        let mut seen = BTreeMap::<&Symbol, usize>::new();
        for decl in &self.graph.symbols {
            let subject = || format!("symbol `{}`", decl.name);
            *seen.entry(&decl.name).or_default() += 1;
            if !is_symbol_name(decl.name.name()) {
                let expected = "a name of letters, digits and `_` that is no word of the text form";
                self.graph_error(
                    6,
                    subject(),
                    expected.to_owned(),
                    format!("`{}`", decl.name),
                );
            }
            if decl.max == 0 || decl.max > i32::MAX as u64 {
                let expected = "a maximum from 1 to 2^31 - 1".to_owned();
                self.graph_error(6, subject(), expected, decl.max.to_string());
            }
        }
        for (symbol, count) in seen.into_iter().filter(|(_, n)| *n > 1) {
            let found = format!("{count}");
            self.graph_error(
                6,
                format!("symbol `{symbol}`"),
                "one declaration".into(),
                found,
            );
        }
    }

    fn order(&mut self) {
        let order = self.graph.order().iter().enumerate();
        for (at, id) in order {
            match self.place.get_mut(id.index()) {
                None => self.value_error(1, *id, "a value of the graph", "an id out of range"),
                Some(Some(_)) => self.value_error(1, *id, "one place in the order", "two"),
                Some(place) => *place = Some(at),
            }
        }
    }

    fn place_of(&self, id: ValueId) -> Option<usize> {
        self.place.get(id.index()).copied().flatten()
    }

    fn value(&mut self, place: usize, id: ValueId, value: &Value) {
        for operand in &value.inputs {
            match self.place_of(*operand) {
                None => {
                    let found = format!("{operand}, which is not in the order");
                    self.value_error(2, id, "operands of the graph", found);
                }
                Some(p) if p >= place => {
                    let found = format!("{operand}, which comes later");
                    self.value_error(2, id, "operands computed before", found);
                }
                Some(_) => {}
            }
        }

        let arity = value.op.arity();
        if arity.accepts(value.inputs.len()) {
            let operands = value.inputs.iter();
            let types: Option<Vec<&TensorType>> = operands
                .map(|i| self.graph.get(*i).map(|v| &v.ty))
                .collect();
            match types.map(|types| infer(&value.op, &types)) {
                Some(Ok(ty)) if ty != value.ty => {
                    self.value_error(4, id, format!("type {ty}"), &value.ty);
                }
                Some(Err(e)) => self.value_error(4, id, e.expected, e.found),
                // An operand does not exist; said above.
                Some(Ok(_)) | None => {}
            }
        } else {
            let expected = format!("{arity} operands");
            self.value_error(3, id, expected, value.inputs.len());
        }

        let mut dims: Vec<&Dim> = value.ty.shape.iter().collect();
        op_dims(&value.op, &mut dims);
        let mut symbols: Vec<Symbol> = dims.iter().flat_map(|d| d.symbols()).collect();
        symbols.sort();
        symbols.dedup();
        let declared = |s: &Symbol| self.graph.symbols.iter().any(|d| d.name == *s);
        symbols.retain(|s| !declared(s));
        for symbol in &symbols {
            self.value_error(5, id, "declared symbols", format!("`{symbol}`"));
        }
        if symbols.is_empty() {
            let mut elements = Some(1_u64);
            for dim in &value.ty.shape {
                match dim.eval(&self.at_max) {
                    Ok(size) => elements = elements.and_then(|n| n.checked_mul(size.max(1))),
                    Err(e) => {
                        let expected = "sizes from 0 to 2^63 - 1 at the symbols' maxima";
                        self.value_error(7, id, expected, e);
                    }
                }
            }
            if elements.is_none_or(|n| n >= MAX_ELEMENTS) {
                let expected = "fewer than 2^48 elements at the symbols' maxima";
                self.value_error(15, id, expected, &value.ty);
            }
            self.slice(id, value);
            self.arange(id, &value.op);
        }

        if let Op::Param { ty, .. } = &value.op {
            if ty.dtype != DType::F32 {
                self.value_error(9, id, "a parameter of type f32", ty);
            }
            if ty.shape.iter().any(|d| d.as_const().is_none()) {
                self.value_error(9, id, "a parameter of constant shape", ty);
            }
        }
        self.floats(id, &value.op);
    }

    fn slice(&mut self, id: ValueId, value: &Value) {
        let Op::Slice { axis, start, end } = &value.op else {
            return;
        };
        let x = value.inputs.first().and_then(|x| self.graph.get(*x));
        let Some(size) = x.and_then(|x| x.ty.shape.get(*axis)) else {
            // There is no operand, or no such axis; said above.
            return;
        };
        // That the length is not negative is part of invariant 7: it is a size.
        for distance in [start.clone(), size - end] {
            // Symbols of the operand's type may not be declared, which is said of it.
            if let Err(e @ DimError::OutOfRange { .. }) = distance.eval(&self.at_max) {
                let expected = format!("a range within 0..{size} at the symbols' maxima");
                self.value_error(14, id, expected, format!("{start}..{end}, where {e}"));
            }
        }
    }

    fn arange(&mut self, id: ValueId, op: &Op) {
        let Op::Arange { start, end } = op else {
            return;
        };
        for dim in [start, end] {
            let value = dim.eval_wide(&self.at_max);
            if let Some(value) = value.ok().filter(|v| i32::try_from(*v).is_err()) {
                let expected = "ends of type i32 at the symbols' maxima";
                self.value_error(16, id, expected, format!("`{dim}`, which is {value}"));
            }
        }
    }

    fn floats(&mut self, id: ValueId, op: &Op) {
        let norm = match op {
            Op::Normalize(norm) => Some(norm),
            Op::Linear { norm, .. } => norm.as_ref(),
            _ => None,
        };
        if let Some(norm) = norm
            && !(norm.eps() >= 0.0 && (norm.eps() as f32).is_finite())
        {
            let expected = "an epsilon that is finite as f32, not negative";
            self.value_error(13, id, expected, format!("{:?}", norm.eps()));
        }
        let numbers = match op {
            Op::Const(Scalar::F32(v)) => std::slice::from_ref(v),
            Op::Table(values) => values,
            Op::Attention(spec) | Op::AttentionProbs(spec) => std::slice::from_ref(&spec.scale),
            _ => &[],
        };
        // The interpreter may compute in `f64`, but a device does not.
        if let Some(number) = numbers.iter().find(|v| !(**v as f32).is_finite()) {
            self.value_error(
                13,
                id,
                "a number that is finite as f32",
                format!("{number:?}"),
            );
        }
    }

    fn names(&mut self) {
        let mut seen = BTreeMap::<(&str, &str), ValueId>::new();
        let mut errors = Vec::new();
        for (id, value) in self.graph.iter() {
            let (kind, name) = match &value.op {
                Op::Param { name, .. } => ("parameter", name),
                Op::Input { name, .. } => ("input", name),
                Op::State { name, .. } => ("state", name),
                _ => continue,
            };
            if name.is_empty() {
                errors.push((id, format!("a name for the {kind}"), "none".to_owned()));
            }
            if let Some(first) = seen.insert((kind, name), id) {
                let found = format!("`{name}`, as {first} has");
                errors.push((id, format!("a name of its own for the {kind}"), found));
            }
        }
        for (id, expected, found) in errors {
            self.value_error(8, id, expected, found);
        }
    }

    /// Names without repeats, values in the order.
    fn named(&mut self, invariant: u8, kind: &str, names: &[(String, ValueId)]) {
        let mut seen = BTreeMap::<&str, ValueId>::new();
        for (name, id) in names {
            let subject = || format!("{kind} `{name}`");
            if name.is_empty() {
                self.graph_error(invariant, subject(), "a name".into(), "none".into());
            }
            if let Some(first) = seen.insert(name, *id) {
                let found = format!("{first} and {id}");
                self.graph_error(invariant, subject(), "one value".into(), found);
            }
            if self.place_of(*id).is_none() {
                let found = format!("{id}, which is not in the order");
                self.graph_error(invariant, subject(), "a value of the graph".into(), found);
            }
        }
    }

    fn outputs(&mut self) {
        self.named(10, "output", self.graph.outputs());
    }

    fn states(&mut self) {
        self.named(11, "state", self.graph.states());
        for (name, after) in self.graph.states() {
            let read = self.graph.iter().find_map(|(_, v)| match &v.op {
                Op::State { name: n, ty } if n == name => Some(ty),
                _ => None,
            });
            let Some(before) = read else {
                let expected = "a `state` op that reads it".to_owned();
                self.graph_error(11, format!("state `{name}`"), expected, "none".into());
                continue;
            };
            let Some(value) = self.graph.get(*after) else {
                continue;
            };
            let after_ty = &value.ty;
            let kept = before.shape.iter().zip(&after_ty.shape);
            let kept = kept
                .into_iter()
                .all(|(b, a)| b.as_const().is_none() || a == b);
            if before.dtype != after_ty.dtype || before.rank() != after_ty.rank() || !kept {
                let expected = format!("{before}, symbolic axes apart");
                let found = format!("{after_ty} ({after})");
                self.graph_error(12, format!("state `{name}`"), expected, found);
            }
        }
    }
}

/// The dimensions among an op's attributes.
fn op_dims<'o>(op: &'o Op, out: &mut Vec<&'o Dim>) {
    match op {
        Op::Param { ty, .. } | Op::Input { ty, .. } | Op::State { ty, .. } => {
            out.extend(&ty.shape);
        }
        Op::Arange { start, end } | Op::Slice { start, end, .. } => out.extend([start, end]),
        Op::Reshape { shape } | Op::Broadcast { shape } => out.extend(shape),
        _ => {}
    }
}
