//! Which values lie in buffers, and where.
//!
//! A value is *materialised* when a launch of its own computes it into a buffer.
//! Everything else is either a [`View`] of something that lies in a buffer, or
//! is evaluated where it is used, inside its users' kernels.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::plan::PAST;
use kiln_ir::{BinaryOp, DType, Dim, Graph, Op, Symbol, ValueId};

use crate::error::CodegenError;
use crate::states::{State, capacity_shape};
use crate::view::{Base, View};
use crate::weights::Weights;

/// The most buffers that an expression may read which is evaluated in a kernel of
/// its own: there are eight storage bindings under WebGPU's defaults, one of
/// which the kernel writes.
const INLINE_BUFFERS: usize = 6;

/// The same for an expression inside a kernel that binds operands beside it.
const OPERAND_BUFFERS: usize = 2;

/// The most ops that an expression has which is evaluated in place. Texts grow with it, by
/// twice where an operand stands in it twice, and compilers nest only so deep.
const INLINE_OPS: usize = 64;

/// A buffer before memory planning.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// For a person.
    pub name: String,
    pub elements: Dim,
    pub dtype: DType,
    pub role: Role,
    /// Whether it is an image in place of a buffer.
    pub image: bool,
}

/// What a local buffer is to the entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Input,
    Output,
    Scratch,
    /// Scratch whose buffer no other value shares.
    Own,
    /// Words that launches leave as they find them: 0 each.
    Counter,
}

/// A range of the last axis of a result and where it is written.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub start: u64,
    pub end: u64,
    pub view: View,
}

impl Part {
    /// Whether four elements can be written at a time.
    pub fn is_vectorised(&self) -> bool {
        self.start.is_multiple_of(4) && self.end.is_multiple_of(4) && self.view.is_vectorised()
    }
}

/// The placement of a graph's values.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    pub views: Vec<Option<View>>,
    /// Values to compute, in order.
    pub materialised: Vec<ValueId>,
    pub locals: Vec<Local>,
    /// For ops that write to several places.
    pub parts: BTreeMap<ValueId, Vec<Part>>,
    /// Concatenations that extend a state in place: the operand that has to be
    /// copied there, unless the op that computes it writes there itself.
    pub appended: BTreeSet<ValueId>,
    /// Concatenations of more buffers than a launch reads: each operand has one of its own.
    pub wide: BTreeSet<ValueId>,
    /// Sums that are written by the kernel of a norm, one of their operands, and which that is:
    /// of a residual stream and what a layer adds to it, normalised.
    pub norm_of_sum: BTreeMap<ValueId, ValueId>,
    /// Outputs that have to be copied, and to which buffer.
    pub copies: Vec<(ValueId, usize)>,
}

/// Whether a kernel of its own computes the op.
fn has_kernel(op: &Op) -> bool {
    matches!(
        op,
        Op::Linear { .. }
            | Op::Normalize(_)
            | Op::Attention(_)
            | Op::AttentionProbs(_)
            | Op::Softmax { .. }
            | Op::Reduce { .. }
            | Op::MatMul
    )
}

/// Whether the op's kernel can write ranges of the last axis to several places.
fn writes_parts(op: &Op) -> bool {
    matches!(op, Op::Linear { .. } | Op::Rotary)
}

/// Operands that a kernel reads through a [`View`].
fn wants_view(op: &Op, operand: usize) -> bool {
    match op {
        Op::Linear { .. } | Op::Normalize(_) => operand == 0,
        // Behind queries, keys and values the first key that is seen.
        Op::Attention(_) => operand < 4,
        Op::AttentionProbs(_) => operand < 3,
        _ => false,
    }
}

/// Operands that a kernel reads through a [`View`] unless they are parameters: a norm's gain
/// and bias.
fn wants_vector(op: &Op, operand: usize) -> bool {
    match op {
        Op::Linear {
            norm: Some(norm), ..
        } => (2..2 + norm.operands()).contains(&operand),
        Op::Normalize(_) => operand > 0,
        _ => false,
    }
}

/// Whether an op may have to be computed by several launches.
fn is_wide(op: &Op) -> bool {
    matches!(op, Op::Concat { .. })
}

