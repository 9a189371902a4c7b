//! Conversations: from messages to the prompt that a model was trained to answer.
//!
//! A model for conversations comes with a *chat template*, a text in the language of
//! [Jinja](https://jinja.palletsprojects.com) that says how messages are written one behind
//! the other. It is in `chat_template.jinja`, or in `tokenizer_config.json`. Templates are
//! rendered as transformers renders them, with the same names and functions.
//!
//! ```
//! use std::collections::BTreeMap;
//! use kiln_models::chat::{Chat, Message};
//!
//! let chat = Chat::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>");
//! let messages = [Message::system("Be brief."), Message::user("Hello!")];
//! let prompt = chat.template()?.render(&messages, &BTreeMap::new())?;
//! assert_eq!(prompt, "<system>Be brief.<user>Hello!<assistant>");
//! # Ok::<(), kiln_models::chat::ChatError>(())
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, UndefinedBehavior, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::config::Settings;

/// The template, in a file of its own.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// What is not in `tokenizer.json`: the names of special tokens, and the template where it has
/// no file of its own.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// The names of special tokens, in older checkpoints.
pub const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
/// A [`Chat`] as JSON, in a compiled model.
pub const CHAT_FILE: &str = "chat.json";

/// Of several templates the one that is taken.
const DEFAULT: &str = "default";

/// What a template may do before it is ended: steps of its program, and one for each 64 bytes of
/// text that it makes. A long conversation takes a few thousand. Templates come with models, from
/// whoever made them.
const FUEL: u64 = 500_000;

/// The longest text of a template, in bytes. Known ones have some ten thousand.
const LONGEST: usize = 64 << 10;

/// The bytes of stack that a template is read and rendered on. What it nests is written, compared
/// and dropped level by level, and [`FUEL`] suffices for some 300,000 levels. What contains itself
/// is not written to an end either ([`Paid`]); only to compare or join it takes any stack.
const STACK: usize = 512 << 20;

/// The most spaces by which a template may have JSON indented.
const MOST_INDENT: usize = 16;

/// What a template is given for itself: the function's own arguments, in transformers.
pub const RESERVED_ARGUMENTS: [&str; 2] = ["messages", "add_generation_prompt"];

/// What a model needs to hold a conversation, beside its tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// The template's text.
    template: String,
    /// Special tokens by the names that templates have for them, such as `bos_token`.
    special_tokens: BTreeMap<String, String>,
    #[serde(default)]
    sampling: Sampling,
}

/// How a model's authors would have tokens chosen; `None` is whatever is usual. The fields are
/// those of `generation_config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// What logits are divided by; 0 for the most likely token each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Of how many tokens, the most likely, one is drawn; 0 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// The probability that those have together of which one is drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// How likely a token is at least, as a share of the most likely one's probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// The factor by which tokens that occurred are penalised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Who set the conversation up: what the model is to be like.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What a model is to be like.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// What a person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// What the model answered.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    fn new(role: Role, content: impl Into<String>) -> Self {
        Message {
            role,
            content: content.into(),
        }
    }
}

/// Why a model cannot hold a conversation, or not this one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{file} {reason}; copy it again from where the model came from")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is sound, and has no template that can be used.
    #[error("{file} {reason}; a {TEMPLATE_FILE} beside it takes its place")]
    Unusable {
        /// The file.
        file: String,
        /// What it has.
        reason: String,
    },
    /// The template's text cannot be parsed.
    #[error(
        "the model's chat template cannot be read: {reason}; put another, as {TEMPLATE_FILE}, into the \
         checkpoint's folder (and compile it again)"
    )]
    Template {
        /// What is wrong with it, and where.
        reason: String,
    },
    /// The template refuses a conversation, by a message of its own.
    #[error("the model's chat template refuses this conversation: {reason}")]
    Refused {
        /// Its message.
        reason: String,
    },
    /// The template asks for what is not there.
    #[error("the model's chat template failed: {reason}")]
    Failed {
        /// What failed, and where.
        reason: String,
    },
    /// The operating system has no thread with such a stack.
    #[error(
        "cannot use the model's chat template: no thread with a stack of {} MiB: {source}",
        STACK >> 20
    )]
    Stack {
        /// What it said.
        #[source]
        source: std::io::Error,
    },
}

