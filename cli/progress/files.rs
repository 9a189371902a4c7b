//! Progress of files that are fetched.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use indicatif::MultiProgress;

use super::Bar;

/// A bar for each file that is fetched; may be told of them from any thread.
#[derive(Default)]
pub struct FileBars {
    group: MultiProgress,
    bars: Mutex<BTreeMap<String, Bar>>,
}

impl FileBars {
    pub fn set(&self, file: &str, done: u64, total: u64) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        if !bars.contains_key(file) {
            let bar = Bar::bytes(file, total);
            let bar = Bar(self.group.add(bar.0.clone()));
            bars.insert(file.to_owned(), bar);
        }
        if let Some(bar) = bars.get(file) {
            bar.set(done, total);
        }
    }
}
