//! Compiled folders: what is written runs elsewhere as it would have here, and
//! whatever was done to one since is told by name.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::fixtures::{Fixture, fixture};
use common::{NATIVE, adapter, compile_fixture, compiled, open};
use kiln_codegen::Compiled;
use kiln_ir::plan::{PLAN_VERSION, Plan};
use kiln_ir::{Packing, ParamError, ParamSource, text};
use kiln_models::registry::EntryOptions;
use kiln_runtime::{Artifact, LoadOptions, Model, Output, RunOptions, Session};
use tempfile::TempDir;

const TOKENIZER: &str = "{\"a\": \"tokenizer\"}";

/// A small model, compiled, with its parameters.
fn small(packing: Packing) -> (Fixture, Compiled) {
    let fixture = Fixture::open(&fixture("silu"));
    let compiled = compile_fixture(&fixture, packing, &EntryOptions::default());
    (fixture, compiled)
}

/// A folder that holds `model.kiln`.
struct Written {
    parent: TempDir,
}

impl Written {
    fn new(packing: Packing) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let (fixture, compiled) = small(packing);
        let out = parent.path().join("model.kiln");
        let params = &*fixture.loaded.params;
        let companions = BTreeMap::from([("tokenizer.json".to_owned(), TOKENIZER.to_owned())]);
        compiled
            .write(&out, params, &companions, &mut |_, _| {})
            .unwrap();
        Written { parent }
    }

    fn path(&self) -> PathBuf {
        self.parent.path().join("model.kiln")
    }

    fn plan(&self) -> Plan {
        serde_json::from_slice(&fs::read(self.path().join("plan.json")).unwrap()).unwrap()
    }

    fn set_plan(&self, plan: &Plan) {
        let text = serde_json::to_vec_pretty(plan).unwrap();
        fs::write(self.path().join("plan.json"), text).unwrap();
    }

    /// How opening it fails.
    fn message(&self) -> String {
        let message = match Artifact::open(&self.path()) {
            Ok(_) => panic!("it opens"),
            Err(error) => error.to_string(),
        };
        message.replace(&self.path().display().to_string(), "OUT")
    }
}

/// What a model says of some tokens: of whole sequences, of a prompt, and of one
/// token more.
fn answers(artifact: &Artifact) -> (Vec<Output>, Vec<f32>) {
    let model = open(NATIVE, "base", artifact);
    let ids = [vec![1, 2, 3, 4, 5], vec![60, 50]];
    let whole = model.forward_collect(&ids, &RunOptions::default()).unwrap();
    let mut session = Session::new(&model, 1, 16).unwrap();
    let mut steps = session.step(&[7, 8, 9], &[0]).unwrap();
    steps.extend(session.step(&[10], &[0]).unwrap());
    (whole, steps)
}

