//! Every stage of a small model as text, so that a change to the compiler shows
//! what it does to what is emitted: the graph as built and after each pass, the
//! plan, and the kernels.
//!
//! After a change that is meant, `cargo insta review` (or `INSTA_UPDATE=always cargo
//! test --test snapshots`) brings the files up to date.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::compile_fixture;
use common::fixtures::{Fixture, fixture};
use kiln_codegen::{CompileOptions, Compiled, Target, compile};
use kiln_ir::{Graph, Packing};
use kiln_models::registry::{EntryOptions, from_config};

/// GPT-2 with two layers, of sizes that are easy to tell apart.
const CONFIG: &str = r#"{"model_type": "gpt2", "vocab_size": 100, "n_positions": 64, "n_embd": 32,
    "n_head": 4, "n_layer": 2}"#;

/// Llama with two layers: queries in groups, and a head of its own.
const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 64,
    "hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2}"#;

/// The graph as built and as each pass that changed it left it.
fn stages(config: &str, entry: &str) -> (Compiled, Vec<(&'static str, String)>) {
    let model = from_config(config).unwrap();
    let mut stages = Vec::new();
    let mut observer =
        |_: &str, pass: &'static str, graph: &Graph, changed: kiln_passes::Changed| {
            if pass == "input" || changed.any() {
                stages.push((pass, graph.to_string()));
            }
        };
    let maxima = EntryOptions::default();
    let (graph, info) = (model.graph(entry, &maxima).unwrap(), model.info(&maxima));
    let options = CompileOptions::default();
    let compiled = compile(&[graph], info, &options, &mut observer).unwrap();
    (compiled, stages)
}

/// The snapshots in one folder.
struct Snapshots {
    folder: &'static str,
    taken: BTreeSet<String>,
}

impl Snapshots {
    fn of(folder: &'static str) -> Self {
        Snapshots {
            folder,
            taken: BTreeSet::new(),
        }
    }

    fn path(&self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        root.join("tests/snapshots").join(self.folder)
    }

    fn check(&mut self, name: &str, text: &str) {
        assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{name}");
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(self.path());
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, text));
        self.taken.insert(format!("{name}.snap"));
    }

    /// Fails for files of what is no more.
    fn finish(self) {
        let files = fs::read_dir(self.path()).unwrap();
        let files = files.map(|f| f.unwrap().file_name().into_string().unwrap());
        let found: BTreeSet<String> = files.filter(|f| f.ends_with(".snap")).collect();
        let left: Vec<&String> = found.difference(&self.taken).collect();
        assert!(
            left.is_empty(),
            "remove from {}: {left:?}",
            self.path().display()
        );
    }
}

#[test]
fn graphs() {
    let mut snapshots = Snapshots::of("graphs");
    for entry in ["step", "forward"] {
        let (_, stages) = stages(CONFIG, entry);
        for (at, (pass, text)) in stages.iter().enumerate() {
            snapshots.check(&format!("{entry}.{at:02}.{pass}"), text);
        }
    }
    snapshots.finish();
}

#[test]
fn graphs_of_llama() {
    let mut snapshots = Snapshots::of("llama");
    let (compiled, stages) = stages(LLAMA, "step");
    for (at, (pass, text)) in stages.iter().enumerate() {
        snapshots.check(&format!("step.{at:02}.{pass}"), text);
    }
    // What GPT-2 has none of.
    for (name, kernel) in &compiled.plan.kernels {
        if name.starts_with("pointwise.") {
            snapshots.check(name, &compiled.kernels[&kernel.file]);
        }
    }
    snapshots.finish();
}

#[test]
fn plan() {
    let mut snapshots = Snapshots::of("plan");
    let (compiled, _) = stages(CONFIG, "step");
    let json = serde_json::to_string_pretty(&compiled.plan).unwrap();
    snapshots.check("step", &json);
    snapshots.finish();
}

#[test]
fn kernels() {
    let mut snapshots = Snapshots::of("kernels");
    let (compiled, _) = stages(CONFIG, "step");
    check_kernels(&mut snapshots, ALTERNATIVES, &compiled, |_| true);
    snapshots.finish();
}

