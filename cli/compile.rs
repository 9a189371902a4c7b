//! `kiln compile`

mod summary;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_codegen::{CompileOptions, Compiled, DEFAULT_GRID, Target, compile};
use kiln_ir::{Graph, Packing};
use kiln_models::registry::EntryOptions;
use kiln_models::source::Loaded;

use crate::failure::{Failure, Result};
use crate::interrupt::{self, Interruptible};
use crate::model::{DtypeArgs, ModelArgs};
use crate::output::print;
use crate::progress::Bar;
use crate::stages::{INPUT, Printer, Stages};

/// Compile a checkpoint into a folder that runs by itself
///
/// The folder holds kernels in WGSL, packed weights, the launch plan and the
/// tokenizer; copy it to any machine and `kiln run` it there. Compiling needs no
/// GPU. The folder is written whole or not at all, and the same input gives the
/// same bytes. A compiled folder of the same name is replaced; any other, and one
/// to which files were added, is left alone.
#[derive(clap::Args, Debug)]
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

    /// Longest context, in tokens: prompt and continuation together. Default: the
    /// model's own
    #[arg(long, value_name = "N")]
    max_context: Option<u64>,

    /// Most sequences at a time
    #[arg(long, value_name = "N", default_value_t = EntryOptions::default().max_batch)]
    max_batch: u64,

    /// Compile kernels only for this tier; may be given several times. Default: all but
    /// `coop-lavapipe` and `coop-lavapipe-scalars`; in f32 none that begin with `coop`
    #[arg(long, value_name = "NAME")]
    tier: Vec<String>,

    /// Workgroups of the launches that run a whole layer for a single token, a power
    /// of two: no more than the device runs at once. 0 for no such launches
    #[arg(long, value_name = "N", default_value_t = DEFAULT_GRID)]
    grid: u32,

    /// Write each kernel translated to `spirv`, `msl` or `hlsl` too, into DIR; may
    /// be given several times. Those that WebGPU cannot run are in `spirv` alone
    #[arg(long, num_args = 2, value_names = ["TARGET", "DIR"])]
    emit: Vec<String>,

    /// Print each entry's graph after this pass, or after each one that changes
    /// it; `input` is the graph as built
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
        graphs.push(loaded.model.graph(entry, &options)?);
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
    let _bar = Bar::busy("compiling");
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
    printer.map_or(Ok(()), Printer::finish)?;
    Ok(compiled)
}

fn write(args: &Args, loaded: &Loaded, compiled: &Compiled) -> Result {
    let tokenizer = loaded.tokenizer.as_ref().map(|t| t.to_json()).transpose()?;
    let params = Interruptible(loaded.params.as_ref());
    let bar = Bar::bytes("weights", 0);
    let graceful = interrupt::Graceful::begin();
    let written = compiled.write(
        &args.output,
        &params,
        tokenizer.as_deref(),
        &mut |done, total| {
            bar.set(done, total);
        },
    );
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
                "`--emit {}`: the targets are spirv, msl and hlsl",
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
