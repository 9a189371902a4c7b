//! Compiled models on an emulated device, which bears nothing that no device promises to:
//! all tiers, with subgroups and cooperative matrices of the size that they ask for,
//! launches apart and joined.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::{env, iter};

use common::fixtures::{Case, Fixture, assert_close, fixtures};
use common::on::{interpreted, representative};
use common::{
    ALL_TIERS, F32, MATRICES, OTHER_MATRICES, ROUNDED, TIERS, compile_as, everything, has_matrices,
    in_memory,
};
use kiln_codegen::{CompileOptions, Compiled};
use kiln_emulator::{Fault, On, Program, RunError};
use kiln_ir::interp::{HostTensor, Interpreter, zero_states};
use kiln_ir::plan::ModelInfo;
use kiln_ir::text::parse;
use kiln_ir::{Bindings, Packing};
use kiln_models::registry::EntryOptions;
use proptest::prelude::*;
use proptest::sample;
use proptest::test_runner::RngSeed;

/// Rows of several units a lane, some of them over its end, and several heads.
const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 100, "n_positions": 16, "n_embd": 288,
    "n_inner": 600, "n_head": 6, "n_layer": 2}"#;
const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 16,
    "hidden_size": 288, "intermediate_size": 400, "num_attention_heads": 6,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "tie_word_embeddings": true}"#;
/// With norms inside of a layer.
const QWEN3: &str = r#"{"model_type": "qwen3", "vocab_size": 100, "max_position_embeddings": 16,
    "hidden_size": 288, "intermediate_size": 400, "num_attention_heads": 6, "head_dim": 32,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "tie_word_embeddings": true}"#;

/// With a window that ends within a step of keys.
const SLIDING: &str = r#"{"model_type": "mistral", "vocab_size": 32, "max_position_embeddings": 80,
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_hidden_layers": 1, "sliding_window": 41}"#;

/// With heads as wide as those of the published models, norms on both sides of what a layer
/// computes, and a layer of each kind.
const GEMMA: &str = r#"{"model_type": "gemma3_text", "vocab_size": 60, "hidden_size": 96,
    "max_position_embeddings": 24, "intermediate_size": 136, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 256, "num_hidden_layers": 2, "sliding_window": 7,
    "sliding_window_pattern": 2}"#;

/// Of two layers: the last one computes one row of each sequence alone.
const SMALL: &str = r#"{"model_type": "gpt2", "vocab_size": 40, "n_positions": 16, "n_embd": 48,
    "n_inner": 400, "n_head": 2, "n_layer": 2}"#;

const WIDE: &str = r#"{"model_type": "llama", "vocab_size": 40, "max_position_embeddings": 16,
    "hidden_size": 4096, "intermediate_size": 40, "num_attention_heads": 2, "head_dim": 32,
    "num_key_value_heads": 1, "num_hidden_layers": 2, "tie_word_embeddings": true}"#;

/// Of layers that sum up many elements, more than a product of matrices takes at once.
const DEEP: &str = r#"{"model_type": "gpt2", "vocab_size": 40, "n_positions": 16, "n_embd": 64,
    "n_inner": 1300, "n_head": 2, "n_layer": 2}"#;

/// A tier with subgroups of 32, if it does not say of how many, its launches apart, and most
/// of their grids of two dimensions: no device that tests run on is given as many workgroups
/// as that takes.
const fn apart(tier: &str) -> On<'_> {
    On {
        tier,
        join: false,
        subgroup: 32,
        across: 3,
    }
}

/// The same, joined.
const fn joined(tier: &str) -> On<'_> {
    On {
        join: true,
        ..apart(tier)
    }
}

fn program<'a>(fixture: &Fixture, compiled: &'a Compiled, on: On<'_>) -> Program<'a> {
    let params = &*fixture.loaded.params;
    let weight = |name: &str| compiled.weight(name, params).unwrap();
    let program = Program::new(&compiled.plan, &compiled.kernels, on, weight);
    program.unwrap_or_else(|error| panic!("{}: {error}", fixture.name))
}

/// What a program gives for a case: hidden states of whole sequences, their logits if the
/// model has a head, and what it gives for the last tokens, by their places, when it is
/// run in pieces with states.
struct Found {
    hidden: Vec<f32>,
    logits: Option<Vec<f32>>,
    last: Vec<(usize, Vec<f32>)>,
}

