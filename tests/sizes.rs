//! Models that are loaded for sessions of known sizes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::fixtures::Fixture;
use common::{NATIVE, adapter, compile_fixture, in_memory};
use kiln_ir::Packing;
use kiln_models::registry::EntryOptions;
use kiln_runtime::{Artifact, Error, LoadOptions, Model, Session};

const CONFIG: &str = r#"{"model_type": "gpt2", "vocab_size": 100, "n_positions": 1100,
    "n_embd": 32, "n_head": 2, "n_layer": 1}"#;

/// Loads for sessions of these batches and prompts, or for all; the number of kernels.
fn load(artifact: &Artifact, tier: &str, sessions: &[(u64, u64)]) -> (Model, usize) {
    let mut options = LoadOptions {
        tier: Some(tier.to_owned()),
        cache_dir: None,
        ..LoadOptions::default()
    };
    for (batch, prompt) in sessions {
        options = options.session(*batch, *prompt);
    }
    let options = options.entries(&["step"]);
    let mut kernels = 0;
    let model = Model::open(&adapter(NATIVE), artifact, &options, &mut |p| {
        kernels = p.kernels_total;
    });
    (model.unwrap(), kernels)
}

/// The logits behind a prompt and behind each of three tokens.
fn logits(model: &Model, batch: u64, prompt: u64) -> Vec<f32> {
    let batch = batch as usize;
    let mut session = Session::new(model, batch, prompt + 3).unwrap();
    let ids = |n: u64| -> Vec<u32> { (0..batch as u32 * n as u32).map(|i| i * 7 % 100).collect() };
    let start = vec![0; batch];
    let mut out = session.step(&ids(prompt), &start).unwrap();
    for _ in 0..3 {
        out.extend(session.step(&ids(1), &start).unwrap());
    }
    out
}

/// What is left out is what would not have run: the bits are the same, also for a
/// prompt in two pieces.
#[test]
fn sessions_of_known_sizes_run_the_launches_that_they_would_have_run() {
    let fixture = Fixture::random(CONFIG);
    let compiled = compile_fixture(&fixture, Packing::F32, &EntryOptions::default());
    let artifact = in_memory(compiled, &*fixture.loaded.params);
    for tier in ["software-subgroup", "software", "base", "subgroup"] {
        let (whole, all) = load(&artifact, tier, &[]);
        for size @ (batch, prompt) in [(1, 1), (1, 3), (1, 7), (1, 1029), (3, 2), (8, 1)] {
            let (model, kernels) = load(&artifact, tier, &[size]);
            let label = format!("{tier}, {batch} x {prompt}");
            assert!(
                kernels < all || prompt > 1024,
                "{label}: {kernels} of {all} kernels"
            );
            let (found, expected) = (logits(&model, batch, prompt), logits(&whole, batch, prompt));
            let same = found
                .iter()
                .zip(&expected)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && found.len() == expected.len(), "{label}");
        }
    }
}

#[test]
fn sessions_of_other_sizes_are_served_or_refused() {
    let fixture = Fixture::random(CONFIG);
    let compiled = compile_fixture(&fixture, Packing::F32, &EntryOptions::default());
    let artifact = in_memory(compiled, &*fixture.loaded.params);
    let (model, kernels) = load(&artifact, "software", &[(1, 1)]);
    // A longer prompt goes token by token.
    let (whole, _) = load(&artifact, "software", &[]);
    let (found, expected) = (logits(&model, 1, 5), logits(&whole, 1, 5));
    common::fixtures::assert_close("five tokens", &found, &expected, common::F32);
    // More sequences are refused.
    let error = Session::new(&model, 2, 8).unwrap_err();
    assert!(matches!(error, Error::Size { max: 1, .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("batch = 2") && text.contains("load the model for"),
        "{text}"
    );
    let (both, more) = load(&artifact, "software", &[(1, 1), (2, 1)]);
    assert!(more > kernels);
    Session::new(&both, 2, 8).unwrap();
}
