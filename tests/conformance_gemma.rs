//! Compiled Gemma models on devices, against what transformers computes in float64 from the
//! same checkpoints. A driver takes long over the kernels, so few fixtures do here;
//! `tests/emulated.rs` runs all of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::NATIVE;
use common::fixtures::fixture_of;
use common::on::one_conforms;

/// Both kinds of layers, each with angles of its own.
fn conforms(name: &str, backend: &str, tier: &str) {
    one_conforms(&fixture_of("gemma", name), backend, tier);
}

#[test]
fn software_tier_with_subgroups() {
    conforms("base", NATIVE, "software-subgroup");
}

#[test]
fn subgroup_tier() {
    conforms("base", NATIVE, "subgroup");
}

#[test]
fn base_tier() {
    conforms("base", NATIVE, "base");
}

/// Heads as wide as those of the published models, for which CPU drivers have a kernel of their
/// own; `tests/kernels` tries such heads on the other tiers.
#[test]
fn wide_heads() {
    conforms("default_heads", NATIVE, "software-subgroup");
}

/// The tier of software drivers without subgroups; through OpenGL they have none.
#[cfg(target_os = "linux")]
#[test]
fn software_tier_through_opengl() {
    conforms("base", "gl", "software");
}
