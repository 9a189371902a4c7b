//! Kernels compiled for a driver's cache before a model is loaded.
//!
//! A software Vulkan driver makes a kernel's machine code at its first launch, on the one
//! thread of the queue, and may keep it on disk. There a model's kernels go to several
//! devices first, which launch no workgroups of them: every processor compiles, and the
//! model's own device finds what they made.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use kiln_ir::plan::{TEXEL_BYTES, TEXELS_IN_ROW};
use wgpu::BufferUsages as Usage;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::load::{COMPILER_STACK, Source};
use crate::pipelines::{Compiled, Compiler, write_whole};
use crate::resident::{Form, Resident};

/// Bytes of what stands in for anything that a kernel binds: more than any needs.
const STAND_IN_BYTES: u64 = TEXEL_BYTES * TEXELS_IN_ROW;

/// The most devices that compile.
const MOST_DEVICES: usize = 8;

/// How many times as long compiling a kernel takes as finding it, at least.
const COLD: u32 = 4;

const ADVICE: &str = "choose another device";

/// How a model's kernels are compiled.
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub checked: bool,
    /// Bytes of the uniform block of the plan's kernels, and of the sampler's.
    pub uniform_bytes: [u64; 2],
}

/// Has these kernels compiled on devices like `like`, if that fills a cache which does not
/// have them yet; `done` is told how many are ready, after each. A file in the folder `marks`,
/// if there is one, says for later which are there.
///
/// Nothing but time depends on it, so the first failure ends it: what is wrong with a
/// kernel is said where it is loaded.
pub(crate) fn compile(
    like: &Device,
    how: How,
    sources: &[&Source<'_>],
    marks: Option<&Path>,
    done: &mut dyn FnMut(usize),
) {
    // Other drivers compile when a pipeline is made, which loading does side by side.
    if !like.adapter().is_cpu() || !like.creates_in_parallel() {
        return;
    }
    let marks = marks.map(|folder| Marks(folder.join(file_of_marks(like, how))));
    let there = marks.as_ref().map(Marks::read).unwrap_or_default();
    let is_new = |source: &&Source<'_>| !there.contains(&mark(source));
    let new: Vec<&Source<'_>> = sources.iter().copied().filter(is_new).collect();
    if new.is_empty() {
        return;
    }
    if let (Ok(()), Some(marks)) = (fill(like, how, &new, done), marks) {
        marks.add(new.iter().map(|source| mark(source)));
    }
}

/// The file that says which kernels a driver's cache has, a line for each.
struct Marks(PathBuf);

impl Marks {
    fn read(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Adds these to what is there by now. If that fails they are compiled once more.
    fn add(&self, new: impl Iterator<Item = String>) {
        let mut all = self.read();
        all.extend(new);
        let mut text: String = all.into_iter().collect::<Vec<_>>().join("\n");
        text.push('\n');
        write_whole(&self.0, text.as_bytes());
    }
}

/// The name of the file for a driver.
fn file_of_marks(like: &Device, how: How) -> String {
    let info = like.adapter().info();
    let mut hasher = blake3::Hasher::new();
    for text in [&info.name, &info.driver, &info.driver_info] {
        hasher.update(blake3::hash(text.as_bytes()).as_bytes());
    }
    hasher.update(&[u8::from(how.checked)]);
    format!("{}.ahead", &hasher.finalize().to_hex()[..32])
}

/// What a kernel is called there.
fn mark(source: &Source<'_>) -> String {
    blake3::hash(source.text.as_bytes()).to_hex()[..32].to_owned()
}

fn fill(
    like: &Device,
    how: How,
    sources: &[&Source<'_>],
    done: &mut dyn FnMut(usize),
) -> Result<()> {
    let mut sources = sources.to_vec();
    sources.sort_by_key(|source| Reverse(source.text.len()));
    // What the first kernel of a device takes says little; and caches are written behind
    // a launch, so that the second has some time until it is asked for. Small kernels are
    // those of many models, so one of middle size says whether this one's are there.
    let Some(first) = sources.pop() else {
        return Ok(());
    };
    let middle = sources.len() / 2;
    let Some(second) = sources.get(middle).copied() else {
        return Ok(());
    };
    sources.remove(middle);
    let try_out = || {
        let bench = Bench::new(like, how)?;
        bench.compile(first)?;
        let took = bench.compile(second)?;
        Result::Ok((bench, took))
    };
    let ((one, before), (other, behind)) = (try_out()?, try_out()?);
    if before < COLD * behind {
        // There is no cache, or it has the kernels.
        return Ok(());
    }
    let mut ready = 2;
    done(ready);

    let mut benches = vec![one, other];
    let devices = thread::available_parallelism().map_or(1, NonZero::get);
    let devices = devices.min(MOST_DEVICES).min(sources.len());
    while benches.len() < devices {
        benches.push(Bench::new(like, how)?);
    }
    let left = Mutex::new(sources.into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for bench in benches.iter().take(devices) {
            let (next, sender) = (&next, sender.clone());
            let work = move || {
                while let Some(source) = next() {
                    if bench.compile(source).is_err() || sender.send(()).is_err() {
                        return;
                    }
                }
            };
            let builder = thread::Builder::new().stack_size(COMPILER_STACK);
            builder.spawn_scoped(scope, work).map_err(Error::other)?;
        }
        drop(sender);
        for () in receiver {
            ready += 1;
            done(ready);
        }
        Ok(())
    })
}

/// A device that has kernels compiled by launching nothing of them.
struct Bench {
    device: Device,
    how: How,
    uniform: wgpu::Buffer,
}

impl Bench {
    fn new(like: &Device, how: How) -> Result<Self> {
        let device = Device::open(&like.adapter().apart()?, like.features())?;
        let bytes = how.uniform_bytes.into_iter().max().unwrap_or_default();
        let usage = Usage::UNIFORM | Usage::COPY_DST;
        let uniform = device.buffer("stand-in", bytes, usage, ADVICE)?;
        // lavapipe puts the values of uniforms into a kernel where much of it becomes dead
        // by that. With zeros whole kernels do; with ones they are as with any sizes.
        let ones = vec![1u32; (bytes / 4) as usize];
        device
            .queue
            .write_buffer(&uniform, 0, bytemuck::cast_slice(&ones));
        Ok(Bench {
            device,
            how,
            uniform,
        })
    }

    /// How long the driver takes until a launch of the kernel is done.
    fn compile(&self, source: &Source<'_>) -> Result<Duration> {
        let uniform_bytes = self.how.uniform_bytes[usize::from(source.samples)];
        let compiler = Compiler::new(&self.device, uniform_bytes, self.how.checked, None);
        let compiled = compiler.compile(source.name, source.kernel, &source.text)?;
        let launch = self.launch(source, &compiled, uniform_bytes)?;
        let clock = Instant::now();
        let index = self.device.queue.submit([launch]);
        self.device.wait(source.name, Some(index))?;
        Ok(clock.elapsed())
    }

    /// A launch of no workgroups.
    fn launch(
        &self,
        source: &Source<'_>,
        compiled: &Compiled,
        uniform_bytes: u64,
    ) -> Result<wgpu::CommandBuffer> {
        let mut stand_ins = Vec::new();
        for access in &source.kernel.bindings {
            let form = Form::from(*access);
            let stand_in = Resident::new(&self.device, "stand-in", STAND_IN_BYTES, form, ADVICE)?;
            stand_ins.push(stand_in);
        }
        let device = &self.device.inner;
        self.device.scoped(source.name, || {
            let uniform = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &self.uniform,
                offset: 0,
                size: wgpu::BufferSize::new(uniform_bytes),
            });
            let others = stand_ins.iter().map(Resident::binding);
            let entries = (0..).zip(std::iter::once(uniform).chain(others));
            let entries =
                entries.map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource });
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(source.name),
                layout: &compiled.layout,
                entries: &entries.collect::<Vec<_>>(),
            });
            let mut encoder = device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&compiled.pipeline);
                pass.set_bind_group(0, &group, &[0]);
                pass.dispatch_workgroups(0, 1, 1);
            }
            encoder.finish()
        })
    }
}
