//! `kiln chat`

use std::collections::BTreeMap;
use std::io::{IsTerminal, stdin};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_models::chat::{
    Chat, ChatTemplate, Message, RESERVED_ARGUMENTS, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE,
};
use kiln_models::tokenizer::{TOKENIZER_FILE, Tokenizer};
use kiln_runtime::Decoder;
use kiln_runtime::generate::{Finish, GenerateOptions};
use kiln_runtime::sampling::SamplingOptions;
use rustyline::error::ReadlineError;
use rustyline::{Behavior, Config, DefaultEditor};
use serde_json::Value;

use crate::device::DeviceArgs;
use crate::failure::{Failure, Result};
use crate::generation::{Needs, On, generate_shown, speeds, with_decoder};
use crate::hub::HUB_ID;
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs};
use crate::output::{note, remark, warn};
use crate::printer::{Mode, Printer};
use crate::run::{Ids, read_prompt};
use crate::sampling::SamplingArgs;
use crate::terminal;
use crate::values::whole;

/// What learned to answer; no model that the program makes itself did.
fn model_help() -> String {
    format!("A folder in the Hugging Face layout{HUB_ID}, or a compiled `.kiln` folder")
}

/// Talk with a model
///
/// For models that were trained to answer, and come with a chat template. What you write
/// is one message a line; with `--prompt`, or when standard input is no terminal, the
/// model answers what it is given and ends. Tokens are chosen as the model's authors
/// advise, unless an option says otherwise.
#[derive(clap::Args, Debug)]
#[command(mut_arg("model", |model| model.help(model_help())))]
#[command(mut_arg("random_weights", |preset| preset.hide(true)))]
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
        Some((name, _)) if RESERVED_ARGUMENTS.contains(&name) => Err(format!(
            "`{name}` is what the conversation gives to the template"
        )),
        Some((name, value)) if !name.is_empty() => {
            let value = match value {
                // As model cards write them.
                "True" => true.into(),
                "False" => false.into(),
                "None" => Value::Null,
                other => serde_json::from_str(other).unwrap_or_else(|_| other.into()),
            };
            Ok((name.to_owned(), value))
        }
        _ => Err("it should be a name and a value, as `enable_thinking=false`".to_owned()),
    }
}

pub fn run(args: &Args) -> Result {
    if args.model.random_weights.is_some() {
        return Err(Failure::usage(format!(
            "a model with `--random-weights` learned nothing, so it cannot answer; {INSTEAD}"
        )));
    }
    let target = args.device.select()?;
    let opened = args.model.open()?;
    let name = args.model.name();
    let chat = opened.chat()?.ok_or_else(|| no_template(&args.model))?;
    let tokenizer = opened.tokenizer()?;
    let tokenizer = tokenizer.ok_or_else(|| no_tokenizer(name))?;
    let info = opened.info();
    // With what the model ends an answer, if its settings do not say so.
    let end = chat
        .special_token("eos_token")
        .and_then(|t| tokenizer.id(t));
    let stops = info.eos_tokens.iter().copied().chain(end);
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens.unwrap_or(usize::MAX),
        sampling: args.sampling.over(advised(&chat))?,
        stop_tokens: stops.collect(),
        ..GenerateOptions::default()
    };
    let most = info.max_context;
    let context = context(args.context, most)?;
    let draw = options.sampling.temperature > 0.0;
    let mut talk = Talk {
        template: chat.template()?,
        arguments: args.template_arg.iter().cloned().collect(),
        tokenizer: &tokenizer,
        options,
        context,
        most,
        system: args.system.clone().map(Message::system),
        messages: Vec::new(),
        taken: Vec::new(),
    };
    let needs = Needs {
        batch: 1,
        context,
        longest: context,
        draw,
    };
    let run = |decoder: &mut dyn Decoder, on: &On<'_>| talk.run(decoder, args, &on.device);
    with_decoder(
        target,
        opened,
        (&args.model, &args.dtype, &args.device),
        &needs,
        run,
    )
}

fn no_tokenizer(name: &str) -> Failure {
    Failure::failed(format!(
        "`{name}` has no tokenizer, so it cannot read what you write; put a `{TOKENIZER_FILE}` into the \
         checkpoint's folder (and compile it again)"
    ))
}

/// With what one can talk.
const INSTEAD: &str = "give a model that was trained to answer, which comes with a chat template";

fn no_template(model: &ModelArgs) -> Failure {
    let name = model.name();
    if model.is_demo() {
        return Failure::failed(format!(
            "`{name}` was trained to continue texts, as `kiln run {name}` does, and not to answer; {INSTEAD}"
        ));
    }
    Failure::failed(format!(
        "`{name}` has no chat template, so it was probably not trained to answer; `kiln run` continues \
         a text with it, and a checkpoint with a `{TEMPLATE_FILE}` or a `chat_template` in its \
         `{TOKENIZER_CONFIG_FILE}` can be compiled again"
    ))
}

/// How the model's authors would have tokens chosen.
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
        seed: some_seed(),
    };
    match options.validate() {
        Ok(()) => options,
        Err(_) => usual,
    }
}

