//! Launches that run kernels of a layer one after the other, with barriers across their
//! grid, or with tickets on a CPU. Software drivers run few workgroups at a time, so
//! grids are small here.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::fixtures::{Fixture, assert_close, fixture, fixture_of};
use common::on::On;
use common::{F32, NATIVE, adapter, compile_as, in_memory, open};
use kiln_codegen::{CodegenError, CompileOptions};
use kiln_ir::Packing;
use kiln_models::registry::EntryOptions;
use kiln_runtime::{Artifact, Error, LoadOptions, Model, Session};

/// Rows of several units a lane, some of them over its end, and several heads.
const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 100, "n_positions": 16, "n_embd": 288,
    "n_inner": 1200, "n_head": 6, "n_layer": 2}"#;
const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 16,
    "hidden_size": 288, "intermediate_size": 600, "num_attention_heads": 6,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "tie_word_embeddings": true}"#;

fn artifact(fixture: &Fixture, packing: Packing, grid: u32) -> Artifact {
    let how = CompileOptions {
        packing,
        grid,
        ..CompileOptions::default()
    };
    let compiled = compile_as(fixture, &how, &EntryOptions::default()).unwrap();
    in_memory(compiled, &*fixture.loaded.params)
}

/// How many buffers the joined launches of the tier `subgroup` need.
fn most_buffers(artifact: &Artifact) -> u64 {
    let tier = artifact.tier("subgroup").unwrap();
    let variants = tier.entries.values().flat_map(|e| &e.variants);
    let grids = variants.filter_map(|v| v.grid.as_ref());
    let buffers = grids.filter_map(|grid| {
        let limits = &grid.requires.limits;
        limits.get("max_storage_buffers_per_shader_stage")
    });
    buffers.max().copied().unwrap()
}

/// Fixtures, token by token and in generation, in a grid of one workgroup, which waits for
/// nobody. `tests/emulated.rs` joins the layers of other models.
fn conforms(family: &str, names: &[&str]) {
    for name in names {
        let fixture = Fixture::open(&fixture_of(family, name));
        let artifact = artifact(&fixture, Packing::F32, 1);
        let model = open(NATIVE, "subgroup", &artifact);
        // A layer of Qwen3 binds more than software drivers do.
        let bindable = model.device().limits().max_storage_buffers_per_shader_stage;
        let binds_many = fixture.name.starts_with("qwen3");
        assert!(model.joins() || binds_many, "{}", fixture.name);
        assert_eq!(
            model.joins(),
            most_buffers(&artifact) <= bindable.into(),
            "{}",
            fixture.name
        );
        let mut on = On::new(&fixture, &model, fixture.cases());
        on.label.push_str(", joined");
        on.pieces();
        on.greedy();
        on.ragged();
    }
}

#[test]
fn gpt2_conforms() {
    conforms("gpt2", &["base", "silu"]);
}

#[test]
fn llama_conforms() {
    // Of the last a layer binds too much.
    conforms("llama", &["smollm2", "mistral_window", "qwen2", "qwen3"]);
}

/// The logits of a prompt and of tokens behind it, of so many sequences at a time.
fn logits(
    tier: &str,
    artifact: &Artifact,
    join: bool,
    batches: &[usize],
) -> Result<Vec<f32>, Error> {
    let options = LoadOptions {
        tier: Some(tier.to_owned()),
        cache_dir: None,
        join,
        ..LoadOptions::default()
    };
    let model = Model::open(&adapter(NATIVE), artifact, &options, &mut |_| {})?;
    assert!(join || !model.joins());
    assert!(model.joins() == join || tier == "subgroup");
    let mut logits = Vec::new();
    for batch in batches.iter().copied() {
        let mut session = Session::new(&model, batch, 12)?;
        let start = vec![0; batch];
        let prompts: Vec<u32> = (0..batch as u32).flat_map(|s| [3 + s, 1, 4]).collect();
        logits.extend(session.step(&prompts, &start)?);
        for id in [1, 5, 9, 2, 6] {
            let ids: Vec<u32> = (0..batch as u32).map(|s| id + s).collect();
            logits.extend(session.step(&ids, &start)?);
        }
    }
    Ok(logits)
}

/// A joined launch gives what the launches that it stands for give, in every packing of one
/// of two models: in a grid of one workgroup, and of two, whether or not the driver has a
/// thread for each that is not kept from running; and with tickets.
fn agrees_with_separate_launches(config: &str, packings: [Packing; 2]) {
    let fixture = Fixture::random(config);
    for packing in packings {
        let small = artifact(&fixture, packing, 1);
        // On CPUs several sequences have such launches too, up to eight or four. A driver
        // takes long over those of `software`, so one packing does there.
        let tiers = [("software-subgroup", [1, 3, 7]), ("software", [1, 2, 4])];
        let tiers = tiers.into_iter();
        for (tier, batches) in
            tiers.filter(|(tier, _)| *tier != "software" || packing == packings[1])
        {
            let separate = logits(tier, &small, false, &batches).unwrap();
            let joined = logits(tier, &small, true, &batches).unwrap();
            let label = format!("{} in {} on {tier}", fixture.name, packing.name());
            assert_close(&label, &joined, &separate, F32);
        }

        let separate = logits("subgroup", &small, false, &[1]).unwrap();
        for grid in [1, 2] {
            let label = format!("{} in {}, {grid}", fixture.name, packing.name());
            let in_grid = artifact(&fixture, packing, grid);
            let joined = logits("subgroup", &in_grid, true, &[1]).unwrap();
            assert_close(&label, &joined, &separate, F32);
        }
    }
}

#[test]
fn gpt2_agrees_with_separate_launches() {
    agrees_with_separate_launches(GPT2, [Packing::F32, Packing::Q8]);
}

#[test]
fn llama_agrees_with_separate_launches() {
    agrees_with_separate_launches(LLAMA, [Packing::F16, Packing::Q4]);
}

/// What is measured of a device, joined launches among it, changes no result, and is known
/// from then on: the same is run, to the bit.
#[test]
fn what_is_measured_is_kept() {
    let fixture = Fixture::random(GPT2);
    let artifact = artifact(&fixture, Packing::Q8, 1);
    let folder = tempfile::tempdir().unwrap();
    let run = |tune: bool| {
        let options = LoadOptions {
            tier: Some("subgroup".to_owned()),
            cache_dir: Some(folder.path().to_owned()),
            tune,
            ..LoadOptions::default()
        };
        let mut trials = 0;
        let model = Model::open(&adapter(NATIVE), &artifact, &options, &mut |p| {
            trials = trials.max(p.trials);
        });
        let model = model.unwrap();
        let mut session = Session::new(&model, 1, 16).unwrap();
        let mut logits = session.step(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], &[0]).unwrap();
        for id in [5, 8, 9] {
            logits.extend(session.step(&[id], &[0]).unwrap());
        }
        (logits, trials)
    };
    let (usual, none) = run(false);
    let (first, measured) = run(true);
    let (second, known) = run(true);
    assert!(
        none == 0 && measured > 0 && known == 0,
        "{none} {measured} {known}"
    );
    assert_eq!(first, second);
    assert_close("measured", &first, &usual, F32);
}

#[test]
fn a_grid_is_a_power_of_two() {
    let fixture = fixture("base");
    let how = CompileOptions {
        grid: 96,
        ..CompileOptions::default()
    };
    let error = compile_as(&Fixture::open(&fixture), &how, &EntryOptions::default()).unwrap_err();
    assert!(matches!(error, CodegenError::Grid { found: 96 }));
    assert!(error.to_string().contains("96 workgroups"), "{error}");
}
