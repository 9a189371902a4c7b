//! Which keys a query sees, read off the mask that a builder emits.
//!
//! A mask is a conjunction of comparisons of positions. Positions are affine: an
//! `arange` is its first element plus an index along an axis, and what a
//! sequence's first visible key is stands in a vector. So a comparison is an
//! affine form that must not be negative, with a symbolic constant, and equality
//! of forms is exact.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::{BinaryOp, DType, Dim, Op, Scalar, UnaryOp, ValueId};

use crate::matcher::Matcher;

/// What a mask hides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    /// Query `i` of `n` sees key `j` of `m` only for `j <= i + m - n`.
    pub causal: bool,
    /// It sees key `j` only for `j > i + m - n - window`.
    pub window: Option<usize>,
    /// `i32[batch]`: keys before it are hidden.
    pub start: Option<ValueId>,
}

impl Mask {
    /// Adds the conditions of `mask`, which says of scores `[b, heads, n, m]`
    /// which ones count (or, where `seen` is false, which ones do not). `None`
    /// if one of them is neither causality, nor a window, nor a first visible key.
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
            .plus(last_query, 1)?
            .plus(key.clone(), -1)?;
        // `of` in j - of[b] >= 0.
        let start_of = |condition: &Affine| {
            let mut variables = condition.terms.keys();
            let (of, axis) = variables.find_map(|variable| match variable {
                Variable::Element { of, axis } => Some((*of, *axis)),
                Variable::Index { .. } => None,
            })?;
            let late = key.clone().plus(Affine::element(of, axis), -1)?;
            let along_batch = axis == Some(3) || axis.is_none();
            let is_vector = m.shape(of) == std::slice::from_ref(batch);
            (*condition == late && along_batch && is_vector).then_some(of)
        };
        for condition in Reader::new(m).conditions(mask, seen)? {
            if condition.open == causal {
                self.causal = true;
                continue;
            }
            // Of window - 1 - (i + m - n - j) >= 0 this leaves window - 1.
            let rest = condition.open.clone().plus(causal.clone(), 1);
            if let Some(most) = rest.and_then(|rest| rest.as_const()) {
                // Sums of integers wrap, which those of a larger one could.
                if most >= MAX_WINDOW {
                    return None;
                }
                let window = most as usize + 1;
                self.window = Some(self.window.map_or(window, |other| other.min(window)));
                continue;
            }
            let start = start_of(&condition.open).or_else(|| start_of(&condition.closed))?;
            if self.start.is_some_and(|another| another != start) {
                return None;
            }
            self.start = Some(start);
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    /// `self + sign * other`; `None` where a number is too large to be exact.
    fn plus(mut self, other: Affine, sign: i64) -> Option<Self> {
        self.constant = match sign {
            1 => &self.constant + &other.constant,
            _ => &self.constant - &other.constant,
        };
        for (variable, coefficient) in other.terms {
            let before = self.terms.remove(&variable).unwrap_or(0);
            let sum = before.checked_add(coefficient.checked_mul(sign)?)?;
            if sum != 0 {
                self.terms.insert(variable, sum);
            }
        }
        (!self.constant.is_saturated()).then_some(self)
    }

    /// The number that it is, if it depends on nothing and is not negative.
    fn as_const(&self) -> Option<u64> {
        self.constant.as_const().filter(|_| self.terms.is_empty())
    }

    fn has_element(&self) -> bool {
        let mut variables = self.terms.keys();
        variables.any(|variable| matches!(variable, Variable::Element { .. }))
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

/// An integer, or what must not be negative, as an affine form in two ways.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Forms {
    /// Down to the vectors that are no sums.
    open: Affine,
    /// Down to the first vectors that have elements of others in them: what a sum of a
    /// vector comes to may be what a sequence's first visible key is.
    closed: Affine,
}

impl Forms {
    fn same(form: Affine) -> Self {
        Forms {
            closed: form.clone(),
            open: form,
        }
    }

    fn plus(self, other: Forms, sign: i64) -> Option<Self> {
        Some(Forms {
            open: self.open.plus(other.open, sign)?,
            closed: self.closed.plus(other.closed, sign)?,
        })
    }

    fn moved(self, axes: &BTreeMap<usize, usize>) -> Option<Self> {
        Some(Forms {
            open: self.open.moved(axes)?,
            closed: self.closed.moved(axes)?,
        })
    }
}

type Conditions = BTreeSet<Forms>;

/// How many conditions a mask may have; causality, a window and a first visible key are
/// three.
const MAX_CONDITIONS: usize = 16;

/// The widest window that is read.
const MAX_WINDOW: u64 = 1 << 30;

/// How far up the values of a mask are read, one after the other.
const MAX_DEPTH: usize = 128;

/// Reads masks. Each value is read once, however often it occurs: it may be both
/// operands of its user, and so may that.
struct Reader<'m, 'g> {
    m: &'m Matcher<'g>,
    conditions: BTreeMap<(ValueId, bool), Option<Conditions>>,
    positions: BTreeMap<ValueId, Option<Forms>>,
    /// Values that are being read.
    depth: usize,
}

impl<'m, 'g> Reader<'m, 'g> {
    fn new(m: &'m Matcher<'g>) -> Self {
        Reader {
            m,
            conditions: BTreeMap::new(),
            positions: BTreeMap::new(),
            depth: 0,
        }
    }

    /// The forms that all have to be at least zero for `id` to be `wanted`.
    fn conditions(&mut self, id: ValueId, wanted: bool) -> Option<Conditions> {
        if let Some(known) = self.conditions.get(&(id, wanted)) {
            return known.clone();
        }
        let read = self.deeper(|reader| reader.read_conditions(id, wanted));
        let read = read.filter(|all| all.len() <= MAX_CONDITIONS);
        self.conditions.insert((id, wanted), read.clone());
        read
    }

    /// An integer value as affine forms.
    fn position(&mut self, id: ValueId) -> Option<Forms> {
        if let Some(known) = self.positions.get(&id) {
            return known.clone();
        }
        let read = self.deeper(|reader| reader.read_position(id));
        self.positions.insert(id, read.clone());
        read
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let found = read(self);
        self.depth -= 1;
        found
    }

    fn read_conditions(&mut self, id: ValueId, wanted: bool) -> Option<Conditions> {
        use BinaryOp::{And, Ge, Gt, Le, Lt, Or};
        match (self.m.op(id), self.m.inputs(id)) {
            (Op::Const(Scalar::Bool(value)), _) => (*value == wanted).then(Conditions::new),
            (Op::Unary(UnaryOp::Not), [x]) => self.conditions(*x, !wanted),
            // Not (a or b) is (not a) and (not b).
            (Op::Binary(op @ (And | Or)), [a, b]) if (*op == And) == wanted => {
                let mut all = self.conditions(*a, wanted)?;
                all.extend(self.conditions(*b, wanted)?);
                Some(all)
            }
            (Op::Binary(op @ (Lt | Le | Gt | Ge)), [a, b]) => {
                let (a, b) = (self.position(*a)?, self.position(*b)?);
                // Not (a < b) is a >= b.
                let less = matches!(op, Lt | Le) == wanted;
                let strict = matches!(op, Lt | Gt) == wanted;
                let difference = if less { b.plus(a, -1) } else { a.plus(b, -1) };
                // Of integers, d > 0 is d - 1 >= 0.
                let margin = Forms::same(Affine::constant(i32::from(strict).into()));
                Some(Conditions::from([difference?.plus(margin, -1)?]))
            }
            (Op::Reshape { .. } | Op::Broadcast { .. } | Op::Transpose { .. }, [x]) => {
                let axes = moved_axes(self.m, id)?;
                let all = self.conditions(*x, wanted)?.into_iter();
                all.map(|condition| condition.moved(&axes)).collect()
            }
            _ => None,
        }
    }

    fn read_position(&mut self, id: ValueId) -> Option<Forms> {
        let m = self.m;
        match (m.op(id), m.inputs(id)) {
            (Op::Const(Scalar::I32(value)), _) => {
                Some(Forms::same(Affine::constant((*value).into())))
            }
            (Op::Arange { start, .. }, _) => {
                let index = Affine::index(0, &m.ty(id).last());
                let range = index.plus(Affine::constant(start.clone()), 1)?;
                Some(Forms::same(range))
            }
            (Op::Binary(op @ (BinaryOp::Add | BinaryOp::Sub)), [a, b]) => {
                let sign = if *op == BinaryOp::Add { 1 } else { -1 };
                let sum = self.position(*a)?.plus(self.position(*b)?, sign)?;
                let closed = sum.open.has_element().then(|| vector(m, id)).flatten();
                Some(Forms {
                    closed: closed.unwrap_or(sum.closed),
                    open: sum.open,
                })
            }
            (Op::Reshape { .. } | Op::Broadcast { .. } | Op::Transpose { .. }, [x]) => {
                self.position(*x)?.moved(&moved_axes(m, id)?)
            }
            // Whatever else computes a vector of integers.
            _ => vector(m, id).map(Forms::same),
        }
    }
}

/// A vector of integers, as what it is and nothing else.
fn vector(m: &Matcher<'_>, id: ValueId) -> Option<Affine> {
    match (m.ty(id).dtype, m.shape(id)) {
        (DType::I32, [size]) => {
            let axis = (!size.is_one()).then_some(0);
            Some(Affine::element(id, axis))
        }
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::Graph;
    use kiln_ir::text::parse;

    /// Causality of five queries and keys, and what else a body makes of it.
    fn graph(body: impl IntoIterator<Item = String>) -> Graph {
        let head = "%0 = input \"scores\" : f32[2, 2, 5, 5]
             %1 = arange {start=0, end=5}
             %2 = reshape %1 {shape=[1, 5]}
             %3 = reshape %1 {shape=[5, 1]}
             %4 = le %2, %3";
        let body: String = body.into_iter().collect();
        parse(&format!("graph g {{ {head} {body} }}")).unwrap()
    }

    fn mask(g: &Graph) -> Option<Mask> {
        let last = *g.order().last()?;
        Mask::default().with(&Matcher::new(g), ValueId::from_index(0), last, true)
    }

    fn causal(g: &Graph) -> bool {
        mask(g).is_some_and(|mask| mask.causal && mask.start.is_none())
    }

    /// `id` from `first` on, each from the one before.
    fn chain(first: usize, links: usize, link: impl Fn(usize) -> String) -> Vec<String> {
        let links = (first..first + links).map(|id| format!(" %{id} = {}", link(id - 1)));
        links.collect()
    }

    #[test]
    fn a_condition_is_read_once_however_often_it_occurs() {
        let both = |before: usize| format!("and %{before}, %{before}");
        assert!(causal(&graph(chain(5, 64, both))));
    }

    /// However it is written, of two the narrower one, and none that hides all.
    #[test]
    fn windows() {
        for (body, window) in [
            ("%5 = sub %3, %2 %6 = const {i32=2} %7 = lt %5, %6", Some(2)),
            ("%5 = sub %3, %2 %6 = const {i32=2} %7 = le %5, %6", Some(3)),
            ("%5 = const {i32=3} %6 = add %2, %5 %7 = gt %6, %3", Some(3)),
            (
                "%5 = const {i32=1} %6 = sub %3, %5 %7 = lt %2, %6 %8 = not %7",
                Some(2),
            ),
            (
                "%5 = sub %3, %2 %6 = const {i32=2} %7 = lt %5, %6 \
                 %8 = const {i32=4} %9 = lt %5, %8 %10 = and %7, %9",
                Some(2),
            ),
            ("%5 = sub %3, %2 %6 = const {i32=0} %7 = lt %5, %6", None),
            // From the third key on the sum is negative.
            (
                "%5 = const {i32=2147483646} %6 = add %2, %5 %7 = gt %6, %3",
                None,
            ),
            ("%5 = sub %3, %2 %6 = const {i32=-3} %7 = lt %5, %6", None),
        ] {
            let found = mask(&graph([body.to_owned()]));
            let wanted = window.map(|window| Mask {
                window: Some(window),
                ..Mask::default()
            });
            assert_eq!(found, wanted, "{body}");
        }
    }

    #[test]
    fn a_position_is_read_once_however_often_it_occurs() {
        let twice = |before: usize| format!("add %{before}, %{before}");
        let mut body = vec![" %5 = const {i32=0}".to_owned()];
        body.extend(chain(6, 64, twice));
        body.push(" %70 = add %2, %69 %71 = le %70, %3".to_owned());
        assert!(causal(&graph(body)));
    }

    /// Coefficients and constants beyond what is exact are no positions.
    #[test]
    fn sums_that_are_too_large() {
        let twice = |before: usize| format!("add %{before}, %{before}");
        for first in [" %5 = const {i32=1}", " %5 = reshape %2 {shape=[1, 5]}"] {
            let mut body = vec![first.to_owned()];
            body.extend(chain(6, 64, twice));
            body.push(" %70 = sub %69, %69 %71 = add %70, %2 %72 = le %71, %3".to_owned());
            assert_eq!(mask(&graph(body)), None, "{first}");
        }
    }

    #[test]
    fn a_mask_has_a_few_conditions_and_a_few_values() {
        let earlier = |id: usize| format!(" %{id} = add %2, %{}", id - 1);
        let mut body = vec![" %5 = const {i32=1}".to_owned()];
        for i in 0..MAX_CONDITIONS {
            let id = 6 + 3 * i;
            body.push(if i == 0 {
                earlier(id)
            } else {
                format!(" %{id} = add %{}, %5", id - 3)
            });
            body.push(format!(" %{} = le %{id}, %3", id + 1));
            let before = if i == 0 { 4 } else { id - 1 };
            body.push(format!(" %{} = and %{}, %{before}", id + 2, id + 1));
        }
        let g = graph(body);
        let m = Matcher::new(&g);
        let last = *g.order().last().unwrap();
        assert_eq!(Reader::new(&m).conditions(last, true), None);
        let not = |before: usize| format!("not %{before}");
        let below = chain(5, MAX_DEPTH - 4, not);
        assert!(causal(&graph(below)));
        assert_eq!(mask(&graph(chain(5, 40_000, not))), None);
    }
}
