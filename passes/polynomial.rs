//! A value as a polynomial of others.
//!
//! There are many ways to write `x/2 * (1 + t)` or `x + 0.044715 x^3`: which
//! factor comes first, whether a half is multiplied or a two divided by, whether
//! a cube is a power or two products. They are one polynomial, so the idioms
//! compare polynomials instead of listing the ways.

use std::collections::BTreeMap;

use kiln_ir::{BinaryOp, Op, UnaryOp, ValueId};

use crate::matcher::{Matcher, TOLERANCE};

/// The highest degree in one variable that the idioms need.
const MAX_DEGREE: u8 = 3;

/// How many values one polynomial may be made of; no idiom needs as many.
const MAX_VALUES: usize = 24;

/// A polynomial in two variables: their powers to the coefficient.
pub(crate) type Terms = BTreeMap<(u8, u8), f64>;

/// A polynomial, and what computes it.
pub(crate) struct Polynomial {
    /// Powers of the first and the second variable to the coefficient.
    pub terms: Terms,
    /// Every value between the variables (excluded) and the result (included).
    pub interior: Vec<ValueId>,
}

impl Polynomial {
    /// `id` as a polynomial of `variables`, or `None` if it is not one.
    pub fn of(m: &Matcher<'_>, id: ValueId, variables: [ValueId; 2]) -> Option<Polynomial> {
        let mut reader = Reader {
            m,
            variables,
            known: BTreeMap::new(),
            entered: 0,
        };
        let terms = reader.read(id)?;
        let interior = reader.known.into_keys();
        Some(Polynomial {
            terms,
            interior: interior.collect(),
        })
    }

    /// Whether the terms are these, up to the rounding of typed constants.
    pub fn is(&self, wanted: &[((u8, u8), f64)]) -> bool {
        let largest = wanted.iter().map(|(_, c)| c.abs()).fold(0.0, f64::max);
        let negligible = |c: f64| c.abs() <= TOLERANCE * TOLERANCE * largest;
        let wanted_at = |powers| wanted.iter().find(|(p, _)| *p == powers).map(|(_, c)| *c);
        wanted.iter().all(|(p, _)| self.terms.contains_key(p))
            && self
                .terms
                .iter()
                .all(|(powers, c)| match wanted_at(*powers) {
                    // A product of two typed constants has twice the error.
                    Some(w) => (c - w).abs() <= 2.0 * TOLERANCE * w.abs(),
                    None => negligible(*c),
                })
    }
}

struct Reader<'m, 'g> {
    m: &'m Matcher<'g>,
    variables: [ValueId; 2],
    known: BTreeMap<ValueId, Terms>,
    /// Values whose operands were looked at, read to the end or not.
    entered: usize,
}

impl Reader<'_, '_> {
    fn read(&mut self, id: ValueId) -> Option<Terms> {
        let one = |powers| Some(Terms::from([(powers, 1.0)]));
        if id == self.variables[0] {
            return one((1, 0));
        }
        if id == self.variables[1] {
            return one((0, 1));
        }
        if let Some(c) = self.m.number(id) {
            return Some(Terms::from([((0, 0), c)]));
        }
        if let Some(terms) = self.known.get(&id) {
            return Some(terms.clone());
        }
        // Counted on the way up, so that a long chain ends the descent.
        if self.entered == MAX_VALUES {
            return None;
        }
        self.entered += 1;
        let terms = match (self.m.op(id), self.m.inputs(id)) {
            (Op::Unary(UnaryOp::Neg), [x]) => scale(self.read(*x)?, -1.0),
            (Op::Binary(BinaryOp::Add), [a, b]) => add(self.read(*a)?, self.read(*b)?),
            (Op::Binary(BinaryOp::Sub), [a, b]) => add(self.read(*a)?, scale(self.read(*b)?, -1.0)),
            (Op::Binary(BinaryOp::Mul), [a, b]) => multiply(&self.read(*a)?, &self.read(*b)?)?,
            (Op::Binary(BinaryOp::Div), [a, b]) => {
                let divisor = self.m.number(*b).filter(|c| *c != 0.0)?;
                scale(self.read(*a)?, 1.0 / divisor)
            }
            (Op::Binary(BinaryOp::Pow), [a, b]) => {
                let power = self.m.number(*b)?;
                let base = self.read(*a)?;
                let mut product = Terms::from([((0, 0), 1.0)]);
                if power.fract() != 0.0 || !(1.0..=f64::from(MAX_DEGREE)).contains(&power) {
                    return None;
                }
                for _ in 0..power as u8 {
                    product = multiply(&product, &base)?;
                }
                product
            }
            _ => return None,
        };
        self.known.insert(id, terms.clone());
        Some(terms)
    }
}

