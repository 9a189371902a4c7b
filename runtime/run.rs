//! Running an entry once, with outputs collected or streamed.

use kiln_ir::plan::{BATCH, CONTEXT, PAST, SEQ, least};
use kiln_ir::{Bindings, DType, Symbol};

use crate::dims::Values;
use crate::error::{Error, Result};
use crate::exec::{Allocation, GRID_STATE_BYTES, Program, Recorder, has_stalled};
use crate::model::Model;
use crate::profile::{Profile, Timer};
use crate::readback::{PIECE, Part, PartSink, ReadQueue, Staging};

/// The entry that maps token ids to logits and hidden states.
const FORWARD: &str = "forward";

/// How to run an entry.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The outputs to read; all if absent. What is only needed for others of a
    /// stream is not computed.
    pub outputs: Option<Vec<String>>,
}

impl RunOptions {
    /// Reads only these outputs.
    pub fn outputs(names: &[&str]) -> Self {
        RunOptions {
            outputs: Some(names.iter().map(|n| (*n).to_owned()).collect()),
        }
    }

    fn wants(&self, name: &str) -> bool {
        let names = self.outputs.as_ref();
        names.is_none_or(|names| names.iter().any(|n| n == name))
    }
}

/// A part of an output, as it arrives. Parts of one output come in order.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The output's name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// The whole output's shape.
    pub shape: &'a [usize],
    /// Where the part begins in the output, in bytes.
    pub offset: u64,
    /// The part's bytes, little-endian elements.
    pub bytes: &'a [u8],
}

/// A whole output.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: OutputData,
}

/// The elements of an output.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputData {
    /// Reals.
    F32(Vec<f32>),
    /// Integers, or truth values as 0 and 1.
    I32(Vec<i32>),
}

impl Output {
    /// The elements, if they are reals.
    pub fn f32(&self) -> Option<&[f32]> {
        match &self.data {
            OutputData::F32(values) => Some(values),
            OutputData::I32(_) => None,
        }
    }

    /// The elements, if they are integers or truth values.
    pub fn i32(&self) -> Option<&[i32]> {
        match &self.data {
            OutputData::I32(values) => Some(values),
            OutputData::F32(_) => None,
        }
    }
}

impl Model {
    /// Runs the entry `forward` on a batch of token ids, which are padded on the
    /// right to the longest. `sink` receives the outputs in parts.
    ///
    /// # Errors
    /// When the ids are no batch within the artifact's maxima, or the device
    /// fails.
    pub fn forward(
        &self,
        ids: &[Vec<u32>],
        options: &RunOptions,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let (flat, bindings) = self.batch(ids)?;
        let inputs = [("ids", bytemuck::cast_slice(&flat))];
        self.run_entry(FORWARD, &inputs, &bindings, options, sink)
    }

