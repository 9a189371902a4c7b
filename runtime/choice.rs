//! Which of several ways to do a launch is taken on a device (autotuning).
//!
//! A plan's launches may have [alternatives](kiln_ir::plan::Alternative), and layers may be
//! joined. Which is the fastest is measured when a model is loaded on a device for the first
//! time, and kept: so it is the same from then on, and so are results.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use kiln_ir::plan::{Entry, Grid, Tier, Variant};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::error::Error;
use crate::pipelines::write_whole;
use crate::session::STEP;
use crate::tier::{Capabilities, takes_way};

/// What has been found of a device, of the variants of the session's entry by their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Choices {
    /// By the kernel of a launch as it stands, the one that is taken.
    pub kernels: BTreeMap<String, BTreeMap<String, String>>,
    /// Whether a variant with barriers across its grid is faster than launches apart.
    pub joined: BTreeMap<String, bool>,
    /// How often measuring a variant has begun and not ended: it was the end of the process,
    /// or another one measures now. A variant that was begun [`MOST_TRIES`] times, or failed,
    /// is left as it stands.
    pub tries: BTreeMap<String, u32>,
}

/// Somebody may well stop a program twice because it takes so long the first time.
const MOST_TRIES: u32 = 3;

impl Choices {
    /// Whether a variant is left as it stands, since measuring it is not to be tried again.
    pub fn has_given_up(&self, variant: &str) -> bool {
        self.tries.get(variant).is_some_and(|n| *n >= MOST_TRIES)
    }

    /// Adds what others found meanwhile.
    fn extend(&mut self, others: Choices) {
        for (variant, kernels) in others.kernels {
            let own = self.kernels.entry(variant).or_default();
            for (usual, chosen) in kernels {
                own.entry(usual).or_insert(chosen);
            }
        }
        for (variant, joined) in others.joined {
            self.joined.entry(variant).or_insert(joined);
        }
        self.tries.extend(others.tries);
    }
}

/// The file that keeps them.
#[derive(Debug)]
pub(crate) struct ChoiceFile {
    path: PathBuf,
    pub choices: Choices,
    /// The variants that were measured here.
    measured: BTreeSet<String>,
}

impl ChoiceFile {
    /// The choices for a tier and kernels of a key on an adapter, as its driver is now; none
    /// if none were made or the file can't be read.
    pub fn open(dir: &Path, adapter: &Adapter, [tier, key]: [&str; 2]) -> Self {
        let info = adapter.info();
        let mut hasher = blake3::Hasher::new();
        let backend = info.backend.to_string();
        let driver = [&info.name, &info.driver, &info.driver_info];
        let texts = driver.map(String::as_str).into_iter();
        for text in texts.chain([backend.as_str(), tier, key]) {
            hasher.update(blake3::hash(text.as_bytes()).as_bytes());
        }
        let name = format!("{}.choices.json", &hasher.finalize().to_hex()[..32]);
        let path = dir.join(name);
        let choices = read(&path).unwrap_or_default();
        ChoiceFile {
            path,
            choices,
            measured: BTreeSet::new(),
        }
    }

    /// Notes that a variant is being measured, in case that this is the end of the process.
    pub fn begin(&mut self, variant: &str) {
        self.measured.insert(variant.to_owned());
        let others = read(&self.path).and_then(|there| there.tries.get(variant).copied());
        let times = others.unwrap_or_default() + 1;
        self.choices.tries.insert(variant.to_owned(), times);
        self.save();
    }

    /// Notes that it was measured, or may be another time.
    pub fn end(&mut self, variant: &str) {
        self.choices.tries.remove(variant);
        self.save();
    }

    /// Notes that it is not to be measured again, since that fails.
    pub fn give_up(&mut self, variant: &str) {
        self.choices.tries.insert(variant.to_owned(), MOST_TRIES);
        self.save();
    }

    /// Notes that a variant with barriers across its grid is not to be tried again, if `error`
    /// is that the device was lost for it.
    pub fn note_loss(&mut self, variant: &str, error: &Error) {
        if matches!(error, Error::DeviceLost { .. }) {
            self.choices.joined.insert(variant.to_owned(), false);
            self.save();
        }
    }

    /// Writes them, with what is there by now; whether that could be done.
    pub fn save(&mut self) -> bool {
        if let Some(mut others) = read(&self.path) {
            // Of what is measured here this process knows best, of all else the file.
            others.tries.retain(|v, _| !self.measured.contains(v));
            self.choices.tries.retain(|v, _| self.measured.contains(v));
            self.choices.extend(others);
        }
        let bytes = serde_json::to_vec_pretty(&self.choices);
        bytes.is_ok_and(|bytes| write_whole(&self.path, &bytes))
    }

    /// Whether anything is left to be found of a tier.
    pub fn is_open(&self, tier: &Tier) -> bool {
        let step = tier.entries.get(STEP).into_iter();
        let mut variants = step.flat_map(|entry| &entry.variants);
        variants.any(|v| v.ways() > 1 || is_tried(v) && !self.choices.joined.contains_key(&v.name))
    }
}

fn read(path: &Path) -> Option<Choices> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whether a variant has barriers across a grid, which no API promises.
fn is_tried(variant: &Variant) -> bool {
    let check = |grid: &Grid| grid.check.is_some();
    variant.grid.as_ref().is_some_and(check)
}

/// Leaves each launch of a tier the ways that an adapter has; as it stands where nothing is
/// to be `known`, or it is none of a session's or of one that something stands in for. Where
/// it is known, leaves it the one that is taken, and drops what is slower.
pub(crate) fn settle(tier: &mut Tier, on: &Capabilities, known: Option<&Choices>) {
    for (name, entry) in &mut tier.entries {
        let known = known.filter(|_| name == STEP);
        let joined = |v: &Variant| known?.joined.get(&v.name).filter(|_| is_tried(v)).copied();
        entry.variants.retain(|v| joined(v) != Some(false));
        // What is joined, for good, is not run apart.
        let faster = entry.variants.iter().filter(|v| joined(v) == Some(true));
        let faster: Vec<_> = faster.map(|v| v.bounds.clone()).collect();
        for variant in &mut entry.variants {
            let is_left = known.is_none_or(|k| k.has_given_up(&variant.name))
                || variant.grid.is_none() && faster.contains(&variant.bounds);
            let of_variant = known.and_then(|k| k.kernels.get(&variant.name));
            for launch in &mut variant.launches {
                launch.alternatives.retain(|way| takes_way(way, on));
                let chosen = of_variant.and_then(|kernels| kernels.get(&launch.kernel));
                match chosen {
                    Some(chosen) => {
                        let way = launch.kernels().position(|kernel| kernel == chosen);
                        launch.take(way.unwrap_or(0));
                    }
                    None if is_left => launch.take(0),
                    None => {}
                }
            }
            // Those of streams are not measured.
            let streamed = variant.streams.iter_mut().flat_map(|s| &mut s.launches);
            streamed.for_each(|launch| launch.take(0));
        }
    }
}

/// Puts, behind each variant, the other ways to do it that have all of their kernels; gives
/// the way of each variant, 0 where it stands as it was.
pub(crate) fn unfold(entry: &mut Entry, is_known: impl Fn(&str) -> bool) -> Vec<usize> {
    let (mut variants, mut ways) = (Vec::new(), Vec::new());
    for mut variant in std::mem::take(&mut entry.variants) {
        for launch in variant.all_launches_mut() {
            launch.alternatives.retain(|way| is_known(&way.kernel));
        }
        ways.extend(0..variant.ways());
        variants.extend(variant.each_way());
    }
    entry.variants = variants;
    ways
}