/// Whether evaluating the op again for another user costs next to nothing.
fn is_cheap(op: &Op) -> bool {
    matches!(
        op,
        Op::Param { .. }
            | Op::Const(_)
            | Op::Table(_)
            | Op::Arange { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Broadcast { .. }
            | Op::Slice { .. }
    )
}

pub(crate) fn place(
    graph: &Graph,
    states: &[State],
    weights: &Weights,
) -> Result<Placement, CodegenError> {
    let mut placer = Placer {
        graph,
        states,
        weights,
        users: graph.users(),
        counts: graph.use_counts(),
        out: Placement {
            views: vec![None; graph.arena_len()],
            materialised: Vec::new(),
            locals: Vec::new(),
            parts: BTreeMap::new(),
            appended: BTreeSet::new(),
            wide: BTreeSet::new(),
            norm_of_sum: BTreeMap::new(),
            copies: Vec::new(),
        },
        reads: vec![BTreeSet::new(); graph.arena_len()],
        sizes: vec![0; graph.arena_len()],
    };
    placer.states()?;
    for (id, _) in graph.iter() {
        placer.value(id);
    }
    placer.outputs();
    Ok(placer.out)
}

struct Placer<'g> {
    graph: &'g Graph,
    states: &'g [State],
    weights: &'g Weights,
    users: Vec<Vec<ValueId>>,
    counts: Vec<usize>,
    out: Placement,
    /// For values evaluated in place: the buffers that takes, and the ops.
    reads: Vec<BTreeSet<Base>>,
    sizes: Vec<usize>,
}

