use super::*;
use crate::rope::{Llama3Scaling, Scaling};

fn read(text: &str) -> GemmaConfig {
    GemmaConfig::from_json(text).unwrap()
}

fn message(text: &str) -> String {
    GemmaConfig::from_json(text).unwrap_err().to_string()
}

/// The frequencies' bases and scalings, of all tokens and of a window.
fn ropes(text: &str) -> [(f64, Option<Scaling>); 2] {
    let config = read(text);
    assert_eq!(read(&config.to_json()), config, "{text}");
    [config.rope, config.local_rope].map(|rope| (rope.theta, rope.scaling))
}

fn linear(factor: f64) -> Option<Scaling> {
    Some(Scaling::Linear { factor })
}

#[test]
fn published_configs_are_the_presets() {
    // What the published files have, in short.
    let newer = r#"{
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null,
        "bos_token_id": 2, "eos_token_id": 1, "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "initializer_range": 0.02,
        "intermediate_size": 2048,
        "layer_types": [
            "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
            "sliding_attention", "full_attention",
            "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
            "sliding_attention", "full_attention",
            "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
            "sliding_attention", "full_attention"
        ],
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
        "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": 512,
        "torch_dtype": "bfloat16", "use_bidirectional_attention": false, "use_cache": true,
        "vocab_size": 262144
    }"#;
    assert_eq!(read(newer), GemmaConfig::preset("gemma3-270m").unwrap());
    let older = r#"{
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": 1, "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "use_cache": true, "vocab_size": 262144
    }"#;
    assert_eq!(read(older), GemmaConfig::preset("gemma3-1b").unwrap());
}

#[test]
fn presets_say_what_they_are() {
    for name in GemmaConfig::preset_names() {
        let config = GemmaConfig::preset(name).unwrap();
        assert_eq!(read(&config.to_json()), config, "{name}");
    }
    assert_eq!(GemmaConfig::preset("gemma3"), None);
}

#[test]
fn every_setting_is_honoured() {
    let config = read(
        r#"{
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 100,
        "max_position_embeddings": 32, "sliding_window": 9, "hidden_size": 24,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 10, "query_pre_attn_scalar": 7,
        "hidden_activation": "relu", "rms_norm_eps": 0.01, "rope_theta": 50,
        "rope_local_base_freq": 60, "rope_scaling": {"rope_type": "linear", "factor": 3},
        "attention_bias": true, "tie_word_embeddings": false, "eos_token_id": [5, 6]
    }"#,
    );
    let expected = GemmaConfig {
        vocab_size: 100,
        max_position_embeddings: 32,
        sliding_window: SlidingWindow {
            size: 9,
            layers: vec![false, true, true],
        },
        hidden_size: 24,
        intermediate_size: 50,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 10,
        query_pre_attn_scalar: 7.0,
        hidden_activation: Activation::Relu,
        rms_norm_eps: 0.01,
        rope: Rope {
            theta: 50.0,
            scaling: linear(3.0),
        },
        local_rope: Rope {
            theta: 60.0,
            scaling: None,
        },
        attention_bias: true,
        head: Head::Own,
        eos_token_ids: vec![5, 6],
    };
    assert_eq!(config, expected);
    assert_eq!(read(&config.to_json()), expected);
    let body = read(r#"{"architectures": ["Gemma3TextModel"]}"#);
    assert_eq!(body.head, Head::None);
    assert_eq!(read(&body.to_json()), body);
}

#[test]
fn absent_settings_are_those_of_transformers() {
    let config = read("{}");
    let sizes = (
        config.vocab_size,
        config.max_position_embeddings,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    );
    assert_eq!(sizes, (262_208, 131_072, 2304, 9216, 26));
    let heads = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    );
    assert_eq!(heads, (8, 4, 256));
    assert_eq!(
        (config.query_pre_attn_scalar, config.rms_norm_eps),
        (256.0, 1e-6)
    );
    assert_eq!(
        (config.hidden_activation, config.head),
        (Activation::GeluTanh, Head::Tied)
    );
    assert!(!config.attention_bias);
    assert_eq!(config.eos_token_ids, [1]);
    assert_eq!(ropes("{}"), [(1e6, None), (1e4, None)]);
    let window = config.sliding_window;
    assert_eq!(window.size, 4096);
    let whole: Vec<usize> = (0..26).filter(|layer| !window.slides(*layer)).collect();
    assert_eq!(whole, [5, 11, 17, 23]);
}

