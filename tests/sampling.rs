//! The built-in model, sampled on devices and on the host: the same text for the
//! same seed, whatever the device, the tier and where tokens are chosen.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::ops::ControlFlow;

use common::{NATIVE, adapter, in_memory, open};
use kiln_codegen::{CompileOptions, compile};
use kiln_models::registry::EntryOptions;
use kiln_models::source::open_demo;
use kiln_runtime::generate::{GenerateOptions, Generated, generate};
use kiln_runtime::sampling::SamplingOptions;
use kiln_runtime::{Artifact, Decoder, LoadOptions, Model, Result, Session};

/// A session that is only asked for logits.
struct OnHost<'s, 'm>(&'s mut Session<'m>);

impl Decoder for OnHost<'_, '_> {
    fn batch(&self) -> usize {
        self.0.batch()
    }
    fn context(&self) -> u64 {
        self.0.context()
    }
    fn past(&self) -> u64 {
        self.0.past()
    }
    fn step(&mut self, ids: &[u32], start: &[u32]) -> Result<Vec<f32>> {
        self.0.step(ids, start)
    }
    fn rewind(&mut self, past: u64) -> Result<()> {
        self.0.rewind(past)
    }
}

fn demo() -> (Artifact, Vec<Vec<u32>>) {
    let loaded = open_demo().unwrap();
    let how = EntryOptions::default();
    let graph = loaded.model.graph("step", &how).unwrap();
    let info = loaded.info(&how);
    let compiled = compile(
        &[graph],
        info,
        &CompileOptions::default(),
        &mut |_, _, _, _| {},
    );
    let tokenizer = loaded.tokenizer.as_ref().unwrap();
    let texts = ["The iterator", "Returns `None` if the", "A"];
    let prompts = texts.map(|text| tokenizer.encode(text).unwrap());
    let artifact = in_memory(compiled.unwrap(), &*loaded.params);
    (artifact, prompts.into())
}

fn settings() -> [SamplingOptions; 3] {
    let greedy = SamplingOptions::default();
    let plain = SamplingOptions {
        temperature: 0.9,
        seed: 11,
        ..greedy.clone()
    };
    let filtered = SamplingOptions {
        temperature: 1.2,
        top_k: 60,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.3,
        seed: u64::MAX,
    };
    [greedy, plain, filtered]
}

fn run(decoder: &mut dyn Decoder, prompts: &[Vec<u32>], how: SamplingOptions) -> Vec<Generated> {
    let options = GenerateOptions {
        max_new_tokens: 16,
        sampling: how,
        ..GenerateOptions::default()
    };
    let outcome = generate(decoder, prompts, &options, &mut |_| {
        ControlFlow::Continue(())
    });
    outcome.unwrap().0
}

#[test]
fn a_seed_gives_the_same_text_everywhere() {
    let (artifact, prompts) = demo();
    let mut backends = vec![(NATIVE, "software-subgroup"), (NATIVE, "subgroup")];
    if cfg!(target_os = "linux") {
        backends.push(("gl", "software"));
    }
    let mut expected = Vec::new();
    let models = backends.into_iter().map(|(backend, tier)| {
        let model = open(backend, tier, &artifact);
        (model, format!("{tier} on {backend}"))
    });
    // Without kernels that draw, the host does.
    let options = LoadOptions {
        cache_dir: None,
        draw: false,
        ..LoadOptions::default()
    };
    let model = Model::open(&adapter(NATIVE), &artifact, &options, &mut |_| {}).unwrap();
    for (model, label) in models.chain([(model, "draws on the host".to_owned())]) {
        let mut session = Session::new(&model, prompts.len(), 64).unwrap();
        for (index, how) in settings().into_iter().enumerate() {
            session.reset();
            let device = run(&mut session, &prompts, how.clone());
            session.reset();
            let host = run(&mut OnHost(&mut session), &prompts, how.clone());
            assert_eq!(device, host, "{label}: {how:?}");
            match expected.get(index) {
                None => expected.push(device),
                Some(expected) => assert_eq!(&device, expected, "{label}: {how:?}"),
            }
        }
    }
}
