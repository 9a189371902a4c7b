//! Which keys a query sees, read off the mask that a builder emits.
//!
//! A mask is a conjunction of comparisons of positions. Positions are affine: an
//! `arange` is its first element plus an index along an axis, and what a
//! sequence's first visible key is stands in a vector. So a comparison is an
//! affine form that must not be negative, with a symbolic constant, and equality
//! of forms is exact.

use std::collections::BTreeMap;

use kiln_ir::{BinaryOp, DType, Dim, Op, Scalar, UnaryOp, ValueId};

use crate::matcher::Matcher;

/// What a mask hides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    /// Query `i` of `n` sees key `j` of `m` only for `j <= i + m - n`.
    pub causal: bool,
    /// `i32[batch]`: keys before it are hidden.
    pub start: Option<ValueId>,
}

impl Mask {
    /// Adds the conditions of `mask`, which says of scores `[b, heads, n, m]`
    /// which ones count (or, where `seen` is false, which ones do not). `None`
    /// if one of them is neither causality nor a first visible key.
    pub fn with(
        mut self,
        m: &Matcher<'_>,
        scores: ValueId,
        mask: ValueId,
        seen: bool,
    ) -> Option<Mask> {
        let [batch, _, queries, keys] = m.shape(scores) else {
            return None;
        };
        // Axes count from the last: that is how broadcasting aligns them.
        let key = Affine::index(0, keys);
        let last_query = Affine::constant(keys - queries);
        let causal = Affine::index(1, queries)
            .plus(last_query, 1)
            .plus(key.clone(), -1);
        for condition in conditions(m, mask, seen)? {
            if condition == causal {
                self.causal = true;
                continue;
            }
            // j - start[b] >= 0
            let start = condition.terms.keys().find_map(|variable| match variable {
                Variable::Element { of, axis } => Some((*of, *axis)),
                Variable::Index { .. } => None,
            });
            let (of, axis) = start?;
            let late = key.clone().plus(Affine::element(of, axis), -1);
            let along_batch = axis == Some(3) || axis.is_none();
            let is_vector = m.shape(of) == std::slice::from_ref(batch);
            let another = self.start.is_some_and(|start| start != of);
            if condition != late || !along_batch || !is_vector || another {
                return None;
            }
            self.start = Some(of);
        }
        Some(self)
    }
}

/// What an affine form depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variable {
    /// The index along an axis.
    Index { axis: usize },
    /// The element of a vector at the index along an axis; of its only element,
    /// if there is no axis.
    Element { of: ValueId, axis: Option<usize> },
}

/// A constant and variables with their coefficients, none of which is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Affine {
    constant: Dim,
    terms: BTreeMap<Variable, i64>,
}

impl Affine {
    fn constant(constant: Dim) -> Self {
        Affine {
            constant,
            terms: BTreeMap::new(),
        }
    }

    fn variable(variable: Variable) -> Self {
        Affine {
            constant: Dim::default(),
            terms: BTreeMap::from([(variable, 1)]),
        }
    }

    /// The index along an axis of this size; the only one is zero.
    fn index(axis: usize, size: &Dim) -> Self {
        match size.is_one() {
            true => Affine::constant(Dim::default()),
            false => Affine::variable(Variable::Index { axis }),
        }
    }

    /// The element of a vector at an index, or its only one.
    fn element(of: ValueId, axis: Option<usize>) -> Self {
        Affine::variable(Variable::Element { of, axis })
    }

    fn add(&mut self, variable: Variable, coefficient: i64) {
        let sum = self.terms.remove(&variable).unwrap_or(0) + coefficient;
        if sum != 0 {
            self.terms.insert(variable, sum);
        }
    }

    /// `self + sign * other`
    fn plus(mut self, other: Affine, sign: i64) -> Self {
        self.constant = match sign {
            1 => &self.constant + &other.constant,
            _ => &self.constant - &other.constant,
        };
        for (variable, coefficient) in other.terms {
            self.add(variable, sign * coefficient);
        }
        self
    }

    /// With the axes of an operand become those of a movement's result.
    fn moved(self, axes: &BTreeMap<usize, usize>) -> Option<Self> {
        let mut terms = BTreeMap::new();
        for (variable, coefficient) in self.terms {
            let moved = match variable {
                Variable::Index { axis } => Variable::Index {
                    axis: *axes.get(&axis)?,
                },
                Variable::Element { of, axis } => Variable::Element {
                    of,
                    axis: match axis {
                        Some(axis) => Some(*axes.get(&axis)?),
                        None => None,
                    },
                },
            };
            terms.insert(moved, coefficient);
        }
        Some(Affine { terms, ..self })
    }
}

