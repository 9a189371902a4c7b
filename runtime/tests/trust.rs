//! Checks of a driver before a tier is trusted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::*;
use kiln_ir::Bindings;
use kiln_ir::plan::{Access, Binding, Buffer, Check, Grid, Kernel, Plan, Requirements, Tier};
use kiln_runtime::generate::{GenerateOptions, generate};
use kiln_runtime::sampling::SamplingOptions;
use kiln_runtime::{Artifact, LoadOptions, Model, RunOptions, Session};

const WORDS: u64 = 64;

/// The kernel `trial`, which writes `verdict`, an expression of the word's index
/// `i`, and its text.
fn trial(plan: &mut Plan, verdict: &str) -> (String, String) {
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
    (file, text)
}

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
    let mut kernels = kernels();
    kernels.extend([trial(&mut plan, verdict)]);
    let weights = Box::new(weights());
    let artifact = Artifact::from_parts(
        plan,
        kernels,
        Default::default(),
        Default::default(),
        weights,
    )?;
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

/// A model whose first tier has a kernel of its own that computes `then` instead of 5.
fn with_kernel(then: &str, options: &LoadOptions) -> kiln_runtime::Result<Model> {
    let mut plan = plan();
    let mut kernels = kernels();
    let mut own = plan.kernels["next"].clone();
    own.file = "kernels/own.wgsl".into();
    kernels.insert(
        own.file.clone(),
        format!("{HEAD}{}", NEXT.replace("5.0", then)),
    );
    plan.kernels.insert("own".into(), own);
    let (fancy, base) = plan.tiers.split_at_mut(1);
    fancy[0].requires = base[0].requires.clone();
    let step = fancy[0].entries.get_mut("step").unwrap();
    let launches = step.variants.iter_mut().flat_map(|v| &mut v.launches);
    for launch in launches.filter(|launch| launch.kernel == "next") {
        launch.kernel = "own".into();
    }
    let none = Default::default;
    let artifact = Artifact::from_parts(plan, kernels, none(), none(), Box::new(weights()))?;
    Model::open(&adapter("vulkan"), &artifact, options, &mut |_| {})
}

#[test]
fn a_tier_with_a_kernel_that_is_refused_gives_way_to_the_next() {
    assert_eq!(with_kernel("6.0", &options()).unwrap().tier(), "fancy");
    let refused = "undefined_name";
    let model = with_kernel(refused, &options()).unwrap();
    assert_eq!(model.tier(), "base");
    let [(tier, reason)] = model.refused().collect::<Vec<_>>()[..] else {
        panic!("{model:?}");
    };
    assert!(
        tier == "fancy" && reason.contains(refused),
        "{tier}: {reason}"
    );
    let text = message(with_kernel(refused, &named()));
    assert!(text.contains(refused) && text.contains("`own`"), "{text}");
}

#[test]
fn the_last_tier_that_fails_leaves_none() {
    let opened = open_with("7u", &options(), |tiers| tiers.truncate(1));
    let text = message(opened);
    let expected = "`fancy` lacks a driver that runs it correctly (64 of 64 results are wrong)";
    assert!(text.contains(expected), "{text}");
}

