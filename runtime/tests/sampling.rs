//! The sampler: known answers, what each filter keeps, and that draws follow the
//! distribution.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kiln_runtime::sampling::{Candidate, Sampler, SamplingError, SamplingOptions, philox};
use proptest::prelude::*;

/// From the `kat_vectors` of Random123, the authors' own implementation.
#[test]
fn philox_gives_the_known_answers() {
    let ones = u32::MAX;
    assert_eq!(
        philox([0; 4], [0; 2]),
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
    );
    assert_eq!(
        philox([ones; 4], [ones; 2]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
    assert_eq!(
        philox(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0]
        ),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
}

fn sampler(change: impl Fn(&mut SamplingOptions)) -> Sampler {
    let mut options = SamplingOptions {
        temperature: 1.0,
        ..SamplingOptions::default()
    };
    change(&mut options);
    Sampler::new(options).unwrap()
}

fn kept(change: impl Fn(&mut SamplingOptions), logits: &[f32], history: &[u32]) -> Vec<u32> {
    let mut sampler = sampler(change);
    let candidates = sampler.candidates(logits, history).iter();
    candidates.map(|candidate| candidate.id).collect()
}

/// A weight from its definition.
fn weight(difference: f64) -> u32 {
    ((-difference).exp() * 2_147_483_648.0) as u32
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_skips_what_is_no_number() {
    let mut greedy = sampler(|o| o.temperature = 0.0);
    let mut best = |logits: &[f32]| greedy.sample(logits, &[], 0, 0);
    assert_eq!(best(&[1.0, 3.0, 3.0, 2.0]), Ok(1));
    assert_eq!(
        best(&[f32::NAN, -7.0, f32::NEG_INFINITY, f32::INFINITY]),
        Ok(1)
    );
    assert_eq!(
        best(&[f32::NAN, f32::NEG_INFINITY]),
        Err(SamplingError::NoFiniteLogit {
            sequence: 0,
            position: 0
        })
    );
}

#[test]
fn options_out_of_range_are_named() {
    let fault = |change: &dyn Fn(&mut SamplingOptions)| {
        let mut options = SamplingOptions::default();
        change(&mut options);
        Sampler::new(options).unwrap_err().to_string()
    };
    assert_eq!(
        fault(&|o| o.temperature = -1.0),
        "--temperature = -1 is out of range: 0 or more, and finite"
    );
    assert_eq!(
        fault(&|o| o.temperature = f32::NAN),
        "--temperature = NaN is out of range: 0 or more, and finite"
    );
    assert_eq!(
        fault(&|o| o.top_p = 0.0),
        "--top-p = 0 is out of range: above 0, at most 1"
    );
    assert_eq!(
        fault(&|o| o.min_p = 1.5),
        "--min-p = 1.5 is out of range: 0 to 1"
    );
    assert_eq!(
        fault(&|o| o.repetition_penalty = 0.0),
        "--repetition-penalty = 0 is out of range: above 0, and finite"
    );
}

#[test]
fn each_filter_keeps_what_it_says() {
    // Probabilities 0.4, 0.3, 0.2, 0.1.
    let logits: Vec<f32> = [0.2f32, 0.4, 0.1, 0.3].iter().map(|p| p.ln()).collect();
    assert_eq!(kept(|_| {}, &logits, &[]), [0, 1, 2, 3]);
    assert_eq!(kept(|o| o.top_k = 2, &logits, &[]), [1, 3]);
    assert_eq!(kept(|o| o.top_k = 9, &logits, &[]), [0, 1, 2, 3]);
    assert_eq!(kept(|o| o.top_k = 1, &[1.0, 2.0, 2.0], &[]), [1, 2]);
    assert_eq!(kept(|o| o.top_p = 0.65, &logits, &[]), [1, 3]);
    assert_eq!(kept(|o| o.top_p = 0.75, &logits, &[]), [0, 1, 3]);
    assert_eq!(kept(|o| o.top_p = 1e-9, &logits, &[]), [1]);
    assert_eq!(kept(|o| o.min_p = 0.6, &logits, &[]), [1, 3]);
    assert_eq!(kept(|o| o.min_p = 1.0, &logits, &[]), [1]);

    let mut penalised = sampler(|o| {
        o.repetition_penalty = 2.0;
        o.temperature = 0.5;
    });
    let got = penalised.candidates(&[4.0, -4.0, 1.0], &[0, 1, 0, 77]);
    // 2, -8 and 1, divided by 0.5.
    let expected = [0.0, 20.0, 2.0].map(weight);
    for ((id, expected), got) in (0u32..).zip(expected).zip(got) {
        assert_eq!(got.id, id);
        assert!(
            got.weight.abs_diff(expected) <= 1 + (expected >> 24),
            "{got:?}"
        );
    }
    assert_eq!(got.len(), 3);
}

#[test]
fn draws_follow_the_distribution() {
    let shares = [0.5f64, 0.25, 0.15, 0.07, 0.03];
    let logits: Vec<f32> = shares.iter().map(|p| (p.ln() + 3.0) as f32).collect();
    let mut sampler = sampler(|o| o.seed = 99);
    const DRAWS: u64 = 20_000;
    let mut counts = [0u64; 5];
    for position in 0..DRAWS {
        let id = sampler.sample(&logits, &[], 1, position).unwrap();
        counts[id as usize] += 1;
    }
    let expected = shares.map(|p| p * DRAWS as f64);
    let chi: f64 = counts
        .iter()
        .zip(expected)
        .map(|(n, e)| (*n as f64 - e).powi(2) / e)
        .sum();
    // 4 degrees of freedom: above 18.5 once in a thousand seeds.
    assert!(chi < 18.5, "{counts:?}, {chi}");
}

#[test]
fn draws_differ_by_seed_sequence_and_position_alone() {
    let logits = vec![0.0f32; 1000];
    let draw = |seed, sequence, position| {
        let mut sampler = sampler(|o| o.seed = seed);
        sampler.sample(&logits, &[], sequence, position).unwrap()
    };
    assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
    let all = [
        draw(1, 2, 3),
        draw(2, 2, 3),
        draw(1, 3, 3),
        draw(1, 2, 4),
        draw(1 << 32, 2, 3),
        draw(1, 2, 3 + (1 << 32)),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|b| a != b), "{all:?}");
    }
    // These are for all time: a seed gives the same tokens everywhere.
    assert_eq!([draw(0, 0, 0), draw(42, 0, 5), draw(7, 1, 9)], PINNED);
}

/// Computed apart, in Python.
const PINNED: [u32; 3] = [399, 314, 428];

proptest! {
    #[test]
    fn every_draw_is_a_candidate(
        logits in prop::collection::vec(-30.0f32..30.0, 1..60),
        temperature in 0.0f32..3.0,
        top_k in 0usize..70,
        top_p in 0.01f32..1.0,
        min_p in 0.0f32..1.0,
        repetition_penalty in 0.5f32..2.0,
        seed: u64,
    ) {
        let options = SamplingOptions {
            temperature, top_k, top_p, min_p, repetition_penalty, seed,
        };
        let mut sampler = Sampler::new(options).unwrap();
        let history = [0, 3, 5];
        let candidates = sampler.candidates(&logits, &history).to_vec();
        prop_assert!(!candidates.is_empty());
        let id = sampler.sample(&logits, &history, 0, 1).unwrap();
        prop_assert!(candidates.iter().any(|c| c.id == id));
        // In order of their ids, and the most likely one always stays.
        prop_assert!(candidates.is_sorted_by_key(|c| c.id));
        let weights = candidates.iter().map(|Candidate { weight, .. }| *weight);
        prop_assert_eq!(weights.max(), Some(1 << 31));
    }
}
