//! Models at their limits: weights and results that a binding does not hold whole,
//! and every size at its maximum.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::fixtures::{self, Case, Fixture, assert_close, fixtures};
use common::on::{On, interpreted};
use common::{F32, NATIVE, TIERS, compile_as, everything, in_memory, open};
use kiln_codegen::{CodegenError, CompileOptions};
use kiln_ir::interp::{HostTensor, Interpreter};
use kiln_ir::plan::verify::{PlanErrors, verify};
use kiln_ir::plan::{Access, Binding, Launch, Plan};
use kiln_ir::{Packing, ParamSource};
use kiln_models::registry::EntryOptions;
use kiln_runtime::{Artifact, Model, Session};

/// Embeddings of 288 elements, and no matrix of so few rows that a binding which has
/// room for 256 of them holds it; its parts end within queries, keys and values.
const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 1300, "n_positions": 8, "n_embd": 288,
    "n_inner": 300, "n_head": 4, "n_layer": 1}"#;
const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 1300, "max_position_embeddings": 8,
    "hidden_size": 288, "intermediate_size": 300, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 1, "tie_word_embeddings": true}"#;

fn artifact(fixture: &Fixture, how: &CompileOptions, options: &EntryOptions) -> Artifact {
    let compiled = compile_as(fixture, how, options);
    let compiled = compiled.unwrap_or_else(|error| panic!("{}: {error}", fixture.name));
    in_memory(compiled, &*fixture.loaded.params)
}

/// In how many buffers each matrix lies, those of scales not counted.
fn parts(plan: &Plan) -> BTreeMap<&str, usize> {
    let mut out = BTreeMap::new();
    let parts = plan.weights.iter().flat_map(|w| &w.contents);
    for part in parts.filter(|p| p.shape.len() > 1 && !p.scales) {
        *out.entry(part.param.as_str()).or_default() += 1;
    }
    out
}

/// All launches of each variant of each entry point of each tier.
fn launches(plan: &Plan) -> impl Iterator<Item = Vec<&Launch>> {
    let entries = plan.tiers.iter().flat_map(|tier| tier.entries.values());
    entries.flat_map(|entry| &entry.variants).map(|variant| {
        let streamed = variant.streams.iter().flat_map(|s| &s.launches);
        variant.launches.iter().chain(streamed).collect()
    })
}

/// The rows of `table` are gathered by several launches, and it is multiplied by in
/// as many as it has parts.
fn assert_read_in_parts(plan: &Plan, table: &str) {
    let of_table = |binding: &Binding| match binding {
        Binding::Weight(i) => plan.weights[*i].contents[0].param == table,
        _ => false,
    };
    // An image has its scales in it.
    let held = |(binding, access): (Binding, Access)| match binding {
        Binding::Weight(i) if access.is_image() => {
            let scales = plan.scales_of(i).map(Binding::Weight);
            [Some(binding), scales]
        }
        _ => [Some(binding), None],
    };
    let bound = |launches: &[&Launch]| -> BTreeSet<Binding> {
        let bindings = launches.iter().flat_map(|l| plan.bound(l));
        let held = bindings.flat_map(held).flatten();
        held.filter(|b| of_table(b)).collect()
    };
    let all = (0..plan.weights.len()).map(Binding::Weight);
    let all: BTreeSet<Binding> = all.filter(of_table).collect();
    for launches in launches(plan) {
        let reads = launches
            .into_iter()
            .filter(|l| l.bindings.iter().any(of_table));
        let (gathers, head): (Vec<&Launch>, _) =
            reads.partition(|launch| launch.kernel.starts_with("pointwise"));
        assert!(gathers.len() > 1, "{gathers:?}");
        assert_eq!(bound(&gathers), all);
        assert_eq!(head.len(), parts(plan)[table]);
        assert_eq!(bound(&head), all);
    }
}

/// The maximum of a symbol in an entry point.
fn most(plan: &Plan, entry: &str, symbol: &str) -> usize {
    // The same in every tier.
    let own = &plan.tiers[0].entries[entry].symbols;
    let mut symbols = own.iter().chain(&plan.symbols);
    symbols.find(|s| s.name.name() == symbol).unwrap().max as usize
}

/// Ids for `batch` sequences of `seq` tokens, from all over the vocabulary.
fn ids(fixture: &Fixture, batch: usize, seq: usize) -> HostTensor<f32> {
    let info = fixture.loaded.info(&EntryOptions::default());
    let id = |i: usize| ((i * i * 17 + i * 89) as u64 % info.vocab_size) as i32;
    HostTensor::i32([batch, seq], (0..batch * seq).map(id).collect::<Vec<_>>())
}