    /// [`Model::forward`] with the outputs whole.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_collect(&self, ids: &[Vec<u32>], options: &RunOptions) -> Result<Vec<Output>> {
        let (flat, bindings) = self.batch(ids)?;
        let inputs = [("ids", bytemuck::cast_slice(&flat))];
        self.run_collect(FORWARD, &inputs, &bindings, options)
    }

    /// The ids as one block, padded on the right, and its sizes.
    fn batch(&self, ids: &[Vec<u32>]) -> Result<(Vec<i32>, Bindings)> {
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        if longest == 0 {
            return Err(Error::Ids("there are no tokens".to_owned()));
        }
        if let Some(empty) = ids.iter().position(Vec::is_empty) {
            return Err(Error::Ids(format!("sequence {empty} has no tokens")));
        }
        let mut flat = Vec::with_capacity(ids.len() * longest);
        for (sequence, row) in ids.iter().enumerate() {
            self.check_ids(sequence, row)?;
            flat.extend(row.iter().map(|id| *id as i32));
            flat.resize((sequence + 1) * longest, 0);
        }
        let bindings = Bindings::new()
            .with(BATCH, ids.len() as u64)
            .with(SEQ, longest as u64);
        Ok((flat, bindings))
    }

    pub(crate) fn check_ids(&self, sequence: usize, row: &[u32]) -> Result<()> {
        let vocab = self.plan.model.vocab_size;
        match row.iter().position(|id| u64::from(*id) >= vocab) {
            None => Ok(()),
            Some(position) => Err(Error::Token {
                sequence,
                position,
                id: row[position],
                vocab,
            }),
        }
    }

    /// Runs an entry once: `inputs` are the bytes of each input by name,
    /// `bindings` the sizes. Outputs that are too large to be held on the device
    /// are computed and read in blocks, the next one while the last is read.
    ///
    /// # Errors
    /// When there is no such entry, an input is missing or of the wrong size, a
    /// size is over its maximum, or the device fails.
    pub fn run_entry(
        &self,
        name: &str,
        inputs: &[(&str, &[u8])],
        bindings: &Bindings,
        options: &RunOptions,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        self.run_timed(name, inputs, bindings, options, None, sink)?;
        Ok(())
    }

    /// [`Model::run_entry`] with each launch timed; outputs are computed but
    /// given to nobody.
    ///
    /// # Errors
    /// As [`Model::run_entry`].
    pub fn profile_entry(
        &self,
        name: &str,
        inputs: &[(&str, &[u8])],
        bindings: &Bindings,
    ) -> Result<Profile> {
        let timer = Timer::new(&self.device)?;
        let options = RunOptions::default();
        let timer = self.run_timed(name, inputs, bindings, &options, Some(timer), &mut |_| {
            Ok(())
        })?;
        match timer {
            Some(timer) => timer.finish(self),
            None => Ok(Profile::default()),
        }
    }

    /// [`Model::run_entry`] with the outputs whole.
    ///
    /// # Errors
    /// As [`Model::run_entry`].
    pub fn run_collect(
        &self,
        name: &str,
        inputs: &[(&str, &[u8])],
        bindings: &Bindings,
        options: &RunOptions,
    ) -> Result<Vec<Output>> {
        let mut outputs: Vec<Output> = Vec::new();
        self.run_entry(name, inputs, bindings, options, &mut |piece| {
            if outputs.last().is_none_or(|o| o.name != piece.name) {
                let elements = piece.shape.iter().product();
                outputs.push(Output {
                    name: piece.name.to_owned(),
                    shape: piece.shape.to_vec(),
                    data: match piece.dtype {
                        DType::F32 => OutputData::F32(vec![0.0; elements]),
                        DType::I32 | DType::Bool => OutputData::I32(vec![0; elements]),
                    },
                });
            }
            if let Some(output) = outputs.last_mut() {
                let whole: &mut [u8] = match &mut output.data {
                    OutputData::F32(values) => bytemuck::cast_slice_mut(values),
                    OutputData::I32(values) => bytemuck::cast_slice_mut(values),
                };
                let at = piece.offset as usize;
                whole[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
            }
            Ok(())
        })?;
        Ok(outputs)
    }

    /// The slots' values for `bindings`, each within its maximum.
    pub(crate) fn values(&self, program: &Program, bindings: &Bindings) -> Result<Values> {
        let mut values = self.slots.values();
        for name in program.maxima.keys() {
            values.set(&self.slots, name, least(&Symbol::new(name)));
        }
        for (symbol, value) in bindings.iter() {
            let name = symbol.name();
            let max = program.maxima.get(name).copied();
            let within = |max| least(symbol)..=max;
            if let Some(within) = max.map(within).filter(|within| !within.contains(&value)) {
                return Err(Error::size(name, value, within));
            }
            values.set(&self.slots, name, value);
        }
        if bindings.iter().all(|(s, _)| s.name() != CONTEXT) {
            values.set(&self.slots, CONTEXT, self.plan.model.max_context);
        }
        Ok(values)
    }

    fn run_timed(
        &self,
        name: &str,
        inputs: &[(&str, &[u8])],
        bindings: &Bindings,
        options: &RunOptions,
        timer: Option<Timer>,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<Option<Timer>> {
        let program = self.program(name)?;
        if let Some(names) = &options.outputs {
            let known = |n: &&String| program.outputs.iter().all(|o| o.name != **n);
            if let Some(unknown) = names.iter().find(known) {
                let known = program.outputs.iter().map(|o| o.name.as_str());
                return Err(Error::NoSuchOutput {
                    entry: name.to_owned(),
                    name: unknown.clone(),
                    available: known.collect::<Vec<_>>().join(", "),
                });
            }
        }
        let values = self.values(program, bindings)?;
        self.check_sizes(program, bindings)?;
        // Workgroups may wait for each other in vain, and only a session computes again what
        // that loses; but a profile is of what a session runs.
        let apart = program.variant_of(&values, |v| timer.is_none() && v.grid.is_none());
        let variant = apart.or_else(|_| program.variant(&values))?;
        let mut allocation = Allocation::new(self, program, &values)?;
        for port in &program.inputs {
            let given = inputs.iter().find(|(n, _)| *n == port.name);
            let bytes = given.map(|(_, bytes)| *bytes);
            self.write_input(
                &port.name,
                bytes,
                port.bytes(&values)?,
                allocation.buffer(port.buffer)?,
            )?;
        }
        let mut shapes = Vec::new();
        for port in &program.outputs {
            shapes.push(port.shape(&values)?);
        }
        let mut give = |part: &Part, bytes: &[u8]| {
            let port = &program.outputs[part.output];
            sink(Piece {
                name: &port.name,
                dtype: port.dtype,
                shape: &shapes[part.output],
                offset: part.offset,
                bytes,
            })
        };
        let mut run = Run {
            model: self,
            program,
            variant,
            values,
            options,
            recorder: Recorder::new(self, timer),
        };
        let what = format!("the entry `{name}`");
        self.device
            .scoped(&what, || run.all(&mut allocation, &mut give))??;
        if program.variants[variant].grid.is_some() && self.has_stalled(&allocation)? {
            return Err(Error::Refused {
                what,
                message: "workgroups of a launch waited for each other in vain; load the model \
                          without joined launches"
                    .to_owned(),
            });
        }
        Ok(run.recorder.into_timer())
    }

    /// Whether launches that share the state of a grid have failed.
    fn has_stalled(&self, allocation: &Allocation) -> Result<bool> {
        let staging = Staging::new(&self.device, GRID_STATE_BYTES)?;
        let index = self.device.scoped("the state of a grid", || {
            let mut recorder = Recorder::new(self, None);
            allocation.copy_grid_state(&mut recorder, &staging, 0)?;
            Result::Ok(recorder.submit())
        })??;
        staging.read(&self.device, GRID_STATE_BYTES, index, |state| {
            Ok(has_stalled(state))
        })
    }

    pub(crate) fn write_input(
        &self,
        name: &str,
        bytes: Option<&[u8]>,
        wanted: u64,
        buffer: &wgpu::Buffer,
    ) -> Result<()> {
        let input = |reason| Error::Input {
            name: name.to_owned(),
            reason,
        };
        let bytes = bytes.ok_or_else(|| input("it is not given".to_owned()))?;
        if bytes.len() as u64 != wanted {
            let found = bytes.len();
            return Err(input(format!("it has {found} bytes, {wanted} are wanted")));
        }
        self.device.queue.write_buffer(buffer, 0, bytes);
        Ok(())
    }

    /// Holds that `bindings` are sizes of the program, all that its inputs and outputs have,
    /// and that tokens have a place in the states.
    fn check_sizes(&self, program: &Program, bindings: &Bindings) -> Result<()> {
        let known = || {
            let names = program.maxima.keys().map(String::as_str);
            names.chain([CONTEXT]).collect::<Vec<_>>().join(", ")
        };
        let wrong = |name: &str, reason: String| Error::Input {
            name: name.to_owned(),
            reason,
        };
        for (symbol, _) in bindings.iter() {
            let name = symbol.name();
            if name != CONTEXT && !program.maxima.contains_key(name) {
                let reason = format!("there is no such size; there are {}", known());
                return Err(wrong(name, reason));
            }
        }
        for symbol in &program.symbols {
            if bindings.get(symbol).is_none() && symbol.name() != CONTEXT {
                return Err(wrong(symbol.name(), "this size is not given".to_owned()));
            }
        }
        let of = |name: &str| bindings.get(&Symbol::new(name));
        let (past, seq) = (of(PAST).unwrap_or(0), of(SEQ).unwrap_or(0));
        let batch = of(BATCH).unwrap_or(1).max(1);
        if let Some(rows) = program.rows
            && batch.saturating_mul(seq) > rows
        {
            return Err(Error::Size {
                symbol: SEQ.to_owned(),
                value: seq,
                least: 1,
                max: rows / batch,
                advice: "run fewer sequences, or fewer of their tokens, at a time",
            });
        }
        if program.states.is_empty() {
            return Ok(());
        }
        // What states have room for.
        let context = of(CONTEXT).unwrap_or(self.plan.model.max_context);
        let context = context.min(self.device.most_positions());
        if past.saturating_add(seq) > context {
            return Err(Error::ContextFull {
                context,
                past,
                wanted: seq,
            });
        }
        Ok(())
    }
}

/// One run of an entry.
struct Run<'r> {
    model: &'r Model,
    program: &'r Program,
    variant: usize,
    values: Values,
    options: &'r RunOptions,
    recorder: Recorder<'r>,
}

