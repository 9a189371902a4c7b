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

    /// Forgets every position from `past` on, so that other tokens can follow those
    /// before it.
    ///
    /// # Errors
    /// When fewer positions are taken.
    fn rewind(&mut self, past: u64) -> Result<()>;

    /// Runs a generation until it wants no more tokens or the context is full:
    /// appends its prompts, then one token to every sequence after another. At
    /// its end all tokens but the last were appended.
    ///
    /// As provided, [`sample_on_host`]; a decoder that chooses tokens by itself
    /// chooses those that the [`Sampler`] would.
    ///
    /// # Errors
    /// When a step fails or a sequence has no finite logit.
    fn run(&mut self, generation: &mut Generation<'_>) -> Result<()> {
        sample_on_host(self, generation)
    }
}

/// Runs a generation with [`Decoder::step`] and a [`Sampler`].
///
/// # Errors
/// When a step fails or a sequence has no finite logit.
pub fn sample_on_host<D: Decoder + ?Sized>(
    decoder: &mut D,
    generation: &mut Generation<'_>,
) -> Result<()> {
    let pad = generation.options.pad_token;
    let start = generation.start.clone();
    let mut ids = generation.ids.clone();
    if generation.is_cancelled() {
        generation.cancel();
        return Ok(());
    }
    loop {
        let logits = decoder.step(&ids, &start)?;
        let tokens = generation.sample(&logits)?;
        if !generation.accept(&tokens) || decoder.past() >= decoder.context() {
            return Ok(());
        }
        ids.clear();
        let fed = tokens.iter().enumerate();
        ids.extend(fed.map(|(i, id)| if generation.is_live(i) { *id } else { pad }));
    }
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
    /// Tokens that a sequence's prompt goes on from, which the decoder has taken before. They
    /// count for a penalty on repetition; nothing else depends on them.
    pub history: Vec<u32>,
    /// Fed where a sequence has no token: before a short prompt and after an end.
    /// Any of the vocabulary; which it is influences nothing.
    pub pad_token: u32,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 128,
            sampling: SamplingOptions::default(),
            stop_tokens: Vec::new(),
            history: Vec::new(),
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
    /// A callback asked for it.
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
    /// The prompts, up to the first new tokens; zero if there is none.
    pub prefill: Duration,
    /// All further tokens.
    pub decode: Duration,
    /// Tokens of the prompts, without padding.
    pub prompt_tokens: usize,
    /// Steps behind the first, each one token for every sequence.
    pub decode_steps: usize,
}

/// Continues a batch of prompts. `on_token` sees every token and ends its sequence
/// with [`ControlFlow::Break`].
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
    generate_while(decoder, prompts, options, &|| true, on_token)
}

/// [`generate`] for somebody who may no longer want it while the prompts are read. `wanted` is
/// asked before that, and by a [`Session`](crate::Session) that chooses tokens on its device
/// between the pieces of long prompts as well; where it says no, every sequence is
/// [`Finish::Cancelled`] without a token, and the decoder as it was. Later `on_token` decides.
///
/// # Errors
/// As [`generate`].
pub fn generate_while(
    decoder: &mut dyn Decoder,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    wanted: &dyn Fn() -> bool,
    on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>,
) -> Result<(Vec<Generated>, Timings)> {
    let longest = check_prompts(decoder, prompts)?;
    let past = decoder.past();
    let mut generation = Generation::new(past, prompts, longest, options, wanted, on_token)?;
    if options.max_new_tokens > 0 {
        decoder.run(&mut generation)?;
    }
    Ok(generation.done())
}

/// Refuses to go back to a position that was not reached; [`Decoder::rewind`]'s check.
///
/// # Errors
/// [`Error::Rewind`].
pub fn check_rewind(taken: u64, to: u64) -> Result<()> {
    match to <= taken {
        true => Ok(()),
        false => Err(Error::Rewind { taken, to }),
    }
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

/// A batch of sequences on their way: what a [`Decoder`] runs.
pub struct Generation<'g> {
    options: &'g GenerateOptions,
    is_wanted: &'g dyn Fn() -> bool,
    on_token: &'g mut dyn FnMut(NewToken) -> ControlFlow<()>,
    sampler: Sampler,
    sequences: Vec<Sequence>,
    /// The prompts, padded on the left to the longest.
    ids: Vec<u32>,
    start: Vec<u32>,
    begin: Instant,
    /// Tokens that every sequence was offered.
    steps: usize,
    timings: Timings,
}

struct Sequence {
    /// The position of the first token of `history`, padding not counted.
    before: u64,
    /// Where in `history` the prompt ends.
    prompt: usize,
    /// What was before the prompt, the prompt, and what was generated.
    history: Vec<u32>,
    finish: Option<Finish>,
}

