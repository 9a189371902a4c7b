use super::*;

fn read(text: &str) -> LlamaConfig {
    LlamaConfig::from_json(text).unwrap()
}

fn llama3(config: &LlamaConfig) -> &Llama3Scaling {
    match &config.rope.scaling {
        Some(Scaling::Llama3(scaling)) => scaling,
        other => panic!("{other:?}"),
    }
}

fn message(text: &str) -> String {
    LlamaConfig::from_json(text).unwrap_err().to_string()
}

#[test]
fn published_configs_are_the_presets() {
    // What the published files have, in short.
    let llama = r#"{
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_cache": true, "vocab_size": 128256
    }"#;
    assert_eq!(read(llama), LlamaConfig::preset("llama-3.2-1b").unwrap());
    let smollm = r#"{
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
        "is_llama_config": true, "max_position_embeddings": 8192, "model_type": "llama",
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
        "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 49152
    }"#;
    assert_eq!(read(smollm), LlamaConfig::preset("smollm2-135m").unwrap());
    let qwen = r#"{
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 131072,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false,
        "vocab_size": 151936
    }"#;
    assert_eq!(read(qwen), LlamaConfig::preset("qwen2-0.5b").unwrap());
    let qwen3 = r#"{
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
    }"#;
    assert_eq!(read(qwen3), LlamaConfig::preset("qwen3-0.6b").unwrap());
}

#[test]
fn presets_say_what_they_are() {
    for name in LlamaConfig::preset_names() {
        let config = LlamaConfig::preset(name).unwrap();
        assert_eq!(read(&config.to_json()), config, "{name}");
    }
    assert_eq!(LlamaConfig::preset("llama"), None);
}

