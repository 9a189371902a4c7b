//! `kiln run`

pub mod printer;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ArgGroup;
use clap::builder::NonEmptyStringValueParser;
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
use crate::sampling::SamplingArgs;
use crate::units::ms;
use crate::values::whole;
use printer::{Mode, Printer};

/// Continue a text
///
/// The continuation goes to standard output as it is generated. A model that is not
/// compiled is compiled in memory first. By default the most likely token is chosen
/// each time, so the same prompt gives the same text; `--temperature` makes the choice
/// random.
#[derive(clap::Args, Debug)]
#[command(group = ArgGroup::new("prompts").required(true).args(["prompt", "prompt_file", "tokens"]))]
#[command(after_help = "\
Examples:
  kiln run demo --prompt \"Ownership is\"
  kiln run gpt2.kiln --prompt \"Once upon a time\" --temperature 0.8 --top-p 0.95 --seed 7
  kiln run gpt2.kiln --prompt Monday --prompt Tuesday --max-new-tokens 20
  kiln run gpt2.kiln --tokens 464,3290 --json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The text to continue. Several are continued together, as one batch
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,

    /// A file with the text to continue, or `-` for standard input. A line break at
    /// its end is left out
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,

    /// The token ids to continue, as `1,2,3`; the answer is ids too. Several sequences,
    /// as `1,2,3;4,5` or by several such options, are continued as one batch
    #[arg(long, value_name = "IDS", value_parser = parse_ids)]
    #[arg(value_delimiter = ';', allow_hyphen_values = true)]
    tokens: Vec<Ids>,

    /// Stop after this many new tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    max_new_tokens: usize,

    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,

    /// Continue after the model's end-of-text token
    #[arg(long)]
    ignore_eos: bool,

    /// After the answer, print one line of JSON: `tokens` (the new ids), `text`,
    /// `finish`, and `timings` in milliseconds; with several prompts, all but the
    /// timings are in `sequences`
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    dtype: DtypeArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// A sequence of token ids.
pub type Ids = Vec<u32>;

/// Reads `1,2,3`.
pub fn parse_ids(text: &str) -> std::result::Result<Ids, String> {
    let ids = text.split(',').map(|id| {
        let id = id.trim();
        id.parse::<u32>()
            .map_err(|_| format!("`{id}` is not a token id; ids are numbers, as in `1,2,3`"))
    });
    ids.collect()
}

pub fn run(args: &Args, began: Instant) -> Result {
    let sampling = args.sampling.over(SamplingOptions::default())?;
    let texts = texts(args)?;
    let target = args.device.select()?;
    let opened = args.model.open()?;
    let tokenizer = opened.tokenizer()?;
    let info = opened.info();
    let prompts = prompts(args, &texts, tokenizer.as_ref())?;
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
        ..GenerateOptions::default()
    };
    let mut job = Job {
        args,
        tokenizer: tokenizer.as_ref(),
        texts: &texts,
        prompts: &prompts,
        options,
        began,
    };
    let name = args.model.name();
    let (entries, dtype) = (["step"], args.dtype.dtype);
    match target {
        Target::Adapter(adapter) => {
            opened.check_tier(name, dtype, args.device.tier.as_deref())?;
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
pub fn has_logits(artifact: &kiln_runtime::Artifact) -> Result<bool> {
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

pub fn refuse_headless(name: &str, has_logits: bool) -> Result {
    match has_logits {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "`{name}` has no language-model head, so it cannot continue a text; `kiln forward` writes \
             its hidden states"
        ))),
    }
}

/// The prompts as texts; none if they are token ids.
fn texts(args: &Args) -> Result<Vec<String>> {
    let Some(file) = &args.prompt_file else {
        return Ok(args.prompt.clone());
    };
    let read = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let mut text = read.map_err(|e| {
        let file = file.display();
        Failure::because(format!("cannot read the prompt from `{file}`"), e)
    })?;
    // Editors begin a text with a byte order mark, and end it with a line break, that are no
    // parts of it.
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    let line = text.strip_suffix('\n');
    let line = line.map(|l| l.strip_suffix('\r').unwrap_or(l).len());
    text.truncate(line.unwrap_or(text.len()));
    Ok(vec![text])
}

