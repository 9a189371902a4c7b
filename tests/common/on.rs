//! Fixtures run on devices, held against what is expected of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use kiln_ir::interp::{HostTensor, Interpreter};
use kiln_ir::{Bindings, Packing};
use kiln_runtime::generate::{GenerateOptions, generate};
use kiln_runtime::{Model, Output, RunOptions, Session};

use super::fixtures::{Case, Fixture, assert_close, fixtures, forward};
use super::{F32, NATIVE, compiled_folder, everything, open};

/// Tiers that fixtures are dealt out to.
const DEALT: [&str; 3] = ["software-subgroup", "subgroup", "base"];

/// Runs fixtures of a family on a tier: those that are [`representative`], and of the others,
/// which are dealt out, its share. `tests/emulated.rs` emulates each on two or more.
pub fn conforms(family: &str, backend: &str, tier: &str) {
    let share = DEALT.iter().position(|dealt| *dealt == tier);
    let share = share.unwrap_or_else(|| panic!("no fixtures are dealt to `{tier}`"));
    // Another back end gets others than the tier gets of the native one.
    let share = (share + usize::from(backend != NATIVE)) % DEALT.len();
    let everywhere = representative(family);
    let is_everywhere = |folder: &PathBuf| everywhere.iter().any(|name| folder.ends_with(name));
    let (ours, dealt): (Vec<PathBuf>, Vec<PathBuf>) =
        fixtures(family).into_iter().partition(is_everywhere);
    assert_eq!(ours.len(), everywhere.len(), "{family}: {ours:?}");
    let dealt = dealt.iter().enumerate();
    let dealt = dealt.filter(|(i, _)| i % DEALT.len() == share || everything());
    for folder in ours.iter().chain(dealt.map(|(_, folder)| folder)) {
        one_conforms(folder, backend, tier);
    }
}

/// The fixtures that stand for a family where it would take long to run all: of sizes that are
/// powers of two and of others, with what a layer may have besides.
pub fn representative(family: &str) -> &'static [&'static str] {
    match family {
        "gpt2" => &["base", "silu"],
        "llama" => &["smollm2", "mlp_bias", "qwen3_window"],
        "gemma" => &["base", "default_heads"],
        other => panic!("no fixtures of {other} are named"),
    }
}

/// Runs one fixture on one tier.
pub fn one_conforms(folder: &Path, backend: &str, tier: &str) {
    let (fixture, artifact) = compiled_folder(folder, Packing::F32);
    let model = open(backend, tier, &artifact);
    let on = On::new(&fixture, &model, fixture.cases());
    on.whole_sequences();
    on.pieces();
    on.greedy();
    on.ragged();
}

/// Runs batches of one to three sequences of every length on these tiers.
pub fn every_size(folder: &Path, tiers: &[&str]) {
    let (fixture, artifact) = compiled_folder(folder, Packing::F32);
    let interpreter = fixture.interpreter::<f64>("forward");
    let info = &artifact.plan().model;
    let mut cases = Vec::new();
    for batch in 1..=3 {
        for seq in 1..=info.max_context as usize {
            let ids = (0..batch * seq).map(|i| (i * i + 7 * seq + batch) as u64 % info.vocab_size);
            let ids: Vec<i32> = ids.map(|id| id as i32).collect();
            let ids = HostTensor::i32([batch, seq], ids);
            let label = format!("{batch} of {seq}");
            cases.push(interpreted(&interpreter, label, ids));
        }
    }
    for tier in tiers {
        let model = open(NATIVE, tier, &artifact);
        let on = On::new(&fixture, &model, cases.clone());
        on.whole_sequences();
        on.prompts();
    }
}

/// What the interpreter of a forward pass says of whole sequences.
pub fn interpreted(
    interpreter: &Interpreter<'_, f64>,
    label: String,
    ids: HostTensor<f32>,
) -> Case {
    let outputs = forward(interpreter, &ids);
    let narrow = |name: &str| -> Option<Vec<f32>> {
        let values = outputs.get(name)?.as_f()?;
        Some(values.iter().map(|x| *x as f32).collect())
    };
    Case {
        label,
        ids,
        hidden: narrow("hidden").unwrap(),
        logits: narrow("logits"),
        attentions: (0..)
            .map_while(|layer| narrow(&format!("attentions.{layer}")))
            .collect(),
    }
}

