//! A plan's entry made ready to run: sizes as slots, buffers, bind groups, and
//! the recording of launches.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::plan::{
    self, Access, Binding, Entry, Grid, Launch, Plan, Port, SliceRange, TEXEL_BYTES,
};
use kiln_ir::{DType, Dim, Symbol};
use wgpu::BufferUsages as Usage;

use crate::device::Device;
use crate::dims::{SlotDim, Slots, Values};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::profile::Timer;
use crate::readback::Staging;
use crate::resident::{Form, Resident};

/// An [`Entry`] with its dimensions compiled.
pub(crate) struct Program {
    pub name: String,
    /// Inclusive maxima of the symbols.
    pub maxima: BTreeMap<String, u64>,
    /// The symbols that inputs, outputs and the ranges of slices have among their sizes.
    pub symbols: BTreeSet<Symbol>,
    pub inputs: Vec<PortProgram>,
    pub outputs: Vec<PortProgram>,
    pub buffers: Vec<BufferProgram>,
    pub slices: Vec<SliceProgram>,
    /// The most rows of a run, if they are bounded.
    pub rows: Option<u64>,
    pub variants: Vec<VariantProgram>,
    /// What each of the plan's states is, if any launch binds one.
    pub states: Vec<Form>,
}

pub(crate) struct BufferProgram {
    pub name: String,
    /// It has the most of these.
    pub bytes: Vec<SlotDim>,
    pub form: Form,
}

pub(crate) struct SliceProgram {
    range: SliceRange,
    start: SlotDim,
    end: SlotDim,
    size: SlotDim,
}

pub(crate) struct PortProgram {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<SlotDim>,
    pub buffer: usize,
}

pub(crate) struct VariantProgram {
    pub name: String,
    /// Which way to do another variant it is; 0 if it is none.
    pub way: usize,
    /// The buffer of the state that workgroups of its launches share, if they do.
    pub grid: Option<usize>,
    /// Whether it is to be tried before it is taken for good.
    pub is_to_be_tried: bool,
    pub bounds: Vec<(SlotDim, u64)>,
    pub launches: Vec<LaunchProgram>,
    pub streams: Vec<StreamProgram>,
}

pub(crate) struct LaunchProgram {
    pub label: String,
    /// Index into [`Model::kernels`].
    pub kernel: usize,
    pub workgroups: SlotDim,
    /// Never more than these.
    pub most_workgroups: u64,
    pub bindings: Vec<(Binding, Access)>,
    pub flops: SlotDim,
    pub bytes: SlotDim,
}

impl LaunchProgram {
    fn binds(&self, binding: Binding) -> bool {
        self.bindings.iter().any(|(own, _)| *own == binding)
    }
}

pub(crate) struct StreamProgram {
    pub output: usize,
    pub rows: SlotDim,
    pub rows_per_block: u64,
    pub launches: Vec<LaunchProgram>,
}

/// The inclusive maxima of an entry's symbols.
pub(crate) fn maxima(plan: &Plan, entry: &Entry) -> BTreeMap<String, u64> {
    let declared = plan.symbols.iter().chain(&entry.symbols);
    declared
        .map(|s| (s.name.name().to_owned(), s.max))
        .collect()
}

fn symbols(entry: &Entry) -> BTreeSet<Symbol> {
    let ports = entry.inputs.iter().chain(&entry.outputs);
    let sizes = ports.flat_map(|port| &port.ty.shape);
    let slices = entry
        .slices
        .iter()
        .flat_map(|s| [&s.start, &s.end, &s.size]);
    sizes.chain(slices).flat_map(Dim::symbols).collect()
}

