//! Sampling on the device: the kernels, which belong to the runtime and not to a
//! plan, and a session's buffers for them.
//!
//! Behind each step two launches choose every sequence's next token and put it
//! where the next step reads its ids, so that the host has nothing to do between
//! steps. They give the tokens that [`Sampler`](crate::sampling::Sampler) gives.

#[cfg(test)]
mod tests;

use std::fmt::Write;

use kiln_ir::DType;
use kiln_ir::plan::{Access, Binding, Entry, Kernel, Plan, Tier};
use wgpu::BufferUsages as Usage;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::exec::{Allocation, Program, Recorder};
use crate::generate::Generation;
use crate::model::Model;
use crate::pipelines::Compiled;
use crate::readback::Staging;
use crate::sampling::{Rule, SamplingError};
use crate::session::STEP;

/// Bytes of the uniform block, `Sampling` of `defaults/sample.wgsl`.
pub(crate) const UNIFORM_BYTES: u64 = 48;

/// Bindings behind the uniform block: the logits, and six that are written.
const BINDINGS: [Access; 7] = {
    let mut all = [Access::ReadWrite; 7];
    all[0] = Access::Read;
    all
};

/// What the device logs where no logit is finite.
const NO_TOKEN: u32 = u32::MAX;

/// Sizes of the kernels.
#[derive(Clone, Copy, Debug)]
struct Shape {
    workgroup: u32,
    /// Parts of a vocabulary that are looked through side by side.
    chunks: u32,
}

impl Shape {
    /// On a CPU a workgroup is one vector, which needs no real barriers, but for
    /// vocabularies that would take more iterations than llvmpipe lets a shader's
    /// loops have (65,535 in all): up to 14 times over a quarter of the tokens.
    fn of(tier: &Tier, vocab: u64) -> Self {
        let enough = vocab.div_ceil(16_000).next_power_of_two();
        match tier.requires.cpu_only {
            true => Shape {
                workgroup: enough.clamp(8, 256) as u32,
                chunks: 8,
            },
            false => Shape {
                workgroup: 256,
                chunks: 64,
            },
        }
    }
}

/// A kernel of the sampler, not yet compiled.
pub(crate) struct Source {
    pub name: String,
    pub kernel: Kernel,
    pub text: String,
}

/// The kernels for steps of `tier` on `device`, the greedy pair first, and with `draw`
/// the one that draws; none where its tokens cannot be chosen on the device: it has no
/// logits, it overwrites inputs that are given once, or the device binds too few
/// buffers.
pub(crate) fn sources(
    plan: &Plan,
    tier: &Tier,
    device: &Device,
    draw: bool,
) -> Option<Vec<Source>> {
    let entry = tier.entries.get(STEP)?;
    let bound = device.limits().max_storage_buffers_per_shader_stage;
    if !takes_its_tokens(plan, entry) || bound < BINDINGS.len() as u32 {
        return None;
    }
    let vocab = plan.model.vocab_size;
    let shape = Shape::of(tier, vocab);
    let mut out = Vec::new();
    for greedy in [true, false].into_iter().filter(|greedy| *greedy || draw) {
        for name in BODIES {
            let text = text(name, shape, vocab, greedy)?;
            let greedy = if greedy { "_greedy" } else { "" };
            out.push(Source {
                name: format!("{name}{greedy}"),
                kernel: Kernel {
                    file: String::new(),
                    workgroup_size: [shape.workgroup, 1, 1],
                    bindings: BINDINGS.to_vec(),
                },
                text,
            });
        }
    }
    Some(out)
}

/// The kernels of a pair, in the order in which they are launched.
const BODIES: [&str; 2] = ["sample_score", "sample_choose"];

/// The text of a kernel, if there is a body of that name.
fn text(body: &str, shape: Shape, vocab: u64, greedy: bool) -> Option<String> {
    let id_bits = u64::BITS - vocab.saturating_sub(1).leading_zeros();
    let mut text = String::new();
    let constants = [
        ("WORKGROUP", shape.workgroup),
        ("CHUNKS", shape.chunks),
        ("ID_LEVELS", id_bits.div_ceil(8).max(1)),
    ];
    for (name, value) in constants {
        let _ = writeln!(text, "const {name}: u32 = {value}u;");
    }
    let _ = writeln!(text, "const GREEDY: bool = {greedy};");
    text += kiln_shaders::default_prelude("sample")?;
    text += &kiln_shaders::functions(&["multiply_high"]);
    text += kiln_shaders::body(body)?;
    Some(text)
}

