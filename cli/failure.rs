//! How a command fails, and how that is told.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// What `--help` says about exit codes; [`Failure::code`] keeps it.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    failure; the message on standard error says why
  2    the command line is wrong
  130  stopped by Ctrl-C";

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for what cannot be.
    Usage(String),
    /// Something went wrong.
    Failed(Box<dyn Error>),
    /// The user pressed Ctrl-C.
    Interrupted,
    /// Whoever read standard output has stopped reading, as `head` does.
    Closed,
}

/// A result of this program.
pub type Result<T = ()> = std::result::Result<T, Failure>;

/// Every error is a failure; `Failure` itself is none, so `?` fits everywhere.
impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Failed(Box::new(error))
    }
}

impl Failure {
    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::Usage(message.into())
    }

    /// A failure of this program's own.
    pub fn failed(message: impl Into<String>) -> Self {
        Failure::Failed(Box::new(Message {
            text: message.into(),
            source: None,
        }))
    }

    /// A failure whose cause is told after the message.
    pub fn because(message: impl Into<String>, cause: impl Into<Box<dyn Error>>) -> Self {
        Failure::Failed(Box::new(Message {
            text: message.into(),
            source: Some(cause.into()),
        }))
    }

    /// What the process exits with.
    pub fn code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Failed(_) => ExitCode::FAILURE,
            Failure::Interrupted => ExitCode::from(130),
            Failure::Closed => ExitCode::SUCCESS,
        }
    }

    /// What is printed on standard error, if anything.
    pub fn message(&self) -> Option<String> {
        match self {
            Failure::Usage(text) => Some(format!("{text}\n\nFor more information, try '--help'.")),
            Failure::Failed(error) => Some(chain(error.as_ref())),
            Failure::Interrupted => Some("interrupted".to_owned()),
            Failure::Closed => None,
        }
    }
}

/// The error and its causes, one a line. Many errors end with the text of their
/// cause; such a cause is not told twice.
fn chain(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !told.contains(&text) {
            told.push_str("\n  because: ");
            told.push_str(&text);
        }
        next = cause.source();
    }
    told
}

#[derive(Debug)]
struct Message {
    text: String,
    source: Option<Box<dyn Error>>,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Message {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let io = || std::io::Error::other("disk full");
        let quoting = Failure::because("cannot write `x`: disk full", io());
        assert_eq!(quoting.message().unwrap(), "cannot write `x`: disk full");
        let plain = Failure::because("cannot write `x`", io());
        let told = plain.message().unwrap();
        assert_eq!(told, "cannot write `x`\n  because: disk full");
    }
}