impl Program {
    /// `kernels` maps a kernel's name to its index.
    pub fn new(
        plan: &Plan,
        name: &str,
        entry: &Entry,
        slots: &Slots,
        kernels: &BTreeMap<&str, usize>,
    ) -> Result<Self> {
        let launch = |l: &Launch| -> Result<LaunchProgram> {
            let kernel = kernels.get(l.kernel.as_str()).copied();
            Ok(LaunchProgram {
                label: l.label.clone(),
                kernel: kernel.ok_or_else(|| Error::plan(format!("no kernel `{}`", l.kernel)))?,
                workgroups: slots.compile(&l.workgroups)?,
                most_workgroups: u64::MAX,
                bindings: plan.bound(l).collect(),
                flops: slots.compile(&l.flops)?,
                bytes: slots.compile(&l.bytes)?,
            })
        };
        let processors = std::thread::available_parallelism();
        let processors = processors.map_or(1, |n| n.get() as u64);
        let launches = |all: &[Launch]| all.iter().map(launch).collect::<Result<Vec<_>>>();
        let ports = |all: &[Port]| all.iter().map(|p| port(slots, p)).collect::<Result<_>>();

        let mut variants = Vec::new();
        for variant in &entry.variants {
            let mut streams = Vec::new();
            for stream in &variant.streams {
                streams.push(StreamProgram {
                    output: stream.output,
                    rows: slots.compile(&stream.rows)?,
                    rows_per_block: stream.rows_per_block,
                    launches: launches(&stream.launches)?,
                });
            }
            let mut of_variant = launches(&variant.launches)?;
            if let Some(Grid {
                check: None, state, ..
            }) = &variant.grid
            {
                // Workgroups take what there is to do from each other, and wait for each
                // other: more than run at once are in each other's way.
                let own = of_variant.iter_mut();
                for launch in own.filter(|l| l.binds(Binding::Buffer(*state))) {
                    launch.most_workgroups = processors;
                }
            }
            let mut bounds = Vec::new();
            for bound in &variant.bounds {
                bounds.push((slots.compile(&bound.size)?, bound.max));
            }
            variants.push(VariantProgram {
                name: variant.name.clone(),
                way: 0,
                grid: variant.grid.as_ref().map(|g| g.state),
                is_to_be_tried: variant.grid.as_ref().is_some_and(|g| g.check.is_some()),
                bounds,
                launches: of_variant,
                streams,
            });
        }
        let mut buffers = Vec::new();
        for buffer in &entry.buffers {
            let sizes = buffer.bytes.iter().map(|d| slots.compile(d));
            buffers.push(BufferProgram {
                name: buffer.name.clone(),
                bytes: sizes.collect::<Result<_>>()?,
                form: Form::of_image(buffer.image),
            });
        }
        let slices = entry.slices.iter().map(|range| {
            Ok(SliceProgram {
                range: range.clone(),
                start: slots.compile(&range.start)?,
                end: slots.compile(&range.end)?,
                size: slots.compile(&range.size)?,
            })
        });
        let mut states = Vec::new();
        for (binding, access) in plan.bound_by(entry) {
            if let Binding::State(state) = binding {
                states.resize(plan.states.len(), Form::Buffer);
                if let (Form::Image, Some(form)) = (access.into(), states.get_mut(state)) {
                    *form = Form::Image;
                }
            }
        }
        Ok(Program {
            name: name.to_owned(),
            maxima: maxima(plan, entry),
            symbols: symbols(entry),
            inputs: ports(&entry.inputs)?,
            outputs: ports(&entry.outputs)?,
            buffers,
            rows: entry.rows,
            slices: slices.collect::<Result<_>>()?,
            variants,
            states,
        })
    }

    /// The buffers that launches bind, and those of inputs and outputs.
    fn bound(&self) -> BTreeSet<usize> {
        let streams = self.variants.iter().flat_map(|v| &v.streams);
        let streamed = streams.flat_map(|s| &s.launches);
        let launches = self.variants.iter().flat_map(|v| &v.launches);
        let bindings = launches.chain(streamed).flat_map(|l| &l.bindings);
        let buffers = bindings.filter_map(|(binding, _)| match binding {
            Binding::Buffer(index) => Some(*index),
            Binding::Weight(_) | Binding::State(_) => None,
        });
        let ports = self.inputs.iter().chain(&self.outputs);
        buffers.chain(ports.map(|port| port.buffer)).collect()
    }

