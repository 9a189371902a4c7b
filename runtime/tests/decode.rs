//! Sampling on the device, held token for token against the host's sampler, on a
//! model whose logits are made of a hash: distinct ones, many equal ones, and
//! some that are no number.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::*;
use kiln_ir::plan::{Access, Binding, Kernel, Plan};
use kiln_runtime::generate::{Finish, GenerateOptions, Generated, generate, generate_while};
use kiln_runtime::sampling::SamplingOptions;
use kiln_runtime::{Artifact, Decoder, LoadOptions, LoadProgress, Model, Result, Session};

/// Logits of the token `v`: a hash of it and the sum of all ids, in `steps` steps
/// between -8 and 8.
const NEXT: &str = "
@group(0) @binding(1) var<storage, read> kept: array<i32>;
@group(0) @binding(2) var<storage, read> start: array<i32>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

fn hash(x: u32) -> u32 {
    let state = x * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + group.y * groups.x) * 8u + local;
    if (i >= sym.batch * VOCAB) { return; }
    let b = i / VOCAB;
    var sum = 0u;
    for (var j = u32(start[b]); j < sym.past + sym.seq; j++) {
        sum = hash(sum + u32(kept[b * sym.context + j]));
    }
    let r = hash(sum + i % VOCAB);
    var bits = bitcast<u32>(f32(r % STEPS) * (16.0 / f32(STEPS)) - 8.0);
    if (BROKEN && r % 5u == 0u) { bits = 0x7fc00000u; }
    if (BROKEN && r % 5u == 1u) { bits = 0xff800000u; }
    if (sum % 16u >= SOUND) { bits = 0x7fc00000u; }
    logits[i] = bitcast<f32>(bits);
}
";

#[derive(Clone, Copy, Debug)]
struct Tiny {
    vocab: u32,
    steps: u32,
    broken: bool,
    /// Of 16 histories, how many give numbers at all.
    sound: u32,
    /// Whether the kernels are those for a CPU.
    software: bool,
}

impl Tiny {
    fn new(vocab: u32, steps: u32, broken: bool) -> Self {
        Tiny {
            vocab,
            steps,
            broken,
            sound: 16,
            software: false,
        }
    }

    fn plan(&self) -> Plan {
        let mut plan = plan();
        plan.model.vocab_size = self.vocab.into();
        let vocab = self.vocab;
        for tier in &mut plan.tiers {
            tier.requires.cpu_only = self.software;
            let step = tier.entries.get_mut("step").unwrap();
            step.outputs[0].ty.shape[1] = u64::from(vocab).into();
            step.buffers[2].bytes = vec![format!("batch*{}", vocab * 4).parse().unwrap()];
            for variant in &mut step.variants {
                let workgroups = format!("ceil(batch*{vocab} / 8)");
                variant.launches[1].workgroups = workgroups.parse().unwrap();
            }
        }
        plan
    }

    fn open(&self, backend: &str) -> Model {
        self.load(backend, self.plan(), &mut |_| {}).unwrap()
    }

    fn load(
        &self,
        backend: &str,
        plan: Plan,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Model> {
        let mut kernels = kernels();
        let Tiny {
            vocab,
            steps,
            broken,
            sound,
            ..
        } = self;
        let constants = format!(
            "const VOCAB: u32 = {vocab}u;\nconst STEPS: u32 = {steps}u;\n\
             const BROKEN: bool = {broken};\nconst SOUND: u32 = {sound}u;\n"
        );
        let next = kernels.get_mut("kernels/next.wgsl").unwrap();
        *next = format!("{HEAD}{constants}{NEXT}");
        let touch = "@group(0) @binding(1) var<storage, read_write> start: array<i32>;
            @compute @workgroup_size(1) fn main() { start[0] = 1 - start[0]; }";
        kernels.insert("kernels/touch.wgsl".into(), touch.into());
        let weights = Box::new(weights());
        let artifact =
            Artifact::from_parts(plan, kernels, BTreeMap::new(), BTreeMap::new(), weights)?;
        let options = LoadOptions {
            tier: Some("base".into()),
            ..options().entries(&["step"])
        };
        Model::open(&adapter(backend), &artifact, &options, progress)
    }
}

/// A session whose tokens are chosen on the host.
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

fn on(
    decoder: &mut dyn Decoder,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> Vec<Generated> {
    let outcome = generate(
        decoder,
        prompts,
        options,
        &mut |_| ControlFlow::Continue(()),
    );
    outcome.unwrap().0
}

fn options_of(sampling: SamplingOptions) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: 15,
        sampling,
        ..GenerateOptions::default()
    }
}

