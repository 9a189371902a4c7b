//! Assembly of the plan: entries, variants, launches and kernels.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::plan::{
    Access, BATCH, BLOCK, Bound, CONTEXT, Check, Entry, Grid, ModelInfo, PIECE_ROWS, PLAN_VERSION,
    Plan, Port, SEQ, SliceRange, StateBuffer, Stream, Variant, always_within,
};
use kiln_ir::{Bindings, Dim, Graph, Op, Symbol, SymbolDecl, TensorType};

use crate::error::CodegenError;
use crate::halves::halve_states;
use crate::images::make_images;
use crate::join::{self, Meeting};
use crate::kernel;
use crate::kernels::Kernels;
use crate::lower::{self, Lowered, Lowering, Offer, Streams, streams};
use crate::memory::{Pool, bytes, check_sharing};
use crate::place::{Local, Placement, Role, describe, place};
use crate::states::{State, bytes_of_state, keeps_halves, states};
use crate::tier::{Shape, Tier};
use crate::trust;
use crate::view::Base;
use crate::weights::{self, Weights};
use crate::{CompileOptions, DEFAULT_BINDING_LIMIT, DEFAULT_GRID};

/// The name of a variant with joined launches.
const JOINED: &str = "joined";

/// How large every WebGPU adapter lets a buffer be.
const DEFAULT_BUFFER_LIMIT: u64 = 256 << 20;

pub(crate) struct Made {
    pub plan: Plan,
    pub kernels: BTreeMap<String, String>,
}

pub(crate) fn make(
    graphs: &[Graph],
    model: ModelInfo,
    options: &CompileOptions,
    tiers: &[Tier],
) -> Result<Made, CodegenError> {
    let (packing, limit) = (options.packing, options.binding_limit);
    let weights = weights::plan(graphs, packing, limit)?;
    let states = states(graphs)?;
    let mut placed = Vec::new();
    for graph in graphs {
        placed.push(Placed::new(graph, &states, &weights, limit)?);
    }
    let mut kernels = Kernels::new(uniforms(graphs), &options.bodies);
    let all = symbols(&placed);
    let mut of_tiers = Vec::new();
    for tier in tiers {
        let mut entries = BTreeMap::new();
        for entry in &placed {
            let made = entry.lower((*tier, options.grid), &weights, &all, &mut kernels)?;
            entries.insert(entry.graph.name.clone(), made);
        }
        let mut requires = tier.requires();
        requires.limits.extend(required_limits(limit));
        let checks = trust::trials(*tier).into_iter().map(|trial| Check {
            kernel: kernels.kernel(&trial.kernel, vec![Access::ReadWrite]),
            workgroups: trial.workgroups,
            words: trial.words,
        });
        of_tiers.push(kiln_ir::plan::Tier {
            name: tier.name().to_owned(),
            requires,
            checks: checks.collect(),
            half_states: keeps_halves(*tier, &states),
            entries,
        });
    }
    let capacities = states.iter().map(|state| StateBuffer {
        name: state.name.clone(),
        bytes: bytes_of_state(&state.ty),
    });
    let plan = Plan {
        version: PLAN_VERSION,
        compiler: concat!("kiln ", env!("CARGO_PKG_VERSION")).to_owned(),
        model: ModelInfo {
            weight_dtype: packing.name().to_owned(),
            parameters: weights.parameters,
            ..model
        },
        symbols: all,
        uniforms: kernels.symbols.clone(),
        states: capacities.collect(),
        weights: weights.buffers,
        kernels: kernels.plan,
        tiers: of_tiers,
        files: BTreeMap::new(),
    };
    Ok(Made {
        plan,
        kernels: kernels.texts,
    })
}

/// What an adapter must let kernels bind, and how large buffers must be let, where
/// that is not as WebGPU has it.
fn required_limits(binding_limit: u64) -> impl Iterator<Item = (String, u64)> {
    let binding =
        (binding_limit != DEFAULT_BINDING_LIMIT).then_some("max_storage_buffer_binding_size");
    let buffer = (binding_limit > DEFAULT_BUFFER_LIMIT).then_some("max_buffer_size");
    let names = binding.into_iter().chain(buffer);
    names.map(move |name| (name.to_owned(), binding_limit))
}