    /// The first variant whose bounds hold.
    pub fn variant(&self, values: &Values) -> Result<usize> {
        self.variant_of(values, |_| true)
    }

    /// The first variant of which `takes` holds, and whose bounds do.
    ///
    /// # Errors
    /// When there is none, or when a slice is not within its axis at these sizes.
    pub fn variant_of(
        &self,
        values: &Values,
        takes: impl Fn(&VariantProgram) -> bool,
    ) -> Result<usize> {
        for slice in &self.slices {
            slice.check(values)?;
        }
        'variants: for (index, variant) in self.variants.iter().enumerate() {
            for (size, max) in &variant.bounds {
                if size.eval(values)? > *max {
                    continue 'variants;
                }
            }
            if takes(variant) {
                return Ok(index);
            }
        }
        Err(Error::plan(format!(
            "no variant of `{}` takes these sizes",
            self.name
        )))
    }
}

impl SliceProgram {
    fn check(&self, values: &Values) -> Result<()> {
        let [start, end, size] = [&self.start, &self.end, &self.size].map(|d| d.wide(values));
        if 0 <= start && start <= end && end <= size {
            return Ok(());
        }
        let range = &self.range;
        Err(Error::Slice {
            name: range.name.clone(),
            range: format!("{}..{}", range.start, range.end),
            found: format!("{start}..{end}"),
            size,
        })
    }
}

fn port(slots: &Slots, port: &Port) -> Result<PortProgram> {
    let shape = port.ty.shape.iter().map(|d| slots.compile(d));
    Ok(PortProgram {
        name: port.name.clone(),
        dtype: port.dtype(),
        shape: shape.collect::<Result<_>>()?,
        buffer: port.buffer,
    })
}

impl PortProgram {
    pub fn shape(&self, values: &Values) -> Result<Vec<usize>> {
        let dims = self
            .shape
            .iter()
            .map(|d| d.eval(values).map(|v| v as usize));
        dims.collect()
    }

    pub fn bytes(&self, values: &Values) -> Result<u64> {
        let shape = self.shape(values)?;
        let bytes = shape.iter().map(|n| *n as u64);
        Ok(bytes.fold(self.dtype.device_bytes(), u64::saturating_mul))
    }
}

/// Bytes of the state of a grid that say whether launches failed; see [`kiln_ir::plan::Grid`].
pub(crate) const GRID_STATE_BYTES: u64 = 8;

/// Whether a launch has failed, by that state.
pub(crate) fn has_stalled(state: &[u8]) -> bool {
    state.iter().skip(4).any(|byte| *byte != 0)
}

/// Blocks of uniforms that one submission can use.
pub(crate) const UNIFORM_SLOTS: u64 = 64;

/// The buffers and bind groups of one entry at one capacity.
pub(crate) struct Allocation {
    buffers: Vec<Resident>,
    #[allow(
        dead_code,
        reason = "bind groups keep them alive; a profile may read them"
    )]
    pub states: Vec<Resident>,
    /// The buffer of a grid's state, if a variant is run that has such.
    grid: Option<usize>,
    /// For each variant: its launches' groups, and those of its streams.
    groups: Vec<VariantGroups>,
    uniforms: wgpu::Buffer,
    stride: u64,
    next: u64,
}

struct VariantGroups {
    launches: Vec<wgpu::BindGroup>,
    streams: Vec<Vec<wgpu::BindGroup>>,
}

const ADVICE: &str = "use a smaller batch, fewer tokens or a smaller --max-context";