/// Runs a case.
fn launch(program: &mut Program<'_>, case: &Case, context: u64) -> Result<Found, RunError> {
    let [batch, seq] = case.ids.shape[..] else {
        panic!("{:?}", case.ids.shape);
    };
    let ids = case.ids.as_i32().unwrap().iter().map(|id| *id as u32);
    let ids: Vec<u32> = ids.collect();
    let sizes = |seq: usize| {
        Bindings::new()
            .with("batch", batch as u64)
            .with("seq", seq as u64)
    };
    let whole = program.session("forward", &sizes(seq), 0)?;
    let mut outputs = program.run(&whole, &[("ids", &ids)], &sizes(seq))?;
    let mut output = |name: &str| outputs.remove(name).map(bytemuck::cast_vec);
    let (hidden, logits) = (output("hidden").unwrap(), output("logits"));

    let steps = program.session("step", &sizes(seq), context)?;
    let singles = (seq / 2).min(3);
    let mut last = Vec::new();
    let mut past = 0;
    for piece in iter::once(seq - singles).chain(iter::repeat_n(1, singles)) {
        let end = past + piece;
        let rows = ids.chunks_exact(seq);
        let tokens: Vec<u32> = rows.flat_map(|row| &row[past..end]).copied().collect();
        let inputs: [(&str, &[u32]); 2] = [("ids", &tokens), ("start", &vec![0; batch])];
        let sizes = sizes(piece).with("past", past as u64);
        let (_, output) = program.run(&steps, &inputs, &sizes)?.pop_first().unwrap();
        last.push((end - 1, bytemuck::cast_vec(output)));
        past = end;
    }
    Ok(Found {
        hidden,
        logits,
        last,
    })
}

/// What the last token of each sequence gives, behind a prompt of all others.
fn last(program: &mut Program<'_>, case: &Case) -> Result<Vec<f32>, RunError> {
    let [batch, seq] = case.ids.shape[..] else {
        panic!("{:?}", case.ids.shape);
    };
    let sizes = |seq: usize, past: usize| {
        let sizes = [("batch", batch), ("seq", seq), ("past", past)].into_iter();
        sizes.fold(Bindings::new(), |all, (name, size)| {
            all.with(name, size as u64)
        })
    };
    let session = program.session("step", &sizes(seq, seq - 1), seq as u64)?;
    let ids = case.ids.as_i32().unwrap().iter().map(|id| *id as u32);
    let ids: Vec<u32> = ids.collect();
    let mut last = Vec::new();
    for (past, end) in [(0, seq - 1), (seq - 1, seq)] {
        let rows = ids.chunks_exact(seq);
        let tokens: Vec<u32> = rows.flat_map(|row| &row[past..end]).copied().collect();
        let inputs: [(&str, &[u32]); 2] = [("ids", &tokens), ("start", &vec![0; batch])];
        let outputs = program.run(&session, &inputs, &sizes(end - past, past))?;
        last = outputs.into_values().next().unwrap();
    }
    Ok(bytemuck::cast_vec(last))
}

/// Holds a tier against what is expected of the cases, as near as `f32` is promised to be,
/// or with matrices what they round; gives the kernels that were
/// launched, with the barriers that were reached.
fn conforms(
    fixture: &Fixture,
    compiled: &Compiled,
    cases: &[Case],
    on: On<'_>,
) -> BTreeMap<String, BTreeSet<usize>> {
    let tolerance = if has_matrices(on.tier) { ROUNDED } else { F32 };
    let mut program = program(fixture, compiled, on);
    for case in cases {
        let label = format!("{} on {on:?}: {}", fixture.name, case.label);
        let found = launch(&mut program, case, compiled.plan.model.max_context);
        let found = found.unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_close(&label, &found.hidden, &case.hidden, tolerance);
        if let Some(logits) = &found.logits {
            assert_close(&label, logits, case.logits.as_ref().unwrap(), tolerance);
        }
        let wanted = case.logits.as_ref().unwrap_or(&case.hidden);
        let [batch, seq] = case.ids.shape[..] else {
            panic!("{:?}", case.ids.shape);
        };
        let width = wanted.len() / (batch * seq);
        for (at, found) in &found.last {
            let rows = wanted.chunks_exact(seq * width);
            let wanted = rows.flat_map(|row| &row[at * width..(at + 1) * width]);
            let wanted: Vec<f32> = wanted.copied().collect();
            assert_close(&label, found, &wanted, tolerance);
        }
    }
    program.launched
}

fn compile(fixture: &Fixture, packing: Packing, grid: u32) -> Compiled {
    // Matrices would round weights of 32 bits.
    let tiers = ALL_TIERS.into_iter();
    let tiers = tiers.filter(|tier| packing != Packing::F32 || *tier != MATRICES);
    compile_tiers(fixture, packing, (grid, &EntryOptions::default()), tiers)
}

fn compile_tiers<'t>(
    fixture: &Fixture,
    packing: Packing,
    (grid, options): (u32, &EntryOptions),
    tiers: impl IntoIterator<Item = &'t str>,
) -> Compiled {
    let how = CompileOptions {
        packing,
        grid,
        tiers: Some(tiers.into_iter().map(str::to_owned).collect()),
        ..CompileOptions::default()
    };
    compile_as(fixture, &how, options).unwrap()
}

