//! Ctrl-C, and a system's wish that the process end, which comes the same way.
//!
//! Work that can stop by itself, and has something to tidy up, runs inside
//! [`Graceful`] and asks [`requested`] now and then. All other work is ended on
//! the spot, and so is everything at the second Ctrl-C.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_ir::{ParamError, ParamSource};

use crate::failure::{Failure, Result};
use crate::terminal;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static GRACEFUL: AtomicUsize = AtomicUsize::new(0);

/// Exit code of a process that ended by Ctrl-C, as shells have it.
const CODE: i32 = 130;

/// Takes over Ctrl-C. Where the system does not allow it, Ctrl-C ends the process
/// as it always does.
pub fn install() {
    let _ = ctrlc::set_handler(|| {
        let again = REQUESTED.swap(true, Ordering::SeqCst);
        if again || GRACEFUL.load(Ordering::SeqCst) == 0 {
            terminal::give_back();
            std::process::exit(CODE);
        }
    });
}

/// Whether Ctrl-C was pressed.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// As if Ctrl-C had not been pressed so far, for those who go on after it.
pub fn forget() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// [`Failure::Interrupted`] if Ctrl-C was pressed.
pub fn check() -> Result {
    match requested() {
        true => Err(Failure::Interrupted),
        false => Ok(()),
    }
}

/// While one lives, the first Ctrl-C only raises the flag.
pub struct Graceful(());

impl Graceful {
    pub fn begin() -> Self {
        GRACEFUL.fetch_add(1, Ordering::SeqCst);
        Graceful(())
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        GRACEFUL.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Parameters that are no longer to be had once Ctrl-C was pressed, so that
/// whoever reads them stops and tidies up.
pub struct Interruptible<'a>(pub &'a dyn ParamSource);

impl ParamSource for Interruptible<'_> {
    fn param(&self, name: &str) -> std::result::Result<Cow<'_, [f32]>, ParamError> {
        if requested() {
            return Err("interrupted".into());
        }
        self.0.param(name)
    }
}
