//! Gemma through the whole pipeline: eleven ops a layer, and two sums, for norms stand
//! between what a layer computes and the residual stream.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::model::{self, FREE};
use kiln_ir::{Graph, Op};

const LAYER: [&str; 13] = [
    "layers.0.self_attn.qkv_proj = linear rms_norm=1e-6",
    "layers.0.self_attn.q_norm = rms_norm",
    "layers.0.self_attn.k_norm = rms_norm",
    "layers.0.self_attn.rotary_emb = rotary",
    "layers.0.self_attn = attention causal=true window=5",
    "layers.0.self_attn.o_proj = linear",
    "layers.0.post_attention_layernorm = rms_norm",
    "layers.0 = add",
    "layers.0.mlp.gate_proj = linear rms_norm=1e-6 then=[gelu_tanh]",
    "layers.0.mlp.up_proj = linear rms_norm=1e-6 then=[mul]",
    "layers.0.mlp.down_proj = linear",
    "layers.0.post_feedforward_layernorm = rms_norm",
    "layers.0 = add",
];

/// A small model with these settings, whose second layer sees all tokens.
fn optimised(settings: &str, entry: &str) -> Graph {
    let config = format!(
        r#"{{"model_type": "gemma3_text", "vocab_size": 67, "max_position_embeddings": 16,
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "query_pre_attn_scalar": 9, "sliding_window": 5, "sliding_window_pattern": 2
            {settings}}}"#
    );
    model::optimised(&config, entry)
}

fn work(graph: &Graph) -> Vec<String> {
    model::work(graph, "layers.")
}

fn two_layers(ops: &[&str]) -> Vec<String> {
    let mut all = model::two_layers(ops, ["layers.0", "layers.1"]);
    for op in &mut all {
        if op.starts_with("layers.1") {
            *op = op.replace(" window=5", "");
        }
    }
    all
}

#[test]
fn forward() {
    let after = optimised("", "forward");
    assert_eq!(work(&after), two_layers(&LAYER), "{after}");
    // Besides: the embedding and its scale; positions as real numbers, and for each kind of
    // layers angles, cosines and sines; the norm and the head.
    let all = after.iter().filter(|(_, v)| !FREE.contains(&v.op.name()));
    assert_eq!(all.count(), 26 + 2 + 7 + 2, "{after}");
}

#[test]
fn forward_attentions() {
    let after = optimised("", "forward_attentions");
    let probabilities = "layers.0.self_attn = attention_probs causal=true window=5";
    let ops = [&LAYER[..4], &[probabilities], &LAYER[4..]].concat();
    assert_eq!(work(&after), two_layers(&ops), "{after}");
}

#[test]
fn step() {
    let after = optimised("", "step");
    assert_eq!(work(&after), two_layers(&LAYER), "{after}");
    // Of the last layer, all but keys and values is of the last position only, the norms
    // behind attention and the feed-forward part too.
    let rows = |source: &str| {
        let mut values = after.iter().map(|(_, v)| v);
        let value = values.find(|v| v.source == source && v.op.is_fused());
        value.unwrap().ty.shape[1].to_string()
    };
    assert_eq!(rows("layers.0.post_feedforward_layernorm"), "seq");
    assert_eq!(rows("layers.1.self_attn.q_norm"), "seq");
    for source in [
        "self_attn",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "post_feedforward_layernorm",
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

/// Each kind of layers turns by angles of its own, and scores are scaled as told.
#[test]
fn layers_have_their_own_angles() {
    let after = optimised("", "forward");
    let angles = |layer: usize| {
        let source = format!("layers.{layer}.self_attn.rotary_emb");
        let mut values = after.iter().map(|(_, v)| v);
        let rotary = values.find(|v| v.source == source).unwrap();
        after.value(rotary.inputs[1]).source.as_str()
    };
    assert_eq!([0, 1].map(angles), ["rotary_emb_local", "rotary_emb"]);
    for (_, value) in after.iter() {
        if let Op::Attention(spec) = value.op {
            assert_eq!((spec.scale, spec.heads, spec.kv_heads), (1.0 / 3.0, 4, 2));
        }
    }
}

/// Every switch of the configuration that changes what is computed.
#[test]
fn every_setting() {
    for entry in ["forward", "forward_attentions", "step"] {
        let layer = LAYER.len() + usize::from(entry == "forward_attentions");
        for (settings, expected) in [
            (
                r#", "attention_bias": true"#,
                "qkv_proj = linear rms_norm=1e-6 then=[add]",
            ),
            (r#", "attention_bias": true"#, "o_proj = linear then=[add]"),
            (r#", "hidden_activation": "silu""#, "then=[silu]"),
            (r#", "hidden_activation": "gelu""#, "then=[gelu_erf]"),
            (
                r#", "rms_norm_eps": 0.01"#,
                "qkv_proj = linear rms_norm=0.01",
            ),
            (
                r#", "layer_types": ["full_attention", "sliding_attention"]"#,
                "layers.1.self_attn = attention causal=true window=5",
            ),
            (
                r#", "sliding_window": 16"#,
                "layers.0.self_attn = attention causal=true\n",
            ),
            (
                r#", "rope_scaling": {"rope_type": "linear", "factor": 8}"#,
                "rotary",
            ),
            (r#", "num_key_value_heads": 1"#, "attention"),
            (r#", "num_key_value_heads": 4, "head_dim": 4"#, "attention"),
            (r#", "tie_word_embeddings": false"#, "attention"),
            (r#", "architectures": ["Gemma3TextModel"]"#, "attention"),
        ] {
            let work = work(&optimised(settings, entry));
            assert_eq!(work.len(), 2 * layer, "{entry} {settings}\n{work:?}");
            let work = work.join("\n");
            assert!(work.contains(expected), "{entry} {settings}\n{work}");
        }
    }
}
