//! `kiln bench`

mod ceilings;
mod launches;
mod report;
mod trace;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_ir::Packing;
use kiln_runtime::generate::{GenerateOptions, Timings, generate};
use kiln_runtime::{Artifact, Model, Profile, Session};

use crate::device::{DeviceArgs, warn_of_separate_launches};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs};
use crate::out_file::{OutFile, parse_path};
use crate::output::{print, print_line, remark};
use crate::progress::Bar;
use crate::units::ms;
use crate::values::{seconds, size, steps};
use report::{Case, Chosen, Report, Skipped, StartUp};

/// Measure a model on an adapter
///
/// Times the prompt, and the tokens generated after it, for each batch size and prompt
/// length. Reports start-up, peak memory, and for each launch its time, bytes,
/// operations and share of what the device can do at best: that is measured with a
/// copy and a matrix product, and data that stays in a cache can exceed it. Times of
/// prompts and tokens are medians of several runs after a warm-up.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kiln bench demo
  kiln bench --random-weights gpt2 --dtype f16 --json
  kiln bench gpt2.kiln --lengths 512 --batches 1,8 --trace trace.json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Prompt lengths in tokens; those longer than the model's context are left out
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "16,128,512,1000,1024"
    )]
    #[arg(value_parser = size, allow_negative_numbers = true)]
    lengths: Vec<u64>,

    /// Batch sizes
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "1,8,32"
    )]
    #[arg(value_parser = size, allow_negative_numbers = true)]
    batches: Vec<u64>,

    /// New tokens after each prompt
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = steps, allow_negative_numbers = true)]
    steps: u64,

    /// Leave out batch sizes and lengths that would take longer than this, all runs
    /// together, judging by those already measured
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    #[arg(value_parser = seconds, allow_negative_numbers = true)]
    limit: f64,

    /// Length in tokens of the prompt whose launches, and those of the decode step
    /// after it, are timed
    #[arg(long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = size, allow_negative_numbers = true)]
    profile: u64,

    /// How long to keep the device busy before anything is timed: an idle GPU takes
    /// seconds to reach its full clock
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    #[arg(value_parser = seconds, allow_negative_numbers = true)]
    warm_up: f64,

    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,

    /// Also write the launches of a prompt and of a decode step as a trace for
    /// ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE", value_parser = parse_path)]
    trace: Option<PathBuf>,

    #[command(flatten)]
    dtype: DtypeArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs of a case at most, and the seconds after which no further one begins.
const RUNS: usize = 5;
const ENOUGH: f64 = 2.0;

/// Tokens of the prompt of a case's first run, whose time does not count.
const FIRST: u64 = 16;

pub fn run(args: &Args, began: Instant) -> Result {
    let adapter = args.device.adapter("`bench` measures")?;
    // What cannot be written is told before anything is measured.
    args.trace.as_deref().map_or(Ok(()), OutFile::check)?;
    let opened = args.model.open()?;
    let open = began.elapsed();

    let clock = Instant::now();
    let most = args.batches.iter().copied().max().unwrap_or(1);
    let (name, dtype) = (args.model.name(), args.dtype.dtype);
    opened.check_tier(name, dtype, args.device.tier.as_deref())?;
    let artifact = opened.into_artifact(name, &["step"], most as usize, dtype)?;
    let compile = clock.elapsed();

    let clock = Instant::now();
    let model = args
        .device
        .load(&adapter, &artifact, &args.device.options(&["step"]))?;
    let load = clock.elapsed();
    let bench = Bench {
        args,
        model: &model,
        max_context: artifact.plan().model.max_context,
        max_batch: max_batch(&artifact, model.tier())?,
        vocab: artifact.plan().model.vocab_size,
    };
    let clock = Instant::now();
    bench.once(
        &mut bench.session(1, 16)?,
        16.min(bench.max_context / 2).max(1),
        1,
    )?;
    let start_up = StartUp {
        open_ms: ms(open),
        compile_ms: artifact.path().is_none().then(|| ms(compile)),
        load_ms: ms(load),
        first_token_ms: ms(clock.elapsed()),
    };

    bench.warm_up()?;
    let (cases, skipped) = bench.cases()?;
    let peak = report::peak_memory();
    let packing = Packing::from_name(&artifact.plan().model.weight_dtype);
    let bar = Bar::busy("measuring what the device can do");
    let ceilings = ceilings::measure(&adapter, model.tier(), packing.unwrap_or(Packing::F32))?;
    drop(bar);
    let (prefill, decode) = bench.profiles()?;
    let faster = model
        .faster_kernels()
        .map(|(variant, usual, kernel)| Chosen {
            variant: variant.to_owned(),
            usual: usual.to_owned(),
            kernel: kernel.to_owned(),
        });
    let report = Report {
        model: name.to_owned(),
        dtype: artifact.plan().model.weight_dtype.clone(),
        device: adapter.to_string(),
        driver: adapter.driver(),
        tier: model.tier().to_owned(),
        joined: model.joins(),
        faster_kernels: faster.collect(),
        weight_bytes: model.weight_bytes(),
        peak_host_bytes: peak,
        start_up,
        cases,
        skipped,
        prefill: launches::Launches::new(&prefill, &ceilings),
        decode: launches::Launches::new(&decode, &ceilings),
        ceilings,
    };
    let printed = match args.json {
        true => print_line(serde_json::to_string(&report)?),
        false => print(report),
    };
    // Neither keeps the other from being written.
    let tracks = [("prefill", &prefill), ("decode", &decode)];
    let traced = args.trace.as_deref().map(|path| write_trace(path, &tracks));
    traced.unwrap_or(Ok(())).and(printed)
}