/// A fixture on a device.
pub struct On<'a> {
    fixture: &'a Fixture,
    model: &'a Model,
    /// What is expected of whole sequences.
    cases: Vec<Case>,
    /// What failures are reported as.
    pub label: String,
}

impl<'a> On<'a> {
    pub fn new(fixture: &'a Fixture, model: &'a Model, cases: Vec<Case>) -> Self {
        let backend = model.device().adapter().backend();
        On {
            fixture,
            model,
            cases,
            label: format!("{} on {backend}, {}", fixture.name, model.tier()),
        }
    }

    fn run(&self, entry: &str, ids: &HostTensor<f32>) -> Vec<Output> {
        let [batch, seq] = ids.shape[..] else {
            panic!("{:?}", ids.shape);
        };
        let bindings = Bindings::new()
            .with("batch", batch as u64)
            .with("seq", seq as u64);
        let inputs = [("ids", bytemuck::cast_slice(ids.as_i32().unwrap()))];
        let outputs = self
            .model
            .run_collect(entry, &inputs, &bindings, &RunOptions::default());
        outputs.unwrap_or_else(|error| panic!("{}: {error}", self.label))
    }

    /// Logits, hidden states and attention probabilities.
    pub fn whole_sequences(&self) {
        for case in &self.cases {
            let outputs = self.run("forward", &case.ids);
            let mut wanted = vec![("hidden".to_owned(), &case.hidden)];
            wanted.extend(case.logits.iter().map(|l| ("logits".to_owned(), l)));
            self.check(case, &outputs, &wanted);
            assert_eq!(outputs.len(), wanted.len());
            if case.attentions.is_empty() {
                continue;
            }

            let detailed = self.run("forward_attentions", &case.ids);
            let probabilities = case.attentions.iter().enumerate();
            let probabilities = probabilities.map(|(i, p)| (format!("attentions.{i}"), p));
            wanted.extend(probabilities);
            assert_eq!(detailed.len(), wanted.len());
            self.check(case, &detailed, &wanted);
        }
    }

    /// The cases with what the device says of them.
    pub fn observed(&self) -> Vec<Case> {
        let cases = self.cases.iter().map(|case| {
            let outputs = self.run("forward_attentions", &case.ids);
            let mut outputs: BTreeMap<String, Vec<f32>> = outputs
                .into_iter()
                .map(|output| (output.name.clone(), output.f32().unwrap().to_vec()))
                .collect();
            Case {
                label: case.label.clone(),
                ids: case.ids.clone(),
                hidden: outputs.remove("hidden").unwrap(),
                logits: outputs.remove("logits"),
                attentions: (0..)
                    .map_while(|layer| outputs.remove(&format!("attentions.{layer}")))
                    .collect(),
            }
        });
        cases.collect()
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
    pub fn pieces(&self) {
        for case in &self.cases {
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
                let (mut found, mut expected) = (Vec::new(), Vec::<f32>::new());
                for piece in pieces.into_iter().chain(std::iter::repeat(1)) {
                    let end = seq.min(past + piece);
                    if past == end {
                        break;
                    }
                    let tokens = ids.iter().flat_map(|row| &row[past..end]);
                    let tokens: Vec<u32> = tokens.map(|id| *id as u32).collect();
                    found.extend(session.step(&tokens, &vec![0; batch]).unwrap());
                    for row in 0..batch {
                        let at = (row * seq + end - 1) * width;
                        expected.extend(&wanted[at..at + width]);
                    }
                    past = end;
                }
                let label = format!("{}: {} in {pieces:?}", self.label, case.label);
                assert_close(&label, &found, &expected, F32);
            }
        }
    }

    /// Whole sequences as prompts.
    pub fn prompts(&self) {
        for case in &self.cases {
            let [batch, seq] = case.ids.shape[..] else {
                panic!("{:?}", case.ids.shape);
            };
            let logits = case.logits.as_ref().unwrap();
            let each = logits.chunks_exact(logits.len() / batch);
            let wanted = each.flat_map(|row| &row[row.len() - row.len() / seq..]);
            let wanted: Vec<f32> = wanted.copied().collect();
            let ids = unsigned(case.ids.as_i32().unwrap());
            let found = self.session(batch).step(&ids, &vec![0; batch]).unwrap();
            let label = format!("{}: prompts, {}", self.label, case.label);
            assert_close(&label, &found, &wanted, F32);
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
    pub fn greedy(&self) {
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
    pub fn ragged(&self) {
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
