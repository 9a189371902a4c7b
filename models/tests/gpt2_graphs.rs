//! What graphs GPT-2's models give, and from which descriptions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use common::{Fixture, Session, fixture, fixtures};
use kiln_ir::interp::{HostTensor, InterpError, Interpreter, Tensors};
use kiln_ir::{Graph, Op, text, verify};
use kiln_models::adapter::count;
use kiln_models::registry::{EntryOptions, Model, from_config, preset, preset_names};
use kiln_models::source::open_folder;

fn small(settings: &str) -> Box<dyn Model> {
    let config = format!(
        r#"{{"model_type": "gpt2", "vocab_size": 11, "n_positions": 16, "n_embd": 6, "n_head": 2,
            "n_layer": 2, "n_inner": 10 {settings}}}"#
    );
    from_config(&config).unwrap()
}

fn graphs(model: &dyn Model, options: &EntryOptions) -> Vec<Graph> {
    let entries = model.entries().into_iter();
    entries
        .map(|entry| model.graph(entry, options).unwrap())
        .collect()
}

fn symbols(graph: &Graph) -> Vec<(&str, u64)> {
    graph
        .symbols
        .iter()
        .map(|s| (s.name.name(), s.max))
        .collect()
}

fn outputs(graph: &Graph) -> Vec<String> {
    let outputs = graph.outputs().iter();
    outputs
        .map(|(name, value)| format!("{name} {}", graph.ty(*value)))
        .collect()
}

#[test]
fn the_published_sizes_have_their_parameters() {
    let published = [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ];
    assert_eq!(preset_names()[..4], published.map(|(name, _)| name));
    for (name, parameters) in published {
        let model = preset(name).unwrap();
        assert_eq!(count(&model.parameters()), parameters, "{name}");
        let info = model.info(&EntryOptions::default());
        assert_eq!(info.parameters, parameters, "{name}");
        assert_eq!((info.vocab_size, info.max_context), (50_257, 1024));
        assert_eq!(info.eos_tokens, [50_256]);
        let again = from_config(&info.config).unwrap();
        assert_eq!(again.parameters(), model.parameters(), "{name}");
    }
    assert!(preset("gpt3").is_none());
}

