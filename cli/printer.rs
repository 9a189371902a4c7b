//! Shows continuations as they come.

use std::ops::ControlFlow;

use kiln_models::tokenizer::{DecodeStream, Tokenizer};
use kiln_runtime::generate::NewToken;

use crate::failure::Result;
use crate::output::print;
use crate::run::Ids;
use crate::stop_text::StopTexts;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Text.
    Text,
    /// Token ids, with commas.
    Ids,
}

/// The text of a sequence, in the end.
#[derive(Clone, Debug)]
pub struct Text {
    /// `None` without a tokenizer.
    pub text: Option<String>,
    /// Whether a stop text ended it, which is not part of it.
    pub stopped: bool,
}

/// Prints the continuations of a batch one after the other: the first that has
/// not ended as it grows, the later ones when it is their turn.
pub struct Printer<'a> {
    mode: Mode,
    sequences: Vec<Sequence<'a>>,
    /// The sequence that is being shown.
    current: usize,
    labelled: bool,
}

struct Sequence<'a> {
    label: &'a str,
    /// Until the end; never, without a tokenizer.
    stream: Option<DecodeStream<'a>>,
    has_text: bool,
    stop: StopTexts,
    text: String,
    stopped: bool,
    ended: bool,
    /// What is to be shown and has not been.
    unshown: String,
    ids: usize,
}

impl<'a> Printer<'a> {
    /// For one sequence a label and a prompt. Labels are shown if there are
    /// several.
    pub fn new(
        mode: Mode,
        labels: &'a [String],
        prompts: &[Ids],
        tokenizer: Option<&'a Tokenizer>,
        stop: &[String],
    ) -> Self {
        let sequences = labels.iter().zip(prompts).map(|(label, prompt)| Sequence {
            label,
            stream: tokenizer.map(|tokenizer| tokenizer.stream_after(prompt)),
            has_text: tokenizer.is_some(),
            stop: StopTexts::new(stop),
            text: String::new(),
            stopped: false,
            ended: false,
            unshown: String::new(),
            ids: 0,
        });
        let mut printer = Printer {
            mode,
            sequences: sequences.collect(),
            current: 0,
            labelled: labels.len() > 1,
        };
        printer.label();
        printer
    }

    /// Takes a token; breaks if its sequence has met a stop text.
    pub fn push(&mut self, token: NewToken) -> Result<ControlFlow<()>> {
        let sequence = &mut self.sequences[token.sequence];
        sequence.push(token, self.mode)?;
        if token.stop || sequence.stopped {
            sequence.finish(self.mode)?;
        }
        let flow = match sequence.stopped {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        self.show()?;
        Ok(flow)
    }

    /// Shows the rest; the texts in the order of the sequences.
    pub fn finish(mut self) -> Result<Vec<Text>> {
        for sequence in &mut self.sequences {
            sequence.finish(self.mode)?;
        }
        self.show()?;
        let texts = self.sequences.into_iter().map(|s| Text {
            text: s.has_text.then_some(s.text),
            stopped: s.stopped,
        });
        Ok(texts.collect())
    }

    fn show(&mut self) -> Result {
        while let Some(sequence) = self.sequences.get_mut(self.current) {
            let text = std::mem::take(&mut sequence.unshown);
            if !text.is_empty() {
                print(text)?;
            }
            if !sequence.ended {
                break;
            }
            print("\n")?;
            self.current += 1;
            self.label();
        }
        Ok(())
    }

    /// Puts its label before the sequence that is shown next.
    fn label(&mut self) {
        let labelled = self.labelled;
        let current = self.current;
        if let Some(sequence) = self.sequences.get_mut(current).filter(|_| labelled) {
            let blank = if current > 0 { "\n" } else { "" };
            let label = format!("{blank}[{}] {}\n", current + 1, sequence.label);
            sequence.unshown.insert_str(0, &label);
        }
    }
}

impl Sequence<'_> {
    fn push(&mut self, token: NewToken, mode: Mode) -> Result {
        if mode == Mode::Ids {
            let comma = if self.ids > 0 { "," } else { "" };
            self.unshown += &format!("{comma}{}", token.id);
            self.ids += 1;
        }
        // The token that ends a text is no part of it.
        if let (Some(stream), false) = (&mut self.stream, token.stop) {
            let piece = stream.push(token.id)?;
            let shown = self.stop.push(&piece);
            self.stopped = shown.stopped;
            self.add(&shown.text, mode);
        }
        Ok(())
    }

    fn add(&mut self, text: &str, mode: Mode) {
        self.text += text;
        if mode == Mode::Text {
            self.unshown += text;
        }
    }

    /// Ends the sequence, and adds what was held back.
    fn finish(&mut self, mode: Mode) -> Result {
        self.ended = true;
        if let Some(stream) = self.stream.take()
            && !self.stopped
        {
            let shown = self.stop.push(&stream.finish()?);
            self.stopped = shown.stopped;
            let rest = if shown.stopped {
                String::new()
            } else {
                self.stop.finish()
            };
            self.add(&(shown.text + &rest), mode);
        }
        Ok(())
    }
}
