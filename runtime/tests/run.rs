//! Entries, sessions and generation on software drivers, through Vulkan and
//! OpenGL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ops::ControlFlow;

use common::*;
use kiln_ir::Bindings;
use kiln_runtime::generate::{Finish, GenerateOptions, NewToken, generate};
use kiln_runtime::{Model, Output, RunOptions, Session};

fn both(test: impl Fn(&Model)) {
    for backend in BACKENDS {
        test(&model(backend));
    }
}

fn output<'o>(outputs: &'o [Output], name: &str) -> &'o Output {
    outputs.iter().find(|o| o.name == name).unwrap()
}

#[test]
fn forward_pads_on_the_right_and_streams() {
    both(|model| {
        let ids = [vec![3, 1, 4, 1, 5], vec![9, 2], vec![6, 5, 3]];
        let outputs = model.forward_collect(&ids, &RunOptions::default()).unwrap();
        let hidden = output(&outputs, "hidden");
        let logits = output(&outputs, "logits");
        assert_eq!(hidden.shape, [3, 5, 2]);
        assert_eq!(logits.shape, [3, 5, 11]);
        for (b, row) in ids.iter().enumerate() {
            for i in 0..5 {
                let id = row.get(i).map_or(0.0, |id| *id as f32);
                let at = b * 5 + i;
                let expected = [id * GAIN, id + 1.0];
                assert_eq!(hidden.f32().unwrap()[at * 2..at * 2 + 2], expected);
                for v in 0..11 {
                    let expected = id * GAIN * 100.0 + v as f32;
                    assert_eq!(logits.f32().unwrap()[at * 11 + v], expected);
                }
            }
        }
    });
}

#[test]
fn pieces_of_a_stream_come_in_order_and_cover_the_output() {
    both(|model| {
        let mut next = 0;
        let options = RunOptions::outputs(&["logits"]);
        let ids = [vec![1, 2, 3, 4, 5, 6, 7]];
        model
            .forward(&ids, &options, &mut |piece| {
                assert_eq!(piece.name, "logits");
                assert_eq!(piece.offset, next);
                next += piece.bytes.len() as u64;
                Ok(())
            })
            .unwrap();
        assert_eq!(next, 7 * 11 * 4);
    });
}

#[test]
fn a_callback_can_stop_a_run() {
    let model = model("vulkan");
    let stopped = model.forward(&[vec![1; 9]], &RunOptions::default(), &mut |_| {
        Err(kiln_runtime::Error::other("enough"))
    });
    assert_eq!(message(stopped), "enough");
    // The model is as usable as before.
    assert!(
        model
            .forward_collect(&[vec![1]], &RunOptions::default())
            .is_ok()
    );
}