impl Allocation {
    /// Allocates for sizes up to `capacity`.
    pub fn new(model: &Model, program: &Program, capacity: &Values) -> Result<Self> {
        let device = &model.device;
        let mut buffers = Vec::new();
        let mut held = Vec::new();
        let bound = program.bound();
        for (at, BufferProgram { name, bytes, form }) in program.buffers.iter().enumerate() {
            // What only variants bind that are left out has no size.
            let mut most = TEXEL_BYTES;
            if bound.contains(&at) {
                for size in bytes {
                    most = most.max(size.eval(capacity)?);
                }
            }
            held.push(most);
            buffers.push(Resident::new(device, name, most, *form, ADVICE)?);
        }
        for port in program.inputs.iter().chain(&program.outputs) {
            let streamed = |v: &VariantProgram| {
                let mut streams = v.streams.iter();
                streams.any(|s| program.outputs[s.output].name == port.name)
            };
            let wanted = port.bytes(capacity)?;
            if held[port.buffer] < wanted && !program.variants.iter().all(streamed) {
                return Err(Error::plan(format!(
                    "`{}` of `{}` takes {wanted} bytes, its buffer has {}",
                    port.name, program.name, held[port.buffer]
                )));
            }
        }
        let mut states = Vec::new();
        let all = model.plan.states.iter().zip(&model.states);
        for ((state, bytes), form) in all.zip(&program.states) {
            let bytes = bytes.eval(capacity)?;
            states.push(Resident::new(device, &state.name, bytes, *form, ADVICE)?);
        }
        let alignment = u64::from(device.limits().min_uniform_buffer_offset_alignment);
        let stride = model.uniform_bytes().next_multiple_of(alignment.max(16));
        let usage = Usage::UNIFORM | Usage::COPY_DST;
        let uniforms = device.buffer("uniforms", stride * UNIFORM_SLOTS, usage, ADVICE)?;

        let mut out = Allocation {
            buffers,
            states,
            grid: program.variants.iter().find_map(|v| v.grid),
            groups: Vec::new(),
            uniforms,
            stride,
            next: 0,
        };
        let what = format!("the bind groups of `{}`", program.name);
        let groups = device.scoped(&what, || {
            let variants = program.variants.iter();
            let variants = variants.map(|v| {
                let streams = v.streams.iter();
                Ok(VariantGroups {
                    launches: out.bind(model, &v.launches)?,
                    streams: streams
                        .map(|s| out.bind(model, &s.launches))
                        .collect::<Result<_>>()?,
                })
            });
            variants.collect::<Result<Vec<_>>>()
        });
        out.groups = groups??;
        Ok(out)
    }