#[test]
fn parameters_are_named_after_their_modules() {
    let model = small("");
    let all = model.parameters();
    let list: Vec<String> = all
        .iter()
        .map(|p| format!("{} {:?}", p.name, p.shape))
        .collect();
    let block = |layer: usize| {
        [
            "ln_1.weight [6]",
            "ln_1.bias [6]",
            "attn.c_attn.weight [18, 6]",
            "attn.c_attn.bias [18]",
            "attn.c_proj.weight [6, 6]",
            "attn.c_proj.bias [6]",
            "ln_2.weight [6]",
            "ln_2.bias [6]",
            "mlp.c_fc.weight [10, 6]",
            "mlp.c_fc.bias [10]",
            "mlp.c_proj.weight [6, 10]",
            "mlp.c_proj.bias [6]",
        ]
        .map(|rest| format!("h.{layer}.{rest}"))
    };
    let wanted = [
        vec![
            "wte.weight [11, 6]".to_owned(),
            "wpe.weight [16, 6]".to_owned(),
        ],
        block(0).to_vec(),
        block(1).to_vec(),
        vec!["ln_f.weight [6]".to_owned(), "ln_f.bias [6]".to_owned()],
    ];
    assert_eq!(list, wanted.concat());

    let names = |model: Box<dyn Model>| -> Vec<String> {
        model.parameters().into_iter().map(|p| p.name).collect()
    };
    let tied = names(model);
    let mut own = names(small(r#", "tie_word_embeddings": false"#));
    assert_eq!(own.pop().as_deref(), Some("lm_head.weight"));
    assert_eq!(own, tied);
    let body = names(small(r#", "architectures": ["GPT2Model"]"#));
    assert_eq!(body, tied);
}

#[test]
fn graphs_are_valid_primitive_and_all_on_the_same_parameters() {
    for settings in [
        "",
        r#", "tie_word_embeddings": false"#,
        r#", "architectures": ["GPT2Model"]"#,
        r#", "activation_function": "silu", "scale_attn_weights": false"#,
    ] {
        let model = small(settings);
        let all = graphs(&*model, &EntryOptions::default());
        assert_eq!(
            all.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(),
            ["forward", "forward_attentions", "step"]
        );
        let wanted: Vec<String> = model.parameters().into_iter().map(|p| p.name).collect();
        for graph in &all {
            verify::verify(graph).unwrap();
            assert!(graph.iter().all(|(_, value)| !value.op.is_fused()));
            let names: Vec<&str> = graph.params().map(|(name, _)| name).collect();
            assert_eq!(names, wanted, "{}", graph.name);
            let printed = graph.to_string();
            assert_eq!(text::parse(&printed).unwrap().to_string(), printed);
        }
    }
}

#[test]
fn entries_take_and_give_what_is_promised() {
    let model = small("");
    let [forward, attentions, step] = &graphs(&*model, &EntryOptions::default())[..] else {
        panic!("three entries");
    };
    assert_eq!(symbols(forward), [("batch", 8), ("seq", 16)]);
    let plain = ["hidden f32[batch, seq, 6]", "logits f32[batch, seq, 11]"];
    assert_eq!(outputs(forward), plain);
    assert!(forward.states().is_empty());

    assert_eq!(outputs(attentions)[..2], plain);
    assert_eq!(
        outputs(attentions)[2..],
        [
            "attentions.0 f32[batch, 2, seq, seq]",
            "attentions.1 f32[batch, 2, seq, seq]"
        ]
    );

    assert_eq!(symbols(step), [("batch", 8), ("seq", 16), ("past", 15)]);
    assert_eq!(outputs(step), ["logits f32[batch, 11]"]);
    let inputs: Vec<String> = step
        .inputs()
        .map(|(name, ty)| format!("{name} {ty}"))
        .collect();
    assert_eq!(inputs, ["ids i32[batch, seq]", "start i32[batch]"]);
    let before = step.iter().filter_map(|(_, value)| match &value.op {
        Op::State { name, ty } => Some(format!("{name} {ty}")),
        _ => None,
    });
    let after = step
        .states()
        .iter()
        .map(|(name, value)| format!("{name} {}", step.ty(*value)));
    let states = ["h.0.attn.k", "h.0.attn.v", "h.1.attn.k", "h.1.attn.v"];
    assert_eq!(
        before.collect::<Vec<_>>(),
        states.map(|name| format!("{name} f32[batch, past, 6]"))
    );
    assert_eq!(
        after.collect::<Vec<_>>(),
        states.map(|name| format!("{name} f32[batch, past + seq, 6]"))
    );

    let body = small(r#", "architectures": ["GPT2Model"]"#);
    let [forward, _, step] = &graphs(&*body, &EntryOptions::default())[..] else {
        panic!("three entries");
    };
    assert_eq!(outputs(forward), ["hidden f32[batch, seq, 6]"]);
    assert_eq!(outputs(step), ["hidden f32[batch, 6]"]);
}

#[test]
fn options_set_the_maxima() {
    let model = preset("gpt2").unwrap();
    let options = EntryOptions {
        max_batch: 3,
        max_context: Some(100),
        prefill_chunk: 64,
    };
    let forward = model.graph("forward", &options).unwrap();
    assert_eq!(symbols(&forward), [("batch", 3), ("seq", 100)]);
    let step = model.graph("step", &options).unwrap();
    assert_eq!(symbols(&step), [("batch", 3), ("seq", 64), ("past", 99)]);
    assert_eq!(model.info(&options).max_context, 100);

    let step = model.graph("step", &EntryOptions::default()).unwrap();
    assert_eq!(
        symbols(&step),
        [("batch", 8), ("seq", 1024), ("past", 1023)]
    );

    let one = EntryOptions {
        max_context: Some(1),
        ..EntryOptions::default()
    };
    let step = model.graph("step", &one).unwrap();
    assert_eq!(symbols(&step), [("batch", 8), ("seq", 1), ("past", 1)]);
}

#[test]
fn a_context_of_one_token_is_a_context() {
    let fixture = Fixture::open(&fixture("base"));
    let options = EntryOptions {
        max_context: Some(1),
        ..EntryOptions::default()
    };
    let model = &fixture.loaded.model;
    assert_eq!(model.info(&options).max_context, 1);
    let first = |options| {
        let step = model.graph("step", options).unwrap();
        verify::verify(&step).unwrap();
        let step = Interpreter::<f64>::new(step, &*fixture.loaded.params).unwrap();
        Session::new(&step, vec![0]).greedy(&[vec![5]], 1)
    };
    assert_eq!(first(&options), first(&EntryOptions::default()));
}

#[test]
fn options_that_do_not_suit_are_refused_by_name() {
    let model = small("");
    let message = |options: EntryOptions| model.graph("step", &options).unwrap_err().to_string();
    let base = EntryOptions::default();
    for context in [0, 17] {
        let options = EntryOptions {
            max_context: Some(context),
            ..base
        };
        assert_eq!(
            message(options),
            format!("`max_context` is {context}; for this model it should be from 1 to 16")
        );
    }
    let options = EntryOptions {
        max_batch: 0,
        ..base
    };
    assert_eq!(
        message(options),
        "`max_batch` is 0; for this model it should be at least 1"
    );
    let options = EntryOptions {
        prefill_chunk: 0,
        ..base
    };
    assert_eq!(
        message(options),
        "`prefill_chunk` is 0; for this model it should be at least 1"
    );
    assert_eq!(
        model.graph("backward", &base).unwrap_err().to_string(),
        "the model has no entry point `backward`; it has forward, forward_attentions, step"
    );
}

#[test]
fn a_smaller_context_gives_the_same_and_no_more() {
    let fixture = Fixture::open(&fixture("base"));
    let options = EntryOptions {
        max_context: Some(8),
        ..EntryOptions::default()
    };
    let step = fixture.loaded.model.graph("step", &options).unwrap();
    let step = Interpreter::<f64>::new(step, &*fixture.loaded.params).unwrap();
    let prompt = fixture.integers("greedy0.prompt").unwrap();
    let wanted = &fixture.integers("greedy0.tokens").unwrap()[..7];
    let mut session = Session::new(&step, vec![0]);
    assert_eq!(session.greedy(&[prompt.to_vec()], 7)[0], wanted);

    let forward = fixture.loaded.model.graph("forward", &options).unwrap();
    let forward = Interpreter::<f64>::new(forward, &*fixture.loaded.params).unwrap();
    let inputs = Tensors::from([("ids".to_owned(), HostTensor::i32([1, 9], vec![0; 9]))]);
    let error = forward.run(&inputs, &mut Tensors::new()).unwrap_err();
    assert!(matches!(error, InterpError::TooLarge { .. }), "{error}");
    assert_eq!(error.to_string(), "`seq` is 9, over its maximum of 8");
}

#[test]
fn families_are_refused_by_name() {
    let message = |text: &str| from_config(text).unwrap_err().to_string();
    let known = "those it does are ";
    let unknown = message(r#"{"model_type": "bert"}"#);
    assert!(
        unknown.starts_with(&format!(
            "config.json sets `model_type` to \"bert\", which kiln does not support; {known}"
        )) && unknown.contains("gpt2"),
        "{unknown}"
    );
    let unknown = message(r#"{"architectures": ["BertModel"]}"#);
    assert!(
        unknown.starts_with(&format!(
            "config.json sets `architectures` to \"BertModel\", which kiln does not support; {known}"
        )) && unknown.contains("GPT2LMHeadModel"),
        "{unknown}"
    );
    let silent = message("{}");
    assert!(
        silent.starts_with("config.json has no `model_type`; kiln supports gpt2, "),
        "{silent}"
    );
    assert_eq!(
        message(r#"{"model_type": 5}"#),
        "config.json sets `model_type` to 5; it should be a text"
    );
    assert_eq!(
        message(r#"{"architectures": [5]}"#),
        "config.json sets `architectures` to [5]; it should be a list with one name"
    );
    let by_class = from_config(r#"{"architectures": ["GPT2LMHeadModel"]}"#).unwrap();
    assert_eq!(by_class.family(), "gpt2");
}

#[test]
fn every_fixture_is_opened_as_its_family() {
    for folder in fixtures("gpt2") {
        let loaded = open_folder(&folder).unwrap();
        assert_eq!(loaded.model.family(), "gpt2");
        assert_eq!(loaded.params.parameters(), loaded.model.parameters());
    }
}
