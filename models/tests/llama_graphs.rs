//! What graphs Llama's models give, from which descriptions and from which
//! tensors.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::fixtures;
use kiln_ir::{Graph, Op, text, verify};
use kiln_models::adapter::{AdapterError, count};
use kiln_models::checkpoint::Checkpoint;
use kiln_models::registry::{EntryOptions, Model, from_config, preset, preset_names};
use kiln_models::source::open_folder;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

fn small(settings: &str) -> Box<dyn Model> {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 11, "max_position_embeddings": 16,
            "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2 {settings}}}"#
    );
    from_config(&config).unwrap()
}

fn listed(model: &dyn Model) -> Vec<String> {
    let all = model.parameters().into_iter();
    all.map(|p| format!("{} {:?}", p.name, p.shape)).collect()
}

#[test]
fn the_published_sizes_have_their_parameters() {
    for (name, family, parameters) in [
        ("smollm2-135m", "llama", 134_515_008),
        ("smollm2-360m", "llama", 361_821_120),
        ("qwen2-0.5b", "qwen2", 494_032_768),
        ("qwen3-0.6b", "qwen3", 596_049_920),
        ("llama-3.2-1b", "llama", 1_235_814_400),
        ("qwen2-1.5b", "qwen2", 1_543_714_304),
        ("qwen3-1.7b", "qwen3", 1_720_574_976),
        ("llama-3.2-3b", "llama", 3_212_749_824),
    ] {
        assert!(preset_names().contains(&name), "{name}");
        let model = preset(name).unwrap();
        assert_eq!(model.family(), family);
        assert_eq!(count(&model.parameters()), parameters, "{name}");
        let info = model.info(&EntryOptions::default());
        assert_eq!(info.parameters, parameters, "{name}");
        let again = from_config(&info.config).unwrap();
        assert_eq!(again.parameters(), model.parameters(), "{name}");
    }
}

