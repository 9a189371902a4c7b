//! Dimensions: constants, symbols, and normalised expressions of them.
//!
//! A [`Dim`] is a polynomial with integer coefficients over *atoms*; an atom is a [`Symbol`], a
//! rounded-up quotient or a bounded dimension. The polynomial form is canonical, so `seq + past`
//! equals `past + seq` structurally and equality of dimensions is plain `==`. The text form
//! (`batch*seq*768 + 3`, `ceil(batch*seq / 16)`, `min(past + seq | 512)`) parses back to the same
//! value; it is also how a dimension is serialised.
//!
//! ```
//! use kiln_ir::{Bindings, Dim};
//!
//! let rows = Dim::symbol("batch") * "seq";
//! let grid = (rows * 768u64 + 3u64).ceil_div(64);
//! assert_eq!(grid.to_string(), "ceil(batch*seq*768 + 3 / 64)");
//! assert_eq!("ceil(3 + seq*batch*768 / 64)".parse(), Ok(grid.clone()));
//! assert_eq!(grid.eval(&Bindings::new().with("batch", 2).with("seq", 5)), Ok(121));
//! ```
//!
//! Coefficients that leave the range of `i64` stop at its ends, so that no
//! expression can make arithmetic panic; text that would is refused.

#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a size that is known only when a graph runs, such as `seq`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// A symbol of this name. The text form wants `[A-Za-z_][A-Za-z0-9_]*`.
    pub fn new(name: &str) -> Self {
        Symbol(name.into())
    }

    /// The symbol's name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A symbol with the largest value it may take, inclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolDecl {
    /// The symbol.
    pub name: Symbol,
    /// Its inclusive maximum.
    pub max: u64,
}

/// Values for symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings(BTreeMap<Symbol, u64>);

impl Bindings {
    /// No symbol bound.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every declared symbol at its maximum.
    pub fn at_max(decls: &[SymbolDecl]) -> Self {
        Bindings(decls.iter().map(|d| (d.name.clone(), d.max)).collect())
    }

    /// Binds `name`, replacing an earlier value.
    pub fn set(&mut self, name: &str, value: u64) -> &mut Self {
        self.0.insert(Symbol::new(name), value);
        self
    }

    /// `set` in builder style.
    #[must_use]
    pub fn with(mut self, name: &str, value: u64) -> Self {
        self.set(name, value);
        self
    }

    /// The value of a symbol, if bound.
    pub fn get(&self, symbol: &Symbol) -> Option<u64> {
        self.0.get(symbol).copied()
    }

    /// All bound symbols, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&Symbol, u64)> {
        self.0.iter().map(|(s, v)| (s, *v))
    }
}

/// Why a dimension has no value under some [`Bindings`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DimError {
    /// A symbol has no value.
    #[error("symbol `{symbol}` in `{dim}` is not bound")]
    Unbound {
        /// The symbol without a value.
        symbol: Symbol,
        /// The whole expression.
        dim: String,
    },
    /// The value is negative or does not fit.
    #[error("`{dim}` evaluates to {value}, outside 0..=2^63-1")]
    OutOfRange {
        /// The whole expression.
        dim: String,
        /// What it came to.
        value: i128,
    },
    /// The text is not a dimension.
    #[error("`{text}` is not a dimension: {reason}")]
    Syntax {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A factor of a [`Dim`]'s term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// A symbol.
    Symbol(Symbol),
    /// The quotient of a dimension and a positive constant, rounded up.
    CeilDiv(Box<Dim>, u64),
    /// A dimension, or a constant where that is less; in a kernel, where there is nothing below
    /// zero, the dimension must not be either.
    Min(Box<Dim>, u64),
}

/// The largest constant that the text form has.
const LARGEST: u64 = i64::MAX as u64 - 1;

/// A dimension: a polynomial over [`Atom`]s in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dim {
    /// Products of atoms (sorted; empty for the constant term), each once and in their order,
    /// with their coefficients (never zero). A list, for nearly all have a term or two, and
    /// compiling a model makes millions of them.
    terms: Vec<(Vec<Atom>, i64)>,
}

