//! GPT-2 through the whole pipeline: five ops a layer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::model::{self, FREE};
use kiln_ir::Graph;
use kiln_passes::optimize;

const LAYER: [&str; 5] = [
    "h.0.attn.c_attn = linear layer_norm=1e-5 then=[add]",
    "h.0.attn = attention causal=true",
    "h.0.attn.c_proj = linear then=[add, add]",
    "h.0.mlp.c_fc = linear layer_norm=1e-5 then=[add, gelu_tanh]",
    "h.0.mlp.c_proj = linear then=[add, add]",
];

/// A small model with these settings.
fn config(settings: &str) -> String {
    format!(
        r#"{{"model_type": "gpt2", "vocab_size": 67, "n_positions": 16, "n_embd": 8,
            "n_head": 2, "n_layer": 2 {settings}}}"#
    )
}

fn optimised(settings: &str, entry: &str) -> Graph {
    model::optimised(&config(settings), entry)
}

fn work(graph: &Graph) -> Vec<String> {
    model::work(graph, "h.")
}

fn two_layers(ops: &[&str]) -> Vec<String> {
    model::two_layers(ops, ["h.0", "h.1"])
}

#[test]
fn forward() {
    let after = optimised("", "forward");
    assert_eq!(work(&after), two_layers(&LAYER), "{after}");
    // Besides: two tables and their sum, the norm, the head.
    let all = after.iter().filter(|(_, v)| !FREE.contains(&v.op.name()));
    assert_eq!(all.count(), 10 + 5);
}

#[test]
fn forward_attentions() {
    let after = optimised("", "forward_attentions");
    let probabilities = "h.0.attn = attention_probs causal=true";
    let ops = [&LAYER[..1], &[probabilities], &LAYER[1..]].concat();
    assert_eq!(work(&after), two_layers(&ops), "{after}");
    assert_eq!(after.outputs().len(), 4);
}

#[test]
fn step() {
    let after = optimised("", "step");
    assert_eq!(work(&after), two_layers(&LAYER), "{after}");
    let value = |source: &str| {
        let mut values = after.iter().map(|(_, v)| v);
        values.find(|v| v.source == source && v.op.is_fused())
    };
    let rows = |source: &str| value(source).unwrap().ty.shape[1].to_string();
    assert_eq!(rows("h.0.mlp.c_proj"), "seq");
    // Of the last layer, all but keys and values is of the last position only.
    assert_eq!(rows("h.1.attn.c_attn"), "seq");
    for source in ["attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
        assert_eq!(rows(&format!("h.1.{source}")), "1", "{source}");
    }
    // The padding on the left is an operand of attention.
    for source in ["h.0.attn", "h.1.attn"] {
        assert_eq!(value(source).unwrap().inputs.len(), 4);
    }
}

/// Every switch of the configuration that changes what is computed.
#[test]
fn every_setting() {
    let activations = [
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu", "gelu_erf"),
        ("relu", "relu"),
        ("silu", "silu"),
        ("tanh", "tanh"),
    ];
    for entry in ["forward", "forward_attentions", "step"] {
        for (name, fused) in activations {
            let settings = format!(r#", "activation_function": "{name}""#);
            let work = work(&optimised(&settings, entry)).join("\n");
            let expected = format!("mlp.c_fc = linear layer_norm=1e-5 then=[add, {fused}]");
            assert!(work.contains(&expected), "{entry} {name}\n{work}");
        }
        for settings in [
            r#", "scale_attn_weights": false"#,
            r#", "scale_attn_by_inverse_layer_idx": true"#,
            r#", "n_inner": 20"#,
            r#", "tie_word_embeddings": false"#,
            r#", "architectures": ["GPT2Model"]"#,
        ] {
            let work = work(&optimised(settings, entry));
            let expected = if entry == "forward_attentions" {
                12
            } else {
                10
            };
            assert_eq!(work.len(), expected, "{entry} {settings}\n{work:?}");
        }
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
