//! A family's graphs as built, evaluated by the reference interpreter, against
//! what transformers computes in float64 from the same checkpoints.

use kiln_ir::interp::{HostTensor, Real};

use super::{Fixture, Session, argmax, assert_close, fixtures, forward, rows};

/// Relative distance over all elements that kiln promises in f32.
pub const F32: f64 = 2e-5;
/// In f64 what is left is the rounding of the expected values, which are
/// stored as f32: at most half of 2^-23 of each.
pub const F64: f64 = 6e-8;
/// Between two ways through the same graph in f64.
pub const SAME: f64 = 1e-12;

/// Every fixture of a family.
pub fn for_all(family: &str, test: impl Fn(&Fixture)) {
    for folder in fixtures(family) {
        test(&Fixture::open(&folder));
    }
}

/// Hidden states, logits and attention probabilities of whole sequences.
pub fn whole_sequences<T: Real>(fixture: &Fixture, tolerance: f64) {
    let plain = fixture.interpreter::<T>("forward");
    let detailed = fixture.interpreter::<T>("forward_attentions");
    let mut attentions = 0;
    for case in fixture.cases() {
        let outputs = forward(&plain, &case.ids);
        let check = |name: &str, wanted: &[f32]| {
            let label = format!("{} {name}", case.label);
            assert_close(&label, outputs[name].as_f().unwrap(), wanted, tolerance);
        };
        check("hidden", &case.hidden);
        match &case.logits {
            Some(logits) => check("logits", logits),
            None => assert_eq!(outputs.keys().collect::<Vec<_>>(), ["hidden"]),
        }

        let with_attentions = forward(&detailed, &case.ids);
        for (name, tensor) in &outputs {
            assert_eq!(&with_attentions[name], tensor, "{} {name}", case.label);
        }
        for (layer, wanted) in case.attentions.iter().enumerate() {
            let name = format!("attentions.{layer}");
            let label = format!("{} {name}", case.label);
            let found = with_attentions[&name].as_f().unwrap();
            assert_close(&label, found, wanted, tolerance);
            attentions += 1;
        }
    }
    assert!(attentions > 0, "{}", fixture.name);
}

/// Greedy tokens, up to the maximum context, of fixtures that have a head.
pub fn greedy<T: Real>(fixture: &Fixture) {
    let step = fixture.interpreter::<T>("step");
    for i in 0..2 {
        let Some(prompt) = fixture.integers(&format!("greedy{i}.prompt")) else {
            assert_eq!(fixture.name, "body");
            return;
        };
        let wanted = fixture.integers(&format!("greedy{i}.tokens")).unwrap();
        let mut session = Session::new(&step, vec![0]);
        let found = session.greedy(&[prompt.to_vec()], wanted.len());
        assert_eq!(found[0], wanted, "{} greedy{i}", fixture.name);
    }
}

/// Prompts of different lengths, and what each alone is continued with.
struct Ragged<'f> {
    prompts: Vec<&'f [i32]>,
    longest: usize,
    tokens: Vec<&'f [i32]>,
}

fn ragged(fixture: &Fixture) -> Option<Ragged<'_>> {
    let lengths = fixture.integers("ragged.lengths")?;
    let (prompts, tokens) = (
        fixture.integers("ragged.prompts")?,
        fixture.integers("ragged.tokens")?,
    );
    let longest = prompts.len() / lengths.len();
    let padded = prompts.chunks_exact(longest).zip(lengths);
    Some(Ragged {
        prompts: padded
            .map(|(row, length)| &row[..*length as usize])
            .collect(),
        longest,
        tokens: tokens.chunks_exact(tokens.len() / lengths.len()).collect(),
    })
}

