//! Llama through the whole pipeline: seven ops a layer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::model::{self, FREE};
use kiln_ir::{Graph, Op};
use kiln_passes::optimize;

const LAYER: [&str; 7] = [
    "layers.0.self_attn.qkv_proj = linear rms_norm=1e-6",
    "layers.0.self_attn.rotary_emb = rotary",
    "layers.0.self_attn = attention causal=true",
    "layers.0.self_attn.o_proj = linear then=[add]",
    "layers.0.mlp.gate_proj = linear rms_norm=1e-6 then=[silu]",
    "layers.0.mlp.up_proj = linear rms_norm=1e-6 then=[mul]",
    "layers.0.mlp.down_proj = linear then=[add]",
];

/// A small model with these settings.
fn optimised(settings: &str, entry: &str) -> Graph {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 67, "max_position_embeddings": 16,
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2 {settings}}}"#
    );
    model::optimised(&config, entry)
}

fn work(graph: &Graph) -> Vec<String> {
    model::work(graph, "layers.")
}

fn two_layers(ops: &[&str]) -> Vec<String> {
    model::two_layers(ops, ["layers.0", "layers.1"])
}

#[test]
fn forward() {
    let after = optimised("", "forward");
    assert_eq!(work(&after), two_layers(&LAYER), "{after}");
    // Besides: the embedding; positions as real numbers, angles, cosines and
    // sines; the norm and the head.
    let all = after.iter().filter(|(_, v)| !FREE.contains(&v.op.name()));
    assert_eq!(all.count(), 14 + 1 + 4 + 2, "{after}");
}

#[test]
fn forward_attentions() {
    let after = optimised("", "forward_attentions");
    let probabilities = "layers.0.self_attn = attention_probs causal=true";
    let ops = [&LAYER[..2], &[probabilities], &LAYER[2..]].concat();
    assert_eq!(work(&after), two_layers(&ops), "{after}");
}

#[test]
fn step() {
    let after = optimised("", "step");
    assert_eq!(work(&after), two_layers(&LAYER), "{after}");
    // Of the last layer, all but keys and values is of the last position only.
    let rows = |source: &str| {
        let mut values = after.iter().map(|(_, v)| v);
        let value = values.find(|v| v.source == source && v.op.is_fused());
        value.unwrap().ty.shape[1].to_string()
    };
    assert_eq!(rows("layers.0.mlp.down_proj"), "seq");
    assert_eq!(rows("layers.1.self_attn.qkv_proj"), "seq");
    for source in [
        "self_attn",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.down_proj",
    ] {
        assert_eq!(rows(&format!("layers.1.{source}")), "1", "{source}");
    }
    // Keys turn before they are kept.
    for (name, kept) in after.states() {
        let new = after.value(*after.value(*kept).inputs.last().unwrap());
        let of = after.value(new.inputs[0]).op.clone();
        assert_eq!(of == Op::Rotary, name.ends_with(".k"), "{after}");
    }
}

/// A window of some layers is part of their attention.
#[test]
fn windows() {
    for (types, windows) in [
        (["sliding_attention", "full_attention"], [" window=5", ""]),
        (["full_attention", "sliding_attention"], ["", " window=5"]),
    ] {
        let settings = format!(
            r#", "model_type": "qwen3", "use_sliding_window": true, "sliding_window": 5,
               "layer_types": {types:?}"#
        );
        for entry in ["forward", "forward_attentions", "step"] {
            let after = optimised(&settings, entry);
            for (layer, window) in windows.iter().enumerate() {
                let attention = format!("layers.{layer}.self_attn = attention causal=true{window}");
                assert!(work(&after).contains(&attention), "{entry}: {after}");
            }
        }
    }
}

/// Every switch of the configuration that changes what is computed.
#[test]
fn every_setting() {
    for entry in ["forward", "forward_attentions", "step"] {
        let layer = if entry == "forward_attentions" { 8 } else { 7 };
        for (settings, expected) in [
            (
                r#", "attention_bias": true"#,
                "qkv_proj = linear rms_norm=1e-6 then=[add]",
            ),
            (
                r#", "attention_bias": true"#,
                "o_proj = linear then=[add, add]",
            ),
            (
                r#", "mlp_bias": true"#,
                "gate_proj = linear rms_norm=1e-6 then=[add, silu]",
            ),
            (
                r#", "mlp_bias": true"#,
                "up_proj = linear rms_norm=1e-6 then=[add, mul]",
            ),
            (
                r#", "mlp_bias": true"#,
                "down_proj = linear then=[add, add]",
            ),
            (r#", "hidden_act": "gelu_pytorch_tanh""#, "then=[gelu_tanh]"),
            (
                r#", "rms_norm_eps": 0.01"#,
                "qkv_proj = linear rms_norm=0.01",
            ),
            (r#", "num_key_value_heads": 1"#, "attention"),
            (r#", "num_key_value_heads": 4"#, "attention"),
            (r#", "head_dim": 6"#, "attention"),
            (r#", "tie_word_embeddings": true"#, "attention"),
            (r#", "architectures": ["LlamaModel"]"#, "attention"),
        ] {
            let work = work(&optimised(settings, entry));
            assert_eq!(work.len(), 2 * layer, "{entry} {settings}\n{work:?}");
            let work = work.join("\n");
            assert!(work.contains(expected), "{entry} {settings}\n{work}");
        }
    }
}

/// Qwen3's norms of queries and of keys.
#[test]
fn norms_of_heads() {
    let norms = [
        "layers.0.self_attn.q_norm = rms_norm",
        "layers.0.self_attn.k_norm = rms_norm",
    ];
    let ops = [&LAYER[..1], &norms, &LAYER[1..]].concat();
    for entry in ["forward", "step"] {
        let after = optimised(r#", "model_type": "qwen3", "head_dim": 6"#, entry);
        assert_eq!(work(&after), two_layers(&ops), "{after}");
    }
}

#[test]
fn the_second_time_changes_nothing() {
    for entry in ["forward", "forward_attentions", "step"] {
        let mut once = optimised("", entry);
        let text = once.to_string();
        optimize(&mut once, &mut |pass, _, changed| {
            assert!(!changed.any(), "{pass}");
        })
        .unwrap();
        assert_eq!(once.to_string(), text);
    }
}
