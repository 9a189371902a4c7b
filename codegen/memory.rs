//! Which buffer of an entry point each local of a variant lies in.
//!
//! Buffers are shared by values whose lifetimes do not overlap. A value lives
//! from the launch that writes it first to the last one that touches it; all
//! buffers of one launch are alive at once, so that none is both read and
//! written. Inputs and outputs have buffers of their own, the same in every
//! variant; scratch buffers are a pool that the variants draw from. Counters, the state
//! of barriers, and parts of sums have buffers that nothing else shares.

use std::collections::BTreeMap;

use kiln_ir::plan::Buffer;
use kiln_ir::{Bindings, Dim};

use crate::error::CodegenError;
use crate::place::{Local, Role};

/// The buffers of an entry point, as variants add to them.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub buffers: Vec<Buffer>,
    /// The buffers of inputs and outputs, by local.
    fixed: BTreeMap<usize, usize>,
    /// Those that are for one name each.
    states: Vec<usize>,
}

impl Pool {
    /// Gives inputs and outputs their buffers.
    pub fn new(locals: &[Local]) -> Self {
        let mut pool = Pool::default();
        for role in [Role::Input, Role::Output] {
            for (i, local) in locals.iter().enumerate().filter(|(_, l)| l.role == role) {
                pool.fixed.insert(i, pool.buffers.len());
                pool.buffers.push(Buffer {
                    name: local.name.clone(),
                    bytes: vec![bytes(local)],
                    image: false,
                    zeroed: false,
                });
            }
        }
        pool
    }

    /// The buffer of an input or output.
    pub fn fixed(&self, local: usize) -> Option<usize> {
        self.fixed.get(&local).copied()
    }

    /// The buffer `name` of at least so many bytes, zeroed, which no local shares: the same
    /// whenever it is asked for.
    pub fn state(&mut self, name: &str, bytes: u64) -> usize {
        self.own(name, bytes, true)
    }

    /// As [`Pool::state`], of any words unless it is `zeroed`.
    fn own(&mut self, name: &str, bytes: u64, zeroed: bool) -> usize {
        let mut known = self.states.iter().copied();
        let known = known.find(|b| self.buffers[*b].name == name);
        if let Some(known) = known {
            let size = Dim::constant(bytes);
            let sizes = &mut self.buffers[known].bytes;
            if !sizes.contains(&size) {
                sizes.push(size);
            }
        }
        known.unwrap_or_else(|| {
            self.states.push(self.buffers.len());
            self.buffers.push(Buffer {
                name: name.to_owned(),
                bytes: vec![Dim::constant(bytes)],
                image: false,
                zeroed,
            });
            self.buffers.len() - 1
        })
    }

    /// The buffer of each local of a variant, whose launches touch the locals
    /// `uses` in order.
    pub fn assign(
        &mut self,
        locals: &[Local],
        uses: &[Vec<usize>],
        maxima: &Bindings,
    ) -> Result<BTreeMap<usize, usize>, CodegenError> {
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, touched) in uses.iter().enumerate() {
            last.extend(touched.iter().map(|l| (*l, at)));
        }
        let mut assigned = self.fixed.clone();
        let is_scratch = |b: &usize| *b >= self.fixed.len() && !self.states.contains(b);
        let mut free: Vec<usize> = (0..self.buffers.len()).filter(is_scratch).collect();
        for (at, touched) in uses.iter().enumerate() {
            for id in touched {
                if assigned.contains_key(id) {
                    continue;
                }
                let local = &locals[*id];
                let buffer = match local.role {
                    Role::Counter | Role::Own => {
                        let zeroed = local.role == Role::Counter;
                        self.own(&local.name, bytes(local).eval(maxima)?, zeroed)
                    }
                    _ => self.take(&mut free, local, maxima)?,
                };
                assigned.insert(*id, buffer);
            }
            for local in touched {
                let is_scratch = locals[*local].role == Role::Scratch;
                let done = last.get(local) == Some(&at) && is_scratch;
                if let (true, Some(buffer)) = (done, assigned.get(local))
                    && !free.contains(buffer)
                {
                    free.push(*buffer);
                    free.sort_unstable();
                }
            }
        }
        Ok(assigned)
    }

    /// A free scratch buffer, or image, for `local`: one that has its size already,
    /// else the one that needs to grow the least, else a new one.
    fn take(
        &mut self,
        free: &mut Vec<usize>,
        local: &Local,
        maxima: &Bindings,
    ) -> Result<usize, CodegenError> {
        let size = bytes(local);
        let wanted = size.eval(maxima)?;
        let mut best: Option<(u64, usize)> = None;
        for (place, buffer) in free.iter().enumerate() {
            if self.buffers[*buffer].image != local.image {
                continue;
            }
            let sizes = &self.buffers[*buffer].bytes;
            let mut largest = 0;
            for s in sizes {
                largest = largest.max(s.eval(maxima)?);
            }
            let cost = if sizes.contains(&size) {
                0
            } else {
                1 + largest.abs_diff(wanted)
            };
            if best.is_none_or(|(c, _)| cost < c) {
                best = Some((cost, place));
            }
        }
        let Some((_, place)) = best else {
            let scratch = self.buffers.len() - self.fixed.len() - self.states.len();
            self.buffers.push(Buffer {
                name: format!("scratch.{scratch}"),
                bytes: vec![size],
                image: local.image,
                zeroed: false,
            });
            return Ok(self.buffers.len() - 1);
        };
        let buffer = free.remove(place);
        if !self.buffers[buffer].bytes.contains(&size) {
            self.buffers[buffer].bytes.push(size);
        }
        Ok(buffer)
    }
}

