//! A model on a device: weights uploaded, pipelines created.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kiln_ir::plan::{Binding, Entry, Launch, Plan, SEQ, Tier, Variant};

use crate::adapter::Adapter;
use crate::ahead;
use crate::artifact::Artifact;
use crate::choice::{self, ChoiceFile, Choices};
use crate::device::Device;
use crate::dims::{SlotDim, Slots};
use crate::error::{Error, Result};
use crate::exec::{Program, maxima};
use crate::load::{Loader, Weights, sources};
use crate::pipelines::{CacheFile, Compiled, Compiler, user_cache_dir};
use crate::resident::Form;
use crate::sampler;
use crate::session::STEP;
use crate::sizes::{SessionSize, expected, keep_needed};
use crate::tier;
use crate::trust;

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The tier by name; the most capable that the adapter can run if absent.
    pub tier: Option<String>,
    /// Whether kernels are compiled with bounds checks, bounded loops and zeroed
    /// workgroup memory. Slower; for kernels under suspicion.
    pub checked: bool,
    /// The entries to load; all of the tier's if absent. Weights and kernels that
    /// none of them uses stay out.
    pub entries: Option<Vec<String>>,
    /// What the model's sessions are for, if that is known: launches that none of
    /// them needs stay out, which makes loading faster. Sessions of more sequences
    /// than these may then be refused, and longer prompts take smaller pieces. All
    /// launches are loaded if it is empty.
    pub sessions: Vec<SessionSize>,
    /// Where compiled pipelines are kept, if the driver allows it, what is known of its own
    /// cache, and which ways to do launches are the fastest.
    pub cache_dir: Option<PathBuf>,
    /// Whether kernels are loaded that draw tokens. Without, sessions choose the likeliest
    /// token on the device, and draw on the host where that is asked for all the same.
    pub draw: bool,
    /// Whether variants with a [`Grid`](kiln_ir::plan::Grid) are taken that the
    /// device is found fit for, and that were not measured to be slower.
    pub join: bool,
    /// Whether it is measured which of several ways to do a launch is the fastest, and
    /// whether joined launches are, when a model is loaded on a device for the first time:
    /// what is found is kept in [`LoadOptions::cache_dir`], for an artifact, a tier and a
    /// driver. Where there is no such folder nothing is measured, and launches are done as
    /// they stand in the plan.
    pub tune: bool,
    /// Whether a software driver's threads are given a processor each (Linux), once a
    /// generation is under way: steps are faster, but for those beside other work that wants
    /// the same processors.
    pub pin: bool,
}

/// What a tier has that can be done without.
#[derive(Clone, Copy)]
struct Offered {
    /// Several ways to do a launch, or joined launches, one of which is found to be faster.
    ways: bool,
    joined: bool,
}

impl Offered {
    fn by(tier: &Tier) -> Self {
        let variants = || tier.entries.values().flat_map(|e| &e.variants);
        let joined = variants().any(|v| v.grid.is_some());
        let ways = joined || variants().any(|v| v.ways() > 1);
        Offered { ways, joined }
    }
}

impl LoadOptions {
    /// Leaves out what a load may have failed for and can be done without; whether there was
    /// anything.
    fn ask_less(&mut self, error: &Error, offered: Offered) -> bool {
        let is_lost = matches!(error, Error::DeviceLost { .. });
        let measures = self.tune && self.cache_dir.is_some() && offered.ways;
        // Perhaps a launch that was measured lost it, or what was found to be fastest once is
        // refused by now.
        if measures && (is_lost || trust::is_verdict(error)) {
            self.tune = false;
            return true;
        }
        // Perhaps a check of joined launches did.
        let joins = is_lost && self.join && offered.joined;
        self.join &= !joins;
        joins
    }
}

impl Default for LoadOptions {
    /// The best tier, unchecked, all entries, with the user's cache folder, joined
    /// launches and the fastest ways to do others.
    fn default() -> Self {
        LoadOptions {
            tier: None,
            checked: false,
            entries: None,
            sessions: Vec::new(),
            cache_dir: user_cache_dir(),
            draw: true,
            join: true,
            tune: true,
            pin: true,
        }
    }
}

