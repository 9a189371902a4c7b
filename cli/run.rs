//! `kiln run`

mod printer;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kiln_models::tokenizer::Tokenizer;
use kiln_runtime::generate::{Finish, GenerateOptions, Generated, NewToken, Timings, generate};
use kiln_runtime::sampling::SamplingOptions;
use kiln_runtime::{Decoder, LoadOptions, Session};
use serde_json::{Value, json};

use crate::device::{DeviceArgs, Target, warn_of_separate_launches};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs};
use crate::output::{print_line, remark};
use crate::units::ms;
use printer::{Mode, Printer};

/// Continue a text
///
/// The continuation goes to standard output as it is generated. A model that is
/// not compiled is compiled in memory first. Without sampling options the most
/// likely token is taken each time, so the same prompt gives the same text.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kiln run demo --prompt \"Ownership is\"
  kiln run gpt2.kiln --prompt \"Once upon a time\" --temperature 0.8 --top-p 0.95 --seed 7
  kiln run gpt2.kiln --prompt Monday --prompt Tuesday --max-new-tokens 20
  kiln run gpt2.kiln --tokens 464,3290 --json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The text to continue. Given several times, the texts are continued
    /// together, as one batch
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "tokens",
        conflicts_with = "tokens"
    )]
    prompt: Vec<String>,

    /// The token ids to continue, as `1,2,3`; the answer is ids too. Given
    /// several times, they are continued as one batch
    #[arg(long, value_name = "IDS", value_parser = parse_ids)]
    tokens: Vec<Ids>,

    /// End after this many new tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,

    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,

    /// Go on after the model's end-of-text token
    #[arg(long)]
    ignore_eos: bool,

    /// After the answer, print one line of JSON: `tokens` (the new ids), `text`,
    /// `finish` and `timings` in milliseconds; with several prompts these are in
    /// `sequences`
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    dtype: DtypeArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// How tokens are chosen.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// 0 takes the most likely token; 1 draws by the model's probabilities;
    /// more is bolder
    #[arg(
        long,
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    temperature: f32,

    /// Draw among the N most likely tokens; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,

    /// Draw among the most likely tokens that together have this probability
    #[arg(
        long,
        value_name = "F",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    top_p: f32,

    /// Drop tokens less likely than this share of the most likely one
    #[arg(
        long,
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    min_p: f32,

    /// Make tokens that occurred less likely, by this factor; 1 changes nothing
    #[arg(
        long,
        value_name = "F",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    repetition_penalty: f32,

    /// Which random numbers to draw; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    fn options(&self) -> Result<SamplingOptions> {
        let options = SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        match options.validate() {
            Ok(()) => Ok(options),
            Err(error) => Err(Failure::usage(error.to_string())),
        }
    }
}

/// A sequence of token ids.
pub type Ids = Vec<u32>;

/// Reads `1,2,3`.
pub fn parse_ids(text: &str) -> std::result::Result<Ids, String> {
    let ids = text.split(',').map(|id| {
        let id = id.trim();
        id.parse::<u32>()
            .map_err(|_| format!("`{id}` is no token id; ids are numbers, as in `1,2,3`"))
    });
    ids.collect()
}

pub fn run(args: &Args, began: Instant) -> Result {
    let sampling = args.sampling.options()?;
    let target = args.device.select()?;
    let opened = args.model.open()?;
    let tokenizer = opened.tokenizer()?;
    let info = opened.info();
    let prompts = prompts(args, tokenizer.as_ref())?;
    let batch = prompts.len();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) as u64;
    let context = context(longest, args.max_new_tokens, info.max_context)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling,
        stop_tokens: match args.ignore_eos {
            true => Vec::new(),
            false => info.eos_tokens.clone(),
        },
        pad_token: 0,
    };
    let mut job = Job {
        args,
        tokenizer: tokenizer.as_ref(),
        prompts: &prompts,
        options,
        began,
    };
    let name = args.model.name();
    let (entries, dtype) = (["step"], args.dtype.dtype);
    match target {
        Target::Adapter(adapter) => {
            let artifact = opened.into_artifact(name, &entries, batch, dtype)?;
            refuse_headless(name, has_logits(&artifact)?)?;
            let load = LoadOptions {
                draw: job.options.sampling.temperature > 0.0,
                ..args.device.options(&entries)
            };
            let load = load.session(batch as u64, longest);
            let model = args.device.load(&adapter, &artifact, &load)?;
            // The session needs no more than the model has on the device.
            drop(artifact);
            let mut session = Session::new(&model, batch, context)?;
            job.run(&mut session, &adapter.to_string(), Some(model.tier()))?;
            warn_of_separate_launches(&model, &session);
            Ok(())
        }
        Target::Interpreter => {
            let model = opened.into_interpretable(name, &entries, batch, dtype)?;
            let outputs = model.graphs.values().flat_map(|g| g.outputs());
            refuse_headless(name, outputs.into_iter().any(|(name, _)| name == "logits"))?;
            let mut session = model.session(batch, context)?;
            job.run(&mut session, "the reference interpreter", None)
        }
    }
}

/// Whether steps give logits, which is the same on every tier.
fn has_logits(artifact: &kiln_runtime::Artifact) -> Result<bool> {
    let Some(any) = artifact.plan().tiers.first() else {
        return Ok(false);
    };
    let tier = artifact.tier(&any.name)?;
    let mut outputs = tier
        .entries
        .get("step")
        .into_iter()
        .flat_map(|e| &e.outputs);
    Ok(outputs.any(|o| o.name == "logits"))
}