impl<'g> Generation<'g> {
    fn new(
        past: u64,
        prompts: &[Vec<u32>],
        longest: usize,
        options: &'g GenerateOptions,
        is_wanted: &'g dyn Fn() -> bool,
        on_token: &'g mut dyn FnMut(NewToken) -> ControlFlow<()>,
    ) -> Result<Self> {
        let mut ids = Vec::with_capacity(prompts.len() * longest);
        let mut start = Vec::with_capacity(prompts.len());
        let mut sequences = Vec::with_capacity(prompts.len());
        let earlier = options.history.as_slice();
        let Some(before) = past.checked_sub(earlier.len() as u64) else {
            return Err(Error::Ids(format!(
                "a history of {} tokens for a decoder that has taken {past}",
                earlier.len()
            )));
        };
        for prompt in prompts {
            let padding = longest - prompt.len();
            start.push(padding as u32);
            ids.resize(ids.len() + padding, options.pad_token);
            ids.extend_from_slice(prompt);
            let history = [earlier, prompt].concat();
            sequences.push(Sequence {
                before,
                prompt: history.len(),
                history,
                finish: (options.max_new_tokens == 0).then_some(Finish::Length),
            });
        }
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        Ok(Generation {
            sampler: Sampler::new(options.sampling.clone())?,
            options,
            is_wanted,
            on_token,
            sequences,
            ids,
            start,
            begin: Instant::now(),
            steps: 0,
            timings: Timings {
                prompt_tokens,
                ..Timings::default()
            },
        })
    }

    /// What was asked for.
    pub fn options(&self) -> &'g GenerateOptions {
        self.options
    }

    /// Whether it is to end before it has begun.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.steps == 0 && !(self.is_wanted)()
    }

    /// Ends every sequence.
    pub(crate) fn cancel(&mut self) {
        for sequence in &mut self.sequences {
            sequence.finish.get_or_insert(Finish::Cancelled);
        }
    }

    pub(crate) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The prompts' tokens, one sequence after the other, each padded on the left
    /// to the longest.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What is to be fed next: the prompts, or the last token of each sequence, padding
    /// for those that ended.
    pub(crate) fn next_ids(&self) -> Vec<u32> {
        if self.steps == 0 {
            return self.ids.clone();
        }
        let pad = self.options.pad_token;
        let last = |s: &Sequence| match s.finish {
            Some(_) => pad,
            None => s.history.last().copied().unwrap_or(pad),
        };
        self.sequences.iter().map(last).collect()
    }

    /// How many more tokens each sequence may get.
    pub(crate) fn wanted(&self) -> u64 {
        self.options.max_new_tokens.saturating_sub(self.steps) as u64
    }

    /// How many tokens of each sequence are padding.
    pub fn start(&self) -> &[u32] {
        &self.start
    }

    /// What came before a sequence's prompt, its prompt and what it got, without padding.
    pub fn history(&self, sequence: usize) -> &[u32] {
        &self.sequences[sequence].history
    }

    /// The position of a sequence's next token, padding not counted.
    pub fn position(&self, sequence: usize) -> u64 {
        let sequence = &self.sequences[sequence];
        sequence.before + sequence.history.len() as u64
    }

    /// Whether a sequence wants more tokens.
    pub fn is_live(&self, sequence: usize) -> bool {
        self.sequences[sequence].finish.is_none()
    }

    /// A token for each sequence, padding for those that ended, from the logits
    /// of all.
    fn sample(&mut self, logits: &[f32]) -> Result<Vec<u32>> {
        let width = logits.len() / self.sequences.len();
        if width == 0 {
            return Err(Error::other("the decoder gave no logits"));
        }
        let mut tokens = Vec::with_capacity(self.sequences.len());
        for (index, row) in logits.chunks_exact(width).enumerate() {
            let sequence = &self.sequences[index];
            tokens.push(match sequence.finish {
                Some(_) => self.options.pad_token,
                None => {
                    let position = self.position(index);
                    let history = &self.sequences[index].history;
                    self.sampler.sample(row, history, index as u32, position)?
                }
            });
        }
        Ok(tokens)
    }

    /// Takes the next token of every sequence; those of sequences that ended are
    /// not looked at. The result is whether any wants more.
    pub fn accept(&mut self, tokens: &[u32]) -> bool {
        if self.steps == 0 {
            self.timings.prefill = self.begin.elapsed();
        }
        self.steps += 1;
        for (index, (sequence, id)) in self.sequences.iter_mut().zip(tokens).enumerate() {
            if sequence.finish.is_some() {
                continue;
            }
            let got = sequence.history.len() - sequence.prompt;
            sequence.history.push(*id);
            let stop = self.options.stop_tokens.contains(id);
            let flow = (self.on_token)(NewToken {
                sequence: index,
                id: *id,
                index: got,
                stop,
            });
            sequence.finish = if stop {
                Some(Finish::Stop)
            } else if flow.is_break() {
                Some(Finish::Cancelled)
            } else if got + 1 >= self.options.max_new_tokens {
                Some(Finish::Length)
            } else {
                None
            };
        }
        self.sequences.iter().any(|s| s.finish.is_none())
    }

    fn done(mut self) -> (Vec<Generated>, Timings) {
        if self.steps > 1 {
            self.timings.decode_steps = self.steps - 1;
            self.timings.decode = self.begin.elapsed() - self.timings.prefill;
        }
        let generated = self.sequences.into_iter().map(|sequence| Generated {
            tokens: sequence.history[sequence.prompt..].to_vec(),
            // A decoder ends early only where its context does.
            finish: sequence.finish.unwrap_or(Finish::Context),
        });
        (generated.collect(), self.timings)
    }
}
