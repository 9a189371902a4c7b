//! The way of a model's weights and kernels to the device.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use kiln_ir::plan::{Kernel, WeightBuffer};

use crate::artifact::{Artifact, wrong_size};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::LoadProgress;
use crate::pipelines::{Compiled, Compiler};
use crate::resident::{Bands, Form, Resident};
use crate::sampler;
use crate::trust;

/// What is compiled when a model is loaded.
pub(crate) struct Source<'s> {
    pub name: &'s str,
    pub kernel: &'s Kernel,
    pub text: Cow<'s, str>,
    /// Whether it belongs to the sampler and not to the plan.
    pub samples: bool,
    /// Whether the model cannot be run without it.
    pub needed: bool,
}

/// The plan's kernels, then the sampler's.
pub(crate) fn sources<'s>(
    artifact: &'s Artifact,
    kernels: &BTreeSet<&'s str>,
    needed: &BTreeSet<&str>,
    sampling: &'s [sampler::Source],
) -> Result<Vec<Source<'s>>> {
    let mut out = Vec::new();
    for name in kernels {
        let kernel = artifact.kernel(name)?;
        out.push(Source {
            name,
            kernel,
            text: artifact.text(&kernel.file)?,
            samples: false,
            needed: needed.contains(name),
        });
    }
    out.extend(sampling.iter().map(|source| Source {
        name: &source.name,
        kernel: &source.kernel,
        text: Cow::Borrowed(&source.text),
        samples: true,
        needed: true,
    }));
    Ok(out)
}

/// The largest piece of a weight that is staged at a time. Two of them share one of
/// the blocks that small buffers have.
const UPLOAD_PIECE: usize = 2 << 20;

/// The stack of threads that compile kernels: naga recurses; unoptimised it needs more
/// than the usual 2 MiB.
pub(crate) const COMPILER_STACK: usize = 16 << 20;

pub(crate) struct Loader<'a> {
    pub device: &'a Device,
    pub artifact: &'a Artifact,
    pub sources: &'a [Source<'a>],
    /// For the plan's kernels and for the sampler's.
    pub compilers: [&'a Compiler<'a>; 2],
    pub weights: &'a BTreeSet<(usize, Form)>,
}

/// The weights, and the kernels by source, without those that the driver refused and
/// that are not needed.
pub(crate) type Loaded = (Weights, Vec<Option<Compiled>>);

/// Weights by their place in the plan.
pub(crate) type Weights = BTreeMap<(usize, Form), Resident>;

/// What has been loaded so far.
struct Gather<'p> {
    state: LoadProgress,
    sources: &'p [Source<'p>],
    compiled: Vec<Option<Compiled>>,
    progress: &'p mut dyn FnMut(LoadProgress),
}

impl Gather<'_> {
    fn kernel(&mut self, index: usize, outcome: Result<Compiled>) -> Result<()> {
        self.compiled[index] = match outcome {
            Err(error) if !self.sources[index].needed && trust::is_verdict(&error) => None,
            outcome => Some(outcome?),
        };
        self.state.kernels += 1;
        (self.progress)(self.state);
        Ok(())
    }

    fn uploaded(&mut self, bytes: u64) {
        self.state.weight_bytes += bytes;
        (self.progress)(self.state);
    }
}