impl LoadOptions {
    /// Loads only these entries.
    #[must_use]
    pub fn entries(mut self, names: &[&str]) -> Self {
        self.entries = Some(names.iter().map(|n| (*n).to_owned()).collect());
        self
    }

    /// Loads for sessions of `batch` sequences whose longest prompt has `prompt`
    /// tokens, besides those named before.
    #[must_use]
    pub fn session(mut self, batch: u64, prompt: u64) -> Self {
        self.sessions.push(SessionSize { batch, prompt });
        self
    }
}

/// How far loading is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights uploaded.
    pub weight_bytes: u64,
    /// Bytes of weights in all.
    pub weight_bytes_total: u64,
    /// Pipelines created.
    pub kernels: usize,
    /// Pipelines in all.
    pub kernels_total: usize,
    /// Kernels that a driver's cache received so far, before anything else; none if it
    /// has them, and where there is no such cache.
    pub kernels_ahead: usize,
    /// Those in all.
    pub kernels_ahead_total: usize,
    /// Variants of steps so far whose launches were measured, those that can be done in
    /// several ways, after everything else; none if it is known which is the fastest.
    pub trials: usize,
    /// Those in all.
    pub trials_total: usize,
}

/// How a device was lost while a model was opened, which was then repeated with less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The driver's reason.
    pub reason: String,
    /// Whether there still are joined launches, so that measuring alone was left out.
    pub joined: bool,
}

/// A loaded model.
pub struct Model {
    pub(crate) device: Device,
    pub(crate) plan: Plan,
    pub(crate) slots: Slots,
    /// The slot of each member of the uniform block.
    pub(crate) uniform_slots: Vec<usize>,
    pub(crate) weights: Weights,
    /// Bytes of each state.
    pub(crate) states: Vec<SlotDim>,
    pub(crate) kernels: Vec<Compiled>,
    /// What its sessions are for, if it was loaded for some alone.
    pub(crate) sessions: Vec<SessionSize>,
    /// For choosing tokens on the device, where that can be done.
    pub(crate) sampler: Option<sampler::Kernels>,
    pub(crate) entries: BTreeMap<String, Program>,
    /// The entries of its tier, loaded or not.
    available: Vec<String>,
    choices: Choices,
    tier: String,
    lost: Option<Loss>,
    /// Tiers that the driver refused, and why.
    refused: Vec<(String, String)>,
    /// Whether a software driver's threads may be given processors.
    pub(crate) pin: bool,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("tier", &self.tier)
            .field("adapter", self.device.adapter())
            .field("entries", &self.entries.keys())
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Opens `adapter` with the features that the chosen tier needs, and loads. A
    /// tier that fails its checks there gives way to the next, and so does one that the
    /// driver refuses, unless it was asked for. If the device is lost on the way, that is
    /// repeated without measuring, and then without joined launches. (On DX12 it stays lost
    /// until all that holds it, as `adapter` does, is gone.)
    ///
    /// # Errors
    /// Those of [`tier::choose`], [`Device::open`] and [`Model::load`], of the first tier
    /// if the driver refuses all, and [`Error::Untrusted`] when a tier that was asked for
    /// fails a check.
    pub fn open(
        adapter: &Adapter,
        artifact: &Artifact,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Model> {
        let mut distrusted = BTreeMap::new();
        let mut refusal = None;
        let mut refused = Vec::new();
        'tiers: loop {
            let wanted = options.tier.as_deref();
            let on = adapter.into();
            let chosen = match tier::choose_but(artifact.plan(), &on, wanted, &distrusted) {
                Ok(chosen) => chosen,
                Err(error) => return Err(refusal.unwrap_or(error)),
            };
            let tier = artifact.tier(&chosen.name)?;
            let mut device = match Device::open(adapter, tier::features(&tier, &on)) {
                Ok(device) => device,
                Err(error) => return Err(refusal.unwrap_or(error)),
            };
            if let Some((kernel, reason)) = trust::failure(&device, artifact, &tier, options)? {
                if wanted.is_some() {
                    return Err(Error::Untrusted {
                        tier: tier.name.clone(),
                        adapter: adapter.to_string(),
                        kernel: kernel.to_owned(),
                        reason,
                    });
                }
                distrusted.insert(chosen.name.as_str(), reason);
                continue;
            }
            let mut options = LoadOptions {
                tier: Some(tier.name.clone()),
                ..options.clone()
            };
            let features = device.features();
            let mut lost = None;
            loop {
                let error = match Self::load_tier(device, artifact, &tier, &options, progress) {
                    Ok(model) => {
                        return Ok(Model {
                            lost,
                            refused,
                            ..model
                        });
                    }
                    Err(error) if options.ask_less(&error, Offered::by(&tier)) => error,
                    Err(error) if wanted.is_none() && trust::is_verdict(&error) => {
                        refused.push((chosen.name.clone(), error.to_string()));
                        distrusted.insert(chosen.name.as_str(), error.to_string());
                        refusal.get_or_insert(error);
                        continue 'tiers;
                    }
                    Err(error) => return Err(error),
                };
                // What the device was lost for says more than that there is no other.
                let Ok(again) = Device::open(adapter, features) else {
                    return Err(error);
                };
                if let Error::DeviceLost { reason } = error {
                    lost = Some(Loss {
                        reason,
                        joined: options.join,
                    });
                }
                device = again;
            }
        }
    }