impl Chat {
    /// A conversation by a template, without special tokens.
    pub fn new(template: impl Into<String>) -> Self {
        Chat {
            template: template.into(),
            ..Chat::default()
        }
    }

    /// The same with a special token, which the template knows by `name`.
    #[must_use]
    pub fn with_special_token(mut self, name: impl Into<String>, token: impl Into<String>) -> Self {
        self.special_tokens.insert(name.into(), token.into());
        self
    }

    /// The same with its authors' way of choosing tokens.
    #[must_use]
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// How its authors would have tokens chosen.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// What the files of a folder in the Hugging Face layout say; `None` if they have no
    /// template, as those of models that only continue texts.
    ///
    /// # Errors
    ///
    /// [`ChatError::Io`], [`ChatError::Malformed`] and [`ChatError::Unusable`]. Whether the template's text can be
    /// parsed is not looked at, for the model may be wanted for other things.
    pub fn open(folder: &Path) -> Result<Option<Self>, ChatError> {
        let template = read(&folder.join(TEMPLATE_FILE))?;
        let older = settings(&folder.join(SPECIAL_TOKENS_FILE))?;
        let path = folder.join(TOKENIZER_CONFIG_FILE);
        let config = settings(&path)?;
        let template = match template {
            Some(template) => Some(template),
            None => {
                let found = config.get("chat_template").map_or(Ok(None), template_of);
                found.map_err(|reason| ChatError::Unusable {
                    file: path.display().to_string(),
                    reason,
                })?
            }
        };
        let named = [older, config];
        Ok(template.map(|template| Chat {
            template,
            special_tokens: named.iter().flat_map(special_tokens).collect(),
            sampling: Sampling::default(),
        }))
    }

    /// What [`Chat::to_json`] wrote. `label` is how messages call the file.
    ///
    /// # Errors
    ///
    /// [`ChatError::Malformed`].
    pub fn from_json(label: &str, json: &str) -> Result<Self, ChatError> {
        serde_json::from_str(json).map_err(|e| ChatError::Malformed {
            file: label.to_owned(),
            reason: format!("cannot be parsed: {e}"),
        })
    }

    /// All of it as JSON.
    ///
    /// # Errors
    ///
    /// [`ChatError::Failed`], should texts and numbers not be to be written.
    pub fn to_json(&self) -> Result<String, ChatError> {
        serde_json::to_string_pretty(self).map_err(|e| ChatError::Failed {
            reason: e.to_string(),
        })
    }

    /// A special token, by the name that templates have for it.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name).map(String::as_str)
    }

    /// The template, ready to be rendered.
    ///
    /// # Errors
    ///
    /// [`ChatError::Template`] or [`ChatError::Stack`]; [`ChatError::Failed`] should the parser
    /// panic.
    pub fn template(&self) -> Result<ChatTemplate, ChatError> {
        match self.template.len() {
            0..=LONGEST => on_deep_stack(|| self.parse()),
            bytes => Err(ChatError::Template {
                reason: format!("it has {bytes} bytes, and {LONGEST} are the most"),
            }),
        }
    }

    fn parse(&self) -> Result<ChatTemplate, ChatError> {
        let unreadable = |error: minijinja::Error| ChatError::Template {
            reason: said(&error),
        };
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        let mut environment = Environment::new();
        environment.set_syntax(syntax.map_err(unreadable)?);
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", refuse);
        environment.add_function("strftime_now", now);
        environment.set_formatter(format);
        environment.add_filter("tojson", to_json);
        environment.add_test("sequence", is_sequence);
        for (name, token) in &self.special_tokens {
            environment.add_global(name.clone(), token.clone());
        }
        // What transformers gives to templates that can do more than talk.
        for name in ["tools", "documents"] {
            environment.add_global(name, ());
        }
        environment
            .add_template_owned(
                DEFAULT,
                without_marks(&one_kind_of_line_ends(&self.template)),
            )
            .map_err(unreadable)?;
        Ok(ChatTemplate { environment })
    }
}

