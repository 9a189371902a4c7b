//! A scalar of every invocation.

use std::ops::Range;
use std::rc::Rc;

/// The bits of a scalar in every invocation.
#[derive(Clone, Debug)]
pub(crate) enum Lanes {
    /// The same in all.
    Same(u32),
    /// One for each. (A vector, for filling one is what compilers turn into vector
    /// instructions, and most of what an emulated launch does.)
    Each(Rc<Vec<u32>>),
}

impl From<Vec<u32>> for Lanes {
    fn from(each: Vec<u32>) -> Self {
        Lanes::Each(Rc::new(each))
    }
}

impl FromIterator<u32> for Lanes {
    fn from_iter<I: IntoIterator<Item = u32>>(each: I) -> Self {
        each.into_iter().collect::<Vec<u32>>().into()
    }
}

/// A scalar of each invocation for each of these.
pub(crate) fn columns<C: FromIterator<Lanes>>(all: Vec<Vec<u32>>) -> C {
    all.into_iter().map(Lanes::from).collect()
}

impl Lanes {
    #[inline]
    pub fn at(&self, lane: usize) -> u32 {
        match self {
            Lanes::Same(bits) => *bits,
            Lanes::Each(all) => all[lane],
        }
    }

    #[inline]
    pub fn map(&self, f: impl Fn(u32) -> u32) -> Self {
        match self {
            Lanes::Same(bits) => Lanes::Same(f(*bits)),
            Lanes::Each(all) => all.iter().map(|x| f(*x)).collect(),
        }
    }

    #[inline]
    pub fn zip(&self, other: &Lanes, f: impl Fn(u32, u32) -> u32) -> Self {
        match (self, other) {
            (Lanes::Same(a), Lanes::Same(b)) => Lanes::Same(f(*a, *b)),
            (Lanes::Same(a), Lanes::Each(b)) => b.iter().map(|b| f(*a, *b)).collect(),
            (Lanes::Each(a), Lanes::Same(b)) => a.iter().map(|a| f(*a, *b)).collect(),
            (Lanes::Each(a), Lanes::Each(b)) => {
                a.iter().zip(b.iter()).map(|(a, b)| f(*a, *b)).collect()
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
            _ => (0..count)
                .map(|i| f(self.at(i), b.at(i), c.at(i)))
                .collect(),
        }
    }

    /// Where `mask` holds this, elsewhere what was `before`.
    pub fn over(&self, before: &Lanes, mask: &Mask) -> Self {
        match (self, before) {
            _ if mask.is_full() => self.clone(),
            _ if mask.is_empty() => before.clone(),
            (Lanes::Same(a), Lanes::Same(b)) if a == b => self.clone(),
            _ => (0..mask.lanes)
                .map(|lane| if mask.has(lane) { self } else { before }.at(lane))
                .collect(),
        }
    }
}

/// The invocations that take part in something.
#[derive(Clone, Debug)]
pub(crate) struct Mask {
    lanes: usize,
    /// Of how many, and of which, unless it is none or all.
    count: usize,
    some: Option<Rc<Vec<bool>>>,
}

impl Mask {
    pub fn full(lanes: usize) -> Self {
        Mask {
            lanes,
            count: lanes,
            some: None,
        }
    }

    pub fn none(lanes: usize) -> Self {
        Mask {
            lanes,
            count: 0,
            some: None,
        }
    }

    fn of(on: Vec<bool>) -> Self {
        let count = on.iter().map(|on| usize::from(*on)).sum();
        let is_some = count > 0 && count < on.len();
        Mask {
            lanes: on.len(),
            count,
            some: is_some.then(|| Rc::new(on)),
        }
    }

    pub fn is_full(&self) -> bool {
        self.count == self.lanes
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[inline]
    pub fn has(&self, lane: usize) -> bool {
        match &self.some {
            Some(on) => on[lane],
            None => self.count > 0,
        }
    }

    /// Those that take part.
    #[inline]
    pub fn lanes(&self) -> impl Iterator<Item = usize> {
        let end = if self.is_empty() { 0 } else { self.lanes };
        let on = self.some.as_deref();
        (0..end).filter(move |lane| on.is_none_or(|on| on[*lane]))
    }

    /// One that does not take part, of a range of invocations of which one does.
    pub fn missing(&self, range: Range<usize>) -> Option<usize> {
        let on = self.some.as_ref()?;
        let first = range.start;
        let on = &on[range];
        let missing = on.iter().position(|on| !on)?;
        on.contains(&true).then_some(first + missing)
    }

    pub fn or(&self, other: &Mask) -> Self {
        if self.is_full() || other.is_empty() {
            return self.clone();
        }
        if other.is_full() || self.is_empty() {
            return other.clone();
        }
        let both = (0..self.lanes).map(|lane| self.has(lane) | other.has(lane));
        Mask::of(both.collect())
    }

    /// Those for which `condition` is not 0, and those for which it is.
    pub fn split(&self, condition: &Lanes) -> (Self, Self) {
        let none = Mask::none(self.lanes);
        match condition {
            Lanes::Same(0) => (none, self.clone()),
            Lanes::Same(_) => (self.clone(), none),
            Lanes::Each(all) => {
                let part = |is_yes: bool| {
                    let holds = all.iter().map(|c| (*c != 0) == is_yes);
                    Mask::of(match &self.some {
                        Some(on) => holds.zip(on.iter()).map(|(holds, on)| holds & on).collect(),
                        None => holds.map(|holds| holds & (self.count > 0)).collect(),
                    })
                };
                let yes = part(true);
                if yes.count == self.count {
                    return (self.clone(), none);
                }
                if yes.is_empty() {
                    return (none, self.clone());
                }
                (yes, part(false))
            }
        }
    }
}