/// What the interpreter says of so many sequences of so many tokens, of weights as they
/// were rounded.
fn cases(fixture: &Fixture, compiled: &Compiled, sizes: &[(usize, usize)]) -> Vec<Case> {
    let vocab = compiled.plan.model.vocab_size;
    let artifact = in_memory(compiled.clone(), &*fixture.loaded.params);
    let options = EntryOptions {
        max_batch: 16,
        ..EntryOptions::default()
    };
    let forward = fixture.loaded.model.graph("forward", &options).unwrap();
    let interpreter = Interpreter::<f64>::new(&forward, &artifact).unwrap();
    let cases = sizes.iter().map(|(batch, seq)| {
        let ids = (0..batch * seq).map(|i| ((i * i * 17 + i * 89) as u64 % vocab) as i32);
        let ids = HostTensor::i32([*batch, *seq], ids.collect::<Vec<i32>>());
        interpreted(&interpreter, format!("{batch} of {seq}"), ids)
    });
    cases.collect()
}

#[test]
fn gpt2_without_matrices() {
    every_fixture("gpt2");
}

#[test]
fn llama_without_matrices() {
    every_fixture("llama");
}

#[test]
fn gemma_without_matrices() {
    every_fixture("gemma");
}

/// Every fixture, for what its shapes make of kernels: some on all tiers, and of the others,
/// many of which have the same sizes, each on two.
fn every_fixture(family: &str) {
    for (i, folder) in fixtures(family).iter().enumerate() {
        let fixture = Fixture::open(folder);
        let on_all = representative(family)
            .iter()
            .any(|name| folder.ends_with(name));
        let tiers = TIERS.into_iter().enumerate();
        let tiers = tiers.filter(|(tier, _)| on_all || everything() || tier % 2 == i % 2);
        let tiers: Vec<&str> = tiers.map(|(_, tier)| tier).collect();
        let (options, of_tiers) = (EntryOptions::default(), tiers.iter().copied());
        let grid = CompileOptions::default().grid;
        let compiled = compile_tiers(&fixture, Packing::F32, (grid, &options), of_tiers);
        for tier in tiers {
            let cases = fixture.cases();
            conforms(&fixture, &compiled, &cases[1..2], apart(tier));
        }
    }
}

/// A model of each family, of layers that do not fill tiles, in every packing that
/// matrices take.
#[test]
fn matrices() {
    for config in [GPT2, LLAMA, GEMMA] {
        let fixture = Fixture::random(config);
        for (packing, sizes) in [
            (Packing::F16, [(1, 13), (3, 7)].as_slice()),
            (Packing::Q8, &[(3, 7)]),
            (Packing::Q4, &[(1, 13)]),
        ] {
            let options = EntryOptions::default();
            let compiled = compile_tiers(&fixture, packing, (1, &options), [MATRICES]);
            let cases = cases(&fixture, &compiled, sizes);
            let launched = conforms(&fixture, &compiled, &cases, apart(MATRICES));
            assert!(
                launched
                    .keys()
                    .any(|kernel| kernel.ends_with(".f16_states"))
            );
        }
    }
}

/// Several sequences of as many rows together as buffers have room for, which are fewer than
/// the largest sizes make.
#[test]
fn no_more_rows_than_there_is_room_for() {
    let options = EntryOptions {
        max_batch: 4,
        ..EntryOptions::default()
    };
    let fixture = Fixture::random(SMALL);
    // Of 64, half: a row has 400 elements in an MLP, the most that lies between launches.
    let rows = 32;
    let how = CompileOptions {
        binding_limit: 4 * 400 * rows,
        tiers: Some(TIERS.map(str::to_owned).into()),
        ..CompileOptions::default()
    };
    let compiled = compile_as(&fixture, &how, &options).unwrap();
    // The last three of eleven go one by one.
    let cases = cases(&fixture, &compiled, &[(4, 11)]);
    for tier in TIERS {
        let found = compiled.plan.tiers.iter().find(|t| t.name == tier);
        assert_eq!(found.unwrap().entries["step"].rows, Some(rows), "{tier}");
        conforms(&fixture, &compiled, &cases, apart(tier));
        let mut program = program(&fixture, &compiled, apart(tier));
        let beyond = last(&mut program, &cases[0]);
        assert!(matches!(beyond, Err(RunError::Missing(_))), "{tier}");
    }
}

