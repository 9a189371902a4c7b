//! Sessions: the entry `step` with states that are kept between calls.

use kiln_ir::Bindings;
use kiln_ir::plan::{BATCH, CONTEXT, PAST, SEQ};

use crate::dims::Values;
use crate::error::{Error, Result};
use crate::exec::{Allocation, Program, Recorder, has_stalled};
use crate::generate::{Decoder, Generation, check_rewind, sample_on_host};
use crate::model::Model;
use crate::profile::{Profile, Timer};
use crate::readback::Staging;
use crate::sampler::DeviceSampler;
use crate::sizes::longest_piece;

/// The entry that runs with states.
pub(crate) const STEP: &str = "step";

/// A batch of sequences that grow together.
///
/// All states and buffers are allocated when the session is made. Sequences end
/// at the same position: shorter ones are padded on the left, and `start` tells
/// how many of a sequence's first tokens are padding.
pub struct Session<'m> {
    pub(crate) model: &'m Model,
    program: &'m Program,
    allocation: Allocation,
    staging: Staging,
    batch: usize,
    context: u64,
    /// Positions taken.
    past: u64,
    /// The most tokens of a sequence that one piece takes.
    piece: u64,
    /// Bytes of the output.
    output_bytes: u64,
    /// Made for the first generation, if the model's tokens can be chosen on the
    /// device.
    sampler: Option<DeviceSampler<'m>>,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("batch", &self.batch)
            .field("context", &self.context)
            .field("past", &self.past)
            .finish_non_exhaustive()
    }
}

impl<'m> Session<'m> {
    /// Allocates a session for `batch` sequences of at most `context` positions,
    /// padding included; on a CPU driver of at most 65,000, for it would end the loops over
    /// more. [`Session::context`] tells.
    ///
    /// # Errors
    /// When either is zero or over the artifact's maximum, or the device's limits
    /// or memory do not suffice.
    pub fn new(model: &'m Model, batch: usize, context: u64) -> Result<Self> {
        let program = model.program(STEP)?;
        let max = model.plan.model.max_context;
        if context == 0 || context > max {
            return Err(Error::Size {
                symbol: CONTEXT.to_owned(),
                value: context,
                least: 1,
                max,
                advice: "compile the model with a larger --max-context",
            });
        }
        let context = context.min(model.device.most_positions());
        if batch == 0 {
            return Err(Error::Ids("a session has at least one sequence".to_owned()));
        }
        let batch_symbol = Bindings::new().with(BATCH, batch as u64);
        let mut capacity = model.values(program, &batch_symbol)?;
        let slots = &model.slots;
        capacity.set(slots, CONTEXT, context);

        let most = program.maxima.get(SEQ).copied().unwrap_or(1).min(context);
        let longest = model.sessions.iter().map(|s| s.prompt).max();
        let most = longest.map_or(most, |longest| most.min(longest.max(1)));
        let piece = longest_piece(batch as u64, most, program.rows, |seq| {
            capacity.set(slots, SEQ, seq);
            Ok(program.variant(&capacity).is_ok())
        })?;
        capacity.set(slots, SEQ, piece);
        let loaded_for = model.sessions.iter().map(|s| s.batch).max();
        program
            .variant(&capacity)
            .map_err(|error| match (error, loaded_for) {
                (error @ Error::Slice { .. }, _) | (error, None) => error,
                (_, Some(max)) => Error::Size {
                    symbol: BATCH.to_owned(),
                    value: batch as u64,
                    least: 1,
                    max,
                    advice: "load the model for sessions of this size",
                },
            })?;
        capacity.set(slots, PAST, context - 1);

        let [output, ..] = program.outputs.as_slice() else {
            return Err(Error::plan("`step` has no output"));
        };
        if program.variants.iter().any(|v| !v.streams.is_empty()) {
            return Err(Error::plan("`step` has a stream"));
        }
        let output_bytes = output.bytes(&capacity)?;
        let allocation = Allocation::new(model, program, &capacity)?;
        let staged = output_bytes + allocation.grid_state_bytes();
        Ok(Session {
            staging: Staging::new(&model.device, staged)?,
            allocation,
            model,
            program,
            batch,
            context,
            past: 0,
            piece,
            output_bytes,
            sampler: None,
        })
    }

    /// The number of sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The capacity in positions.
    pub fn context(&self) -> u64 {
        self.context
    }

    /// The positions taken.
    pub fn past(&self) -> u64 {
        self.past
    }

    /// Whether single tokens run kernels of a layer in one launch: no more once one
    /// failed. On a GPU its workgroups have to run at the same time, and wait for each
    /// other in vain when other work takes the device; a CPU driver may end its loops
    /// early. What was lost is computed again, in launches of their own.
    pub fn joins(&self) -> bool {
        self.allocation.has_grid()
    }