fn sampled(change: impl FnOnce(&mut SamplingOptions)) -> GenerateOptions {
    let mut sampling = SamplingOptions {
        temperature: 0.8,
        seed: 0x1234_5678_9abc_def0,
        ..SamplingOptions::default()
    };
    change(&mut sampling);
    options_of(sampling)
}

fn settings() -> Vec<GenerateOptions> {
    vec![
        options_of(SamplingOptions::default()),
        options_of(SamplingOptions {
            repetition_penalty: 1.7,
            ..SamplingOptions::default()
        }),
        sampled(|_| {}),
        sampled(|o| o.temperature = 30.0),
        sampled(|o| o.temperature = 1e-30),
        sampled(|o| o.top_k = 1),
        sampled(|o| o.top_k = 7),
        sampled(|o| o.top_k = 1 << 20),
        sampled(|o| o.top_p = 0.3),
        sampled(|o| o.top_p = 0.97),
        sampled(|o| o.top_p = 1e-12),
        sampled(|o| o.min_p = 0.2),
        sampled(|o| o.min_p = 1.0),
        sampled(|o| o.repetition_penalty = 0.6),
        sampled(|o| {
            o.temperature = 2.0;
            o.top_k = 40;
            o.top_p = 0.8;
            o.min_p = 0.05;
            o.repetition_penalty = 1.2;
        }),
    ]
}

#[test]
fn the_device_chooses_what_the_host_chooses() {
    let tinies = [
        Tiny::new(11, 7, false),
        Tiny::new(256, 1 << 20, false),
        Tiny::new(257, 50, true),
        Tiny::new(1003, 1 << 20, true),
        Tiny::new(1003, 1, false),
    ];
    let prompts = [vec![3, 1, 4, 1, 5, 9], vec![2], vec![6, 5]];
    for backend in BACKENDS {
        let profiles = tinies.map(|tiny| [false, true].map(|software| Tiny { software, ..tiny }));
        for tiny in profiles.into_iter().flatten() {
            let model = tiny.open(backend);
            let mut session = Session::new(&model, 3, CONTEXT_MAX).unwrap();
            for options in settings() {
                session.reset();
                let device = on(&mut session, &prompts, &options);
                let past = session.past();
                session.reset();
                let host = on(&mut OnHost(&mut session), &prompts, &options);
                let what = format!("{backend}, {tiny:?}, {:?}", options.sampling);
                assert_eq!(device, host, "{what}");
                assert_eq!(device[0].tokens.len(), 15);
                assert_eq!(past, session.past(), "{what}");
            }
        }
    }
}

/// Vocabularies at and beyond the largest in use: ids of three digits, and loops as
/// long as a software driver allows.
#[test]
fn large_vocabularies_are_searched_to_the_end() {
    for backend in BACKENDS {
        for (vocab, software) in [(70_001, false), (152_000, true), (400_000, true)] {
            let tiny = Tiny::new(vocab, 1 << 20, false);
            let model = Tiny { software, ..tiny }.open(backend);
            let mut session = Session::new(&model, 1, CONTEXT_MAX).unwrap();
            let mut options = sampled(|o| {
                o.temperature = 2.0;
                o.top_k = 60_000;
                o.top_p = 0.99;
                o.repetition_penalty = 1.2;
            });
            options.max_new_tokens = 4;
            let device = on(&mut session, &[vec![3]], &options);
            session.reset();
            let host = on(&mut OnHost(&mut session), &[vec![3]], &options);
            assert_eq!(device, host, "{backend}, {vocab}");
        }
    }
}

/// Draws that are all alike would pass every comparison with the host.
#[test]
fn sequences_and_positions_draw_apart() {
    let model = Tiny::new(1003, 1, false).open("vulkan");
    let mut session = Session::new(&model, 3, CONTEXT_MAX).unwrap();
    let prompts = [vec![5], vec![5], vec![5]];
    let got = on(&mut session, &prompts, &sampled(|_| {}));
    let mut all: Vec<u32> = got.iter().flat_map(|g| g.tokens.clone()).collect();
    all.sort_unstable();
    all.dedup();
    assert!(all.len() > 35, "{} of 45 tokens differ", all.len());
}

#[test]
fn a_sequence_comes_out_as_it_does_alone() {
    for backend in BACKENDS {
        let model = Tiny::new(257, 1 << 20, true).open(backend);
        let options = sampled(|o| o.top_k = 20);
        let prompts = [vec![3, 1, 4, 1, 5, 9], vec![2], vec![6, 5]];
        let mut session = Session::new(&model, 3, CONTEXT_MAX).unwrap();
        let all = on(&mut session, &prompts, &options);
        let mut alone = Session::new(&model, 1, CONTEXT_MAX).unwrap();
        // Draws are by sequence, so only the first comes out the same alone.
        let one = on(&mut alone, &prompts[..1], &options);
        assert_eq!(one[0], all[0]);
    }
}

