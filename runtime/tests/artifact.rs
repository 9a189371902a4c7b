//! Artifact folders: what is accepted, and what each fault is called.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::*;
use kiln_ir::ParamSource;
use kiln_ir::packing::Packing;
use kiln_ir::plan::{Binding, PLAN_VERSION, Plan, WeightPart};
use kiln_runtime::{Artifact, Model, RunOptions};

/// A safetensors file of byte tensors.
fn safetensors(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut header = String::from("{");
    let mut at = 0;
    for (i, (name, bytes)) in tensors.iter().enumerate() {
        let (comma, end) = (if i > 0 { "," } else { "" }, at + bytes.len());
        header += &format!(
            "{comma}\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{at},{end}]}}",
            bytes.len()
        );
        at = end;
    }
    header += "}";
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.bytes());
    out.extend(tensors.iter().flat_map(|(_, b)| b.iter().copied()));
    out
}

/// Writes the tiny model with the hashes of its files.
fn write(dir: &Path, mut plan: Plan, weights: &[(&str, Vec<u8>)]) {
    let mut files: Vec<(String, Vec<u8>)> = kernels()
        .into_iter()
        .map(|(path, text)| (path, text.into_bytes()))
        .collect();
    files.push(("weights.safetensors".into(), safetensors(weights)));
    files.push(("tokenizer.json".into(), b"{}".to_vec()));
    files.push(("graphs/step.kiln".into(), b"graph step".to_vec()));
    for (path, bytes) in files {
        let full = dir.join(&path);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        fs::write(&full, &bytes).unwrap();
        plan.files
            .insert(path, blake3::hash(&bytes).to_hex().to_string());
    }
    write_plan(dir, &plan);
}

fn write_plan(dir: &Path, plan: &Plan) {
    fs::write(
        dir.join("plan.json"),
        serde_json::to_vec_pretty(plan).unwrap(),
    )
    .unwrap();
}

fn gain() -> Vec<(&'static str, Vec<u8>)> {
    vec![("gain", weights().remove("gain").unwrap())]
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), plan(), &gain());
    dir
}

fn open(dir: &tempfile::TempDir) -> String {
    let text = message(Artifact::open(dir.path()));
    text.replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn a_folder_runs_as_its_parts_do() {
    let dir = folder();
    let artifact = Artifact::open(dir.path()).unwrap();
    assert_eq!(
        artifact.companion("tokenizer.json").unwrap().as_deref(),
        Some("{}")
    );
    for other in ["chat.json", "weights.safetensors", "kernels/copy.wgsl"] {
        assert_eq!(artifact.companion(other).unwrap(), None, "{other}");
    }
    let graphs: Vec<&str> = artifact.graph_files().collect();
    assert_eq!(graphs, ["graphs/step.kiln"]);
    assert_eq!(artifact.text(graphs[0]).unwrap(), "graph step");
    assert_eq!(artifact.path(), Some(dir.path()));
    assert_eq!(artifact.weight("gain").unwrap().len(), 16);
    let mut steps = Vec::new();
    let loaded = Model::open(&adapter("vulkan"), &artifact, &options(), &mut |p| {
        steps.push(p)
    });
    let loaded = loaded.unwrap();
    let last = steps.last().unwrap();
    assert_eq!((last.weight_bytes, last.weight_bytes_total), (16, 16));
    // The plan's, and four that choose tokens.
    assert_eq!((last.kernels, last.kernels_total), (8, 8));
    let ids = [vec![7, 8]];
    let all = RunOptions::default();
    let expected = model("vulkan").forward_collect(&ids, &all).unwrap();
    assert_eq!(loaded.forward_collect(&ids, &all).unwrap(), expected);
}

#[test]
fn a_text_is_read_when_it_is_wanted_and_checked_again() {
    let dir = folder();
    let artifact = Artifact::open(dir.path()).unwrap();
    let file = "kernels/next.wgsl";
    let text = artifact.text(file).unwrap().into_owned();
    fs::write(dir.path().join(file), format!("{text} ")).unwrap();
    let outcome = Model::open(&adapter("vulkan"), &artifact, &options(), &mut |_| {});
    let found = message(outcome);
    assert!(
        found.starts_with("`kernels/next.wgsl` of the artifact `"),
        "{found}"
    );
    assert!(found.contains("is altered;"), "{found}");
    fs::remove_file(dir.path().join(file)).unwrap();
    let gone = artifact.text(file).unwrap_err().to_string();
    assert!(gone.contains("is missing;"), "{gone}");
    fs::write(dir.path().join(file), text).unwrap();
    Model::open(&adapter("vulkan"), &artifact, &options(), &mut |_| {}).unwrap();
    // Files that are no texts are none.
    assert!(artifact.text("weights.safetensors").is_err());
    let none = artifact.text("kernels/none.wgsl");
    assert_eq!(
        none.unwrap_err().to_string(),
        "the artifact has no text `kernels/none.wgsl`; `Artifact::kernel_files` and `graph_files` \
         name those that it has"
    );
}

#[test]
fn pipelines_are_kept_in_a_cache_that_damage_does_not_break() {
    let artifact = artifact_of(plan());
    let cache = tempfile::tempdir().unwrap();
    let mut with_cache = options();
    with_cache.cache_dir = Some(cache.path().join("deep"));
    let load = || Model::open(&adapter("vulkan"), &artifact, &with_cache, &mut |_| {}).unwrap();
    let supported = load()
        .device()
        .features()
        .contains(wgpu::Features::PIPELINE_CACHE);
    assert!(supported, "lavapipe has pipeline caches");
    let files = || -> Vec<_> {
        let entries = fs::read_dir(cache.path().join("deep")).unwrap();
        let paths = entries.map(|e| e.unwrap().path());
        // What is known of the driver's own cache is none of these.
        let own = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "bin");
        paths.filter(own).collect()
    };
    let [file] = files().try_into().unwrap();
    let written = fs::read(&file).unwrap();
    load();
    assert_eq!(fs::read(&file).unwrap(), written);
    fs::write(&file, &written[..written.len() / 2]).unwrap();
    let outputs = load().forward_collect(&[vec![1]], &RunOptions::default());
    assert!(outputs.is_ok());
    // Parts of an artifact share its cache.
    for part in [&["forward"], &["step"]] {
        let part = with_cache.clone().entries(part).session(1, 1);
        Model::open(&adapter("vulkan"), &artifact, &part, &mut |_| {}).unwrap();
    }
    assert_eq!(files().len(), 1);
}