/// A template that was parsed.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// The text behind which the model answers the last of `messages`. It has all special
    /// tokens that it needs, so none are to be added when it is encoded
    /// ([`Tokenizer::encode_whole`](crate::tokenizer::Tokenizer::encode_whole)). `arguments`
    /// are what the template knows beside the usual, such as `enable_thinking`; what is in
    /// [`RESERVED_ARGUMENTS`] is not for them.
    ///
    /// # Errors
    ///
    /// [`ChatError::Refused`] where the template says that a conversation cannot be like this,
    /// [`ChatError::Failed`] where it cannot be rendered, and [`ChatError::Stack`].
    pub fn render(
        &self,
        messages: &[Message],
        arguments: &BTreeMap<String, Value>,
    ) -> Result<String, ChatError> {
        #[derive(Serialize)]
        struct Context<'a> {
            messages: &'a [Message],
            add_generation_prompt: bool,
            #[serde(flatten)]
            arguments: &'a BTreeMap<String, Value>,
        }
        let context = Serde(Context {
            messages,
            add_generation_prompt: true,
            arguments,
        });
        on_deep_stack(|| {
            let template = self.environment.get_template(DEFAULT);
            let rendered = template.and_then(|template| template.render(context));
            rendered.map_err(|error| match refusal(&error) {
                Some(reason) => ChatError::Refused { reason },
                None => ChatError::Failed {
                    reason: said(&error),
                },
            })
        })
    }
}

/// Runs `f` on a stack that suffices for what a template nests.
fn on_deep_stack<T: Send>(f: impl FnOnce() -> Result<T, ChatError> + Send) -> Result<T, ChatError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("chat template".to_owned());
        let thread = thread.stack_size(STACK).spawn_scoped(scope, f);
        let thread = thread.map_err(|source| ChatError::Stack { source })?;
        thread.join().unwrap_or_else(|_| {
            let reason = "its interpreter panicked".to_owned();
            Err(ChatError::Failed { reason })
        })
    })
}

/// The content of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, ChatError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ChatError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The settings in a JSON file; none if there is no such file.
fn settings(path: &Path) -> Result<Settings, ChatError> {
    let text = read(path)?;
    let text = text.as_deref().unwrap_or("{}");
    Settings::from_json(text).map_err(|e| ChatError::Malformed {
        file: path.display().to_string(),
        reason: format!("cannot be parsed: {e}"),
    })
}

/// The template that a `tokenizer_config.json` has: a text, or of several with names the one
/// for talking.
fn template_of(value: &Value) -> Result<Option<String>, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named: Vec<(String, String)> = match value {
        Value::String(template) => return Ok(Some(template.clone())),
        Value::Object(named) => {
            let named = named.iter();
            named
                .filter_map(|(name, template)| Some((name.clone(), text(template)?)))
                .collect()
        }
        Value::Array(named) => {
            let field = |entry: &Value, key| entry.get(key).and_then(text);
            let named = named.iter();
            named
                .filter_map(|entry| Some((field(entry, "name")?, field(entry, "template")?)))
                .collect()
        }
        _ => Vec::new(),
    };
    if let Some((_, template)) = named.iter().find(|(name, _)| name == DEFAULT) {
        return Ok(Some(template.clone()));
    }
    let names: Vec<String> = named.iter().map(|(name, _)| format!("`{name}`")).collect();
    Err(match names.is_empty() {
        true => "has a `chat_template` that is neither a text nor several with names".to_owned(),
        false => format!(
            "has chat templates for other uses ({}), and none is named `{DEFAULT}`",
            names.join(", ")
        ),
    })
}