#[test]
fn stops_full_contexts_and_callbacks_end_it_as_on_the_host() {
    for backend in BACKENDS {
        let model = Tiny::new(11, 50, false).open(backend);
        let mut ends = Vec::new();
        for seed in 0..12 {
            let mut options = sampled(|o| {
                o.temperature = 10.0;
                o.seed = seed;
            });
            options.max_new_tokens = 100;
            options.stop_tokens = vec![1, 7, 4_000_000];
            options.pad_token = 3;
            let prompts = [vec![3, 1, 4], vec![2]];
            let run = |decoder: &mut dyn Decoder| {
                let mut seen = Vec::new();
                let outcome = generate(decoder, &prompts, &options, &mut |token| {
                    seen.push(token);
                    match token.id == 9 && token.sequence == 1 {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                });
                (outcome.unwrap().0, seen)
            };
            let mut session = Session::new(&model, 2, 16).unwrap();
            let device = run(&mut session);
            let past = session.past();
            session.reset();
            let host = run(&mut OnHost(&mut session));
            assert_eq!(device, host, "{backend}, seed {seed}");
            assert_eq!(past, session.past());
            ends.extend(device.0.iter().map(|g| g.finish));
        }
        assert!(ends.contains(&Finish::Stop) && ends.contains(&Finish::Cancelled));
        // A context that fills up: 4 of prompt, 16 in all.
        let mut session = Session::new(&model, 1, 16).unwrap();
        let options = GenerateOptions {
            max_new_tokens: 100,
            ..GenerateOptions::default()
        };
        let got = on(&mut session, &[vec![1, 2, 3, 4]], &options);
        assert_eq!(got[0].finish, Finish::Context);
        assert_eq!((got[0].tokens.len(), session.past()), (13, 16));
    }
}

/// What was computed beyond a stop leaves no trace when the session goes on.
#[test]
fn a_session_goes_on_after_a_stop() {
    for backend in BACKENDS {
        let model = Tiny::new(11, 1 << 20, false).open(backend);
        let mut options = options_of(SamplingOptions::default());
        let mut probe = Session::new(&model, 1, CONTEXT_MAX).unwrap();
        let tokens = &on(&mut probe, &[vec![3, 1]], &options)[0].tokens;
        // A token that comes up after several submissions.
        let stop = tokens.iter().rev().find(|t| !tokens[..4].contains(t));
        options.stop_tokens = stop.into_iter().copied().collect();
        let turns = |decoder: &mut dyn Decoder| {
            let first = on(decoder, &[vec![3, 1]], &options);
            let mut more = options.clone();
            more.max_new_tokens = 4;
            more.stop_tokens.clear();
            (first, on(decoder, &[vec![8]], &more))
        };
        let mut session = Session::new(&model, 1, CONTEXT_MAX).unwrap();
        let device = turns(&mut session);
        session.reset();
        assert_eq!(device, turns(&mut OnHost(&mut session)));
    }
}

/// A prompt that nobody wants any more is left between two of its pieces, without a trace.
#[test]
fn a_prompt_is_left_between_its_pieces() {
    let prompts = [(0..3 * STEP_MAX as u32).collect::<Vec<u32>>()];
    let options = options_of(SamplingOptions::default());
    for backend in BACKENDS {
        let model = Tiny::new(257, 1 << 20, false).open(backend);
        let mut session = Session::new(&model, 1, CONTEXT_MAX).unwrap();
        // How often it is wanted: in front of a piece of three each, or of all at once.
        let left = |decoder: &mut dyn Decoder, times: usize| {
            let asked = Cell::new(0);
            let wanted = || asked.replace(asked.get() + 1) < times;
            let outcome = generate_while(decoder, &prompts, &options, &wanted, &mut |_| {
                panic!("there is no token")
            });
            assert_eq!(asked.get(), times + 1);
            assert_eq!(decoder.past(), 0);
            outcome.unwrap().0
        };
        let nothing = [Generated {
            tokens: Vec::new(),
            finish: Finish::Cancelled,
        }];
        for times in 0..3 {
            assert_eq!(left(&mut session, times), nothing);
        }
        let device = on(&mut session, &prompts, &options);
        session.reset();
        assert_eq!(left(&mut OnHost(&mut session), 0), nothing);
        assert_eq!(device, on(&mut OnHost(&mut session), &prompts, &options));
    }
}

/// A session that goes back and on gives what one gives that was never elsewhere, and what
/// it took before counts for a penalty.
#[test]
fn a_session_goes_on_from_where_it_went_back_to() {
    for backend in BACKENDS {
        let model = Tiny::new(257, 1 << 20, false).open(backend);
        for options in settings() {
            let mut session = Session::new(&model, 1, CONTEXT_MAX).unwrap();
            let whole = on(&mut session, &[vec![3, 1, 4, 1, 5]], &options);
            session.reset();
            on(&mut session, &[vec![3, 1, 4, 9, 9, 9]], &options);
            session.rewind(3).unwrap();
            let later = GenerateOptions {
                history: vec![3, 1, 4],
                ..options.clone()
            };
            let device = on(&mut session, &[vec![1, 5]], &later);
            session.rewind(3).unwrap();
            let host = on(&mut OnHost(&mut session), &[vec![1, 5]], &later);
            let what = format!("{backend}, {:?}", options.sampling);
            assert_eq!((&device, &host), (&whole, &whole), "{what}");
        }
        let mut session = Session::new(&model, 1, CONTEXT_MAX).unwrap();
        session.step(&[1, 2], &[0]).unwrap();
        assert_eq!(
            session.rewind(3).unwrap_err().to_string(),
            "cannot go back to position 3, for only 2 are taken"
        );
        assert_eq!(session.past(), 2);
        let untaken = GenerateOptions {
            history: vec![1, 2, 3],
            ..options_of(SamplingOptions::default())
        };
        let outcome = generate(&mut session, &[vec![1]], &untaken, &mut |_| {
            ControlFlow::Continue(())
        });
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "a history of 3 tokens for a decoder that has taken 2"
        );
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_no_token() {
    let mut tiny = Tiny::new(257, 1 << 20, false);
    tiny.sound = 8;
    for backend in BACKENDS {
        let model = tiny.open(backend);
        let mut session = Session::new(&model, 2, CONTEXT_MAX).unwrap();
        for options in [options_of(SamplingOptions::default()), sampled(|_| {})] {
            let mut failures = 0;
            for first in 0..8 {
                let prompts = [vec![first, 1], vec![first]];
                let run = |decoder: &mut dyn Decoder| {
                    let outcome = generate(decoder, &prompts, &options, &mut |_| {
                        ControlFlow::Continue(())
                    });
                    outcome.map(|o| o.0).map_err(|e| e.to_string())
                };
                session.reset();
                let device = run(&mut session);
                session.reset();
                assert_eq!(device, run(&mut OnHost(&mut session)));
                let text = device.err().unwrap_or_default();
                failures += usize::from(text.contains("has no finite logit at position"));
            }
            assert!(failures > 0);
        }
    }
}

/// Where tokens cannot be chosen on the device, or inputs do not survive a step,
/// the host chooses.
#[test]
fn other_plans_are_sampled_on_the_host() {
    let tiny = Tiny::new(257, 1 << 20, false);
    let prompts = [vec![3, 1], vec![2]];
    let options = sampled(|o| o.top_k = 9);
    let run = |plan: Plan| {
        let mut kernels = 0;
        let model = tiny.load("vulkan", plan, &mut |p| kernels = p.kernels_total);
        let model = model.unwrap();
        let mut session = Session::new(&model, 2, CONTEXT_MAX).unwrap();
        (kernels, on(&mut session, &prompts, &options))
    };
    let (kernels, expected) = run(tiny.plan());
    assert_eq!(kernels, 2 + 4);

    let mut without_logits = tiny.plan();
    for tier in &mut without_logits.tiers {
        tier.entries.get_mut("step").unwrap().outputs[0].name = "hidden".into();
    }
    assert_eq!(run(without_logits), (2, expected.clone()));

    let mut overwriting = tiny.plan();
    let touch = Kernel {
        file: "kernels/touch.wgsl".into(),
        workgroup_size: [1, 1, 1],
        bindings: vec![Access::ReadWrite],
    };
    overwriting.kernels.insert("touch".into(), touch);
    for tier in &mut overwriting.tiers {
        let step = tier.entries.get_mut("step").unwrap();
        for variant in &mut step.variants {
            let mut launch = variant.launches[0].clone();
            launch.kernel = "touch".into();
            launch.workgroups = 1.into();
            launch.bindings = vec![Binding::Buffer(step.inputs[1].buffer)];
            variant.launches.push(launch);
        }
    }
    assert_eq!(run(overwriting), (3, expected));
}