fn write_trace(path: &Path, tracks: &[(&str, &Profile)]) -> Result {
    let mut file = OutFile::create(path)?;
    file.write(trace::trace(tracks).to_string().as_bytes())?;
    file.finish()?;
    remark(format_args!("wrote `{}`", path.display()));
    Ok(())
}

/// The most sequences that the tier's `step` takes.
fn max_batch(artifact: &Artifact, tier: &str) -> Result<u64> {
    let tier = artifact.tier(tier)?;
    let own = tier.entries.get("step").into_iter();
    let own = own.flat_map(|e| &e.symbols);
    let mut symbols = own.chain(&artifact.plan().symbols);
    let batch = symbols.find(|s| s.name.name() == "batch");
    Ok(batch.map_or(1, |s| s.max))
}

struct Bench<'a> {
    args: &'a Args,
    model: &'a Model,
    max_context: u64,
    max_batch: u64,
    vocab: u64,
}

impl Bench<'_> {
    /// A session in which `steps` tokens fit after a prompt.
    fn session(&self, batch: u64, length: u64) -> Result<Session<'_>> {
        let context = (length + self.args.steps + 1).min(self.max_context);
        Ok(Session::new(self.model, batch as usize, context)?)
    }

    /// One run: a prompt of `length` tokens, and `new` more.
    fn once(&self, session: &mut Session<'_>, length: u64, new: u64) -> Result<Timings> {
        interrupt::check()?;
        session.reset();
        let prompts: Vec<Vec<u32>> = (0..session.batch() as u64)
            .map(|sequence| self.ids(sequence, length))
            .collect();
        let options = GenerateOptions {
            max_new_tokens: new as usize,
            ..GenerateOptions::default()
        };
        let go_on = &mut |_| match interrupt::requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let (_, timings) = generate(session, &prompts, &options, go_on)?;
        Ok(timings)
    }

    /// Keeps the device at work for a while.
    fn warm_up(&self) -> Result {
        let _bar = Bar::busy("warming up");
        let length = self.args.profile.min(self.max_context / 2).max(1);
        let mut session = self.session(1, length)?;
        let clock = Instant::now();
        while clock.elapsed().as_secs_f64() < self.args.warm_up {
            self.once(&mut session, length, 2)?;
        }
        Ok(())
    }

    /// Token ids that are all over the vocabulary, the same in every run.
    fn ids(&self, sequence: u64, length: u64) -> Vec<u32> {
        let ids = (0..length).map(|i| (sequence * 7919 + i * 104_729 + 17) % self.vocab.max(1));
        ids.map(|id| id as u32).collect()
    }

    fn cases(&self) -> Result<(Vec<Case>, Vec<Skipped>)> {
        let mut done: Vec<Case> = Vec::new();
        let mut skipped = Vec::new();
        let graceful = interrupt::Graceful::begin();
        let (batches, lengths) = (&self.args.batches, &self.args.lengths);
        let (mut number, all) = (0, batches.len() * lengths.len());
        for batch in batches {
            for length in lengths {
                let (batch, length) = (*batch, *length);
                number += 1;
                let mut skip = |reason| {
                    skipped.push(Skipped {
                        batch,
                        length,
                        reason,
                    })
                };
                if length > self.max_context {
                    skip(format!("the context is {}", self.max_context));
                } else if batch > self.max_batch {
                    skip(format!("compiled for batches up to {}", self.max_batch));
                } else if let Some(seconds) = self.too_long(&done, batch, length) {
                    skip(format!(
                        "about {seconds:.1} s, over --limit {}",
                        self.args.limit
                    ));
                } else {
                    let bar = format!("case {number} of {all}: {batch} x {length}");
                    match self.case(batch, length, Bar::busy(&bar)) {
                        Ok(case) => done.push(case),
                        Err(Failure::Failed(error)) => skip(error.to_string()),
                        Err(other) => return Err(other),
                    }
                }
            }
        }
        drop(graceful);
        skipped.sort_by(|a, b| a.reason.cmp(&b.reason));
        Ok((done, skipped))
    }

    /// How long a case would take, if that is over the limit.
    fn too_long(&self, done: &[Case], batch: u64, length: u64) -> Option<f64> {
        let steps = self.args.steps.min(self.max_context - length);
        let seconds = estimate(done, batch, length, steps)?;
        (seconds > self.args.limit).then_some(seconds)
    }

    /// Medians over several runs.
    fn case(&self, batch: u64, length: u64, bar: Bar) -> Result<Case> {
        let mut session = self.session(batch, length)?;
        let new = (session.context() - length + 1).min(self.args.steps + 1);
        // The first run of a size may compile, or map memory.
        self.once(&mut session, length.min(FIRST), 2.min(new))?;
        let clock = Instant::now();
        let enough = ENOUGH.min(self.args.limit);
        let mut runs = Vec::new();
        while runs.len() < RUNS && (runs.is_empty() || clock.elapsed().as_secs_f64() < enough) {
            runs.push(self.once(&mut session, length, new)?);
        }
        drop(bar);
        warn_of_separate_launches(self.model, &session);
        let prefill = median(runs.iter().map(|t| t.prefill.as_secs_f64()));
        let step = median(
            runs.iter()
                .filter(|t| t.decode_steps > 0)
                .map(|t| t.decode.as_secs_f64() / t.decode_steps as f64),
        );
        Ok(Case {
            batch,
            length,
            prefill_ms: prefill * 1e3,
            prefill_tokens_per_s: (batch * length) as f64 / prefill,
            decode_ms: (new > 1).then_some(step * 1e3),
            decode_tokens_per_s: (new > 1).then_some(batch as f64 / step),
            runs: runs.len(),
        })
    }

    /// The launches of a prompt, and of the step after it.
    fn profiles(&self) -> Result<(Profile, Profile)> {
        let _bar = Bar::busy("timing launches");
        let most = self.max_context.saturating_sub(2).max(1);
        let length = self.args.profile.min(most);
        let mut session = self.session(1, length)?;
        self.once(&mut session, length, 2)?;
        session.reset();
        let prefill = session.profile_step(&self.ids(0, length), &[0])?;
        let decode = session.profile_step(&self.ids(1, 1), &[0])?;
        Ok((prefill, decode))
    }
}