    /// Uploads the weights and creates the pipelines that the entries need, at
    /// the same time, on a device whose driver is trusted with the tier.
    ///
    /// # Errors
    /// When the device cannot run the tier, an entry does not exist, a weight
    /// cannot be read or exceeds a limit, or the driver refuses a kernel.
    pub fn load(
        device: Device,
        artifact: &Artifact,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Model> {
        let on = capabilities(&device);
        let chosen = tier::choose(artifact.plan(), &on, options.tier.as_deref())?;
        let tier = artifact.tier(&chosen.name)?;
        Self::load_tier(device, artifact, &tier, options, progress)
    }

    fn load_tier(
        device: Device,
        artifact: &Artifact,
        tier: &Tier,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Model> {
        let plan = artifact.plan();
        let on = capabilities(&device);
        let available: Vec<String> = tier.entries.keys().cloned().collect();
        let names = entry_names(tier, options)?;
        let mut tier = trust::without_bad_grids(&device, artifact, (tier, &names), &on, options)?;
        let measured = options.cache_dir.as_deref().filter(|_| options.tune);
        let mut choices = measured.map(|dir| {
            let key = kernels_key(artifact, options.checked);
            ChoiceFile::open(dir, device.adapter(), [&tier.name, &key])
        });
        choice::settle(&mut tier, &on, choices.as_ref().map(|file| &file.choices));
        let most = |step: &Entry| maxima(plan, step).get(SEQ).copied().unwrap_or(1);
        let for_sessions = !options.sessions.is_empty();
        if let (Some(step), true) = (tier.entries.get_mut(STEP), for_sessions) {
            let most = most(step);
            keep_needed(step, most, &options.sessions)?;
        }
        // What can't be kept would be measured each time, and be another each time.
        let is_kept = |file: &mut ChoiceFile| !file.is_open(&tier) || file.save();
        choices = choices.and_then(|mut file| is_kept(&mut file).then_some(file));
        if choices.is_none() {
            choice::settle(&mut tier, &on, None);
        }
        let mut run = BTreeSet::new();
        if let (Some(step), true) = (tier.entries.get(STEP), for_sessions) {
            let most = most(step);
            let variants = expected(step, most, &options.sessions)?.into_iter();
            let launches = variants.flat_map(Variant::all_launches);
            run.extend(launches.flat_map(Launch::kernels).map(str::to_owned));
        }
        let tier = &tier;

        let launches = || names.iter().flat_map(|name| launches_of(tier, name));
        let kernels: BTreeSet<&str> = launches().flat_map(Launch::kernels).collect();
        let mut weights: BTreeSet<(usize, Form)> = BTreeSet::new();
        for launch in launches().flat_map(Launch::each_way) {
            let bound = plan.bound(&launch);
            weights.extend(bound.filter_map(|(binding, access)| match binding {
                Binding::Weight(i) => Some((i, access.into())),
                _ => None,
            }));
        }

        let sampling = match names.contains(&STEP) {
            true => sampler::sources(plan, tier, &device, options.draw).unwrap_or_default(),
            false => Vec::new(),
        };

        let slots = Slots::new(plan, tier);
        let uniform_bytes = uniform_bytes(plan);
        let sources = sources(artifact, &kernels, &needed(tier, &names), &sampling)?;
        if !run.is_empty() && names.contains(&STEP) {
            let how = ahead::How {
                checked: options.checked,
                uniform_bytes: [uniform_bytes, sampler::UNIFORM_BYTES],
            };
            let run = sources.iter().filter(|s| s.samples || run.contains(s.name));
            let run: Vec<_> = run.collect();
            let marks = options.cache_dir.as_deref();
            ahead::compile(&device, how, &run, marks, &mut |ready| {
                progress(LoadProgress {
                    kernels_ahead: ready,
                    kernels_ahead_total: run.len(),
                    ..LoadProgress::default()
                });
            });
        }
        let cache = options.cache_dir.as_deref().and_then(|dir| {
            let key = kernels_key(artifact, options.checked);
            CacheFile::open(&device, dir, &key)
        });
        let (cache_file, cache) = match cache {
            Some((file, cache)) => (Some(file), Some(cache)),
            None => (None, None),
        };
        let compiler = Compiler::new(&device, uniform_bytes, options.checked, cache);
        let of_sampler = compiler.with_uniform_bytes(sampler::UNIFORM_BYTES);
        let loader = Loader {
            device: &device,
            artifact,
            sources: &sources,
            compilers: [&compiler, &of_sampler],
            weights: &weights,
        };
        let (weights, compiled) = loader.run(progress)?;
        if let (Some(file), Some(cache)) = (cache_file, compiler.cache()) {
            file.save(cache);
        }
        drop((compiler, of_sampler));
        let mut index = BTreeMap::new();
        let (mut pipelines, mut of_sampler) = (Vec::new(), Vec::new());
        for (source, compiled) in sources.iter().zip(compiled) {
            match compiled {
                Some(compiled) if source.samples => of_sampler.push(compiled),
                Some(compiled) => {
                    index.insert(source.name, pipelines.len());
                    pipelines.push(compiled);
                }
                // Only variants do without it that can be left out.
                None => {}
            }
        }
        let sampler = sampler::Kernels::new(plan, tier, of_sampler);

        let mut entries = BTreeMap::new();
        for name in names {
            let mut entry = Cow::Borrowed(&tier.entries[name]);
            let known = |l: &Launch| index.contains_key(l.kernel.as_str());
            let runs = |v: &Variant| v.all_launches().all(known);
            if !entry.variants.iter().all(runs) {
                entry.to_mut().variants.retain(runs);
            }
            let mut ways = Vec::new();
            if entry.variants.iter().any(|v| v.ways() > 1) {
                ways = choice::unfold(entry.to_mut(), |kernel| index.contains_key(kernel));
            }
            let mut program = Program::new(plan, name, &entry, &slots, &index)?;
            for (variant, way) in program.variants.iter_mut().zip(ways) {
                variant.way = way;
            }
            entries.insert(name.to_owned(), program);
        }
        let states = plan
            .states
            .iter()
            .map(|s| slots.compile(&tier.state_bytes(s)));
        let uniforms = plan.uniforms.iter().filter_map(|name| slots.get(name));
        let mut model = Model {
            uniform_slots: uniforms.collect(),
            states: states.collect::<Result<_>>()?,
            tier: tier.name.clone(),
            sessions: options.sessions.clone(),
            plan: Plan {
                version: plan.version,
                compiler: plan.compiler.clone(),
                model: plan.model.clone(),
                symbols: plan.symbols.clone(),
                uniforms: plan.uniforms.clone(),
                weights: plan.weights.clone(),
                states: plan.states.clone(),
                kernels: BTreeMap::new(),
                tiers: Vec::new(),
                files: BTreeMap::new(),
            },
            available,
            slots,
            weights,
            kernels: pipelines,
            sampler,
            entries,
            choices: Choices::default(),
            lost: None,
            refused: Vec::new(),
            pin: options.pin,
            device,
        };
        model.try_out(choices.as_mut(), progress)?;
        model.choices = choices.map(|file| file.choices).unwrap_or_default();
        Ok(model)
    }

    /// The plan it runs, without launches and kernels: those for all kinds of adapters take
    /// more memory than what was made of them.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The tier in use.
    pub fn tier(&self) -> &str {
        &self.tier
    }

    /// Whether single tokens run kernels of a layer in one launch; see
    /// [`Grid`](kiln_ir::plan::Grid).
    pub fn joins(&self) -> bool {
        let mut variants = self.entries.values().flat_map(|e| &e.variants);
        variants.any(|v| v.grid.is_some())
    }

    /// How the device was lost when the model was opened, if that had to be repeated with
    /// less; see [`Model::open`].
    pub fn loss(&self) -> Option<&Loss> {
        self.lost.as_ref()
    }

    /// Tiers that would have gone before, but for a kernel that the driver refused or a limit
    /// that it has, and what it said; see [`Model::open`].
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        let refused = self.refused.iter();
        refused.map(|(tier, reason)| (tier.as_str(), reason.as_str()))
    }

    /// By variants of `step`, the kernels that were found to be faster than those of launches
    /// as they stand in the plan, by these; see [`LoadOptions::tune`].
    pub fn faster_kernels(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let variants = self.entries.get(STEP).into_iter().flat_map(|e| &e.variants);
        let kernels = &self.choices.kernels;
        let chosen = variants.filter_map(|v| kernels.get_key_value(&v.name));
        let all = chosen.flat_map(|(variant, kernels)| {
            let kernels = kernels.iter();
            kernels.map(move |(usual, way)| (variant.as_str(), usual.as_str(), way.as_str()))
        });
        all.filter(|(_, usual, way)| usual != way)
    }

    /// The variants of `step` whose launches are done as they stand in the plan since
    /// measuring other ways failed, or was the end of too many processes. Where that was by
    /// chance, removing the file that keeps choices in [`LoadOptions::cache_dir`] has it
    /// tried again.
    pub fn untuned(&self) -> impl Iterator<Item = &str> {
        let variants = self.entries.get(STEP).into_iter().flat_map(|e| &e.variants);
        let names = variants.map(|v| v.name.as_str());
        let kernels = &self.choices.kernels;
        let is_known = |name: &str| kernels.get(name).is_some_and(|k| !k.is_empty());
        names.filter(move |name| self.choices.has_given_up(name) && !is_known(name))
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        let weights = self.weights.keys().map(|(i, form)| {
            let weight = &self.plan.weights[*i];
            match form {
                Form::Buffer => weight.bytes,
                Form::Image => weight.image().bytes(),
            }
        });
        weights.sum()
    }

    pub(crate) fn uniform_bytes(&self) -> u64 {
        uniform_bytes(&self.plan)
    }

    pub(crate) fn program(&self, name: &str) -> Result<&Program> {
        if let Some(program) = self.entries.get(name) {
            return Ok(program);
        }
        let is_available = self.available.iter().any(|available| available == name);
        Err(match is_available {
            true => Error::NotLoaded(name.to_owned()),
            false => no_such_entry(&self.available, name),
        })
    }
}

pub(crate) fn uniform_bytes(plan: &Plan) -> u64 {
    (plan.uniforms.len() as u64 * 4)
        .next_multiple_of(16)
        .max(16)
}

fn no_such_entry(available: &[String], name: &str) -> Error {
    Error::NoSuchEntry {
        name: name.to_owned(),
        available: available.join(", "),
    }
}

fn entry_names<'t>(tier: &'t Tier, options: &LoadOptions) -> Result<Vec<&'t str>> {
    let Some(wanted) = &options.entries else {
        return Ok(tier.entries.keys().map(String::as_str).collect());
    };
    let names = wanted.iter().map(|name| {
        let found = tier.entries.get_key_value(name.as_str());
        let found = found.map(|(name, _)| name.as_str());
        found.ok_or_else(|| {
            let available: Vec<String> = tier.entries.keys().cloned().collect();
            no_such_entry(&available, name)
        })
    });
    names.collect()
}