/// Every matrix split: the same weights, and the same results as the interpreter's
/// and those of a device that has them whole. A driver takes long over so many kernels, so
/// each packing is run on one tier, unless everything is to run; `tests/kernels` has split
/// layers in each packing on every tier.
fn split(config: &str, table: &str, packings: [(Packing, &str); 2]) {
    for (packing, tier) in packings {
        let fixture = Fixture::random(config);
        let maxima = EntryOptions::default();
        let whole = CompileOptions {
            packing,
            ..CompileOptions::default()
        };
        let how = CompileOptions {
            binding_limit: packing.data_bytes(256, 288) as u64,
            ..whole.clone()
        };
        let whole = artifact(&fixture, &whole, &maxima);
        let artifact = artifact(&fixture, &how, &maxima);
        assert_parts(artifact.plan(), whole.plan(), how.binding_limit);
        assert_read_in_parts(artifact.plan(), table);
        for parameter in fixture.loaded.model.parameters() {
            let name = &parameter.name;
            assert_eq!(artifact.param(name).unwrap(), whole.param(name).unwrap());
        }

        let graph = fixture.graph("forward_attentions");
        let interpreter = Interpreter::<f64>::new(graph, &artifact).unwrap();
        let plan = artifact.plan();
        let batch = most(plan, "forward", "batch");
        assert_eq!(batch, most(plan, "forward_attentions", "batch"));
        // Each size is run where it is met.
        let [small, large] = [(1, 3), (batch, 8)].map(|(batch, seq)| {
            let ids = ids(&fixture, batch, seq);
            let label = format!("{batch} of {seq} in {}", packing.name());
            vec![interpreted(&interpreter, label, ids)]
        });
        let own = [tier];
        for tier in if everything() { &TIERS[..] } else { &own } {
            let model = open(NATIVE, tier, &artifact);
            On::new(&fixture, &model, small.clone()).pieces();
            On::new(&fixture, &model, large.clone()).whole_sequences();

            let model_of_whole = open(NATIVE, tier, &whole);
            let unsplit = On::new(&fixture, &model_of_whole, large.clone()).observed();
            let mut on = On::new(&fixture, &model, unsplit);
            on.label.push_str(", not as whole");
            on.whole_sequences();
        }
    }
}

/// Every matrix but that of positions is in parts, and the verifier sees that these,
/// unlike the whole ones, fit the limit.
fn assert_parts(plan: &Plan, whole: &Plan, limit: u64) {
    let (parts, unsplit) = (parts(plan), parts(whole));
    assert!(parts.keys().eq(unsplit.keys()));
    const LIMIT: &str = "max_storage_buffer_binding_size";
    let mut narrow = whole.clone();
    for (tier, narrow) in plan.tiers.iter().zip(&mut narrow.tiers) {
        assert_eq!(tier.requires.limits.get(LIMIT), Some(&limit));
        let before = narrow.requires.limits.insert(LIMIT.to_owned(), limit);
        assert_eq!(before, None);
    }
    let PlanErrors { errors } = verify(&narrow).unwrap_err();
    for (name, count) in parts {
        assert_eq!(unsplit[name], 1, "{name}");
        let subject = format!("weight `{name}`");
        let is_refused = errors
            .iter()
            .any(|e| e.invariant == 13 && e.subject == subject);
        let is_small = name.starts_with("wpe.");
        assert_eq!(
            (count > 1, is_refused),
            (!is_small, !is_small),
            "{name}: {count}"
        );
    }
}

#[test]
fn split_gpt2() {
    let packings = [(Packing::F32, "software"), (Packing::Q8, "base")];
    split(GPT2, "wte.weight", packings);
}

#[test]
fn split_llama() {
    let packings = [
        (Packing::F16, "software-subgroup"),
        (Packing::Q4, "subgroup"),
    ];
    split(LLAMA, "embed_tokens.weight", packings);
}

/// The first sequence of a case, and no more than so many of its tokens.
fn cut(case: &Case, tokens: usize) -> Case {
    let [batch, seq] = case.ids.shape[..] else {
        panic!("{:?}", case.ids.shape);
    };
    let rows = |values: &Vec<f32>| values[..values.len() / (batch * seq) * tokens].to_vec();
    Case {
        label: format!("{}, {tokens} tokens", case.label),
        ids: HostTensor::i32([1, tokens], &case.ids.as_i32().unwrap()[..tokens]),
        hidden: rows(&case.hidden),
        logits: case.logits.as_ref().map(rows),
        attentions: Vec::new(),
    }
}

