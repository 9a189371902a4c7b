//! From a placed graph to launches, for one tier and shape.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::plan::{BATCH, CONTEXT, PAST};
use kiln_ir::{AttentionSpec, Bindings, Dim, DimError, Graph, Norm, Op, Symbol, ValueId};

use crate::attention::{Attention, Split, splits, sums};
use crate::error::CodegenError;
use crate::expr::Source;
use crate::generic;
use crate::join::{self, GridSize};
use crate::kernel::{Element, Launch};
use crate::linear::{Blocked, Linear};
use crate::place::{Local, Placement, Role, describe};
use crate::plan::of_rows;
use crate::row_norm::RowNorm;
use crate::tier::{Shape, Tier};
use crate::tile::{FEW, RowKernel, brings_row};
use crate::view::{Base, View};
use crate::weights::{Matrix, Weights};

/// Outputs larger than this at the symbols' maxima are computed in blocks, and those
/// that a binding does not hold.
const STREAM_ABOVE: u64 = 64 << 20;

/// About how many bytes a block of such an output takes.
const STREAM_BLOCK: u64 = 16 << 20;

/// Rows of a block come in multiples of this: of every tile and workgroup. Only where
/// a binding does not hold as many rows of a linear layer are there fewer.
const STREAM_ROWS: u64 = 64;

/// The outputs that are computed in blocks, and how.
pub(crate) type Streams = BTreeMap<ValueId, Blocked>;

/// The outputs of `graph` that are too large to be held whole, in bindings of at most
/// `limit` bytes.
pub(crate) fn streams(
    graph: &Graph,
    maxima: &Bindings,
    limit: u64,
) -> Result<Streams, CodegenError> {
    let counts = graph.use_counts();
    let mut out = Streams::new();
    if !graph.states().is_empty() {
        // What a session makes of its states is read at once.
        return Ok(out);
    }
    for (_, id) in graph.outputs() {
        let value = graph.value(*id);
        let is_linear = matches!(value.op, Op::Linear { .. });
        if !(is_linear || matches!(value.op, Op::AttentionProbs(_))) || counts[id.index()] != 1 {
            continue;
        }
        let bytes = value.ty.elements().eval(maxima)? * 4;
        if bytes > STREAM_ABOVE.min(limit) {
            let row = (value.ty.last().eval(maxima)? * 4).max(1);
            let block = STREAM_BLOCK.min(limit);
            let mut rows = (block / row / STREAM_ROWS).max(1) * STREAM_ROWS;
            if is_linear {
                rows = rows.min((limit / row).max(1));
            }
            out.insert(
                *id,
                Blocked {
                    rows_per_block: rows,
                },
            );
        }
    }
    Ok(out)
}

/// The launches of one variant.
#[derive(Debug, Default)]
pub(crate) struct Lowered {
    pub launches: Vec<Launch>,
    /// Launches for each block of an output.
    pub streams: Vec<(ValueId, Blocked, Vec<Launch>)>,
    /// All of the placement's buffers, and those that only this variant has.
    pub locals: Vec<Local>,
    /// Normalised inputs of linear ops: the norm and whether the result is in f16,
    /// its operands, and the result.
    normed: Vec<((Norm, bool), Vec<ValueId>, View)>,
    /// Norms by themselves, and sums of them, that a launch before computes.
    ended: BTreeSet<ValueId>,
    /// Attention whose result lies in parts.
    splits: BTreeMap<ValueId, Split>,
}

impl Lowered {
    /// At least so many words, the same ones for a name, which other values do not share.
    pub fn own(&mut self, name: &str, words: u64, role: Role) -> Base {
        let mut locals = self.locals.iter();
        let known = locals.position(|l| l.role == role && l.name == name);
        let known = known.unwrap_or_else(|| {
            self.locals.push(Local {
                name: name.to_owned(),
                elements: Dim::default(),
                dtype: kiln_ir::DType::I32,
                role,
                image: false,
            });
            self.locals.len() - 1
        });
        let elements = &mut self.locals[known].elements;
        *elements = elements.as_const().unwrap_or(0).max(words).into();
        Base::Local(known)
    }