/// Another seed each time, so that an answer can be had anew.
fn some_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
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
    /// The context that was asked for.
    context: u64,
    /// The largest that the model was compiled for.
    most: u64,
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
            let text = read_prompt(Path::new("-"))?;
            return self.say_all(decoder, &[text], device);
        }
        self.listen(decoder, device)
    }

    /// Says one message after the other.
    fn say_all(&mut self, decoder: &mut dyn Decoder, texts: &[String], device: &str) -> Result {
        for text in texts {
            let ids = self.say(text, decoder.context())?;
            self.answer(decoder, ids, device)?;
            interrupt::check()?;
        }
        Ok(())
    }

    /// Talks with whoever is at the terminal.
    fn listen(&mut self, decoder: &mut dyn Decoder, device: &str) -> Result {
        let unreadable = |e| Failure::because("cannot read from the terminal", e);
        // Standard output is for answers.
        let config = Config::builder().behavior(Behavior::PreferTerm).build();
        let mut editor = DefaultEditor::with_config(config).map_err(unreadable)?;
        note("Ctrl-C ends an answer, /clear forgets what was said, /exit or Ctrl-D ends.");
        loop {
            let lent = terminal::Lent::begin();
            let line = editor.readline("> ");
            drop(lent);
            // From here to the next line Ctrl-C ends an answer; what came before is over.
            interrupt::forget();
            let _graceful = interrupt::Graceful::begin();
            let line = match line {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(unreadable(error)),
            };
            match line.trim() {
                "" => continue,
                "/exit" => return Ok(()),
                "/clear" => {
                    self.messages.clear();
                    note("What was said is forgotten.");
                }
                text => match self.say(text, decoder.context()) {
                    Ok(ids) => self.answer(decoder, ids, device)?,
                    // Another message may do.
                    Err(failure) => {
                        let message = failure.message().unwrap_or_default();
                        note(format_args!("error: {message}"));
                    }
                },
            }
            // The editor's own history, of this talk alone; it is no loss if it has none.
            let _ = editor.add_history_entry(line);
        }
    }

    /// Adds a message; all that the model is to answer, as ids. Where that leaves no room for
    /// an answer, the oldest messages are forgotten, until half of the context is free: it
    /// will not be full again at once. After an error all is as it was.
    fn say(&mut self, text: &str, context: u64) -> Result<Ids> {
        if text.trim().is_empty() {
            return Err(Failure::failed(
                "the message is empty; there is nothing to answer",
            ));
        }
        let mut messages = self.messages.clone();
        messages.push(Message::user(text));
        let answer = (context / 4).min(self.options.max_new_tokens as u64);
        let mut ids = self.ids(&messages)?;
        let mut forgotten = 0;
        let mut room = context - answer;
        // A question goes with its answer.
        while ids.len() as u64 > room && messages.len() > forgotten + 2 {
            forgotten += 2;
            room = context / 2;
            ids = self.ids(&messages[forgotten..])?;
        }
        if ids.len() as u64 > context {
            let tokens = ids.len();
            return Err(Failure::failed(format!(
                "the message has {tokens} tokens, with what the chat template and --system add, and the \
                 context has {context}; shorten it, or {}",
                self.longer(context)
            )));
        }
        if forgotten > 0 {
            messages.drain(..forgotten);
            warn(format_args!(
                "the conversation has become longer than the context of {context} tokens; its {forgotten} \
                 oldest messages are forgotten"
            ));
        }
        self.messages = messages;
        Ok(ids)
    }

    /// How to have a longer context than the decoder's, which turned out too short.
    fn longer(&self, context: u64) -> &'static str {
        if context < self.context {
            "run it on a GPU or with --device cpu, for a software driver takes no more tokens"
        } else if self.context < self.most {
            "make the context longer with --context"
        } else {
            "compile the model with a larger --max-context, if it allows one"
        }
    }

    /// What the model reads of a conversation.
    fn ids(&self, messages: &[Message]) -> Result<Ids> {
        let all: Vec<Message> = self.system.iter().chain(messages).cloned().collect();
        let text = self.template.render(&all, &self.arguments)?;
        let ids = self.tokenizer.encode_whole(&text)?;
        match ids.is_empty() {
            true => Err(Failure::failed(
                "the model's chat template makes no text of the conversation",
            )),
            false => Ok(ids),
        }
    }

    /// Answers what `ids` say, and prints the answer as it comes.
    fn answer(&mut self, decoder: &mut dyn Decoder, ids: Ids, device: &str) -> Result {
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
        let printer = Printer::new(Mode::Text, &labels, &prompts, Some(self.tokenizer), &[]);
        let shown = generate_shown(decoder, &prompts, &options, printer)?;
        if shown.generated.iter().any(|g| !g.tokens.is_empty()) {
            let speeds = speeds(&shown.timings, &shown.generated);
            remark(format_args!("{speeds} on {device}"));
        }

        self.taken = ids;
        for (sequence, text) in shown.generated.iter().zip(shown.texts) {
            self.taken.extend_from_slice(&sequence.tokens);
            match text.text {
                Some(answer) if !answer.is_empty() => {
                    self.messages.push(Message::assistant(answer));
                }
                // Nobody said anything.
                _ => drop(self.messages.pop()),
            }
            if sequence.finish == Finish::Context {
                let context = decoder.context();
                warn(format_args!(
                    "the context of {context} tokens is full, so the answer ends here; to go on, {}",
                    self.longer(context)
                ));
            }
        }
        // The last token was not fed.
        self.taken.truncate(decoder.past() as usize);
        Ok(())
    }
}

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
        assert_eq!(parse("a=False"), pair("a", "false"));
        for wrong in ["a", "=1", "", "messages=[]"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