impl Loader<'_> {
    pub fn run(&self, progress: &mut dyn FnMut(LoadProgress)) -> Result<Loaded> {
        let sizes = self.weights.iter().map(|(i, _)| self.weight(*i).bytes);
        let state = LoadProgress {
            weight_bytes_total: sizes.sum(),
            kernels_total: self.sources.len(),
            ..LoadProgress::default()
        };
        progress(state);
        let mut gather = Gather {
            state,
            sources: self.sources,
            compiled: self.sources.iter().map(|_| None).collect(),
            progress,
        };
        let uploaded = if self.device.creates_in_parallel() {
            self.side_by_side(&mut gather)?
        } else {
            for (index, source) in self.sources.iter().enumerate() {
                gather.kernel(index, self.compile(source))?;
            }
            self.upload(&mut |bytes| {
                gather.uploaded(bytes);
                Ok(())
            })?
        };
        match gather.state.kernels == self.sources.len() {
            true => Ok((uploaded, gather.compiled)),
            false => Err(Error::other("a thread that compiles kernels ended early")),
        }
    }

    /// Compiles kernels on threads of their own while this one uploads weights.
    fn side_by_side(&self, gather: &mut Gather<'_>) -> Result<Weights> {
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel::<(usize, Result<Compiled>)>();
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let workers = workers.min(self.sources.len()).min(16);
        thread::scope(|scope| {
            let mut started = 0;
            for _ in 0..workers {
                let (next, sender) = (&next, sender.clone());
                let work = move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(source) = self.sources.get(index) else {
                            return;
                        };
                        let outcome = self.compile(source);
                        if sender.send((index, outcome)).is_err() {
                            return;
                        }
                    }
                };
                let builder = thread::Builder::new().stack_size(COMPILER_STACK);
                started += usize::from(builder.spawn_scoped(scope, work).is_ok());
            }
            drop(sender);
            if started == 0 && !self.sources.is_empty() {
                return Err(Error::other("no thread could be started"));
            }
            let outcome = self
                .upload(&mut |bytes| {
                    gather.uploaded(bytes);
                    let mut ready = receiver.try_iter();
                    ready.try_for_each(|(i, k)| gather.kernel(i, k))
                })
                .and_then(|uploaded| {
                    let mut rest = receiver.iter();
                    rest.try_for_each(|(i, k)| gather.kernel(i, k))?;
                    Ok(uploaded)
                });
            // After a failure the threads have nothing left to do.
            next.store(self.sources.len(), Ordering::Relaxed);
            outcome
        })
    }

    fn weight(&self, index: usize) -> &WeightBuffer {
        &self.artifact.plan().weights[index]
    }

    fn compile(&self, source: &Source<'_>) -> Result<Compiled> {
        let compiler = self.compilers[usize::from(source.samples)];
        compiler.compile(source.name, source.kernel, &source.text)
    }

    /// How a weight becomes an image, if it is a matrix.
    fn bands(&self, index: usize) -> Result<Option<Bands>> {
        let Some(matrix) = self.weight(index).matrix() else {
            return Ok(None);
        };
        let mut scales = Vec::new();
        if let Some(index) = self.artifact.plan().scales_of(index) {
            let weight = self.weight(index);
            self.artifact.weights().visit(&weight.name, &mut |piece| {
                scales.extend_from_slice(piece);
                Ok(())
            })?;
            let found = scales.len() as u64;
            if found != weight.bytes {
                return Err(wrong_size(&weight.name, found, weight.bytes));
            }
        }
        Ok(Some(Bands::new(matrix, scales)))
    }

    /// Uploads in pieces, with two in flight at most, so that the host never
    /// holds more than those besides the source's own.
    fn upload(&self, uploaded: &mut dyn FnMut(u64) -> Result<()>) -> Result<Weights> {
        const ADVICE: &str = "choose a smaller --dtype, or compile with smaller bindings";
        let mut out = Weights::new();
        let mut previous = None;
        for &(index, form) in self.weights {
            let weight = self.weight(index);
            let (device, name) = (self.device, &weight.name);
            let (resident, bands) = match form {
                Form::Buffer => (
                    Resident::new(device, name, weight.bytes, form, ADVICE)?,
                    None,
                ),
                Form::Image => {
                    let image = Resident::image(device, name, weight.image(), ADVICE)?;
                    (image, self.bands(index)?)
                }
            };
            let queue = &self.device.queue;
            let mut filling = resident.filling(queue, bands);
            let mut done: u64 = 0;
            let source = self.artifact.weights();
            source.visit(&weight.name, &mut |bytes| {
                for piece in bytes.chunks(UPLOAD_PIECE) {
                    done += piece.len() as u64;
                    if done > weight.bytes || piece.len() % 4 != 0 {
                        return Err(wrong_size(&weight.name, done, weight.bytes));
                    }
                    let what = format!("the upload of `{}`", weight.name);
                    let index = self.device.scoped(&what, || {
                        filling.push(piece);
                        if done == weight.bytes {
                            filling.finish();
                        }
                        queue.submit([])
                    })?;
                    if let Some(previous) = previous.replace(index) {
                        self.device.wait(&what, Some(previous))?;
                    }
                    uploaded(piece.len() as u64)?;
                }
                Ok(())
            })?;
            if done != weight.bytes {
                return Err(wrong_size(&weight.name, done, weight.bytes));
            }
            out.insert((index, form), resident);
        }
        self.device.wait("the weights", None)?;
        Ok(out)
    }
}
