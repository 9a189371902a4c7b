//! Models on the reference interpreter: slow, exact, and everywhere.

use std::collections::BTreeMap;

use kiln_ir::interp::{HostTensor, InterpError, Interpreter, Tensors, run, zero_states};
use kiln_ir::plan::ModelInfo;
use kiln_ir::{Bindings, Graph, ParamSource};
use kiln_runtime::generate::check_rewind;
use kiln_runtime::{Decoder, Error};

use crate::failure::{Failure, Result};

/// A model's graphs and parameters.
pub struct Interpretable {
    /// What the model is.
    pub info: ModelInfo,
    /// The graphs by entry, as built.
    pub graphs: BTreeMap<String, Graph>,
    /// Their parameters, as they are stored.
    pub params: Box<dyn ParamSource>,
}

impl Interpretable {
    fn graph(&self, entry: &str) -> Result<&Graph> {
        self.graphs.get(entry).ok_or_else(|| {
            let names: Vec<&str> = self.graphs.keys().map(String::as_str).collect();
            let names = names.join(", ");
            Failure::failed(format!("the model has no graph `{entry}`; it has: {names}"))
        })
    }

    /// Runs an entry on rows of token ids, padded at their end to the longest.
    pub fn forward(&self, entry: &str, ids: &[Vec<u32>]) -> Result<Tensors<f32>> {
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        let mut flat = Vec::with_capacity(ids.len() * longest);
        for (sequence, row) in ids.iter().enumerate() {
            check_ids(&self.info, sequence, row)?;
            flat.extend(row.iter().map(|id| *id as i32));
            flat.resize((sequence + 1) * longest, 0);
        }
        let ids = HostTensor::i32([ids.len(), longest], flat);
        let inputs = Tensors::from([("ids".to_owned(), ids)]);
        let graph = self.graph(entry)?;
        let outputs = run(graph, self.params.as_ref(), &inputs, &mut Tensors::new());
        Ok(outputs.map_err(as_an_adapter)?)
    }

    /// A session for `batch` sequences of at most `context` positions.
    pub fn session(&self, batch: usize, context: u64) -> Result<InterpretedSession<'_>> {
        let graph = self.graph("step")?;
        let symbol = |name: &str| graph.symbols.iter().find(|s| s.name.name() == name);
        Ok(InterpretedSession {
            graph,
            info: &self.info,
            states: zero_states(graph, &taken(batch, 0))?,
            interpreter: Interpreter::new(graph, self.params.as_ref())?,
            batch,
            context,
            past: 0,
            piece: symbol("seq").map_or(1, |s| s.max.max(1) as usize),
        })
    }
}

/// The sizes of states that hold so many positions.
fn taken(batch: usize, past: u64) -> Bindings {
    let batch = Bindings::new().with("batch", batch as u64);
    batch.with("past", past)
}

/// A batch of sequences that grow together.
pub struct InterpretedSession<'m> {
    graph: &'m Graph,
    info: &'m ModelInfo,
    interpreter: Interpreter<'m, f32>,
    states: Tensors<f32>,
    batch: usize,
    context: u64,
    past: u64,
    /// The most tokens that the graph takes at a time.
    piece: usize,
}

impl InterpretedSession<'_> {
    /// Appends tokens that the graph takes at once; the outputs.
    fn append(
        &mut self,
        rows: &[&[u32]],
        start: &[u32],
    ) -> std::result::Result<Tensors<f32>, InterpError> {
        let seq = rows.first().map_or(0, |row| row.len());
        let ids: Vec<i32> = rows.concat().iter().map(|id| *id as i32).collect();
        let start: Vec<i32> = start.iter().map(|s| *s as i32).collect();
        let inputs = Tensors::from([
            ("ids".to_owned(), HostTensor::i32([rows.len(), seq], ids)),
            ("start".to_owned(), HostTensor::i32([rows.len()], start)),
        ]);
        let outputs = self.interpreter.run(&inputs, &mut self.states)?;
        self.past += seq as u64;
        Ok(outputs)
    }
}

impl Decoder for InterpretedSession<'_> {
    fn batch(&self) -> usize {
        self.batch
    }

    fn context(&self) -> u64 {
        self.context
    }

    fn past(&self) -> u64 {
        self.past
    }

    fn rewind(&mut self, past: u64) -> std::result::Result<(), Error> {
        check_rewind(self.past, past)?;
        let sizes = zero_states::<f32>(self.graph, &taken(self.batch, past));
        for (name, size) in sizes.map_err(Error::other)? {
            if let Some(state) = self.states.get_mut(&name) {
                *state = state.leading(&size.shape);
            }
        }
        self.past = past;
        Ok(())
    }

    fn step(&mut self, ids: &[u32], start: &[u32]) -> std::result::Result<Vec<f32>, Error> {
        if ids.is_empty() || !ids.len().is_multiple_of(self.batch) {
            let message = format!(
                "{} token ids are not a batch of {} sequences of one length",
                ids.len(),
                self.batch
            );
            return Err(Error::Ids(message));
        }
        let seq = ids.len() / self.batch;
        if self.past + seq as u64 > self.context {
            return Err(Error::ContextFull {
                context: self.context,
                past: self.past,
                wanted: seq as u64,
            });
        }
        for (sequence, row) in ids.chunks(seq).enumerate() {
            check_ids(self.info, sequence, row)?;
        }
        let mut outputs = Tensors::new();
        for from in (0..seq).step_by(self.piece) {
            let piece = from..(from + self.piece).min(seq);
            let rows: Vec<&[u32]> = ids.chunks(seq).map(|row| &row[piece.clone()]).collect();
            outputs = self.append(&rows, start).map_err(as_an_adapter)?;
        }
        let logits = outputs.get("logits").and_then(HostTensor::as_f);
        let logits = logits.ok_or_else(|| Error::other("the model has no output `logits`"))?;
        Ok(logits.to_vec())
    }
}

/// The interpreter's error as an adapter would tell it.
fn as_an_adapter(error: InterpError) -> Error {
    match error {
        InterpError::TooLarge { symbol, value, max } => Error::size(symbol.name(), value, 1..=max),
        other => Error::other(other),
    }
}

fn check_ids(info: &ModelInfo, sequence: usize, row: &[u32]) -> std::result::Result<(), Error> {
    let beyond = row.iter().position(|id| u64::from(*id) >= info.vocab_size);
    match beyond {
        None => Ok(()),
        Some(position) => Err(Error::Token {
            sequence,
            position,
            id: row[position],
            vocab: info.vocab_size,
        }),
    }
}
