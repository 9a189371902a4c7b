//! The terminal, which a line editor takes for itself while it reads.
//!
//! Whatever ends the process meanwhile has to give it back: without that, what is typed next
//! is not shown, and what is pasted stands in brackets. Consoles of Windows are the editor's
//! own affair.

#[cfg(unix)]
mod kept {
    use std::fs::File;
    use std::io::Write;
    use std::sync::Mutex;

    use rustix::process::getpgrp;
    use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

    /// Ends what an editor has pasted text stand in, and its line.
    const END: &[u8] = b"\x1b[?2004l\n";

    /// The terminal, and how it was.
    static BEFORE: Mutex<Option<(File, Termios)>> = Mutex::new(None);

    /// Keeps how the terminal is, or forgets it.
    pub fn keep(whether: bool) {
        let open = || File::options().read(true).write(true).open("/dev/tty");
        let terminal = whether.then(open).and_then(Result::ok);
        let kept = terminal.and_then(|terminal| {
            let before = tcgetattr(&terminal).ok()?;
            Some((terminal, before))
        });
        if let Ok(mut before) = BEFORE.lock() {
            *before = kept;
        }
    }

    pub fn give_back() {
        let Ok(mut kept) = BEFORE.lock() else {
            return;
        };
        let Some((mut terminal, before)) = kept.take() else {
            return;
        };
        // Behind others that run in front of it, it is theirs, and to change it would stop this
        // process.
        if tcgetpgrp(&terminal) == Ok(getpgrp()) {
            // Where that fails, nobody looks any more.
            let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
            let _ = terminal.write_all(END);
        }
    }
}

/// While one lives, a line editor may read from the terminal.
pub struct Lent(());

impl Lent {
    pub fn begin() -> Self {
        #[cfg(unix)]
        kept::keep(true);
        Lent(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        #[cfg(unix)]
        kept::keep(false);
    }
}

/// Gives the terminal back, if it is lent, before the process ends on the spot.
pub fn give_back() {
    #[cfg(unix)]
    kept::give_back();
}