    /// Forgets everything; the states' memory is kept.
    pub fn reset(&mut self) {
        self.past = 0;
    }

    /// Forgets every position from `past` on; the states' memory is kept.
    ///
    /// # Errors
    /// When fewer positions are taken.
    pub fn rewind(&mut self, past: u64) -> Result<()> {
        check_rewind(self.past, past)?;
        self.past = past;
        Ok(())
    }

    /// Appends tokens to every sequence. `ids` holds the same number for each
    /// sequence, one sequence after the other; `start` the number of padding
    /// tokens with which each sequence began. A prompt longer than the artifact's
    /// largest step is run in pieces.
    ///
    /// The result is the output of each sequence's last position, one after the
    /// other: logits, or hidden states for a model without a head.
    ///
    /// # Errors
    /// When the ids are no batch, the context is full, or the device fails. The
    /// session is then as before.
    pub fn step(&mut self, ids: &[u32], start: &[u32]) -> Result<Vec<f32>> {
        let (out, _) = self.sure_step(ids, start, || Ok(None))?;
        Ok(out)
    }

    /// [`Session::step`] with each launch timed.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn profile_step(&mut self, ids: &[u32], start: &[u32]) -> Result<Profile> {
        let model = self.model;
        let timer = || Timer::new(&model.device).map(Some);
        match self.sure_step(ids, start, timer)? {
            (_, Some(timer)) => timer.finish(model),
            _ => Ok(Profile::default()),
        }
    }

    /// A step, and once more if its barriers failed.
    fn sure_step(
        &mut self,
        ids: &[u32],
        start: &[u32],
        timer: impl Fn() -> Result<Option<Timer>>,
    ) -> Result<(Vec<f32>, Option<Timer>)> {
        let device = &self.model.device;
        loop {
            let timer = timer()?;
            let step = || self.timed_step(ids, start, timer);
            if let Some(done) = device.scoped("a step", step)?? {
                return Ok(done);
            }
            self.leave_grids();
        }
    }

    /// Runs no more variants with a grid.
    pub(crate) fn leave_grids(&mut self) {
        self.allocation.leave_grid();
    }

    pub(crate) fn set_past(&mut self, past: u64) {
        self.past = past;
    }

    pub(crate) fn check(&self, ids: &[u32], start: &[u32]) -> Result<u64> {
        let batch = self.batch;
        if ids.is_empty() || !ids.len().is_multiple_of(batch) {
            return Err(Error::Ids(format!(
                "{} token ids are no batch of {batch} sequences of one length",
                ids.len()
            )));
        }
        let seq = (ids.len() / batch) as u64;
        for (sequence, row) in ids.chunks(seq as usize).enumerate() {
            self.model.check_ids(sequence, row)?;
        }
        if start.len() != batch {
            return Err(Error::Ids(format!(
                "{} start positions for {batch} sequences",
                start.len()
            )));
        }
        if self.past + seq > self.context {
            return Err(Error::ContextFull {
                context: self.context,
                past: self.past,
                wanted: seq,
            });
        }
        let all = self.past + seq;
        match start.iter().position(|s| u64::from(*s) >= all) {
            Some(sequence) => Err(Error::Ids(format!(
                "sequence {sequence} starts at {}, beyond its {all} tokens",
                start[sequence]
            ))),
            None => Ok(seq),
        }
    }

    /// A step; nothing if its barriers failed.
    fn timed_step(
        &mut self,
        ids: &[u32],
        start: &[u32],
        timer: Option<Timer>,
    ) -> Result<Option<(Vec<f32>, Option<Timer>)>> {
        let seq = self.check(ids, start)?;
        let mut recorder = Recorder::new(self.model, timer);
        self.feed(&mut recorder, ids, start, || false)?;
        let output = self.allocation.buffer(self.program.outputs[0].buffer)?;
        let bytes = self.output_bytes;
        self.staging.copy(recorder.encoder(), output, 0, bytes);
        self.allocation
            .copy_grid_state(&mut recorder, &self.staging, bytes)?;
        let index = recorder.submit();
        let mut out = vec![0f32; (bytes / 4) as usize];
        let read = self.read(&self.staging, bytes, index, |bytes| {
            bytemuck::cast_slice_mut(&mut out).copy_from_slice(bytes);
        })?;
        if read.is_none() {
            return Ok(None);
        }
        self.past += seq;
        Ok(Some((out, recorder.into_timer())))
    }

    /// The buffers that steps run in.
    pub(crate) fn allocation(&self) -> &Allocation {
        &self.allocation
    }

    /// Gives `bytes` that were read back to `f`; nothing if the state of a grid's
    /// barriers that stands behind them says that they are worth nothing.
    pub(crate) fn read<T>(
        &self,
        staging: &Staging,
        bytes: u64,
        on: Option<wgpu::SubmissionIndex>,
        f: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>> {
        let all = bytes + self.allocation.grid_state_bytes();
        staging.read(&self.model.device, all, on, |all| {
            let (results, state) = all.split_at(bytes as usize);
            Ok((!has_stalled(state)).then(|| f(results)))
        })
    }

    /// Records the launches for checked tokens. All pieces but the last are
    /// submitted. `cancelled` is asked before each; where it says so no more are, and the
    /// result is false.
    pub(crate) fn feed(
        &mut self,
        recorder: &mut Recorder<'_>,
        ids: &[u32],
        start: &[u32],
        mut cancelled: impl FnMut() -> bool,
    ) -> Result<bool> {
        let seq = ids.len() / self.batch;
        let mut before = None;
        let mut done = 0;
        while !cancelled() {
            let len = (seq - done).min(self.piece as usize);
            let rows = ids.chunks(seq);
            let piece: Vec<u32> = rows
                .flat_map(|row| row[done..done + len].iter().copied())
                .collect();
            let values = self.sizes(len as u64, self.past + done as u64);
            for port in &self.program.inputs {
                let bytes = match port.name.as_str() {
                    "ids" => Some(bytemuck::cast_slice(&piece)),
                    "start" => Some(bytemuck::cast_slice(start)),
                    _ => None,
                };
                let buffer = self.allocation.buffer(port.buffer)?;
                self.model
                    .write_input(&port.name, bytes, port.bytes(&values)?, buffer)?;
            }
            self.record(recorder, &values)?;
            done += len;
            if done == seq {
                return Ok(true);
            }
            let index = recorder.submit();
            // At most two pieces in flight.
            if let Some(before) = before {
                let device = &self.model.device;
                device.wait("a piece of the prompt", Some(before))?;
            }
            before = index;
        }
        Ok(false)
    }

    /// Records a step of one token, whose ids and `start` are on the device, at
    /// position `past`.
    pub(crate) fn record_step(&mut self, recorder: &mut Recorder<'_>, past: u64) -> Result<()> {
        let values = self.sizes(1, past);
        self.record(recorder, &values)
    }

    fn record(&mut self, recorder: &mut Recorder<'_>, values: &Values) -> Result<()> {
        let join = self.joins();
        let variant = self
            .program
            .variant_of(values, |v| join || v.grid.is_none())?;
        let uniforms = self.allocation.push_uniforms(self.model, values)?;
        recorder.variant(self.program, &self.allocation, variant, values, uniforms)
    }

    fn sizes(&self, seq: u64, past: u64) -> Values {
        let slots = &self.model.slots;
        let mut values = slots.values();
        values.set(slots, BATCH, self.batch as u64);
        values.set(slots, SEQ, seq);
        values.set(slots, PAST, past);
        values.set(slots, CONTEXT, self.context);
        values
    }
}