/// Rows of more than 16 KiB, which not every device has room for in workgroup memory.
#[test]
fn wide_rows() {
    let fixture = Fixture::random(WIDE);
    for packing in [Packing::F16, Packing::Q4] {
        let (options, tiers) = (EntryOptions::default(), [MATRICES, "subgroup"]);
        let compiled = compile_tiers(&fixture, packing, (2, &options), tiers);
        let cases = cases(&fixture, &compiled, &[(1, 2)]);
        let launched = |on| conforms(&fixture, &compiled, &cases, on);
        let brings = |kernel: &String| {
            kernel.starts_with("linear_stream_subgroup.") && kernel.contains(".rms_norm")
        };
        assert!(launched(apart(MATRICES)).keys().any(brings));
        assert!(!launched(apart("subgroup")).keys().any(brings));
        launched(joined("subgroup"));
    }
}

/// The plan in which every launch that can be done in several ways is done in one that
/// stands for it, and how many such ways there are.
fn in_way(compiled: &Compiled, way: usize) -> (Compiled, usize) {
    let (mut compiled, mut ways) = (compiled.clone(), 1);
    let tiers = compiled.plan.tiers.iter_mut();
    let entries = tiers.flat_map(|tier| tier.entries.values_mut());
    for variant in entries.flat_map(|entry| &mut entry.variants) {
        ways = ways.max(variant.ways());
        *variant = variant.way(way);
    }
    (compiled, ways)
}

/// Other ways to do what launches do: each kernel that stands for another is launched, and
/// gives what that gives. On a device of few processors the last tiles are in parts, and
/// so is attention of few sequences.
#[test]
fn alternatives() {
    let long = model_of(64, 1);
    for (config, packing, tiers, sizes) in [
        (
            GPT2,
            Packing::F16,
            [MATRICES].as_slice(),
            [(1, 13), (3, 13)].as_slice(),
        ),
        (
            LLAMA,
            Packing::Q8,
            &[MATRICES, "subgroup", "base"],
            &[(1, 13), (3, 7)],
        ),
        (&long, Packing::F16, &[MATRICES], &[(1, 2), (2, 75)]),
        (SLIDING, Packing::F16, &[MATRICES], &[(1, 2), (2, 75)]),
        // More sequences than a kernel for few rows takes, and rows that are cut in ten.
        (
            DEEP,
            Packing::F16,
            &[MATRICES, "subgroup"],
            &[(9, 16), (2, 8), (1, 2)],
        ),
    ] {
        let fixture = Fixture::random(config);
        let processors = if config == DEEP { 8 } else { 2 };
        let max_batch = sizes.iter().map(|(batch, _)| *batch as u64).max();
        let options = EntryOptions {
            max_batch: max_batch.unwrap(),
            ..EntryOptions::default()
        };
        let of_tiers = tiers.iter().copied();
        let compiled = compile_tiers(&fixture, packing, (processors, &options), of_tiers);
        let vocab = compiled.plan.model.vocab_size as usize;
        let cases = cases(&fixture, &compiled, sizes);
        let mut launched = BTreeSet::new();
        for tier in tiers {
            let (_, ways) = in_way(&compiled, 0);
            for way in 0..ways {
                let (compiled, _) = in_way(&compiled, way);
                let mut program = program(&fixture, &compiled, apart(tier));
                for case in &cases {
                    let found = last(&mut program, case).unwrap_or_else(|e| panic!("{tier}: {e}"));
                    let logits = case.logits.as_ref().unwrap().chunks_exact(vocab);
                    let seq = case.ids.shape[1];
                    let wanted = logits.skip(seq - 1).step_by(seq).flatten().copied();
                    let tolerance = if *tier == MATRICES { ROUNDED } else { F32 };
                    let label = format!("{} on {tier}, way {way}", fixture.name);
                    assert_close(&label, &found, &wanted.collect::<Vec<f32>>(), tolerance);
                }
                launched.extend(program.launched.into_keys());
            }
        }
        let of_tiers = compiled.plan.tiers.iter();
        let variants = of_tiers
            .flat_map(|t| t.entries.values())
            .flat_map(|e| &e.variants);
        let apart = variants.filter(|v| v.grid.is_none());
        let others = apart
            .flat_map(|v| v.all_launches())
            .flat_map(|l| &l.alternatives);
        let others: BTreeSet<&String> = others.map(|way| &way.kernel).collect();
        assert!(!others.is_empty());
        let of_ten = others.iter().any(|kernel| kernel.contains(".parts10"));
        assert_eq!(of_ten, config == DEEP);
        for kernel in others {
            assert!(launched.contains(kernel), "{kernel}");
        }
    }
}

/// What is checked of a driver that says it has matrices, and of barriers across a grid.
#[test]
fn checks() {
    let fixture = Fixture::random(GPT2);
    let options = EntryOptions::default();
    let compiled = compile_tiers(&fixture, Packing::F16, (1, &options), [MATRICES]);
    assert!(
        program(&fixture, &compiled, joined(MATRICES))
            .check()
            .unwrap()
    );
}

