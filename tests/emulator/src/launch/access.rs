//! Pointers, and what is loaded and stored through them.

use std::collections::BTreeMap;
use std::rc::Rc;

use naga::{
    AddressSpace, ArraySize, AtomicFunction, Expression, GlobalVariable, Handle, MemoryDecorations,
    SubgroupOperation, TypeInner,
};

use super::{Launch, Pointer, Root};
use crate::device::TEXEL;
use crate::fault::Fault;
use crate::lanes::{Lanes, Mask, columns};
use crate::memory::{Access, Atomic, Space, Word};
use crate::scalar::{self};
use crate::types::{Field, Pointee};

/// A buffer or an image whose uses are noted.
struct Noted<'a> {
    buffer: usize,
    name: &'a str,
    is_coherent: bool,
    space: Space,
}

impl<'a> Launch<'a> {
    fn name(&self, root: Root) -> &str {
        match root {
            Root::Local(frame, variable) => {
                let variables = &self.frames[frame].function.local_variables;
                variables[variable].name.as_deref().unwrap_or_default()
            }
            Root::Global(variable) => self.kernel.name(variable),
        }
    }

    /// Whether offsets are in bytes.
    fn in_bytes(&self, root: Root) -> bool {
        match root {
            Root::Local(..) => false,
            Root::Global(variable) => matches!(
                self.kernel.global(variable).space,
                AddressSpace::Storage { .. } | AddressSpace::Uniform
            ),
        }
    }

    pub(super) fn buffer_of(&self, variable: Handle<GlobalVariable>) -> usize {
        let place = self.kernel.global(variable).binding.as_ref();
        let binding = place.map_or(1, |b| b.binding as usize);
        self.bindings[binding.max(1) - 1].0
    }

    fn words_of(&self, variable: Handle<GlobalVariable>) -> &[u32] {
        &self.device.memory[self.buffer_of(variable)].words
    }

    fn word(&self, buffer: usize, at: usize) -> Option<u32> {
        self.device.memory[buffer].words.get(at).copied()
    }

    pub(super) fn check_index(
        &self,
        name: &str,
        index: &Lanes,
        len: usize,
        mask: &Mask,
    ) -> Result<(), Fault> {
        let beyond = match index {
            Lanes::Same(index) if (*index as usize) < len => return Ok(()),
            Lanes::Same(_) => mask.lanes().next(),
            Lanes::Each(all) => mask.lanes().find(|lane| all[*lane] as usize >= len),
        };
        let Some(lane) = beyond else {
            return Ok(());
        };
        Err(Fault::OutOfBounds {
            name: name.to_owned(),
            index: index.at(lane).into(),
            len: len as u64,
            who: self.who(lane),
        })
    }

    /// The number of elements of the array that a pointer points to.
    pub(super) fn length(&self, pointer: &Pointer) -> Result<usize, Fault> {
        match (self.inner(pointer.to).as_ref(), pointer.root) {
            (
                TypeInner::Array {
                    size: ArraySize::Constant(size),
                    ..
                },
                _,
            ) => Ok(size.get() as usize),
            (TypeInner::Array { stride, .. }, Root::Global(variable)) => {
                Ok(4 * self.words_of(variable).len() / *stride as usize)
            }
            (other, _) => Err(Fault::Unsupported(format!("the length of {other:?}"))),
        }
    }

    pub(super) fn element(
        &self,
        pointer: &Pointer,
        index: &Lanes,
        mask: &Mask,
    ) -> Result<Pointer, Fault> {
        let in_bytes = self.in_bytes(pointer.root);
        let (to, size, len) = match *self.inner(pointer.to) {
            TypeInner::Array { base, stride, .. } => {
                let slots = self.count(&self.kernel.module.types[base].inner);
                let size = if in_bytes { stride as usize } else { slots };
                (Pointee::Type(base), size, self.length(pointer)?)
            }
            TypeInner::Vector { size, scalar } => {
                let width = if in_bytes { scalar.width as usize } else { 1 };
                (Pointee::Component(scalar), width, size as usize)
            }
            ref other => return Err(Fault::Unsupported(format!("an element of {other:?}"))),
        };
        self.check_index(self.name(pointer.root), index, len, mask)?;
        let size = size as u32;
        let offset = pointer
            .offset
            .zip(index, |a, i| a.wrapping_add(i.wrapping_mul(size)));
        Ok(Pointer {
            root: pointer.root,
            offset,
            to,
        })
    }