#[test]
fn a_missing_or_altered_file_is_named() {
    let dir = folder();
    fs::remove_file(dir.path().join("kernels/next.wgsl")).unwrap();
    assert_eq!(
        open(&dir),
        "`kernels/next.wgsl` of the artifact `DIR` is missing; \
         compile it again or copy the whole folder again"
    );
    let dir = folder();
    let weights = dir.path().join("weights.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert!(open(&dir).starts_with("`weights.safetensors` of the artifact `DIR` is altered;"));
    let dir = folder();
    fs::remove_file(dir.path().join("plan.json")).unwrap();
    assert!(open(&dir).starts_with("`plan.json` of the artifact `DIR` is missing;"));
    let gone = message(Artifact::open(Path::new("/nowhere/x.kiln")));
    assert!(
        gone.starts_with("cannot read `/nowhere/x.kiln`: "),
        "{gone}"
    );
}

#[test]
fn another_version_is_refused_before_anything_else() {
    let dir = folder();
    fs::write(
        dir.path().join("plan.json"),
        format!(r#"{{"version": {}, "novelty": []}}"#, PLAN_VERSION + 1),
    )
    .unwrap();
    assert_eq!(
        open(&dir),
        format!(
            "the plan has format version {}, this kiln reads version {PLAN_VERSION}; \
             compile the model again with this kiln",
            PLAN_VERSION + 1
        )
    );
    fs::write(dir.path().join("plan.json"), "{}").unwrap();
    assert_eq!(
        open(&dir),
        "the plan is not valid: `plan.json` has no version"
    );
    fs::write(dir.path().join("plan.json"), "{").unwrap();
    assert!(open(&dir).starts_with("the plan is not valid: `plan.json`: EOF"));
    let mut other = plan();
    other.version = PLAN_VERSION + 1;
    let weights = Box::new(weights());
    let parts = Artifact::from_parts(
        other,
        kernels(),
        Default::default(),
        Default::default(),
        weights,
    );
    assert!(
        message(parts).starts_with(&format!("the plan has format version {}", PLAN_VERSION + 1))
    );
}

#[test]
fn a_plan_that_does_not_fit_together_is_refused() {
    let fault = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan();
        change(&mut plan);
        let weights = Box::new(weights());
        message(Artifact::from_parts(
            plan,
            kernels(),
            Default::default(),
            Default::default(),
            weights,
        ))
    };
    fn launch(plan: &mut Plan) -> &mut kiln_ir::plan::Launch {
        let step = plan.tiers[1].entries.get_mut("step").unwrap();
        &mut step.variants[0].launches[0]
    }
    let place = "the plan is not valid: tier `base`, entry `step`: `tiny.store`";
    assert_eq!(
        fault(&|p| launch(p).kernel = "nix".into()),
        format!("{place}: no kernel `nix`")
    );
    assert_eq!(
        fault(&|p| launch(p).bindings.truncate(1)),
        format!("{place} binds 1 buffers, its kernel has 2")
    );
    assert_eq!(
        fault(&|p| launch(p).bindings[0] = Binding::Weight(9)),
        format!("{place}: Weight(9) does not exist")
    );
    assert_eq!(
        fault(&|p| p.kernels.get_mut("next").unwrap().file = "kernels/nix.wgsl".into()),
        "the plan is not valid: kernel `next` has no text: \
         `kernels/nix.wgsl` is not among the artifact's files of WGSL"
    );
    let empty = kiln_ir::plan::WeightPart {
        param: "gain".into(),
        shape: vec![4, 0],
        packing: kiln_ir::Packing::F32,
        scales: false,
        first_row: 0,
        rows: 4,
        offset: 0,
    };
    let grid = |p: &mut Plan| {
        let step = p.tiers[1].entries.get_mut("step").unwrap();
        step.variants[0].grid = Some(kiln_ir::plan::Grid {
            state: 99,
            check: None,
            requires: Default::default(),
        });
    };
    assert_eq!(
        fault(&grid),
        "the plan is not valid: tier `base`, entry `step`: the grid of variant `decode` has its \
         state in no buffer"
    );
    assert_eq!(
        fault(&|p| p.weights[0].contents = vec![empty.clone()]),
        "the plan is not valid: the matrix `gain` has rows of no elements"
    );
    assert_eq!(
        fault(&|p| p.weights[0].bytes = 6),
        "the plan is not valid: weight `gain` has 6 bytes, not a positive multiple of 4"
    );

    let dir = folder();
    let mut plan: Plan =
        serde_json::from_slice(&fs::read(dir.path().join("plan.json")).unwrap()).unwrap();
    plan.files.insert("../secret".into(), String::new());
    write_plan(dir.path(), &plan);
    assert_eq!(
        open(&dir),
        "the plan is not valid: `../secret` lies outside the artifact"
    );
}

#[test]
fn a_weight_that_is_absent_or_of_another_size_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), plan(), &[("loss", vec![0; 16])]);
    assert_eq!(open(&dir), "weight `gain`: it is not in the weight file");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), plan(), &[("gain", vec![0; 12])]);
    assert_eq!(
        open(&dir),
        "weight `gain`: it has 12 bytes, the plan wants 16"
    );

    let load = |bytes: usize| {
        let weights = kiln_runtime::WeightFn(move |name: &str| match bytes {
            0 => Err(format!("no idea of {name}").into()),
            n => Ok(vec![0; n]),
        });
        let weights = Box::new(weights);
        let artifact = Artifact::from_parts(
            plan(),
            kernels(),
            Default::default(),
            Default::default(),
            weights,
        );
        let artifact = artifact.unwrap();
        message(Model::open(
            &adapter("vulkan"),
            &artifact,
            &options(),
            &mut |_| {},
        ))
    };
    assert_eq!(load(0), "weight `gain`: no idea of gain");
    assert_eq!(load(8), "weight `gain`: it has 8 bytes, the plan wants 16");
    assert_eq!(
        load(20),
        "weight `gain`: it has 20 bytes, the plan wants 16"
    );
}