/// Whether an emulated device passes a tier's checks of subgroups, and of products too.
fn checked(fixture: &Fixture, compiled: &Compiled, tier: &str, of_products: bool) -> bool {
    let mut compiled = compiled.clone();
    let mut tiers = compiled.plan.tiers.iter_mut();
    let checks = &mut tiers.find(|t| t.name == tier).unwrap().checks;
    checks.retain(|c| of_products || c.kernel.starts_with("subgroups_check"));
    assert!(!checks.is_empty());
    program(fixture, &compiled, apart(tier)).check().unwrap()
}

/// A device with subgroups of another size does not pass.
#[test]
fn other_subgroups_are_found_out() {
    let fixture = Fixture::random(GPT2);
    let options = EntryOptions::default();
    for (tier, size) in [(MATRICES, 64), ("coop-wave64", 32), ("coop-8x8", 16)] {
        let mut compiled = compile_tiers(&fixture, Packing::F16, (1, &options), [tier]);
        assert!(checked(&fixture, &compiled, tier, false), "{tier}");
        compiled.plan.tiers[0].requires.subgroup_size = Some(size);
        assert!(!checked(&fixture, &compiled, tier, false), "{tier}");
    }
}

/// Matrices and subgroups of other sizes than those of the tier that has run on GPUs: whole
/// models, the other ways to do their launches, and the checks of drivers.
fn other_matrices(tier: &str) {
    let options = EntryOptions::default();
    let odd = model_of(40, 1);
    // Where matrices are not loaded from scalars in any case, that is the last way.
    let by_scalars = ["coop-8x8", "coop-lavapipe-scalars"].contains(&tier);
    let ways: &[usize] = if by_scalars {
        &[0, 1, 3]
    } else {
        &[0, 1, 3, 5]
    };
    let mut seen = BTreeSet::new();
    for (config, packing, size, ways) in [
        (GPT2, Packing::F16, (1, 13), ways),
        (LLAMA, Packing::Q8, (2, 9), &[0]),
        // Heads of eights, which are no sixteens.
        (&odd, Packing::F16, (1, 33), &[0]),
    ] {
        let fixture = Fixture::random(config);
        let compiled = compile_tiers(&fixture, packing, (2, &options), [tier]);
        let cases = cases(&fixture, &compiled, &[size]);
        for way in ways.iter().copied() {
            let (compiled, _) = in_way(&compiled, way);
            let on = if way == 0 { joined(tier) } else { apart(tier) };
            seen.extend(conforms(&fixture, &compiled, &cases, on).into_keys());
        }
        // Products take as long as all else, and differ but by constants.
        if config == GPT2 {
            let right = checked(&fixture, &compiled, tier, tier == "coop-8x8");
            assert!(right, "{tier}");
        }
    }
    let scalars = ["linear_coop.", "attention_coop."].map(|body| (body, ".scalars"));
    let wanted = [
        ("linear_coop.", ""),
        ("linear_coop.", ".large"),
        ("linear_coop.", ".parts"),
        ("attention_coop.", ""),
        ("attention_coop.", ".parts"),
    ];
    let scalars = scalars.into_iter().filter(|_| !by_scalars);
    for (body, way) in wanted.into_iter().chain(scalars) {
        let mut all = seen.iter();
        let found = all.any(|kernel| kernel.starts_with(body) && kernel.contains(way));
        assert!(found, "{tier}: no `{body}*{way}` among {seen:#?}");
    }
}

// One after the other they would be the last test to run, for minutes.
#[test]
fn matrices_of_other_sizes() {
    OTHER_MATRICES[..2].iter().copied().for_each(other_matrices);
}

#[test]
fn matrices_of_still_other_sizes() {
    OTHER_MATRICES[2..].iter().copied().for_each(other_matrices);
}

