//! `kiln bench`

mod ceilings;
mod launches;
mod report;
mod trace;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_ir::Packing;
use kiln_runtime::generate::{GenerateOptions, Timings, generate};
use kiln_runtime::{Artifact, Model, Session};

use crate::device::{DeviceArgs, Target, warn_of_separate_launches};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs};
use crate::output::{print, print_line, remark};
use crate::units::ms;
use report::{Case, Chosen, Report, Skipped, StartUp};

/// Measure a model on an adapter
///
/// For each batch and each prompt length: the time of the prompt, and of the
/// tokens that follow it. Then start-up, peak memory, and the time of each launch
/// with its bytes, operations and share of the device's ceilings (a copy and a
/// matrix product, measured too; data that stays in a cache can exceed the
/// copy). Times of prompts and tokens are medians of several runs after a
/// warm-up.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kiln bench demo
  kiln bench --random-weights gpt2 --dtype f16 --json
  kiln bench gpt2.kiln --lengths 512 --batches 1,8 --trace trace.json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Prompt lengths, in tokens; those beyond the model's context are left out
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [16, 128, 512, 1000, 1024])]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    lengths: Vec<u64>,

    /// Numbers of sequences
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 8, 32])]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    batches: Vec<u64>,

    /// New tokens behind each prompt
    #[arg(long, value_name = "N", default_value_t = 16)]
    steps: u64,

    /// Leave out what would take longer than this, judged by what was measured
    /// before
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    limit: f64,

    /// The prompt whose launches are timed, in tokens, and of the step behind it
    #[arg(long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    profile: u64,

    /// How long the device works before anything is timed: an idle GPU's clock is a
    /// fraction of what it reaches in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    warm_up: f64,

    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,

    /// Write the launches of a prompt and of a decode step as a trace for
    /// ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    #[command(flatten)]
    dtype: DtypeArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs of a case at most, and how long they may take together.
const RUNS: usize = 5;
const ENOUGH: Duration = Duration::from_secs(2);

pub fn run(args: &Args, began: Instant) -> Result {
    let Target::Adapter(adapter) = args.device.select()? else {
        return Err(Failure::failed(
            "`bench` measures an adapter, and the interpreter is none; `kiln devices` lists what there is",
        ));
    };
    let opened = args.model.open()?;
    let open = began.elapsed();

    let clock = Instant::now();
    let most = args.batches.iter().copied().max().unwrap_or(1);
    let (name, dtype) = (args.model.name(), args.dtype.dtype);
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
    let ceilings = ceilings::measure(&adapter, model.tier(), packing.unwrap_or(Packing::F32))?;
    let (prefill, decode) = bench.profiles()?;
    if let Some(path) = &args.trace {
        trace::write(path, &[("prefill", &prefill), ("decode", &decode)])?;
        remark(format_args!("wrote `{}`", path.display()));
    }
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
    match args.json {
        true => print_line(serde_json::to_string(&report)?),
        false => print(report),
    }
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
    /// A session in which `steps` tokens fit behind a prompt.
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
        for batch in &self.args.batches {
            for length in &self.args.lengths {
                let (batch, length) = (*batch, *length);
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
                        "about {seconds:.0} s, over --limit {}",
                        self.args.limit
                    ));
                } else {
                    match self.case(batch, length) {
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

    /// How long a run would take, if that is over the limit.
    fn too_long(&self, done: &[Case], batch: u64, length: u64) -> Option<f64> {
        let rates = done.iter().map(|c| c.prefill_tokens_per_s);
        let rate = rates.fold(0.0, f64::max);
        let seconds = (batch * length) as f64 / rate;
        (rate > 0.0 && seconds > self.args.limit).then_some(seconds)
    }

    /// Medians over several runs.
    fn case(&self, batch: u64, length: u64) -> Result<Case> {
        let mut session = self.session(batch, length)?;
        let new = (session.context() - length + 1).min(self.args.steps + 1);
        // The first run of a size may compile, or map memory.
        self.once(&mut session, length.min(16), 2.min(new))?;
        let clock = Instant::now();
        let mut runs = Vec::new();
        while runs.len() < RUNS && (runs.is_empty() || clock.elapsed() < ENOUGH) {
            runs.push(self.once(&mut session, length, new)?);
        }
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

    /// The launches of a prompt, and of the step behind it.
    fn profiles(&self) -> Result<(kiln_runtime::Profile, kiln_runtime::Profile)> {
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

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