/// The special tokens that a file names: `bos_token` and its like, each a text or an object
/// with its `content`.
fn special_tokens(settings: &Settings) -> BTreeMap<String, String> {
    let named = settings.iter().filter(|(name, _)| name.ends_with("_token"));
    let named = named.filter_map(|(name, value)| {
        let content = value.get("content").unwrap_or(value);
        Some((name.clone(), content.as_str()?.to_owned()))
    });
    named.collect()
}

/// A text with the line ends that Python gives to a text file's.
fn one_kind_of_line_ends(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// A template without `{% generation %}` and its end, by which transformers finds what an
/// assistant said; they print nothing.
fn without_marks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}");
        let strip: &[char] = &['-', '+', ' ', '\n', '\r', '\t'];
        out += before;
        match word.trim_matches(strip) {
            // A block that does nothing, so that spaces beside it are trimmed as usual.
            "generation" => out += &tag.replacen("generation", "if true", 1),
            "endgeneration" => out += &tag.replacen("endgeneration", "endif", 1),
            _ => out += tag,
        }
        rest = after;
    }
    out + rest
}

/// What a template raised.
#[derive(Debug, Error)]
#[error("{0}")]
struct Refusal(String);

/// What the template raised, if that is what went wrong.
fn refusal(error: &minijinja::Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}

fn refuse(message: String) -> Result<minijinja::Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refusal(message)))
}

/// The local time, as `format` has it (`%d %b %Y`).
fn now(format: &str) -> Result<String, minijinja::Error> {
    let time = jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now());
    time.map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// A writer that fails when the fuel that a template has left does not pay for what is written,
/// which minijinja takes account of afterwards: what holds a thing several times, which holds
/// others several times, would have filled the memory by then.
struct Paid<W> {
    to: W,
    /// The bytes that are paid for.
    left: u64,
}

impl<W> Paid<W> {
    /// The bytes of written values that one step is worth.
    const BYTES: u64 = 4;

    fn new(to: W, state: &State) -> Self {
        let left = state.fuel_levels().map_or(0, |(_, left)| left);
        Paid {
            to,
            left: left.saturating_mul(Self::BYTES),
        }
    }

    /// Whether so many bytes more are paid for.
    fn pay(&mut self, bytes: usize) -> bool {
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

impl<W: fmt::Write> fmt::Write for Paid<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.pay(text.len()) {
            true => self.to.write_str(text),
            false => Err(fmt::Error),
        }
    }
}

impl io::Write for Paid<Vec<u8>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.pay(bytes.len()) {
            true => self.to.write(bytes),
            false => Err(io::ErrorKind::QuotaExceeded.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a value as minijinja does; lists and maps only as far as they are paid for.
fn format(
    out: &mut Output,
    state: &mut State,
    value: &minijinja::Value,
) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain => {
            write!(Paid::new(out, state), "{value}")
                .map_err(|_| minijinja::Error::from(ErrorKind::OutOfFuel))
        }
        _ => escape_formatter(out, state, value),
    }
}

/// A value as Python writes JSON, with a space behind each comma and colon, and nothing
/// escaped for HTML; or with line breaks and so many spaces.
fn to_json(
    state: &State,
    value: &minijinja::Value,
    options: Kwargs,
) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // transformers writes characters as they are unless told otherwise.
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ascii == Some(true) || indent.is_some_and(|indent| indent > MOST_INDENT) {
        let refused = format!("tojson escapes no characters, and indents by {MOST_INDENT} at most");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, refused));
    }
    let mut out = Paid::new(Vec::new(), state);
    let indented = " ".repeat(indent.unwrap_or(0));
    let written = match indent {
        Some(_) => {
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indented.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut out, formatter,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out,
            PythonFormatter,
        )),
    };
    let failed = |reason| minijinja::Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|e| failed(e.to_string()))?;
    state.consume_fuel(out.to.len() as u64 / Paid::<Vec<u8>>::BYTES)?;
    String::from_utf8(out.to).map_err(|e| failed(e.to_string()))
}

/// Whether Python finds elements by number in a value: texts and maps count too.
fn is_sequence(value: &minijinja::Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map
    )
}

struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// What went wrong, and in which line.
fn said(error: &minijinja::Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

#[cfg(test)]
mod tests;