    /// A buffer of so many reals that the variant has for itself.
    pub fn scratch(&mut self, name: String, elements: Dim) -> Base {
        self.locals.push(Local {
            name,
            elements,
            dtype: kiln_ir::DType::F32,
            role: Role::Scratch,
            image: false,
        });
        Base::Local(self.locals.len() - 1)
    }
}

/// What is lowered, and for what.
pub(crate) struct Lowering<'a> {
    pub source: Source<'a>,
    pub tier: Tier,
    pub shape: Shape,
    pub streams: &'a Streams,
    /// Workgroups of the launches that those of a layer will be parts of.
    grid: Option<GridSize>,
    /// The symbols that are 1 in this variant.
    ones: Bindings,
    /// What launches have alternatives for, if they have.
    offer: Option<Offer>,
}

/// What launches have alternatives for.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    /// Processors of the device, about.
    pub processors: u64,
    /// The largest sizes.
    pub largest: Bindings,
    /// A number of rows that is bounded, and its bound.
    pub rows: Option<(Dim, u64)>,
    /// The most rows of a run, if not as many as the largest sizes make.
    pub at_once: Option<u64>,
    /// Bytes that a binding holds.
    pub limit: u64,
}

impl Offer {
    /// The most that `rows` may be.
    pub fn most(&self, rows: &Dim) -> Result<u64, DimError> {
        let most = match self.at_once {
            Some(at_once) => of_rows(rows, at_once).eval(&self.largest)?,
            None => rows.eval(&self.largest)?,
        };
        let bound = self.rows.as_ref().filter(|(bounded, _)| bounded == rows);
        Ok(bound.map_or(most, |(_, bound)| most.min(*bound)))
    }
}

impl<'a> Lowering<'a> {
    pub fn new(
        graph: &'a Graph,
        placement: &'a Placement,
        weights: &'a Weights,
        streams: &'a Streams,
        (tier, shape): (Tier, Shape),
    ) -> Self {
        Lowering {
            source: Source {
                graph,
                placement,
                weights,
                table_parts: None,
            },
            tier,
            shape,
            streams,
            grid: None,
            ones: Bindings::new(),
            offer: None,
        }
    }

    /// Has launches of a session have alternatives: sizes of tiles that suit one device do
    /// not suit another.
    pub fn offering(mut self, offer: Offer) -> Self {
        let has_states = !self.source.graph.states().is_empty();
        self.offer = Some(offer).filter(|_| has_states && !self.tier.is_cpu());
        self
    }

    /// Notes that the variant's bound is about `rows`.
    pub fn of_rows(mut self, rows: Option<&Dim>) -> Self {
        if let (Some(rows), Some(1)) = (rows, self.shape.rows) {
            self.ones = ones(rows);
        }
        self
    }

    /// Makes the launches of a layer parts of one with so many workgroups.
    pub fn in_grid(mut self, workgroups: u64) -> Self {
        let attention = self.source.graph.iter().filter_map(|(_, v)| match &v.op {
            Op::Attention(spec) => {
                let width = v.ty.last().as_const()?;
                Some(sums(width / (spec.heads as u64).max(1), join::WORKGROUP))
            }
            _ => None,
        });
        let sums = attention.max().unwrap_or(0);
        self.grid = Some(GridSize {
            workgroups,
            row_memory: join::MEMORY.saturating_sub(sums),
        });
        self
    }

    /// The symbols that are 1 in this variant.
    pub fn ones(&self) -> &Bindings {
        &self.ones
    }

    /// Sizes of the factors of `rows`, a product, at which it is as large as the
    /// variant's bound lets it be: each factor in turn is all of it, unless there are then
    /// more `queries` than the variant takes. None if there is no such bound.
    pub fn corners(&self, rows: Option<&Dim>, queries: Option<&Dim>) -> Vec<Bindings> {
        let (Some(rows), Some(most)) = (rows, self.shape.rows) else {
            return Vec::new();
        };
        let ones = ones(rows);
        let corner = |(symbol, _): (&Symbol, u64)| ones.clone().with(symbol.name(), most);
        let takes = |corner: &Bindings| match (queries.map(|q| q.eval(corner)), self.shape.queries)
        {
            (Some(Ok(queries)), Some(most)) => queries <= most,
            _ => true,
        };
        ones.iter().map(corner).filter(takes).collect()
    }