impl Placer<'_> {
    fn local(&mut self, id: ValueId, role: Role) -> usize {
        let value = self.graph.value(id);
        self.out.locals.push(Local {
            name: describe(self.graph, id),
            elements: value.ty.elements(),
            dtype: value.ty.dtype,
            role,
            image: false,
        });
        self.out.locals.len() - 1
    }

    /// Gives every state its view, and lets the values that set it live there.
    fn states(&mut self) -> Result<(), CodegenError> {
        for (id, value) in self.graph.iter() {
            let Op::State { name, ty } = &value.op else {
                continue;
            };
            let Some(index) = self.states.iter().position(|s| s.name == *name) else {
                continue;
            };
            let (base, capacity) = (Base::State(index), capacity_shape(&ty.shape));
            let capacity = match self.states[index].panels {
                Some(width) => View::in_panels(base, &capacity, width),
                None => View::contiguous(base, &capacity),
            };
            let over = |shape: &[Dim]| View {
                shape: shape.to_vec(),
                ..capacity.clone()
            };
            self.out.views[id.index()] = Some(over(&ty.shape));
            let Some((_, after)) = self.graph.states().iter().find(|(n, _)| n == name) else {
                continue;
            };
            if *after == id {
                continue;
            }
            let set = self.graph.value(*after);
            let unsupported = |reason: &str| CodegenError::Unsupported {
                value: after.to_string(),
                op: set.op.name(),
                source_name: set.source.clone(),
                reason: reason.to_owned(),
            };
            let (Op::Concat { axis }, [before, new]) = (&set.op, set.inputs.as_slice()) else {
                return Err(unsupported(
                    "a state must be set to its old value with new elements appended",
                ));
            };
            if *before != id || self.users[id.index()] != [*after] {
                return Err(unsupported(
                    "the old value of a state may be read only by what appends to it",
                ));
            }
            if ty.shape.get(*axis).and_then(Dim::as_symbol) != Some(&Symbol::new(PAST)) {
                return Err(unsupported(
                    "a state must grow along an axis of size `past`",
                ));
            }
            let whole = over(&set.ty.shape);
            let start = ty.shape[*axis].clone();
            let end = set.ty.shape[*axis].clone();
            let appended = Op::Slice {
                axis: *axis,
                start,
                end,
            };
            // Written by whatever computes the new elements, if that is its
            // only use; else by a copy.
            let op = &self.graph.value(*new).op;
            let is_computed = !matches!(op, Op::Input { .. } | Op::State { .. });
            let direct = self.counts[new.index()] == 1
                && (self.is_part(*new)
                    || matches!(op, Op::Linear { .. })
                    || (is_computed && !has_kernel(op) && !is_cheap(op) && !is_wide(op)));
            if direct {
                self.out.views[new.index()] = whole.apply(&appended);
            } else {
                self.out.appended.insert(*after);
            }
            self.out.views[after.index()] = Some(whole);
        }
        Ok(())
    }

    /// Whether `id` is a slice of an op that writes parts and whose elements are
    /// all taken in such slices.
    fn is_part(&self, id: ValueId) -> bool {
        let value = self.graph.value(id);
        match (&value.op, value.inputs.as_slice()) {
            (Op::Slice { .. }, [whole]) => self.slices(*whole).is_some(),
            _ => false,
        }
    }

    /// The constant ranges of the last axis in which the elements of an op that
    /// writes parts are taken, if they cover it in order and nothing else reads
    /// it.
    fn slices(&self, whole: ValueId) -> Option<Vec<(u64, u64, ValueId)>> {
        let value = self.graph.value(whole);
        if !writes_parts(&value.op) {
            return None;
        }
        let last = value.ty.rank() - 1;
        let users = &self.users[whole.index()];
        if users.len() != self.counts[whole.index()] {
            return None;
        }
        let mut ranges = Vec::new();
        for user in users {
            match &self.graph.value(*user).op {
                Op::Slice { axis, start, end } if *axis == last => {
                    ranges.push((start.as_const()?, end.as_const()?, *user));
                }
                _ => return None,
            }
        }
        ranges.sort_unstable();
        let mut at = 0;
        for (start, end, _) in &ranges {
            if *start != at {
                return None;
            }
            at = *end;
        }
        (value.ty.last().as_const() == Some(at)).then_some(ranges)
    }

    fn value(&mut self, id: ValueId) {
        let value = self.graph.value(id);
        match &value.op {
            Op::Input { .. } => {
                let local = self.local(id, Role::Input);
                self.set_contiguous(id, local);
                return;
            }
            Op::State { .. } => return,
            Op::Param { .. } => {
                // Where a kernel takes it as rows, they are a copy.
                if self.is_wanted(id, wants_view) {
                    self.materialise(id);
                }
                return;
            }
            _ => {}
        }
        if self.out.views[id.index()].is_some() {
            // A state's new elements, or the state with them.
            let is_append = self.graph.states().iter().any(|(_, v)| *v == id);
            if (is_append && self.out.appended.contains(&id)) || (!is_append && !self.is_part(id)) {
                match has_kernel(&value.op) {
                    true => self.materialise_kernel_operands(id),
                    false => self.materialise_operands(id, INLINE_BUFFERS),
                }
                self.out.materialised.push(id);
            }
            return;
        }
        let ranges = self.slices(id).filter(|r| self.any_direct(r));
        if self.out.norm_of_sum.contains_key(&id) {
            self.materialise_kernel_operands(id);
            self.materialise(id);
            return;
        }
        if has_kernel(&value.op) {
            self.materialise_kernel_operands(id);
            if let Some(sum) = self.sum_of(id) {
                self.out.norm_of_sum.insert(sum, id);
                return;
            }
            match ranges {
                Some(ranges) => self.split(id, &ranges),
                None => self.materialise(id),
            }
            return;
        }
        if let Some(ranges) = ranges {
            self.materialise_operands(id, INLINE_BUFFERS);
            self.split(id, &ranges);
            return;
        }
        let viewed = value
            .inputs
            .first()
            .and_then(|x| self.out.views[x.index()].as_ref());
        if let Some(view) = viewed.and_then(|v| v.apply(&value.op)) {
            self.out.views[id.index()] = Some(view);
            return;
        }
        let required = self.is_wanted(id, |op, operand| {
            wants_view(op, operand) || wants_vector(op, operand)
        });
        let shared = self.counts[id.index()] > 1 && !is_cheap(&value.op);
        if is_wide(&value.op) && self.operand_reads(id).len() > INLINE_BUFFERS {
            self.out.wide.insert(id);
            self.materialise(id);
            return;
        }
        self.materialise_operands(id, INLINE_BUFFERS);
        let size = self.size(id);
        if required || shared || size > INLINE_OPS {
            self.materialise(id);
            return;
        }
        self.reads[id.index()] = self.operand_reads(id);
        self.sizes[id.index()] = size;
    }

    /// The sum that is all that becomes of a norm, if the norm's kernel can write it in
    /// place of the norm.
    fn sum_of(&self, norm: ValueId) -> Option<ValueId> {
        let value = self.graph.value(norm);
        let (Op::Normalize(_), [sum]) = (&value.op, self.users[norm.index()].as_slice()) else {
            return None;
        };
        let by = self.graph.value(*sum);
        let fits = by.op == Op::Binary(BinaryOp::Add)
            && by.ty == value.ty
            && self.counts[norm.index()] == 1
            // Not the new elements of a state.
            && self.out.views[sum.index()].is_none()
            // Of two norms the second is an operand like any other.
            && !self.out.norm_of_sum.contains_key(sum);
        fits.then_some(*sum)
    }

    /// Whether `wants` is true of a use of a value.
    fn is_wanted(&self, id: ValueId, wants: impl Fn(&Op, usize) -> bool) -> bool {
        self.users[id.index()].iter().any(|user| {
            let user = self.graph.value(*user);
            let mut operands = user.inputs.iter().enumerate();
            operands.any(|(i, x)| *x == id && wants(&user.op, i))
        })
    }

    /// The ops of which evaluating a value takes, each as often as it is evaluated.
    fn size(&self, id: ValueId) -> usize {
        let value = self.graph.value(id);
        // A rotary embedding takes two elements of what it turns.
        let twice = value.inputs.first().filter(|_| value.op == Op::Rotary);
        let operands = value.inputs.iter().chain(twice);
        let sizes = operands.map(|x| self.sizes[x.index()]);
        sizes.fold(1, usize::saturating_add)
    }

    fn any_direct(&self, ranges: &[(u64, u64, ValueId)]) -> bool {
        let mut slices = ranges.iter().map(|(_, _, slice)| slice.index());
        slices.any(|slice| self.out.views[slice].is_some())
    }

    /// An op of which some ranges are a state's new elements: the other ranges
    /// get buffers of their own.
    fn split(&mut self, id: ValueId, ranges: &[(u64, u64, ValueId)]) {
        let mut parts = Vec::new();
        for (start, end, slice) in ranges {
            let view = match &self.out.views[slice.index()] {
                Some(view) => view.clone(),
                None => {
                    let local = self.local(*slice, Role::Scratch);
                    self.set_contiguous(*slice, local)
                }
            };
            parts.push(Part {
                start: *start,
                end: *end,
                view,
            });
        }
        self.out.parts.insert(id, parts);
        self.out.materialised.push(id);
    }

    fn set_contiguous(&mut self, id: ValueId, local: usize) -> View {
        let view = View::contiguous(Base::Local(local), &self.graph.ty(id).shape);
        self.out.views[id.index()] = Some(view.clone());
        view
    }

    fn materialise(&mut self, id: ValueId) {
        let local = self.local(id, Role::Scratch);
        self.set_contiguous(id, local);
        self.out.materialised.push(id);
        // From here on it is a load.
        self.sizes[id.index()] = 0;
    }

    /// The buffers that evaluating `id` in place reads through its operands.
    fn operand_reads(&self, id: ValueId) -> BTreeSet<Base> {
        let operands = self.graph.value(id).inputs.iter();
        operands.flat_map(|x| self.reads_of(*x)).collect()
    }

    fn reads_of(&self, id: ValueId) -> BTreeSet<Base> {
        match (&self.out.views[id.index()], &self.graph.value(id).op) {
            (Some(view), _) => BTreeSet::from([view.base]),
            (None, Op::Param { name, .. }) => self.weights.buffers_of(name),
            (None, _) => self.reads[id.index()].clone(),
        }
    }

    /// Materialises operands of an expression until what remains reads at most
    /// so many buffers.
    fn materialise_operands(&mut self, id: ValueId, most: usize) {
        while self.operand_reads(id).len() > most {
            let candidates = self.graph.value(id).inputs.iter().copied();
            let heaviest = candidates
                .filter(|x| {
                    self.out.views[x.index()].is_none()
                        && !matches!(self.graph.value(*x).op, Op::Param { .. })
                })
                .max_by_key(|x| self.reads_of(*x).len());
            match heaviest {
                Some(x) if self.reads_of(x).len() > 1 => self.materialise(x),
                _ => return,
            }
        }
    }

    /// Materialises operands of an op with a kernel that are expressions over
    /// more buffers than the kernel has room for.
    fn materialise_kernel_operands(&mut self, id: ValueId) {
        for x in self.graph.value(id).inputs.clone() {
            let op = &self.graph.value(x).op;
            let inlined = self.out.views[x.index()].is_none() && !matches!(op, Op::Param { .. });
            if inlined && self.reads_of(x).len() > OPERAND_BUFFERS {
                self.materialise(x);
            }
        }
    }

    /// Outputs lie row-major in buffers of their own.
    fn outputs(&mut self) {
        for (_, id) in self.graph.outputs() {
            let shape = self.graph.ty(*id).shape.clone();
            let found = self.out.views[id.index()]
                .as_ref()
                .and_then(|v| match v.base {
                    Base::Local(local) if self.out.locals[local].role == Role::Scratch => {
                        (*v == View::contiguous(v.base, &shape)).then_some(local)
                    }
                    _ => None,
                });
            match found {
                Some(local) => self.out.locals[local].role = Role::Output,
                None => {
                    // A view of something else, or not in a buffer at all: a
                    // copy at the end.
                    let local = self.local(*id, Role::Output);
                    self.out.copies.push((*id, local));
                }
            }
        }
    }
}

/// What a value is called in plans and profiles.
pub(crate) fn describe(graph: &Graph, id: ValueId) -> String {
    let value = graph.value(id);
    match &value.op {
        Op::Input { name, .. } => name.clone(),
        _ => {
            let outputs = graph.outputs().iter();
            if let Some((name, _)) = outputs.into_iter().find(|(_, v)| *v == id) {
                name.clone()
            } else if value.source.is_empty() {
                value.op.name().to_owned()
            } else {
                value.source.clone()
            }
        }
    }
}
