//! An open device, with every failure turned into an [`Error`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_ir::plan::ImageSize;
use wgpu::{ErrorFilter, Features, Limits};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::threads::Threads;

/// A device and its queue.
///
/// All failures of wgpu end in [`Error`]s: those of creation and encoding are
/// caught by error scopes, what arrives later is kept and returned by the next
/// wait.
#[derive(Debug)]
pub struct Device {
    pub(crate) inner: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    adapter: Adapter,
    features: Features,
    limits: Limits,
    late: Arc<Mutex<Late>>,
}

/// Errors that arrived outside a scope.
#[derive(Debug, Default)]
struct Late {
    lost: Option<String>,
    error: Option<wgpu::Error>,
}

/// The format of images.
pub(crate) const TEXEL_FORMAT: wgpu::TextureFormat = wgpu::TextureFormat::Rgba32Uint;

/// Bytes of the blocks that small buffers share; the least that wgpu takes.
const BLOCK_BYTES: u64 = 4 << 20;

/// Features that are used wherever they are offered.
fn optional_features() -> Features {
    Features::TIMESTAMP_QUERY | Features::PIPELINE_CACHE
}

impl Device {
    /// Opens `adapter` with exactly its limits and with `features`, of which it
    /// must have all, and timestamps and a pipeline cache where it has them.
    ///
    /// # Errors
    /// [`Error::Open`] when the driver refuses.
    pub fn open(adapter: &Adapter, features: Features) -> Result<Device> {
        let features = features | (optional_features() & adapter.features());
        let experimental = features.intersects(Features::all_experimental_mask());
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("kiln"),
            required_features: features,
            required_limits: adapter.limits(),
            experimental_features: if experimental {
                // SAFETY: a tier asked for it by name. Its kernels come from a
                // compiler that validated them, and pass a parity test before
                // they are trusted.
                unsafe { wgpu::ExperimentalFeatures::enabled() }
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
            // Weights, states and buffers are few and large: each has its own memory,
            // since blocks that they share would be rounded up by a fifth.
            memory_hints: wgpu::MemoryHints::Manual {
                suballocated_device_memory_block_size: BLOCK_BYTES..BLOCK_BYTES,
            },
            trace: wgpu::Trace::Off,
        };
        let open = || pollster::block_on(adapter.inner.request_device(&descriptor));
        let opened = match adapter.is_cpu() {
            true => {
                let (opened, threads) = Threads::of(open);
                // Those that run workgroups are started with the first device.
                if opened.is_ok() {
                    let _ = adapter.threads.set(threads);
                }
                opened
            }
            false => open(),
        };
        let (inner, queue) = opened.map_err(|e| Error::Open {
            adapter: adapter.to_string(),
            reason: e.to_string(),
        })?;
        let late = Arc::new(Mutex::new(Late::default()));
        let sink = Arc::clone(&late);
        inner.on_uncaptured_error(Arc::new(move |error| {
            lock(&sink).error.get_or_insert(error);
        }));
        let sink = Arc::clone(&late);
        inner.set_device_lost_callback(move |_, message| {
            lock(&sink).lost.get_or_insert(message);
        });
        Ok(Device {
            inner,
            queue,
            adapter: adapter.clone(),
            features,
            limits: adapter.limits(),
            late,
        })
    }

    /// The adapter it was opened on.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The features that were asked for.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Keeps the threads of a driver that computes on the processors apart, from when a
    /// device is known to be used for long.
    pub(crate) fn keep_threads_apart(&self) {
        if let Some(threads) = self.adapter.threads.get() {
            threads.spread();
        }
    }

    /// Whether several threads may create pipelines at once. OpenGL has one
    /// context, whose lock wgpu waits for six seconds and then panics.
    pub(crate) fn creates_in_parallel(&self) -> bool {
        self.adapter.info.backend != wgpu::Backend::Gl
    }

    /// The most positions of a session that it computes. llvmpipe ends loops, without an error,
    /// when those of an invocation have run 65,535 rounds together (shaders/MEASUREMENTS.md,
    /// "The end of loops"), and attention on a CPU goes once round for each key.
    pub(crate) fn most_positions(&self) -> u64 {
        match self.adapter.is_cpu() {
            true => 65_000,
            false => u64::MAX,
        }
    }