    /// Those but the number of sequences.
    pub fn ones_but_batch(&self) -> Bindings {
        let mut ones = Bindings::new();
        for (symbol, one) in self.ones.iter().filter(|(s, _)| s.name() != BATCH) {
            ones.set(symbol.name(), one);
        }
        ones
    }

    /// Whether a size is 1 in this variant.
    fn is_one(&self, size: &Dim) -> bool {
        size.eval(&self.ones) == Ok(1)
    }

    pub fn run(&self) -> Result<Lowered, CodegenError> {
        let placement = self.source.placement;
        let mut out = Lowered {
            locals: placement.locals.clone(),
            ..Lowered::default()
        };
        for id in &placement.materialised {
            match self.streams.get(id) {
                Some(blocked) => {
                    let launches = self.value(*id, Some(*blocked), &mut out)?;
                    out.streams.push((*id, *blocked, launches));
                }
                None => {
                    let launches = self.value(*id, None, &mut out)?;
                    out.launches.extend(launches);
                }
            }
        }
        for (id, local) in &placement.copies {
            let view = View::contiguous(Base::Local(*local), self.source.shape(*id));
            let copies = generic::gathered(self.source, self.workgroup(*id), *id, &view)?;
            out.launches.extend(copies);
        }
        Ok(out)
    }

    /// The launches that compute `id` into its buffer.
    fn value(
        &self,
        id: ValueId,
        blocked: Option<Blocked>,
        out: &mut Lowered,
    ) -> Result<Vec<Launch>, CodegenError> {
        let source = self.source;
        let value = source.graph.value(id);
        let grid = self.grid_of(id);
        match &value.op {
            Op::Linear { norm, .. } => {
                let Some(x) = value.inputs.first().and_then(|x| source.view(*x)) else {
                    return Err(source.unsupported(id, "its input lies in no buffer"));
                };
                let mut linear = Linear {
                    source,
                    tier: self.tier,
                    id,
                    rows: self.row_kernel(&x.rows()),
                    count: self.count(&x.rows()),
                    input: x.clone(),
                    norm: *norm,
                    halves: false,
                    grid,
                    offer: self.offer.as_ref().filter(|_| blocked.is_none()),
                    split: value
                        .inputs
                        .first()
                        .and_then(|x| out.splits.get(x).copied()),
                    blocked,
                };
                if let Some(norm) = *norm
                    && !self.takes_norm(&linear)
                {
                    linear.halves = self.takes_halves(&linear);
                    let (input, missing) = self.norm_of(id, norm, x, linear.halves, out);
                    if let Some(missing) = missing {
                        // Rows of a block are normalised with all others, before.
                        out.launches.push(missing.lower()?);
                    }
                    linear.input = input;
                    linear.norm = None;
                }
                let mut launches = linear.lower(out)?;
                if let ([launch], None) = (launches.as_mut_slice(), blocked) {
                    self.end_with_norm(id, launch, out)?;
                }
                Ok(launches)
            }
            _ if let Some((of, norm)) = self.norm_in(id) => {
                if out.ended.contains(&id) {
                    return Ok(Vec::new());
                }
                let Some(norm) = self.normalize(id, of, norm) else {
                    return Err(source.unsupported(id, "what it normalises lies in no buffer"));
                };
                Ok(vec![norm.lower()?])
            }
            Op::Attention(spec) | Op::AttentionProbs(spec) => {
                let split = match value.op {
                    Op::Attention(_) => self.split(id, *spec, out),
                    _ => None,
                };
                let attention = Attention {
                    source,
                    tier: self.tier,
                    id,
                    spec: *spec,
                    few_queries: self.shape.queries.is_some(),
                    split,
                    grid,
                    offer: self.offer.as_ref().filter(|_| blocked.is_none()),
                    blocked,
                };
                Ok(vec![attention.lower(out)?])
            }
            Op::Softmax { .. } | Op::Reduce { .. } => {
                Ok(vec![generic::along_axis(source, self.tier, id)?])
            }
            Op::MatMul => Ok(vec![generic::matmul(source, self.tier, id)?]),
            Op::Concat { .. } if source.placement.appended.contains(&id) => {
                // Only the new elements are written; the old are there.
                let (Some(new), Op::Concat { axis }, Some(whole)) =
                    (value.inputs.get(1), &value.op, source.view(id))
                else {
                    return Err(source.unsupported(id, "it appends nothing"));
                };
                let end = &source.shape(id)[*axis];
                let start = end - &source.shape(*new)[*axis];
                let slice = Op::Slice {
                    axis: *axis,
                    start,
                    end: end.clone(),
                };
                let Some(place) = whole.apply(&slice) else {
                    return Err(source.unsupported(id, "its new elements have no place"));
                };
                Ok(vec![generic::pointwise(
                    source,
                    self.workgroup(id),
                    *new,
                    &place,
                )?])
            }
            Op::Concat { axis } if source.placement.wide.contains(&id) => {
                let mut launches = Vec::new();
                let mut start = Dim::constant(0);
                for x in &value.inputs {
                    let end = &start + &source.shape(*x)[*axis];
                    let slice = Op::Slice {
                        axis: *axis,
                        start,
                        end: end.clone(),
                    };
                    let place = source.view(id).and_then(|whole| whole.apply(&slice));
                    let Some(place) = place else {
                        return Err(source.unsupported(id, "an operand has no place in it"));
                    };
                    let workgroup = self.workgroup(id);
                    launches.push(generic::pointwise(source, workgroup, *x, &place)?);
                    start = end;
                }
                Ok(launches)
            }
            _ if let Some(parts) = source.placement.parts.get(&id) => {
                Ok(vec![generic::pointwise_parts(
                    source,
                    self.workgroup(id),
                    id,
                    parts,
                )?])
            }
            _ => {
                let Some(view) = source.view(id).cloned() else {
                    return Err(source.unsupported(id, "its result has no place"));
                };
                // As an expression over its operands, not as a load of itself.
                let mut placement = Placement {
                    views: source.placement.views.clone(),
                    ..Placement::default()
                };
                placement.views[id.index()] = None;
                let inner = Source {
                    placement: &placement,
                    ..source
                };
                generic::gathered(inner, self.workgroup(id), id, &view)
            }
        }
    }

