//! Times of single launches.

use std::time::Instant;

use wgpu::BufferUsages as Usage;

use crate::device::Device;
use crate::dims::Values;
use crate::error::Result;
use crate::exec::LaunchProgram;
use crate::model::Model;
use crate::readback::Staging;

/// What measured a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Clock {
    /// The device's timestamps around the launch.
    Device,
    /// The host's clock around a submission of the launch alone, which adds the
    /// submission's own time.
    #[default]
    Host,
}

/// The launches of a run with their times, in order.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// What measured them.
    pub clock: Clock,
    /// One for each launch.
    pub launches: Vec<LaunchTime>,
}

/// A launch and its time.
#[derive(Clone, Debug)]
pub struct LaunchTime {
    /// What it computed.
    pub label: String,
    /// The kernel's name.
    pub kernel: String,
    /// Workgroups that were launched.
    pub workgroups: u64,
    /// Arithmetic operations.
    pub flops: u64,
    /// Bytes that must move at the least.
    pub bytes: u64,
    /// Nanoseconds since the first launch began.
    pub begin_ns: f64,
    /// Nanoseconds that it took.
    pub ns: f64,
}

/// Launches that one set of queries can time; wgpu allows 4,096 queries.
const CAPACITY: u32 = 2048;

/// Bytes of a launch's two times.
const STAMPS: u64 = 16;

/// Collects times while launches are recorded, each in a pass of its own.
pub(crate) struct Timer {
    launches: Vec<LaunchTime>,
    clock: TimerClock,
}

enum TimerClock {
    Device {
        /// As many as the launches so far need.
        queries: Vec<wgpu::QuerySet>,
    },
    Host {
        origin: Instant,
        begun: Instant,
    },
}

fn query_set(device: &Device) -> Result<wgpu::QuerySet> {
    device.scoped("a query set", || {
        device.inner.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("launch times"),
            ty: wgpu::QueryType::Timestamp,
            count: CAPACITY * 2,
        })
    })
}

impl Timer {
    pub fn new(device: &Device) -> Result<Timer> {
        let now = Instant::now();
        let stamps = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let clock = match stamps {
            true => TimerClock::Device {
                queries: vec![query_set(device)?],
            },
            false => TimerClock::Host {
                origin: now,
                begun: now,
            },
        };
        Ok(Timer {
            launches: Vec::new(),
            clock,
        })
    }

    /// Whether each launch must be waited for.
    pub fn waits(&self) -> bool {
        matches!(self.clock, TimerClock::Host { .. })
    }

    /// Notes the launch that is recorded next; the queries that its pass is to
    /// write, if the device measures.
    pub fn start(
        &mut self,
        model: &Model,
        launch: &LaunchProgram,
        values: &Values,
    ) -> Result<Option<(wgpu::QuerySet, u32)>> {
        let index = self.launches.len() as u32;
        let mut time = LaunchTime {
            label: launch.label.clone(),
            kernel: model.kernels[launch.kernel].name.clone(),
            workgroups: launch.workgroups.eval(values)?,
            flops: launch.flops.eval(values)?,
            bytes: launch.bytes.eval(values)?,
            begin_ns: 0.0,
            ns: 0.0,
        };
        let queries = match &mut self.clock {
            TimerClock::Device { queries } => {
                let set = (index / CAPACITY) as usize;
                if set == queries.len() {
                    queries.push(query_set(&model.device)?);
                }
                Some((queries[set].clone(), index % CAPACITY * 2))
            }
            TimerClock::Host { origin, begun } => {
                *begun = Instant::now();
                time.begin_ns = begun.duration_since(*origin).as_nanos() as f64;
                None
            }
        };
        self.launches.push(time);
        Ok(queries)
    }

    /// Ends a launch that the host measures.
    pub fn stop(&mut self) {
        if let (TimerClock::Host { begun, .. }, Some(time)) =
            (&self.clock, self.launches.last_mut())
        {
            time.ns = begun.elapsed().as_nanos() as f64;
        }
    }

    /// Reads the times, after everything was submitted.
    pub fn finish(mut self, model: &Model) -> Result<Profile> {
        let TimerClock::Device { queries } = &self.clock else {
            return Ok(Profile {
                clock: Clock::Host,
                launches: self.launches,
            });
        };
        let device = &model.device;
        if self.launches.is_empty() {
            return Ok(Profile {
                clock: Clock::Device,
                launches: self.launches,
            });
        }
        let bytes = self.launches.len() as u64 * STAMPS;
        let staging = Staging::new(device, bytes)?;
        let usage = Usage::QUERY_RESOLVE | Usage::COPY_SRC;
        let resolved = device.buffer("launch times", bytes, usage, "profile a shorter run")?;
        let index = device.scoped("the launch times", || {
            let mut encoder = device.inner.create_command_encoder(&Default::default());
            let launches = self.launches.chunks(CAPACITY as usize);
            for (set, (queries, launches)) in (0u64..).zip(queries.iter().zip(launches)) {
                let at = set * u64::from(CAPACITY) * STAMPS;
                encoder.resolve_query_set(queries, 0..launches.len() as u32 * 2, &resolved, at);
            }
            staging.copy(&mut encoder, &resolved, 0, bytes);
            device.queue.submit([encoder.finish()])
        })?;
        let period = f64::from(device.queue.get_timestamp_period());
        let stamps = staging.read(device, bytes, Some(index), |bytes| {
            Ok(bytemuck::pod_collect_to_vec::<u8, u64>(bytes))
        })?;
        let origin = stamps.first().copied().unwrap_or(0);
        for (time, pair) in self.launches.iter_mut().zip(stamps.chunks_exact(2)) {
            time.begin_ns = pair[0].wrapping_sub(origin) as f64 * period;
            time.ns = pair[1].saturating_sub(pair[0]) as f64 * period;
        }
        Ok(Profile {
            clock: Clock::Device,
            launches: self.launches,
        })
    }
}
