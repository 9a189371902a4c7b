//! Opening models: what is good opens, and what is not says why.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Session, fixture};
use kiln_ir::interp::{HostTensor, Interpreter, Tensors, run};
use kiln_models::chat::{Message, Sampling};
use kiln_models::registry::{EntryOptions, ModelError};
use kiln_models::source::{Loaded, open_demo, open_folder, random_weights};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// A tensor on its way from one file to another.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Stored {
    fn zeros(shape: &[usize]) -> Self {
        Stored {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            data: vec![0; 4 * shape.iter().product::<usize>()],
        }
    }
}

type StoredTensors = BTreeMap<String, Stored>;

fn read(file: &Path) -> StoredTensors {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let stored = tensors.into_iter().map(|(name, tensor)| {
        let stored = Stored {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data: tensor.data().to_vec(),
        };
        (name, stored)
    });
    stored.collect()
}

fn write(file: &Path, tensors: &StoredTensors) {
    let views = tensors.iter().map(|(name, stored)| {
        let view = TensorView::new(stored.dtype, stored.shape.clone(), &stored.data);
        (name, view.unwrap())
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A copy of a fixture with its tensors altered.
fn altered(name: &str, alter: impl FnOnce(&mut StoredTensors)) -> TempDir {
    let (from, to) = (fixture(name), tempfile::tempdir().unwrap());
    fs::copy(from.join("config.json"), to.path().join("config.json")).unwrap();
    let mut tensors = read(&from.join("model.safetensors"));
    alter(&mut tensors);
    write(&to.path().join("model.safetensors"), &tensors);
    to
}

/// Why a folder cannot be opened, with its path taken out.
fn message(folder: &TempDir) -> String {
    let error = open_folder(folder.path()).unwrap_err().to_string();
    let path = folder.path().display().to_string();
    assert!(error.contains(&path), "the checkpoint is named: {error}");
    error.replace(&path, "M")
}

const MISMATCH: &str = "the tensors in M are not those that its config.json describes:";

#[test]
fn a_missing_tensor_is_named() {
    let folder = altered("base", |tensors| {
        tensors
            .remove("transformer.h.1.attn.c_attn.weight")
            .unwrap();
    });
    assert_eq!(
        message(&folder),
        format!(
            "{MISMATCH}\n  tensor `transformer.h.1.attn.c_attn.weight` is missing; its shape should be [16, 48]"
        )
    );
}

#[test]
fn a_superfluous_tensor_is_named() {
    let folder = altered("base", |tensors| {
        tensors.insert(
            "transformer.h.2.ln_1.weight".to_owned(),
            Stored::zeros(&[16]),
        );
        tensors.insert("score.weight".to_owned(), Stored::zeros(&[2, 16]));
    });
    let advice = "is no part of the model that config.json describes; check its settings, or remove the \
                  tensor if nothing needs it";
    assert_eq!(
        message(&folder),
        format!(
            "{MISMATCH}\n  tensor `score.weight` of shape [2, 16] {advice}\
             \n  tensor `transformer.h.2.ln_1.weight` of shape [16] {advice}"
        )
    );
}

#[test]
fn a_misshapen_tensor_is_named() {
    let folder = altered("base", |tensors| {
        // As a linear layer stores it, rather than a convolution.
        tensors.insert(
            "transformer.h.0.mlp.c_fc.weight".to_owned(),
            Stored::zeros(&[64, 16]),
        );
        tensors.insert(
            "transformer.wpe.weight".to_owned(),
            Stored::zeros(&[32, 16]),
        );
    });
    assert_eq!(
        message(&folder),
        format!(
            "{MISMATCH}\n  tensor `transformer.h.0.mlp.c_fc.weight` has shape [64, 16]; it should be [16, 64]\
             \n  tensor `transformer.wpe.weight` has shape [32, 16]; it should be [24, 16]"
        )
    );
}

#[test]
fn a_truncated_tensor_is_named() {
    let folder = altered("base", |_| ());
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let message = message(&folder);
    let end = format!(
        "ends at byte {}, the file at byte {}; fetch or copy it again",
        bytes.len(),
        bytes.len() - 1
    );
    assert!(
        message.starts_with("M/model.safetensors is truncated: tensor `transformer.")
            && message.contains("(F32, shape [")
            && message.ends_with(&end),
        "{message}"
    );
}

#[test]
fn a_stored_head_must_be_the_embedding_where_it_is_tied() {
    let folder = altered("base", |tensors| {
        tensors.insert("lm_head.weight".to_owned(), Stored::zeros(&[61, 16]));
    });
    let error = message(&folder);
    let wanted = "tensor `lm_head.weight` in M should be a copy of `transformer.wte.weight`, \
                  since config.json sets `tie_word_embeddings`, but they differ";
    assert!(error.starts_with(wanted), "{error}");

    // transformers drops one of two tensors that share memory.
    let folder = altered("base", |tensors| {
        let wte = tensors.remove("transformer.wte.weight").unwrap();
        tensors.insert("lm_head.weight".to_owned(), wte);
    });
    let (found, wanted) = (open_folder(folder.path()), open_folder(fixture("base")));
    assert_eq!(
        found.unwrap().params.param("wte.weight").unwrap(),
        wanted.unwrap().params.param("wte.weight").unwrap()
    );
}

#[test]
fn a_head_of_its_own_must_be_there() {
    let folder = altered("large_logits", |tensors| {
        tensors.remove("lm_head.weight").unwrap();
    });
    assert_eq!(
        message(&folder),
        format!(
            "{MISMATCH}\n  tensor `lm_head.weight` is missing; its shape should be [61, 12]; if the head shares \
             the embedding's weights, set `\"tie_word_embeddings\": true` in config.json"
        )
    );
}

#[test]
fn the_body_is_taken_from_a_checkpoint_with_a_head() {
    let folder = altered("large_logits", |_| ());
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("GPT2LMHeadModel", "GPT2Model")).unwrap();
    let ids = || Tensors::from([("ids".to_owned(), HostTensor::i32([1, 3], vec![1, 2, 3]))]);
    let hidden = |loaded: Loaded| {
        let graph = loaded
            .model
            .graph("forward", &EntryOptions::default())
            .unwrap();
        let mut outputs = run::<f64>(&graph, &*loaded.params, &ids(), &mut Tensors::new()).unwrap();
        (outputs.remove("hidden").unwrap(), outputs.len())
    };
    let (body, others) = hidden(open_folder(folder.path()).unwrap());
    assert_eq!(others, 0);
    let (whole, others) = hidden(open_folder(fixture("large_logits")).unwrap());
    assert_eq!(others, 1);
    assert_eq!(body, whole);
}

#[test]
fn a_config_that_is_refused_is_told_with_its_folder() {
    let folder = altered("base", |_| ());
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("gelu_new", "quick_gelu")).unwrap();
    assert_eq!(
        message(&folder),
        "M: config.json sets `activation_function` to \"quick_gelu\", which kiln does not support; \
         those it does are gelu_new, gelu_pytorch_tanh, gelu_python_tanh, gelu, gelu_python, relu, silu, swish, tanh"
    );
    fs::write(&config, "{").unwrap();
    assert!(message(&folder).starts_with("M: config.json cannot be parsed: "));
}

#[test]
fn a_model_without_tokenizer_takes_tokens_by_number() {
    let loaded = open_folder(fixture("base")).unwrap();
    assert!(loaded.tokenizer.is_none());
    let error = loaded.tokenizer().unwrap_err().to_string();
    assert!(
        error.contains("base has neither tokenizer.json")
            && error.contains("give tokens by number"),
        "{error}"
    );
    assert_eq!(loaded.info(&EntryOptions::default()).eos_tokens, [60]);
}

#[test]
fn a_broken_tokenizer_is_no_missing_one() {
    let folder = altered("base", |_| ());
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(message(&folder).starts_with("M/tokenizer.json cannot be read as a tokenizer"));
}

#[test]
fn the_tokenizer_knows_the_end_where_the_config_does_not() {
    let folder = altered("base", |_| ());
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"eos_token_id\": 60"));
    fs::write(
        &config,
        text.replace("\"eos_token_id\": 60", "\"eos_token_id\": null"),
    )
    .unwrap();
    let tokenizer = r#"{"version": "1.0", "added_tokens": [{"id": 2, "content": "</s>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2}, "merges": []}}"#;
    fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let loaded = open_folder(folder.path()).unwrap();
    assert_eq!(loaded.info(&EntryOptions::default()).eos_tokens, [2]);
}