/// Checks an assignment without regard to how it was made: of two locals in one
/// buffer, the launches that touch them do not interleave.
pub(crate) fn check_sharing(
    entry: &str,
    locals: &[Local],
    uses: &[Vec<usize>],
    assigned: &BTreeMap<usize, usize>,
) -> Result<(), CodegenError> {
    let mut lifetimes: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (at, touched) in uses.iter().enumerate() {
        for local in touched {
            lifetimes.entry(*local).or_insert((at, at)).1 = at;
        }
    }
    let mut by_buffer: BTreeMap<usize, Vec<(usize, usize, usize)>> = BTreeMap::new();
    for (local, (first, last)) in lifetimes {
        if let Some(buffer) = assigned.get(&local) {
            by_buffer
                .entry(*buffer)
                .or_default()
                .push((first, last, local));
        }
    }
    for lives in by_buffer.values_mut() {
        lives.sort_unstable();
        for pair in lives.windows(2) {
            let [(_, end, a), (begin, _, b)] = pair else {
                continue;
            };
            if end >= begin {
                let name =
                    |local: usize| locals.get(local).map_or("", |l| l.name.as_str()).to_owned();
                return Err(CodegenError::Overlap {
                    entry: entry.to_owned(),
                    first: name(*a),
                    second: name(*b),
                });
            }
        }
    }
    Ok(())
}

/// A local's bytes.
pub(crate) fn bytes(local: &Local) -> Dim {
    &local.elements * &Dim::constant(local.dtype.device_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::DType;

    fn local(elements: &str, role: Role) -> Local {
        Local {
            name: "x".into(),
            elements: elements.parse().unwrap(),
            dtype: DType::F32,
            role,
            image: false,
        }
    }

    #[test]
    fn values_share_a_buffer_only_when_they_do_not_meet() {
        let locals = [
            local("seq", Role::Input),
            local("seq*8", Role::Scratch),
            local("seq*8", Role::Scratch),
            local("seq*8", Role::Scratch),
            local("seq*2", Role::Output),
        ];
        let maxima = Bindings::new().with("seq", 4);
        let mut pool = Pool::new(&locals);
        // 0 -> 1 -> 2 -> 3 -> 4: of three in a row, the first and third may share.
        let uses = [vec![0, 1], vec![1, 2], vec![2, 3], vec![3, 4]];
        let mut assigned = pool.assign(&locals, &uses, &maxima).unwrap();
        check_sharing("e", &locals, &uses, &assigned).unwrap();
        let second = assigned.insert(2, assigned[&1]);
        let error = check_sharing("e", &locals, &uses, &assigned).unwrap_err();
        assert!(error.to_string().contains("entry `e`"), "{error}");
        assigned.extend(second.map(|b| (2, b)));
        assert_eq!(assigned[&1], assigned[&3]);
        assert_ne!(assigned[&1], assigned[&2]);
        assert_eq!(pool.buffers.len(), 4);
        // The first stays alive to the end: three buffers.
        let uses = [vec![0, 1], vec![1, 2], vec![2, 3], vec![1, 3, 4]];
        let assigned = pool.assign(&locals, &uses, &maxima).unwrap();
        let mut buffers: Vec<usize> = assigned.into_values().collect();
        buffers.sort_unstable();
        buffers.dedup();
        assert_eq!(buffers.len(), 5);
    }
}
