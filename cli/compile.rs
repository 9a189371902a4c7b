//! `kiln compile`

mod summary;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_codegen::{CompileOptions, Compiled, DEFAULT_GRID, Target, compile};
use kiln_ir::{Graph, Packing};
use kiln_models::registry::{EntryOptions, ModelError};
use kiln_models::source::Loaded;

use crate::failure::{Failure, Result};
use crate::hub::OR_HUB;
use crate::interrupt::{self, Interruptible};
use crate::model::{DtypeArgs, ModelArgs, check_tier, companions};
use crate::output::{print, warn};
use crate::progress::Bar;
use crate::stages::{INPUT, Printer, Stages};
use crate::values::{grid, size};

/// What is compiled already is not compiled again.
fn model_help() -> String {
    format!("`demo` (built in), a folder in the Hugging Face layout{OR_HUB}")
}

/// No weights have a type yet.
const DTYPE: &str = "Type in which the large weights are stored. Default: f32";

/// Compile a checkpoint into a folder that runs by itself
///
/// The folder holds kernels in WGSL, packed weights, the launch plan and the
/// tokenizer; copy it to any machine and `kiln run` it there. Compiling needs no
/// GPU. The folder is written whole or not at all, and the same input gives the
/// same bytes. A compiled folder of the same name is replaced; any other, and one
/// to which files were added, is left alone.
#[derive(clap::Args, Debug)]
#[command(mut_arg("model", |model| model.help(model_help())), mut_arg("dtype", |dtype| dtype.help(DTYPE)))]
#[command(after_help = "\
Examples:
  kiln compile path/to/gpt2 -o gpt2.kiln
  kiln compile openai-community/gpt2-medium -o medium.kiln --dtype f16 --max-context 512
  kiln compile demo -o demo.kiln --emit spirv demo-spirv
  kiln compile demo -o demo.kiln --print-after fuse_attention")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The folder to write. A compiled model that is there is replaced
    #[arg(short, long, value_name = "OUT.kiln")]
    output: PathBuf,

    #[command(flatten)]
    dtype: DtypeArgs,

    /// Longest context in tokens, prompt and continuation together. Default: the
    /// model's own, or 4096 where that is longer
    #[arg(long, value_name = "N", value_parser = size, allow_negative_numbers = true)]
    max_context: Option<u64>,

    /// Most sequences in a batch
    #[arg(long, value_name = "N", value_parser = size, allow_negative_numbers = true)]
    #[arg(default_value_t = EntryOptions::default().max_batch)]
    max_batch: u64,

    /// Compile kernels only for this tier (`kiln run --help` lists them); may be given
    /// several times. Default: all of them, but for f32 weights none that begin with
    /// `coop`
    #[arg(long, value_name = "NAME")]
    tier: Vec<String>,

    /// Workgroups of a whole-layer launch: a power of two, at most what the device
    /// can run at once; 0 disables such launches
    #[arg(long, value_name = "N", value_parser = grid, allow_negative_numbers = true)]
    #[arg(default_value_t = DEFAULT_GRID)]
    grid: u32,

    /// Also write each kernel translated to `spirv`, `msl` or `hlsl` into DIR; may be
    /// given several times. Kernels that WebGPU cannot run are written only as SPIR-V
    #[arg(long, num_args = 2, value_names = ["TARGET", "DIR"])]
    emit: Vec<String>,

    /// Print the graph of each entry point after this pass, or with `all` after each
    /// one that changes it; `input` is the graph as built
    #[arg(long, value_name = "PASS|all", value_parser = Stages::parse)]
    print_after: Option<Stages>,
}

/// How long each stage took.
#[derive(Default)]
struct Times {
    read: Duration,
    build: Duration,
    passes: Duration,
    kernels: Duration,
    weights: Duration,
}