#[test]
fn parameters_are_unpacked_from_their_parts() {
    let values: Vec<f32> = (0..5 * 40).map(|i| (i as f32 - 90.0) / 64.0).collect();
    for packing in Packing::ALL {
        let packed = packing.pack(&values, 40);
        let row = packed.data.len() / 5;
        let part = |scales, first_row, rows, offset| WeightPart {
            param: "w".into(),
            shape: vec![5, 40],
            packing,
            scales,
            first_row,
            rows,
            offset,
        };
        // The second half before the first, behind 64 bytes of something else.
        let mut plan = plan();
        plan.weights[0].contents = vec![
            part(false, 2, 3, 64),
            part(false, 0, 2, 64 + 3 * row as u64),
        ];
        let mut bytes = vec![7; 64];
        bytes.extend(&packed.data[2 * row..]);
        bytes.extend(&packed.data[..2 * row]);
        let mut sources = weights();
        plan.weights[0].bytes = bytes.len() as u64;
        sources.insert("gain".into(), bytes);
        if packing.has_scales() {
            let mut scales = plan.weights[0].clone();
            scales.name = "scales".into();
            scales.bytes = packed.scales.len() as u64;
            scales.contents = vec![part(true, 0, 5, 0)];
            plan.weights.push(scales);
            sources.insert("scales".into(), packed.scales.clone());
        }
        let sources = Box::new(sources);
        let artifact = Artifact::from_parts(
            plan,
            kernels(),
            Default::default(),
            Default::default(),
            sources,
        )
        .unwrap();
        let expected = packing.unpack(&packed.data, &packed.scales, 5, 40);
        assert_eq!(artifact.param("w").unwrap(), expected, "{packing:?}");
        let missing = artifact.param("v").unwrap_err().to_string();
        assert_eq!(missing, "weight `v`: the artifact has no such parameter");
    }
}