    pub(super) fn member(
        &self,
        pointer: &Pointer,
        index: u32,
        mask: &Mask,
    ) -> Result<Pointer, Fault> {
        let inner = self.inner(pointer.to);
        let TypeInner::Struct { members, .. } = inner.as_ref() else {
            return self.element(pointer, &Lanes::Same(index), mask);
        };
        let index = index as usize;
        let types = &self.kernel.module.types;
        let before = match self.in_bytes(pointer.root) {
            true => members[index].offset,
            false => {
                let before = members[..index].iter();
                before
                    .map(|m| self.count(&types[m.ty].inner))
                    .sum::<usize>() as u32
            }
        };
        Ok(Pointer {
            root: pointer.root,
            offset: pointer.offset.map(|a| a.wrapping_add(before)),
            to: Pointee::Type(members[index].ty),
        })
    }

    /// Whether an atomic is pointed to.
    fn is_atomic(&self, pointer: &Pointer) -> bool {
        matches!(*self.inner(pointer.to), TypeInner::Atomic(_))
    }

    pub(super) fn load(&mut self, pointer: &Pointer, mask: &Mask) -> Result<Rc<[Lanes]>, Fault> {
        let count = self.count(&self.inner(pointer.to));
        match pointer.root {
            Root::Local(frame, variable) => {
                let slots = &self.frames[frame].locals[variable.index()];
                Ok(load_slots(slots, &pointer.offset, count, mask))
            }
            Root::Global(variable) => match self.kernel.global(variable).space {
                AddressSpace::Private => {
                    let slots = &self.private[&variable];
                    Ok(load_slots(slots, &pointer.offset, count, mask))
                }
                AddressSpace::WorkGroup => self.load_shared(variable, pointer, count, mask),
                AddressSpace::Uniform => {
                    let fields = self.fields(pointer.to)?;
                    let mut out = Vec::new();
                    for field in fields.iter() {
                        let word = pointer.offset.map(|at| at.wrapping_add(field.offset) / 4);
                        let name = self.kernel.name(variable);
                        self.check_index(name, &word, self.uniforms.len(), mask)?;
                        let at = |word: u32| self.uniforms.get(word as usize).copied();
                        out.push(word.map(|word| at(word).unwrap_or(0)));
                    }
                    Ok(out.into())
                }
                AddressSpace::Storage { .. } => self.load_buffer(variable, pointer, mask),
                other => Err(Fault::Unsupported(format!("loads from {other:?}"))),
            },
        }
    }

    fn load_shared(
        &mut self,
        variable: Handle<GlobalVariable>,
        pointer: &Pointer,
        count: usize,
        mask: &Mask,
    ) -> Result<Rc<[Lanes]>, Fault> {
        let how = match self.is_atomic(pointer) {
            true => Access::Atomic,
            false => Access::Read,
        };
        let mut out = vec![vec![0; self.lanes]; count];
        for lane in mask.lanes() {
            for (i, out) in out.iter_mut().enumerate() {
                let at = pointer.offset.at(lane) as usize + i;
                out[lane] = self.shared_word(variable, lane, at, how)?;
            }
        }
        Ok(columns(out))
    }

    /// A word of workgroup memory, read by an invocation.
    pub(super) fn shared_word(
        &mut self,
        variable: Handle<GlobalVariable>,
        lane: usize,
        at: usize,
        how: Access,
    ) -> Result<u32, Fault> {
        let by = self.by[lane];
        let name = self.kernel.name(variable);
        let Some(shared) = &mut self.shared[variable.index()] else {
            return Ok(0);
        };
        let word = (by.workgroup - self.first) * shared.slots + at;
        let uses = &mut shared.uses[word];
        if !uses.is_written() {
            return Err(Fault::Unwritten {
                name: name.to_owned(),
                word: at,
                who: self.order.invocation(by.invocation),
            });
        }
        let of = Word {
            name,
            number: at,
            is_coherent: true,
        };
        self.order.note(uses, by, how, Space::Workgroup, of)?;
        Ok(shared.words[word])
    }

    pub(super) fn set_shared_word(
        &mut self,
        variable: Handle<GlobalVariable>,
        lane: usize,
        at: usize,
        (bits, is_atomic): (u32, bool),
    ) -> Result<(), Fault> {
        let by = self.by[lane];
        let Some(shared) = &mut self.shared[variable.index()] else {
            return Ok(());
        };
        let word = (by.workgroup - self.first) * shared.slots + at;
        let how = match is_atomic {
            true => Access::Atomic,
            false => Access::write(shared.words[word], bits),
        };
        let of = Word {
            name: self.kernel.name(variable),
            number: at,
            is_coherent: true,
        };
        let uses = &mut shared.uses[word];
        self.order.note(uses, by, how, Space::Workgroup, of)?;
        shared.words[word] = bits;
        Ok(())
    }

