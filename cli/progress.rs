//! Progress on standard error, shown only when that is a terminal.

#[cfg(feature = "hub")]
mod files;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kiln_runtime::LoadProgress;

#[cfg(feature = "hub")]
pub use files::FileBars;

/// How a bar that counts bytes looks.
const BYTES: &str = "{msg:<12} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {eta:>4}";

/// A bar that counts bytes. It vanishes when dropped.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar for work on `total` bytes, which may become known later.
    pub fn bytes(what: &str, total: u64) -> Bar {
        Bar::placed(what, total, |bar| bar)
    }

    /// The same where `place` puts it, which is before it has anything to show.
    fn placed(what: &str, total: u64, place: impl FnOnce(ProgressBar) -> ProgressBar) -> Bar {
        let bar = place(ProgressBar::new(total).with_style(style(BYTES)));
        bar.set_message(what.to_owned());
        Bar(bar)
    }

    /// A line that shows that work is going on.
    pub fn busy(what: &str) -> Bar {
        let bar = ProgressBar::new_spinner().with_style(style("{spinner} {msg} {elapsed}"));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Bar(bar)
    }

    /// Moves to `done` of `total`.
    pub fn set(&self, done: u64, total: u64) {
        if self.0.length() != Some(total) {
            self.0.set_length(total);
        }
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Two bars for loading a model: weights in bytes, kernels by number.
pub struct LoadBars {
    weights: ProgressBar,
    kernels: ProgressBar,
}

impl LoadBars {
    pub fn new() -> LoadBars {
        let group = MultiProgress::new();
        let add = |what: &'static str, template| {
            let bar = group.add(ProgressBar::new(0).with_style(style(template)));
            bar.set_message(what);
            bar
        };
        LoadBars {
            weights: add("weights", BYTES),
            kernels: add("kernels", "{msg:<12} {wide_bar} {pos}/{len}"),
        }
    }

    pub fn set(&self, p: LoadProgress) {
        if p.kernels_ahead < p.kernels_ahead_total {
            // Once for a model and a driver, but for seconds.
            self.kernels.set_message("compiling");
            self.kernels.set_length(p.kernels_ahead_total as u64);
            self.kernels.set_position(p.kernels_ahead as u64);
            return;
        }
        if p.trials_total > 0 {
            self.kernels.set_message("measuring");
            self.kernels.set_length(p.trials_total as u64);
            self.kernels.set_position(p.trials as u64);
            return;
        }
        self.kernels.set_message("kernels");
        self.weights.set_length(p.weight_bytes_total);
        self.weights.set_position(p.weight_bytes);
        self.kernels.set_length(p.kernels_total as u64);
        self.kernels.set_position(p.kernels as u64);
    }
}

impl Drop for LoadBars {
    fn drop(&mut self) {
        self.weights.finish_and_clear();
        self.kernels.finish_and_clear();
    }
}

/// The default style, should the template be wrong.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
}
