//! `kiln chat`

use std::collections::BTreeMap;
use std::fmt;
use std::io::{IsTerminal, stdin};
use std::ops::ControlFlow;

use kiln_models::chat::{Chat, ChatTemplate, Message, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE};
use kiln_models::tokenizer::{TOKENIZER_FILE, Tokenizer};
use kiln_runtime::generate::{Finish, GenerateOptions, NewToken, generate};
use kiln_runtime::sampling::SamplingOptions;
use kiln_runtime::{Decoder, LoadOptions, Session};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::Value;

use crate::device::{DeviceArgs, Target, warn_of_separate_launches};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs};
use crate::output::{note, remark, warn};
use crate::run::printer::{Mode, Printer};
use crate::run::{Ids, has_logits, refuse_headless, speeds};
use crate::sampling::SamplingArgs;
use crate::values::whole;

/// Talk with a model
///
/// For models that were trained to answer, and come with a chat template. What you write
/// is one message a line; with `--prompt`, or when standard input is no terminal, the
/// model answers what it is given and ends. Unless told otherwise, tokens are chosen as
/// the model's authors advise.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
While you talk, Ctrl-C ends an answer, and a message can also be:
  /clear    forget what was said
  /exit     end, as Ctrl-D does

Examples:
  kiln chat qwen3.kiln
  kiln chat qwen3.kiln --system \"Answer in one sentence.\" --template-arg enable_thinking=false
  kiln chat qwen3.kiln --prompt \"Why is the sky blue?\"")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// What the model is to be like (a system prompt)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,

    /// Say this, and end after the answer; several are said one after the other
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,

    /// A setting that the model's chat template knows, such as `enable_thinking=false`;
    /// VALUE is JSON or a text
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_argument)]
    template_arg: Vec<(String, Value)>,

    /// Tokens that the conversation may have; when there are more, the oldest messages are
    /// forgotten. Default: as many as the model was compiled for
    #[arg(long, value_name = "N")]
    #[arg(value_parser = whole::<u64>, allow_negative_numbers = true)]
    context: Option<u64>,

    /// Stop each answer after this many tokens. Default: where the context ends
    #[arg(short = 'n', long, value_name = "N")]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    max_new_tokens: Option<usize>,

    #[command(flatten)]
    dtype: DtypeArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Reads `name=value`.
fn parse_argument(text: &str) -> std::result::Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            Ok((name.to_owned(), value))
        }
        _ => Err("it should be a name and a value, as `enable_thinking=false`".to_owned()),
    }
}

pub fn run(args: &Args) -> Result {
    let target = args.device.select()?;
    let opened = args.model.open()?;
    let name = args.model.name();
    let chat = opened.chat()?.ok_or_else(|| no_template(name))?;
    let tokenizer = opened.tokenizer()?;
    let tokenizer = tokenizer.ok_or_else(|| no_tokenizer(name))?;
    let info = opened.info();
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens.unwrap_or(usize::MAX),
        sampling: args.sampling.over(advised(&chat))?,
        stop_tokens: info.eos_tokens.clone(),
        ..GenerateOptions::default()
    };
    let context = context(args.context, info.max_context)?;
    let draw = options.sampling.temperature > 0.0;
    let mut talk = Talk {
        template: chat.template()?,
        arguments: args.template_arg.iter().cloned().collect(),
        tokenizer: &tokenizer,
        options,
        system: args.system.clone().map(Message::system),
        messages: Vec::new(),
        taken: Vec::new(),
    };
    let (entries, dtype) = (["step"], args.dtype.dtype);
    match target {
        Target::Adapter(adapter) => {
            opened.check_tier(name, dtype, args.device.tier.as_deref())?;
            let artifact = opened.into_artifact(name, &entries, 1, dtype)?;
            refuse_headless(name, has_logits(&artifact)?)?;
            let load = LoadOptions {
                draw,
                ..args.device.options(&entries)
            };
            let load = load.session(1, context);
            let model = args.device.load(&adapter, &artifact, &load)?;
            // The session needs no more than the model has on the device.
            drop(artifact);
            let mut session = Session::new(&model, 1, context)?;
            talk.run(&mut session, args, &adapter.to_string())?;
            warn_of_separate_launches(&model, &session);
            Ok(())
        }
        Target::Interpreter => {
            let model = opened.into_interpretable(name, &entries, 1, dtype)?;
            let mut session = model.session(1, context)?;
            talk.run(&mut session, args, "the reference interpreter")
        }
    }
}

