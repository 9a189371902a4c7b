//! `kiln run`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ArgGroup;
use clap::builder::NonEmptyStringValueParser;
use kiln_models::tokenizer::Tokenizer;
use kiln_runtime::Decoder;
use kiln_runtime::generate::{Finish, GenerateOptions, Generated};
use kiln_runtime::sampling::SamplingOptions;
use serde_json::{Value, json};

use crate::device::DeviceArgs;
use crate::failure::{Failure, Result};
use crate::generation::{Needs, On, Shown, generate_shown, speeds, with_decoder};
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs};
use crate::output::{print_line, remark};
use crate::printer::{Mode, Printer, Text};
use crate::sampling::SamplingArgs;
use crate::units::ms;
use crate::values::whole;

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
    let needs = Needs {
        batch,
        context,
        longest,
        draw: job.options.sampling.temperature > 0.0,
    };
    let run = |decoder: &mut dyn Decoder, on: &On<'_>| job.run(decoder, on);
    with_decoder(
        target,
        opened,
        (&args.model, &args.dtype, &args.device),
        &needs,
        run,
    )
}

/// The prompts as texts; none if they are token ids.
fn texts(args: &Args) -> Result<Vec<String>> {
    match &args.prompt_file {
        Some(file) => Ok(vec![read_prompt(file)?]),
        None => Ok(args.prompt.clone()),
    }
}

/// The text of a file, or of standard input where its name is `-`.
pub fn read_prompt(file: &Path) -> Result<String> {
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
    Ok(text)
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
    fn run(&mut self, decoder: &mut dyn Decoder, on: &On<'_>) -> Result {
        let load = self.began.elapsed();
        let (mode, labels) = match self.texts {
            [] => (Mode::Ids, self.prompts.iter().map(|p| join(p)).collect()),
            texts => (Mode::Text, texts.to_vec()),
        };
        let printer = Printer::new(mode, &labels, self.prompts, self.tokenizer, &self.args.stop);
        let shown = generate_shown(decoder, self.prompts, &self.options, printer)?;
        let Shown {
            generated,
            texts,
            timings,
        } = shown;
        interrupt::check()?;

        let speeds = speeds(&timings, &generated);
        remark(format_args!("\n{speeds} on {}", on.device));
        if self.args.json {
            let mut line = answer(&generated, &texts);
            line["timings"] = json!({
                "load_ms": ms(load),
                "prefill_ms": ms(timings.prefill),
                "decode_ms": ms(timings.decode),
            });
            line["prompt_tokens"] = json!(timings.prompt_tokens);
            line["decode_steps"] = json!(timings.decode_steps);
            line["device"] = json!(on.device);
            line["tier"] = json!(on.tier);
            print_line(line)?;
        }
        Ok(())
    }
}

/// What one sequence got, or several.
fn answer(generated: &[Generated], texts: &[Text]) -> Value {
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

/// Ids as on the command line.
fn join(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(",")
}