/// States that attention reads by heads, written and read by all else that may be: elements
/// that are appended by a copy, probabilities, and outputs that are copies of them.
#[test]
fn states_by_heads() {
    // An input that nothing else reads is appended by a copy too.
    for (heads, width, read) in [
        (2, 8, "%1"),
        (3, 4, "%1"),
        (2, 6, "%1"),
        (1, 8, "%1"),
        (2, 8, "%0"),
    ] {
        let row = heads * width;
        let spec = format!("{{heads={heads}, kv_heads={heads}, scale=0.3, causal=true}}");
        let text = format!(
            r#"graph step {{
              symbol batch <= 2
              symbol seq <= 5
              symbol past <= 11
              %0 = input "q" : f32[batch, seq, {row}]
              %1 = input "new" : f32[batch, seq, {row}]
              %2 = state "keys" : f32[batch, past, {row}]
              %3 = concat %2, %1 {{axis=1}} : f32[batch, past + seq, {row}]
              %4 = exp {read} : f32[batch, seq, {row}]
              %5 = state "values" : f32[batch, past, {row}]
              %6 = concat %5, %4 {{axis=1}} : f32[batch, past + seq, {row}]
              %7 = attention %0, %3, %6 {spec} : f32[batch, seq, {row}]
              %8 = attention_probs %0, %3 {spec} : f32[batch, {heads}, seq, past + seq]
              output "y" = %7
              output "probs" = %8
              output "all" = %6
              output "new" = %4
              state "keys" = %3
              state "values" = %6
            }}"#
        );
        let graph = parse(&text).unwrap();
        let tiers = TIERS.map(str::to_owned).to_vec();
        let options = CompileOptions {
            tiers: Some(tiers),
            ..CompileOptions::default()
        };
        let info = ModelInfo {
            max_context: 16,
            ..ModelInfo::of("states")
        };
        let graphs = std::slice::from_ref(&graph);
        let compiled = kiln_codegen::lower(graphs, graphs, info, &options).unwrap();
        let params: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let interpreter = Interpreter::<f64>::new(&graph, &params).unwrap();
        for tier in TIERS {
            let weight = |_: &str| panic!("there are none");
            let program = Program::new(&compiled.plan, &compiled.kernels, apart(tier), weight);
            let mut program = program.unwrap();
            let sizes = |seq: u64, past: u64| {
                let sizes = [("batch", 2), ("seq", seq), ("past", past)].into_iter();
                sizes.fold(Bindings::new(), |all, (name, size)| all.with(name, size))
            };
            let session = program.session("step", &sizes(5, 11), 16).unwrap();
            let mut states = zero_states(&graph, &sizes(5, 0)).unwrap();
            for (seq, past) in [(5, 0), (1, 5), (3, 6)] {
                let count = 2 * seq * row;
                let values = |by: f32| (0..count).map(move |i| (by * i as f32).sin());
                let given: Vec<(&str, Vec<f32>)> = [("q", 0.7), ("new", 1.3)]
                    .map(|(name, by)| (name, values(by).collect()))
                    .to_vec();
                let shape = [2, seq as usize, row as usize];
                let wide = given.iter().map(|(name, x)| {
                    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                    ((*name).to_owned(), HostTensor::f(shape, x))
                });
                let wanted = interpreter.run(&wide.collect(), &mut states).unwrap();
                let words: Vec<(&str, &[u32])> = given
                    .iter()
                    .map(|(name, x)| (*name, bytemuck::cast_slice(x)))
                    .collect();
                let found = program.run(&session, &words, &sizes(seq, past)).unwrap();
                for (name, words) in found {
                    let label = format!("{heads} of {width} on {tier}: {name} behind {past}");
                    let found: Vec<f32> = bytemuck::cast_vec(words);
                    assert_close(&label, &found, wanted[&name].as_f().unwrap(), F32);
                }
            }
        }
    }
}

/// Norms that are written with something added to them: another norm, a vector, what is
/// computed on the spot; of rows of fours and of others.
#[test]
fn sums_of_norms() {
    for width in [8, 6] {
        let text = format!(
            r#"graph sums {{
              symbol n <= 5
              %0 = input "x" : f32[n, {width}]
              %1 = input "gain" : f32[{width}]
              %2 = rms_norm %0, %1 {{eps=1e-6}} : f32[n, {width}]
              %3 = exp %0 : f32[n, {width}]
              %4 = rms_norm %3, %1 {{eps=1e-6}} : f32[n, {width}]
              %5 = add %2, %4 : f32[n, {width}]
              %6 = rms_norm %5, %1 {{eps=1e-6}} : f32[n, {width}]
              %7 = add %1, %6 : f32[n, {width}]
              %8 = rms_norm %7, %1 {{eps=1e-6}} : f32[n, {width}]
              %9 = sin %0 : f32[n, {width}]
              %10 = mul %9, %7 : f32[n, {width}]
              %11 = add %8, %10 : f32[n, {width}]
              output "y" = %11
            }}"#
        );
        let graph = parse(&text).unwrap();
        let options = CompileOptions {
            tiers: Some(TIERS.map(str::to_owned).to_vec()),
            ..CompileOptions::default()
        };
        let graphs = std::slice::from_ref(&graph);
        let compiled = kiln_codegen::lower(graphs, graphs, ModelInfo::of("sums"), &options);
        let compiled = compiled.unwrap();
        let params: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let interpreter = Interpreter::<f64>::new(&graph, &params).unwrap();
        let values = |count: usize| (0..count).map(|i| (1.3 * i as f32).sin());
        let (x, gain): (Vec<f32>, Vec<f32>) =
            (values(5 * width).collect(), values(width).collect());
        let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let inputs = [
            ("x".to_owned(), HostTensor::f([5, width], wide(&x))),
            ("gain".to_owned(), HostTensor::f([width], wide(&gain))),
        ];
        let wanted = interpreter
            .run(&inputs.into_iter().collect(), &mut BTreeMap::new())
            .unwrap();
        for tier in TIERS {
            let weight = |_: &str| panic!("there are none");
            let program = Program::new(&compiled.plan, &compiled.kernels, apart(tier), weight);
            let mut program = program.unwrap();
            let sizes = Bindings::new().with("n", 5);
            let session = program.session("sums", &sizes, 0).unwrap();
            let words: [(&str, &[u32]); 2] = [
                ("x", bytemuck::cast_slice(&x)),
                ("gain", bytemuck::cast_slice(&gain)),
            ];
            let found = program.run(&session, &words, &sizes).unwrap();
            let found: Vec<f32> = bytemuck::cast_vec(found["y"].clone());
            let label = format!("rows of {width} on {tier}");
            assert_close(&label, &found, wanted["y"].as_f().unwrap(), F32);
            let sums = program.launched.keys().filter(|k| k.contains(".add"));
            assert_eq!(sums.count(), 3, "{label}: {:?}", program.launched.keys());
        }
    }
}

