//! kiln's kernel bodies: WGSL text that the code generator concatenates with
//! generated preludes and hooks. `README.md` beside this file says what each
//! body computes, which constants and hooks it wants, and when it is used.
//!
//! ```
//! let body = kiln_shaders::body("row_norm").unwrap_or_default();
//! assert!(body.contains("fn main("));
//! let helpers = kiln_shaders::functions(&["gelu_erf"]);
//! assert!(helpers.contains("fn erf4("));
//! ```

use std::collections::BTreeSet;

macro_rules! files {
    ($(#[$doc:meta])* $name:ident: $folder:literal { $($file:literal),* $(,)? }) => {
        $(#[$doc])*
        pub const $name: &[(&str, &str)] =
            &[$(($file, include_str!(concat!($folder, $file, ".wgsl")))),*];
    };
}

files! {
    /// Every body: its name and its text.
    BODIES: "" {
        "attention_coop",
        "attention_decode",
        "attention_decode_subgroup",
        "attention_prefill",
        "attention_probs",
        "attention_software_decode",
        "attention_software_prefill",
        "attention_software_wide",
        "grid_check",
        "lanes_check",
        "linear_coop",
        "linear_matvec",
        "linear_matvec_subgroup",
        "linear_software_matvec",
        "linear_software_tile",
        "linear_stream_subgroup",
        "linear_tiled",
        "matmul",
        "pointwise",
        "reduce",
        "reduce_workgroup",
        "row_norm",
        "row_norm_software",
        "row_norm_subgroup",
        "sample_choose",
        "sample_score",
        "softmax",
        "softmax_workgroup",
        "subgroups_check",
    }
}

files! {
    /// Default preludes, with which each body validates on its own.
    DEFAULTS: "defaults/" {
        "attention",
        "attention_coop",
        "attention_software_prefill",
        "attention_software_wide",
        "common",
        "fours",
        "grid_check",
        "linear",
        "linear_coop",
        "matmul",
        "matrices16",
        "matrices8",
        "norm_last",
        "parts",
        "pointwise",
        "reduce",
        "row_norm",
        "sample",
        "scalars",
        "softmax",
        "software_linear",
        "stored",
        "verdicts",
        "weights_f16",
        "weights_f32",
        "weights_q4",
        "weights_q8",
        "whole",
    }
}

/// Barriers across a grid, for kernels that bind `grid_state`.
pub const GRID: &str = include_str!("grid.wgsl");

/// The norm of the rows that a launch leaves, for kernels that bind `done`.
pub const NORM_LAST: &str = include_str!("norm_last.wgsl");

/// Parts of sums that workgroups of their own compute, for kernels that bind `parts` and
/// `arrived`.
pub const PARTS: &str = include_str!("parts.wgsl");

/// Stages one after the other on a CPU driver, for kernels that bind `grid_state`.
pub const TICKETS: &str = include_str!("tickets.wgsl");

const FUNCTIONS: &str = include_str!("functions.wgsl");

fn find(files: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    files
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, text)| *text)
}

/// The text of a kernel body.
pub fn body(name: &str) -> Option<&'static str> {
    find(BODIES, name)
}

/// The text of a default prelude.
pub fn default_prelude(name: &str) -> Option<&'static str> {
    find(DEFAULTS, name)
}

/// The functions of `functions.wgsl`: name and text.
fn blocks() -> impl Iterator<Item = (&'static str, &'static str)> {
    FUNCTIONS.split("\n\n").filter_map(|block| {
        let (_, rest) = block.split_once("fn ")?;
        Some((rest.split_once('(')?.0, block.trim_end()))
    })
}

/// The names of all functions that [`functions`] knows.
pub fn function_names() -> Vec<&'static str> {
    blocks().map(|(name, _)| name).collect()
}

/// The functions of `functions.wgsl` that `wanted` names, and those that they
/// call, in the order of the file.
pub fn functions(wanted: &[&str]) -> String {
    let blocks: Vec<(&str, &str)> = blocks().collect();
    let calls = |text: &str, name: &str| text.contains(&format!("{name}("));
    let mut needed: BTreeSet<&str> = wanted.iter().copied().collect();
    // Callees stand before callers in the file, so one pass from the end is
    // enough.
    for (name, text) in blocks.iter().rev() {
        if needed.contains(name) {
            let callees = blocks.iter().filter(|(n, _)| n != name && calls(text, n));
            needed.extend(callees.map(|(n, _)| *n));
        }
    }
    let used = blocks.iter().filter(|(name, _)| needed.contains(name));
    used.map(|(_, text)| format!("{text}\n\n")).collect()
}