    /// How much arithmetic one submission may hold, so that no driver's watchdog
    /// (seconds) is met: a tenth of a second on a slow device of its kind.
    pub(crate) fn submission_flops(&self) -> u64 {
        match self.adapter.info.device_type {
            wgpu::DeviceType::DiscreteGpu => 200_000_000_000,
            wgpu::DeviceType::Cpu => 10_000_000_000,
            _ => 20_000_000_000,
        }
    }

    /// Runs `f` with every error of this thread's wgpu calls caught.
    pub(crate) fn scoped<T>(&self, what: &str, f: impl FnOnce() -> T) -> Result<T> {
        let memory = self.inner.push_error_scope(ErrorFilter::OutOfMemory);
        let validation = self.inner.push_error_scope(ErrorFilter::Validation);
        let internal = self.inner.push_error_scope(ErrorFilter::Internal);
        let out = f();
        let internal = pollster::block_on(internal.pop());
        let validation = pollster::block_on(validation.pop());
        let memory = pollster::block_on(memory.pop());
        match memory.or(validation).or(internal) {
            Some(error) => Err(typed(what, &error)),
            None => self.check(what).map(|()| out),
        }
    }

    /// The first error that arrived outside a scope since the last call.
    pub(crate) fn check(&self, what: &str) -> Result<()> {
        let mut late = lock(&self.late);
        if let Some(reason) = &late.lost {
            let reason = reason.clone();
            return Err(Error::DeviceLost { reason });
        }
        match late.error.take() {
            Some(error) => Err(typed(what, &error)),
            None => Ok(()),
        }
    }

    /// Waits for a submission, or for all.
    pub(crate) fn wait(&self, what: &str, on: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.check(what)?;
        let wait = || {
            self.inner.poll(wgpu::PollType::Wait {
                submission_index: on.clone(),
                timeout: None,
            })
        };
        let outcome = loop {
            // wgpu 30 panics in `poll` when the device is lost during the wait; there
            // is no other way to wait.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(wait));
            self.check(what)?;
            // OpenGL ends a wait after some two seconds, whatever it was asked for.
            if !matches!(outcome, Ok(Err(wgpu::PollError::Timeout))) {
                break outcome;
            }
        };
        if self.adapter.info.backend == wgpu::Backend::Dx12 {
            // All that was submitted counts as done when a device is removed; the next
            // submission is what tells.
            self.queue.submit([]);
            self.check(what)?;
        }
        match outcome {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(Error::Refused {
                what: what.to_owned(),
                message: e.to_string(),
            }),
            Err(_) => Err(Error::DeviceLost {
                reason: format!("while waiting for {what}"),
            }),
        }
    }

    /// A buffer of at least `bytes`, zeroed, after checking the limits.
    pub(crate) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        advice: &'static str,
    ) -> Result<wgpu::Buffer> {
        let size = bytes.next_multiple_of(16).max(16);
        let limit = |limit, offered| Error::Limit {
            what: format!("`{label}`"),
            limit,
            wanted: size,
            offered,
            advice,
        };
        if size > self.limits.max_buffer_size {
            return Err(limit("max_buffer_size", self.limits.max_buffer_size));
        }
        let storage = self.limits.max_storage_buffer_binding_size;
        if usage.contains(wgpu::BufferUsages::STORAGE) && size > storage {
            return Err(limit("max_storage_buffer_binding_size", storage));
        }
        self.scoped(&format!("the buffer `{label}` of {size} bytes"), || {
            self.inner.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        })
    }

    /// Bytes that are read and written a second when the driver copies a buffer of 32 MiB,
    /// the best of several tries by the host's clock: what memory is good for at least.
    ///
    /// # Errors
    /// When memory runs out or the device is lost.
    pub fn copy_rate(&self) -> Result<f64> {
        const BYTES: u64 = 32 << 20;
        const TRIES: usize = 5;
        /// What starting and waiting take is little beside this.
        const LONG: Duration = Duration::from_millis(20);
        let what = "a measured copy";
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let [from, to] =
            [0, 1].map(|_| self.buffer(what, BYTES, usage, "measure on another device"));
        let (from, to) = (from?, to?);
        let run = |copies: u32| {
            let clock = Instant::now();
            let index = self.scoped(what, || {
                let mut encoder = self.inner.create_command_encoder(&Default::default());
                for _ in 0..copies {
                    encoder.copy_buffer_to_buffer(&from, 0, &to, 0, BYTES);
                }
                self.queue.submit([encoder.finish()])
            })?;
            self.wait(what, Some(index))?;
            Result::Ok(clock.elapsed())
        };
        run(1)?;
        let mut copies = 1;
        while copies < 1 << 12 && run(copies)? < LONG {
            copies *= 2;
        }
        let mut best = f64::INFINITY;
        for _ in 0..TRIES {
            best = best.min(run(copies)?.as_secs_f64());
        }
        Ok((2 * BYTES * u64::from(copies)) as f64 / best.max(1e-9))
    }

    /// An image of at least this size, zeroed, after checking the limits; see
    /// [`Access::Texels`](kiln_ir::plan::Access::Texels).
    pub(crate) fn image(
        &self,
        label: &str,
        size: ImageSize,
        usage: wgpu::TextureUsages,
        advice: &'static str,
    ) -> Result<wgpu::Texture> {
        let most = self.limits.max_texture_dimension_2d;
        let wanted = size.down.max(size.across);
        if wanted > most.into() {
            return Err(Error::Limit {
                what: format!("`{label}`"),
                limit: "max_texture_dimension_2d",
                wanted,
                offered: most.into(),
                advice,
            });
        }
        let what = format!(
            "the texture `{label}` of {} by {} texels",
            size.across, size.down
        );
        self.scoped(&what, || {
            self.inner.create_texture(&wgpu::TextureDescriptor {
                label: Some(label),
                size: wgpu::Extent3d {
                    width: uneven_length(size.across, most),
                    height: uneven_length(size.down, most),
                    depth_or_array_layers: 1,
                },
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: TEXEL_FORMAT,
                usage,
                view_formats: &[],
            })
        })
    }
}

