//! Standard output for answers, standard error for all else.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};

use crate::failure::{Failure, Result};

/// Writes to standard output at once. That the reader has gone is
/// [`Failure::Closed`], and no error.
pub fn print(text: impl fmt::Display) -> Result {
    let mut out = io::stdout().lock();
    let written = write!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::because("cannot write to standard output", e),
    })
}

/// [`print()`] with a line's end.
pub fn print_line(text: impl fmt::Display) -> Result {
    print(format_args!("{text}\n"))
}

/// Writes a line to standard error; where that is not possible, there is nobody
/// to tell.
pub fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A line that warns.
pub fn warn(text: impl fmt::Display) {
    note(format_args!("warning: {text}"));
}

/// [`note`], if a person looks on.
pub fn remark(text: impl fmt::Display) {
    if io::stderr().is_terminal() {
        note(text);
    }
}