    fn load_buffer(
        &mut self,
        variable: Handle<GlobalVariable>,
        pointer: &Pointer,
        mask: &Mask,
    ) -> Result<Rc<[Lanes]>, Fault> {
        let buffer = self.buffer_of(variable);
        let fields = self.fields(pointer.to)?;
        let narrow = |word: u32, at: usize, width| match width {
            2 => word >> (8 * (at % 4)) & 0xffff,
            _ => word,
        };
        let Some(noted) = self.noted(variable) else {
            let words = &self.device.memory[buffer].words;
            let load = |field: &Field, lane: usize| {
                let at = (pointer.offset.at(lane) + field.offset) as usize;
                match words.get(at / 4) {
                    Some(word) => Ok(narrow(*word, at, field.scalar.width)),
                    None => Err(self.beyond(variable, at, lane)),
                }
            };
            let columns = fields
                .iter()
                .map(|field| match (&pointer.offset, mask.lanes().next()) {
                    (Lanes::Same(_), Some(lane)) => Ok(Lanes::Same(load(field, lane)?)),
                    _ => {
                        let mut out = vec![0; self.lanes];
                        for lane in mask.lanes() {
                            out[lane] = load(field, lane)?;
                        }
                        Ok(out.into())
                    }
                });
            return columns.collect();
        };
        let how = match self.is_atomic(pointer) {
            true => Access::Atomic,
            false => Access::Read,
        };
        let mut out = vec![vec![0; self.lanes]; fields.len()];
        for lane in mask.lanes() {
            for (field, out) in fields.iter().zip(&mut out) {
                let at = (pointer.offset.at(lane) + field.offset) as usize;
                let width = field.scalar.width;
                let Some(word) = self.word(buffer, at / 4) else {
                    return Err(self.beyond(variable, at, lane));
                };
                self.note(&noted, lane, (at, width), how)?;
                if how == Access::Atomic {
                    let by = self.by[lane];
                    self.order.atomic(by, buffer, at / 4, Atomic::Load);
                }
                out[lane] = narrow(word, at, width);
            }
        }
        Ok(columns(out))
    }

