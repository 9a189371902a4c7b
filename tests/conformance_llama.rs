//! Compiled Llama models on devices, against what transformers computes in
//! float64 from the same checkpoints.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::collections::BTreeMap;

use common::fixtures::{Case, assert_close, fixture_of};
use common::on::{On, conforms, every_size, interpreted, one_conforms};
use common::{NATIVE, TIERS, compiled_folder, in_memory, open};
use kiln_codegen::{CompileOptions, compile};
use kiln_ir::interp::{HostData, HostTensor, Interpreter, Tensors, run};
use kiln_ir::plan::ModelInfo;
use kiln_ir::{Bindings, DType, Graph, GraphBuilder, Packing};
use kiln_models::nn::Rotary;
use kiln_models::registry::{EntryOptions, from_config};
use kiln_runtime::RunOptions;

#[test]
fn software_tier_with_subgroups() {
    conforms("llama", NATIVE, "software-subgroup");
}

#[test]
fn subgroup_tier() {
    conforms("llama", NATIVE, "subgroup");
}

#[test]
fn base_tier() {
    conforms("llama", NATIVE, "base");
}

/// The tier of software drivers without subgroups; through OpenGL they have none.
#[cfg(target_os = "linux")]
#[test]
fn software_tier_through_opengl() {
    for name in ["smollm2", "qwen3_window"] {
        one_conforms(&fixture_of("llama", name), "gl", "software");
    }
}

/// Heads that share keys, and a head tied to the embedding.
#[test]
fn every_batch_and_length() {
    every_size(&fixture_of("llama", "smollm2"), &TIERS);
}

#[test]
fn weights_in_f16() {
    packed(Packing::F16, "qwen3_bias", ["software-subgroup", "base"]);
}

#[test]
fn weights_in_q8() {
    packed(Packing::Q8, "qwen2", ["software", "subgroup"]);
}

#[test]
fn weights_in_q4() {
    packed(Packing::Q4, "head_dim_wide", ["software-subgroup", "base"]);
}

/// Weights of which three stored tensors make one matrix, rounded: as exact as
/// `f32` on the weights as they are. One fixture on both tiers, and another on the tier
/// `subgroup`.
fn packed(packing: Packing, other: &str, tiers: [&str; 2]) {
    for (name, tiers) in [("smollm2", tiers.as_slice()), (other, &["subgroup"])] {
        let (fixture, artifact) = compiled_folder(&fixture_of("llama", name), packing);
        let interpreter = Interpreter::<f64>::new(fixture.graph("forward"), &*artifact).unwrap();
        let cases = fixture.cases().into_iter();
        let cases = cases.map(|case| interpreted(&interpreter, case.label, case.ids));
        let cases: Vec<Case> = cases.collect();
        for tier in tiers {
            let model = open(NATIVE, tier, &artifact);
            let mut on = On::new(&fixture, &model, cases.clone());
            on.label.push_str(&format!(" in {}", packing.name()));
            on.whole_sequences();
            on.pieces();
        }
    }
}

