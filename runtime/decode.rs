//! The loop on the device: prompts in, then step after step, each of which feeds
//! the token that it chose to the next.
//!
//! Several steps go into one submission, as many as keep it short, and while one
//! is computed the tokens of the one before are read. A sequence that ends
//! meanwhile is fed padding by the device; what was submitted beyond the end of
//! the last is computed for nothing, and overwritten when the session goes on. So is
//! what was submitted when barriers across a grid failed: the loop begins anew behind
//! the last token that was right, without such barriers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::exec::{Recorder, UNIFORM_SLOTS};
use crate::generate::Generation;
use crate::readback::Staging;
use crate::sampler::{DeviceSampler, check_tokens};
use crate::session::Session;

/// The most steps in a submission.
const MAX_BURST: u64 = 16;

const _: () = assert!(MAX_BURST < UNIFORM_SLOTS, "each step has a uniform block");

/// How long a submission should take: short for who reads along and waits for a
/// stop, long enough for the host to keep up.
const BURST_TIME: Duration = Duration::from_millis(20);

/// The tokens behind which a generation's kernels are compiled, and it is not a short one.
const SETTLED: u64 = 16;

/// A submission whose tokens are not read yet.
struct Flight {
    staging: Staging,
    steps: u64,
    index: Option<wgpu::SubmissionIndex>,
}

impl<'m> Session<'m> {
    /// Runs a generation with `sampler`.
    pub(crate) fn sample_on_device(
        &mut self,
        sampler: &mut DeviceSampler<'m>,
        generation: &mut Generation<'_>,
    ) -> Result<()> {
        while !self.sample_on(sampler, generation)? {
            self.leave_grids();
        }
        Ok(())
    }

    /// Goes on with a generation from where it is; the result is whether it came to
    /// its end, and not to barriers that failed.
    fn sample_on(
        &mut self,
        sampler: &mut DeviceSampler<'m>,
        generation: &mut Generation<'_>,
    ) -> Result<bool> {
        let device = &self.model.device;
        let ids = generation.next_ids();
        let seq = self.check(&ids, generation.start())?;
        // The last token is not fed, so it needs no position.
        let room = self.context() - self.past() - seq + 1;
        let steps = room.min(generation.wanted());
        let prompt_end = self.past() + seq;
        // A software driver has nothing else to do while the host reads.
        let most_in_flight = if device.adapter().is_cpu() { 1 } else { 2 };

        let mut spare = Vec::new();
        let mut flights = VecDeque::new();
        let mut submitted = 0;
        let mut accepted = 0;
        let mut burst = 1;
        let mut last = Instant::now();
        loop {
            while flights.len() < most_in_flight && submitted < steps {
                let count = burst.min(steps - submitted);
                let staging = match spare.pop() {
                    Some(staging) => staging,
                    None => {
                        let state = self.allocation().grid_state_bytes();
                        Staging::new(device, sampler.bytes(MAX_BURST) + state)?
                    }
                };
                let index = device.scoped("a step", || {
                    let mut recorder = Recorder::new(self.model, None);
                    for step in submitted..submitted + count {
                        if step == 0 {
                            sampler.begin(device, generation);
                            let start = generation.start();
                            let cancelled = || generation.is_cancelled();
                            if !self.feed(&mut recorder, &ids, start, cancelled)? {
                                return Ok(None);
                            }
                        } else {
                            self.record_step(&mut recorder, prompt_end + step - 1)?;
                        }
                        sampler.record(&mut recorder);
                    }
                    sampler.read_behind(&mut recorder, &staging, submitted, count);
                    let at = sampler.bytes(count);
                    self.allocation()
                        .copy_grid_state(&mut recorder, &staging, at)?;
                    Result::Ok(Some(recorder.submit()))
                })??;
                let Some(index) = index else {
                    generation.cancel();
                    return Ok(true);
                };
                submitted += count;
                flights.push_back(Flight {
                    staging,
                    steps: count,
                    index,
                });
            }
            let Some(flight) = flights.pop_front() else {
                return Ok(true);
            };
            let bytes = sampler.bytes(flight.steps);
            let tokens = self.read(&flight.staging, bytes, flight.index, |bytes| {
                bytemuck::pod_collect_to_vec::<u8, u32>(bytes)
            })?;
            let Some(tokens) = tokens else {
                return Ok(false);
            };
            spare.push(flight.staging);
            for row in tokens.chunks_exact(self.batch()) {
                check_tokens(generation, row)?;
                self.set_past(prompt_end + accepted);
                accepted += 1;
                if !generation.accept(row) {
                    return Ok(true);
                }
            }
            if accepted >= SETTLED && self.model.pin {
                device.keep_threads_apart();
            }
            let took = std::mem::replace(&mut last, Instant::now()).elapsed();
            if accepted == 1 {
                // That was the prompt.
            } else if took < BURST_TIME / 2 {
                burst = (burst * 4).min(MAX_BURST);
            } else if took > BURST_TIME {
                burst = (burst / 2).max(1);
            }
        }
    }
}