/// The uniform block for `batch` sequences; `pad` is fed to one that has ended.
fn uniforms(rule: &Rule, vocab: u32, batch: u32, pad: u32) -> [u32; (UNIFORM_BYTES / 4) as usize] {
    [
        vocab,
        batch,
        pad,
        rule.top_k,
        rule.top_p,
        rule.farthest,
        rule.scale.to_bits(),
        rule.limit.to_bits(),
        rule.penalty.to_bits(),
        rule.inverse_penalty.to_bits(),
        rule.seed[0],
        rule.seed[1],
    ]
}

/// Whether a step's output is the next step's input but for the choice between.
fn takes_its_tokens(plan: &Plan, entry: &Entry) -> bool {
    let [logits, ..] = entry.outputs.as_slice() else {
        return false;
    };
    let vocab = logits.ty.shape.last().and_then(|d| d.as_const());
    let is_logits = logits.name == "logits"
        && logits.dtype() == DType::F32
        && logits.ty.shape.len() == 2
        && vocab == Some(plan.model.vocab_size);
    let ids = entry.inputs.iter().find(|port| port.name == "ids");
    let Some(ids) = ids.filter(|ids| ids.dtype() == DType::I32) else {
        return false;
    };
    let known = |name: &str| matches!(name, "ids" | "start");
    let others = entry.inputs.iter().filter(|port| port.name != "ids");
    is_logits
        && ids.buffer != logits.buffer
        && entry.inputs.iter().all(|port| known(&port.name))
        && others.clone().all(|port| port.buffer != ids.buffer)
        && others
            .clone()
            .all(|port| !is_written(plan, entry, port.buffer))
}

fn is_written(plan: &Plan, entry: &Entry, buffer: usize) -> bool {
    // Alternatives write what their launches do.
    let launches = entry.variants.iter().flat_map(|v| &v.launches);
    let mut bound = launches.flat_map(|launch| plan.bound(launch));
    bound.any(|b| b == (Binding::Buffer(buffer), Access::ReadWrite))
}

/// The kernels, compiled: for each way of choosing, what is launched in order.
pub(crate) struct Kernels {
    shape: Shape,
    greedy: [Compiled; 2],
    drawn: Option<[Compiled; 2]>,
}

impl Kernels {
    /// From the compiled [`sources`] for a tier of a plan, in their order.
    pub fn new(plan: &Plan, tier: &Tier, compiled: Vec<Compiled>) -> Option<Self> {
        let mut compiled = compiled.into_iter();
        let mut pair = || Some([compiled.next()?, compiled.next()?]);
        Some(Kernels {
            shape: Shape::of(tier, plan.model.vocab_size),
            greedy: pair()?,
            drawn: pair(),
        })
    }
}

/// A session's buffers for sampling.
pub(crate) struct DeviceSampler<'m> {
    kernels: &'m Kernels,
    batch: usize,
    vocab: u32,
    rule: wgpu::Buffer,
    marks: wgpu::Buffer,
    sequences: wgpu::Buffer,
    tokens: wgpu::Buffer,
    group: wgpu::BindGroup,
    greedy: bool,
}