    fn bind(&self, model: &Model, launches: &[LaunchProgram]) -> Result<Vec<wgpu::BindGroup>> {
        let groups = launches.iter().map(|launch| {
            let mut entries = vec![wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &self.uniforms,
                    offset: 0,
                    size: wgpu::BufferSize::new(model.uniform_bytes()),
                }),
            }];
            for (at, (binding, access)) in (1..).zip(&launch.bindings) {
                let resident = match *binding {
                    Binding::Weight(i) => model.weights.get(&(i, Form::from(*access))),
                    Binding::State(i) => self.states.get(i),
                    Binding::Buffer(i) => self.buffers.get(i),
                };
                let absent = || Error::plan(format!("`{}`: no {binding:?}", launch.label));
                entries.push(wgpu::BindGroupEntry {
                    binding: at,
                    resource: resident.ok_or_else(absent)?.binding(),
                });
            }
            Ok(model
                .device
                .inner
                .create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&launch.label),
                    layout: &model.kernels[launch.kernel].layout,
                    entries: &entries,
                }))
        });
        groups.collect()
    }

    /// A buffer that is no image.
    ///
    /// # Errors
    /// When there is no such.
    pub fn buffer(&self, index: usize) -> Result<&wgpu::Buffer> {
        let buffer = self.buffers.get(index).and_then(Resident::buffer);
        buffer.ok_or_else(|| Error::plan(format!("buffer {index} is none")))
    }

    /// Whether variants with barriers across their grids are run.
    pub fn has_grid(&self) -> bool {
        self.grid.is_some()
    }

    /// Notes that they no longer are.
    pub fn leave_grid(&mut self) {
        self.grid = None;
    }

    /// Bytes that [`Allocation::copy_grid_state`] copies.
    pub fn grid_state_bytes(&self) -> u64 {
        self.grid.map_or(0, |_| GRID_STATE_BYTES)
    }

    /// Records the read-back of the state of a grid, if there is one, to
    /// the place `at` of `staging`.
    pub fn copy_grid_state(
        &self,
        recorder: &mut Recorder<'_>,
        staging: &Staging,
        at: u64,
    ) -> Result<()> {
        if let Some(grid) = self.grid {
            let buffer = self.buffer(grid)?;
            staging.copy_to(at, recorder.encoder(), buffer, 0, GRID_STATE_BYTES);
        }
        Ok(())
    }

    /// Puts the uniform block for `values` into the ring; the result is its
    /// dynamic offset. Writes are ordered with submissions, so the ring only has
    /// to be as long as what one submission uses.
    pub fn push_uniforms(&mut self, model: &Model, values: &Values) -> Result<u32> {
        let mut block = vec![0u32; (model.uniform_bytes() / 4) as usize];
        for (word, slot) in block.iter_mut().zip(&model.uniform_slots) {
            let value = values.at(*slot);
            *word = u32::try_from(value)
                .map_err(|_| Error::plan(format!("a uniform is {value}, over 32 bits")))?;
        }
        let offset = self.next * self.stride;
        self.next = (self.next + 1) % UNIFORM_SLOTS;
        let queue = &model.device.queue;
        queue.write_buffer(&self.uniforms, offset, bytemuck::cast_slice(&block));
        Ok(offset as u32)
    }
}

/// Records launches into submissions of bounded work.
pub(crate) struct Recorder<'m> {
    model: &'m Model,
    encoder: Option<wgpu::CommandEncoder>,
    /// Arithmetic recorded since the last submission.
    flops: u64,
    timer: Option<Timer>,
}

impl<'m> Recorder<'m> {
    pub fn new(model: &'m Model, timer: Option<Timer>) -> Self {
        Recorder {
            model,
            encoder: None,
            flops: 0,
            timer,
        }
    }

