//! Who used which word when, and what orders two uses.

use std::collections::BTreeMap;

use crate::fault::{Fault, Invocation};

/// A use of a word: by which invocation of the launch, and behind how many barriers of
/// its workgroup.
#[derive(Clone, Copy, Debug)]
struct Use {
    by: u32,
    barriers: u32,
}

const NOBODY: Use = Use {
    by: u32::MAX,
    barriers: 0,
};

/// An invocation of the launch, and its workgroup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct By {
    pub invocation: u32,
    pub workgroup: usize,
}

/// The last uses of a word: a write, an atomic, and three reads, of which the second is
/// by another invocation than the first and the third by another workgroup, so that one
/// of them is not ordered before whoever writes next by being its own, or its workgroup's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uses {
    wrote: Use,
    changed: Use,
    read: [Use; 3],
}

impl Uses {
    pub const NONE: Uses = Uses {
        wrote: NOBODY,
        changed: NOBODY,
        read: [NOBODY; 3],
    };

    pub fn is_written(&self) -> bool {
        self.wrote.by != NOBODY.by || self.changed.by != NOBODY.by
    }
}

/// A word of a variable, and whether what other workgroups wrote there is seen at all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word<'a> {
    pub name: &'a str,
    pub number: usize,
    pub is_coherent: bool,
}

/// What an atomic does with what others released at its word, and releases there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Load,
    Store,
    Change,
}

/// Which barriers order uses of a memory. Those that other workgroups see stand first: of
/// them clocks have a number each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Storage,
    Texture,
    Workgroup,
}

/// The first of [`Space`].
const SHARED: [Space; 2] = [Space::Storage, Space::Texture];

/// How a word is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// What was there is there again.
    WriteSame,
    Write,
    /// By an atomic: nothing has to order it with others.
    Atomic,
}

impl Access {
    /// A write of `bits` over `before`.
    pub fn write(before: u32, bits: u32) -> Self {
        match before == bits {
            true => Access::WriteSame,
            false => Access::Write,
        }
    }
}

/// What is known of each workgroup: of how many of its barriers, for each memory that
/// others see, what stands before them was done (a vector clock: Fidge, 1988; Mattern,
/// 1989).
type Clock = Vec<[u32; SHARED.len()]>;

fn join(clock: &mut Clock, other: &Clock) {
    clock.resize(clock.len().max(other.len()), Default::default());
    for (own, other) in clock.iter_mut().flatten().zip(other.iter().flatten()) {
        *own = (*own).max(*other);
    }
}

/// What orders the invocations of a launch.
///
/// Within a workgroup its barriers do. Across workgroups an atomic that stores hands on, to
/// whoever loads the word by an atomic later, what its invocation knows, and what its
/// workgroup did before the last barrier for buffers, or for images. What an invocation
/// learns so, others of its workgroup know behind the next barrier. All that is of use for
/// what is coherent alone: of others nobody promises that what was written is seen. (No
/// barrier that WGSL has for images promises it either, beyond a workgroup: that of a CPU
/// is rested on.)
#[derive(Debug)]
pub(crate) struct Order {
    workgroup: u32,
    /// Barriers of each workgroup, for each memory.
    barriers: [Vec<u32>; Space::Workgroup as usize + 1],
    /// What all of a workgroup know, and what single invocations do besides.
    known: Vec<Clock>,
    learnt: Vec<BTreeMap<u32, Clock>>,
    /// What words of buffers hand on.
    released: BTreeMap<(usize, usize), Clock>,
}

impl Order {
    pub fn new(workgroups: usize, workgroup: usize) -> Self {
        Order {
            workgroup: workgroup as u32,
            barriers: std::array::from_fn(|_| vec![0; workgroups]),
            known: vec![Clock::new(); workgroups],
            learnt: vec![BTreeMap::new(); workgroups],
            released: BTreeMap::new(),
        }
    }

    pub fn by(&self, invocation: u32) -> By {
        By {
            invocation,
            workgroup: self.workgroup_of(invocation),
        }
    }

    pub fn invocation(&self, by: u32) -> Invocation {
        Invocation {
            workgroup: self.workgroup_of(by),
            index: (by % self.workgroup) as usize,
        }
    }

