//! Launches that can be done in several ways: the fastest is measured, and kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use kiln_ir::plan::{Alternative, Plan, Requirements};
use kiln_runtime::{Artifact, LoadOptions, Model, Session};

/// A kernel for `next` that takes long, for so many rounds, and adds `error` to what it gives.
fn kernel(rounds: u32, error: &str) -> String {
    // Nothing is ever made of the number, but the driver can't know that.
    let work = format!(
        "    var number = id.x + sym.past;
    for (var i = 0u; i < {rounds}u; i++) {{
        number = number * 1664525u + 1013904223u;
    }}
    let odd = select(0.0, 1.0, number == 77u);
"
    );
    let text = NEXT.replace("    let b =", &format!("{work}    let b ="));
    format!(
        "{HEAD}{}",
        text.replace("5.0 - distance", &format!("5.0 + odd - distance + {error}"))
    )
}

/// The tiny model, whose prompts end in a slow kernel or one of these, which may need a
/// feature.
fn artifact(others: &[(&str, String, &str)]) -> Artifact {
    artifact_with(others, |_| {})
}

fn artifact_with(others: &[(&str, String, &str)], change: impl FnOnce(&mut Plan)) -> Artifact {
    let (mut plan, mut texts) = (plan(), kernels());
    plan.tiers.remove(0);
    let next = plan.kernels["next"].clone();
    let mut ways = Vec::new();
    let slow = ("slow", kernel(60_000, "0.0"), "");
    for (name, text, feature) in [slow].iter().chain(others) {
        let mut kernel = next.clone();
        kernel.file = format!("kernels/{name}.wgsl");
        texts.insert(kernel.file.clone(), text.clone());
        plan.kernels.insert((*name).to_owned(), kernel);
        ways.push((*name, *feature));
    }
    for entry in plan.tiers[0].entries.values_mut() {
        for launch in entry.variants.iter_mut().flat_map(|v| &mut v.launches) {
            if launch.kernel != "next" {
                continue;
            }
            launch.kernel = "slow".into();
            launch.alternatives = ways[1..]
                .iter()
                .map(|(name, feature)| Alternative {
                    kernel: (*name).to_owned(),
                    workgroups: launch.workgroups.clone(),
                    bindings: launch.bindings.clone(),
                    requires: Requirements {
                        features: Some(*feature)
                            .filter(|f| !f.is_empty())
                            .map(str::to_owned)
                            .into_iter()
                            .collect(),
                        ..Requirements::default()
                    },
                    shares: false,
                })
                .collect();
        }
    }
    change(&mut plan);
    Artifact::from_parts(
        plan,
        texts,
        BTreeMap::new(),
        BTreeMap::new(),
        Box::new(weights()),
    )
    .unwrap()
}

fn in_folder(folder: &Path) -> LoadOptions {
    LoadOptions {
        cache_dir: Some(folder.to_owned()),
        ..options()
    }
}

/// The model, with how many runs were measured.
fn load(artifact: &Artifact, options: &LoadOptions) -> (Model, usize) {
    let mut trials = 0;
    let model = Model::open(&adapter("vulkan"), artifact, options, &mut |p| {
        assert!(p.trials <= p.trials_total);
        trials = trials.max(p.trials);
    });
    (model.unwrap(), trials)
}

const FAST: [(&str, &str, &str); 2] = [("decode", "slow", "fast"), ("prefill", "slow", "fast")];

fn chosen(model: &Model) -> Vec<(&str, &str, &str)> {
    model.faster_kernels().collect()
}

/// Where what was chosen is kept.
fn kept_file(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut files = files.filter(|p| p.to_str().unwrap().ends_with(".choices.json"));
    let (path, None) = (files.next().unwrap(), files.next()) else {
        panic!("there is more than one file of choices");
    };
    path
}

/// What a prompt and a token give.
fn logits(model: &Model) -> Vec<f32> {
    let mut session = Session::new(model, 1, 8).unwrap();
    let mut logits = session.step(&[1, 2, 3], &[0]).unwrap();
    logits.extend(session.step(&[4], &[0]).unwrap());
    logits
}