/// The texels across or down of an image that holds so many, of `most` that one can have.
///
/// llvmpipe compiles a kernel anew where another of its images has a power of two of them,
/// so none has, which the largest alone cannot avoid.
fn uneven_length(texels: u64, most: u32) -> u32 {
    let texels = texels.max(1) as u32;
    match texels.is_power_of_two() {
        true => (texels | 1).max(3).min(most),
        false => texels,
    }
}

fn lock(late: &Mutex<Late>) -> MutexGuard<'_, Late> {
    late.lock().unwrap_or_else(PoisonError::into_inner)
}

fn typed(what: &str, error: &wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory {
            what: what.to_owned(),
        },
        other => Error::Refused {
            what: what.to_owned(),
            message: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(backend: &str) -> Device {
        let adapter = Adapter::select(Some(backend));
        let adapter = adapter.expect("this test needs an adapter: install mesa-vulkan-drivers");
        Device::open(&adapter, Features::empty()).unwrap()
    }

    #[test]
    fn a_lost_device_is_an_error_and_no_panic() {
        for backend in ["vulkan", "gl"] {
            let device = open(backend);
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
            let buffer = device.buffer("x", 64, usage, "").unwrap();
            device.inner.destroy();
            let waited = device.wait("the end", None).err();
            let again = device.buffer("y", 64, usage, "").err();
            let staging = crate::readback::Staging::new(&device, 16).err();
            drop(buffer);
            for error in [waited, again, staging] {
                let lost = matches!(error, Some(Error::DeviceLost { .. }));
                assert!(lost, "{backend}: {error:?}");
            }
        }
    }

    #[test]
    fn a_copy_has_a_rate() {
        for backend in ["vulkan", "gl"] {
            let rate = open(backend).copy_rate().unwrap();
            // From a laptop's disk to ten times the fastest card.
            assert!((1e8..1e14).contains(&rate), "{backend}: {rate}");
        }
    }

    #[test]
    fn errors_inside_and_outside_a_scope_are_returned() {
        let device = open("vulkan");
        let bad = || {
            device.inner.create_buffer(&wgpu::BufferDescriptor {
                label: Some("bad"),
                size: 64,
                usage: wgpu::BufferUsages::empty(),
                mapped_at_creation: false,
            })
        };
        let inside = device.scoped("a bad buffer", bad).unwrap_err().to_string();
        assert!(inside.starts_with("a bad buffer was refused: "), "{inside}");
        drop(bad());
        let late = device.wait("the rest", None).unwrap_err().to_string();
        assert!(late.starts_with("the rest was refused: "), "{late}");
        assert!(device.wait("the rest", None).is_ok());
    }
}
