//! A scalar of every invocation.

use std::rc::Rc;

/// The bits of a scalar in every invocation.
#[derive(Clone, Debug)]
pub(crate) enum Lanes {
    /// The same in all.
    Same(u32),
    /// One for each.
    Each(Rc<[u32]>),
}

/// A scalar of each invocation for each of these.
pub(crate) fn columns<C: FromIterator<Lanes>>(all: Vec<Vec<u32>>) -> C {
    all.into_iter().map(|c| Lanes::Each(c.into())).collect()
}

impl Lanes {
    pub fn at(&self, lane: usize) -> u32 {
        match self {
            Lanes::Same(bits) => *bits,
            Lanes::Each(all) => all[lane],
        }
    }

    pub fn map(&self, f: impl Fn(u32) -> u32) -> Self {
        match self {
            Lanes::Same(bits) => Lanes::Same(f(*bits)),
            Lanes::Each(all) => Lanes::Each(all.iter().map(|x| f(*x)).collect()),
        }
    }

    pub fn zip(&self, other: &Lanes, f: impl Fn(u32, u32) -> u32) -> Self {
        match (self, other) {
            (Lanes::Same(a), Lanes::Same(b)) => Lanes::Same(f(*a, *b)),
            (Lanes::Same(a), Lanes::Each(b)) => Lanes::Each(b.iter().map(|b| f(*a, *b)).collect()),
            (Lanes::Each(a), Lanes::Same(b)) => Lanes::Each(a.iter().map(|a| f(*a, *b)).collect()),
            (Lanes::Each(a), Lanes::Each(b)) => {
                Lanes::Each(a.iter().zip(b.iter()).map(|(a, b)| f(*a, *b)).collect())
            }
        }
    }

    /// `f` of three scalars, for `count` invocations.
    pub fn zip3(
        &self,
        b: &Lanes,
        c: &Lanes,
        count: usize,
        f: impl Fn(u32, u32, u32) -> u32,
    ) -> Self {
        match (self, b, c) {
            (Lanes::Same(x), Lanes::Same(y), Lanes::Same(z)) => Lanes::Same(f(*x, *y, *z)),
            _ => Lanes::Each(
                (0..count)
                    .map(|i| f(self.at(i), b.at(i), c.at(i)))
                    .collect(),
            ),
        }
    }

    /// Where `mask` holds this, elsewhere what was `before`.
    pub fn over(&self, before: &Lanes, mask: &Mask) -> Self {
        match (self, before) {
            _ if mask.is_full() => self.clone(),
            (Lanes::Same(a), Lanes::Same(b)) if a == b => self.clone(),
            _ => {
                let on = mask.on.iter().enumerate();
                Lanes::Each(
                    on.map(|(i, on)| if *on { self.at(i) } else { before.at(i) })
                        .collect(),
                )
            }
        }
    }
}

/// The invocations that take part in something.
#[derive(Clone, Debug)]
pub(crate) struct Mask {
    on: Rc<[bool]>,
    count: usize,
}

impl Mask {
    pub fn full(lanes: usize) -> Self {
        Mask::of(vec![true; lanes])
    }

    pub fn none(lanes: usize) -> Self {
        Mask::of(vec![false; lanes])
    }

    pub fn of(on: Vec<bool>) -> Self {
        Mask {
            count: on.iter().filter(|on| **on).count(),
            on: on.into(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.count == self.on.len()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn has(&self, lane: usize) -> bool {
        self.on[lane]
    }

    /// Those that take part.
    pub fn lanes(&self) -> impl Iterator<Item = usize> {
        let on = self.on.iter().enumerate();
        on.filter(|(_, on)| **on).map(|(lane, _)| lane)
    }

    /// Those of a range of invocations.
    pub fn within(&self, first: usize, count: usize) -> &[bool] {
        &self.on[first..first + count]
    }

    pub fn or(&self, other: &Mask) -> Self {
        if self.is_full() || other.is_empty() {
            return self.clone();
        }
        if other.is_full() || self.is_empty() {
            return other.clone();
        }
        let both = self.on.iter().zip(other.on.iter());
        Mask::of(both.map(|(a, b)| *a || *b).collect())
    }

    /// Those for which `condition` is not 0, and those for which it is.
    pub fn split(&self, condition: &Lanes) -> (Self, Self) {
        let none = || Mask::none(self.on.len());
        match condition {
            Lanes::Same(0) => (none(), self.clone()),
            Lanes::Same(_) => (self.clone(), none()),
            Lanes::Each(all) => {
                let both = || self.on.iter().zip(all.iter());
                let yes = Mask::of(both().map(|(on, c)| *on && *c != 0).collect());
                if yes.count == self.count {
                    return (self.clone(), none());
                }
                let no = Mask::of(both().map(|(on, c)| *on && *c == 0).collect());
                (yes, no)
            }
        }
    }
}