pub fn run(args: &Args) -> Result {
    let emit = emissions(&args.emit)?;
    for tier in &args.tier {
        check_tier(tier, args.dtype.dtype.unwrap_or(Packing::F32))?;
    }
    // What stands in the way of writing is told before the work is done.
    Compiled::check_output(&args.output)?;
    let mut times = Times::default();

    let clock = Instant::now();
    let loaded = args.model.open_checkpoint("`compile`")?;
    times.read = clock.elapsed();

    let clock = Instant::now();
    let options = EntryOptions {
        max_context: args.max_context,
        max_batch: args.max_batch,
        ..EntryOptions::default()
    };
    let mut graphs = Vec::new();
    for entry in loaded.model.entries() {
        graphs.push(loaded.model.graph(entry, &options).map_err(wrong_option)?);
    }
    times.build = clock.elapsed();

    let compiled = lower(args, &loaded, &graphs, &options, &mut times)?;
    for (target, folder) in emit {
        translate(&compiled, target, folder)?;
    }
    let clock = Instant::now();
    write(args, &loaded, &compiled)?;
    times.weights = clock.elapsed();
    print(summary::summary(&args.output, &compiled.plan, &times)?)
}

/// Graphs to plan and kernels.
fn lower(
    args: &Args,
    loaded: &Loaded,
    graphs: &[Graph],
    options: &EntryOptions,
    times: &mut Times,
) -> Result<Compiled> {
    // A line that moves would stand among the graphs.
    let _bar = args.print_after.is_none().then(|| Bar::busy("compiling"));
    let compile_options = CompileOptions {
        packing: args.dtype.dtype.unwrap_or(Packing::F32),
        tiers: (!args.tier.is_empty()).then(|| args.tier.clone()),
        grid: args.grid,
        ..CompileOptions::default()
    };
    let mut printer = args.print_after.clone().map(Printer::new);
    let begin = Instant::now();
    let mut clock = begin;
    let mut passes = Duration::ZERO;
    let compiled = compile(
        graphs,
        loaded.info(options),
        &compile_options,
        &mut |entry, pass, graph, changed| {
            if pass != INPUT {
                passes += clock.elapsed();
            }
            if let Some(printer) = &mut printer {
                printer.see(entry, pass, graph, changed);
            }
            clock = Instant::now();
        },
    )?;
    times.passes = passes;
    times.kernels = begin.elapsed().saturating_sub(passes);
    match printer.map_or(Ok(()), Printer::finish) {
        // Whoever read the graphs has seen enough; the model is still to be written.
        Ok(()) | Err(Failure::Closed) => Ok(compiled),
        Err(failure) => Err(failure),
    }
}

/// A size that the model cannot have is told by the option that sets it.
fn wrong_option(error: ModelError) -> Failure {
    match error {
        ModelError::Option {
            option,
            found,
            most: Some(most),
        } => {
            let option = option.replace('_', "-");
            Failure::usage(format!(
                "`--{option} {found}`: this model takes 1 to {most}"
            ))
        }
        other => other.into(),
    }
}

fn write(args: &Args, loaded: &Loaded, compiled: &Compiled) -> Result {
    let companions = companions(loaded)?;
    if let Err(error) = loaded.tokenizer() {
        warn(format_args!(
            "the compiled model will have no tokenizer, so it runs with `--tokens` alone: {error}"
        ));
    }
    let chat = match &loaded.chat {
        Ok(Some(chat)) => chat.template().err().map(|error| error.to_string()),
        Ok(None) => None,
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = chat {
        warn(format_args!(
            "`kiln chat` will not run with the compiled model: {error}"
        ));
    }
    let params = Interruptible(loaded.params.as_ref());
    let bar = Bar::bytes("weights", 0);
    let graceful = interrupt::Graceful::begin();
    let written = compiled.write(&args.output, &params, &companions, &mut |done, total| {
        bar.set(done, total);
    });
    drop(graceful);
    match written {
        Err(_) if interrupt::requested() => Err(Failure::Interrupted),
        written => Ok(written?),
    }
}

/// The pairs of target and folder after `--emit`.
fn emissions(values: &[String]) -> Result<Vec<(Target, &Path)>> {
    let pairs = values
        .chunks_exact(2)
        .map(|pair| match Target::from_name(&pair[0]) {
            Some(target) => Ok((target, Path::new(&pair[1]))),
            None => Err(Failure::usage(format!(
                "`--emit {}` is not possible; the targets are spirv, msl and hlsl",
                pair[0]
            ))),
        });
    pairs.collect()
}

fn translate(compiled: &Compiled, target: Target, folder: &Path) -> Result {
    let files = compiled.translate(target)?;
    for (name, bytes) in files {
        let path = folder.join(name);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
            std::fs::write(&path, bytes)
        };
        write().map_err(|e: std::io::Error| {
            Failure::because(format!("cannot write `{}`", path.display()), e)
        })?;
    }
    Ok(())
}
