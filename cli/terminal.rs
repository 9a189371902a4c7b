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
    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

    /// Ends what an editor has pasted text stand in, and its line.
    const END: &[u8] = b"\x1b[?2004l\n";

    /// The terminal, and how it was.
    static BEFORE: Mutex<Option<(File, Termios)>> = Mutex::new(None);

    /// Keeps how the terminal is.
    pub fn keep() {
        let terminal = File::options().read(true).write(true).open("/dev/tty");
        if let Ok(terminal) = terminal
            && let Ok(before) = tcgetattr(&terminal)
            && let Ok(mut kept) = BEFORE.lock()
        {
            *kept = Some((terminal, before));
        }
    }

    pub fn forget() {
        if let Ok(mut kept) = BEFORE.lock() {
            *kept = None;
        }
    }

    pub fn give_back() {
        let Ok(mut kept) = BEFORE.lock() else {
            return;
        };
        let Some((mut terminal, before)) = kept.take() else {
            return;
        };
        // Where another process is in front the terminal is that one's, and to change it would
        // stop this one.
        let is_in_front = tcgetpgrp(&terminal) == Ok(getpgrp());
        let in_lines = |now: Termios| now.local_modes.contains(LocalModes::ICANON);
        let is_taken = tcgetattr(&terminal).is_ok_and(|now| !in_lines(now));
        if is_in_front && is_taken {
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
        kept::keep();
        Lent(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        #[cfg(unix)]
        kept::forget();
    }
}

/// Gives the terminal back, if it is lent, before the process ends on the spot.
pub fn give_back() {
    #[cfg(unix)]
    kept::give_back();
}