/// Layers in one launch, whose workgroups wait for each other.
#[test]
fn layers_in_one_launch() {
    for (config, packings) in [
        (GPT2, Packing::ALL.as_slice()),
        // Barriers do not differ by packings; of gated layers a few do.
        (LLAMA, &[Packing::F32, Packing::Q4]),
        (QWEN3, &[Packing::F16]),
        (GEMMA, &[Packing::Q8]),
    ] {
        let fixture = Fixture::random(config);
        for packing in packings.iter().copied() {
            let compiled = compile(&fixture, packing, 8);
            // Of more tokens than a window has, where there is one.
            let alone = if config == GEMMA { (1, 10) } else { (1, 3) };
            let all = cases(&fixture, &compiled, &[alone, (3, 2), (7, 2)]);
            let cases = &all[..1];
            let on_card = match packing {
                Packing::F32 => "subgroup",
                _ => MATRICES,
            };
            // On CPUs steps of several sequences have such launches too.
            for (tier, cases, rows) in [
                (on_card, cases, ""),
                ("software-subgroup", &all, "TILE_ROWS: u32 = 8u;"),
                ("software", &all[..2], "TILE_ROWS: u32 = 4u;"),
            ] {
                let launched = conforms(&fixture, &compiled, cases, joined(tier));
                let mut joined = launched
                    .keys()
                    .filter(|kernel| kernel.starts_with("joined"));
                let text = |kernel: &String| &compiled.kernels[&compiled.plan.kernels[kernel].file];
                assert!(joined.any(|kernel| text(kernel).contains(rows)), "{tier}");
            }
            // With weights that are brought nearer while others are waited for.
            let ways: &[usize] = match packing {
                Packing::F32 | Packing::Q8 => &[1],
                Packing::F16 | Packing::Q4 => &[2],
            };
            for way in ways.iter().copied() {
                let (compiled, _) = in_way(&compiled, way);
                let launched = conforms(&fixture, &compiled, cases, joined(on_card));
                assert!(launched.keys().any(|kernel| kernel.contains(".touch")));
            }
        }
    }
}

/// One of two heads of this size, and of prompts that take attention several rounds; those
/// of more than 64 elements take it several rounds with matrices for each.
fn model_of(head_dim: u64, layers: u64) -> String {
    format!(
        r#"{{"model_type": "gpt2", "vocab_size": 32, "n_positions": 80, "n_embd": {},
        "n_inner": 384, "n_head": 2, "n_layer": {layers}}}"#,
        2 * head_dim
    )
}