fn refuse_headless(name: &str, has_logits: bool) -> Result {
    match has_logits {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "`{name}` has no head, so it cannot continue a text; `kiln forward` gives its hidden states"
        ))),
    }
}

/// The prompts as token ids.
fn prompts(args: &Args, tokenizer: Option<&Tokenizer>) -> Result<Vec<Ids>> {
    if !args.tokens.is_empty() {
        if !args.stop.is_empty() && tokenizer.is_none() {
            return Err(no_tokenizer(args.model.name(), "--stop"));
        }
        return Ok(args.tokens.clone());
    }
    let tokenizer = tokenizer.ok_or_else(|| no_tokenizer(args.model.name(), "--prompt"))?;
    encode(tokenizer, &args.prompt)
}

/// Texts as token ids, none of them empty.
pub fn encode(tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<Ids>> {
    let mut out = Vec::new();
    for text in texts {
        let ids = tokenizer.encode(text)?;
        if ids.is_empty() {
            let begin = match tokenizer.eos_id().map(|id| tokenizer.decode(&[id])) {
                Some(Ok(eos)) => format!(", or `{eos}` for a text from the beginning"),
                _ => String::new(),
            };
            return Err(Failure::failed(format!(
                "the prompt `{text}` has no tokens; give some text{begin}"
            )));
        }
        out.push(ids);
    }
    Ok(out)
}

/// That a model cannot do with texts.
pub fn no_tokenizer(name: &str, option: &str) -> Failure {
    Failure::failed(format!(
        "`{name}` has no tokenizer, so `{option}` cannot be used; give `--tokens`, or put a \
         `tokenizer.json` into the checkpoint's folder and compile it again"
    ))
}

/// The positions that a session needs: the longest prompt and what follows,
/// as far as the model goes.
fn context(longest: u64, new: usize, max: u64) -> Result<u64> {
    if longest > max {
        return Err(Failure::failed(format!(
            "the prompt has {longest} tokens, the model takes {max} at most; shorten it, or compile \
             the model with a larger --max-context if it allows one"
        )));
    }
    Ok(longest.saturating_add(new as u64).min(max).max(1))
}

/// What is to be generated, apart from by whom.
struct Job<'a> {
    args: &'a Args,
    tokenizer: Option<&'a Tokenizer>,
    prompts: &'a [Ids],
    options: GenerateOptions,
    began: Instant,
}

impl Job<'_> {
    fn run(&mut self, decoder: &mut dyn Decoder, device: &str, tier: Option<&str>) -> Result {
        let load = self.began.elapsed();
        let mode = match self.args.tokens.is_empty() {
            true => Mode::Text,
            false => Mode::Ids,
        };
        let labels = match self.args.tokens.is_empty() {
            true => self.args.prompt.clone(),
            false => self.prompts.iter().map(|p| join(p)).collect(),
        };
        let mut printer =
            Printer::new(mode, &labels, self.prompts, self.tokenizer, &self.args.stop);
        let mut failure = None;
        let graceful = interrupt::Graceful::begin();
        let mut on_token = |token: NewToken| {
            if interrupt::requested() {
                return ControlFlow::Break(());
            }
            match printer.push(token) {
                Ok(flow) => flow,
                Err(error) => {
                    failure.get_or_insert(error);
                    ControlFlow::Break(())
                }
            }
        };
        let outcome = generate(decoder, self.prompts, &self.options, &mut on_token);
        drop(graceful);
        if let Some(failure) = failure {
            return Err(failure);
        }
        let (generated, timings) = outcome?;
        let texts = printer.finish()?;
        interrupt::check()?;

        let speeds = speeds(&timings, self.prompts.len());
        remark(format_args!("\n{speeds} on {device}"));
        if self.args.json {
            let mut line = answer(&generated, &texts);
            line["timings"] = json!({
                "load_ms": ms(load),
                "prefill_ms": ms(timings.prefill),
                "decode_ms": ms(timings.decode),
            });
            line["prompt_tokens"] = json!(timings.prompt_tokens);
            line["decode_steps"] = json!(timings.decode_steps);
            line["device"] = json!(device);
            line["tier"] = json!(tier);
            print_line(line)?;
        }
        Ok(())
    }
}

/// What one sequence got, or several.
fn answer(generated: &[Generated], texts: &[printer::Text]) -> Value {
    let mut rows: Vec<Value> = generated
        .iter()
        .zip(texts)
        .map(|(g, text)| {
            let finish = match (text.stopped, g.finish) {
                (true, _) | (_, Finish::Stop) => "stop",
                (_, Finish::Length) => "length",
                (_, Finish::Context) => "context",
                (_, Finish::Cancelled) => "cancelled",
            };
            json!({ "tokens": g.tokens, "text": text.text, "finish": finish })
        })
        .collect();
    match rows.len() {
        1 => rows.remove(0),
        _ => json!({ "sequences": rows }),
    }
}

fn speeds(timings: &Timings, batch: usize) -> String {
    let per_second = |n: usize, time: Duration| match time.as_secs_f64() {
        s if s > 0.0 => n as f64 / s,
        _ => 0.0,
    };
    format!(
        "{} prompt tokens at {:.1}/s, {} steps at {:.1} tokens/s",
        timings.prompt_tokens,
        per_second(timings.prompt_tokens, timings.prefill),
        timings.decode_steps,
        per_second(timings.decode_steps * batch, timings.decode),
    )
}

/// Ids as on the command line.
fn join(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(",")
}