fn no_tokenizer(name: &str) -> Failure {
    Failure::failed(format!(
        "`{name}` has no tokenizer, so it cannot read what you write; put a `{TOKENIZER_FILE}` into the \
         checkpoint's folder (and compile it again)"
    ))
}

fn no_template(name: &str) -> Failure {
    Failure::failed(format!(
        "`{name}` has no chat template, so it was probably not trained to answer; `kiln run` continues \
         a text with it, and a checkpoint with a `{TEMPLATE_FILE}` or a `chat_template` in its \
         `{TOKENIZER_CONFIG_FILE}` can be compiled again"
    ))
}

/// How the model's authors would have tokens chosen. What cannot be done so is passed over.
fn advised(chat: &Chat) -> SamplingOptions {
    let advice = chat.sampling();
    let usual = SamplingOptions::default();
    let options = SamplingOptions {
        temperature: advice.temperature.unwrap_or(usual.temperature),
        top_k: advice.top_k.unwrap_or(usual.top_k),
        top_p: advice.top_p.unwrap_or(usual.top_p),
        min_p: advice.min_p.unwrap_or(usual.min_p),
        repetition_penalty: advice
            .repetition_penalty
            .unwrap_or(usual.repetition_penalty),
        seed: usual.seed,
    };
    match options.validate() {
        Ok(()) => options,
        Err(error) => {
            warn(format_args!(
                "the model's own way of choosing tokens is passed over: {error}"
            ));
            usual
        }
    }
}

/// The positions of the session.
fn context(wanted: Option<u64>, max: u64) -> Result<u64> {
    match wanted {
        None => Ok(max),
        Some(n) if (1..=max).contains(&n) => Ok(n),
        Some(n) => Err(Failure::usage(format!(
            "`--context {n}`: this model takes 1 to {max}; compile it with a larger --max-context, if it \
             allows one"
        ))),
    }
}

/// A conversation on its way.
struct Talk<'a> {
    template: ChatTemplate,
    arguments: BTreeMap<String, Value>,
    tokenizer: &'a Tokenizer,
    options: GenerateOptions,
    system: Option<Message>,
    /// What was said, but for the system's message.
    messages: Vec<Message>,
    /// The tokens that the decoder holds.
    taken: Ids,
}

