//! The plan and its kernels, as the page wants them.
//!
//! A plan names each launch of each layer, variant and tier in full, and kernels
//! repeat each other's text: texts, sizes and lines are kept once here.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::plan::{self, Access, Binding, Plan, Requirements, Variant, WeightBuffer};
use kiln_ir::{Dim, Graph, Packing};
use serde::Serialize;

use super::intern::{Interner, runs};

/// A plan for the entry points that are shown.
#[derive(Serialize)]
pub struct Lowered {
    compiler: String,
    weights: Vec<Weight>,
    states: Vec<String>,
    /// Every line of every kernel.
    lines: Interner<String>,
    kernels: Vec<Kernel>,
    tiers: Vec<Tier>,
    /// Every size, as text: an expression of the symbols.
    dims: Interner<String>,
    labels: Interner<String>,
}

#[derive(Serialize)]
struct Weight {
    name: String,
    bytes: u64,
    parts: Vec<Part>,
}

/// Rows of a parameter in a weight buffer.
#[derive(Serialize)]
struct Part {
    param: String,
    shape: Vec<u64>,
    packing: Packing,
    scales: bool,
    rows: [u64; 2],
    /// Up to the next part, padding included.
    bytes: u64,
}

#[derive(Serialize)]
struct Kernel {
    name: String,
    workgroup: [u32; 3],
    /// A letter for each binding after the uniform block: `r` or `w`, for read
    /// and write.
    access: String,
    /// The text, as [`runs`] of numbers of lines.
    text: Vec<usize>,
}

#[derive(Serialize)]
struct Tier {
    name: String,
    requires: Requirements,
    /// Bytes of each state.
    states: Vec<usize>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Serialize)]
struct Entry {
    /// Symbols whose maxima differ from the graph's.
    symbols: Vec<(String, u64)>,
    /// The most rows of a run, if not as many as the maxima make.
    rows: Option<u64>,
    /// Name, type and buffer.
    inputs: Vec<(String, String, usize)>,
    outputs: Vec<(String, String, usize)>,
    /// Name and sizes, of which the largest counts.
    buffers: Vec<(String, Vec<usize>)>,
    variants: Vec<ShownVariant>,
}

#[derive(Serialize)]
struct ShownVariant {
    name: String,
    /// A size and its inclusive maximum.
    bounds: Vec<(usize, u64)>,
    launches: Vec<Launch>,
    streams: Vec<Stream>,
    /// Other ways to do its launches: the number of the launch, those of streams last, and
    /// what is launched in its place.
    others: Vec<(usize, Launch)>,
}

#[derive(Serialize)]
struct Stream {
    output: usize,
    rows: usize,
    rows_per_block: u64,
    launches: Vec<Launch>,
}

/// The numbers of a launch's label, kernel, workgroups, operations and bytes,
/// then its bindings: three times the index, plus nothing for a weight, one for
/// a state, two for a buffer.
type Launch = Vec<usize>;

impl Lowered {
    /// What `plan` says of the entry points of `graphs`, with the `texts` of the
    /// kernels by path.
    pub fn new(plan: &Plan, texts: &BTreeMap<String, String>, graphs: &[Graph]) -> Self {
        let shown: BTreeSet<&str> = graphs.iter().map(|g| g.name.as_str()).collect();
        let mut lowered = Lowered {
            compiler: plan.compiler.clone(),
            weights: plan.weights.iter().map(weight).collect(),
            states: plan.states.iter().map(|s| s.name.clone()).collect(),
            lines: Interner::default(),
            kernels: Vec::new(),
            tiers: Vec::new(),
            dims: Interner::default(),
            labels: Interner::default(),
        };
        let mut kernels = Interner::default();
        for tier in &plan.tiers {
            for check in &tier.checks {
                kernels.number(check.kernel.clone());
            }
            let entries = tier
                .entries
                .iter()
                .filter(|(name, _)| shown.contains(name.as_str()));
            let entries =
                entries.map(|(name, entry)| (name.clone(), lowered.entry(entry, &mut kernels)));
            let entries = entries.collect();
            let states = plan.states.iter().map(|s| tier.state_bytes(s));
            let states = states.map(|bytes| lowered.dim(&bytes)).collect();
            lowered.tiers.push(Tier {
                name: tier.name.clone(),
                requires: tier.requires.clone(),
                states,
                entries,
            });
        }
        for name in kernels.items() {
            if let Some(kernel) = plan.kernels.get(name) {
                let text = texts.get(&kernel.file).map_or("", String::as_str);
                lowered.kernel(name, kernel, text);
            }
        }
        lowered
    }