/// A model with a variant for one token whose check, if `verdict` is not empty, writes
/// that, that wants `features`, whose launch adds `error` to the logits, and in which a workgroup gives
/// up `stalls`.
fn with_grid(
    verdict: &str,
    features: &[&str],
    error: &str,
    stalls: &str,
    options: &LoadOptions,
) -> kiln_runtime::Result<Model> {
    let mut plan = plan();
    plan.tiers.remove(0);
    let mut kernels = kernels();
    kernels.extend([trial(&mut plan, verdict)]);
    let mut joined = plan.kernels["next"].clone();
    joined.file = "kernels/joined.wgsl".into();
    joined.bindings.push(Access::ReadWrite);
    let next = NEXT
        .replace("5.0 - distance", &format!("5.0 - distance + {error}"))
        .replace(
            "let b = id.x / 11u;",
            &format!("let b = id.x / 11u;\n    if {stalls} {{ state[1] = 1u; }}"),
        );
    let state = "@group(0) @binding(4) var<storage, read_write> state: array<u32>;";
    kernels.insert(joined.file.clone(), format!("{HEAD}{state}{next}"));
    plan.kernels.insert("joined".into(), joined);
    let step = plan.tiers[0].entries.get_mut("step").unwrap();
    let state = step.buffers.len();
    step.buffers.push(Buffer {
        image: false,
        zeroed: true,
        name: "grid".into(),
        bytes: vec![8.into()],
    });
    let mut variant = step.variants[0].clone();
    variant.name = "joined".into();
    variant.grid = Some(Grid {
        requires: Requirements {
            features: features.iter().map(|f| (*f).to_owned()).collect(),
            ..Requirements::default()
        },
        check: (!verdict.is_empty()).then(|| Check {
            kernel: "trial".into(),
            workgroups: 8,
            words: WORDS,
        }),
        state,
    });
    variant.launches[1].kernel = "joined".into();
    variant.launches[1].bindings.push(Binding::Buffer(state));
    step.variants.insert(0, variant);
    let weights = Box::new(weights());
    let artifact = Artifact::from_parts(
        plan,
        kernels,
        Default::default(),
        Default::default(),
        weights,
    )?;
    Model::open(&adapter("vulkan"), &artifact, options, &mut |_| {})
}

/// The token that follows two others, the second of which was fed alone.
fn next(model: &Model) -> u32 {
    let mut session = Session::new(model, 1, 8).unwrap();
    session.step(&[1], &[0]).unwrap();
    let logits = session.step(&[2], &[0]).unwrap();
    let best = (0..VOCAB).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]));
    best.unwrap()
}

#[test]
fn a_variant_with_a_grid_is_taken_where_it_can_be() {
    let unwanted = LoadOptions {
        join: false,
        ..options()
    };
    let models = [
        // Right but for what the order of sums makes of it.
        (
            true,
            with_grid("1u", &["subgroups"], "0.0001", "false", &options()),
        ),
        (false, with_grid("1u", &[], "0.0", "false", &unwanted)),
        (
            false,
            with_grid("select(1u, 0u, i == 9u)", &[], "0.0", "false", &options()),
        ),
        (
            false,
            with_grid("1u", &["telepathy"], "0.0", "false", &options()),
        ),
        // One that the driver refuses.
        (
            false,
            with_grid("1u", &[], "telepathy()", "false", &options()),
        ),
        // Seen in the trial: workgroups that wait in vain, the first time or later, and
        // a logit that is not what the plain kernel makes it.
        (false, with_grid("1u", &[], "0.0", "true", &options())),
        (
            false,
            with_grid("1u", &[], "0.0", "sym.past == 3u", &options()),
        ),
        (
            false,
            with_grid(
                "1u",
                &[],
                "select(0.0, 0.1, id.x == 7u)",
                "false",
                &options(),
            ),
        ),
    ];
    for (at, (joins, model)) in models.into_iter().enumerate() {
        let model = model.unwrap();
        assert_eq!(model.joins(), joins, "{at}");
        assert_eq!(next(&model), 3, "{at}");
    }
}

/// One that is slower than launches apart is left, once that is known without being loaded.
#[test]
fn a_grid_that_is_slower_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let kept = LoadOptions {
        cache_dir: Some(folder.path().to_owned()),
        ..options()
    };
    // Nothing comes of the number, but the driver can't know that.
    let slowly = "false { } \
        var n = id.x; \
        for (var i = 0u; i < 60000u; i++) { n = n * 1664525u + 1013904223u; } \
        if n == 77u";
    let slow = |options: &LoadOptions| with_grid("1u", &[], "0.0", slowly, options).unwrap();
    assert!(slow(&options()).joins());
    assert!(!slow(&kept).joins());
    let files = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().path());
    let mut files = files.filter(|p| p.to_str().unwrap().ends_with(".choices.json"));
    let path = files.next().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"joined\": false"), "{text}");
    assert!(!slow(&kept).joins());
    fs::write(&path, text.replace("false", "true")).unwrap();
    assert!(slow(&kept).joins());
}

