//! The kernels on an emulated device, whose workgroups have several subgroups, against
//! the sampler of the host.
#![allow(clippy::unwrap_used, clippy::panic)]

use kiln_emulator::{Buffer, Device, Kernel};

use super::{BODIES, Shape, text, uniforms};
use crate::sampling::{Sampler, SamplingOptions};

const BATCH: usize = 3;
const STEPS: usize = 3;
const PAD: u32 = 5;

/// Numbers that look random, the same for the same seed, from a linear congruence.
fn logits(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // In steps, so that some are equal.
        (state >> 20) as f32 / 256.0 - 8.0
    };
    (0..count).map(|_| next()).collect()
}

/// Chooses tokens of sequences for some steps, on an emulated device and on the host.
fn agree(vocab: usize, shape: Shape, options: &SamplingOptions) {
    let mut sampler = Sampler::new(options.clone()).unwrap();
    let label = format!("{vocab} tokens, {shape:?}, {options:?}");
    let kernels = BODIES.map(|body| {
        let text = text(body, shape, vocab as u64, sampler.rule().greedy).unwrap();
        Kernel::new(&text).unwrap_or_else(|fault| panic!("{fault}"))
    });
    let mut device = Device::new(32);
    let words = vocab.div_ceil(32);
    let mut marks = vec![0; words * (BATCH + 1)];
    // Token 2 ends a text. The last sequence has ended, and the first has seen token 1.
    marks[0] = 1 << 2;
    let mut histories = [vec![1], vec![], vec![]];
    if options.repetition_penalty != 1.0 {
        marks[words] = 1 << 1;
    }
    let sequences = [[4, 0, 0, 0], [0, 0, 0, 0], [9, 0, 1, 0]].concat();
    let [logits_at, scores, bests, marks, sequences, ids, tokens] = [
        vec![0; BATCH * vocab],
        vec![u32::MAX; BATCH * vocab.div_ceil(4) * 4],
        vec![u32::MAX; BATCH * shape.chunks as usize * 2],
        marks,
        sequences,
        vec![u32::MAX; BATCH],
        vec![u32::MAX; BATCH * STEPS],
    ]
    .map(|words| device.buffer(words));
    let bindings: [Buffer; 7] = [logits_at, scores, bests, marks, sequences, ids, tokens];
    let block = uniforms(sampler.rule(), vocab as u32, BATCH as u32, PAD);
    let mut live = [true, true, false];
    let mut positions = [4, 0, 9];
    for step in 0..STEPS {
        let all = logits(BATCH * vocab, (step + vocab) as u32);
        let bits = all.iter().map(|x| x.to_bits());
        for (word, bits) in device.words_mut(logits_at).iter_mut().zip(bits) {
            *word = bits;
        }
        let grids = [[shape.chunks as usize, BATCH, 1], [BATCH, 1, 1]];
        for (kernel, grid) in kernels.iter().zip(grids) {
            let launched = device.launch(kernel, grid, &block, &bindings);
            launched.unwrap_or_else(|fault| panic!("{label}: {fault}"));
        }
        for (sequence, row) in all.chunks_exact(vocab).enumerate() {
            let wanted = match live[sequence] {
                true => {
                    let position = positions[sequence];
                    let history = &histories[sequence];
                    sampler
                        .sample(row, history, sequence as u32, position)
                        .unwrap()
                }
                false => PAD,
            };
            let found = device.words(tokens)[step * BATCH + sequence];
            assert_eq!(found, wanted, "{label}: step {step}, sequence {sequence}");
            live[sequence] &= wanted != 2;
            let next = if live[sequence] { wanted } else { PAD };
            assert_eq!(device.words(ids)[sequence], next, "{label}: step {step}");
            histories[sequence].push(wanted);
            positions[sequence] += 1;
        }
    }
}

#[test]
fn kernels_choose_as_the_host_does() {
    let shape = Shape {
        workgroup: 256,
        chunks: 64,
    };
    let greedy = SamplingOptions::default();
    let drawn = SamplingOptions {
        temperature: 2.5,
        seed: 7,
        ..greedy.clone()
    };
    let filtered = SamplingOptions {
        temperature: 3.0,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.001,
        repetition_penalty: 1.3,
        seed: u64::MAX,
    };
    for vocab in [3, 257, 5000] {
        for options in [&greedy, &drawn, &filtered] {
            agree(vocab, shape, options);
        }
    }
    // More are equally likely than a list in workgroup memory has room for.
    let flat = SamplingOptions {
        temperature: 1e6,
        top_k: 3000,
        ..drawn
    };
    agree(5000, shape, &flat);
}