#[test]
fn the_generation_config_says_where_a_text_ends() {
    let folder = altered("base", |_| ());
    let with = |text: &str| {
        fs::write(folder.path().join("generation_config.json"), text).unwrap();
    };
    let ends = || {
        let loaded = open_folder(folder.path()).unwrap();
        loaded.info(&EntryOptions::default()).eos_tokens
    };
    with(r#"{"eos_token_id": [7, 9], "do_sample": true}"#);
    assert_eq!(ends(), [7, 9]);
    with(r#"{"eos_token_id": 8}"#);
    assert_eq!(ends(), [8]);
    for none in ["{}", r#"{"eos_token_id": null}"#, r#"{"eos_token_id": -1}"#] {
        with(none);
        assert_eq!(ends(), [60], "as in config.json");
    }
    let remedy =
        "copy it again from where the model came from, or remove it, for the model can do without";
    with(r#"{"eos_token_id": "</s>"}"#);
    assert_eq!(
        message(&folder),
        format!(
            "M: generation_config.json sets `eos_token_id` to \"</s>\"; it should be a token's number, or a \
             list of them; {remedy}"
        )
    );
    with("[");
    let error = message(&folder);
    assert!(
        error.starts_with("M: generation_config.json cannot be parsed: ")
            && error.ends_with(remedy),
        "{error}"
    );
}

#[test]
fn a_model_that_talks_has_a_template_and_advice() {
    let folder = altered("base", |_| ());
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let loaded = || open_folder(folder.path()).unwrap();
    let chat = || loaded().chat.unwrap().unwrap();
    assert!(matches!(loaded().chat, Ok(None)));

    write("chat_template.jinja", "{{ messages[0].content }}");
    assert_eq!(chat().sampling(), Sampling::default());
    let messages = [Message::user("Hi")];
    let prompt = chat()
        .template()
        .unwrap()
        .render(&messages, &BTreeMap::new());
    assert_eq!(prompt.unwrap(), "Hi");

    let sampling = |text: &str| {
        write("generation_config.json", text);
        chat().sampling()
    };
    let advice =
        r#""temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05"#;
    assert_eq!(
        sampling(&format!(r#"{{"do_sample": true, {advice}}}"#)),
        Sampling {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            min_p: Some(0.0),
            repetition_penalty: Some(1.05),
        }
    );
    let greedy = Sampling {
        repetition_penalty: Some(1.05),
        ..Sampling::default()
    };
    assert_eq!(sampling(&format!("{{{advice}}}")), greedy);
    let nothing_said = Sampling {
        temperature: Some(1.0),
        top_k: Some(50),
        ..Sampling::default()
    };
    assert_eq!(sampling(r#"{"do_sample": true}"#), nothing_said);
    let senseless = r#"{"do_sample": true, "temperature": -1, "top_k": -1, "top_p": 0, "min_p": "a",
        "repetition_penalty": NaN}"#;
    assert_eq!(sampling(senseless), nothing_said);
    assert_eq!(
        sampling(r#"{"do_sample": "true", "top_k": 3}"#),
        Sampling::default()
    );
}

/// What is wrong with a template is no matter to those who do not talk.
#[test]
fn a_broken_template_leaves_the_model_alone() {
    let folder = altered("base", |_| ());
    let config = folder.path().join("tokenizer_config.json");
    fs::write(&config, "{").unwrap();
    let loaded = open_folder(folder.path()).unwrap();
    let error = loaded.chat.unwrap_err().to_string();
    let start = format!("{} cannot be parsed: ", config.display());
    assert!(error.starts_with(&start), "{error}");
}

#[test]
fn the_demo_goes_on_in_prose() {
    let demo = open_demo().unwrap();
    let tokenizer = demo.tokenizer().unwrap();
    let step = demo.model.graph("step", &EntryOptions::default()).unwrap();
    let step = Interpreter::<f32>::new(step, &*demo.params).unwrap();
    for prompt in ["The borrow checker", "This function returns", "A trait"] {
        let ids: Vec<i32> = tokenizer
            .encode(prompt)
            .unwrap()
            .iter()
            .map(|id| *id as i32)
            .collect();
        let mut session = Session::new(&step, vec![0]);
        let tokens: Vec<u32> = session.greedy(&[ids], 24)[0]
            .iter()
            .map(|id| *id as u32)
            .collect();
        let text = tokenizer.decode(&tokens).unwrap();
        let printable =
            |c: char| c == '\n' || (!c.is_control() && c != char::REPLACEMENT_CHARACTER);
        assert!(text.chars().all(printable), "{prompt}{text:?}");
        let words: Vec<&str> = text.split_whitespace().collect();
        let plain = words
            .iter()
            .filter(|w| w.chars().any(|c| c.is_ascii_lowercase()));
        assert!(
            words.len() >= 8 && plain.count() * 2 > words.len(),
            "{prompt}{text:?}"
        );
    }
}

#[test]
fn random_weights_give_logits_that_tell_tokens_apart() {
    let loaded = random_weights("gpt2", 1).unwrap();
    assert_eq!(loaded.tokenizer().unwrap().eos_id(), Some(50_256));
    let total: u64 = loaded.params.parameters().iter().map(|p| p.len()).sum();
    assert_eq!(total, 124_439_808);
    let forward = loaded
        .model
        .graph("forward", &EntryOptions::default())
        .unwrap();
    let ids = HostTensor::i32([1, 2], vec![15496, 995]);
    let inputs = Tensors::from([("ids".to_owned(), ids)]);
    let outputs = run::<f32>(&forward, &*loaded.params, &inputs, &mut Tensors::new()).unwrap();
    for row in common::rows(&outputs["logits"]) {
        assert!(row.iter().all(|x| x.is_finite()));
        let n = row.len() as f32;
        let mean = row.iter().sum::<f32>() / n;
        let spread = (row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
        assert!((0.3..3.0).contains(&spread), "{spread}");
    }

    let error = random_weights("gpt5", 1).unwrap_err();
    assert!(matches!(error, ModelError::Preset { .. }));
    let message = error.to_string();
    assert!(
        message.starts_with("there is no model `gpt5`; those known by name are gpt2, gpt2-medium"),
        "{message}"
    );
}