impl<'m> DeviceSampler<'m> {
    /// For `batch` sequences of at most `context` tokens; nothing if the model's
    /// tokens are chosen on the host.
    pub fn new(
        model: &'m Model,
        program: &Program,
        allocation: &Allocation,
        (batch, context): (usize, u64),
    ) -> Result<Option<Self>> {
        const ADVICE: &str = "use a smaller batch";
        let Some(kernels) = &model.sampler else {
            return Ok(None);
        };
        let ids = program.inputs.iter().find(|port| port.name == "ids");
        let (Some(ids), Some(logits)) = (ids, program.outputs.first()) else {
            return Ok(None);
        };
        let (device, rows) = (&model.device, batch as u64);
        let vocab = model.plan.model.vocab_size;
        let storage = |name: &str, bytes: u64| {
            let usage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
            device.buffer(name, bytes, usage, ADVICE)
        };
        let scores = storage("scores", rows * vocab.div_ceil(4) * 16)?;
        let bests = storage("best tokens", rows * u64::from(kernels.shape.chunks) * 8)?;
        let marks = storage("marked tokens", (rows + 1) * vocab.div_ceil(32) * 4)?;
        let sequences = storage("sequences", rows * 16)?;
        let tokens = storage("new tokens", rows * (context + 1) * 4)?;
        let usage = Usage::UNIFORM | Usage::COPY_DST;
        let rule = device.buffer("sampling", UNIFORM_BYTES, usage, ADVICE)?;
        let bound = [
            &rule,
            allocation.buffer(logits.buffer)?,
            &scores,
            &bests,
            &marks,
            &sequences,
            allocation.buffer(ids.buffer)?,
            &tokens,
        ];
        let entries: Vec<_> = (0u32..)
            .zip(bound)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = device.scoped("the sampler's bind group", || {
            device.inner.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("sampling"),
                layout: &kernels.greedy[0].layout,
                entries: &entries,
            })
        })?;
        Ok(Some(DeviceSampler {
            kernels,
            batch,
            vocab: vocab as u32,
            rule,
            marks,
            sequences,
            tokens,
            group,
            greedy: true,
        }))
    }

    /// Whether it has the kernels for a generation.
    pub fn takes(&self, generation: &Generation<'_>) -> bool {
        generation.sampler().rule().greedy || self.kernels.drawn.is_some()
    }

    /// Prepares for a generation: its options, stop tokens and histories.
    pub fn begin(&mut self, device: &Device, generation: &Generation<'_>) {
        let rule = generation.sampler().rule();
        self.greedy = rule.greedy;
        let pad = generation.options().pad_token;
        let block = uniforms(rule, self.vocab, self.batch as u32, pad);
        let write = |buffer: &wgpu::Buffer, words: &[u32]| {
            device
                .queue
                .write_buffer(buffer, 0, bytemuck::cast_slice(words));
        };
        write(&self.rule, &block);

        let words = self.vocab.div_ceil(32) as usize;
        let mut marks = vec![0u32; words * (self.batch + 1)];
        let (stops, histories) = marks.split_at_mut(words);
        let mark = |row: &mut [u32], ids: &[u32]| {
            for id in ids {
                if let Some(word) = row.get_mut(*id as usize / 32) {
                    *word |= 1 << (id % 32);
                }
            }
        };
        mark(stops, &generation.options().stop_tokens);
        let mut sequences = Vec::with_capacity(self.batch * 4);
        for (sequence, row) in histories.chunks_exact_mut(words).enumerate() {
            if rule.penalty != 1.0 {
                mark(row, generation.history(sequence));
            }
            let ended = u32::from(!generation.is_live(sequence));
            sequences.extend([generation.position(sequence) as u32, 0, ended, 0]);
        }
        write(&self.marks, &marks);
        write(&self.sequences, &sequences);
    }

    /// Records the choice of every sequence's next token behind its logits.
    pub fn record(&self, recorder: &mut Recorder<'_>) {
        let kernels = match &self.kernels.drawn {
            Some(drawn) if !self.greedy => drawn,
            _ => &self.kernels.greedy,
        };
        let grids = [
            (self.kernels.shape.chunks, self.batch as u32),
            (self.batch as u32, 1),
        ];
        let mut pass = recorder.encoder().begin_compute_pass(&Default::default());
        pass.set_bind_group(0, &self.group, &[0]);
        for (kernel, (x, y)) in kernels.iter().zip(grids) {
            pass.set_pipeline(&kernel.pipeline);
            pass.dispatch_workgroups(x, y, 1);
        }
    }

    /// Bytes of the tokens of `steps` steps.
    pub fn bytes(&self, steps: u64) -> u64 {
        self.batch as u64 * steps * 4
    }

    /// Records the read-back of `steps` steps' tokens from the `first` on.
    pub fn read_behind(&self, recorder: &mut Recorder<'_>, to: &Staging, first: u64, steps: u64) {
        let (at, bytes) = (self.bytes(first), self.bytes(steps));
        to.copy(recorder.encoder(), &self.tokens, at, bytes);
    }
}

/// That every live sequence got a token.
pub(crate) fn check_tokens(generation: &Generation<'_>, tokens: &[u32]) -> Result<()> {
    let none = |(i, id): &(usize, &u32)| **id == NO_TOKEN && generation.is_live(*i);
    match tokens.iter().enumerate().find(none) {
        None => Ok(()),
        Some((sequence, _)) => Err(Error::Sampling(SamplingError::NoFiniteLogit {
            sequence: sequence as u32,
            position: generation.position(sequence),
        })),
    }
}