    fn dim(&mut self, dim: &Dim) -> usize {
        self.dims.number(dim.to_string())
    }

    fn kernel(&mut self, name: &str, kernel: &plan::Kernel, text: &str) {
        let lines = text.lines().map(|line| self.lines.number(line.to_owned()));
        let text = runs(lines);
        let letter = |access: &Access| match access.writes() {
            true => 'w',
            false => 'r',
        };
        self.kernels.push(Kernel {
            name: name.to_owned(),
            workgroup: kernel.workgroup_size,
            access: kernel.bindings.iter().map(letter).collect(),
            text,
        });
    }

    fn entry(&mut self, entry: &plan::Entry, kernels: &mut Interner<String>) -> Entry {
        let port = |p: &plan::Port| (p.name.clone(), p.ty.to_string(), p.buffer);
        let buffers = entry.buffers.iter().map(|buffer| {
            let sizes = buffer.bytes.iter().map(|size| self.dim(size));
            (buffer.name.clone(), sizes.collect())
        });
        Entry {
            buffers: buffers.collect(),
            symbols: entry
                .symbols
                .iter()
                .map(|s| (s.name.to_string(), s.max))
                .collect(),
            rows: entry.rows,
            inputs: entry.inputs.iter().map(port).collect(),
            outputs: entry.outputs.iter().map(port).collect(),
            variants: entry
                .variants
                .iter()
                .map(|v| self.variant(v, kernels))
                .collect(),
        }
    }

    fn variant(&mut self, variant: &Variant, kernels: &mut Interner<String>) -> ShownVariant {
        if let Some(check) = variant.grid.as_ref().and_then(|g| g.check.as_ref()) {
            kernels.number(check.kernel.clone());
        }
        let mut launches = |launches: &[plan::Launch]| -> Vec<Launch> {
            launches.iter().map(|l| self.launch(l, kernels)).collect()
        };
        let before = launches(&variant.launches);
        let streamed: Vec<_> = variant
            .streams
            .iter()
            .map(|s| launches(&s.launches))
            .collect();
        let streams = variant
            .streams
            .iter()
            .zip(streamed)
            .map(|(stream, launches)| Stream {
                output: stream.output,
                rows: self.dim(&stream.rows),
                rows_per_block: stream.rows_per_block,
                launches,
            });
        let streams = streams.collect();
        let mut others = Vec::new();
        for (at, launch) in variant.all_launches().enumerate() {
            for other in launch.each_way().skip(1) {
                others.push((at, self.launch(&other, kernels)));
            }
        }
        let bounds = variant.bounds.iter();
        ShownVariant {
            name: variant.name.clone(),
            bounds: bounds.map(|b| (self.dim(&b.size), b.max)).collect(),
            launches: before,
            streams,
            others,
        }
    }

    fn launch(&mut self, launch: &plan::Launch, kernels: &mut Interner<String>) -> Launch {
        let what = [
            self.labels.number(launch.label.clone()),
            kernels.number(launch.kernel.clone()),
            self.dim(&launch.workgroups),
            self.dim(&launch.flops),
            self.dim(&launch.bytes),
        ];
        let bindings = launch.bindings.iter().map(|binding| match binding {
            Binding::Weight(i) => 3 * i,
            Binding::State(i) => 3 * i + 1,
            Binding::Buffer(i) => 3 * i + 2,
        });
        what.into_iter().chain(bindings).collect()
    }
}

fn weight(buffer: &WeightBuffer) -> Weight {
    let next = buffer.contents.iter().skip(1).map(|part| part.offset);
    let ends = next.chain([buffer.bytes]);
    let parts = buffer.contents.iter().zip(ends).map(|(part, end)| Part {
        param: part.param.clone(),
        shape: part.shape.clone(),
        packing: part.packing,
        scales: part.scales,
        rows: [part.first_row, part.first_row + part.rows],
        bytes: end.saturating_sub(part.offset),
    });
    Weight {
        name: buffer.name.clone(),
        bytes: buffer.bytes,
        parts: parts.collect(),
    }
}