#[test]
fn the_fastest_way_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let options = in_folder(folder.path());
    let artifact = artifact(&[
        ("fast", kernel(1, "0.0"), ""),
        ("other", kernel(30_000, "0.0"), ""),
    ]);
    let (plain, trials) = load(&artifact, &common::options());
    assert_eq!((trials, chosen(&plain)), (0, vec![]));
    let expected = logits(&plain);

    let (model, trials) = load(&artifact, &options);
    assert!(trials > 0);
    assert_eq!(chosen(&model), FAST);
    assert_eq!(logits(&model), expected);

    // It is known from then on, and only for those who ask.
    let (again, trials) = load(&artifact, &options);
    assert_eq!((trials, chosen(&again)), (0, FAST.to_vec()));
    assert_eq!(logits(&again), expected);
    let untuned = LoadOptions {
        tune: false,
        ..options.clone()
    };
    let (untuned, trials) = load(&artifact, &untuned);
    assert_eq!((trials, chosen(&untuned)), (0, vec![]));

    // A file says what is taken; one that is damaged says nothing, and is written anew.
    let path = kept_file(folder.path());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"fast\"", "\"other\"")).unwrap();
    let (other, trials) = load(&artifact, &options);
    assert_eq!(
        (trials, chosen(&other)),
        (
            0,
            [("decode", "slow", "other"), ("prefill", "slow", "other")].to_vec()
        )
    );
    fs::write(&path, text.replace("\"fast\"", "\"none of them\"")).unwrap();
    let (none, trials) = load(&artifact, &options);
    assert_eq!(trials, 0);
    assert_eq!(logits(&none), expected);
    // Measuring a variant that was the end of a process is tried again, but not for ever.
    let begun = |times: u32| {
        let begun = text.replace(
            "\"tries\": {}",
            &format!("\"tries\": {{\"decode\": {times}}}"),
        );
        assert_ne!(begun, text);
        begun.replacen("\"slow\": \"fast\"", "", 1)
    };
    fs::write(&path, begun(2)).unwrap();
    let (again, trials) = load(&artifact, &options);
    assert!(trials > 0);
    assert_eq!(again.untuned().count(), 0);
    assert_eq!(chosen(&again), FAST);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    fs::write(&path, begun(3)).unwrap();
    let (left, trials) = load(&artifact, &options);
    assert_eq!((trials, chosen(&left)), (0, vec![FAST[1]]));
    assert_eq!(left.untuned().collect::<Vec<_>>(), ["decode"]);
    assert_eq!(logits(&left), expected);
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    let (anew, trials) = load(&artifact, &options);
    assert!(trials > 0);
    assert_eq!(chosen(&anew), FAST);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

/// What is found on one tier says nothing of another.
#[test]
fn tiers_are_measured_apart() {
    let folder = tempfile::tempdir().unwrap();
    let fast = [("fast", kernel(1, "0.0"), "")];
    let on = |tier: &str| LoadOptions {
        tier: Some(tier.to_owned()),
        ..in_folder(folder.path())
    };
    let both = artifact_with(&fast, |plan| {
        let mut other = plan.tiers[0].clone();
        other.name = "other".into();
        plan.tiers.push(other);
    });
    for tier in ["base", "other"] {
        let (model, trials) = load(&both, &on(tier));
        assert!(trials > 0, "{tier}");
        assert_eq!(chosen(&model), FAST, "{tier}");
    }
}

/// Where nothing can be kept nothing is measured: it would be another each time.
#[test]
fn nothing_is_measured_that_can_not_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let artifact = artifact(&[("fast", kernel(1, "0.0"), "")]);
    let (model, trials) = load(&artifact, &in_folder(&file));
    assert_eq!((trials, chosen(&model)), (0, vec![]));
}

/// One that gives something else, or nothing, that the driver refuses, or that needs what
/// the device has not, is left, however fast it is.
#[test]
fn a_way_that_is_wrong_is_left() {
    let wrong = kernel(1, "select(0.0, 0.1, id.x == 7u)");
    let idle = kernel(1, "0.0").replace("id.x >= sym.batch * 11u", "id.x >= 8u");
    for (at, other) in [
        ("wrong", wrong, ""),
        ("idle", idle, ""),
        ("refused", kernel(1, "telepathy()"), ""),
        ("foreign", kernel(1, "0.0"), "telepathy"),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = tempfile::tempdir().unwrap();
        let artifact = artifact(&[other]);
        let kept = in_folder(folder.path());
        let (model, trials) = load(&artifact, &kept);
        assert_eq!(chosen(&model), [], "{at}");
        // What was compared is not compared again.
        assert_eq!(trials > 0, at < 2, "{at}");
        let (_, trials) = load(&artifact, &kept);
        assert_eq!(trials, 0, "{at}");
        let (plain, _) = load(&artifact, &options());
        assert_eq!(logits(&model), logits(&plain), "{at}");
    }
}

/// What was the fastest once may be refused by a driver that is newer: the model is opened
/// without it.
#[test]
fn a_kept_way_that_is_refused_by_now_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(&[
        ("other", kernel(1, "0.0"), ""),
        ("refused", kernel(1, "telepathy()"), ""),
    ]);
    let kept = in_folder(folder.path());
    load(&artifact, &kept);
    let path = kept_file(folder.path());
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replace("\"other\"", "\"refused\"");
    assert_ne!(changed, text);
    fs::write(&path, &changed).unwrap();

    let (model, trials) = load(&artifact, &kept);
    assert_eq!((trials, chosen(&model)), (0, vec![]));
    let (plain, _) = load(&artifact, &options());
    assert_eq!(logits(&model), logits(&plain));
    assert_eq!(model.loss(), None);
}
