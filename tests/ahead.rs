//! Kernels that the software driver's cache receives when a model is loaded.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::fixtures::Fixture;
use common::{adapter, compile_fixture, in_memory};
use kiln_ir::Packing;
use kiln_models::registry::EntryOptions;
use kiln_runtime::{LoadOptions, Model, Session};

/// Some of its images have one row of texels, others several, some of them powers of two
/// across or down.
const CONFIG: &str = r#"{"model_type": "gpt2", "vocab_size": 100, "n_positions": 64,
    "n_embd": 256, "n_head": 4, "n_layer": 1}"#;

/// Says that a process is to load the model, or to run it too.
const ROLE: &str = "KILN_TEST_AHEAD";

/// Names the packing of its weights.
const PACKING: &str = "KILN_TEST_PACKING";

/// What its process prints before the number of kernels.
const AHEAD: &str = "compiled ahead: ";

const PROMPT: u64 = 20;

/// A process of its own, since a driver reads where its cache is when it is loaded.
#[test]
#[ignore = "it is a part of the other test"]
fn part() {
    let fixture = Fixture::random(CONFIG);
    let packing = Packing::from_name(&env::var(PACKING).unwrap()).unwrap();
    let compiled = compile_fixture(&fixture, packing, &EntryOptions::default());
    let artifact = in_memory(compiled, &*fixture.loaded.params);
    let options = LoadOptions {
        cache_dir: None,
        ..LoadOptions::default()
    };
    let options = options.entries(&["step"]).session(1, PROMPT);
    let mut ahead = 0;
    let model = Model::open(&adapter("llvmpipe"), &artifact, &options, &mut |p| {
        ahead = ahead.max(p.kernels_ahead);
    });
    let model = model.unwrap();
    println!("{AHEAD}{ahead}");
    if env::var(ROLE).unwrap() == "run" {
        let mut session = Session::new(&model, 1, PROMPT + 2).unwrap();
        session.step(&[7; PROMPT as usize], &[0]).unwrap();
        for _ in 0..2 {
            session.step(&[7], &[0]).unwrap();
        }
    }
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap();
    let counts = entries.map(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path),
            false => 1,
        }
    });
    counts.sum()
}

/// Loads the model, or runs it too, with this cache; how many kernels were compiled ahead,
/// and how many files the cache has then.
fn part_of(role: &str, packing: &str, cache: &Path) -> (usize, usize) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["part", "--exact", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .env(PACKING, packing)
        .env("XDG_CACHE_HOME", cache)
        .env("MESA_DISK_CACHE_MULTI_FILE", "1")
        .env_remove("MESA_SHADER_CACHE_DIR")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{packing}, {role}: {text}{errors}");
    let ahead = text.lines().find_map(|line| line.strip_prefix(AHEAD));
    (ahead.unwrap().parse().unwrap(), files(cache))
}

/// What is compiled ahead is what runs: with the stand-ins for sizes and images the driver
/// makes the same code, and running adds nothing.
#[test]
fn a_model_that_is_loaded_has_nothing_left_to_compile() {
    for packing in ["f32", "q8"] {
        // Where other tests take the processors, the driver may write its cache too late
        // for a kernel to be found there.
        let mut attempts = 0;
        let cache = loop {
            attempts += 1;
            assert!(attempts <= 5, "{packing}: no kernels were compiled ahead");
            let cache = tempfile::tempdir().unwrap();
            let (ahead, files) = part_of("load", packing, cache.path());
            if ahead > 3 {
                assert!(files > ahead, "{packing}: {ahead} kernels in {files} files");
                break cache;
            }
        };
        let loaded = files(cache.path());
        let (_, ran) = part_of("run", packing, cache.path());
        assert_eq!(loaded, ran, "{packing}: running compiled kernels");
    }
}
