//! What the integration tests share: the fixtures, and devices to run them on.
//!
//! Kernels are compiled for whatever adapter is there and run on it; where one is
//! missing, a test fails and says how to get it.
#![allow(dead_code, reason = "each test file uses a part of this")]

#[path = "../../models/tests/common/mod.rs"]
pub mod fixtures;
pub mod on;

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use fixtures::{Fixture, fixture};
use kiln_codegen::{CodegenError, CompileOptions, Compiled, compile};
use kiln_ir::{Graph, Packing, ParamSource};
use kiln_models::registry::EntryOptions;
use kiln_runtime::{Adapter, Artifact, Error, LoadOptions, Model};

/// Relative distance over all elements that is promised for `f32`.
pub const F32: f64 = 2e-5;

/// The back end that this platform's GPUs are driven through.
pub const NATIVE: &str = if cfg!(target_os = "linux") {
    "vulkan"
} else if cfg!(target_vendor = "apple") {
    "metal"
} else {
    "dx12"
};

/// The tiers that run on a CPU driver with subgroups of 8.
pub const TIERS: [&str; 4] = ["software-subgroup", "software", "subgroup", "base"];

/// The tier for cooperative matrices of 16x16 and subgroups of 32, which no software driver
/// has.
pub const MATRICES: &str = "coop";

/// The tiers for other matrices and subgroups. A software driver has those of the last two,
/// Mesa's since Mesa 26; they are compiled only if they are asked for.
pub const OTHER_MATRICES: [&str; 4] = [
    "coop-wave64",
    "coop-8x8",
    "coop-lavapipe",
    "coop-lavapipe-scalars",
];

/// Whether a tier is one for cooperative matrices.
pub fn has_matrices(tier: &str) -> bool {
    tier == MATRICES || OTHER_MATRICES.contains(&tier)
}

/// All but [`OTHER_MATRICES`].
pub const ALL_TIERS: [&str; 5] = [
    "software-subgroup",
    "software",
    "subgroup",
    "base",
    MATRICES,
];

/// What rounding activations to f16 takes away there, over all elements.
pub const ROUNDED: f64 = 2e-3;

/// Whether the checkpoints, graphs and sizes that are dealt out to tiers are to run on all of
/// them: where `KILN_TEST_EVERYTHING` is set. A software driver takes a second or more over
/// each kernel that is new to it, so that would be more than an hour.
pub fn everything() -> bool {
    env::var_os("KILN_TEST_EVERYTHING").is_some()
}

/// The adapter to test a back end with.
#[track_caller]
pub fn adapter(backend: &str) -> Adapter {
    Adapter::select(Some(backend)).unwrap_or_else(|error| {
        panic!(
            "this test runs kernels on an adapter with the back end `{backend}`, and there is \
             none ({error}); scripts/test.sh installs a software driver"
        )
    })
}

/// A model on a device of its own.
#[track_caller]
pub fn open(backend: &str, tier: &str, artifact: &Artifact) -> Model {
    let model = try_open(backend, tier, artifact);
    model.unwrap_or_else(|error| panic!("tier `{tier}` on `{backend}`: {error}"))
}

/// The same, if the device can run the tier.
#[track_caller]
pub fn try_open(backend: &str, tier: &str, artifact: &Artifact) -> Result<Model, Error> {
    let options = LoadOptions {
        tier: Some(tier.to_owned()),
        cache_dir: None,
        ..LoadOptions::default()
    };
    Model::open(&adapter(backend), artifact, &options, &mut |_| {})
}

/// A compiled model with its weights, in memory.
pub fn in_memory(compiled: Compiled, params: &dyn ParamSource) -> Artifact {
    let names = compiled.plan.weights.iter().map(|w| w.name.clone());
    let weights = names.map(|name| {
        let bytes = compiled.weight(&name, params).unwrap();
        (name, bytes)
    });
    let weights: BTreeMap<String, Vec<u8>> = weights.collect();
    let Compiled {
        plan,
        kernels,
        graphs,
    } = compiled;
    Artifact::from_parts(plan, kernels, graphs, BTreeMap::new(), Box::new(weights)).unwrap()
}

/// The graphs of all of a fixture's entry points.
pub fn graphs(fixture: &Fixture, options: &EntryOptions) -> Vec<Graph> {
    let model = &fixture.loaded.model;
    let entries = model.entries().into_iter();
    entries
        .map(|entry| model.graph(entry, options).unwrap())
        .collect()
}

/// A fixture, compiled for all tiers.
pub fn compile_fixture(fixture: &Fixture, packing: Packing, options: &EntryOptions) -> Compiled {
    let how = CompileOptions {
        packing,
        ..CompileOptions::default()
    };
    compile_as(fixture, &how, options).unwrap_or_else(|error| panic!("{}: {error}", fixture.name))
}

/// A fixture, compiled in a certain way.
pub fn compile_as(
    fixture: &Fixture,
    how: &CompileOptions,
    options: &EntryOptions,
) -> Result<Compiled, CodegenError> {
    let graphs = graphs(fixture, options);
    let info = fixture.loaded.info(options);
    compile(&graphs, info, how, &mut |_, _, _, _| {})
}

/// A fixture of GPT-2 with its artifact.
pub fn compiled(name: &str, packing: Packing) -> (Fixture, Arc<Artifact>) {
    compiled_folder(&fixture(name), packing)
}

/// A fixture with its artifact, which is compiled once a process.
pub fn compiled_folder(folder: &Path, packing: Packing) -> (Fixture, Arc<Artifact>) {
    type Slot = Arc<OnceLock<Arc<Artifact>>>;
    static ALL: Mutex<BTreeMap<(PathBuf, Packing), Slot>> = Mutex::new(BTreeMap::new());
    let slot = {
        let mut all = ALL.lock().unwrap();
        Arc::clone(all.entry((folder.to_owned(), packing)).or_default())
    };
    let fixture = Fixture::open(folder);
    let artifact = slot.get_or_init(|| {
        let compiled = compile_fixture(&fixture, packing, &EntryOptions::default());
        Arc::new(in_memory(compiled, &*fixture.loaded.params))
    });
    let artifact = Arc::clone(artifact);
    (fixture, artifact)
}