/// 275,000 workgroups, and an output read in two pieces.
#[test]
fn large_grids_are_folded_and_large_outputs_read_in_pieces() {
    const ROWS: usize = 2_200_000;
    for backend in BACKENDS {
        let mut plan = plan();
        plan.symbols[1].max = ROWS as u64;
        let artifact = artifact_of(plan);
        let model = Model::open(&adapter(backend), &artifact, &options(), &mut |_| {}).unwrap();
        let ids: Vec<u32> = (0..ROWS as u32)
            .map(|i| i.wrapping_mul(7919) % VOCAB)
            .collect();
        let only = RunOptions::outputs(&["hidden"]);
        let mut pieces = Vec::new();
        let mut wrong = 0;
        model
            .forward(std::slice::from_ref(&ids), &only, &mut |piece| {
                pieces.push((piece.offset, piece.bytes.len()));
                let rows = piece.bytes.chunks_exact(8);
                for (row, id) in rows.zip(&ids[piece.offset as usize / 8..]) {
                    let expected = [*id as f32 * GAIN, *id as f32 + 1.0].map(f32::to_le_bytes);
                    wrong += usize::from(row != expected.as_flattened());
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(wrong, 0);
        assert_eq!(pieces, [(0, 16 << 20), (16 << 20, ROWS * 8 - (16 << 20))]);
    }
}

#[test]
fn work_over_several_submissions_gives_the_same() {
    both(|model| {
        let mut plan = plan();
        for entry in plan.tiers[1].entries.values_mut() {
            for launch in entry.variants.iter_mut().flat_map(|v| &mut v.launches) {
                launch.flops = "batch*seq*1000000000000".parse().unwrap();
            }
        }
        let adapter = model.device().adapter();
        let split = Model::open(adapter, &artifact_of(plan), &options(), &mut |_| {}).unwrap();
        let run = |m: &Model| {
            let mut session = Session::new(m, 1, CONTEXT_MAX).unwrap();
            let mut out = session.step(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[0]).unwrap();
            out.extend(session.step(&[10], &[0]).unwrap());
            out
        };
        assert_eq!(run(&split), run(model));
    });
}

fn greedy(logits: &[f32]) -> Vec<u32> {
    let best = |row: &[f32]| row.iter().position(|x| *x == 5.0).unwrap() as u32;
    logits.chunks(VOCAB as usize).map(best).collect()
}

#[test]
fn steps_keep_their_state_whatever_the_pieces() {
    both(|model| {
        let ids: Vec<u32> = (0..13).map(|i| (i * 7 + 3) % VOCAB).collect();
        let sum = |n: usize| ids[..n].iter().sum::<u32>() % VOCAB;
        for first in [1, 2, 4, 5, 11, 12] {
            let mut session = Session::new(model, 1, CONTEXT_MAX).unwrap();
            let logits = session.step(&ids[..first], &[0]).unwrap();
            assert_eq!(greedy(&logits), [sum(first)]);
            for n in first..ids.len() {
                let logits = session.step(&ids[n..=n], &[0]).unwrap();
                assert_eq!(greedy(&logits), [sum(n + 1)], "{first}, {n}");
            }
            assert_eq!(session.past(), 13);
        }
    });
}

#[test]
fn sequences_of_different_lengths_come_out_as_each_alone() {
    both(|model| {
        let prompts = [vec![3, 1, 4, 1, 5, 9], vec![2], vec![6, 5]];
        let options = GenerateOptions {
            max_new_tokens: 6,
            pad_token: 10,
            ..GenerateOptions::default()
        };
        let mut session = Session::new(model, 3, CONTEXT_MAX).unwrap();
        let (all, timings) = generate(&mut session, &prompts, &options, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(timings.prompt_tokens, 9);
        assert_eq!(timings.decode_steps, 5);
        for (prompt, got) in prompts.iter().zip(&all) {
            let mut history = prompt.clone();
            for token in &got.tokens {
                assert_eq!(*token, history.iter().sum::<u32>() % VOCAB);
                history.push(*token);
            }
            assert_eq!(got.finish, Finish::Length);
            let mut alone = Session::new(model, 1, 12).unwrap();
            let prompt = std::slice::from_ref(prompt);
            let (one, _) = generate(&mut alone, prompt, &options, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(one[0], *got);
        }
    });
}

#[test]
fn stop_tokens_context_and_callback_end_a_sequence() {
    let model = model("vulkan");
    let options = GenerateOptions {
        max_new_tokens: 100,
        stop_tokens: vec![8],
        ..GenerateOptions::default()
    };
    // 1 -> 1, 2, 4, 8: stopped; 5 -> 5, 10, 9, 7, ...: until the callback has enough.
    let mut seen = Vec::new();
    let mut session = Session::new(&model, 2, CONTEXT_MAX).unwrap();
    let (got, _) = generate(&mut session, &[vec![1], vec![5]], &options, &mut |token| {
        seen.push(token);
        match (token.sequence, token.index) {
            (1, 2) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    })
    .unwrap();
    assert_eq!(got[0].tokens, [1, 2, 4, 8]);
    assert_eq!(got[0].finish, Finish::Stop);
    assert_eq!(got[1].tokens, [5, 10, 9]);
    assert_eq!(got[1].finish, Finish::Cancelled);
    let last = NewToken {
        sequence: 0,
        id: 8,
        index: 3,
        stop: true,
    };
    assert_eq!(seen.last(), Some(&last));
    assert_eq!(seen.len(), 7);

    let mut session = Session::new(&model, 1, 5).unwrap();
    let (got, _) = generate(&mut session, &[vec![5, 1]], &options, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(got[0].finish, Finish::Context);
    assert_eq!(got[0].tokens.len(), 4);
    assert_eq!(session.past(), 5);

    session.reset();
    assert_eq!(session.past(), 0);
    assert_eq!(greedy(&session.step(&[2, 3], &[0]).unwrap()), [5]);
}

#[test]
fn a_session_that_has_begun_is_continued_alone_only() {
    let model = model("vulkan");
    let options = GenerateOptions {
        max_new_tokens: 2,
        ..GenerateOptions::default()
    };
    let go = |session: &mut Session<'_>, prompts: &[Vec<u32>]| {
        generate(session, prompts, &options, &mut |_| {
            ControlFlow::Continue(())
        })
    };
    let mut one = Session::new(&model, 1, CONTEXT_MAX).unwrap();
    assert_eq!(go(&mut one, &[vec![3, 1]]).unwrap().0[0].tokens, [4, 8]);
    // The last token, 8, was never fed: 3 + 1 + 4, then 1.
    assert_eq!(go(&mut one, &[vec![1]]).unwrap().0[0].tokens, [9, 7]);
    let mut two = Session::new(&model, 2, CONTEXT_MAX).unwrap();
    go(&mut two, &[vec![3], vec![1, 2]]).unwrap();
    assert_eq!(
        message(go(&mut two, &[vec![3], vec![1]])),
        "a batch cannot be continued with further prompts; reset the session"
    );
    assert_eq!(
        message(go(&mut two, &[vec![3]])),
        "1 prompts for a session of 2 sequences"
    );
    two.reset();
    assert_eq!(
        message(go(&mut two, &[vec![3], vec![]])),
        "prompt 1 has no tokens"
    );
    assert_eq!(
        message(go(&mut two, &[vec![3], vec![1; 25]])),
        "the context is full: 0 of 24 positions are taken and 25 more are wanted"
    );
}

#[test]
fn what_does_not_fit_a_session_is_refused_by_name() {
    let model = model("vulkan");
    let new = |batch, context| message(Session::new(&model, batch, context).map(drop));
    assert_eq!(
        new(4, 8),
        "batch = 4 is outside 1 to 3; compile the model with a larger --max-batch, or run fewer at a time"
    );
    assert_eq!(new(0, 8), "a session has at least one sequence");
    assert_eq!(
        new(1, 25),
        "context = 25 is outside 1 to 24; compile the model with a larger --max-context"
    );

    let mut session = Session::new(&model, 2, 6).unwrap();
    session.step(&[1, 2, 3, 4], &[0, 0]).unwrap();
    let mut step = |ids: &[u32], start: &[u32]| message(session.step(ids, start));
    assert_eq!(
        step(&[1; 10], &[0, 0]),
        "the context is full: 2 of 6 positions are taken and 5 more are wanted"
    );
    assert_eq!(
        step(&[1, 2, 3, 11], &[0, 0]),
        "token 11 of sequence 1 at position 1 is outside the vocabulary of 11"
    );
    assert_eq!(
        step(&[1, 2, 3], &[0, 0]),
        "3 token ids are no batch of 2 sequences of one length"
    );
    assert_eq!(step(&[1, 2], &[0]), "1 start positions for 2 sequences");
    assert_eq!(
        step(&[1, 2], &[0, 3]),
        "sequence 1 starts at 3, beyond its 3 tokens"
    );
    assert_eq!(session.past(), 2);
    let options = GenerateOptions {
        pad_token: VOCAB,
        ..GenerateOptions::default()
    };
    let prompts = [vec![1], vec![2]];
    let every = &mut |_| ControlFlow::Continue(());
    assert_eq!(
        message(generate(
            &mut Session::new(&model, 2, 6).unwrap(),
            &prompts,
            &options,
            every
        )),
        "the padding token 11 is not in the vocabulary of 11"
    );
}

#[test]
fn what_does_not_fit_an_entry_is_refused_by_name() {
    let model = model("vulkan");
    let forward = |ids: &[Vec<u32>]| message(model.forward_collect(ids, &RunOptions::default()));
    assert_eq!(
        forward(&[vec![1; 25]]),
        "seq = 25 is outside 1 to 24; use fewer tokens, or compile the model with a larger --max-context"
    );
    assert!(forward(&vec![vec![1]; 4]).starts_with("batch = 4 is outside 1 to 3"));
    assert_eq!(forward(&[]), "there are no tokens");
    assert_eq!(forward(&[vec![1], vec![]]), "sequence 1 has no tokens");
    assert_eq!(
        forward(&[vec![1, 99]]),
        "token 99 of sequence 0 at position 1 is outside the vocabulary of 11"
    );

    let sizes = Bindings::new().with("batch", 1).with("seq", 2);
    let all = RunOptions::default();
    let run = |name: &str, inputs: &[(&str, &[u8])]| {
        message(model.run_collect(name, inputs, &sizes, &all))
    };
    assert_eq!(
        run("backward", &[]),
        "the artifact has no entry `backward`; it has: forward, step"
    );
    assert_eq!(run("forward", &[]), "input `ids`: it is not given");
    assert_eq!(
        run("forward", &[("ids", &[0; 4])]),
        "input `ids`: it has 4 bytes, 8 are wanted"
    );
    let at = |sizes: &[(&str, u64)]| {
        let sizes = sizes.iter();
        let sizes = sizes.fold(Bindings::new(), |all, (name, n)| all.with(name, *n));
        message(model.run_collect("step", &[("ids", &[0; 8])], &sizes, &all))
    };
    assert_eq!(
        at(&[("batch", 1), ("sequence", 2)]),
        "input `sequence`: there is no such size; there are batch, past, seq, context"
    );
    assert_eq!(at(&[("batch", 1)]), "input `seq`: this size is not given");
    assert_eq!(
        at(&[("batch", 1), ("seq", 2), ("past", 3), ("context", 4)]),
        "the context is full: 3 of 4 positions are taken and 2 more are wanted"
    );
    // States are as large as they can be where nothing is said.
    assert_eq!(
        at(&[("batch", 1), ("seq", 2), ("past", 23)]),
        "the context is full: 23 of 24 positions are taken and 2 more are wanted"
    );
    assert_eq!(
        at(&[("batch", 1), ("seq", 2), ("past", 24)]),
        "past = 24 is outside 0 to 23; use fewer tokens, or compile the model with a larger --max-context"
    );
    let unknown = model.forward_collect(&[vec![1]], &RunOptions::outputs(&["loss"]));
    assert_eq!(
        message(unknown),
        "the entry `forward` has no output `loss`; it has: hidden, logits"
    );
}

#[test]
fn a_profile_has_a_time_for_each_launch() {
    both(|model| {
        let mut session = Session::new(model, 1, CONTEXT_MAX).unwrap();
        session.step(&[1, 2, 3], &[0]).unwrap();
        let profile = session.profile_step(&[4], &[0]).unwrap();
        let labels: Vec<_> = profile.launches.iter().map(|l| l.label.as_str()).collect();
        assert_eq!(labels, ["tiny.store", "tiny.next"]);
        assert_eq!(profile.launches[0].flops, 2);
        assert_eq!(profile.launches[1].workgroups, 2);
        for launch in &profile.launches {
            assert!(launch.ns >= 0.0 && launch.ns < 60e9, "{launch:?}");
        }
        // A clock may stand still for one of them, and not for all.
        let ns: f64 = profile.launches.iter().map(|launch| launch.ns).sum();
        assert!(ns > 0.0, "{profile:?}");
        let ids: Vec<u8> = [1i32; 7].iter().flat_map(|i| i.to_le_bytes()).collect();
        let sizes = Bindings::new().with("batch", 1).with("seq", 7);
        let profile = model
            .profile_entry("forward", &[("ids", &ids)], &sizes)
            .unwrap();
        assert_eq!(profile.launches.len(), 1 + 3);
    });
}

/// More than one set of queries has room for.
#[test]
fn a_profile_of_thousands_of_launches_has_them_all() {
    let mut plan = plan();
    for tier in &mut plan.tiers {
        let variant = &mut tier.entries.get_mut("forward").unwrap().variants[0];
        variant.launches = vec![variant.launches[0].clone(); 4500];
    }
    let model = Model::open(
        &adapter("vulkan"),
        &artifact_of(plan),
        &options(),
        &mut |_| {},
    );
    let sizes = Bindings::new().with("batch", 1).with("seq", 1);
    let inputs = [("ids", [0; 4].as_slice())];
    let profile = model.unwrap().profile_entry("forward", &inputs, &sizes);
    let launches = profile.unwrap().launches;
    assert_eq!(launches.len(), 4500 + 1);
    for pair in launches.windows(2) {
        let end = pair[0].begin_ns + pair[0].ns;
        assert!(pair[1].begin_ns >= end && end < 600e9, "{pair:?}");
    }
    // Of each set: a clock may stand still for one launch, and not for all.
    for set in launches.chunks(2048) {
        assert!(set.iter().any(|launch| launch.ns > 0.0), "{:?}", set[0]);
    }
}

/// A session takes shorter pieces, and whoever runs an entry has to.
#[test]
fn no_more_rows_are_run_than_there_is_room_for() {
    let mut plan = plan();
    for tier in &mut plan.tiers {
        let step = tier.entries.get_mut("step").unwrap();
        step.rows = Some(4);
        // As the compiler has it: what is written beyond is lost.
        step.buffers[0].bytes = vec!["min(batch*seq | 4)*4".parse().unwrap()];
    }
    let artifact = artifact_of(plan);
    let model = Model::open(&adapter("vulkan"), &artifact, &options(), &mut |_| {}).unwrap();
    let mut session = Session::new(&model, 2, CONTEXT_MAX).unwrap();
    let logits = session.step(&[1, 2, 3, 4, 5, 6], &[0, 0]).unwrap();
    assert_eq!(greedy(&logits), [6, 15 % VOCAB]);

    let run = |seq: u64| {
        let sizes = Bindings::new().with("batch", 2).with("seq", seq);
        let sizes = sizes.with("past", 0);
        let ids = vec![0; 8 * seq as usize];
        let inputs = [("ids", ids.as_slice()), ("start", &[0; 8])];
        model.run_collect("step", &inputs, &sizes, &RunOptions::default())
    };
    run(2).unwrap();
    assert_eq!(
        message(run(3)),
        "seq = 3 is outside 1 to 2; run fewer sequences, or fewer of their tokens, at a time"
    );
}