fn launches_of<'t>(tier: &'t Tier, entry: &str) -> impl Iterator<Item = &'t Launch> + use<'t> {
    let entry = tier.entries.get(entry);
    entry
        .into_iter()
        .flat_map(|e| &e.variants)
        .flat_map(Variant::all_launches)
}

/// The kernels of variants without a grid, which nothing stands in for.
fn needed<'t>(tier: &'t Tier, entries: &[&str]) -> BTreeSet<&'t str> {
    let entries = entries.iter().filter_map(|name| tier.entries.get(*name));
    let variants = entries.flat_map(|e| &e.variants);
    let plain = variants.filter(|v| v.grid.is_none());
    plain
        .flat_map(Variant::all_launches)
        .map(|l| l.kernel.as_str())
        .collect()
}

/// What an open device offers, which may be less than its adapter does.
fn capabilities(device: &Device) -> tier::Capabilities {
    tier::Capabilities {
        features: device.features(),
        ..device.adapter().into()
    }
}

/// A name for an artifact's kernels, by their text: whatever is loaded of them shares a
/// cache.
fn kernels_key(artifact: &Artifact, checked: bool) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[u8::from(checked)]);
    for hash in artifact
        .kernel_files()
        .filter_map(|f| artifact.text_hash(f))
    {
        hasher.update(hash.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_leaves_less_to_ask_for() {
        let lost = Error::DeviceLost {
            reason: "a launch took too long".into(),
        };
        let refused = Error::Refused {
            what: "kernel `linear_coop`".into(),
            message: "too many registers".into(),
        };
        let others = [
            Error::plan("a broken plan"),
            Error::other("no more weights"),
            Error::OutOfMemory {
                what: "weights".into(),
            },
        ];
        let asked = |options: &LoadOptions| (options.tune, options.join);

        let all = LoadOptions {
            cache_dir: Some("cache".into()),
            ..LoadOptions::default()
        };
        let offered = Offered {
            ways: true,
            joined: true,
        };
        let mut options = all.clone();
        for error in others {
            assert!(!options.ask_less(&error, offered), "{error}");
        }
        assert_eq!(asked(&options), (true, true));
        assert!(options.ask_less(&refused, offered));
        assert_eq!(asked(&options), (false, true));
        assert!(!options.ask_less(&refused, offered));

        let mut options = all.clone();
        for left in [(false, true), (false, false)] {
            assert!(options.ask_less(&lost, offered));
            assert_eq!(asked(&options), left);
        }
        assert!(!options.ask_less(&lost, offered));

        // Where a tier has nothing of the kind there is nothing to leave out.
        let plain = Offered {
            ways: false,
            joined: false,
        };
        assert!(!all.clone().ask_less(&lost, plain));
        // Without a folder nothing is measured.
        let mut options = LoadOptions {
            cache_dir: None,
            ..all
        };
        assert!(!options.ask_less(&refused, offered));
        assert!(options.ask_less(&lost, offered) && !options.join);
    }
}
