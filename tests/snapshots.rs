//! What the compiler makes of a two-layer GPT-2, to be read: the graph as built
//! and after each pass that changed it, the plan, and every kernel of a decode
//! step. `cargo insta review` shows what a change to the compiler does.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use kiln_codegen::{CompileOptions, Compiled, Target, compile};
use kiln_ir::Packing;
use kiln_ir::plan::Launch;
use kiln_models::registry::{EntryOptions, Model, from_config};

/// Two layers with no two sizes alike.
const CONFIG: &str = r#"{
    "model_type": "gpt2", "vocab_size": 96, "n_positions": 32, "n_embd": 24,
    "n_layer": 2, "n_head": 3, "n_inner": 40, "activation_function": "gelu_new"
}"#;

fn model() -> Box<dyn Model> {
    from_config(CONFIG).unwrap()
}

fn compiled(packing: Packing, observer: &mut kiln_codegen::Observer<'_>) -> Compiled {
    let model = model();
    let options = EntryOptions::default();
    let graphs = ["forward", "step"].map(|entry| model.graph(entry, &options).unwrap());
    let how = CompileOptions {
        packing,
        ..CompileOptions::default()
    };
    compile(&graphs, model.info(&options), &how, observer).unwrap()
}

#[test]
fn the_graph_after_each_pass() {
    let mut stages: Vec<(String, String)> = Vec::new();
    compiled(Packing::F32, &mut |entry, pass, graph, changed| {
        if entry == "step" && (changed.any() || pass == "input") {
            // A pass that runs twice has two snapshots.
            let number = stages.len();
            stages.push((format!("step_{number:02}_{pass}"), graph.to_string()));
        }
    });
    assert!(stages.len() > 5, "{}", stages.len());
    for (name, text) in stages {
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn the_plan() {
    let compiled = compiled(Packing::F32, &mut |_, _, _, _| {});
    insta::assert_snapshot!(
        "plan",
        serde_json::to_string_pretty(&compiled.plan).unwrap()
    );
}

#[test]
fn the_kernels_of_a_decode_step() {
    for packing in [Packing::F32, Packing::Q8] {
        let compiled = compiled(packing, &mut |_, _, _, _| {});
        for tier in &compiled.plan.tiers {
            let variant = &tier.entries["step"].variants[0];
            let mut seen = BTreeSet::new();
            let new = |l: &&Launch| seen.insert(l.kernel.clone());
            let launches: Vec<&Launch> = variant.launches.iter().filter(new).collect();
            let mut text = String::new();
            for launch in launches {
                let file = &compiled.plan.kernels[&launch.kernel].file;
                let _ = writeln!(text, "{}\n", compiled.kernels[file]);
            }
            insta::assert_snapshot!(format!("decode_{}_{}", tier.name, packing.name()), text);
        }
    }
}

#[test]
fn every_kernel_translates() {
    for packing in Packing::ALL {
        let compiled = compiled(packing, &mut |_, _, _, _| {});
        for target in Target::ALL {
            let files = compiled.translate(target).unwrap();
            assert_eq!(files.len(), compiled.kernels.len());
            assert!(files.values().all(|text| !text.is_empty()));
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let loaded = kiln_models::source::open_demo().unwrap();
        let options = EntryOptions::default();
        let entries = loaded.model.entries().into_iter();
        let graphs: Vec<_> = entries
            .map(|e| loaded.model.graph(e, &options).unwrap())
            .collect();
        let how = CompileOptions {
            packing: Packing::Q4,
            ..CompileOptions::default()
        };
        let compiled = compile(&graphs, loaded.info(&options), &how, &mut |_, _, _, _| {}).unwrap();
        let out = folder.path().join(name);
        compiled
            .write(&out, &*loaded.params, None, &mut |_, _| {})
            .unwrap();
        files(&out)
    };
    let (one, two) = (write("one.kiln"), write("two.kiln"));
    assert!(one.len() > 50);
    for (a, b) in one.iter().zip(&two) {
        assert_eq!(a.0, b.0);
        assert!(a.1 == b.1, "{} differs", a.0);
    }
    assert_eq!(one.len(), two.len());
}

/// Every file below a folder, by relative path.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path
                        .strip_prefix(root)
                        .unwrap()
                        .to_string_lossy()
                        .into_owned();
                    out.push((name, std::fs::read(&path).unwrap()));
                }
            }
        }
    }
    out.sort();
    out
}