    fn workgroup_of(&self, by: u32) -> usize {
        (by / self.workgroup) as usize
    }

    /// A barrier of a workgroup, for uses of some memories.
    pub fn barrier(&mut self, workgroup: usize, spaces: &[Space]) {
        for space in spaces {
            self.barriers[*space as usize][workgroup] += 1;
        }
        for (_, learnt) in std::mem::take(&mut self.learnt[workgroup]) {
            join(&mut self.known[workgroup], &learnt);
        }
    }

    /// An atomic on a word of a buffer.
    pub fn atomic(&mut self, by: By, buffer: usize, word: usize, how: Atomic) {
        let workgroup = by.workgroup;
        let done = SHARED.map(|space| self.barriers[space as usize][workgroup]);
        let released = self.released.entry((buffer, word)).or_default();
        let learnt = self.learnt[workgroup].entry(by.invocation).or_default();
        if how != Atomic::Store {
            join(learnt, released);
        }
        if how != Atomic::Load {
            join(released, learnt);
            join(released, &self.known[workgroup]);
            released.resize(self.known.len(), Default::default());
            for (own, done) in released[workgroup].iter_mut().zip(done) {
                *own = (*own).max(done);
            }
        }
    }

    /// Notes that `by` uses a word. Whoever writes what is there already, as all of a
    /// subgroup do with what they have reduced, is in nobody's way who wrote it.
    ///
    /// # Errors
    /// [`Fault::Race`], when another's use of it is not ordered before; `what` has the
    /// variable's name and the word's number.
    // Nearly all that an emulated launch does is to note uses, so no more is divided here than
    // has to be, and what describes a race is made where there is one.
    #[inline]
    pub fn note(
        &self,
        uses: &mut Uses,
        By {
            invocation: by,
            workgroup,
        }: By,
        how: Access,
        space: Space,
        word: Word<'_>,
    ) -> Result<(), Fault> {
        let first = workgroup as u32 * self.workgroup;
        let is_of_own = |other: Use| other.by.wrapping_sub(first) < self.workgroup;
        let own = Use {
            by,
            barriers: self.barriers[space as usize][workgroup],
        };
        let check = |before: Use, did: &'static str| {
            let is_ordered = match is_of_own(before) {
                true => before.by == by || before.barriers < own.barriers,
                false => before.by == NOBODY.by || self.is_known(before, own, space, word),
            };
            match is_ordered {
                true => Ok(()),
                false => Err(self.race(before, own, did, how, word)),
            }
        };
        if how != Access::WriteSame {
            check(uses.wrote, "wrote")?;
        }
        if how != Access::Atomic {
            check(uses.changed, "changed")?;
        }
        if how != Access::Read {
            for read in uses.read {
                check(read, "read")?;
            }
        }
        match how {
            Access::Read => {
                let last = uses.read[0];
                if !is_of_own(last) {
                    uses.read[2] = last;
                }
                if last.by != by {
                    uses.read[1] = last;
                }
                uses.read[0] = own;
            }
            Access::Atomic => uses.changed = own,
            Access::WriteSame | Access::Write => uses.wrote = own,
        }
        Ok(())
    }

    /// Whether what another workgroup did is known to be done.
    fn is_known(&self, before: Use, own: Use, space: Space, word: Word<'_>) -> bool {
        let [workgroup, other] = [own, before].map(|used| self.workgroup_of(used.by));
        let learnt = self.learnt[workgroup].get(&own.by);
        let clocks = [Some(&self.known[workgroup]), learnt].into_iter().flatten();
        let of_other = clocks.filter_map(|clock| clock.get(other));
        let done = of_other.filter_map(|spaces| spaces.get(space as usize));
        word.is_coherent && Some(&before.barriers) < done.max()
    }

    #[cold]
    fn race(&self, before: Use, own: Use, did: &'static str, how: Access, word: Word<'_>) -> Fault {
        Fault::Race {
            name: word.name.to_owned(),
            word: word.number,
            who: self.invocation(own.by),
            does: match how {
                Access::Read => "reads",
                Access::Atomic => "changes",
                Access::Write | Access::WriteSame => "writes",
            },
            other: self.invocation(before.by),
            did,
        }
    }
}