#[test]
fn parameters_are_named_after_their_modules() {
    let block = |layer: usize| {
        [
            "input_layernorm.weight [8]",
            "self_attn.qkv_proj.weight [16, 8]",
            "self_attn.o_proj.weight [8, 8]",
            "post_attention_layernorm.weight [8]",
            "mlp.gate_proj.weight [10, 8]",
            "mlp.up_proj.weight [10, 8]",
            "mlp.down_proj.weight [8, 10]",
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
    let tied = listed(&*small(r#", "tie_word_embeddings": true"#));
    assert_eq!(tied, wanted);
    assert_eq!(
        listed(&*small(r#", "architectures": ["LlamaModel"]"#)),
        wanted
    );
    let own = listed(&*small(""));
    assert_eq!(own[..wanted.len()], wanted);
    assert_eq!(own[wanted.len()..], ["lm_head.weight [11, 8]"]);

    let with_biases = listed(&*small(r#", "attention_bias": true, "mlp_bias": true"#));
    for bias in [
        "self_attn.qkv_proj.bias [16]",
        "self_attn.o_proj.bias [8]",
        "mlp.gate_proj.bias [10]",
        "mlp.up_proj.bias [10]",
        "mlp.down_proj.bias [8]",
    ] {
        assert!(with_biases.contains(&format!("layers.1.{bias}")), "{bias}");
    }
}

#[test]
fn graphs_are_valid_primitive_and_all_on_the_same_parameters() {
    for settings in [
        "",
        r#", "tie_word_embeddings": true"#,
        r#", "architectures": ["LlamaModel"]"#,
        r#", "attention_bias": true, "mlp_bias": true"#,
        r#", "num_key_value_heads": 4, "head_dim": 6"#,
        r#", "num_key_value_heads": 1, "num_attention_heads": 2"#,
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

#[test]
fn groups_share_their_keys_in_the_cache() {
    let step = small("").graph("step", &EntryOptions::default()).unwrap();
    let states = step.iter().filter_map(|(_, value)| match &value.op {
        Op::State { name, ty } => Some(format!("{name} {ty}")),
        _ => None,
    });
    let names = [
        "0.self_attn.k",
        "0.self_attn.v",
        "1.self_attn.k",
        "1.self_attn.v",
    ];
    assert_eq!(
        states.collect::<Vec<_>>(),
        names.map(|name| format!("layers.{name} f32[batch, past, 4]"))
    );
}

/// A context that would take gigabytes for the cache has to be asked for.
#[test]
fn a_long_context_is_taken_where_it_is_asked_for() {
    let model = preset("llama-3.2-1b").unwrap();
    let context = |max_context| {
        let options = EntryOptions {
            max_context,
            ..EntryOptions::default()
        };
        let graph = model.graph("step", &options).unwrap();
        let past = graph.symbols.iter().find(|s| s.name.name() == "past");
        assert_eq!(past.unwrap().max + 1, model.info(&options).max_context);
        past.unwrap().max + 1
    };
    assert_eq!(context(None), 4096);
    assert_eq!(context(Some(131_072)), 131_072);
    let options = EntryOptions {
        max_context: Some(131_073),
        ..EntryOptions::default()
    };
    assert_eq!(
        model.graph("step", &options).unwrap_err().to_string(),
        "`max_context` is 131073; for this model it should be from 1 to 131072"
    );
}

/// A window hides nothing in a context that is no longer.
#[test]
fn a_window_as_long_as_the_context_is_none() {
    let step = |settings: &str, context| {
        let options = EntryOptions {
            max_context: Some(context),
            ..EntryOptions::default()
        };
        let model = small(&format!(r#", "model_type": "mistral", {settings}"#));
        let [forward, step] = ["forward", "step"].map(|e| model.graph(e, &options).unwrap());
        format!("{forward}{step}")
    };
    let (windowed, whole) = (r#""sliding_window": 12"#, r#""sliding_window": null"#);
    assert_eq!(step(windowed, 12), step(whole, 12));
    assert_ne!(step(windowed, 13), step(whole, 13));
}

/// Names and shapes.
type Tensors = Vec<(String, Vec<usize>)>;

/// The tensors of a model of one layer, each filled with its number.
fn stored() -> Tensors {
    let tensors = [
        ("embed_tokens.weight", vec![11, 8]),
        ("layers.0.input_layernorm.weight", vec![8]),
        ("layers.0.self_attn.q_proj.weight", vec![8, 8]),
        ("layers.0.self_attn.k_proj.weight", vec![4, 8]),
        ("layers.0.self_attn.v_proj.weight", vec![4, 8]),
        ("layers.0.self_attn.o_proj.weight", vec![8, 8]),
        ("layers.0.post_attention_layernorm.weight", vec![8]),
        ("layers.0.mlp.gate_proj.weight", vec![10, 8]),
        ("layers.0.mlp.up_proj.weight", vec![10, 8]),
        ("layers.0.mlp.down_proj.weight", vec![8, 10]),
        ("norm.weight", vec![8]),
    ];
    let tensors = tensors.map(|(name, shape)| (format!("model.{name}"), shape));
    tensors.to_vec()
}

fn checkpoint(tensors: &[(String, Vec<usize>)]) -> Checkpoint {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .enumerate()
        .map(|(i, (_, shape))| (i as f32).to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    Checkpoint::from_bytes("m", "{}", serialize(views, None).unwrap()).unwrap()
}

fn one_layer() -> Box<dyn Model> {
    small(r#", "num_hidden_layers": 1, "tie_word_embeddings": true"#)
}

#[test]
fn queries_keys_and_values_are_put_together() {
    let weights = one_layer().weights(checkpoint(&stored())).unwrap();
    let rows = |fill: f32, rows: usize| vec![fill; rows * 8];
    assert_eq!(
        *weights.get("layers.0.self_attn.qkv_proj.weight").unwrap(),
        [rows(2.0, 8), rows(3.0, 4), rows(4.0, 4)].concat()
    );
    assert_eq!(*weights.get("norm.weight").unwrap(), [10.0; 8]);
    let error = weights.get("layers.0.self_attn.q_proj.weight").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model has no parameter `layers.0.self_attn.q_proj.weight`"
    );
}

#[test]
fn each_part_is_held_to_its_own_shape() {
    let message = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = stored();
        change(&mut tensors);
        let error: AdapterError = one_layer().weights(checkpoint(&tensors)).unwrap_err();
        let text = error.to_string();
        let (_, problems) = text.split_once(":\n  ").unwrap();
        problems.to_owned()
    };
    assert_eq!(
        message(&|tensors| {
            tensors.remove(3);
        }),
        "tensor `model.layers.0.self_attn.k_proj.weight` is missing; its shape should be [4, 8]"
    );
    assert_eq!(
        message(&|tensors| tensors[3].1 = vec![8, 8]),
        "tensor `model.layers.0.self_attn.k_proj.weight` has shape [8, 8]; it should be [4, 8]"
    );
    assert_eq!(
        message(&|tensors| {
            let fused = "model.layers.0.self_attn.qkv_proj.weight";
            tensors.push((fused.to_owned(), vec![16, 8]));
        }),
        "tensor `model.layers.0.self_attn.qkv_proj.weight` of shape [16, 8] is no part of the model that \
         config.json describes; check its settings, or remove the tensor if nothing needs it"
    );
    assert_eq!(
        message(&|tensors| {
            let bias = "model.layers.0.self_attn.q_proj.bias";
            tensors.push((bias.to_owned(), vec![8]));
        }),
        "tensor `model.layers.0.self_attn.q_proj.bias` of shape [8] is no part of the model that \
         config.json describes; check its settings, such as `attention_bias`, or remove the tensor if \
         nothing needs it"
    );
    assert_eq!(
        message(&|tensors| {
            let again = "layers.0.self_attn.v_proj.weight";
            tensors.push((again.to_owned(), vec![4, 8]));
        }),
        "tensors `layers.0.self_attn.v_proj.weight` and `model.layers.0.self_attn.v_proj.weight` both hold \
         `layers.0.self_attn.v_proj.weight`; remove one"
    );
}

#[test]
fn every_fixture_is_opened_as_its_family() {
    for folder in fixtures("llama") {
        let loaded = open_folder(&folder).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy();
        let mut families = ["mistral", "qwen2", "qwen3"].into_iter();
        let family = families.find(|family| name.starts_with(family));
        assert_eq!(loaded.model.family(), family.unwrap_or("llama"));
        assert_eq!(loaded.params.parameters(), loaded.model.parameters());
        // Llama's tokenizers come with the model, or not at all.
        assert!(loaded.tokenizer.is_none());
    }
}
