//! What invocations do together: barriers, and the operations of subgroups.

use naga::{
    AddressSpace, Barrier, CollectiveOperation, CooperativeData, Expression, GatherMode,
    GlobalVariable, Handle, SubgroupOperation,
};

use super::{Launch, Root};
use crate::fault::Fault;
use crate::lanes::{Lanes, Mask, columns};
use crate::memory::{Access, Space};
use crate::scalar::{self, Kind};

/// Where a subgroup loads a matrix from, or stores it to: in scalars of workgroup memory.
struct Place {
    variable: Handle<GlobalVariable>,
    first: usize,
    /// Rows and columns of the matrix.
    side: usize,
    stride: usize,
    row_major: bool,
    /// The subgroup's first invocation.
    lane: usize,
}

impl<'a> Launch<'a> {
    /// All invocations of a workgroup, or none of them, take part in `mask`: those of which
    /// all do.
    fn whole_workgroups(&self, what: &'static str, mask: &Mask) -> Result<Vec<usize>, Fault> {
        self.whole(what, self.workgroup, mask)
    }

    /// As [`Self::whole_workgroups`], for parts of so many invocations.
    fn whole(&self, what: &'static str, size: usize, mask: &Mask) -> Result<Vec<usize>, Fault> {
        let mut out = Vec::new();
        for first in (0..self.lanes).step_by(size) {
            if let Some(missing) = mask.missing(first..first + size) {
                let missing = self.who(missing);
                return Err(Fault::Divergent { what, missing });
            }
            if mask.has(first) {
                out.push(first / size);
            }
        }
        Ok(out)
    }

    pub(super) fn barrier(&mut self, flags: Barrier, mask: &Mask) -> Result<(), Fault> {
        // One of a subgroup orders no memory that others may rest on.
        if flags == Barrier::SUB_GROUP {
            return Ok(());
        }
        let mut spaces = Vec::new();
        if flags.contains(Barrier::WORK_GROUP) {
            spaces.push(Space::Workgroup);
        }
        if flags.contains(Barrier::STORAGE) {
            spaces.push(Space::Storage);
        }
        if flags.contains(Barrier::TEXTURE) {
            spaces.push(Space::Texture);
        }
        for workgroup in self.whole_workgroups("a barrier", mask)? {
            self.order.barrier(self.first + workgroup, &spaces);
        }
        Ok(())
    }

    /// The subgroup of an invocation: its first, and behind its last.
    fn subgroup(&self, lane: usize) -> (usize, usize) {
        let workgroup = lane / self.workgroup * self.workgroup;
        let first = workgroup + lane % self.workgroup / self.subgroup * self.subgroup;
        (
            first,
            (first + self.subgroup).min(workgroup + self.workgroup),
        )
    }

    pub(super) fn gather(
        &mut self,
        mode: &GatherMode,
        argument: Handle<Expression>,
        mask: &Mask,
    ) -> Result<Vec<Lanes>, Fault> {
        let argument = self.data(argument)?;
        let other = match mode {
            GatherMode::Broadcast(x)
            | GatherMode::Shuffle(x)
            | GatherMode::ShuffleDown(x)
            | GatherMode::ShuffleUp(x)
            | GatherMode::ShuffleXor(x) => self.scalar(*x)?,
            GatherMode::BroadcastFirst => Lanes::Same(0),
            other => return Err(Fault::Unsupported(format!("{other:?}"))),
        };
        let mut from = vec![0; self.lanes];
        for lane in mask.lanes() {
            let (first, end) = self.subgroup(lane);
            let (own, other) = (lane - first, other.at(lane) as usize);
            let source = match mode {
                GatherMode::ShuffleDown(_) => own + other,
                GatherMode::ShuffleUp(_) => own.wrapping_sub(other),
                GatherMode::ShuffleXor(_) => own ^ other,
                GatherMode::BroadcastFirst => {
                    let mut all = first..end;
                    all.find(|l| mask.has(*l)).unwrap_or(first) - first
                }
                _ => other,
            };
            let source = first.saturating_add(source);
            if source >= end || !mask.has(source) {
                return Err(Fault::Divergent {
                    what: "a value of another invocation of the subgroup",
                    missing: self.who(source.min(end - 1)),
                });
            }
            from[lane] = source;
        }
        let of = |scalar: &Lanes| match scalar {
            Lanes::Same(bits) => Lanes::Same(*bits),
            Lanes::Each(all) => from.iter().map(|from| all[*from]).collect(),
        };
        Ok(argument.iter().map(of).collect())
    }

    pub(super) fn collect(
        &self,
        op: SubgroupOperation,
        how: CollectiveOperation,
        kind: Kind,
        scalar: &Lanes,
        mask: &Mask,
    ) -> Result<Lanes, Fault> {
        let mut out = vec![0; self.lanes];
        let mut lane = 0;
        while lane < self.lanes {
            let (first, end) = self.subgroup(lane);
            let active: Vec<usize> = (first..end).filter(|l| mask.has(*l)).collect();
            let mut total: Option<u32> = None;
            for lane in &active {
                let own = scalar.at(*lane);
                let next = match total {
                    None => own,
                    Some(total) => scalar::combine(op, kind, total, own)?,
                };
                match how {
                    CollectiveOperation::InclusiveScan => out[*lane] = next,
                    CollectiveOperation::ExclusiveScan => {
                        let neutral = u32::from(op == SubgroupOperation::Mul);
                        let neutral = scalar::convert(Kind::U32, kind, &Lanes::Same(neutral));
                        out[*lane] = total.unwrap_or_else(|| neutral.at(0));
                    }
                    CollectiveOperation::Reduce => {}
                }
                total = Some(next);
            }
            if let (CollectiveOperation::Reduce, Some(total)) = (how, total) {
                for lane in active {
                    out[lane] = total;
                }
            }
            lane = end;
        }
        Ok(out.into())
    }

