//! Times GPT-2 on random weights with Burn's wgpu backend, and writes the report
//! that `peer.py` describes.
//!
//! Modes are the layouts in which Burn stores a linear layer: `row` is its default.

mod gpt2;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use burn::nn::LinearLayout;
use burn::prelude::*;
use burn::tensor::{DType, DeviceKind, FloatDType, TensorData};
use clap::{Parser, ValueEnum};
use gpt2::{CONTEXT, Gpt2, Size, VOCAB};
use serde_json::{Value, json};

/// As in `peer.py`: seconds of work before anything is timed, and the most runs of a
/// case.
const WARM_UP: f64 = 2.0;
const MAX_RUNS: usize = 5;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "gpt2", value_parser = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "tiny"])]
    size: String,
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// `gpu` is the adapter that Burn chooses
    #[arg(long, default_value = "gpu")]
    device: Adapter,
    /// Tokens of a prefill
    #[arg(long, value_parser = numbers, default_value = "128,512,1024")]
    prompts: Numbers,
    /// Tokens before a decode step
    #[arg(long, value_parser = numbers, default_value = "16,512,1000")]
    contexts: Numbers,
    /// Numbers of sequences
    #[arg(long, value_parser = numbers, default_value = "1")]
    batches: Numbers,
    /// Decode steps of a run
    #[arg(long, default_value_t = 16)]
    steps: usize,
    #[arg(long, value_delimiter = ',', default_value = "row,col")]
    modes: Vec<Layout>,
    /// Seconds after which a case starts no further run
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds after which a mode starts no further case
    #[arg(long, default_value_t = 300.0)]
    budget: f64,
    /// Write the report there; `-` is standard output
    #[arg(long, default_value = "-")]
    json: String,
}

/// Not the bare vector, which clap would fill with one value an argument.
#[derive(Clone)]
struct Numbers(Vec<usize>);