/// Which layers have a window, of three.
#[test]
fn windows_of_layers() {
    let all = r#""layer_types": ["sliding_attention", "full_attention", "full_attention"]"#;
    for (settings, layers) in [
        (r#""sliding_window": 7"#.to_owned(), [true; 3]),
        (
            r#""sliding_window_pattern": 2"#.to_owned(),
            [true, false, true],
        ),
        (r#""sliding_window_pattern": 1"#.to_owned(), [false; 3]),
        (all.to_owned(), [true, false, false]),
        (
            format!(r#""sliding_window_pattern": 3, {all}"#),
            [true, false, false],
        ),
        // However long it is: it says too by which angles layers turn.
        (
            r#""sliding_window": 4096, "max_position_embeddings": 8"#.to_owned(),
            [true; 3],
        ),
    ] {
        let config = read(&format!(r#"{{"num_hidden_layers": 3, {settings}}}"#));
        assert_eq!(config.sliding_window.layers, layers, "{settings}");
        assert_eq!(read(&config.to_json()), config, "{settings}");
    }
    for (settings, wanted) in [
        (
            r#""sliding_window": null"#,
            "`sliding_window` to null; it should be a number of tokens",
        ),
        (
            r#""sliding_window": 0"#,
            "`sliding_window` to 0; it should be a whole number from 1 to 2147483647",
        ),
        (
            r#""sliding_window_pattern": 0"#,
            "`sliding_window_pattern` to 0; it should be a whole number from 1 to 2147483647",
        ),
        (
            r#""layer_types": ["full_attention"]"#,
            "`layer_types` to [\"full_attention\"]; it should be a list with a name for each of 26 layers",
        ),
        (
            r#""layer_types": ["chunked_attention"]"#,
            "`layer_types` to \"chunked_attention\", which kiln does not support; those it does are \
             full_attention and sliding_attention",
        ),
    ] {
        assert_eq!(
            message(&format!("{{{settings}}}")),
            format!("config.json sets {wanted}")
        );
    }
}

#[test]
fn each_kind_of_layers_turns_by_frequencies_of_its_own() {
    for (text, wanted) in [
        (r#"{"rope_theta": 7}"#, [(7.0, None), (1e4, None)]),
        (r#"{"rope_local_base_freq": 7}"#, [(1e6, None), (7.0, None)]),
        (
            r#"{"rope_scaling": {"rope_type": "linear", "factor": 8}}"#,
            [(1e6, linear(8.0)), (1e4, None)],
        ),
        (
            r#"{"rope_scaling": {"rope_type": "linear", "factor": 1.0}}"#,
            [(1e6, None), (1e4, None)],
        ),
        (
            r#"{"rope_theta": 7, "rope_local_base_freq": 8, "rope_parameters": {
                "full_attention": {"rope_type": "default"},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10}}}"#,
            [(7.0, None), (10.0, None)],
        ),
        (
            r#"{"rope_parameters": {"full_attention": null, "sliding_attention":
                {"rope_type": "linear", "factor": 2, "rope_theta": 10}}}"#,
            [(1e6, None), (10.0, linear(2.0))],
        ),
        // Both forms.
        (
            r#"{"rope_scaling": {"rope_type": "linear", "factor": 8}, "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 9}}}"#,
            [(9.0, linear(8.0)), (1e4, None)],
        ),
        (
            r#"{"rope_scaling": {}, "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2}}}"#,
            [(1e6, linear(2.0)), (1e4, None)],
        ),
        // The context of the training is that of the model, if it is not told.
        (
            r#"{"max_position_embeddings": 64, "rope_scaling": {"rope_type": "llama3",
                "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4}}"#,
            [
                (
                    1e6,
                    Some(Scaling::Llama3(Llama3Scaling {
                        factor: 2.0,
                        low_freq_factor: 1.0,
                        high_freq_factor: 4.0,
                        original_max_position_embeddings: 64.0,
                    })),
                ),
                (1e4, None),
            ],
        ),
    ] {
        assert_eq!(ropes(text), wanted, "{text}");
    }
}

#[test]
fn other_frequencies_are_refused_by_name() {
    for (text, wanted) in [
        (
            r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"#,
            "sets `rope_scaling.rope_type` to \"yarn\", which kiln does not support; those it does are \
             default, linear and llama3",
        ),
        // transformers takes this for no scaling.
        (
            r#"{"rope_scaling": {"type": "linear", "factor": 4.0}}"#,
            "has no `rope_scaling.rope_type`; it should be default, linear or llama3",
        ),
        (
            r#"{"rope_parameters": {"sliding_attention": {"rope_type": "dynamic"}}}"#,
            "sets `rope_parameters.sliding_attention.rope_type` to \"dynamic\", which kiln does not support; \
             those it does are default, linear and llama3",
        ),
        (
            r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 7}}"#,
            "sets `rope_parameters.rope_theta` to 7, which kiln does not support; those it does are \
             full_attention and sliding_attention",
        ),
        (
            r#"{"rope_parameters": {"full_attention": 7}}"#,
            "sets `rope_parameters.full_attention` to 7; it should be an object",
        ),
        (
            r#"{"rope_local_base_freq": 0}"#,
            "sets `rope_local_base_freq` to 0; it should be a number greater than 0",
        ),
        (
            r#"{"partial_rotary_factor": 0.5}"#,
            "sets `partial_rotary_factor` to 0.5, which kiln does not support; only heads that turn whole \
             are, for which it is 1",
        ),
    ] {
        assert_eq!(message(text), format!("config.json {wanted}"));
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (text, wanted) in [
        (
            r#"{"model_type": "gemma3", "text_config": {}}"#,
            "`model_type` to \"gemma3\", which kiln does not support; it is read here as \"gemma3_text\"",
        ),
        (
            r#"{"architectures": ["Gemma3ForConditionalGeneration"]}"#,
            "`architectures` to [\"Gemma3ForConditionalGeneration\"], which kiln does not support; those it \
             does are Gemma3ForCausalLM and Gemma3TextModel",
        ),
        (
            r#"{"attn_logit_softcapping": 50.0}"#,
            "`attn_logit_softcapping` to 50.0, which kiln does not support; only null is, for no cap",
        ),
        (
            r#"{"final_logit_softcapping": 30.0}"#,
            "`final_logit_softcapping` to 30.0, which kiln does not support; only null is, for no cap",
        ),
        (
            r#"{"use_bidirectional_attention": true}"#,
            "`use_bidirectional_attention` to true, which kiln does not support; only false is, for models \
             that generate text",
        ),
        (
            r#"{"hidden_activation": "quick_gelu"}"#,
            "`hidden_activation` to \"quick_gelu\", which kiln does not support; those it does are gelu_new, \
             gelu_pytorch_tanh, gelu_python_tanh, gelu, gelu_python, relu, silu, swish, tanh",
        ),
        (
            r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#,
            "`quantization_config` to \"gptq\", which kiln does not support; give it the unquantised model and \
             let kiln quantise it (--dtype q8 or q4)",
        ),
        (
            r#"{"num_hidden_layers": 2000000000}"#,
            "`num_hidden_layers` to 2000000000; it should be a whole number from 1 to 4096",
        ),
        (
            r#"{"head_dim": 2147483646}"#,
            "`head_dim` to 2147483646; it should be a whole number from 1 to 8192",
        ),
        (
            r#"{"head_dim": 5}"#,
            "`head_dim` to 5; it should be even, for its elements turn in pairs",
        ),
        (
            r#"{"num_attention_heads": 4, "num_key_value_heads": 3}"#,
            "`num_key_value_heads` to 3; it should be a divisor of `num_attention_heads`, which is 4",
        ),
        (
            r#"{"query_pre_attn_scalar": 0}"#,
            "`query_pre_attn_scalar` to 0; it should be a number greater than 0",
        ),
    ] {
        assert_eq!(message(text), format!("config.json sets {wanted}"));
    }
}