    /// A buffer or an image whose uses are noted: one that is written.
    fn noted(&self, variable: Handle<GlobalVariable>) -> Option<Noted<'a>> {
        let (buffer, kernel) = (self.buffer_of(variable), self.kernel);
        let global = kernel.global(variable);
        let says_so = global
            .memory_decorations
            .contains(MemoryDecorations::COHERENT);
        (!self.uses[buffer].is_empty()).then(|| Noted {
            buffer,
            name: kernel.name(variable),
            is_coherent: says_so || self.device.is_cpu,
            space: match global.space {
                AddressSpace::Handle => Space::Texture,
                _ => Space::Storage,
            },
        })
    }

    /// Notes the use of a scalar, by its place and width in bytes.
    fn note(
        &mut self,
        noted: &Noted<'a>,
        lane: usize,
        (at, width): (usize, naga::Bytes),
        how: Access,
    ) -> Result<(), Fault> {
        let of = Word {
            name: noted.name,
            number: at / 4,
            is_coherent: noted.is_coherent,
        };
        // By halves of words.
        for uses in &mut self.uses[noted.buffer][at / 2..(at + width as usize) / 2] {
            self.order.note(uses, self.by[lane], how, noted.space, of)?;
        }
        Ok(())
    }

    /// An image, and where its texels at `coordinate` begin, in bytes.
    fn texels(
        &mut self,
        image: Handle<Expression>,
        coordinate: Handle<Expression>,
        mask: &Mask,
    ) -> Result<(Handle<GlobalVariable>, Lanes), Fault> {
        let Root::Global(variable) = self.pointer(image)?.root else {
            return Err(Fault::Unsupported("an image of a function".to_owned()));
        };
        let coordinate = self.data(coordinate)?;
        let [x, y] = coordinate.as_ref() else {
            return Err(Fault::Unsupported("an image not of two axes".to_owned()));
        };
        let memory = &self.device.memory[self.buffer_of(variable)];
        let across = memory.across.unwrap_or(1);
        let down = memory.words.len() / (TEXEL * across);
        let name = self.kernel.name(variable);
        self.check_index(name, x, across, mask)?;
        self.check_index(name, y, down, mask)?;
        let first = |x: u32, y: u32| {
            let texel = y.wrapping_mul(across as u32).wrapping_add(x);
            texel.wrapping_mul(4 * TEXEL as u32)
        };
        Ok((variable, x.zip(y, first)))
    }

    pub(super) fn load_texel(
        &mut self,
        image: Handle<Expression>,
        coordinate: Handle<Expression>,
        mask: &Mask,
    ) -> Result<Vec<Lanes>, Fault> {
        let (variable, first) = self.texels(image, coordinate, mask)?;
        let noted = self.noted(variable);
        let mut out = vec![vec![0; self.lanes]; TEXEL];
        for lane in mask.lanes() {
            for (i, out) in out.iter_mut().enumerate() {
                let at = first.at(lane) as usize + 4 * i;
                if let Some(noted) = &noted {
                    self.note(noted, lane, (at, 4), Access::Read)?;
                }
                out[lane] = self.words_of(variable)[at / 4];
            }
        }
        Ok(columns(out))
    }

    pub(super) fn store_texel(
        &mut self,
        image: Handle<Expression>,
        coordinate: Handle<Expression>,
        value: &[Lanes],
        mask: &Mask,
    ) -> Result<(), Fault> {
        let (variable, first) = self.texels(image, coordinate, mask)?;
        let (buffer, noted) = (self.buffer_of(variable), self.noted(variable));
        for lane in mask.lanes() {
            for (i, scalar) in value.iter().enumerate() {
                let at = first.at(lane) as usize + 4 * i;
                let bits = scalar.at(lane);
                let how = Access::write(self.words_of(variable)[at / 4], bits);
                if let Some(noted) = &noted {
                    self.note(noted, lane, (at, 4), how)?;
                }
                self.device.memory[buffer].words[at / 4] = bits;
            }
        }
        Ok(())
    }

    /// An address in bytes that lies beyond the end of a buffer.
    fn beyond(&self, variable: Handle<GlobalVariable>, at: usize, lane: usize) -> Fault {
        Fault::OutOfBounds {
            name: self.name(Root::Global(variable)).to_owned(),
            index: at as u64 / 4,
            len: self.words_of(variable).len() as u64,
            who: self.who(lane),
        }
    }

    pub(super) fn store(
        &mut self,
        pointer: &Pointer,
        value: &[Lanes],
        mask: &Mask,
    ) -> Result<(), Fault> {
        match pointer.root {
            Root::Local(frame, variable) => {
                let slots = &mut self.frames[frame].locals[variable.index()];
                store_slots(slots, &pointer.offset, value, mask);
                Ok(())
            }
            Root::Global(variable) => match self.kernel.global(variable).space {
                AddressSpace::Private => {
                    if let Some(slots) = self.private.get_mut(&variable) {
                        store_slots(slots, &pointer.offset, value, mask);
                    }
                    Ok(())
                }
                AddressSpace::WorkGroup => {
                    let is_atomic = self.is_atomic(pointer);
                    for lane in mask.lanes() {
                        let at = pointer.offset.at(lane) as usize;
                        for (i, scalar) in value.iter().enumerate() {
                            let bits = (scalar.at(lane), is_atomic);
                            self.set_shared_word(variable, lane, at + i, bits)?;
                        }
                    }
                    Ok(())
                }
                AddressSpace::Storage { .. } => self.store_buffer(variable, pointer, value, mask),
                other => Err(Fault::Unsupported(format!("stores to {other:?}"))),
            },
        }
    }

    fn store_buffer(
        &mut self,
        variable: Handle<GlobalVariable>,
        pointer: &Pointer,
        value: &[Lanes],
        mask: &Mask,
    ) -> Result<(), Fault> {
        let buffer = self.buffer_of(variable);
        let fields = self.fields(pointer.to)?;
        let (is_atomic, noted) = (self.is_atomic(pointer), self.noted(variable));
        for lane in mask.lanes() {
            for (field, scalar) in fields.iter().zip(value) {
                let at = (pointer.offset.at(lane) + field.offset) as usize;
                let width = field.scalar.width;
                let Some(before) = self.word(buffer, at / 4) else {
                    return Err(self.beyond(variable, at, lane));
                };
                let bits = match width {
                    2 => {
                        let shift = 8 * (at % 4);
                        before & !(0xffff << shift) | (scalar.at(lane) & 0xffff) << shift
                    }
                    _ => scalar.at(lane),
                };
                let how = match is_atomic {
                    true => Access::Atomic,
                    false => Access::write(before, bits),
                };
                if let Some(noted) = &noted {
                    self.note(noted, lane, (at, width), how)?;
                }
                if is_atomic {
                    let by = self.by[lane];
                    self.order.atomic(by, buffer, at / 4, Atomic::Store);
                }
                self.device.memory[buffer].words[at / 4] = bits;
            }
        }
        Ok(())
    }

    pub(super) fn atomic(
        &mut self,
        pointer: Handle<Expression>,
        function: &AtomicFunction,
        value: Handle<Expression>,
        mask: &Mask,
    ) -> Result<Lanes, Fault> {
        let pointer = self.pointer(pointer)?;
        let kind = self.kind(value)?;
        let value = self.scalar(value)?;
        let operation = match function {
            AtomicFunction::Add => Some(SubgroupOperation::Add),
            AtomicFunction::Subtract => None,
            AtomicFunction::And => Some(SubgroupOperation::And),
            AtomicFunction::ExclusiveOr => Some(SubgroupOperation::Xor),
            AtomicFunction::InclusiveOr => Some(SubgroupOperation::Or),
            AtomicFunction::Min => Some(SubgroupOperation::Min),
            AtomicFunction::Max => Some(SubgroupOperation::Max),
            AtomicFunction::Exchange { compare: None } => None,
            AtomicFunction::Exchange { .. } => {
                return Err(Fault::Unsupported("a compare and exchange".to_owned()));
            }
        };
        let Root::Global(variable) = pointer.root else {
            return Err(Fault::Unsupported(
                "an atomic that is not global".to_owned(),
            ));
        };
        let changed = |old: u32, operand: u32| match (operation, function) {
            (Some(operation), _) => scalar::combine(operation, kind, old, operand),
            (None, AtomicFunction::Subtract) => Ok(old.wrapping_sub(operand)),
            (None, _) => Ok(operand),
        };
        let in_workgroup = self.kernel.global(variable).space == AddressSpace::WorkGroup;
        let noted = match in_workgroup {
            true => None,
            false => self.noted(variable),
        };
        let mut before = vec![0; self.lanes];
        for lane in mask.lanes() {
            let at = pointer.offset.at(lane) as usize;
            if in_workgroup {
                let old = self.shared_word(variable, lane, at, Access::Atomic)?;
                let bits = (changed(old, value.at(lane))?, true);
                self.set_shared_word(variable, lane, at, bits)?;
                before[lane] = old;
                continue;
            }
            let (buffer, word) = (self.buffer_of(variable), at / 4);
            let Some(old) = self.word(buffer, word) else {
                return Err(self.beyond(variable, at, lane));
            };
            if let Some(noted) = &noted {
                self.note(noted, lane, (at, 4), Access::Atomic)?;
            }
            let by = self.by[lane];
            self.order.atomic(by, buffer, word, Atomic::Change);
            self.device.memory[buffer].words[word] = changed(old, value.at(lane))?;
            before[lane] = old;
        }
        Ok(before.into())
    }
}