/// What transformers computes, from weights of which each binding holds but a part.
#[test]
fn split_fixtures() {
    const TOKENS: usize = 4;
    for (family, name, table, binding_limit) in [
        ("gpt2", "base", "wte.weight", 2048),
        ("llama", "qwen2", "embed_tokens.weight", 1024),
    ] {
        let mut folders = fixtures(family).into_iter();
        let folder = folders.find(|folder| folder.ends_with(name)).unwrap();
        let fixture = Fixture::open(&folder);
        let how = CompileOptions {
            binding_limit,
            ..CompileOptions::default()
        };
        let maxima = EntryOptions {
            max_context: Some(TOKENS as u64),
            ..EntryOptions::default()
        };
        let artifact = artifact(&fixture, &how, &maxima);
        let parts = parts(artifact.plan());
        assert!(parts[table] > 1, "{name}: {parts:?}");
        let split = parts.values().filter(|count| **count > 1).count();
        assert!(split > parts.len() / 2, "{name}: {parts:?}");

        let cases = fixture.cases();
        let cases = cases.iter().filter(|case| case.ids.shape[1] >= TOKENS);
        let cases: Vec<Case> = cases.map(|case| cut(case, TOKENS)).collect();
        assert!(cases.len() > 1);
        for tier in TIERS {
            let model = open(NATIVE, tier, &artifact);
            let on = On::new(&fixture, &model, cases.clone());
            on.whole_sequences();
            on.pieces();
        }
    }
}

/// What no smaller binding could hold is an error that says how large one has to be.
#[test]
fn binding_limits_that_are_too_small() {
    let fixture = Fixture::random(GPT2);
    let maxima = EntryOptions::default();
    let error = |packing: Packing, binding_limit: u64| {
        let how = CompileOptions {
            packing,
            binding_limit,
            ..CompileOptions::default()
        };
        compile_as(&fixture, &how, &maxima).unwrap_err()
    };
    // Rows of the first matrix, of which eight are the fewest.
    let row = 288 * 4;
    let found = error(Packing::F32, 8 * row - 1).to_string();
    assert_eq!(
        found,
        format!(
            "8 rows of parameter `wte.weight` need a buffer of 9216 bytes, over the binding limit \
             of 9215; compile with a binding limit of at least 9216"
        )
    );
    // A norm's two vectors and a bias, which lie together.
    let vectors = (288 + 288 + 3 * 288) * 4;
    match error(Packing::Q4, vectors - 1) {
        CodegenError::WeightTooLarge { name, bytes, .. } => {
            assert_eq!(name, "h.0.ln_1.weight+h.0.ln_1.bias+h.0.attn.c_attn.bias");
            assert_eq!(bytes, vectors);
        }
        other => panic!("{other}"),
    }
    // Queries, keys and values of eight tokens, for which there is no smaller batch.
    let values = 8 * 3 * 288 * 4;
    match error(Packing::Q4, values - 1) {
        CodegenError::TooLarge { bytes, limit, .. } => {
            assert_eq!((bytes, limit), (values, values - 1));
        }
        other => panic!("{other}"),
    }
    let found = error(Packing::F32, 1 << 32).to_string();
    assert_eq!(
        found,
        "the binding limit is 4294967296 bytes, but kernels address bytes in 32 bits; choose one \
         of at most 4294967295"
    );
}

/// Larger buffers than WebGPU promises are asked for.
#[test]
fn large_binding_limits_are_required() {
    let fixture = Fixture::random(GPT2);
    for (binding_limit, limits) in [
        (128 << 20, &[][..]),
        (256 << 20, &["max_storage_buffer_binding_size"][..]),
        (
            1 << 30,
            &["max_buffer_size", "max_storage_buffer_binding_size"][..],
        ),
    ] {
        let how = CompileOptions {
            binding_limit,
            ..CompileOptions::default()
        };
        let compiled = compile_as(&fixture, &how, &EntryOptions::default()).unwrap();
        for tier in &compiled.plan.tiers {
            let required: Vec<&str> = tier.requires.limits.keys().map(String::as_str).collect();
            assert_eq!(required, limits);
            assert!(tier.requires.limits.values().all(|n| *n == binding_limit));
        }
    }
}

/// A CPU driver would end the loops over more keys, and say nothing.
#[test]
fn contexts_end_where_a_cpu_driver_would_end_them() {
    let config = r#"{"model_type": "gpt2", "vocab_size": 8, "n_positions": 70000, "n_embd": 4,
        "n_inner": 4, "n_head": 1, "n_layer": 1}"#;
    let fixture = Fixture::random(config);
    let maxima = EntryOptions {
        max_context: Some(70_000),
        ..EntryOptions::default()
    };
    let artifact = artifact(&fixture, &CompileOptions::default(), &maxima);
    let model = open(NATIVE, "software-subgroup", &artifact);
    let context = |wanted| Session::new(&model, 1, wanted).unwrap().context();
    assert_eq!([64_000, 70_000].map(context), [64_000, 65_000]);
}