/// Barriers that fail when a session is under way cost time and nothing else.
#[test]
fn a_grid_that_stalls_later_is_left() {
    let plain = LoadOptions {
        join: false,
        ..options()
    };
    let plain = with_grid("1u", &[], "0.0", "false", &plain).unwrap();
    // Where it stalls, the results are wrong too.
    let stalling = |from: u32| {
        let stalls = format!("sym.past >= {from}u");
        let error = format!("select(0.0, 9.0 * f32(id.x % 2u), {stalls})");
        let model = with_grid("1u", &[], &error, &stalls, &options()).unwrap();
        assert!(model.joins());
        model
    };

    let steps = |model: &Model| {
        let mut session = Session::new(model, 1, 12).unwrap();
        let step = |id| session.step(&[id], &[0]).unwrap();
        let logits: Vec<_> = [1, 2, 3, 4, 5, 6, 7].into_iter().map(step).collect();
        (logits, session.joins())
    };
    let (expected, joins) = steps(&plain);
    assert!(!joins);
    assert_eq!(steps(&stalling(5)), (expected.clone(), false));

    // With nothing to check it is taken as it is, and left all the same.
    let unchecked = |error: &str, stalls: &str| with_grid("", &[], error, stalls, &options());
    let model = unchecked("select(0.0, 9.0, id.x == 7u)", "false").unwrap();
    let (logits, joins) = steps(&model);
    assert!(joins && logits != expected);
    let failing = unchecked("select(0.0, 9.0, id.x == 7u)", "true").unwrap();
    assert_eq!(steps(&failing), (expected, false));
    // Outside of sessions too, where nobody would compute it again.
    let alone = |model: &Model| {
        let sizes = Bindings::new().with("batch", 1).with("seq", 1);
        let inputs: [(&str, &[u8]); 2] = [("ids", &[1, 0, 0, 0]), ("start", &[0; 4])];
        model.run_collect("step", &inputs, &sizes, &RunOptions::default())
    };
    assert_eq!(alone(&failing).unwrap(), alone(&plain).unwrap());

    // Tokens that are chosen on the device: the barriers fail at every place of a burst
    // and behind it, with tokens drawn and the history minded, and in a batch of which
    // a sequence may have ended.
    let drawn = SamplingOptions {
        temperature: 2.0,
        repetition_penalty: 1.5,
        ..SamplingOptions::default()
    };
    let tokens = |model: &Model, prompts: &[Vec<u32>], sampling: &SamplingOptions, stop: u32| {
        let mut session = Session::new(model, prompts.len(), 24).unwrap();
        let options = GenerateOptions {
            max_new_tokens: 18,
            sampling: sampling.clone(),
            stop_tokens: vec![stop],
            ..GenerateOptions::default()
        };
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        let (texts, _) = generate(&mut session, prompts, &options, go_on).unwrap();
        // It goes on where it was.
        let start: Vec<u32> = prompts.iter().map(|p| 6 - p.len() as u32).collect();
        let next = session.step(&vec![3; prompts.len()], &start).unwrap();
        (texts, next, session.past())
    };
    let prompt = |length: u32| (1..=length).collect::<Vec<u32>>();
    for from in [6, 7, 8, 11, 12, 22] {
        let model = stalling(from);
        for sampling in [&SamplingOptions::default(), &drawn] {
            for prompts in [vec![prompt(6)], vec![prompt(2), prompt(6), prompt(3)]] {
                for stop in 0..VOCAB {
                    let found = tokens(&model, &prompts, sampling, stop);
                    let expected = tokens(&plain, &prompts, sampling, stop);
                    assert_eq!(found, expected, "from {from}, stop {stop}");
                }
            }
        }
    }
}