fn load_slots(slots: &[Lanes], offset: &Lanes, count: usize, mask: &Mask) -> Rc<[Lanes]> {
    match offset {
        Lanes::Same(at) => slots[*at as usize..*at as usize + count].into(),
        Lanes::Each(at) => (0..count)
            .map(|i| {
                let mut out = vec![0; at.len()];
                for lane in mask.lanes() {
                    out[lane] = slots[at[lane] as usize + i].at(lane);
                }
                out.into()
            })
            .collect(),
    }
}

fn store_slots(slots: &mut [Lanes], offset: &Lanes, value: &[Lanes], mask: &Mask) {
    match offset {
        Lanes::Same(at) => {
            let slots = slots[*at as usize..].iter_mut();
            for (slot, value) in slots.zip(value) {
                *slot = value.over(slot, mask);
            }
        }
        Lanes::Each(at) => {
            // The slots that are written, each made an array of its own once.
            let mut written: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
            for lane in mask.lanes() {
                for (i, value) in value.iter().enumerate() {
                    let slot = at[lane] as usize + i;
                    let words = written.entry(slot).or_insert_with(|| {
                        (0..at.len()).map(|lane| slots[slot].at(lane)).collect()
                    });
                    words[lane] = value.at(lane);
                }
            }
            for (slot, words) in written {
                slots[slot] = words.into();
            }
        }
    }
}