/// About how many seconds a case takes, its first run and its repetitions included,
/// judged by what was measured: the best rate of prompts, and the slowest step of those
/// that are no larger. Before there is any, nothing is known.
fn estimate(done: &[Case], batch: u64, length: u64, steps: u64) -> Option<f64> {
    let rate = done.iter().map(|c| c.prefill_tokens_per_s);
    let rate = rate.reduce(f64::max).filter(|rate| *rate > 0.0)?;
    let smaller = done
        .iter()
        .filter(|c| c.batch <= batch && c.length <= length);
    let step = smaller.filter_map(|c| c.decode_ms).fold(0.0, f64::max) * 1e-3;
    let prompt = |tokens: u64| (batch * tokens) as f64 / rate;
    let run = prompt(length) + steps as f64 * step;
    let runs = (ENOUGH / run).ceil().clamp(1.0, RUNS as f64);
    let first = prompt(length.min(FIRST)) + step * steps.min(1) as f64;
    Some(first + runs * run)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(batch: u64, length: u64, prefill_tokens_per_s: f64, decode_ms: f64) -> Case {
        Case {
            batch,
            length,
            prefill_ms: 0.0,
            prefill_tokens_per_s,
            decode_ms: Some(decode_ms),
            decode_tokens_per_s: None,
            runs: 1,
        }
    }

    #[test]
    fn an_estimate_counts_steps_and_repetitions() {
        assert_eq!(estimate(&[], 1, 100, 10), None);
        let done = [case(1, 16, 50.0, 100.0), case(4, 16, 100.0, 200.0)];
        let near = |found: Option<f64>, wanted: f64| {
            let found = found.unwrap();
            assert!((found - wanted).abs() < 1e-9, "{found}, not {wanted}");
        };
        // 10 s of prompt and 20 steps of 0.1 s, once; before it 16 tokens and a step.
        near(estimate(&done, 1, 1000, 20), 12.0 + 0.26);
        // Those of a larger batch take as long as the largest that is known.
        near(estimate(&done, 8, 1000, 20), 84.0 + 1.28 + 0.2);
        // A run of half a second is done four times.
        near(estimate(&done, 1, 50, 0), 4.0 * 0.5 + 0.16);
        // A short one as often as any.
        near(estimate(&done, 1, 10, 0), 5.0 * 0.1 + 0.1);
    }
}