impl Talk<'_> {
    fn run(&mut self, decoder: &mut dyn Decoder, args: &Args, device: &str) -> Result {
        if !args.prompt.is_empty() {
            return self.say_all(decoder, &args.prompt, device);
        }
        if !stdin().is_terminal() {
            let read = std::io::read_to_string(stdin());
            let text = read.map_err(|e| Failure::because("cannot read standard input", e))?;
            let text = text.trim_end_matches(['\r', '\n']).to_owned();
            return self.say_all(decoder, &[text], device);
        }
        self.listen(decoder, device)
    }

    /// Says one message after the other.
    fn say_all(&mut self, decoder: &mut dyn Decoder, texts: &[String], device: &str) -> Result {
        for text in texts {
            self.say(decoder, text, device)?;
            interrupt::check()?;
        }
        Ok(())
    }

    /// Talks with whoever is at the terminal.
    fn listen(&mut self, decoder: &mut dyn Decoder, device: &str) -> Result {
        let unreadable = |e| Failure::because("cannot read from the terminal", e);
        let mut editor = DefaultEditor::new().map_err(unreadable)?;
        note("Ctrl-C ends an answer, /clear forgets what was said, /exit or Ctrl-D ends.");
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
                Err(error) => return Err(unreadable(error)),
            };
            match line.trim() {
                "" => continue,
                "/exit" => return Ok(()),
                "/clear" => {
                    self.messages.clear();
                    note("What was said is forgotten.");
                }
                text => match self.say(decoder, text, device) {
                    // The next one may be shorter.
                    Err(Failure::Failed(error)) if error.is::<TooLong>() => {
                        note(format_args!("error: {error}"));
                    }
                    said => said?,
                },
            }
            // Only the history of this conversation is kept; that it cannot be is no matter.
            let _ = editor.add_history_entry(line);
            // An answer that was stopped is an answer.
            interrupt::take();
        }
    }

    /// Says something, and prints the answer as it comes.
    fn say(&mut self, decoder: &mut dyn Decoder, text: &str, device: &str) -> Result {
        self.messages.push(Message::user(text));
        let ids = match self.fitting_ids(decoder.context()) {
            Ok(ids) => ids,
            Err(failure) => {
                self.messages.pop();
                return Err(failure);
            }
        };
        // What the decoder holds of it already need not be computed again; of the rest at
        // least one token is needed.
        let same = ids.iter().zip(&self.taken).take_while(|(a, b)| a == b);
        let same = same.count().min(ids.len().saturating_sub(1));
        decoder.rewind(same as u64)?;
        let options = GenerateOptions {
            history: ids[..same].to_vec(),
            ..self.options.clone()
        };
        let prompts = [ids[same..].to_vec()];
        let labels = [String::new()];
        let mut printer = Printer::new(Mode::Text, &labels, &prompts, Some(self.tokenizer), &[]);
        let mut failure = None;
        let graceful = interrupt::Graceful::begin();
        let mut on_token = |token: NewToken| {
            if interrupt::requested() {
                return ControlFlow::Break(());
            }
            printer.push(token).unwrap_or_else(|error| {
                failure.get_or_insert(error);
                ControlFlow::Break(())
            })
        };
        let outcome = generate(decoder, &prompts, &options, &mut on_token);
        drop(graceful);
        if let Some(failure) = failure {
            return Err(failure);
        }
        let (generated, timings) = outcome?;
        let texts = printer.finish()?;
        remark(format_args!("{} on {device}", speeds(&timings, &generated)));

        let answer = texts.into_iter().next().and_then(|text| text.text);
        self.messages
            .push(Message::assistant(answer.unwrap_or_default()));
        self.taken = ids;
        for sequence in &generated {
            self.taken.extend_from_slice(&sequence.tokens);
            if sequence.finish == Finish::Context {
                warn("the context is full, so the answer ends here; --context makes it larger");
            }
        }
        // The last token was not fed.
        self.taken.truncate(decoder.past() as usize);
        Ok(())
    }

    /// The conversation as ids, without its oldest messages if all are too many.
    fn fitting_ids(&mut self, context: u64) -> Result<Ids> {
        let mut forgotten = 0;
        let ids = loop {
            let all: Vec<Message> = self.system.iter().chain(&self.messages).cloned().collect();
            let prompt = self.template.prompt(&all, &self.arguments)?;
            let ids = self.tokenizer.encode_whole(&prompt)?;
            if ids.len() as u64 <= context {
                break ids;
            }
            // A question goes with its answer.
            if self.messages.len() < 3 {
                let tokens = ids.len();
                return Err(TooLong { tokens, context }.into());
            }
            self.messages.drain(..2);
            forgotten += 2;
        };
        if forgotten > 0 {
            warn(format_args!(
                "the conversation has become longer than the context of {context} tokens; its {forgotten} \
                 oldest messages are forgotten"
            ));
        }
        if ids.is_empty() {
            return Err(Failure::failed(
                "the model's chat template makes no text of the conversation",
            ));
        }
        Ok(ids)
    }
}

/// A message that does not fit the context, however much is forgotten.
#[derive(Debug)]
struct TooLong {
    tokens: usize,
    context: u64,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooLong { tokens, context } = self;
        write!(
            f,
            "the message has {tokens} tokens, with what the chat template adds, and the context has \
             {context}; shorten it, or make the context larger with --context"
        )
    }
}

impl std::error::Error for TooLong {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_template_are_json_or_texts() {
        let parse =
            |text: &str| parse_argument(text).map(|(name, value)| (name, value.to_string()));
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(
            parse("enable_thinking=false"),
            pair("enable_thinking", "false")
        );
        assert_eq!(
            parse("date=30 Nov = today"),
            pair("date", "\"30 Nov = today\"")
        );
        assert_eq!(parse("a=[1, 2]"), pair("a", "[1,2]"));
        assert_eq!(parse("a="), pair("a", "\"\""));
        for wrong in ["a", "=1", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
