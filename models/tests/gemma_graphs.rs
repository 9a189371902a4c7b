//! What graphs Gemma's models give, from which descriptions and from which
//! tensors.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::fixtures;
use kiln_ir::interp::{HostTensor, Tensors, run};
use kiln_ir::{Graph, text, verify};
use kiln_models::adapter::count;
use kiln_models::checkpoint::Checkpoint;
use kiln_models::registry::{EntryOptions, Model, from_config, preset, preset_names};
use kiln_models::source::open_folder;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

fn small(settings: &str) -> Box<dyn Model> {
    let config = format!(
        r#"{{"model_type": "gemma3_text", "vocab_size": 11, "max_position_embeddings": 16,
            "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "sliding_window": 5, "sliding_window_pattern": 2 {settings}}}"#
    );
    from_config(&config).unwrap()
}

fn listed(model: &dyn Model) -> Vec<String> {
    let all = model.parameters().into_iter();
    all.map(|p| format!("{} {:?}", p.name, p.shape)).collect()
}

#[test]
fn the_published_sizes_have_their_parameters() {
    for (name, parameters) in [("gemma3-270m", 268_098_176), ("gemma3-1b", 999_885_952)] {
        assert!(preset_names().contains(&name), "{name}");
        let model = preset(name).unwrap();
        assert_eq!(model.family(), "gemma3_text");
        assert_eq!(count(&model.parameters()), parameters, "{name}");
        let info = model.info(&EntryOptions::default());
        assert_eq!(info.parameters, parameters, "{name}");
        let again = from_config(&info.config).unwrap();
        assert_eq!(again.parameters(), model.parameters(), "{name}");
    }
}

/// A model of images and text is another one than that of text in it.
#[test]
fn models_of_images_are_refused() {
    let refused = |text| from_config(text).unwrap_err().to_string();
    for (text, said, supported) in [
        (
            r#"{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}"#,
            "config.json sets `model_type` to \"gemma3\", which kiln does not support; this is a model of \
             images and text, of which kiln has those of text alone, such as gemma-3-1b; those it does are ",
            "gemma3_text",
        ),
        (
            r#"{"architectures": ["Gemma3ForConditionalGeneration"]}"#,
            "config.json sets `architectures` to \"Gemma3ForConditionalGeneration\", which kiln does not \
             support; this is a model of images and text, of which kiln has those of text alone, such as \
             gemma-3-1b; those it does are ",
            "Gemma3ForCausalLM, Gemma3TextModel",
        ),
    ] {
        let error = refused(text);
        assert!(
            error.starts_with(said) && error.ends_with(supported),
            "{error}"
        );
    }
}