    /// Workgroups of the launch that computes `id` among others, if it is one of a
    /// layer's.
    fn grid_of(&self, id: ValueId) -> Option<GridSize> {
        let label = describe(self.source.graph, id);
        self.grid.filter(|_| join::layer(&label).is_some())
    }

    /// Invocations in a workgroup of a kernel that treats each one alone.
    fn workgroup(&self, id: ValueId) -> u32 {
        let alone = self.tier.pointwise_workgroup();
        self.grid_of(id).map_or(alone, |_| join::WORKGROUP as u32)
    }

    fn takes_norm(&self, linear: &Linear<'_>) -> bool {
        let weight = self.source.graph.value(linear.id).inputs.get(1);
        let size = |axis: usize| {
            let shape = self.source.shape(*weight?);
            shape.get(axis)?.as_const()
        };
        match (size(1), size(0)) {
            (Some(k), Some(n)) => {
                let (matrix, grid) = (self.matrix(linear.id), self.grid_of(linear.id));
                let is_brought = matrix.is_some_and(|m| brings_row(self.tier, m, grid));
                linear.rows.takes_norm(self.tier, [k, n], is_brought)
            }
            _ => false,
        }
    }

    fn takes_halves(&self, linear: &Linear<'_>) -> bool {
        let matrix = self.matrix(linear.id);
        matrix.is_some_and(|m| linear.takes_halves(m.packing, m.k))
    }