/// The forms that all have to be at least zero for `id` to be `wanted`.
fn conditions(m: &Matcher<'_>, id: ValueId, wanted: bool) -> Option<Vec<Affine>> {
    use BinaryOp::{And, Ge, Gt, Le, Lt, Or};
    match (m.op(id), m.inputs(id)) {
        (Op::Const(Scalar::Bool(value)), _) => (*value == wanted).then(Vec::new),
        (Op::Unary(UnaryOp::Not), [x]) => conditions(m, *x, !wanted),
        // Not (a or b) is (not a) and (not b).
        (Op::Binary(op @ (And | Or)), [a, b]) if (*op == And) == wanted => {
            let mut all = conditions(m, *a, wanted)?;
            all.extend(conditions(m, *b, wanted)?);
            Some(all)
        }
        (Op::Binary(op @ (Lt | Le | Gt | Ge)), [a, b]) => {
            let (a, b) = (position(m, *a)?, position(m, *b)?);
            // Not (a < b) is a >= b.
            let less = matches!(op, Lt | Le) == wanted;
            let strict = matches!(op, Lt | Gt) == wanted;
            let difference = if less { b.plus(a, -1) } else { a.plus(b, -1) };
            // Of integers, d > 0 is d - 1 >= 0.
            let margin = Affine::constant(i32::from(strict).into());
            Some(vec![difference.plus(margin, -1)])
        }
        (Op::Reshape { .. } | Op::Broadcast { .. } | Op::Transpose { .. }, [x]) => {
            let axes = moved_axes(m, id)?;
            let all = conditions(m, *x, wanted)?.into_iter();
            all.map(|condition| condition.moved(&axes)).collect()
        }
        _ => None,
    }
}

/// An integer value as an affine form.
fn position(m: &Matcher<'_>, id: ValueId) -> Option<Affine> {
    match (m.op(id), m.inputs(id)) {
        (Op::Const(Scalar::I32(value)), _) => Some(Affine::constant((*value).into())),
        (Op::Arange { start, .. }, _) => {
            let index = Affine::index(0, &m.ty(id).last());
            Some(index.plus(Affine::constant(start.clone()), 1))
        }
        (Op::Binary(BinaryOp::Add), [a, b]) => Some(position(m, *a)?.plus(position(m, *b)?, 1)),
        (Op::Binary(BinaryOp::Sub), [a, b]) => Some(position(m, *a)?.plus(position(m, *b)?, -1)),
        (Op::Reshape { .. } | Op::Broadcast { .. } | Op::Transpose { .. }, [x]) => {
            position(m, *x)?.moved(&moved_axes(m, id)?)
        }
        // Whatever else computes a vector of integers.
        _ => match (m.ty(id).dtype, m.shape(id)) {
            (DType::I32, [size]) => {
                let axis = (!size.is_one()).then_some(0);
                Some(Affine::element(id, axis))
            }
            _ => None,
        },
    }
}

/// For a movement of one operand: which axis of the result each axis of the
/// operand is, both counted from the last; axes of size one, along which nothing
/// varies, left out. `None` if a reshape does more than add and drop those.
fn moved_axes(m: &Matcher<'_>, id: ValueId) -> Option<BTreeMap<usize, usize>> {
    let x = *m.inputs(id).first()?;
    let (from, to) = (m.shape(x), m.shape(id));
    let varying = |shape: &[Dim]| -> Vec<usize> {
        let axes = (0..shape.len()).rev();
        axes.filter(|axis| !shape[shape.len() - 1 - axis].is_one())
            .collect()
    };
    match m.op(id) {
        Op::Broadcast { .. } => Some(varying(from).into_iter().map(|a| (a, a)).collect()),
        Op::Transpose { perm } => {
            let last = perm.len().checked_sub(1)?;
            let axes = perm.iter().enumerate();
            Some(axes.map(|(new, old)| (last - old, last - new)).collect())
        }
        Op::Reshape { .. } => {
            let sizes = |shape: &[Dim]| -> Vec<Dim> {
                shape.iter().filter(|d| !d.is_one()).cloned().collect()
            };
            let same = sizes(from) == sizes(to);
            same.then(|| varying(from).into_iter().zip(varying(to)).collect())
        }
        _ => None,
    }
}