impl Decoder for Session<'_> {
    fn batch(&self) -> usize {
        self.batch
    }

    fn context(&self) -> u64 {
        self.context
    }

    fn past(&self) -> u64 {
        self.past
    }

    fn step(&mut self, ids: &[u32], start: &[u32]) -> Result<Vec<f32>> {
        Session::step(self, ids, start)
    }

    fn rewind(&mut self, past: u64) -> Result<()> {
        Session::rewind(self, past)
    }

    /// Chooses tokens on the device where the model has logits and the device can
    /// bind what that takes; the tokens are those that a
    /// [`Sampler`](crate::sampling::Sampler) gives.
    fn run(&mut self, generation: &mut Generation<'_>) -> Result<()> {
        let (pad, vocab) = (
            generation.options().pad_token,
            self.model.plan.model.vocab_size,
        );
        if u64::from(pad) >= vocab {
            return Err(Error::Ids(format!(
                "the padding token {pad} is not in the vocabulary of {vocab}"
            )));
        }
        if self.sampler.is_none() {
            let size = (self.batch, self.context);
            self.sampler = DeviceSampler::new(self.model, self.program, &self.allocation, size)?;
        }
        match self.sampler.take_if(|sampler| sampler.takes(generation)) {
            Some(mut sampler) => {
                let outcome = self.sample_on_device(&mut sampler, generation);
                self.sampler = Some(sampler);
                outcome
            }
            None => sample_on_host(self, generation),
        }
    }
}
