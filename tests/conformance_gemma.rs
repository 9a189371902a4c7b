//! Compiled Gemma models on devices, against what transformers computes in float64 from the
//! same checkpoints. A driver takes long over the kernels, so two fixtures do here;
//! `tests/emulated.rs` runs all of them on every tier.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::NATIVE;
use common::fixtures::fixture_of;
use common::on::one_conforms;

/// Both kinds of layers, each with angles of its own; and heads as wide as those of the
/// published models, which take workgroup memory.
fn conforms(backend: &str, tier: &str) {
    for name in ["base", "default_heads"] {
        one_conforms(&fixture_of("gemma", name), backend, tier);
    }
}

#[test]
fn software_tier_with_subgroups() {
    conforms(NATIVE, "software-subgroup");
}

#[test]
fn subgroup_tier() {
    conforms(NATIVE, "subgroup");
}

#[test]
fn base_tier() {
    conforms(NATIVE, "base");
}

/// The tier of software drivers without subgroups; through OpenGL they have none.
#[cfg(target_os = "linux")]
#[test]
fn software_tier_through_opengl() {
    one_conforms(&fixture_of("gemma", "base"), "gl", "software");
}