/// Takes a snapshot of every kernel that `is_shown` by its text, and one of what those that
/// stand for others have that these have not.
fn check_kernels(
    snapshots: &mut Snapshots,
    name_of_others: &str,
    compiled: &Compiled,
    is_shown: fn(&str) -> bool,
) {
    let plan = &compiled.plan;
    let text = |name: &str| compiled.kernels[&plan.kernels[name].file].as_str();
    let entries = plan.tiers.iter().flat_map(|t| t.entries.values());
    let launches = entries
        .flat_map(|e| &e.variants)
        .flat_map(|v| v.all_launches());
    let (mut usual, mut others) = (BTreeSet::new(), BTreeMap::new());
    for launch in launches {
        usual.insert(launch.kernel.as_str());
        for way in &launch.alternatives {
            others.insert(way.kernel.as_str(), launch.kernel.as_str());
        }
    }
    others.retain(|name, _| is_shown(text(name)) && !usual.contains(name));
    for name in plan.kernels.keys().map(String::as_str) {
        if is_shown(text(name)) && !others.contains_key(name) {
            snapshots.check(name, text(name));
        }
    }
    let lines = |sign: char, of: &str, but: &str| {
        // The first line is the name.
        let known: BTreeSet<&str> = text(but).lines().collect();
        let own = text(of)
            .lines()
            .skip(1)
            .filter(|line| !known.contains(line));
        own.map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    let others = others.iter().map(|(name, of)| {
        let (less, more) = (lines('-', of, name), lines('+', name, of));
        format!("{name}, not {of}\n{less}{more}\n")
    });
    snapshots.check(name_of_others, &others.collect::<String>());
}

/// The snapshot of kernels that stand for others.
const ALTERNATIVES: &str = "alternatives";

fn has_matrices(kernel: &str) -> bool {
    kernel.contains("enable wgpu_cooperative_matrix;")
}

/// Whether a kernel is only there with matrices.
fn goes_with_matrices(kernel: &str) -> bool {
    has_matrices(kernel) || kernel.starts_with("// subgroups_check")
}

/// Whether a kernel keeps to what WebGPU has.
fn is_webgpu(kernel: &str) -> bool {
    let of_grids = ["@coherent ", "<rgba32uint, read_write>"];
    !has_matrices(kernel) && !of_grids.iter().any(|text| kernel.contains(text))
}

/// The kernels with cooperative matrices, the checks of drivers among them, of a model with
/// sums long enough to be cut in parts; of those for other matrices, which differ by
/// constants and types, the ones for Apple's.
#[test]
fn kernels_with_matrices() {
    let config = r#"{"model_type": "gpt2", "vocab_size": 100, "n_positions": 64, "n_embd": 64,
        "n_inner": 384, "n_head": 4, "n_layer": 2}"#;
    let model = from_config(config).unwrap();
    let maxima = EntryOptions::default();
    let (graph, info) = (model.graph("step", &maxima).unwrap(), model.info(&maxima));
    let mut snapshots = Snapshots::of("coop");
    for (packing, tier, mark) in [
        (Packing::F16, "coop", ""),
        (Packing::Q8, "coop", ""),
        (Packing::F16, "coop-8x8", ".8x8"),
    ] {
        let options = CompileOptions {
            packing,
            tiers: Some(vec![tier.to_owned()]),
            ..CompileOptions::default()
        };
        let graphs = std::slice::from_ref(&graph);
        let compiled = compile(graphs, info.clone(), &options, &mut |_, _, _, _| {}).unwrap();
        let name = format!("{ALTERNATIVES}.{}{mark}", packing.name());
        check_kernels(&mut snapshots, &name, &compiled, goes_with_matrices);
    }
    snapshots.finish();
}

/// Fixtures with sizes that are multiples of four, and that are not.
const FIXTURES: [&str; 2] = ["base", "tanh"];

#[test]
fn two_compilations_give_the_same_bytes() {
    for name in FIXTURES {
        for packing in Packing::ALL {
            let folder = tempfile::tempdir().unwrap();
            let write = |name: &str| {
                let source = Fixture::open(&fixture(name));
                let compiled = compile_fixture(&source, packing, &EntryOptions::default());
                let out = folder.path().join(format!("{name}.kiln"));
                let params = &*source.loaded.params;
                compiled
                    .write(&out, params, &BTreeMap::new(), &mut |_, _| {})
                    .unwrap();
                let files = files(&out);
                fs::remove_dir_all(out).unwrap();
                files
            };
            let (first, second) = (write(name), write(name));
            assert!(first.contains_key("plan.json") && first.contains_key("weights.safetensors"));
            assert!(first.keys().eq(second.keys()));
            for (file, bytes) in &first {
                assert!(second[file] == *bytes, "{name}, {}: {file}", packing.name());
            }
        }
    }
}

/// The files of a folder and those in it, by their path from there.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(dir) = folders.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path
                .strip_prefix(folder)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            out.insert(name, fs::read(path).unwrap());
        }
    }
    out
}

#[test]
fn kernels_translate_to_every_language() {
    for name in FIXTURES {
        let fixture = Fixture::open(&fixture(name));
        for packing in Packing::ALL {
            let compiled = compile_fixture(&fixture, packing, &EntryOptions::default());
            for target in Target::ALL {
                let translated = compiled.translate(target).unwrap();
                // Of the other languages none has matrices of these sizes, or orders what
                // the workgroups of a launch do.
                let texts = compiled.kernels.values();
                let expected = texts.filter(|t| target == Target::SpirV || is_webgpu(t));
                assert_eq!(translated.len(), expected.count());
                for (file, bytes) in translated {
                    let text = String::from_utf8_lossy(&bytes);
                    let is_program = match target {
                        Target::SpirV => bytes[..4] == 0x0723_0203_u32.to_le_bytes(),
                        Target::Msl => text.contains("kernel void"),
                        Target::Hlsl => text.contains("[numthreads("),
                    };
                    assert!(is_program, "{file}");
                }
            }
        }
    }
}

/// Some drivers give NaN for `tanh` of large arguments, and for `exp` of larger
/// ones infinity, which a kernel may be compiled as if it did not occur.
#[test]
fn tanh_is_never_given_a_large_argument() {
    let mut found = 0;
    for name in ["base", "tanh"] {
        let fixture = Fixture::open(&fixture(name));
        let compiled = compile_fixture(&fixture, Packing::F32, &EntryOptions::default());
        for (file, text) in &compiled.kernels {
            let calls = text.match_indices("tanh(");
            let calls = calls.map(|(at, call)| (&text[..at], &text[at + call.len()..]));
            for (before, argument) in calls {
                let name_ends_there = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
                if name_ends_there {
                    assert!(argument.starts_with("clamp("), "{file}: tanh({argument}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 0);
}
