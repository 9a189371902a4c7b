//! Generating text token by token, from any decoder.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sampling::{Sampler, SamplingOptions};

/// Something that appends tokens to a batch of sequences and says what may come
/// next: a [`Session`](crate::Session) on a device, or an interpreter.
pub trait Decoder {
    /// The number of sequences.
    fn batch(&self) -> usize;

    /// The capacity in positions, padding included.
    fn context(&self) -> u64;

    /// The positions taken.
    fn past(&self) -> u64;

    /// Appends as many tokens to each sequence, one sequence after the other in
    /// `ids`; `start` is the number of padding tokens that each began with. The
    /// result is the logits of each sequence's last position, one after the
    /// other.
    ///
    /// # Errors
    /// When the ids are no batch, the context is full, or the decoder fails;
    /// one that this crate does not know wraps its errors with [`Error::other`].
    fn step(&mut self, ids: &[u32], start: &[u32]) -> Result<Vec<f32>>;
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The most tokens that each sequence gets.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// A token of these ends its sequence.
    pub stop_tokens: Vec<u32>,
    /// Fed where a sequence has no token: before a short prompt and after an end.
    /// It influences nothing.
    pub pad_token: u32,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 128,
            sampling: SamplingOptions::default(),
            stop_tokens: Vec::new(),
            pad_token: 0,
        }
    }
}

/// A token as it is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// The sequence, from 0.
    pub sequence: usize,
    /// The token.
    pub id: u32,
    /// How many tokens the sequence has got before.
    pub index: usize,
    /// Whether the token ends its sequence.
    pub stop: bool,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token, which is the last of its tokens.
    Stop,
    /// It has [`GenerateOptions::max_new_tokens`].
    Length,
    /// The decoder's context is full.
    Context,
    /// The callback asked for it.
    Cancelled,
}

/// What a sequence got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Why they ended.
    pub finish: Finish,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// The prompts, up to the first new tokens.
    pub prefill: Duration,
    /// All further tokens.
    pub decode: Duration,
    /// Tokens of the prompts, without padding.
    pub prompt_tokens: usize,
    /// Steps behind the first, each one token for every live sequence.
    pub decode_steps: usize,
}

/// Continues a batch of prompts. `on_token` sees every token at once and ends its
/// sequence with [`ControlFlow::Break`].
///
/// A sequence that ended is fed padding until all have.
///
/// # Errors
/// When there is no prompt or an empty one, their number is not the decoder's
/// batch, they do not fit its context, an option is out of range, or a step fails.
pub fn generate(
    decoder: &mut dyn Decoder,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>,
) -> Result<(Vec<Generated>, Timings)> {
    let mut sampler = Sampler::new(options.sampling.clone())?;
    let longest = check_prompts(decoder, prompts)?;
    let mut timings = Timings {
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
        ..Timings::default()
    };
    let mut live: Vec<Sequence<'_>> = prompts
        .iter()
        .map(|prompt| Sequence {
            before: decoder.past(),
            prompt: prompt.len(),
            history: prompt.clone(),
            finish: (options.max_new_tokens == 0).then_some(Finish::Length),
            options,
        })
        .collect();
    if options.max_new_tokens == 0 {
        return Ok((live.into_iter().map(Sequence::done).collect(), timings));
    }

    // All prompts end at the same position.
    let start: Vec<u32> = prompts.iter().map(|p| (longest - p.len()) as u32).collect();
    let mut ids = Vec::with_capacity(prompts.len() * longest);
    for prompt in prompts {
        ids.resize(ids.len() + longest - prompt.len(), options.pad_token);
        ids.extend_from_slice(prompt);
    }

    let begin = Instant::now();
    let mut prefilled = None;
    loop {
        let logits = decoder.step(&ids, &start)?;
        let width = logits.len() / live.len();
        for (index, sequence) in live.iter_mut().enumerate() {
            let row = &logits[index * width..(index + 1) * width];
            sequence.advance(index, row, &mut sampler, on_token)?;
        }
        prefilled.get_or_insert_with(|| begin.elapsed());
        if live.iter().all(|s| s.finish.is_some()) {
            break;
        }
        if decoder.past() >= decoder.context() {
            for sequence in &mut live {
                sequence.finish.get_or_insert(Finish::Context);
            }
            break;
        }
        ids.clear();
        ids.extend(live.iter().map(|s| match (s.finish, s.history.last()) {
            (None, Some(id)) => *id,
            _ => options.pad_token,
        }));
        timings.decode_steps += 1;
    }
    let total = begin.elapsed();
    timings.prefill = prefilled.unwrap_or(total);
    timings.decode = total - timings.prefill;
    Ok((live.into_iter().map(Sequence::done).collect(), timings))
}

/// The longest prompt's length.
fn check_prompts(decoder: &dyn Decoder, prompts: &[Vec<u32>]) -> Result<usize> {
    if prompts.len() != decoder.batch() || prompts.is_empty() {
        return Err(Error::Ids(format!(
            "{} prompts for a session of {} sequences",
            prompts.len(),
            decoder.batch()
        )));
    }
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::Ids(format!("prompt {empty} has no tokens")));
    }
    // The padding of an earlier prompt is not known here.
    if decoder.past() > 0 && prompts.len() > 1 {
        let reset = "a batch cannot be continued with further prompts; reset the session";
        return Err(Error::Ids(reset.to_owned()));
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    if decoder.past() + longest as u64 > decoder.context() {
        return Err(Error::ContextFull {
            context: decoder.context(),
            past: decoder.past(),
            wanted: longest as u64,
        });
    }
    Ok(longest)
}

struct Sequence<'o> {
    /// Positions taken before the prompt.
    before: u64,
    prompt: usize,
    /// The prompt and what was generated.
    history: Vec<u32>,
    finish: Option<Finish>,
    options: &'o GenerateOptions,
}

impl Sequence<'_> {
    fn advance(
        &mut self,
        index: usize,
        logits: &[f32],
        sampler: &mut Sampler,
        on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>,
    ) -> Result<()> {
        if self.finish.is_some() {
            return Ok(());
        }
        let got = self.history.len() - self.prompt;
        let position = self.before + self.history.len() as u64;
        let id = sampler.sample(logits, &self.history, index as u32, position)?;
        self.history.push(id);
        let stop = self.options.stop_tokens.contains(&id);
        let token = NewToken {
            sequence: index,
            id,
            index: got,
            stop,
        };
        let flow = on_token(token);
        self.finish = if stop {
            Some(Finish::Stop)
        } else if flow.is_break() {
            Some(Finish::Cancelled)
        } else if got + 1 >= self.options.max_new_tokens {
            Some(Finish::Length)
        } else {
            None
        };
        Ok(())
    }

    fn done(self) -> Generated {
        Generated {
            tokens: self.history[self.prompt..].to_vec(),
            finish: self.finish.unwrap_or(Finish::Length),
        }
    }
}