fn scale(mut terms: Terms, by: f64) -> Terms {
    terms.values_mut().for_each(|c| *c *= by);
    terms
}

fn add(mut a: Terms, b: Terms) -> Terms {
    for (powers, c) in b {
        *a.entry(powers).or_default() += c;
    }
    a
}

fn multiply(a: &Terms, b: &Terms) -> Option<Terms> {
    let mut product = Terms::new();
    for ((ax, ay), ac) in a {
        for ((bx, by), bc) in b {
            let powers = (ax + bx, ay + by);
            if powers.0 > MAX_DEGREE || powers.1 > MAX_DEGREE {
                return None;
            }
            *product.entry(powers).or_default() += ac * bc;
        }
    }
    Some(product)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::Graph;
    use kiln_ir::text::parse;

    fn graph(body: &str) -> Graph {
        let head = "%0 = input \"x\" : f32[4] %1 = input \"t\" : f32[4]";
        parse(&format!("graph g {{ {head} {body} }}")).unwrap()
    }

    /// The last value as a polynomial of the two inputs.
    fn read(g: &Graph) -> Option<Polynomial> {
        let [x, t] = [0, 1].map(ValueId::from_index);
        let last = *g.order().last()?;
        Polynomial::of(&Matcher::new(g), last, [x, t])
    }

    #[test]
    fn arithmetic() {
        // (x - t/2)^2 * 3 - (-x) = 3 x^2 - 3 x t + 3/4 t^2 + x
        let g = graph(
            "%2 = const {f32=2.0}
             %3 = div %1, %2
             %4 = sub %0, %3
             %5 = pow %4, %2
             %6 = const {f32=3.0}
             %7 = mul %6, %5
             %8 = neg %0
             %9 = sub %7, %8",
        );
        let found = read(&g).unwrap();
        assert!(found.is(&[((2, 0), 3.0), ((1, 1), -3.0), ((0, 2), 0.75), ((1, 0), 1.0)]));
        // Another coefficient, one term more, one term less.
        assert!(!found.is(&[((2, 0), 3.1), ((1, 1), -3.0), ((0, 2), 0.75), ((1, 0), 1.0)]));
        assert!(!found.is(&[((2, 0), 3.0), ((1, 1), -3.0), ((0, 2), 0.75)]));
        let more = [
            ((2, 0), 3.0),
            ((1, 1), -3.0),
            ((0, 2), 0.75),
            ((1, 0), 1.0),
            ((3, 0), 1.0),
        ];
        assert!(!found.is(&more));
        // All but the variables and the constants.
        let interior = [3, 4, 5, 7, 8, 9].map(ValueId::from_index);
        assert_eq!(found.interior, interior);
    }

    #[test]
    fn what_cancels_is_no_term() {
        let g = graph("%2 = add %0, %1 %3 = sub %2, %1");
        assert!(read(&g).unwrap().is(&[((1, 0), 1.0)]));
    }

    /// A chain of any length, which no stack would hold.
    #[test]
    fn the_descent_is_bounded() {
        let chain = |links: usize| {
            let links = (2..links + 2).map(|id| format!(" %{id} = add %{}, %1", id - 1));
            graph(&links.collect::<String>())
        };
        assert!(read(&chain(MAX_VALUES)).is_some());
        assert!(read(&chain(MAX_VALUES + 1)).is_none());
        assert!(read(&chain(40_000)).is_none());
    }

    #[test]
    fn what_is_no_polynomial() {
        for body in [
            "%2 = exp %0",
            "%2 = div %0, %1",
            "%2 = const {f32=0.0} %3 = div %0, %2",
            "%2 = const {f32=1.5} %3 = pow %0, %2",
            "%2 = const {f32=-1.0} %3 = pow %0, %2",
            "%2 = pow %0, %1",
            // Of a degree that no idiom has.
            "%2 = mul %0, %0 %3 = mul %2, %2",
        ] {
            assert!(read(&graph(body)).is_none(), "{body}");
        }
    }
}
