//! The tokens of a run, and where they stand in their sequences.

use kiln_ir::{DType, Dim, GraphBuilder, GraphError, ValueId};

use super::Built;

/// The maxima of a span's symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanLimits {
    /// Sequences in a run.
    pub batch: u64,
    /// Tokens of each sequence in a run.
    pub seq: u64,
    /// Tokens of each sequence, those of earlier runs included.
    pub context: u64,
}

/// The tokens that a run is about: a stretch of each of a batch of sequences.
///
/// A span is whole when it holds its sequences from their first token, and
/// continued when earlier runs left the keys and values of `past` tokens in
/// states. Sequences of different lengths are padded: a whole span's on the
/// right, where causality keeps the padding from being seen; a continued one's
/// on the left, so that all of a batch end, and go on, together. The input
/// `start` then says how much of a sequence is padding.
#[derive(Clone, Debug)]
pub struct Span {
    /// The sequences.
    pub batch: Dim,
    /// The tokens of each sequence in this run.
    pub seq: Dim,
    /// The tokens: `i32[batch, seq]`.
    pub ids: ValueId,
    /// Their positions, from 0: `i32[seq]`, or `i32[batch, seq]` where they
    /// depend on the sequence.
    pub positions: ValueId,
    /// Which key a token sees: `bool[1 or batch, 1, seq, past + seq]`.
    pub mask: ValueId,
    /// The tokens of each sequence in earlier runs; `None` in a whole span.
    past: Option<Dim>,
    /// The most tokens of a sequence.
    context: u64,
}

impl Span {
    /// Declares the symbols `batch` and `seq` and the input `ids`.
    ///
    /// # Errors
    /// When the graph has one of them already.
    pub fn whole(g: &mut GraphBuilder, limits: SpanLimits) -> Result<Self, GraphError> {
        let batch = g.symbol("batch", limits.batch)?;
        let seq = g.symbol("seq", limits.seq)?;
        let ids = g.input("ids", DType::I32, [&batch, &seq])?;
        let positions = g.scope("positions", |g| g.arange(0, &seq))?;
        let mask = g.scope("mask", |g| causal_mask(g, &Dim::from(0), &seq, None))?;
        Ok(Span {
            batch,
            seq,
            ids,
            positions,
            mask,
            past: None,
            context: limits.seq,
        })
    }

    /// Declares the symbols `batch`, `seq` and `past` and the inputs `ids` and
    /// `start[batch]`.
    ///
    /// # Errors
    /// When the graph has one of them already.
    pub fn continued(g: &mut GraphBuilder, limits: SpanLimits) -> Result<Self, GraphError> {
        let batch = g.symbol("batch", limits.batch)?;
        let seq = g.symbol("seq", limits.seq)?;
        // A symbol's maximum is 1 at least; a context of one token leaves the
        // state's other row unused.
        let past = g.symbol("past", limits.context.saturating_sub(1).max(1))?;
        let ids = g.input("ids", DType::I32, [&batch, &seq])?;
        let start = g.input("start", DType::I32, [&batch])?;
        let positions = g.scope("positions", |g| {
            let range = g.arange(&past, &past + &seq)?;
            let range = g.reshape(range, [Dim::from(1), seq.clone()])?;
            let start = g.reshape(start, [batch.clone(), Dim::from(1)])?;
            let positions = g.sub(range, start)?;
            // Padding stands before the first position.
            let zero = g.i32(0)?;
            g.max(positions, zero)
        })?;
        let mask = g.scope("mask", |g| {
            let start = g.reshape(start, [batch.clone(), 1.into(), 1.into(), 1.into()])?;
            causal_mask(g, &past, &seq, Some(start))
        })?;
        Ok(Span {
            batch,
            seq,
            ids,
            positions,
            mask,
            past: Some(past),
            context: limits.context,
        })
    }

    /// [`mask`](Span::mask) with a sliding window: a token sees no more than `window`
    /// tokens, itself among them. The same, where no context is longer than that.
    ///
    /// # Errors
    /// When there are more places than an `i32` counts.
    pub fn windowed(&self, g: &mut GraphBuilder, window: usize) -> Built {
        if window as u64 >= self.context {
            return Ok(self.mask);
        }
        let past = self.past.clone().unwrap_or_default();
        let [keys, queries] = places(g, &past, &self.seq)?;
        let back = g.sub(queries, keys)?;
        let window = g.i32(i32::try_from(window).unwrap_or(i32::MAX))?;
        let near = g.lt(back, window)?;
        g.and(self.mask, near)
    }

    /// The keys (or values) of all tokens so far, `[batch, past + seq, width]`,
    /// given those of this run, `[batch, seq, width]`. In a continued span they
    /// are kept in a state, `name` inside the current module; a whole span has
    /// none and gives back `new`.
    ///
    /// # Errors
    /// When `new` has not three axes, or the state is in use already.
    pub fn cached(&self, g: &mut GraphBuilder, name: &str, new: ValueId) -> Built {
        let Some(past) = &self.past else {
            return Ok(new);
        };
        let state = g.scope(name, |g| Ok(g.scope_name()))?;
        let width = g.ty(new).last();
        let old = g.state(
            &state,
            DType::F32,
            [self.batch.clone(), past.clone(), width],
        )?;
        let all = g.concat(&[old, new], 1)?;
        g.set_state(&state, all)?;
        Ok(all)
    }

    /// What `x[batch, seq, width]` is at the last token of each sequence:
    /// `[batch, width]`.
    ///
    /// # Errors
    /// When `x` has another shape.
    pub fn last(&self, g: &mut GraphBuilder, x: ValueId) -> Built {
        let last = g.slice(x, 1, self.seq.clone() - 1, &self.seq)?;
        let width = g.ty(x).last();
        g.reshape(last, [self.batch.clone(), width])
    }
}

/// Where keys and queries stand: `i32[1, 1, 1, past + seq]` and `i32[1, 1, seq, 1]`.
fn places(g: &mut GraphBuilder, past: &Dim, seq: &Dim) -> Result<[ValueId; 2], GraphError> {
    let end = past + seq;
    let one = || Dim::from(1);
    let keys = g.arange(0, &end)?;
    let keys = g.reshape(keys, [one(), one(), one(), end.clone()])?;
    let queries = g.arange(past, &end)?;
    let queries = g.reshape(queries, [one(), one(), seq.clone(), one()])?;
    Ok([keys, queries])
}

/// `bool[1 or batch, 1, seq, past + seq]`: token `past + i` sees the tokens up
/// to itself, from `start` on where that is given as `i32[batch, 1, 1, 1]`.
fn causal_mask(g: &mut GraphBuilder, past: &Dim, seq: &Dim, start: Option<ValueId>) -> Built {
    let [keys, queries] = places(g, past, seq)?;
    let causal = g.le(keys, queries)?;
    let Some(start) = start else {
        return Ok(causal);
    };
    let begun = g.ge(keys, start)?;
    g.and(causal, begun)
}