/// Whether a barrier is needed is for the emulator to say: without any one of those that
/// are reached, in one kernel of each body, invocations have to race. So none is there in
/// vain, either.
#[test]
fn every_barrier_is_needed() {
    let mut needless = Vec::new();
    let mut seen = BTreeSet::new();
    for (head_dim, layers, on, way) in [
        (80, 1, apart(MATRICES), 0),
        // Attention in parts, and a linear layer: of the last one row is wanted.
        (64, 1, apart(MATRICES), 1),
        (64, 2, apart(MATRICES), 3),
        (64, 1, joined(MATRICES), 0),
        (64, 1, joined("subgroup"), 0),
        (64, 1, joined("software-subgroup"), 0),
        (64, 1, apart("software"), 0),
    ] {
        let fixture = Fixture::random(&model_of(head_dim, layers));
        let options = EntryOptions::default();
        let compiled = compile_tiers(&fixture, Packing::F16, (4, &options), [on.tier]);
        let (compiled, _) = in_way(&compiled, way);
        let cases = cases(&fixture, &compiled, &[(1, 75)]);
        for (name, barriers) in conforms(&fixture, &compiled, &cases, on) {
            let body = name.split('.').next().map(str::to_owned);
            if !seen.insert((on.tier, body, name.contains(".parts"))) {
                continue;
            }
            let file = &compiled.plan.kernels[&name].file;
            for at in barriers {
                let mut changed = compiled.clone();
                let text = changed.kernels.get_mut(file).unwrap();
                let end = at + text[at..].find(';').unwrap() + 1;
                assert!(text[at..end].ends_with("Barrier();"), "{}", &text[at..end]);
                text.replace_range(at..end, "");
                let mut program = program(&fixture, &changed, on);
                let line = compiled.kernels[file][..at].matches('\n').count() + 1;
                match launch(&mut program, &cases[0], 80) {
                    Ok(_) => needless.push(format!("{name}, line {line}")),
                    Err(RunError::Launch { fault, .. }) => assert!(
                        matches!(*fault, Fault::Race { .. } | Fault::Unwritten { .. }),
                        "{name}, line {line}: {fault}"
                    ),
                    Err(error) => panic!("{name}, line {line}: {error}"),
                }
            }
        }
    }
    for body in ["attention_coop", "linear_coop"] {
        assert!(
            seen.contains(&(MATRICES, Some(body.to_owned()), true)),
            "{body}"
        );
    }
    assert!(needless.is_empty(), "{needless:#?}");
}

/// A model, what its weights are rounded to, what it runs on, the workgroups of joined
/// launches, the way in which launches are done, and sequences by their tokens.
type Drawn = (String, Packing, On<'static>, u32, usize, (usize, usize));

/// Models of all shapes that matter to kernels, and sizes to run them at.
fn drawn() -> impl Strategy<Value = Drawn> {
    let heads = (
        1u64..=3,
        1u64..=3,
        sample::select(&[2u64, 6, 16, 20, 32, 48, 64, 80, 128]),
    );
    let model = (any::<bool>(), heads, 1u64..=500, 2u64..=150);
    let model = model.prop_map(|(llama, (kv_heads, groups, head_dim), inner, vocab)| {
        let (heads, context) = (kv_heads * groups, 48);
        let width = heads * head_dim;
        match llama {
            true => format!(
                r#"{{"model_type": "llama", "vocab_size": {vocab}, "num_hidden_layers": 1,
                "max_position_embeddings": {context}, "hidden_size": {width},
                "intermediate_size": {inner}, "num_attention_heads": {heads},
                "num_key_value_heads": {kv_heads}, "tie_word_embeddings": true}}"#
            ),
            false => format!(
                r#"{{"model_type": "gpt2", "vocab_size": {vocab}, "n_positions": {context},
                "n_embd": {width}, "n_inner": {inner}, "n_head": {heads}, "n_layer": 1}}"#
            ),
        }
    });
    let packing = sample::select(&Packing::ALL);
    let sizes = sample::select(&[4usize, 8, 16, 32, 64]);
    let tiers: Vec<&str> = ALL_TIERS.into_iter().chain(OTHER_MATRICES).collect();
    let across = sample::select(&[2, 7, u64::MAX]);
    let on = (sample::select(tiers), any::<bool>(), sizes, across);
    let on = on.prop_map(|(tier, join, subgroup, across)| On {
        tier,
        join,
        subgroup,
        across,
    });
    let grid = sample::select(&[1u32, 2, 8]);
    let way = 0usize..=4;
    (model, packing, on, grid, way, (1usize..=4, 1usize..=40))
}

/// The same few each time, and others if `PROPTEST_CASES` says how many.
fn how_many() -> ProptestConfig {
    let config = ProptestConfig {
        max_shrink_iters: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    match env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig {
            cases: 12,
            rng_seed: RngSeed::Fixed(0),
            ..config
        },
    }
}

proptest! {
    #![proptest_config(how_many())]

    #[test]
    fn any_model((config, packing, mut on, grid, way, size) in drawn()) {
        let fixture = Fixture::random(&config);
        if packing == Packing::F32 && has_matrices(on.tier) {
            on.tier = "subgroup";
        }
        let options = EntryOptions::default();
        let compiled = compile_tiers(&fixture, packing, (grid, &options), [on.tier]);
        let (compiled, _) = in_way(&compiled, way);
        let cases = cases(&fixture, &compiled, &[size]);
        conforms(&fixture, &compiled, &cases, on);
    }
}