#[test]
fn parameters_are_named_after_their_modules() {
    let block = |layer: usize| {
        [
            "input_layernorm.weight [8]",
            "self_attn.qkv_proj.weight [48, 8]",
            "self_attn.q_norm.weight [6]",
            "self_attn.k_norm.weight [6]",
            "self_attn.o_proj.weight [8, 24]",
            "post_attention_layernorm.weight [8]",
            "pre_feedforward_layernorm.weight [8]",
            "mlp.gate_proj.weight [10, 8]",
            "mlp.up_proj.weight [10, 8]",
            "mlp.down_proj.weight [8, 10]",
            "post_feedforward_layernorm.weight [8]",
        ]
        .map(|rest| format!("layers.{layer}.{rest}"))
        .to_vec()
    };
    let wanted = [
        vec!["embed_tokens.weight [11, 8]".to_owned()],
        block(0),
        block(1),
        vec!["norm.weight [8]".to_owned()],
    ]
    .concat();
    assert_eq!(listed(&*small("")), wanted);
    let body = small(r#", "architectures": ["Gemma3TextModel"]"#);
    assert_eq!(listed(&*body), wanted);
    let own = listed(&*small(r#", "tie_word_embeddings": false"#));
    assert_eq!(own[..wanted.len()], wanted);
    assert_eq!(own[wanted.len()..], ["lm_head.weight [11, 8]"]);

    let with_biases = listed(&*small(r#", "attention_bias": true"#));
    for bias in ["self_attn.qkv_proj.bias [48]", "self_attn.o_proj.bias [8]"] {
        assert!(with_biases.contains(&format!("layers.1.{bias}")), "{bias}");
    }
    assert_eq!(with_biases.len(), wanted.len() + 4);
}

#[test]
fn graphs_are_valid_primitive_and_all_on_the_same_parameters() {
    for settings in [
        "",
        r#", "tie_word_embeddings": false"#,
        r#", "architectures": ["Gemma3TextModel"]"#,
        r#", "attention_bias": true"#,
        r#", "layer_types": ["full_attention", "full_attention"]"#,
        r#", "rope_scaling": {"rope_type": "linear", "factor": 8.0}"#,
    ] {
        let model = small(settings);
        let wanted: Vec<String> = model.parameters().into_iter().map(|p| p.name).collect();
        for entry in model.entries() {
            let graph: Graph = model.graph(entry, &EntryOptions::default()).unwrap();
            verify::verify(&graph).unwrap();
            assert!(graph.iter().all(|(_, value)| !value.op.is_fused()));
            let names: Vec<&str> = graph.params().map(|(name, _)| name).collect();
            assert_eq!(names, wanted, "{entry}");
            let printed = graph.to_string();
            assert_eq!(text::parse(&printed).unwrap().to_string(), printed);
        }
    }
}

/// A window as long as the context hides nothing; its layers turn by their own base all
/// the same.
#[test]
fn long_windows_leave_layers_their_own_angles() {
    let step = |settings: &str| {
        let model = small(&format!(", {settings}"));
        let graph = model.graph("step", &EntryOptions::default());
        graph.unwrap().to_string()
    };
    let [shorter, longer] = [15, 16].map(|size| step(&format!(r#""sliding_window": {size}"#)));
    assert_ne!(shorter, longer);
    assert_eq!(longer, step(r#""sliding_window": 99"#));
    let whole = r#""layer_types": ["full_attention", "full_attention"]"#;
    assert_ne!(longer, step(whole));
}

/// A layer of zeros gives nothing: what is left is the embedding, the norm and the head.
#[test]
fn embeddings_are_scaled_and_gains_are_stored_less_one() {
    let model = small(r#", "num_hidden_layers": 1, "rms_norm_eps": 1.0"#);
    let tensors: Vec<(String, Vec<usize>, f32)> = model
        .parameters()
        .iter()
        .flat_map(|p| match p.parts.is_empty() {
            true => vec![(p.name.clone(), p.shape.clone())],
            false => {
                let parts = p.parts.iter();
                parts
                    .map(|part| (part.name.clone(), vec![part.rows, 8]))
                    .collect()
            }
        })
        .map(|(name, shape)| {
            let fill = match name.as_str() {
                "embed_tokens.weight" => 0.25,
                "norm.weight" => 1.0,
                _ => 0.0,
            };
            (format!("model.{name}"), shape, fill)
        })
        .collect();
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, fill)| fill.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let checkpoint = Checkpoint::from_bytes("m", "{}", serialize(views, None).unwrap()).unwrap();
    let weights = model.weights(checkpoint).unwrap();
    let gains = |name: &str| weights.get(name).unwrap().to_vec();
    assert_eq!(gains("norm.weight"), [2.0; 8]);
    assert_eq!(gains("layers.0.self_attn.q_norm.weight"), [1.0; 6]);
    assert_eq!(gains("layers.0.self_attn.o_proj.weight"), [0.0; 8 * 24]);

    let forward = model.graph("forward", &EntryOptions::default()).unwrap();
    let ids = Tensors::from([("ids".to_owned(), HostTensor::i32([1, 1], vec![3]))]);
    let outputs = run::<f64>(&forward, &weights, &ids, &mut Tensors::new()).unwrap();
    // A row of quarters, times the root of how many there are.
    let row = 0.25 * 8f64.sqrt();
    let wanted = 2.0 * row / (row * row + 1.0).sqrt();
    for found in outputs["hidden"].as_f().unwrap() {
        assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
    }
    for found in outputs["logits"].as_f().unwrap() {
        // The head is the embedding as it is stored.
        assert!((found - 8.0 * 0.25 * wanted).abs() < 1e-12, "{found}");
    }
}

#[test]
fn every_fixture_is_opened_as_its_family() {
    for folder in fixtures("gemma") {
        let loaded = open_folder(&folder).unwrap();
        assert_eq!(loaded.model.family(), "gemma3_text");
        assert_eq!(loaded.params.parameters(), loaded.model.parameters());
        assert!(loaded.tokenizer.is_none());
    }
}