/// Sequences of different lengths together are continued as each alone.
pub fn ragged_batches<T: Real>(fixture: &Fixture) {
    let Some(ragged) = ragged(fixture) else {
        assert_eq!(fixture.name, "body");
        return;
    };
    // Any token will do for padding; two kinds must give the same.
    for padding in [0, 7] {
        let start = ragged.prompts.iter().map(|p| ragged.longest - p.len());
        let start: Vec<i32> = start.map(|n| n as i32).collect();
        let padded = ragged.prompts.iter().zip(&start).map(|(prompt, start)| {
            let mut row = vec![padding; *start as usize];
            row.extend_from_slice(prompt);
            row
        });
        let padded: Vec<Vec<i32>> = padded.collect();
        let step = fixture.interpreter::<T>("step");
        let mut session = Session::new(&step, start);
        let found = session.greedy(&padded, ragged.tokens[0].len());
        assert_eq!(found, ragged.tokens, "{}", fixture.name);
    }

    // Whole sequences are padded on the right.
    let padded = ragged.prompts.iter().flat_map(|prompt| {
        let mut row = prompt.to_vec();
        row.resize(ragged.longest, 3);
        row
    });
    let shape = [ragged.prompts.len(), ragged.longest];
    let ids = HostTensor::i32(shape, padded.collect::<Vec<i32>>());
    let outputs = forward(&fixture.interpreter::<T>("forward"), &ids);
    let logits: Vec<&[T]> = rows(&outputs["logits"]).collect();
    for (row, prompt) in ragged.prompts.iter().enumerate() {
        let last = logits[row * ragged.longest + prompt.len() - 1];
        assert_eq!(argmax(last), ragged.tokens[row][0], "{}", fixture.name);
    }
}

/// Sequences in pieces of these sizes, then token by token: after each piece,
/// what `step` says of the last token is what `forward` says of it.
pub fn in_pieces<T: Real>(fixture: &Fixture, tolerance: f64) {
    let whole = fixture.interpreter::<T>("forward");
    let step = fixture.interpreter::<T>("step");
    for case in fixture.cases() {
        let output = case.logits.as_ref().map_or("hidden", |_| "logits");
        let [batch, seq] = case.ids.shape[..] else {
            panic!("{:?}", case.ids.shape);
        };
        let sequences: Vec<&[i32]> = case.ids.as_i32().unwrap().chunks_exact(seq).collect();
        let outputs = forward(&whole, &case.ids);
        let wanted: Vec<&[T]> = rows(&outputs[output]).collect();
        for pieces in [[1, 1, 1], [3, 2, 1], [5, 7, 1], [seq, 1, 1]] {
            let mut session = Session::new(&step, vec![0; batch]);
            let mut past = 0;
            for piece in pieces.into_iter().chain(std::iter::repeat(1)) {
                let end = seq.min(past + piece);
                if past == end {
                    break;
                }
                let tokens: Vec<Vec<i32>> = sequences
                    .iter()
                    .map(|row| row[past..end].to_vec())
                    .collect();
                let last = session.append(output, &tokens);
                for (row, found) in last.iter().enumerate() {
                    let label = format!("{} tokens {past}..{end} of row {row}", case.label);
                    assert_close(&label, found, wanted[row * seq + end - 1], tolerance);
                }
                past = end;
            }
        }
    }
}

/// The tests of a family's fixtures.
#[macro_export]
macro_rules! against_transformers {
    ($family:literal) => {
        use $crate::common::reference::{
            F32, F64, SAME, for_all, greedy, in_pieces, ragged_batches, whole_sequences,
        };

        #[test]
        fn whole_sequences_in_f32() {
            for_all($family, |fixture| whole_sequences::<f32>(fixture, F32));
        }

        #[test]
        fn whole_sequences_in_f64() {
            for_all($family, |fixture| whole_sequences::<f64>(fixture, F64));
        }

        #[test]
        fn greedy_tokens_in_f32() {
            for_all($family, greedy::<f32>);
        }

        #[test]
        fn greedy_tokens_in_f64() {
            for_all($family, greedy::<f64>);
        }

        #[test]
        fn ragged_batches_in_f32() {
            for_all($family, ragged_batches::<f32>);
        }

        #[test]
        fn ragged_batches_in_f64() {
            for_all($family, ragged_batches::<f64>);
        }

        #[test]
        fn pieces_add_up_in_f32() {
            for_all($family, |fixture| in_pieces::<f32>(fixture, F32));
        }

        #[test]
        fn pieces_add_up_in_f64() {
            for_all($family, |fixture| in_pieces::<f64>(fixture, SAME));
        }
    };
}