impl Dim {
    /// The constant `value`.
    pub fn constant(value: u64) -> Self {
        Self::from_term(Vec::new(), i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// The symbol called `name`.
    pub fn symbol(name: &str) -> Self {
        Self::from_term(vec![Atom::Symbol(Symbol::new(name))], 1)
    }

    fn from_term(atoms: Vec<Atom>, coefficient: i64) -> Self {
        let mut dim = Dim::default();
        dim.add_term(Cow::Owned(atoms), coefficient);
        dim
    }

    fn add_term(&mut self, atoms: Cow<'_, [Atom]>, coefficient: i64) {
        let place = self
            .terms
            .binary_search_by(|(known, _)| known.as_slice().cmp(&atoms));
        match place {
            Ok(at) => {
                let sum = &mut self.terms[at].1;
                *sum = sum.saturating_add(coefficient);
                if *sum == 0 {
                    self.terms.remove(at);
                }
            }
            Err(at) if coefficient != 0 => {
                self.terms.insert(at, (atoms.into_owned(), coefficient));
            }
            Err(_) => {}
        }
    }

    /// The value, if no symbol occurs.
    pub fn as_const(&self) -> Option<u64> {
        match self.terms.as_slice() {
            [] => Some(0),
            [(atoms, c)] => (atoms.is_empty() && *c >= 0).then_some(*c as u64),
            _ => None,
        }
    }

    /// Whether this is a constant below zero, and so no size whatever the symbols are.
    pub fn is_negative_const(&self) -> bool {
        matches!(self.terms.as_slice(), [(atoms, c)] if atoms.is_empty() && *c < 0)
    }

    /// Whether a coefficient is at an end of its range, where arithmetic stops: the
    /// dimension may not be what it was computed as.
    pub fn is_saturated(&self) -> bool {
        let mut terms = self.terms.iter();
        terms.any(|(_, c)| c.unsigned_abs() >= i64::MAX as u64)
    }

    /// The symbol, if the dimension is exactly one symbol.
    pub fn as_symbol(&self) -> Option<&Symbol> {
        match self.terms.as_slice() {
            [(atoms, 1)] => match atoms.as_slice() {
                [Atom::Symbol(s)] => Some(s),
                _ => None,
            },
            _ => None,
        }
    }

    /// The terms, each a product of atoms with its coefficient.
    pub fn terms(&self) -> impl Iterator<Item = (&[Atom], i64)> {
        self.terms.iter().map(|(a, c)| (a.as_slice(), *c))
    }

    /// Whether this is the constant one.
    pub fn is_one(&self) -> bool {
        self.as_const() == Some(1)
    }

    /// This dimension over `divisor`, rounded up. Exact quotients of every
    /// coefficient, constants and a divisor of one are simplified.
    #[must_use]
    pub fn ceil_div(&self, divisor: u64) -> Self {
        let divisor = divisor.clamp(1, LARGEST);
        if let Some(c) = self.as_const() {
            return Dim::constant(c.div_ceil(divisor));
        }
        if self.terms.iter().all(|(_, c)| *c % divisor as i64 == 0) {
            let terms = self.terms.iter();
            return Dim {
                terms: terms
                    .map(|(a, c)| (a.clone(), *c / divisor as i64))
                    .collect(),
            };
        }
        Self::from_term(vec![Atom::CeilDiv(Box::new(self.clone()), divisor)], 1)
    }

    /// This dimension, or `most` where that is less.
    #[must_use]
    pub fn at_most(&self, most: u64) -> Self {
        let most = most.min(LARGEST);
        match self.as_const() {
            Some(c) => Dim::constant(c.min(most)),
            None if self.is_negative_const() => self.clone(),
            None => Self::from_term(vec![Atom::Min(Box::new(self.clone()), most)], 1),
        }
    }

    /// The product of some dimensions; one for none.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Self {
        let one = Dim::constant(1);
        dims.into_iter().fold(one, |acc, d| &acc * d)
    }

    /// The value under `bindings`.
    ///
    /// # Errors
    /// When a symbol is not bound, or the value is negative or over 2^63 - 1.
    pub fn eval(&self, bindings: &Bindings) -> Result<u64, DimError> {
        let value = self.eval_wide(bindings)?;
        u64::try_from(value)
            .ok()
            .filter(|v| *v <= i64::MAX as u64)
            .ok_or_else(|| DimError::OutOfRange {
                dim: self.to_string(),
                value,
            })
    }

    /// The value, of either sign. What is beyond 128 bits stops at their ends.
    pub(crate) fn eval_wide(&self, bindings: &Bindings) -> Result<i128, DimError> {
        let mut sum: i128 = 0;
        for (atoms, coefficient) in &self.terms {
            let mut product = i128::from(*coefficient);
            for atom in atoms {
                let factor = match atom {
                    Atom::Symbol(symbol) => match bindings.get(symbol) {
                        Some(value) => i128::from(value),
                        None => {
                            return Err(DimError::Unbound {
                                symbol: symbol.clone(),
                                dim: self.to_string(),
                            });
                        }
                    },
                    Atom::CeilDiv(dim, divisor) => {
                        let value = dim.eval_wide(bindings)?;
                        let divisor = i128::from(*divisor);
                        (value + divisor - 1).div_euclid(divisor)
                    }
                    Atom::Min(dim, most) => dim.eval_wide(bindings)?.min(i128::from(*most)),
                };
                product = product.saturating_mul(factor);
            }
            sum = sum.saturating_add(product);
        }
        Ok(sum)
    }

    /// Every symbol that occurs, in name order, without repeats.
    pub fn symbols(&self) -> Vec<Symbol> {
        let mut out = Vec::new();
        self.collect_symbols(&mut out);
        out.sort();
        out.dedup();
        out
    }

    fn collect_symbols(&self, out: &mut Vec<Symbol>) {
        for atom in self.terms.iter().flat_map(|(atoms, _)| atoms) {
            match atom {
                Atom::Symbol(s) => out.push(s.clone()),
                Atom::CeilDiv(d, _) | Atom::Min(d, _) => d.collect_symbols(out),
            }
        }
    }

    fn has(&self, symbol: &Symbol) -> bool {
        let mut atoms = self.terms.iter().flat_map(|(atoms, _)| atoms);
        atoms.any(|atom| match atom {
            Atom::Symbol(s) => s == symbol,
            Atom::CeilDiv(d, _) | Atom::Min(d, _) => d.has(symbol),
        })
    }

    /// Whether this is zero or more wherever each symbol is at least as large as `least`
    /// says. A `false` says only that it was not found to be so.
    pub fn is_never_negative(&self, least: impl Fn(&Symbol) -> u64) -> bool {
        let beyond = self
            .symbols()
            .into_iter()
            .fold(self.clone(), |dim, symbol| {
                let least = Dim::constant(least(&symbol));
                let value = &Dim::symbol(symbol.name()) + &least;
                dim.substitute(&symbol, &value)
            });
        !beyond.is_saturated() && beyond.has_no_minus()
    }

    fn has_no_minus(&self) -> bool {
        self.terms.iter().all(|(atoms, coefficient)| {
            *coefficient > 0
                && atoms.iter().all(|atom| match atom {
                    Atom::Symbol(_) => true,
                    Atom::CeilDiv(dim, _) | Atom::Min(dim, _) => dim.has_no_minus(),
                })
        })
    }

    /// This dimension where the symbols that are bound have these values.
    #[must_use]
    pub fn at(&self, values: &Bindings) -> Self {
        values.iter().fold(self.clone(), |dim, (symbol, value)| {
            dim.substitute(symbol, &Dim::constant(value))
        })
    }

    /// This dimension where the product of two symbols is at most `most`, wherever both are
    /// factors of one term.
    #[must_use]
    pub fn with_product_at_most(&self, symbols: [&Symbol; 2], most: u64) -> Self {
        if !symbols.iter().all(|symbol| self.has(symbol)) {
            return self.clone();
        }
        let product = Dim::product(&symbols.map(|symbol| Dim::symbol(symbol.name())));
        let product = product.at_most(most);
        let mut out = Dim::default();
        for (atoms, coefficient) in &self.terms {
            let mut rest = atoms.clone();
            let mut term = Self::from_term(Vec::new(), *coefficient);
            let found = symbols.map(|symbol| {
                let is_symbol = |atom: &Atom| matches!(atom, Atom::Symbol(s) if s == symbol);
                rest.iter().position(is_symbol).map(|at| rest.remove(at))
            });
            match found {
                [Some(_), Some(_)] => term = &term * &product,
                found => rest.extend(found.into_iter().flatten()),
            }
            for atom in rest {
                let factor = match atom {
                    Atom::Symbol(_) => Self::from_term(vec![atom], 1),
                    Atom::CeilDiv(d, n) => d.with_product_at_most(symbols, most).ceil_div(n),
                    Atom::Min(d, n) => d.with_product_at_most(symbols, most).at_most(n),
                };
                term = &term * &factor;
            }
            out = &out + &term;
        }
        out
    }

    /// This dimension with every occurrence of `symbol` replaced.
    #[must_use]
    pub fn substitute(&self, symbol: &Symbol, value: &Dim) -> Self {
        if !self.has(symbol) {
            return self.clone();
        }
        let mut out = Dim::default();
        for (atoms, coefficient) in &self.terms {
            let mut term = Self::from_term(Vec::new(), *coefficient);
            for atom in atoms {
                let factor = match atom {
                    Atom::Symbol(s) if s == symbol => value.clone(),
                    Atom::Symbol(_) => Self::from_term(vec![atom.clone()], 1),
                    Atom::CeilDiv(d, n) => d.substitute(symbol, value).ceil_div(*n),
                    Atom::Min(d, n) => d.substitute(symbol, value).at_most(*n),
                };
                term = &term * &factor;
            }
            out = &out + &term;
        }
        out
    }
}

impl From<u64> for Dim {
    fn from(value: u64) -> Self {
        Dim::constant(value)
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Dim::constant(value as u64)
    }
}

impl From<i32> for Dim {
    fn from(value: i32) -> Self {
        Self::from_term(Vec::new(), i64::from(value))
    }
}

impl From<&str> for Dim {
    /// The symbol of this name.
    fn from(name: &str) -> Self {
        Dim::symbol(name)
    }
}

impl From<&Dim> for Dim {
    fn from(dim: &Dim) -> Self {
        dim.clone()
    }
}

impl Add for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        let mut out = self.clone();
        for (atoms, c) in &other.terms {
            out.add_term(Cow::Borrowed(atoms), *c);
        }
        out
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: &Dim) -> Dim {
        let mut out = self.clone();
        for (atoms, c) in &other.terms {
            out.add_term(Cow::Borrowed(atoms), c.saturating_neg());
        }
        out
    }
}

impl Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: &Dim) -> Dim {
        let mut out = Dim::default();
        for (a, ca) in &self.terms {
            for (b, cb) in &other.terms {
                let mut atoms: Vec<Atom> = a.iter().chain(b).cloned().collect();
                atoms.sort();
                out.add_term(Cow::Owned(atoms), ca.saturating_mul(*cb));
            }
        }
        out
    }
}

macro_rules! owned_ops {
    ($($trait:ident $method:ident),*) => {$(
        impl<T: Into<Dim>> $trait<T> for Dim {
            type Output = Dim;
            fn $method(self, other: T) -> Dim {
                (&self).$method(&other.into())
            }
        }
    )*};
}
owned_ops!(Add add, Sub sub, Mul mul);