#[test]
fn every_setting_is_honoured() {
    let config = read(
        r#"{
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 100,
        "max_position_embeddings": 32, "hidden_size": 24, "intermediate_size": 50,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "hidden_act": "relu", "rms_norm_eps": 0.01, "rope_theta": 50, "attention_bias": true,
        "mlp_bias": true, "tie_word_embeddings": true, "eos_token_id": [5, 6]
    }"#,
    );
    let expected = LlamaConfig {
        variant: Variant::Llama,
        vocab_size: 100,
        max_position_embeddings: 32,
        sliding_window: None,
        hidden_size: 24,
        intermediate_size: 50,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 10,
        hidden_act: Activation::Relu,
        rms_norm_eps: 0.01,
        rope: Rope {
            theta: 50.0,
            scaling: None,
        },
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        head: Head::Tied,
        eos_token_ids: vec![5, 6],
    };
    assert_eq!(config, expected);
    let heads = config.heads();
    assert_eq!((heads.query_width(), heads.key_width()), (40, 20));
    assert_eq!(read(&config.to_json()), expected);
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
    assert_eq!(sizes, (32_000, 2048, 4096, 11_008, 32));
    let heads = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    );
    assert_eq!(heads, (32, 32, 128));
    assert_eq!((config.rms_norm_eps, config.rope.theta), (1e-6, 1e4));
    assert_eq!(
        (config.hidden_act, config.head),
        (Activation::Silu, Head::Own)
    );
    assert!(!config.qkv_bias && !config.o_bias && !config.mlp_bias);

    assert_eq!(config.eos_token_ids, [2]);

    let mistral = read(r#"{"model_type": "mistral", "attention_bias": true, "mlp_bias": true}"#);
    let sizes = (
        mistral.vocab_size,
        mistral.intermediate_size,
        mistral.num_key_value_heads,
        mistral.eos_token_ids,
    );
    assert_eq!(sizes, (32_000, 14_336, 8, vec![2]));
    // Settings that it does not have.
    assert!(!mistral.qkv_bias && !mistral.o_bias && !mistral.mlp_bias);

    let qwen3 = read(r#"{"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 64}"#);
    assert_eq!((qwen3.head_dim, qwen3.num_key_value_heads), (128, 32));

    let qwen = read(r#"{"model_type": "qwen2"}"#);
    assert!(qwen.eos_token_ids.is_empty());
    let heads = |text| {
        let config = read(text);
        (config.num_attention_heads, config.num_key_value_heads)
    };
    let many = r#"{"model_type": "qwen2", "hidden_size": 4096, "num_attention_heads": 64}"#;
    assert_eq!(heads(many), (64, 32), "absent");
    let null = many.replace('}', r#", "num_key_value_heads": null}"#);
    assert_eq!(heads(&null), (64, 64));
    assert_eq!((qwen.vocab_size, qwen.intermediate_size), (151_936, 22_016));
    assert_eq!(qwen.max_position_embeddings, 32_768);
}

#[test]
fn qwen2_has_biases_of_its_own() {
    for text in [
        r#"{"model_type": "qwen2"}"#,
        r#"{"architectures": ["Qwen2Model"]}"#,
        r#"{"model_type": "qwen2", "attention_bias": false, "mlp_bias": true}"#,
    ] {
        let config = read(text);
        assert_eq!(config.variant, Variant::Qwen2);
        assert!(config.qkv_bias && !config.o_bias && !config.mlp_bias);
    }
}

#[test]
fn frequencies_fall_from_one() {
    let of = |text: &str, head_dim| read(text).rope.frequencies(head_dim);
    assert_eq!(of(r#"{"rope_theta": 100}"#, 4), [1.0, 0.1]);
    let new = r#"{"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}"#;
    assert_eq!(of(new, 4), [1.0, 0.1]);
    // The inner one holds.
    let both = r#"{"rope_theta": 7, "rope_parameters": {"rope_theta": 100.0}}"#;
    assert_eq!(of(both, 4), [1.0, 0.1]);
    assert_eq!(
        of(
            r#"{"rope_theta": 100, "rope_scaling": {"type": "default"}}"#,
            2
        ),
        [1.0]
    );
}

#[test]
fn slow_frequencies_are_stretched() {
    // Over 512 tokens pairs turn 81.5, 8.15, 0.815 and 0.0815 times.
    let text = |form: &str| {
        format!(
            r#"{{"rope_theta": 10000, "{form}": {{"rope_type": "llama3", "factor": 4.0,
                "low_freq_factor": 0.5, "high_freq_factor": 10.5,
                "original_max_position_embeddings": 512}}}}"#
        )
    };
    for form in ["rope_scaling", "rope_parameters"] {
        let found = read(&text(form)).rope.frequencies(8);
        let turns = |f: f64| 512.0 * f / std::f64::consts::TAU;
        let between = |f: f64| {
            let fast = (turns(f) - 0.5) / 10.0;
            (1.0 - fast) * f / 4.0 + fast * f
        };
        let wanted = [1.0, between(0.1), between(0.01), 0.001 / 4.0];
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found / wanted - 1.0).abs() < 1e-14, "{found} {wanted}");
        }
    }
}

#[test]
fn the_older_form_holds_where_there_are_both() {
    let both = |older: &str| {
        format!(
            r#"{{"rope_theta": 100, "rope_scaling": {older},
                "rope_parameters": {{"rope_type": "default", "rope_theta": 7}}}}"#
        )
    };
    let scaled = read(&both(
        r#"{"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 512}"#,
    ));
    assert_eq!(scaled.rope.theta, 100.0);
    assert_eq!(llama3(&scaled).factor, 4.0);
    for absent in ["null", "{}"] {
        let rope = read(&both(absent)).rope;
        assert_eq!((rope.theta, rope.scaling), (7.0, None));
    }
    assert_eq!(
        message(&both(r#"{"type": "yarn", "factor": 4.0}"#)),
        "config.json sets `rope_scaling.type` to \"yarn\", which kiln does not support; those it does are \
         default, linear and llama3"
    );
}

#[test]
fn the_original_context_is_found_where_transformers_finds_it() {
    let original = |outside: &str, inside: &str| {
        let config = read(&format!(
            r#"{{"max_position_embeddings": 4096, {outside} "rope_scaling": {{"rope_type": "llama3", {inside}
                "factor": 4.0, "low_freq_factor": 1, "high_freq_factor": 4}}}}"#
        ));
        llama3(&config).original_max_position_embeddings
    };
    let (outside, inside) = (
        r#""original_max_position_embeddings": 512,"#,
        r#""original_max_position_embeddings": 1024,"#,
    );
    assert_eq!(original(outside, inside), 512.0);
    assert_eq!(original("", inside), 1024.0);
    assert_eq!(original("", ""), 4096.0);
}