/// From `1,2`; nothing gives an empty list.
fn numbers(text: &str) -> Result<Numbers, std::num::ParseIntError> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts.map(str::parse).collect::<Result<_, _>>().map(Numbers)
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Dtype {
    F32,
    F16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Adapter {
    Gpu,
    Cpu,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    Row,
    Col,
}

#[derive(Clone, Copy)]
enum What {
    Prefill,
    Decode,
}

fn size(name: &str) -> Size {
    let (layers, heads, width) = match name {
        "gpt2" => (12, 12, 768),
        "gpt2-medium" => (24, 16, 1024),
        "gpt2-large" => (36, 20, 1280),
        "gpt2-xl" => (48, 25, 1600),
        _ => (2, 4, 128),
    };
    Size {
        layers,
        heads,
        width,
    }
}

/// Ids that are all over the vocabulary, `[batch, seq]`.
fn ids(batch: usize, seq: usize, device: &Device) -> Tensor<2, Int> {
    let id = |i: usize| (i * 104_729 + 17) as i32 % VOCAB as i32;
    let ids: Vec<i32> = (0..batch * seq).map(id).collect();
    Tensor::from_data(TensorData::new(ids, [batch, seq]), device)
}

/// The median seconds of `work`, which ends with its result on the host, and the
/// number of runs, by the rule of `peer.repeat`.
fn repeat(seconds: f64, mut work: impl FnMut() -> Duration) -> (f64, usize) {
    // The first runs compile, and choose among kernels; and the clock of an idle GPU
    // is a fraction of what it reaches in seconds.
    work();
    let warm = Instant::now();
    work();
    while warm.elapsed().as_secs_f64() < WARM_UP {
        work();
    }
    let (clock, mut times) = (Instant::now(), Vec::new());
    while times.is_empty() || clock.elapsed().as_secs_f64() < seconds && times.len() < MAX_RUNS {
        times.push(work().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times.len())
}

/// Panics where the token behind a prompt has other logits than as part of it.
fn check(model: &Gpt2, device: &Device) {
    let whole = ids(1, 17, device);
    let expected = model.step(whole.clone(), &mut model.cache(1, 17));
    let mut cache = model.cache(1, 17);
    model.step(whole.clone().slice([0..1, 0..16]), &mut cache);
    let stepped = model.step(whole.slice([0..1, 16..17]), &mut cache);
    let norm = |t: Tensor<2>| {
        t.cast(FloatDType::F32)
            .powi_scalar(2)
            .sum()
            .sqrt()
            .into_scalar::<f32>()
    };
    let error = norm(stepped - expected.clone()) / norm(expected);
    assert!(error < 2e-2, "logits with the cache are off by {error:e}");
}

/// The seconds of one prompt or step.
fn measure(
    args: &Args,
    model: &Gpt2,
    device: &Device,
    what: What,
    batch: usize,
    length: usize,
) -> (f64, usize) {
    let prompt = ids(batch, length, device);
    let extra = match what {
        What::Prefill => 0,
        What::Decode => args.steps,
    };
    assert!(
        length + extra <= CONTEXT,
        "needs {} positions, the context is {CONTEXT}",
        length + extra
    );
    let mut cache = model.cache(batch, length + extra);
    let next = |logits: Tensor<2>| logits.argmax(1);
    match what {
        What::Prefill => repeat(args.seconds, || {
            cache.past = 0;
            let clock = Instant::now();
            next(model.step(prompt.clone(), &mut cache)).into_data();
            clock.elapsed()
        }),
        What::Decode => {
            let first = next(model.step(prompt, &mut cache));
            first.clone().into_data();
            let (seconds, runs) = repeat(args.seconds, || {
                cache.past = length;
                let mut token = first.clone();
                let clock = Instant::now();
                for _ in 0..args.steps {
                    token = next(model.step(token, &mut cache));
                }
                token.into_data();
                clock.elapsed()
            });
            (seconds / args.steps as f64, runs)
        }
    }
}

/// What a panic said.
fn reason(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    let text = text.unwrap_or_else(|| "a panic without a message".to_owned());
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(300)
        .collect()
}

/// Writes the report so that it is whole whenever this program is stopped.
fn write(path: &str, report: &Value) -> std::io::Result<()> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    // A device or a pipe is written to, not replaced.
    if path.exists() && !path.is_file() {
        return std::fs::write(path, format!("{report}\n"));
    }
    let mut part = path.clone().into_os_string();
    part.push(".part");
    std::fs::write(&part, format!("{report}\n"))?;
    std::fs::rename(part, path)
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let mut device = Device::wgpu(match args.device {
        Adapter::Gpu => DeviceKind::DefaultDevice,
        Adapter::Cpu => DeviceKind::Cpu,
    });
    let (float, bytes, dtype) = match args.dtype {
        Dtype::F32 => (FloatDType::F32, 4, "f32"),
        Dtype::F16 => (FloatDType::F16, 2, "f16"),
    };
    if args.dtype == Dtype::F16 && !device.supports_dtype(DType::F16) {
        return Err(std::io::Error::other(
            "Burn has no f16 on this adapter; `--dtype f32` measures it",
        ));
    }
    device.configure(float).map_err(std::io::Error::other)?;
    let name = device.identity().map_or_else(|| "?".to_owned(), |i| i.name);
    let peer = "Burn 0.22, wgpu";
    eprintln!("{peer}, {} in {dtype} on {name}", args.size);

    let mut report = json!({
        "peer": peer, "device": name, "model": args.size, "dtype": dtype,
        "measured": [], "skipped": [], "complete": false,
    });
    let add = |report: &mut Value, list: &str, case: Value| {
        report[list].as_array_mut().expect("a list").push(case);
    };
    for mode in &args.modes {
        let (mode, layout) = match mode {
            Layout::Row => ("row", LinearLayout::Row),
            Layout::Col => ("col", LinearLayout::Col),
        };
        let began = Instant::now();
        let mut model = None;
        for batch in &args.batches.0 {
            let decode = args.contexts.0.iter().map(|c| (What::Decode, c));
            for (what, length) in decode.chain(args.prompts.0.iter().map(|p| (What::Prefill, p))) {
                let (name, tokens) = match what {
                    What::Prefill => ("prefill", batch * length),
                    What::Decode => ("decode", *batch),
                };
                let mut case =
                    json!({ "mode": mode, "what": name, "batch": batch, "length": length });
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    let spent = began.elapsed().as_secs_f64();
                    assert!(
                        spent < args.budget,
                        "the mode has used its --budget of {} s",
                        args.budget
                    );
                    let model = model.get_or_insert_with(|| {
                        let model = Gpt2::new(size(&args.size), layout, bytes, &device);
                        check(&model, &device);
                        model
                    });
                    measure(&args, model, &device, what, *batch, *length)
                }));
                match outcome {
                    Ok((seconds, runs)) => {
                        let rate = tokens as f64 / seconds;
                        eprintln!(
                            "  {mode} {name} {batch} x {length}: {:.3} ms, {rate:.1} tokens/s, {runs} runs",
                            seconds * 1e3
                        );
                        case["ms"] = json!(seconds * 1e3);
                        case["tokens_per_s"] = json!(rate);
                        case["runs"] = json!(runs);
                        add(&mut report, "measured", case);
                    }
                    Err(panic) => {
                        let reason = reason(panic);
                        eprintln!("  {mode} {name} {batch} x {length}: {reason}");
                        case["reason"] = json!(reason);
                        add(&mut report, "skipped", case);
                    }
                }
                if args.json != "-" {
                    write(&args.json, &report)?;
                }
            }
        }
    }
    report["complete"] = json!(true);
    match args.json.as_str() {
        "-" => println!("{report}"),
        path => write(path, &report)?,
    }
    Ok(())
}