impl Run<'_> {
    fn all(&mut self, allocation: &mut Allocation, sink: &mut PartSink<'_>) -> Result<()> {
        let device = &self.model.device;
        let program = self.program;
        let streams = &program.variants[self.variant].streams;

        // What is read whole, in pieces, and what block by block.
        let mut largest = 4;
        let mut whole = Vec::new();
        for (index, port) in program.outputs.iter().enumerate() {
            if !self.options.wants(&port.name) {
                continue;
            }
            let bytes = port.bytes(&self.values)?;
            if streams.iter().all(|s| s.output != index) && bytes > 0 {
                largest = largest.max(bytes.min(PIECE));
                whole.push((index, bytes));
            }
        }
        let mut blocks = Vec::new();
        for (index, stream) in streams.iter().enumerate() {
            let port = &program.outputs[stream.output];
            let rows = stream.rows.eval(&self.values)?;
            if self.options.wants(&port.name) && rows > 0 {
                let row = port.bytes(&self.values)? / rows;
                largest = largest.max(row * stream.rows_per_block.min(rows));
                blocks.push((index, rows, row));
            }
        }
        let mut reads = ReadQueue::new(device, largest)?;

        let uniforms = allocation.push_uniforms(self.model, &self.values)?;
        self.recorder
            .variant(program, allocation, self.variant, &self.values, uniforms)?;
        for (output, bytes) in whole {
            let buffer = allocation.buffer(program.outputs[output].buffer)?;
            let mut offset = 0;
            while offset < bytes {
                let part = Part {
                    output,
                    offset,
                    bytes: (bytes - offset).min(PIECE),
                };
                offset += part.bytes;
                let from = (buffer, part.offset);
                reads.push(device, &mut self.recorder, from, part, sink)?;
            }
        }
        for (index, rows, row) in blocks {
            let stream = &streams[index];
            let mut block = 0;
            while block < rows {
                let mut values = self.values.clone();
                values.set(&self.model.slots, kiln_ir::plan::BLOCK, block);
                let uniforms = allocation.push_uniforms(self.model, &values)?;
                let at = (self.variant, index);
                self.recorder
                    .stream(program, allocation, at, &values, uniforms)?;
                let part = Part {
                    output: stream.output,
                    offset: block * row,
                    bytes: row * stream.rows_per_block.min(rows - block),
                };
                let from = (allocation.buffer(program.outputs[stream.output].buffer)?, 0);
                reads.push(device, &mut self.recorder, from, part, sink)?;
                block += stream.rows_per_block;
            }
        }
        let last = self.recorder.submit();
        reads.finish(device, sink)?;
        // Whatever was submitted behind the last read.
        if last.is_some() {
            device.wait(&program.name, last)?;
        }
        Ok(())
    }
}
