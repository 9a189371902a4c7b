//! Slices whose ends depend on the sizes of a run.

use serde::{Deserialize, Serialize};

use super::{BATCH, CONTEXT, SEQ};
use crate::dim::{Dim, Symbol};

/// Where a slice begins and ends along its axis, and what the axis has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceRange {
    /// What it is called in the model, for a person.
    pub name: String,
    /// Its first element.
    pub start: Dim,
    /// The element behind its last.
    pub end: Dim,
    /// The size of the axis.
    pub size: Dim,
}

/// Whether `start..end` was found to lie within `0..size` at all sizes that are [`least`] or
/// more; whether symbols have maxima is not looked at.
pub fn always_within(start: &Dim, end: &Dim, size: &Dim) -> bool {
    let distances = [start.clone(), end - start, size - end];
    distances.iter().all(|d| d.is_never_negative(least))
}

/// The least that a symbol of an entry point is when that is run.
pub fn least(symbol: &Symbol) -> u64 {
    u64::from([BATCH, SEQ, CONTEXT].contains(&symbol.name()))
}