    fn device(&self) -> &'m Device {
        &self.model.device
    }

    pub fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        let device = &self.model.device.inner;
        self.encoder
            .get_or_insert_with(|| device.create_command_encoder(&Default::default()))
    }

    /// Records the launches of a variant, without its streams.
    pub fn variant(
        &mut self,
        program: &Program,
        allocation: &Allocation,
        variant: usize,
        values: &Values,
        uniforms: u32,
    ) -> Result<()> {
        let groups = &allocation.groups[variant].launches;
        let launches = &program.variants[variant].launches;
        self.launches(launches, groups, values, uniforms)
    }

    /// Records one block of a stream.
    pub fn stream(
        &mut self,
        program: &Program,
        allocation: &Allocation,
        (variant, stream): (usize, usize),
        values: &Values,
        uniforms: u32,
    ) -> Result<()> {
        let groups = &allocation.groups[variant].streams[stream];
        let launches = &program.variants[variant].streams[stream].launches;
        self.launches(launches, groups, values, uniforms)
    }

    fn launches(
        &mut self,
        launches: &[LaunchProgram],
        groups: &[wgpu::BindGroup],
        values: &Values,
        uniforms: u32,
    ) -> Result<()> {
        let budget = self.device().submission_flops();
        let mut at = 0;
        while at < launches.len() {
            // As many launches as the submission still holds, but one at least.
            let mut end = at;
            while end < launches.len() {
                let flops = launches[end].flops.eval(values)?;
                let over = self.flops > 0 && self.flops.saturating_add(flops) > budget;
                if over || (self.timer.is_some() && end > at) {
                    break;
                }
                self.flops = self.flops.saturating_add(flops);
                end += 1;
            }
            if end == at {
                self.submit();
                continue;
            }
            self.pass(&launches[at..end], &groups[at..end], values, uniforms)?;
            at = end;
        }
        Ok(())
    }

    fn pass(
        &mut self,
        launches: &[LaunchProgram],
        groups: &[wgpu::BindGroup],
        values: &Values,
        uniforms: u32,
    ) -> Result<()> {
        let timestamps = match (&mut self.timer, launches) {
            (Some(timer), [launch]) => timer.start(self.model, launch, values)?,
            _ => None,
        };
        let encoder = {
            let device = &self.model.device.inner;
            self.encoder
                .get_or_insert_with(|| device.create_command_encoder(&Default::default()))
        };
        let writes = timestamps
            .as_ref()
            .map(|(set, at)| wgpu::ComputePassTimestampWrites {
                query_set: set,
                beginning_of_pass_write_index: Some(*at),
                end_of_pass_write_index: Some(*at + 1),
            });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: writes,
        });
        let mut kernel = usize::MAX;
        for (launch, group) in launches.iter().zip(groups) {
            let count = launch.workgroups.eval(values)?;
            let count = count.min(launch.most_workgroups);
            if count == 0 {
                continue;
            }
            let (x, y) = fold(count, self.model.device.limits())?;
            if kernel != launch.kernel {
                kernel = launch.kernel;
                pass.set_pipeline(&self.model.kernels[kernel].pipeline);
            }
            pass.set_bind_group(0, group, &[uniforms]);
            pass.dispatch_workgroups(x, y, 1);
        }
        drop(pass);
        if let Some(timer) = &mut self.timer
            && timer.waits()
        {
            // No timestamps: the host's clock around the launch alone.
            let index = self.submit();
            self.model.device.wait("a timed launch", index)?;
            if let Some(timer) = &mut self.timer {
                timer.stop();
            }
        }
        Ok(())
    }

    /// Submits what was recorded; `None` if nothing was.
    pub fn submit(&mut self) -> Option<wgpu::SubmissionIndex> {
        self.flops = 0;
        let encoder = self.encoder.take()?;
        Some(self.device().queue.submit([encoder.finish()]))
    }

    pub fn into_timer(self) -> Option<Timer> {
        self.timer
    }
}

/// A flat count of workgroups as the two dimensions that a device takes.
fn fold(count: u64, limits: &wgpu::Limits) -> Result<(u32, u32)> {
    let max = u64::from(limits.max_compute_workgroups_per_dimension).max(1);
    match plan::fold(count, max) {
        [x, y] if y <= max => Ok((x as u32, y as u32)),
        _ => Err(Error::Limit {
            what: "a launch".to_owned(),
            limit: "max_compute_workgroups_per_dimension",
            wanted: count,
            offered: max * max,
            advice: ADVICE,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fold_without_losing_workgroups() {
        let limits = wgpu::Limits::defaults();
        assert_eq!(fold(1, &limits).unwrap(), (1, 1));
        assert_eq!(fold(65_535, &limits).unwrap(), (65_535, 1));
        assert_eq!(fold(65_536, &limits).unwrap(), (32_768, 2));
        for count in [65_537, 200_000, 10_000_019, 65_535 * 65_535] {
            let (x, y) = fold(count, &limits).unwrap();
            assert!(x <= 65_535 && y <= 65_535);
            let total = u64::from(x) * u64::from(y);
            assert!(total >= count && total - count < u64::from(y), "{count}");
        }
        let error = fold(65_535 * 65_535 + 1, &limits).unwrap_err().to_string();
        assert!(error.contains("max_compute_workgroups_per_dimension"));
    }
}
