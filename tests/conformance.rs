//! Compiled models on devices, against what transformers computes in float64 from
//! the same checkpoints.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::fixtures::{
    Case, Fixture, assert_close, distance, fixture, fixtures, forward, rows,
};
use common::{F32, NATIVE, compile_fixture, compiled, in_memory, open};
use kiln_ir::interp::{HostTensor, Interpreter};
use kiln_ir::{Bindings, Packing};
use kiln_models::registry::EntryOptions;
use kiln_runtime::generate::{GenerateOptions, generate};
use kiln_runtime::{Model, Output, RunOptions, Session};

/// The fixtures' names.
fn names() -> Vec<String> {
    let folders = fixtures("gpt2").into_iter();
    let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    folders.map(|p| name(&p)).collect()
}

#[test]
fn software_tier() {
    conforms(NATIVE, "software");
}

#[test]
fn subgroup_tier() {
    conforms(NATIVE, "subgroup");
}

#[test]
fn base_tier() {
    conforms(NATIVE, "base");
}

#[cfg(target_os = "linux")]
#[test]
fn opengl() {
    conforms("gl", "software");
}

/// Runs every fixture on one tier.
fn conforms(backend: &str, tier: &str) {
    for name in names() {
        let (fixture, artifact) = compiled(&name, Packing::F32);
        let model = open(backend, tier, &artifact);
        let on = On {
            fixture: &fixture,
            model: &model,
            label: format!("{name} on {backend}, {tier}"),
        };
        for (what, f) in [("whole", On::whole_sequences as fn(&On)), ("pieces", On::pieces), ("greedy", On::greedy), ("ragged", On::ragged)] {
            let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&on)));
            if let Err(e) = r { println!("FAIL {name} {what} {:?}", e.downcast_ref::<String>()); }
        }
    }
}

/// A fixture on a device.
struct On<'a> {
    fixture: &'a Fixture,
    model: &'a Model,
    label: String,
}

impl On<'_> {
    fn run(&self, entry: &str, ids: &HostTensor<f32>) -> Vec<Output> {
        let [batch, seq] = ids.shape[..] else {
            panic!("{:?}", ids.shape);
        };
        let bindings = Bindings::new()
            .with("batch", batch as u64)
            .with("seq", seq as u64);
        let inputs = [("ids", bytemuck::cast_slice(ids.as_i32().unwrap()))];
        let outputs =
            self.model
                .run_collect(entry, &inputs, &bindings, &RunOptions::default());
        outputs.unwrap_or_else(|error| panic!("{}: {error}", self.label))
    }

    /// Logits, hidden states and attention probabilities.
    fn whole_sequences(&self) {
        let mut attentions = 0;
        for case in self.fixture.cases() {
            let outputs = self.run("forward", &case.ids);
            let mut wanted = vec![("hidden".to_owned(), &case.hidden)];
            wanted.extend(case.logits.iter().map(|l| ("logits".to_owned(), l)));
            self.check(&case, &outputs, &wanted);
            assert_eq!(outputs.len(), wanted.len());

            let detailed = self.run("forward_attentions", &case.ids);
            let probabilities = case.attentions.iter().enumerate();
            let probabilities = probabilities.map(|(i, p)| (format!("attentions.{i}"), p));
            wanted.extend(probabilities);
            attentions += case.attentions.len();
            self.check(&case, &detailed, &wanted);
        }
        assert!(attentions > 0, "{}", self.label);
    }

    fn check(&self, case: &Case, outputs: &[Output], wanted: &[(String, &Vec<f32>)]) {
        for (name, wanted) in wanted {
            let output = outputs.iter().find(|o| o.name == *name).unwrap();
            let label = format!("{}: {} {name}", self.label, case.label);
            assert_close(&label, output.f32().unwrap(), wanted, F32);
        }
    }

    fn session(&self, batch: usize) -> Session<'_> {
        let context = self.model.plan().model.max_context;
        Session::new(self.model, batch, context).unwrap()
    }

    /// Sequences in pieces of these sizes, then token by token: after each piece,
    /// what the session says of the last token is what is said of it within the
    /// whole sequence.
    fn pieces(&self) {
        for case in self.fixture.cases() {
            let wanted = case.logits.as_ref().unwrap_or(&case.hidden);
            let [batch, seq] = case.ids.shape[..] else {
                panic!("{:?}", case.ids.shape);
            };
            let width = wanted.len() / (batch * seq);
            let ids: Vec<&[i32]> = case.ids.as_i32().unwrap().chunks_exact(seq).collect();
            let mut session = self.session(batch);
            for pieces in [[1, 1, 1], [3, 2, 1], [5, 7, 1], [seq, 1, 1]] {
                session.reset();
                let mut past = 0;
                for piece in pieces.into_iter().chain(std::iter::repeat(1)) {
                    let end = seq.min(past + piece);
                    if past == end {
                        break;
                    }
                    let tokens = ids.iter().flat_map(|row| &row[past..end]);
                    let tokens: Vec<u32> = tokens.map(|id| *id as u32).collect();
                    let last = session.step(&tokens, &vec![0; batch]).unwrap();
                    for (row, found) in last.chunks_exact(width).enumerate() {
                        let at = (row * seq + end - 1) * width;
                        let label =
                            format!("{}: {} {past}..{end} of {row}", self.label, case.label);
                        assert_close(&label, found, &wanted[at..at + width], F32);
                    }
                    past = end;
                }
            }
        }
    }

    fn continued(&self, prompts: &[Vec<u32>], count: usize, pad_token: u32) -> Vec<Vec<u32>> {
        let options = GenerateOptions {
            max_new_tokens: count,
            pad_token,
            ..GenerateOptions::default()
        };
        let mut session = self.session(prompts.len());
        let every = &mut |_| ControlFlow::Continue(());
        let (texts, _) = generate(&mut session, prompts, &options, every).unwrap();
        texts.into_iter().map(|text| text.tokens).collect()
    }

    /// The likeliest tokens, up to the maximum context.
    fn greedy(&self) {
        for i in 0..2 {
            let integers = |what| self.fixture.integers(&format!("greedy{i}.{what}"));
            let (Some(prompt), Some(wanted)) = (integers("prompt"), integers("tokens")) else {
                assert_eq!(self.fixture.name, "body");
                return;
            };
            let found = self.continued(&[unsigned(prompt)], wanted.len(), 0);
            assert_eq!(found[0], unsigned(wanted), "{}: greedy{i}", self.label);
        }
    }

    /// Prompts of different lengths together go on as each does alone.
    fn ragged(&self) {
        let Some(lengths) = self.fixture.integers("ragged.lengths") else {
            assert_eq!(self.fixture.name, "body");
            return;
        };
        let rows = |name| {
            let all = self.fixture.integers(name).unwrap();
            all.chunks_exact(all.len() / lengths.len()).map(unsigned)
        };
        let prompts = rows("ragged.prompts").zip(lengths);
        let prompts = prompts.map(|(row, length)| row[..*length as usize].to_vec());
        let prompts: Vec<Vec<u32>> = prompts.collect();
        let wanted: Vec<Vec<u32>> = rows("ragged.tokens").collect();
        // Any token will do for padding; two kinds must give the same.
        for pad_token in [0, 7] {
            let found = self.continued(&prompts, wanted[0].len(), pad_token);
            assert_eq!(found, wanted, "{}: ragged", self.label);
        }
    }
}

fn unsigned(ids: &[i32]) -> Vec<u32> {
    ids.iter().map(|id| *id as u32).collect()
}

