//! Checks of a driver before a tier is trusted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use kiln_ir::plan::{Access, Check, Kernel, Tier};
use kiln_runtime::{Artifact, LoadOptions, Model};

const WORDS: u64 = 64;

/// A model whose first tier, of those that `tiers` leaves, has a check that writes
/// `verdict`, an expression of the word's index `i`.
fn open_with(
    verdict: &str,
    options: &LoadOptions,
    tiers: impl FnOnce(&mut Vec<Tier>),
) -> kiln_runtime::Result<Model> {
    let mut plan = plan();
    plan.tiers[0].requires = plan.tiers[1].requires.clone();
    tiers(&mut plan.tiers);
    plan.tiers[0].checks.push(Check {
        kernel: "trial".into(),
        workgroups: 8,
        words: WORDS,
    });
    let file = "kernels/trial.wgsl".to_owned();
    let trial = Kernel {
        file: file.clone(),
        workgroup_size: [8, 1, 1],
        bindings: vec![Access::ReadWrite],
    };
    plan.kernels.insert("trial".into(), trial);
    let text = format!(
        "{HEAD}
        @group(0) @binding(1) var<storage, read_write> verdicts: array<u32>;
        @compute @workgroup_size(8)
        fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
            let i = id.x;
            verdicts[i] = {verdict};
        }}"
    );
    let mut kernels = kernels();
    kernels.insert(file, text);
    let weights = Box::new(weights());
    let artifact = Artifact::from_parts(plan, kernels, Default::default(), None, weights)?;
    Model::open(&adapter("vulkan"), &artifact, options, &mut |_| {})
}

fn open(verdict: &str, options: &LoadOptions) -> kiln_runtime::Result<Model> {
    open_with(verdict, options, |_| {})
}

fn named() -> LoadOptions {
    LoadOptions {
        tier: Some("fancy".into()),
        ..options()
    }
}

#[test]
fn a_driver_that_passes_is_trusted() {
    assert_eq!(open("1u", &options()).unwrap().tier(), "fancy");
    assert_eq!(open("1u", &named()).unwrap().tier(), "fancy");
}

#[test]
fn a_tier_that_fails_its_check_gives_way_to_the_next() {
    // A word that is not written is as wrong as one that is.
    for wrong in ["select(1u, 2u, i == 63u)", "select(1u, 0u, i % 2u == 0u)"] {
        assert_eq!(open(wrong, &options()).unwrap().tier(), "base");
    }
}

#[test]
fn a_driver_that_refuses_the_kernel_has_failed() {
    let refused = "1u + undefined_name";
    assert_eq!(open(refused, &options()).unwrap().tier(), "base");
    let text = message(open(refused, &named()));
    assert!(text.contains("undefined_name"), "{text}");
}

#[test]
fn a_named_tier_that_fails_is_an_error() {
    let text = message(open("select(1u, 0u, i < 5u)", &named()));
    let expected = "fails the check `trial` of the tier `fancy`: 5 of 64 results are wrong";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn the_last_tier_that_fails_leaves_none() {
    let opened = open_with("7u", &options(), |tiers| tiers.truncate(1));
    let text = message(opened);
    let expected = "`fancy` lacks a driver that passes its check (64 of 64 results are wrong)";
    assert!(text.contains(expected), "{text}");
}