/// The prompts as token ids.
fn prompts(args: &Args, texts: &[String], tokenizer: Option<&Tokenizer>) -> Result<Vec<Ids>> {
    let name = args.model.name();
    if !args.tokens.is_empty() {
        if !args.stop.is_empty() && tokenizer.is_none() {
            return Err(no_tokenizer(name, "--stop"));
        }
        return Ok(args.tokens.clone());
    }
    let option = match args.prompt_file {
        Some(_) => "--prompt-file",
        None => "--prompt",
    };
    let tokenizer = tokenizer.ok_or_else(|| no_tokenizer(name, option))?;
    encode(tokenizer, texts)
}

/// Texts as token ids, none of them empty.
pub fn encode(tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<Ids>> {
    let mut out = Vec::new();
    for text in texts {
        let ids = tokenizer.encode(text)?;
        if ids.is_empty() {
            let begin = match tokenizer.eos_id().map(|id| tokenizer.decode(&[id])) {
                Some(Ok(eos)) => format!(", or `{eos}` to begin a text"),
                _ => String::new(),
            };
            return Err(Failure::failed(format!(
                "the prompt `{text}` has no tokens; give it some text{begin}"
            )));
        }
        out.push(ids);
    }
    Ok(out)
}

/// That a model cannot work with texts.
pub fn no_tokenizer(name: &str, option: &str) -> Failure {
    Failure::failed(format!(
        "`{name}` has no tokenizer, so `{option}` cannot be used; use `--tokens`, or put a \
         `tokenizer.json` into the checkpoint's folder (and compile it again)"
    ))
}

/// The positions that a session needs: the longest prompt and what follows,
/// as far as the model goes.
fn context(longest: u64, new: usize, max: u64) -> Result<u64> {
    if longest > max {
        return Err(Failure::failed(format!(
            "the prompt has {longest} tokens, but the model takes {max} at most; shorten it, or compile \
             the model with a larger --max-context, if it allows one"
        )));
    }
    Ok(longest.saturating_add(new as u64).min(max).max(1))
}

/// What is to be generated, apart from by whom.
struct Job<'a> {
    args: &'a Args,
    tokenizer: Option<&'a Tokenizer>,
    /// None, if the prompts are token ids.
    texts: &'a [String],
    prompts: &'a [Ids],
    options: GenerateOptions,
    began: Instant,
}

impl Job<'_> {
    fn run(&mut self, decoder: &mut dyn Decoder, device: &str, tier: Option<&str>) -> Result {
        let load = self.began.elapsed();
        let (mode, labels) = match self.texts {
            [] => (Mode::Ids, self.prompts.iter().map(|p| join(p)).collect()),
            texts => (Mode::Text, texts.to_vec()),
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

        let speeds = speeds(&timings, &generated);
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

/// How fast prompts were read, and tokens made. The first token of each sequence comes
/// with its prompt, and one that has ended gets no more.
pub fn speeds(timings: &Timings, generated: &[Generated]) -> String {
    let per_second = |n: usize, time: Duration| match time.as_secs_f64() {
        s if s > 0.0 => n as f64 / s,
        _ => 0.0,
    };
    let later = generated.iter().map(|g| g.tokens.len().saturating_sub(1));
    let later: usize = later.sum();
    let mut text = format!(
        "{} prompt tokens, {:.1} tokens/s",
        timings.prompt_tokens,
        per_second(timings.prompt_tokens, timings.prefill)
    );
    if timings.decode_steps > 0 {
        let rate = per_second(later, timings.decode);
        text += &format!(
            "; {later} tokens in {} steps, {rate:.1} tokens/s",
            timings.decode_steps
        );
    }
    text
}

/// Ids as on the command line.
fn join(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_that_ended_early_makes_no_tokens() {
        let generated = |n: usize| Generated {
            tokens: vec![0; n],
            finish: Finish::Stop,
        };
        let timings = Timings {
            prefill: Duration::from_secs(2),
            decode: Duration::from_secs(3),
            prompt_tokens: 12,
            decode_steps: 9,
        };
        // Ten tokens and four, of which the first came with the prompts.
        assert_eq!(
            speeds(&timings, &[generated(10), generated(4), generated(0)]),
            "12 prompt tokens, 6.0 tokens/s; 12 tokens in 9 steps, 4.0 tokens/s"
        );
        let prompt = Timings {
            decode_steps: 0,
            ..timings
        };
        assert_eq!(
            speeds(&prompt, &[generated(1)]),
            "12 prompt tokens, 6.0 tokens/s"
        );
    }
}