    // Cooperative matrices: element `e` of one is scalar `e / subgroup` of invocation
    // `e % subgroup`.

    /// Subgroups of which all invocations take part, by their first.
    fn whole_subgroups(&self, side: usize, mask: &Mask) -> Result<Vec<usize>, Fault> {
        if !self.workgroup.is_multiple_of(self.subgroup)
            || !(side * side).is_multiple_of(self.subgroup)
        {
            let what = format!("a matrix in {} of {}", self.subgroup, self.workgroup);
            return Err(Fault::Unsupported(what));
        }
        let whole = self.whole("a cooperative operation", self.subgroup, mask)?;
        Ok(whole.into_iter().map(|s| s * self.subgroup).collect())
    }

    /// Rows and columns of the matrix that an expression is.
    fn side(&self, matrix: &[Lanes]) -> usize {
        (matrix.len() * self.subgroup).isqrt()
    }

    fn place(
        &mut self,
        data: &CooperativeData,
        (side, lane): (usize, usize),
    ) -> Result<Place, Fault> {
        const WHAT: &str = "a cooperative load or store";
        let pointer = self.pointer(data.pointer)?;
        let stride = self.scalar(data.stride)?;
        let same = |x: &Lanes| (lane..lane + self.subgroup).all(|l| x.at(l) == x.at(lane));
        if !same(&pointer.offset) || !same(&stride) {
            return Err(Fault::NotUniform { what: WHAT });
        }
        let Root::Global(variable) = pointer.root else {
            return Err(Fault::Unsupported(format!("{WHAT} of a local variable")));
        };
        if self.kernel.global(variable).space != AddressSpace::WorkGroup {
            return Err(Fault::Unsupported(format!("{WHAT} of a buffer")));
        }
        Ok(Place {
            variable,
            first: pointer.offset.at(lane) as usize,
            side,
            stride: stride.at(lane) as usize * self.count(&self.inner(pointer.to)),
            row_major: data.row_major,
            lane,
        })
    }

    pub(super) fn load_matrix(
        &mut self,
        data: &CooperativeData,
        side: usize,
        mask: &Mask,
    ) -> Result<Vec<Lanes>, Fault> {
        let subgroups = self.whole_subgroups(side, mask)?;
        let mut out = vec![vec![0; self.lanes]; side * side / self.subgroup];
        for first in subgroups {
            let place = self.place(data, (side, first))?;
            for element in 0..side * side {
                let at = self.element_of(&place, element)?;
                let lane = first + element % self.subgroup;
                let bits = self.shared_word(place.variable, lane, at, Access::Read)?;
                out[element / self.subgroup][lane] = bits;
            }
        }
        Ok(columns(out))
    }

    /// Where an element of a matrix lies in workgroup memory.
    fn element_of(&self, place: &Place, element: usize) -> Result<usize, Fault> {
        let (row, column) = (element / place.side, element % place.side);
        let at = place.first
            + match place.row_major {
                true => row * place.stride + column,
                false => column * place.stride + row,
            };
        let len = self.shared[place.variable.index()]
            .as_ref()
            .map_or(0, |s| s.slots);
        if at < len {
            return Ok(at);
        }
        Err(Fault::OutOfBounds {
            name: self.kernel.name(place.variable).to_owned(),
            index: at as u64,
            len: len as u64,
            who: self.who(place.lane),
        })
    }

    pub(super) fn store_matrix(
        &mut self,
        target: Handle<Expression>,
        data: &CooperativeData,
        mask: &Mask,
    ) -> Result<(), Fault> {
        let matrix = self.data(target)?;
        let side = self.side(&matrix);
        for first in self.whole_subgroups(side, mask)? {
            let place = self.place(data, (side, first))?;
            for element in 0..side * side {
                let at = self.element_of(&place, element)?;
                let lane = first + element % self.subgroup;
                let bits = matrix[element / self.subgroup].at(lane);
                self.set_shared_word(place.variable, lane, at, (bits, false))?;
            }
        }
        Ok(())
    }

    pub(super) fn multiply_add(
        &mut self,
        a: Handle<Expression>,
        b: Handle<Expression>,
        c: Handle<Expression>,
        mask: &Mask,
    ) -> Result<Vec<Lanes>, Fault> {
        let (kind, kind_of_sums) = (self.kind(a)?, self.kind(c)?);
        let (a, b, c) = (self.data(a)?, self.data(b)?, self.data(c)?);
        let (subgroup, side) = (self.subgroup, self.side(&c));
        let subgroups = self.whole_subgroups(side, mask)?;
        let mut out = vec![vec![0; self.lanes]; side * side / subgroup];
        for first in subgroups {
            let whole = |matrix: &[Lanes], kind: Kind| -> Vec<f32> {
                let element = |e: usize| matrix[e / subgroup].at(first + e % subgroup);
                (0..side * side).map(|e| kind.real(element(e))).collect()
            };
            let (a, b) = (whole(&a, kind), whole(&b, kind));
            let mut sums = whole(&c, kind_of_sums);
            for (row, sums) in sums.chunks_exact_mut(side).enumerate() {
                for (k, b) in b.chunks_exact(side).enumerate() {
                    let a = a[row * side + k];
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum += a * b;
                    }
                }
            }
            for (element, sum) in sums.into_iter().enumerate() {
                let lane = first + element % subgroup;
                out[element / subgroup][lane] = kind_of_sums.bits(sum);
            }
        }
        Ok(columns(out))
    }
}