/// More positions than a workgroup has invocations; heads that are not a multiple of
/// four wide, and heads that share keys.
const LONG_GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 131, "n_positions": 150,
    "n_embd": 42, "n_head": 3, "n_layer": 2}"#;
const LONG_LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 131,
    "max_position_embeddings": 150, "hidden_size": 48, "intermediate_size": 70,
    "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2}"#;

/// Sequences at their most, in as many tokens and in single ones up to the last
/// position that there is, as a whole batch; and the same with padding before them.
fn at_maxima(config: &str) {
    // All of the context at once; and less of it, in batches that several variants
    // end or begin with, on half of the tiers.
    let cases: [(u64, u64, u64, &[&str]); 4] = [
        (3, 150, 150, &TIERS),
        (4, 33, 33, &["software", "base"]),
        (8, 20, 7, &["software-subgroup", "subgroup"]),
        (9, 19, 19, &["software", "software-subgroup"]),
    ];
    for (max_batch, context, prefill_chunk, tiers) in cases {
        let fixture = Fixture::random(config);
        let maxima = EntryOptions {
            max_batch,
            max_context: Some(context),
            prefill_chunk,
        };
        let artifact = artifact(&fixture, &CompileOptions::default(), &maxima);
        let plan = artifact.plan();
        let (batch, context) = (max_batch as usize, context as usize);
        for entry in ["forward", "forward_attentions", "step"] {
            assert_eq!(most(plan, entry, "batch"), batch);
        }
        assert_eq!(most(plan, "forward", "seq"), context);
        assert_eq!(most(plan, "step", "seq") as u64, prefill_chunk);
        assert_eq!(most(plan, "step", "past"), context - 1);
        let ids = ids(&fixture, batch, context);
        let graph = fixture.loaded.model.graph("forward_attentions", &maxima);
        let interpreter = Interpreter::<f64>::new(graph.unwrap(), &artifact).unwrap();
        let label = format!("{batch} of {context} in {prefill_chunk}");
        let case = interpreted(&interpreter, label, ids);
        let padded = Padded::new(&fixture, &maxima, &case.ids);
        for tier in if everything() { &TIERS } else { tiers } {
            let model = open(NATIVE, tier, &artifact);
            let on = On::new(&fixture, &model, vec![case.clone()]);
            on.whole_sequences();
            on.pieces();
            padded.check(&model);
        }
    }
}

/// Sequences before which there is padding, in a prompt that leaves room for one
/// token and in that one.
struct Padded {
    tokens: [Vec<u32>; 2],
    start: Vec<u32>,
    wanted: [Vec<f64>; 2],
}

impl Padded {
    /// What the interpreter says of `ids`, the last of which is that one.
    fn new(fixture: &Fixture, maxima: &EntryOptions, ids: &HostTensor<f32>) -> Self {
        let [batch, seq] = ids.shape[..] else {
            panic!("{:?}", ids.shape);
        };
        // From none to all but the last token of the prompt.
        let start: Vec<i32> = (0..batch)
            .map(|row| (row * (seq - 2) / (batch - 1)) as i32)
            .collect();
        let rows = || ids.as_i32().unwrap().chunks_exact(seq);
        let pieces: [Vec<Vec<i32>>; 2] = [
            rows().map(|row| row[..seq - 1].to_vec()).collect(),
            rows().map(|row| row[seq - 1..].to_vec()).collect(),
        ];
        let at_once = EntryOptions {
            prefill_chunk: seq as u64,
            ..*maxima
        };
        let graph = fixture.loaded.model.graph("step", &at_once).unwrap();
        let step = Interpreter::<f64>::new(graph, &*fixture.loaded.params).unwrap();
        let mut session = fixtures::Session::new(&step, start.clone());
        let wanted = pieces
            .each_ref()
            .map(|piece| session.append("logits", piece).concat());
        let unsigned = |ids: &[i32]| ids.iter().map(|id| *id as u32).collect();
        Padded {
            tokens: pieces.map(|piece| unsigned(&piece.concat())),
            start: unsigned(&start),
            wanted,
        }
    }

    fn check(&self, model: &Model) {
        let context = model.plan().model.max_context;
        let mut session = Session::new(model, self.start.len(), context).unwrap();
        for (tokens, wanted) in self.tokens.iter().zip(&self.wanted) {
            let found = session.step(tokens, &self.start).unwrap();
            let label = format!("{}: padded, past {}", model.tier(), session.past());
            assert_close(&label, &found, wanted, F32);
        }
        assert_eq!(session.past(), context);
    }
}

#[test]
fn gpt2_at_its_maxima() {
    at_maxima(LONG_GPT2);
}

#[test]
fn llama_at_its_maxima() {
    at_maxima(LONG_LLAMA);
}