    /// The weight of a linear op.
    fn matrix(&self, linear: ValueId) -> Option<&'a Matrix> {
        let weight = self.source.graph.value(linear).inputs.get(1)?;
        match &self.source.graph.value(*weight).op {
            Op::Param { name, .. } => self.source.weights.matrix(name),
            _ => None,
        }
    }

    /// A buffer for the parts of a split context, if the attention `id` has one
    /// query and the one op that reads it is a linear layer that can join them on
    /// its way in: so a long context fills a card at no launch more.
    fn split(&self, id: ValueId, spec: AttentionSpec, out: &mut Lowered) -> Option<Split> {
        let graph = self.source.graph;
        let shape = self.source.shape(id);
        let queries = Dim::product(&shape[..shape.len().saturating_sub(1)]);
        if !self.tier.has_subgroups() || !self.is_one(&queries) {
            return None;
        }
        let mut readers = graph.iter().filter(|(_, v)| v.inputs.contains(&id));
        let (reader, linear) = readers.next()?;
        let alone = readers.next().is_none() && graph.use_counts()[id.index()] == 1;
        let is_input = linear.inputs.first() == Some(&id);
        if !alone || !is_input || !matches!(linear.op, Op::Linear { norm: None, .. }) {
            return None;
        }
        let heads = spec.heads as u64;
        let width = graph.ty(id).last().as_const()?;
        let head_dim = width / heads.max(1);
        if !head_dim.is_multiple_of(4)
            || !brings_row(self.tier, self.matrix(reader)?, self.grid_of(reader))
        {
            return None;
        }
        let mut split = Split {
            base: Base::Local(0),
            heads,
            head_dim,
            splits: splits(heads, self.grid_of(id)),
        };
        let name = format!("{}.parts", describe(graph, id));
        split.base = out.scratch(name, Dim::constant(split.elements()));
        out.splits.insert(id, split);
        Some(split)
    }

    /// The norm by itself that a kernel computes for the op `id`: its own, or the one that is
    /// written with something added to it.
    fn norm_in(&self, id: ValueId) -> Option<(ValueId, Norm)> {
        let of = *self.source.placement.norm_of_sum.get(&id).unwrap_or(&id);
        match self.source.graph.value(of).op {
            Op::Normalize(norm) => Some((of, norm)),
            _ => None,
        }
    }

    /// The norm `of` as the op `id` has it, if what that reads and gives has a place.
    fn normalize(&self, id: ValueId, of: ValueId, norm: Norm) -> Option<RowNorm<'a>> {
        let source = self.source;
        let x = source.graph.value(of).inputs.first()?;
        let mut others = source.graph.value(id).inputs.iter().filter(|x| **x != of);
        let added = others.next().filter(|_| id != of);
        Some(RowNorm {
            source,
            tier: self.tier,
            id: of,
            norm,
            first_operand: 1,
            input: source.view(*x)?.clone(),
            output: source.view(id)?.clone(),
            added: added.map(|x| (id, *x)),
            halves: false,
            is_joined: self.grid_of(of).is_some(),
        })
    }

    /// Whether a launch before the one that computes `id` has computed `x`.
    fn is_before(&self, x: ValueId, id: ValueId) -> bool {
        let computed = self.source.placement.materialised.iter();
        let mut before = computed.take_while(|value| **value != id);
        before.any(|value| *value == x)
    }

    /// Where the input `x` of the linear op `id` lies normalised, in f16 if `halves`; and
    /// the norm that is still to be computed for that, if no launch does so far.
    fn norm_of(
        &self,
        id: ValueId,
        norm: Norm,
        x: &View,
        halves: bool,
        out: &mut Lowered,
    ) -> (View, Option<RowNorm<'a>>) {
        let inputs = &self.source.graph.value(id).inputs;
        let mut key: Vec<ValueId> = inputs.first().copied().into_iter().collect();
        key.extend(inputs.iter().skip(2).take(norm.operands()));
        let wanted = (norm, halves);
        if let Some((_, _, found)) = out
            .normed
            .iter()
            .find(|(n, k, _)| *n == wanted && *k == key)
        {
            return (found.clone(), None);
        }
        let elements = Dim::product(&x.shape);
        let name = format!("{}.norm", describe(self.source.graph, id));
        let elements = match halves {
            true => elements.ceil_div(2),
            false => elements,
        };
        let scratch = out.scratch(name, elements);
        let output = View::contiguous(scratch, &x.shape);
        out.normed.push((wanted, key, output.clone()));
        let norm = RowNorm {
            source: self.source,
            tier: self.tier,
            id,
            norm,
            first_operand: 2,
            input: x.clone(),
            output: output.clone(),
            added: None,
            halves,
            is_joined: self.grid_of(id).is_some(),
        };
        (output, Some(norm))
    }

    /// Has the launch of the linear op `id` compute the norm of what it gives too, if there is
    /// one, of a linear layer behind it or by itself, and the launch is one for few rows on a
    /// CPU driver.
    fn end_with_norm(
        &self,
        id: ValueId,
        launch: &mut Launch,
        out: &mut Lowered,
    ) -> Result<(), CodegenError> {
        let source = self.source;
        let Some(y) = source.view(id) else {
            return Ok(());
        };
        if launch.kernel.body != FEW || !launch.kernel.writes(y.base, Element::F32x4) {
            return Ok(());
        }
        let has_rows = |x: &View| x.has_rows_of(y, &self.ones);
        let mut norms = source.graph.iter().filter_map(|(reader, v)| {
            let (of, norm) = match v.op {
                Op::Linear { norm, .. } => (reader, norm?),
                _ => self.norm_in(reader)?,
            };
            let x = source.graph.value(of).inputs.first()?;
            let x = source.view(*x).filter(|x| has_rows(x))?;
            if let Op::Linear { .. } = v.op {
                return self.norm_of(reader, norm, x, false, out).1;
            }
            let norm = self.normalize(reader, of, norm)?;
            if norm.added.is_some_and(|(_, x)| !self.is_before(x, id)) {
                return None;
            }
            out.ended.insert(reader);
            Some(norm)
        });
        if let Some(norm) = norms.next() {
            let input = y.clone();
            RowNorm { input, ..norm }.end(launch, out.own("done", 1, Role::Counter))?;
        }
        Ok(())
    }

    /// Whether rows are the last positions of prompts: one, as a rule.
    fn is_last(&self, rows: &Dim) -> bool {
        *rows == Dim::symbol(BATCH) && self.shape.queries.is_none()
    }

    /// How a kernel finds the number of its rows. Of the symbols that are 1 only the
    /// one for sequences is left, with which the last rows of prompts are counted too:
    /// so what is done to one row has the same text in both.
    fn count(&self, rows: &Dim) -> Dim {
        rows.at(&self.ones_but_batch())
    }

    /// The kernel for a linear layer with `rows` rows.
    fn row_kernel(&self, rows: &Dim) -> RowKernel {
        let at_most = match (rows.as_const(), self.shape.rows) {
            (Some(n), _) => Some(n),
            (None, _) if self.is_last(rows) && self.tier != Tier::Base => Some(1),
            (None, Some(n)) => Some(n),
            // A token of each of many sequences.
            (None, None) if self.shape.queries == Some(1) => Some(SEQUENCES),
            // Few, as a rule.
            (None, None) if *rows == Dim::symbol(BATCH) => Some(4),
            (None, None) => None,
        };
        RowKernel::choose(self.tier, at_most)
    }
}

/// About as many sequences as decode together where there are many.
const SEQUENCES: u64 = 32;

/// The symbols that are 1 when `rows`, a product of them, is.
fn ones(rows: &Dim) -> Bindings {
    let symbols = rows.symbols();
    let mut ones = Bindings::new();
    for symbol in &symbols {
        ones.set(symbol.name(), 1);
    }
    let is_product = symbols.iter().all(|symbol| {
        let other = ones.clone().with(symbol.name(), 2);
        rows.eval(&ones) == Ok(1) && rows.eval(&other) == Ok(2)
    });
    if is_product { ones } else { Bindings::new() }
}

/// The symbols' maxima with the context's.
pub(crate) fn maxima(graph: &Graph) -> Bindings {
    let mut out = Bindings::at_max(&graph.symbols);
    let past = Symbol::new(PAST);
    let seq = Symbol::new("seq");
    let context = out.get(&past).map_or(0, |p| p + 1);
    let context = context.max(out.get(&seq).unwrap_or(0));
    out.set(CONTEXT, context);
    out.set(kiln_ir::plan::BLOCK, 0);
    out
}
