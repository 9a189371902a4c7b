//! Progress of files that are fetched.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use indicatif::MultiProgress;

use super::Bar;

/// A bar for each file that is being fetched; may be told of them from any thread.
#[derive(Default)]
pub struct FileBars {
    group: MultiProgress,
    bars: Mutex<BTreeMap<String, Bar>>,
}

impl FileBars {
    /// Tells that `done` of a file's `total` bytes are here; a total of 0 is not known yet.
    pub fn set(&self, file: &str, done: u64, total: u64) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        // Files that are in the cache already are told of too.
        if total > 0 && done >= total {
            bars.remove(file);
            return;
        }
        let bar = bars
            .entry(file.to_owned())
            .or_insert_with(|| Bar::placed(file, total, |bar| self.group.add(bar)));
        bar.set(done, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the bar of a file shows something, and what of it is done.
    fn shown(bars: &FileBars, file: &str) -> Option<(u64, Option<u64>)> {
        let bars = bars.bars.lock().unwrap();
        let bar = &bars.get(file)?.0;
        (!bar.is_finished()).then(|| (bar.position(), bar.length()))
    }

    #[test]
    fn a_file_has_a_bar_until_it_is_here() {
        let bars = FileBars::default();
        bars.set("a", 0, 0);
        assert_eq!(shown(&bars, "a"), Some((0, Some(0))));
        bars.set("a", 3, 10);
        bars.set("b", 1, 2);
        assert_eq!(shown(&bars, "a"), Some((3, Some(10))));
        assert_eq!(shown(&bars, "b"), Some((1, Some(2))));
        bars.set("a", 10, 10);
        assert_eq!(shown(&bars, "a"), None);
        assert_eq!(shown(&bars, "b"), Some((1, Some(2))));
        // What comes after the end begins nothing.
        bars.set("a", 10, 10);
        assert_eq!(shown(&bars, "a"), None);
    }
}
