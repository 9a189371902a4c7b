//! What sessions of known sizes need of a plan.

use std::collections::BTreeSet;

use kiln_ir::Bindings;
use kiln_ir::plan::{CONTEXT, Entry, PAST};

use crate::error::Result;

/// The most rows (sequences times tokens) of one piece of a prompt: enough to
/// keep a large device busy, and a bound on what is allocated.
const PIECE_ROWS: u64 = 1024;

/// What a [`Session`](crate::Session) is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSize {
    /// Sequences.
    pub batch: u64,
    /// Tokens of the longest prompt, each of which single tokens follow.
    pub prompt: u64,
}

/// The most tokens of each of `batch` sequences, up to `most`, that one piece of a
/// prompt takes, if `takes` says which numbers some variant takes.
pub(crate) fn longest_piece(
    batch: u64,
    most: u64,
    mut takes: impl FnMut(u64) -> Result<bool>,
) -> Result<u64> {
    let mut piece = most.min(PIECE_ROWS / batch.max(1)).max(1);
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
    for &SessionSize { batch, prompt } in sessions {
        let takes = |seq| Ok(!taking(entry, batch, seq)?.is_empty());
        let piece = longest_piece(batch, most.min(prompt), takes)?;
        for seq in [piece, prompt % piece, 1] {
            if seq > 0 {
                needed.extend(taking(entry, batch, seq)?);
            }
        }
    }
    let mut index = 0..;
    entry
        .variants
        .retain(|_| index.next().is_some_and(|i| needed.contains(&i)));
    Ok(())
}

/// The variant that a step of these sizes runs, and if that has a grid, the one that is
/// run without it.
fn taking(entry: &Entry, batch: u64, seq: u64) -> Result<Vec<usize>> {
    let sizes = Bindings::new()
        .with("batch", batch)
        .with("seq", seq)
        .with(PAST, 0)
        .with(CONTEXT, seq);
    let mut out = Vec::new();
    for (index, variant) in entry.variants.iter().enumerate() {
        if variant.takes(&sizes)? {
            out.push(index);
            if variant.grid.is_none() {
                break;
            }
        }
    }
    Ok(out)
}