#[test]
fn positions_are_divided() {
    for form in ["rope_scaling", "rope_parameters"] {
        let config = read(&format!(
            r#"{{"rope_theta": 100, "{form}": {{"rope_type": "linear", "factor": 4}}}}"#
        ));
        assert_eq!(config.rope.frequencies(4), [0.25, 0.025]);
        assert_eq!(read(&config.to_json()), config);
    }
    // Positions divided by one are positions.
    let config = read(r#"{"rope_scaling": {"type": "linear", "factor": 1.0}}"#);
    assert_eq!(config.rope.scaling, None);
}

#[test]
fn other_frequencies_are_refused_by_name() {
    assert_eq!(
        message(r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"#),
        "config.json sets `rope_scaling.rope_type` to \"yarn\", which kiln does not support; those it does are \
         default, linear and llama3"
    );
    assert_eq!(
        message(r#"{"rope_scaling": {"type": "linear"}}"#),
        "config.json has no `rope_scaling.factor`; for linear it should be a number greater than 0"
    );
    assert_eq!(
        message(
            r#"{"rope_parameters": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1}}"#
        ),
        "config.json has no `rope_parameters.high_freq_factor`; for llama3 it should be a number greater than 0"
    );
    assert_eq!(
        message(
            r#"{"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 4,
                "high_freq_factor": 4, "original_max_position_embeddings": 10}}"#
        ),
        "config.json sets `rope_scaling.high_freq_factor` to 4.0; it should be greater than `low_freq_factor`, \
         which is 4"
    );
    assert!(
        message(r#"{"rope_parameters": {"full_attention": {"rope_theta": 1}}}"#).ends_with(
            "which kiln does not support; only one set of frequencies for all layers is"
        )
    );
    assert_eq!(
        message(r#"{"partial_rotary_factor": 0.5}"#),
        "config.json sets `partial_rotary_factor` to 0.5, which kiln does not support; only heads that turn \
         whole are, for which it is 1"
    );
    assert_eq!(
        message(r#"{"rope_scaling": 2.0}"#),
        "config.json sets `rope_scaling` to 2.0; it should be an object"
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    assert_eq!(
        message(r#"{"model_type": "mixtral"}"#),
        "config.json sets `model_type` to \"mixtral\", which kiln does not support; it is read here as \"llama\" \
         or \"mistral\" or \"qwen2\" or \"qwen3\""
    );
    assert_eq!(
        message(r#"{"layer_types": ["full_attention", "chunked_attention"]}"#),
        "config.json sets `layer_types` to \"chunked_attention\", which kiln does not support; those it does are \
         full_attention and sliding_attention"
    );
    assert_eq!(
        message(r#"{"hidden_act": "quick_gelu"}"#),
        "config.json sets `hidden_act` to \"quick_gelu\", which kiln does not support; those it does are \
         gelu_new, gelu_pytorch_tanh, gelu_python_tanh, gelu, gelu_python, relu, silu, swish, tanh"
    );
    assert_eq!(
        message(r#"{"architectures": ["LlamaForSequenceClassification"]}"#),
        "config.json sets `architectures` to [\"LlamaForSequenceClassification\"], which kiln does not support; \
         those it does are LlamaForCausalLM and LlamaModel"
    );
    assert_eq!(
        message(r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#),
        "config.json sets `quantization_config` to \"gptq\", which kiln does not support; give it the \
         unquantised model and let kiln quantise it (--dtype q8 or q4)"
    );
}

/// Which layers have which window, by what `config.json` says beside that there are three.
#[test]
fn windows_of_layers() {
    let (none, all) = ([None; 3], |size| [Some(size); 3]);
    for (model, settings, windows) in [
        // transformers knows no windows there.
        (
            "llama",
            r#""sliding_window": 8, "use_sliding_window": true"#,
            none,
        ),
        ("mistral", "", all(4096)),
        ("mistral", r#""sliding_window": null"#, none),
        ("mistral", r#""sliding_window": 131072"#, none),
        ("mistral", r#""sliding_window": 131071"#, all(131_071)),
        (
            "mistral",
            r#""sliding_window": 64, "layer_types": ["full_attention"]"#,
            all(64),
        ),
        (
            "qwen2",
            r#""sliding_window": 8, "max_window_layers": 0"#,
            none,
        ),
        (
            "qwen2",
            r#""sliding_window": 0, "max_window_layers": 0"#,
            none,
        ),
        ("qwen2", r#""use_sliding_window": true"#, none),
        (
            "qwen2",
            r#""use_sliding_window": true, "max_window_layers": 2"#,
            [None, None, Some(4096)],
        ),
        (
            "qwen2",
            r#""use_sliding_window": true, "max_window_layers": 0, "sliding_window": null"#,
            none,
        ),
        (
            "qwen2",
            r#""use_sliding_window": true, "max_window_layers": 0, "sliding_window": 32768"#,
            none,
        ),
        (
            "qwen3",
            r#""use_sliding_window": true, "max_window_layers": 0, "sliding_window": 8,
               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]"#,
            [Some(8), None, Some(8)],
        ),
        (
            "qwen3",
            r#""use_sliding_window": true, "max_window_layers": 0, "sliding_window": 8,
               "layer_types": ["full_attention", "full_attention", "full_attention"]"#,
            none,
        ),
    ] {
        let comma = if settings.is_empty() { "" } else { "," };
        let config = read(&format!(
            r#"{{"model_type": "{model}", "num_hidden_layers": 3{comma} {settings}}}"#
        ));
        let found = [0, 1, 2].map(|layer| config.window(layer));
        assert_eq!(found, windows, "{model}, {settings}");
        assert_eq!(read(&config.to_json()), config, "{model}, {settings}");
    }
    for (text, setting, wanted) in [
        (
            r#""layer_types": 3"#,
            "`layer_types` to 3",
            "a list of names",
        ),
        (
            r#""max_window_layers": -1"#,
            "`max_window_layers` to -1",
            "a whole number from 0 on",
        ),
        (
            r#""num_hidden_layers": 2, "layer_types": ["full_attention"]"#,
            "`layer_types` to [\"full_attention\"]",
            "a list with a name for each of 2 layers",
        ),
    ] {
        assert_eq!(
            message(&format!(r#"{{"model_type": "qwen3", {text}}}"#)),
            format!("config.json sets {setting}; it should be {wanted}")
        );
    }
    assert_eq!(
        message(r#"{"model_type": "mistral", "sliding_window": 0}"#),
        "config.json sets `sliding_window` to 0; it should be a whole number from 1 to 2147483647"
    );
}

#[test]
fn what_would_take_memory_is_bounded() {
    assert_eq!(
        message(r#"{"num_hidden_layers": 2000000000}"#),
        "config.json sets `num_hidden_layers` to 2000000000; it should be a whole number from 1 to 4096"
    );
    let bound = "it should be at most 8192; where it is not set, it is `hidden_size` divided by \
                 `num_attention_heads`";
    assert_eq!(
        message(r#"{"head_dim": 2147483646}"#),
        format!("config.json sets `head_dim` to 2147483646; {bound}")
    );
    assert_eq!(
        message(r#"{"hidden_size": 2147483646, "num_attention_heads": 1}"#),
        format!("config.json sets `head_dim` to 2147483646; {bound}")
    );
}

#[test]
fn heads_fit_together() {
    assert_eq!(
        message(r#"{"num_attention_heads": 4, "num_key_value_heads": 3}"#),
        "config.json sets `num_key_value_heads` to 3; it should be a divisor of `num_attention_heads`, which is 4"
    );
    assert_eq!(
        message(r#"{"head_dim": 5}"#),
        "config.json sets `head_dim` to 5; it should be even, for its elements turn in pairs"
    );
    assert_eq!(
        message(r#"{"hidden_size": 10, "num_attention_heads": 4}"#),
        "config.json sets `num_attention_heads` to 4; it should be a divisor of `hidden_size`, which is 10, or \
         `head_dim` should be set"
    );
}
