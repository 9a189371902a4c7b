//! What sessions of known sizes need of a plan.

use std::collections::BTreeSet;

use kiln_ir::Bindings;
use kiln_ir::plan::{BATCH, CONTEXT, Entry, PAST, PIECE_ROWS, SEQ, Variant};

use crate::error::Result;

/// What a [`Session`](crate::Session) is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSize {
    /// Sequences.
    pub batch: u64,
    /// Tokens of the longest prompt, each of which single tokens follow.
    pub prompt: u64,
}

/// The most rows that one piece of a prompt has in an entry of `rows`.
pub(crate) fn piece_rows(rows: Option<u64>) -> u64 {
    rows.map_or(PIECE_ROWS, |rows| rows.min(PIECE_ROWS))
}

/// The most tokens of each of `batch` sequences, up to `most`, that one piece of a
/// prompt takes in an entry of `rows`, if `takes` says which numbers some variant takes.
pub(crate) fn longest_piece(
    batch: u64,
    most: u64,
    rows: Option<u64>,
    mut takes: impl FnMut(u64) -> Result<bool>,
) -> Result<u64> {
    let mut piece = most.min(piece_rows(rows) / batch.max(1)).max(1);
    while piece > 1 && !takes(piece)? {
        piece -= 1;
    }
    Ok(piece)
}

/// Leaves out of `entry`, whose steps take `most` tokens of a sequence, the variants
/// that no step of these sessions runs.
///
/// # Errors
/// When a bound has no value.
pub(crate) fn keep_needed(entry: &mut Entry, most: u64, sessions: &[SessionSize]) -> Result<()> {
    let mut needed = BTreeSet::new();
    for (batch, seq) in steps(entry, most, sessions)? {
        needed.extend(taking(entry, batch, seq)?);
        // In case that launches of the others fail.
        let all = taking_all(entry, batch, seq)?.into_iter();
        let mut plain = all.filter(|i| entry.variants[*i].grid.is_none());
        if plain.clone().all(|i| !needed.contains(&i)) {
            needed.extend(plain.next());
        }
    }
    let mut index = 0..;
    entry
        .variants
        .retain(|_| index.next().is_some_and(|i| needed.contains(&i)));
    Ok(())
}

/// The variants of `entry`, whose steps take `most` tokens of a sequence, that the steps
/// of these sessions run unless one fails.
///
/// # Errors
/// When a bound has no value.
pub(crate) fn expected<'e>(
    entry: &'e Entry,
    most: u64,
    sessions: &[SessionSize],
) -> Result<Vec<&'e Variant>> {
    let mut out = BTreeSet::new();
    for (batch, seq) in steps(entry, most, sessions)? {
        out.extend(taking(entry, batch, seq)?.first().copied());
    }
    Ok(out.into_iter().map(|i| &entry.variants[i]).collect())
}

/// The sequences, and the tokens of each, of the steps of these sessions.
fn steps(entry: &Entry, most: u64, sessions: &[SessionSize]) -> Result<Vec<(u64, u64)>> {
    let mut out = Vec::new();
    for &SessionSize { batch, prompt } in sessions {
        let takes = |seq| Ok(!taking(entry, batch, seq)?.is_empty());
        let piece = longest_piece(batch, most.min(prompt), entry.rows, takes)?;
        let all = [piece, prompt % piece, 1];
        out.extend(all.into_iter().filter(|n| *n > 0).map(|seq| (batch, seq)));
    }
    Ok(out)
}

/// The variant that a step of these sizes runs, and if that has a grid that is to be
/// tried, the one that it is compared with.
fn taking(entry: &Entry, batch: u64, seq: u64) -> Result<Vec<usize>> {
    let mut all = taking_all(entry, batch, seq)?;
    let is_sure = |i: &usize| {
        let grid = entry.variants[*i].grid.as_ref();
        grid.is_none_or(|g| g.check.is_none())
    };
    let end = all.iter().position(is_sure).map_or(all.len(), |i| i + 1);
    all.truncate(end);
    Ok(all)
}

/// The variants that take these sizes.
fn taking_all(entry: &Entry, batch: u64, seq: u64) -> Result<Vec<usize>> {
    let sizes = Bindings::new()
        .with(BATCH, batch)
        .with(SEQ, seq)
        .with(PAST, 0)
        .with(CONTEXT, seq);
    let mut out = Vec::new();
    for (index, variant) in entry.variants.iter().enumerate() {
        if variant.takes(&sizes)? {
            out.push(index);
        }
    }
    Ok(out)
}
