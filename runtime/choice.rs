//! Which of several ways to do a launch is taken on a device.
//!
//! A plan's launches may have [alternatives](kiln_ir::plan::Alternative), and layers may be
//! joined. Which is the fastest is measured when a model is loaded on a device for the first
//! time, and kept: so it is the same from then on, and so are results.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_ir::plan::{Entry, Tier, Variant};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::pipelines::write_whole;
use crate::session::STEP;
use crate::tier::{Capabilities, takes_way};

/// What has been found of a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choices {
    /// By the name of a variant of the session's entry, by the kernel of a launch as it
    /// stands, the kernel that is taken.
    pub kernels: BTreeMap<String, BTreeMap<String, String>>,
    /// By the name of a variant whose launches do the work of several, whether it is faster
    /// than launches apart.
    pub joined: BTreeMap<String, bool>,
}

/// The file that keeps them.
#[derive(Debug)]
pub(crate) struct ChoiceFile {
    path: PathBuf,
    pub choices: Choices,
}

impl ChoiceFile {
    /// The choices for kernels of a key on an adapter, as its driver is now; none if none
    /// were made or the file can't be read.
    pub fn open(dir: &Path, adapter: &Adapter, key: &str) -> Self {
        let info = adapter.info();
        let mut hasher = blake3::Hasher::new();
        let backend = info.backend.to_string();
        for text in [&backend, &info.name, &info.driver, &info.driver_info] {
            hasher.update(blake3::hash(text.as_bytes()).as_bytes());
        }
        hasher.update(key.as_bytes());
        let name = format!("{}.choices.json", &hasher.finalize().to_hex()[..32]);
        let path = dir.join(name);
        let bytes = fs::read(&path).ok();
        let choices = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        ChoiceFile {
            path,
            choices: choices.unwrap_or_default(),
        }
    }

    /// Writes them; failures are of no consequence.
    pub fn save(&self) {
        if let Ok(bytes) = serde_json::to_vec_pretty(&self.choices) {
            write_whole(&self.path, &bytes);
        }
    }
}

/// Leaves each launch of a tier the ways that an adapter has: only one of them if that is
/// known to be taken, and the launch as it stands where nothing is to be `known`, or it is
/// none of a session's.
pub(crate) fn settle(tier: &mut Tier, on: &Capabilities, known: Option<&Choices>) {
    for (name, entry) in &mut tier.entries {
        let is_slower = |v: &Variant| known.and_then(|k| k.joined.get(&v.name)) == Some(&false);
        entry.variants.retain(|v| v.grid.is_none() || !is_slower(v));
        let known = known.filter(|_| name == STEP);
        for variant in &mut entry.variants {
            let of_variant = known.and_then(|k| k.kernels.get(&variant.name));
            for launch in variant.all_launches_mut() {
                launch.alternatives.retain(|way| takes_way(way, on));
                let chosen = of_variant.and_then(|kernels| kernels.get(&launch.kernel));
                // A kernel that is none of its ways is no choice.
                let chosen = chosen.and_then(|c| launch.kernels().position(|k| k == c));
                match chosen {
                    Some(way) => launch.take(way),
                    None if known.is_none() => launch.take(0),
                    None => {}
                }
            }
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