/// The members of the uniform block.
fn uniforms(graphs: &[Graph]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let declared = graphs.iter().flat_map(|g| &g.symbols);
    let declared = declared.map(|s| s.name.name().to_owned());
    for name in declared.chain([CONTEXT.to_owned(), BLOCK.to_owned()]) {
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

/// Every symbol with the largest of its maxima.
fn symbols(placed: &[Placed]) -> Vec<SymbolDecl> {
    let mut out: Vec<SymbolDecl> = Vec::new();
    for decl in placed.iter().flat_map(|p| &p.graph.symbols) {
        match out.iter_mut().find(|d| d.name == decl.name) {
            None => out.push(decl.clone()),
            Some(known) => known.max = known.max.max(decl.max),
        }
    }
    out
}

/// An entry's graph with its values placed.
struct Placed {
    graph: Graph,
    states: Vec<State>,
    /// Bytes that a binding holds.
    limit: u64,
    placement: Placement,
    streams: Streams,
    maxima: Bindings,
    /// The most rows of a run, if not as many as the maxima make.
    rows: Option<u64>,
}

/// How the launches of a variant are joined.
struct Join {
    meeting: Meeting,
    /// The symbols that are 1.
    ones: Bindings,
    /// Sizes at which it has as many rows as it takes.
    corners: Vec<Bindings>,
}

impl Placed {
    /// Places the values. What lies between the launches of a session's steps has room for
    /// the rows that a session computes at once. Where a buffer would not fit a binding, those
    /// rows, or the largest batch if that makes it no smaller, are halved until all do.
    fn new(
        graph: &Graph,
        states: &[State],
        weights: &Weights,
        limit: u64,
    ) -> Result<Self, CodegenError> {
        let mut graph = graph.clone();
        let mut most_rows = (!graph.states().is_empty()).then_some(PIECE_ROWS);
        loop {
            let rows = most_rows.and_then(|most| rows_at_once(&graph, most));
            let maxima = lower::maxima(&graph);
            let streams = streams(&graph, &maxima, limit)?;
            let mut placement = place(&graph, states, weights)?;
            for (id, blocked) in &streams {
                let view = placement.views[id.index()].as_ref();
                if let Some(Base::Local(local)) = view.map(|v| v.base) {
                    let rows = Dim::constant(blocked.rows_per_block);
                    placement.locals[local].elements = &rows * &graph.ty(*id).last();
                }
            }
            keep_rows(&mut placement.locals, rows);
            let found = too_large(&graph, &placement, states, &maxima, limit)?;
            let Some((buffer, size)) = found else {
                return Ok(Placed {
                    graph,
                    states: states.to_vec(),
                    limit,
                    placement,
                    streams,
                    maxima,
                    rows,
                });
            };
            let bytes = size.eval(&maxima)?;
            let helps = |graph: &Graph, rows: Option<u64>| {
                let size = rows.map_or(size.clone(), |rows| of_rows(&size, rows));
                let less = size.eval(&lower::maxima(graph));
                less.is_ok_and(|less| less < bytes)
            };
            // A session takes a prompt in pieces, so where there are states those get shorter.
            let of_all = rows.or_else(|| all_rows(&graph));
            let half = most_rows.and(of_all).map(|rows| rows / 2);
            if let Some(half) = half.filter(|half| *half > 0) {
                let mut smaller = graph.clone();
                for symbol in &mut smaller.symbols {
                    if [BATCH, SEQ].contains(&symbol.name.name()) {
                        symbol.max = symbol.max.min(half);
                    }
                }
                if helps(&smaller, Some(half)) {
                    (graph, most_rows) = (smaller, Some(half));
                    continue;
                }
            }
            // Else fewer sequences, or what has tokens among its sizes and no sequences.
            let names: &[&str] = match most_rows {
                Some(_) => &[BATCH, SEQ],
                None => &[BATCH],
            };
            let with_half = |name: &&str| {
                let mut smaller = graph.clone();
                let mut symbols = smaller.symbols.iter_mut();
                let symbol = symbols.find(|s| s.name.name() == *name && s.max > 1)?;
                symbol.max /= 2;
                helps(&smaller, None).then_some(smaller)
            };
            if let Some(smaller) = names.iter().find_map(with_half) {
                graph = smaller;
                continue;
            }
            return Err(CodegenError::TooLarge {
                entry: graph.name.clone(),
                buffer,
                bytes,
                limit,
            });
        }
    }

    fn lower(
        &self,
        (tier, grid): (Tier, u32),
        weights: &Weights,
        symbols: &[SymbolDecl],
        kernels: &mut Kernels<'_>,
    ) -> Result<Entry, CodegenError> {
        let (rows, queries) = self.sizes();
        let meeting = Meeting::of(tier, grid);
        let mut lowered = Vec::new();
        let mut made = Vec::new();
        for (shape, bounds) in self.shapes(tier, rows.as_ref(), queries.as_ref())? {
            let of = (tier, shape);
            let lowering = Lowering::new(&self.graph, &self.placement, weights, &self.streams, of)
                .of_rows(rows.as_ref())
                .offering(Offer {
                    processors: match grid {
                        0 => DEFAULT_GRID.into(),
                        grid => grid.into(),
                    },
                    largest: self.largest(&bounds),
                    rows: rows.clone().zip(shape.rows),
                    at_once: self.rows,
                    limit: self.limit,
                });
            let corners = lowering.corners(rows.as_ref(), queries.as_ref());
            if let Some(meeting) = meeting
                && let Some(joinable) = self.joinable(&lowering, meeting, &corners)?
            {
                lowered.push(joinable);
                let join = Join {
                    meeting,
                    ones: lowering.ones().clone(),
                    corners,
                };
                made.push((Some(join), shape, bounds.clone()));
            }
            lowered.push(lowering.run()?);
            made.push((None, shape, bounds));
        }
        for lowered in &mut lowered {
            keep_rows(&mut lowered.locals, self.rows);
        }
        if tier.reads_images() {
            make_images(&mut lowered, weights, &self.state_bytes(), &self.maxima)?;
        }
        if keeps_halves(tier, &self.states) {
            halve_states(&mut lowered);
        }
        let mut pool = Pool::new(&self.placement.locals);
        let mut variants: Vec<Variant> = Vec::new();
        for ((join, shape, bounds), lowered) in made.into_iter().zip(&lowered) {
            let variant = match &join {
                Some(join) => self.joined(lowered, join, &mut pool, kernels)?,
                None => Some(self.variant(lowered, &mut pool, kernels)?),
            };
            variants.extend(variant.map(|variant| {
                let name = match (&join, shape.rows) {
                    (None, _) => shape.name.to_owned(),
                    (Some(_), Some(1)) => JOINED.to_owned(),
                    (Some(_), _) => format!("{JOINED}.{}", shape.name),
                };
                Variant {
                    name,
                    bounds,
                    ..variant
                }
            }));
        }
        let differs = |s: &&SymbolDecl| !symbols.contains(s);
        Ok(Entry {
            symbols: self.graph.symbols.iter().filter(differs).cloned().collect(),
            inputs: self.ports(self.inputs(), &pool),
            outputs: self.ports(self.outputs(), &pool),
            buffers: pool.buffers,
            rows: self.rows,
            slices: slices(&self.graph),
            variants,
        })
    }

    /// The shapes of `tier` that make a difference here, with their bounds.
    fn shapes(
        &self,
        tier: Tier,
        rows: Option<&Dim>,
        queries: Option<&Dim>,
    ) -> Result<Vec<(Shape, Vec<Bound>)>, CodegenError> {
        let shapes = tier.shapes();
        let mut out: Vec<(Shape, Vec<Bound>)> = Vec::new();
        for (i, shape) in shapes.iter().enumerate() {
            let mut bounds = shape.bounds(rows, queries);
            let last = i + 1 == shapes.len();
            if bounds.is_empty() && !last {
                // It has no size to be told apart by.
                continue;
            }
            if Bound::all_hold(&self.of_rows(&bounds), &self.maxima)? {
                bounds.clear();
            }
            if self.are_covered(&bounds, &out)? {
                continue;
            }
            let unbounded = bounds.is_empty();
            out.push((*shape, bounds));
            if unbounded {
                break;
            }
        }
        Ok(out)
    }

    /// Whether one of `shapes` takes all sizes within `bounds`: at the largest
    /// of them, those that are about one symbol among them.
    fn are_covered(
        &self,
        bounds: &[Bound],
        shapes: &[(Shape, Vec<Bound>)],
    ) -> Result<bool, CodegenError> {
        let largest = self.largest(bounds);
        for (_, bounds) in shapes {
            if Bound::all_hold(&self.of_rows(bounds), &largest)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Bounds as they are where there are no more rows than there is room for.
    fn of_rows(&self, bounds: &[Bound]) -> Vec<Bound> {
        let bounds = bounds.iter().map(|bound| Bound {
            size: self
                .rows
                .map_or_else(|| bound.size.clone(), |rows| of_rows(&bound.size, rows)),
            max: bound.max,
        });
        bounds.collect()
    }

    /// The largest sizes within `bounds`, those that are about one symbol among them.
    fn largest(&self, bounds: &[Bound]) -> Bindings {
        let mut largest = self.maxima.clone();
        for bound in bounds {
            if let Some(symbol) = bound.size.as_symbol() {
                let max = largest.get(symbol).unwrap_or(bound.max).min(bound.max);
                largest.set(symbol.name(), max);
            }
        }
        largest
    }

    /// The bytes at the maxima of each state; without end, if it has no size in this
    /// entry point, which then does not use it.
    fn state_bytes(&self) -> Vec<u64> {
        let bytes = self.states.iter().map(|s| bytes_of_state(&s.ty));
        bytes
            .map(|b| b.eval(&self.maxima).unwrap_or(u64::MAX))
            .collect()
    }

    /// The rows of the entry's linear layers and the queries of its attention,
    /// where they depend on symbols.
    fn sizes(&self) -> (Option<Dim>, Option<Dim>) {
        let mut rows: Option<Dim> = None;
        let mut queries: Option<Dim> = None;
        for (_, value) in self.graph.iter() {
            let Some(shape) = value.inputs.first().map(|x| &self.graph.ty(*x).shape) else {
                continue;
            };
            match &value.op {
                Op::Linear { .. } if !shape.is_empty() => {
                    rows.get_or_insert_with(|| Dim::product(&shape[..shape.len() - 1]));
                }
                Op::Attention(_) | Op::AttentionProbs(_) => {
                    queries = queries.or_else(|| shape.get(1).cloned());
                }
                _ => {}
            }
        }
        let symbolic = |d: &Dim| d.as_const().is_none();
        (rows.filter(symbolic), queries.filter(symbolic))
    }

    fn variant(
        &self,
        lowered: &Lowered,
        pool: &mut Pool,
        kernels: &mut Kernels<'_>,
    ) -> Result<Variant, CodegenError> {
        let streamed = lowered.streams.iter().flat_map(|(_, _, launches)| launches);
        let uses: Vec<Vec<usize>> = lowered
            .launches
            .iter()
            .chain(streamed)
            .map(locals)
            .collect();
        // What a stream reads is needed for each of its blocks, and other
        // streams may run in between: all of them are one step.
        let (before, within) = uses.split_at(lowered.launches.len());
        let mut steps = before.to_vec();
        if !within.is_empty() {
            steps.push(within.concat());
        }
        let assigned = pool.assign(&lowered.locals, &steps, &self.maxima)?;
        check_sharing(&self.graph.name, &lowered.locals, &steps, &assigned)?;
        let mut launches = Vec::new();
        for launch in &lowered.launches {
            launches.push(kernels.launch(launch, &assigned));
        }
        let mut streams = Vec::new();
        for (id, blocked, of_block) in &lowered.streams {
            let position = self.graph.outputs().iter().position(|(_, v)| v == id);
            let shape = &self.graph.ty(*id).shape;
            streams.push(Stream {
                output: position.unwrap_or(0),
                rows: Dim::product(&shape[..shape.len().saturating_sub(1)]),
                rows_per_block: blocked.rows_per_block,
                launches: of_block
                    .iter()
                    .map(|l| kernels.launch(l, &assigned))
                    .collect(),
            });
        }
        Ok(Variant {
            name: String::new(),
            grid: None,
            bounds: Vec::new(),
            launches,
            streams,
        })
    }

    /// The variant for one row, or on a CPU for few, with the launches of a layer still
    /// apart, if they are to be joined. Only sessions have steps so small, and so many of
    /// them.
    ///
    /// So that the kernels of all layers have the same text, and the device the same code
    /// to run, no two values that a launch touches share a buffer, and the sizes that are
    /// 1 are put into the graph: on a CPU, whose driver compiles slowly, all but the
    /// number of sequences, with which the last rows of prompts have the same kernels.
    fn joinable(
        &self,
        separate: &Lowering<'_>,
        meeting: Meeting,
        corners: &[Bindings],
    ) -> Result<Option<Lowered>, CodegenError> {
        let ones = separate.ones();
        let worthwhile = !self.graph.states().is_empty() && self.streams.is_empty();
        let one_row = *ones != Bindings::new();
        if !worthwhile || corners.is_empty() || !(one_row || meeting == Meeting::Tickets) {
            return Ok(None);
        }
        let (mut graph, mut states) = (self.graph.clone(), self.states.clone());
        let put = match meeting {
            Meeting::Barriers(_) => ones.clone(),
            Meeting::Tickets => separate.ones_but_batch(),
        };
        for (symbol, value) in put.iter() {
            let value = Dim::constant(value);
            graph = graph.substitute(symbol, &value);
            let dims = states.iter_mut().flat_map(|s| &mut s.ty.shape);
            dims.for_each(|dim| *dim = dim.substitute(symbol, &value));
        }
        let weights = separate.source.weights;
        let placement = place(&graph, &states, weights)?;
        let of = (separate.tier, separate.shape);
        let lowering = Lowering::new(&graph, &placement, weights, &self.streams, of);
        let lowering = match meeting {
            Meeting::Barriers(grid) => lowering.in_grid(grid.into()),
            // Of what is 1 this is left.
            Meeting::Tickets => lowering.of_rows(Some(&Dim::symbol(BATCH))),
        };
        let mut lowered = lowering.run()?;
        let locals = lowered.locals.iter_mut();
        for local in locals.filter(|l| l.role == Role::Scratch) {
            let at = corners.iter().map(|c| local.elements.at(c).as_const());
            if let Some(most) = at.collect::<Option<Vec<u64>>>() {
                local.elements = most.into_iter().max().unwrap_or(0).into();
            }
        }
        Ok(Some(lowered))
    }

    /// The variant of what is [joinable](Self::joinable) with the launches of a layer
    /// joined, if that can be done to any.
    fn joined(
        &self,
        lowered: &Lowered,
        join: &Join,
        pool: &mut Pool,
        kernels: &mut Kernels<'_>,
    ) -> Result<Option<Variant>, CodegenError> {
        let meeting = join.meeting;
        let groups = join::groups(&lowered.launches, meeting, (&join.corners, &self.maxima))?;
        // Inputs and outputs keep the buffers that they have in other variants.
        let fixed = |locals: &[Local]| -> Vec<(usize, String)> {
            let fixed = locals.iter().enumerate();
            let fixed = fixed.filter(|(_, l)| matches!(l.role, Role::Input | Role::Output));
            fixed.map(|(i, l)| (i, l.name.clone())).collect()
        };
        let mut fits = true;
        for local in &lowered.locals {
            fits &= bytes(local).eval(&self.maxima)? <= self.limit;
        }
        let same = fixed(&lowered.locals) == fixed(&self.placement.locals);
        if groups.is_empty() || !fits || !same {
            return Ok(None);
        }
        let steps: Vec<Vec<usize>> = groups
            .iter()
            .map(|group| {
                lowered.launches[group.clone()]
                    .iter()
                    .flat_map(locals)
                    .collect()
            })
            .collect();
        let assigned = pool.assign(&lowered.locals, &steps, &self.maxima)?;
        check_sharing(&self.graph.name, &lowered.locals, &steps, &assigned)?;

        let state = pool.state("grid", meeting.state_bytes());
        let mut launches = Vec::new();
        // Most layers have the same one.
        let mut joined: BTreeSet<String> = BTreeSet::new();
        for group in groups {
            let members = &lowered.launches[group];
            if let [alone] = members {
                launches.push(kernels.launch(alone, &assigned));
                continue;
            }
            let launch = kernels.joined(members, (meeting, state), &join.ones, &assigned)?;
            joined.extend(launch.kernels().map(str::to_owned));
            launches.push(launch);
        }
        let memory = joined.iter().map(|name| kernels.workgroup_memory(name));
        let memory = memory.max().unwrap_or(0);
        let of_joined = joined.iter().filter_map(|name| kernels.plan.get(name));
        let requires = join::requires(meeting, memory, of_joined);
        let others = launches.iter_mut().flat_map(|l| &mut l.alternatives);
        others.for_each(|way| way.requires.clone_from(&requires));
        let check = match meeting {
            Meeting::Barriers(grid) => Some(Check {
                kernel: kernels.kernel(&join::check(grid), vec![Access::ReadWrite; 2]),
                workgroups: grid,
                words: join::check_words(grid),
            }),
            Meeting::Tickets => None,
        };
        Ok(Some(Variant {
            name: String::new(),
            grid: Some(Grid {
                requires,
                check,
                state,
            }),
            bounds: Vec::new(),
            launches,
            streams: Vec::new(),
        }))
    }

    fn inputs(&self) -> Vec<(String, TensorType, usize)> {
        let found = self.graph.iter().filter_map(|(id, value)| match &value.op {
            Op::Input { name, ty } => match self.placement.views[id.index()].as_ref()?.base {
                Base::Local(local) => Some((name.clone(), ty.clone(), local)),
                _ => None,
            },
            _ => None,
        });
        found.collect()
    }

    fn outputs(&self) -> Vec<(String, TensorType, usize)> {
        let placement = &self.placement;
        // Copies stand in the order of the outputs that need one.
        let mut copies = placement.copies.iter().peekable();
        let mut taken: Vec<usize> = Vec::new();
        let mut out = Vec::new();
        for (name, id) in self.graph.outputs() {
            let own = placement.views[id.index()]
                .as_ref()
                .and_then(|v| match v.base {
                    Base::Local(l) if placement.locals[l].role == Role::Output => Some(l),
                    _ => None,
                });
            let own = own.filter(|l| !taken.contains(l));
            let copied = copies.next_if(|(of, _)| of == id).map(|(_, local)| *local);
            if let Some(local) = copied.or(own) {
                taken.push(local);
                out.push((name.clone(), self.graph.ty(*id).clone(), local));
            }
        }
        out
    }

    fn ports(&self, found: Vec<(String, TensorType, usize)>, pool: &Pool) -> Vec<Port> {
        let ports = found.into_iter().filter_map(|(name, ty, local)| {
            let buffer = pool.fixed(local)?;
            Some(Port { name, ty, buffer })
        });
        ports.collect()
    }
}

/// How many rows the maxima of a graph make, if it has any.
fn all_rows(graph: &Graph) -> Option<u64> {
    let max = |name: &str| {
        let mut symbols = graph.symbols.iter();
        symbols.find(|s| s.name.name() == name).map(|s| s.max)
    };
    Some(max(BATCH)?.saturating_mul(max(SEQ)?))
}

/// The most rows of a run, where the maxima make more than `most`, of one sequence and of one
/// token of each.
fn rows_at_once(graph: &Graph, most: u64) -> Option<u64> {
    let all = all_rows(graph)?;
    let of_one = |s: &&SymbolDecl| [BATCH, SEQ].contains(&s.name.name());
    let least = graph.symbols.iter().filter(of_one).map(|s| s.max).max()?;
    Some(most.max(least)).filter(|rows| *rows < all)
}

/// A size where there are at most so many rows.
pub(crate) fn of_rows(size: &Dim, rows: u64) -> Dim {
    size.with_product_at_most([&Symbol::new(BATCH), &Symbol::new(SEQ)], rows)
}

/// Leaves what lies between launches room for so many rows.
fn keep_rows(locals: &mut [Local], rows: Option<u64>) {
    let between = locals.iter_mut().filter(|l| l.role == Role::Scratch);
    for local in between {
        if let Some(rows) = rows {
            local.elements = of_rows(&local.elements, rows);
        }
    }
}

/// A buffer that takes more than `limit` at the maxima, and its bytes.
fn too_large(
    graph: &Graph,
    placement: &Placement,
    states: &[State],
    maxima: &Bindings,
    limit: u64,
) -> Result<Option<(String, Dim)>, CodegenError> {
    for local in &placement.locals {
        let size = bytes(local);
        if size.eval(maxima)? > limit {
            return Ok(Some((local.name.clone(), size)));
        }
    }
    let reads = |state: &str| {
        let mut ops = graph.iter().map(|(_, v)| &v.op);
        ops.any(|op| matches!(op, Op::State { name, .. } if name == state))
    };
    for state in states.iter().filter(|s| reads(&s.name)) {
        let size = bytes_of_state(&state.ty);
        if size.eval(maxima)? > limit {
            return Ok(Some((state.name.clone(), size)));
        }
    }
    Ok(None)
}

/// The slices of `graph` that may not lie within their axes at all sizes.
fn slices(graph: &Graph) -> Vec<SliceRange> {
    let ranges = graph.iter().filter_map(|(id, value)| {
        let (Op::Slice { axis, start, end }, [x]) = (&value.op, value.inputs.as_slice()) else {
            return None;
        };
        Some(SliceRange {
            name: describe(graph, id),
            start: start.clone(),
            end: end.clone(),
            size: graph.ty(*x).shape.get(*axis)?.clone(),
        })
    });
    ranges
        .filter(|range| !always_within(&range.start, &range.end, &range.size))
        .collect()
}

/// The local buffers that a launch binds.
fn locals(launch: &kernel::Launch) -> Vec<usize> {
    let bases = launch.kernels().flat_map(kernel::Draft::bases);
    bases
        .filter_map(|(base, _)| match base {
            Base::Local(local) => Some(local),
            _ => None,
        })
        .collect()
}