#[test]
fn a_folder_runs_as_what_was_compiled() {
    for packing in [Packing::F32, Packing::Q4] {
        let written = Written::new(packing);
        // It is moved, as to another machine.
        let elsewhere = tempfile::tempdir().unwrap();
        let moved = elsewhere.path().join("other name");
        fs::rename(written.path(), &moved).unwrap();
        let artifact = Artifact::open(&moved).unwrap();
        let (fixture, in_memory) = compiled("silu", packing);
        assert_eq!(
            answers(&artifact),
            answers(&in_memory),
            "{}",
            packing.name()
        );

        let tokenizer = artifact.companion("tokenizer.json").unwrap();
        assert_eq!(tokenizer.as_deref(), Some(TOKENIZER));
        let model = &artifact.plan().model;
        assert_eq!(model.weight_dtype, packing.name());
        assert_eq!(model.family, "gpt2");
        for entry in ["forward", "forward_attentions", "step"] {
            let graph = artifact.text(&format!("graphs/{entry}.kiln")).unwrap();
            let graph = text::parse(&graph).unwrap();
            assert_eq!(graph, fixture.graph(entry));
        }
        for parameter in fixture.loaded.model.parameters() {
            let name = parameter.name.as_str();
            let values = artifact.param(name).unwrap();
            assert_eq!(values, in_memory.param(name).unwrap(), "{name}");
            if packing == Packing::F32 {
                assert_eq!(values, fixture.loaded.params.param(name).unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn the_plan_lists_every_file() {
    let written = Written::new(Packing::Q8);
    let mut found = BTreeSet::new();
    for folder in ["", "tiers", "kernels", "graphs"] {
        for entry in fs::read_dir(written.path().join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                let name = entry.file_name().into_string().unwrap();
                let inside = Path::new(folder).join(name);
                found.insert(inside.to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    let plan = written.plan();
    let listed = plan.files.keys().cloned().chain(["plan.json".to_owned()]);
    assert_eq!(found, listed.collect());
    let kernels: BTreeSet<&String> = plan.kernels.values().map(|k| &k.file).collect();
    assert_eq!(kernels.len(), plan.kernels.len());
    assert!(kernels.iter().all(|file| plan.files.contains_key(*file)));
    for file in ["weights.safetensors", "tokenizer.json", "graphs/step.kiln"] {
        assert!(plan.files.contains_key(file), "{file}");
    }
    // Entry points stand in files of tiers, and are what was compiled.
    assert!(plan.tiers.iter().all(|t| t.entries.is_empty()));
    let (_, in_memory) = compiled("silu", Packing::Q8);
    let artifact = Artifact::open(&written.path()).unwrap();
    for tier in &in_memory.plan().tiers {
        assert_eq!(*artifact.tier(&tier.name).unwrap(), *tier);
    }
    assert_eq!(artifact.whole_plan().unwrap().tiers, in_memory.plan().tiers);
    let none = artifact.tier("telepathy").unwrap_err().to_string();
    assert!(
        none.starts_with("the artifact has no tier `telepathy`"),
        "{none}"
    );
}

/// A tier's file that was changed behind the artifact's back, and one that no longer says
/// what a plan has to.
#[test]
fn files_of_tiers_are_checked_when_they_are_read() {
    let written = Written::new(Packing::Q8);
    let artifact = Artifact::open(&written.path()).unwrap();
    let file = written.path().join("tiers/base.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text} ")).unwrap();
    let altered = artifact.tier("base").unwrap_err().to_string();
    assert!(altered.contains("`tiers/base.json`"), "{altered}");
    assert!(altered.contains("is altered;"), "{altered}");
    assert!(artifact.tier("subgroup").is_ok());

    fs::remove_file(&file).unwrap();
    let missing = artifact.tier("base").unwrap_err().to_string();
    assert!(missing.contains("is missing;"), "{missing}");

    let text = text.replacen("\"kernel\": \"", "\"kernel\": \"no_", 1);
    fs::write(&file, &text).unwrap();
    let mut plan = written.plan();
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    plan.files.insert("tiers/base.json".to_owned(), hash);
    let plan = serde_json::to_string(&plan).unwrap();
    fs::write(written.path().join("plan.json"), plan).unwrap();
    let artifact = Artifact::open(&written.path()).unwrap();
    let wrong = artifact.tier("base").unwrap_err().to_string();
    assert!(wrong.contains("tier `base`, entry `"), "{wrong}");
    assert!(wrong.contains("no kernel `no_"), "{wrong}");

    let mut plan = written.plan();
    plan.files.remove("tiers/base.json");
    let plan = serde_json::to_string(&plan).unwrap();
    fs::write(written.path().join("plan.json"), plan).unwrap();
    let unlisted = Artifact::open(&written.path()).unwrap_err().to_string();
    assert_eq!(
        unlisted,
        "the plan is not valid: it does not list `tiers/base.json`; compile the model again"
    );
}

#[test]
fn every_missing_or_altered_file_is_named() {
    let written = Written::new(Packing::F32);
    for file in written.plan().files.keys() {
        let path = written.path().join(file);
        let bytes = fs::read(&path).unwrap();
        let mut altered = bytes.clone();
        *altered.last_mut().unwrap() ^= 1;
        fs::write(&path, altered).unwrap();
        let advice = "compile it again or copy the whole folder again";
        assert_eq!(
            written.message(),
            format!("`{file}` of the artifact `OUT` is altered; {advice}")
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(
            written.message(),
            format!("`{file}` of the artifact `OUT` is missing; {advice}")
        );
        fs::write(&path, bytes).unwrap();
    }
    assert!(Artifact::open(&written.path()).is_ok());
    fs::remove_file(written.path().join("plan.json")).unwrap();
    let message = written.message();
    assert!(
        message.starts_with("`plan.json` of the artifact `OUT` is missing"),
        "{message}"
    );
}

#[test]
fn another_version_of_the_format_is_refused() {
    let written = Written::new(Packing::F32);
    let mut plan = written.plan();
    plan.version = PLAN_VERSION + 1;
    written.set_plan(&plan);
    assert_eq!(
        written.message(),
        format!(
            "the plan has format version {}, this kiln reads version {PLAN_VERSION}; compile the \
             model again with this kiln",
            PLAN_VERSION + 1
        )
    );
}

/// The weights of a compilation with another `--dtype`, and a plan that trusts them.
#[test]
fn weights_of_another_type_are_refused() {
    let (written, other) = (Written::new(Packing::F32), Written::new(Packing::Q8));
    let from = other.path().join("weights.safetensors");
    fs::copy(from, written.path().join("weights.safetensors")).unwrap();
    let mut plan = written.plan();
    let hash = other.plan().files["weights.safetensors"].clone();
    plan.files.insert("weights.safetensors".to_owned(), hash);
    written.set_plan(&plan);
    let wanted = &plan.weights;
    let found = other.plan().weights;
    let (name, found, wanted) = wanted
        .iter()
        .find_map(|w| {
            let other = found.iter().find(|o| o.name == w.name)?;
            (other.bytes != w.bytes).then_some((&w.name, other.bytes, w.bytes))
        })
        .unwrap();
    assert_eq!(
        written.message(),
        format!("weight `{name}`: it has {found} bytes, the plan wants {wanted}")
    );
}

/// OpenGL has no subgroup operations.
#[cfg(target_os = "linux")]
#[test]
fn a_tier_that_the_adapter_cannot_run_is_refused() {
    let (_, artifact) = compiled("silu", Packing::F32);
    let load = |tier: &str| {
        let options = LoadOptions {
            tier: Some(tier.to_owned()),
            cache_dir: None,
            ..LoadOptions::default()
        };
        let adapter = adapter("gl");
        let refused = Model::open(&adapter, &artifact, &options, &mut |_| {});
        let refused = refused.err().map(|error| error.to_string()).unwrap();
        refused.replace(&adapter.to_string(), "ADAPTER")
    };
    assert_eq!(
        load("subgroup"),
        "the adapter ADAPTER cannot run the tier `subgroup`: it lacks the feature `subgroups`"
    );
    let tiers: Vec<&str> = artifact
        .plan()
        .tiers
        .iter()
        .map(|t| t.name.as_str())
        .collect();
    assert_eq!(
        load("telepathy"),
        format!(
            "the artifact has no tier `telepathy`; it has: {}",
            tiers.join(", ")
        )
    );
}

/// The parameters of a model, one of which cannot be had as it should be.
struct Faulty<'p> {
    params: &'p dyn ParamSource,
    name: &'static str,
    fault: fn(Vec<f32>) -> Result<Vec<f32>, ParamError>,
}

impl ParamSource for Faulty<'_> {
    fn param(&self, name: &str) -> Result<Cow<'_, [f32]>, ParamError> {
        let values = self.params.param(name)?;
        match name == self.name {
            true => (self.fault)(values.into_owned()).map(Cow::Owned),
            false => Ok(values),
        }
    }
}

#[test]
fn an_artifact_is_written_whole_or_not_at_all() {
    let (fixture, compiled) = small(Packing::F32);
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("deep/model.kiln");
    let write = |fault| {
        let params = Faulty {
            params: &*fixture.loaded.params,
            name: "h.0.mlp.c_fc.weight",
            fault,
        };
        let written = compiled.write(&out, &params, &BTreeMap::new(), &mut |_, _| {});
        written.map_err(|error| error.to_string())
    };
    let beside = || -> Vec<PathBuf> {
        let entries = fs::read_dir(parent.path().join("deep")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };

    let params = &*fixture.loaded.params;
    for name in [
        "",
        "plan.json",
        "weights.safetensors",
        "../x",
        "kernels/x",
        ".x",
        "a\\b",
    ] {
        let companions = BTreeMap::from([(name.to_owned(), String::new())]);
        let refused = compiled.write(&out, params, &companions, &mut |_, _| {});
        let refused = refused.unwrap_err().to_string();
        let start = format!("`{name}` cannot go with a model: ");
        assert!(refused.starts_with(&start), "{refused}");
    }
    let lost = write(|_| Err("the disk is gone".into())).unwrap_err();
    assert_eq!(lost, "parameter `h.0.mlp.c_fc.weight`: the disk is gone");
    assert_eq!(beside(), Vec::<PathBuf>::new());
    let short = write(|mut values| {
        values.pop();
        Ok(values)
    });
    assert_eq!(
        short.unwrap_err(),
        "parameter `h.0.mlp.c_fc.weight` has 1043 elements, expected 1044"
    );
    assert_eq!(beside(), Vec::<PathBuf>::new());

    // What stands there stays until another is complete.
    write(Ok).unwrap();
    let first = fs::read(out.join("weights.safetensors")).unwrap();
    write(|_| Err("the disk is gone".into())).unwrap_err();
    assert_eq!(fs::read(out.join("weights.safetensors")).unwrap(), first);
    assert!(Artifact::open(&out).is_ok());
    write(|values| Ok(values.iter().map(|x| x * 2.0).collect())).unwrap();
    assert_ne!(fs::read(out.join("weights.safetensors")).unwrap(), first);
    assert!(Artifact::open(&out).is_ok());
    assert_eq!(beside(), std::slice::from_ref(&out));

    // Nothing that is no artifact is replaced.
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("letters.txt"), "dear").unwrap();
    let refused = write(Ok).unwrap_err();
    assert_eq!(
        refused,
        format!(
            "`{}` exists and is not a compiled model, so it is not replaced; choose another name, \
             or move or remove what is there",
            out.display()
        )
    );
    assert_eq!(fs::read_to_string(out.join("letters.txt")).unwrap(), "dear");
}
