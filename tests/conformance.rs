//! Compiled models on devices, against what transformers computes in float64 from
//! the same checkpoints.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::fixtures::{Case, Fixture, assert_close, fixture};
use common::on::{On, conforms, every_size, interpreted, one_conforms};
use common::{NATIVE, compile_fixture, compiled, in_memory, open};
use kiln_ir::Packing;
use kiln_ir::interp::{HostTensor, Interpreter};
use kiln_models::registry::EntryOptions;

#[test]
fn software_tier_with_subgroups() {
    conforms("gpt2", NATIVE, "software-subgroup");
}

#[test]
fn subgroup_tier() {
    conforms("gpt2", NATIVE, "subgroup");
}

#[test]
fn base_tier() {
    conforms("gpt2", NATIVE, "base");
}

#[cfg(target_os = "linux")]
#[test]
fn opengl() {
    conforms("gpt2", "gl", "base");
}

/// The tier of software drivers without subgroups, which take long over its kernels;
/// `tests/emulated.rs` runs half of the fixtures on it.
#[cfg(target_os = "linux")]
#[test]
fn software_tier_through_opengl() {
    one_conforms(&fixture("base"), "gl", "software");
}

#[test]
fn every_batch_and_length() {
    every_size(&fixture("base"), &["software-subgroup", "base"]);
    // Of odd sizes.
    every_size(&fixture("silu"), &["software", "subgroup"]);
}

/// Prompts that are longer than what one step takes.
#[test]
fn prompts_in_chunks() {
    let fixture = Fixture::open(&fixture("base"));
    let options = EntryOptions {
        prefill_chunk: 5,
        max_batch: 4,
        ..EntryOptions::default()
    };
    let compiled = compile_fixture(&fixture, Packing::F32, &options);
    let artifact = in_memory(compiled, &*fixture.loaded.params);
    for tier in ["software-subgroup", "base"] {
        let model = open(NATIVE, tier, &artifact);
        let on = On::new(&fixture, &model, fixture.cases());
        on.pieces();
        on.greedy();
        on.ragged();
    }
}

#[test]
fn weights_in_f16() {
    packed(Packing::F16, Some(5e-3), ["software-subgroup", "subgroup"]);
}

#[test]
fn weights_in_q8() {
    packed(Packing::Q8, Some(5e-2), ["software", "base"]);
}

#[test]
fn weights_in_q4() {
    // No promise is made of how near to the original weights these are.
    packed(Packing::Q4, None, ["software-subgroup", "base"]);
}

/// A fixture whose matrices have rows of 18 and 58 weights, so of less than a group
/// and of several with a rest, and one where all sizes are powers of two.
const PACKED: [&str; 2] = ["silu", "base"];

/// Rounded weights: as exact as `f32` on the weights as they are, and within
/// `bound` of what the original ones give. `tests/kernels` has such weights on all tiers.
fn packed(packing: Packing, bound: Option<f64>, tiers: [&str; 2]) {
    for (name, tier) in PACKED.into_iter().zip(tiers) {
        let (fixture, artifact) = compiled(name, packing);
        let interpreter = Interpreter::<f64>::new(fixture.graph("forward"), &*artifact).unwrap();
        let originals = fixture.cases();
        let cases = originals.iter().map(|case| {
            let ids = HostTensor::i32(case.ids.shape.clone(), case.ids.as_i32().unwrap());
            interpreted(&interpreter, case.label.clone(), ids)
        });
        let cases: Vec<Case> = cases.collect();
        let model = open(NATIVE, tier, &artifact);
        let mut on = On::new(&fixture, &model, cases.clone());
        on.label.push_str(&format!(" in {}", packing.name()));
        on.whole_sequences();
        on.prompts();
        for (case, original) in cases.iter().zip(&originals) {
            let (Some(found), Some(wanted)) = (&case.logits, &original.logits) else {
                panic!("{name} has a head");
            };
            if let Some(bound) = bound {
                assert_close(&case.label, found, wanted, bound);
            }
        }
    }
}