/// A layer of a decode step is seven launches on a GPU: queries, keys and values;
/// their turning; attention; its output; gate; up; down. One more may be had by a
/// long context. Qwen3 has norms of queries and of keys besides.
#[test]
fn a_layer_takes_few_launches() {
    for (family, settings, most) in [
        ("llama", "", 7),
        ("llama", r#", "attention_bias": true, "mlp_bias": true"#, 7),
        ("qwen3", r#", "head_dim": 32"#, 9),
    ] {
        let launches = |layers: usize, tier: &str, variant: &str| {
            let config = format!(
                r#"{{"model_type": "{family}", "vocab_size": 512, "max_position_embeddings": 64,
                    "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "num_hidden_layers": {layers} {settings}}}"#
            );
            let model = from_config(&config).unwrap();
            let options = EntryOptions::default();
            let step = model.graph("step", &options).unwrap();
            let compiled = compile(
                &[step],
                model.info(&options),
                &CompileOptions::default(),
                &mut |_, _, _, _| {},
            );
            let plan = compiled.unwrap().plan;
            let tier = plan.tiers.iter().find(|t| t.name == tier).unwrap();
            let entry = &tier.entries["step"];
            let mut variants = entry.variants.iter();
            variants.find(|v| v.name == variant).unwrap().launches.len()
        };
        for tier in ["subgroup", "base"] {
            let [two, three] = [2, 3].map(|layers| launches(layers, tier, "decode"));
            assert!(
                three - two <= most,
                "{family}{settings} on {tier}: {two}, {three}"
            );
            // The embedding, angles with their cosines and sines, norm and head.
            assert!(two <= 2 * most + 6, "{family}{settings} on {tier}: {two}");
        }
        // A CPU driver gets up to three of a layer's kernels in one.
        let [two, three] = [2, 3].map(|layers| launches(layers, "software-subgroup", "joined"));
        assert_eq!(three - two, 3, "{family}{settings}");
    }
}

/// What a graph without parameters gives on every tier, and by the interpreter.
fn on_all_tiers(graph: &Graph, inputs: &Tensors<f64>, check: impl Fn(&str, &str, &[f32], &[f64])) {
    let none = BTreeMap::<String, Vec<f32>>::new();
    let wanted = run::<f64>(graph, &none, inputs, &mut Tensors::new()).unwrap();
    let compiled = compile(
        std::slice::from_ref(graph),
        ModelInfo::of("test"),
        &CompileOptions::default(),
        &mut |_, _, _, _| {},
    );
    let artifact = in_memory(compiled.unwrap(), &none);
    let bytes = inputs.iter().map(|(name, tensor)| {
        let bytes = match &tensor.data {
            HostData::F(v) => v.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            HostData::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            HostData::Bool(_) => panic!("{name}"),
        };
        (name.as_str(), bytes)
    });
    let bytes: Vec<(&str, Vec<u8>)> = bytes.collect();
    let bytes: Vec<(&str, &[u8])> = bytes.iter().map(|(n, b)| (*n, b.as_slice())).collect();
    let mut sizes = Bindings::new();
    for (name, ty) in graph.inputs() {
        for (dim, size) in ty.shape.iter().zip(&inputs[name].shape) {
            if let Some(symbol) = dim.as_symbol() {
                sizes.set(symbol.name(), *size as u64);
            }
        }
    }
    for tier in TIERS {
        let model = open(NATIVE, tier, &artifact);
        let found = model.run_collect(&graph.name, &bytes, &sizes, &RunOptions::default());
        for output in found.unwrap() {
            let wanted = wanted[&output.name].as_f().unwrap();
            check(tier, &output.name, output.f32().unwrap(), wanted);
        }
    }
}

/// Angles up to 100,000 radians, where a driver's own functions may give
/// anything.
#[test]
fn sines_and_cosines_are_exact_far_from_zero() {
    // One element at a time, and four.
    for width in [1usize, 4] {
        let mut g = GraphBuilder::new("waves");
        let n = g.symbol("n", 40_000).unwrap();
        let x = g.input("x", DType::F32, [n, width.into()]).unwrap();
        let (sin, cos) = (g.sin(x).unwrap(), g.cos(x).unwrap());
        g.output("sin", sin).unwrap();
        g.output("cos", cos).unwrap();
        let graph = g.finish();

        // On either side of where the reduction begins.
        let eighth = std::f32::consts::FRAC_PI_4;
        let around = [eighth.next_down(), -eighth, eighth.next_up()].map(f64::from);
        let mut angles = vec![0.0, -0.0, 1e-30, 1e5, -1e5];
        angles.extend(around);
        // Near every quarter turn, and spread over all sizes.
        angles.extend((0..4000).map(|i| f64::from(i - 2000) * std::f64::consts::FRAC_PI_2));
        angles.extend((0..4000).map(|i| (f64::from(i) * 0.0037).exp() * 1e-2 % 1e5));
        angles.extend((0..4000).map(|i| -25.03 * f64::from(i)));
        angles.truncate(angles.len() / width * width);
        let angles: Vec<f64> = angles.into_iter().map(|x| f64::from(x as f32)).collect();
        let x = HostTensor::f([angles.len() / width, width], angles.clone());
        let inputs = Tensors::from([("x".to_owned(), x)]);
        on_all_tiers(&graph, &inputs, |tier, name, found, wanted| {
            assert_eq!(found.len(), angles.len());
            for ((found, wanted), angle) in found.iter().zip(wanted).zip(&angles) {
                let error = (f64::from(*found) - wanted).abs();
                assert!(
                    error < 2e-7,
                    "{tier}: {name} {angle}: {found}, not {wanted}"
                );
            }
        });
    }
}

/// Heads of every width, and positions told for all sequences or for each.
#[test]
fn heads_turn_on_every_tier() {
    for (heads, half) in [
        (1, 1),
        (3, 1),
        (2, 2),
        (1, 3),
        (4, 4),
        (3, 5),
        (2, 8),
        (5, 12),
        (2, 32),
    ] {
        for own_positions in [false, true] {
            let mut g = GraphBuilder::new("turn");
            let batch = g.symbol("batch", 3).unwrap();
            let n = g.symbol("n", 9).unwrap();
            let width = heads * 2 * half;
            let x = [batch.clone(), n.clone(), width.into()];
            let x = g.input("x", DType::F32, x).unwrap();
            let shape = if own_positions {
                vec![batch, n]
            } else {
                vec![n]
            };
            let positions = g.input("positions", DType::I32, shape).unwrap();
            let frequencies: Vec<f64> = (0..half)
                .map(|i| 50f64.powf(-(i as f64) / half as f64))
                .collect();
            let rotary = Rotary::new(frequencies);
            let angles = rotary.angles(&mut g, positions).unwrap();
            let y = rotary.forward(&mut g, x, angles).unwrap();
            g.output("y", y).unwrap();
            let graph = g.finish();

            for (batch, n) in [(1, 1), (3, 1), (2, 7), (3, 9)] {
                let values = (0..batch * n * width).map(|i| ((i * 37 % 101) as f64 - 50.0) / 25.0);
                let values: Vec<f64> = values.map(|v| f64::from(v as f32)).collect();
                let rows = if own_positions { batch } else { 1 };
                let places: Vec<i32> = (0..rows * n).map(|i| (i * i) as i32 % 31).collect();
                let shape = if own_positions {
                    vec![batch, n]
                } else {
                    vec![n]
                };
                let inputs = Tensors::from([
                    ("x".to_owned(), HostTensor::f([batch, n, width], values)),
                    ("positions".to_owned(), HostTensor::i32(shape, places)),
                ]);
                on_all_tiers(&graph, &inputs, |tier, _, found, wanted| {
                    let label = format!("{tier}: {heads} heads of {}, {batch} by {n}", 2 * half);
                    assert_close(&label, found, wanted, 1e-6);
                });
            }
        }
    }
}
