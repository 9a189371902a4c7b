//! Trials of what a plan leaves open, when a model is loaded: whether variants with
//! barriers across a grid work on a device, and which of several ways to do a launch is the
//! fastest.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use kiln_ir::plan::{BATCH, CONTEXT, PAST, SEQ};

use crate::choice::ChoiceFile;
use crate::dims::Values;
use crate::error::{Error, Result};
use crate::exec::{
    Allocation, GRID_STATE_BYTES, PortProgram, Program, Recorder, VariantProgram, has_stalled,
};
use crate::model::{LoadProgress, Model};
use crate::profile::{Profile, Timer};
use crate::readback::Staging;
use crate::session::STEP;
use crate::sizes::piece_rows;
use crate::trust;

/// How much less time another way has to take than the launch as it stands.
const WORTHWHILE: f64 = 0.97;

/// About how long a step takes at which ways to do its launches are measured, and how long
/// all of that may take for a variant.
const STEP_TIME: Duration = Duration::from_millis(100);
const ALL_STEPS: Duration = Duration::from_secs(1);

/// How often each is measured, at the least and at the most.
const ROUNDS: [u32; 2] = [2, 12];

/// The most sequences at which ways are measured.
const SEQUENCES: u64 = 32;

/// Positions at which a variant with a grid is compared.
const POSITIONS: u64 = 4;

/// About how long each measurement of single tokens takes, the most tokens of one, and how
/// often they are made.
const TOKEN_TIME: Duration = Duration::from_millis(100);
const TOKENS: u32 = 8;
const TOKEN_ROUNDS: u32 = 4;

/// A program at certain sizes, with inputs of its own.
struct Trial<'m> {
    model: &'m Model,
    program: &'m Program,
    values: Values,
    allocation: Allocation,
    staging: Staging,
    output: &'m PortProgram,
    output_bytes: u64,
}

impl<'m> Trial<'m> {
    /// A trial of `seq` tokens of each of `batch` sequences, with states for `context`; none
    /// if the program is not a session's, which has ids and where sequences start, or if
    /// there are sizes that it does not take.
    fn new(
        model: &'m Model,
        program: &'m Program,
        [batch, seq]: [u64; 2],
        context: u64,
    ) -> Result<Option<Self>> {
        let values = sizes(model, [batch, seq], context);
        let output = program.outputs.first();
        let Some(output) = output.filter(|_| program.slices.is_empty()) else {
            return Ok(None);
        };
        for port in &program.inputs {
            let tokens = if port.name == "ids" { seq } else { 1 };
            if port.bytes(&values)? != 4 * batch * tokens {
                return Ok(None);
            }
        }
        let output_bytes = output.bytes(&values)?;
        let mut most = values.clone();
        most.set(&model.slots, PAST, context.saturating_sub(seq));
        Ok(Some(Trial {
            model,
            program,
            allocation: Allocation::new(model, program, &most)?,
            staging: Staging::new(&model.device, 2 * output_bytes + GRID_STATE_BYTES)?,
            values,
            output,
            output_bytes,
        }))
    }

    /// Makes tokens stand at `past`, other ones for each, and for each `salt`.
    fn stand_at(&mut self, past: u64, salt: u64) -> Result<()> {
        self.values.set(&self.model.slots, PAST, past);
        for port in &self.program.inputs {
            let bytes = port.bytes(&self.values)?;
            let vocab = self.model.plan.model.vocab_size.max(1);
            let id = |at: u64| ((past + at + 977 * salt) * 7919 % vocab) as u32;
            let words: Vec<u32> = match port.name.as_str() {
                "ids" => (0..bytes / 4).map(id).collect(),
                _ => vec![0; (bytes / 4) as usize],
            };
            let buffer = self.allocation.buffer(port.buffer)?;
            let given = Some(bytemuck::cast_slice(&words));
            self.model.write_input(&port.name, given, bytes, buffer)?;
        }
        Ok(())
    }

    /// Whether two variants give the same, and no barrier failed.
    fn agree(&mut self, one: usize, other: usize) -> Result<bool> {
        let uniforms = self.allocation.push_uniforms(self.model, &self.values)?;
        let bytes = self.output_bytes;
        let index = self.model.device.scoped("a trial", || {
            let mut recorder = Recorder::new(self.model, None);
            let results = self.allocation.buffer(self.output.buffer)?;
            for (at, variant) in [(0, one), (bytes, other)] {
                let (program, values) = (self.program, &self.values);
                recorder.variant(program, &self.allocation, variant, values, uniforms)?;
                let staging = &self.staging;
                staging.copy_to(at, recorder.encoder(), results, 0, bytes);
            }
            self.allocation
                .copy_grid_state(&mut recorder, &self.staging, 2 * bytes)?;
            Result::Ok(recorder.submit())
        })??;
        let all = 2 * bytes + self.allocation.grid_state_bytes();
        self.staging.read(&self.model.device, all, index, |all| {
            let (results, state) = all.split_at(2 * bytes as usize);
            let results: Vec<f32> = bytemuck::pod_collect_to_vec(results);
            let (one, other) = results.split_at(results.len() / 2);
            Ok(!has_stalled(state) && trust::agree(one, other))
        })
    }

    /// What a variant takes, so many times, by the host's clock.
    fn clock(&mut self, variant: usize, times: u32) -> Result<Duration> {
        let uniforms = self.allocation.push_uniforms(self.model, &self.values)?;
        let device = &self.model.device;
        let begun = Instant::now();
        let index = device.scoped("a trial", || {
            let mut recorder = Recorder::new(self.model, None);
            for _ in 0..times {
                let (program, values) = (self.program, &self.values);
                recorder.variant(program, &self.allocation, variant, values, uniforms)?;
            }
            Result::Ok(recorder.submit())
        })??;
        device.wait("a trial", index)?;
        Ok(begun.elapsed())
    }

    /// What each of a variant's launches takes.
    fn profile(&mut self, variant: usize) -> Result<Profile> {
        let uniforms = self.allocation.push_uniforms(self.model, &self.values)?;
        let timer = Timer::new(&self.model.device)?;
        let timer = self.model.device.scoped("a trial", || {
            let mut recorder = Recorder::new(self.model, Some(timer));
            let (program, values) = (self.program, &self.values);
            recorder.variant(program, &self.allocation, variant, values, uniforms)?;
            recorder.submit();
            Result::Ok(recorder.into_timer())
        })??;
        timer.map_or(Ok(Profile::default()), |timer| timer.finish(self.model))
    }
}

/// Whether what failed with this error would again.
fn is_final(error: &Error) -> bool {
    trust::is_verdict(error) || matches!(error, Error::DeviceLost { .. })
}

/// An outcome, or `None` where it says that the driver cannot do what was tried, or that there
/// was no memory for that, which does not say that there is none for a session.
fn tried<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(Error::OutOfMemory { .. }) => Ok(None),
        Err(error) if trust::is_verdict(&error) => Ok(None),
        outcome => outcome.map(Some),
    }
}

impl Model {
    /// Tries variants with grids, and where choices are kept in a `file` measures what is
    /// not known so far. Leaves the variants that are run, and in the file what is known
    /// then.
    pub(crate) fn try_out(
        &mut self,
        mut file: Option<&mut ChoiceFile>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<()> {
        self.try_grids(file.as_deref_mut())?;
        if let Some(file) = file {
            self.choose_ways(file, progress)?;
            self.drop_slower(file)?;
        }
        Ok(())
    }

    /// Runs each variant with a grid that is to be tried, and drops those in which a
    /// workgroup waited in vain, since how many run at once depends on the kernel, those
    /// that differ from the variant that is run without them, and those that the driver
    /// refuses.
    fn try_grids(&mut self, mut file: Option<&mut ChoiceFile>) -> Result<()> {
        let mut unfit = Vec::new();
        for (name, program) in &self.entries {
            for (index, variant) in program.variants.iter().enumerate() {
                // Other ways to do its launches are compared with it, later.
                if !variant.is_to_be_tried || variant.way != 0 {
                    continue;
                }
                let outcome = tried(self.is_fit(program, index));
                if let (Err(error), Some(file)) = (&outcome, &mut file) {
                    file.note_loss(&variant.name, error);
                }
                if outcome? != Some(true) {
                    unfit.push((name.clone(), index));
                }
            }
        }
        for (name, variant) in unfit.into_iter().rev() {
            if let Some(program) = self.entries.get_mut(&name) {
                let ways = ways_of(&program.variants, variant);
                program.variants.drain(ways);
            }
        }
        Ok(())
    }

    /// Whether a variant with a grid gives, for some tokens one after the other, what the
    /// first gives that has none.
    fn is_fit(&self, program: &Program, variant: usize) -> Result<bool> {
        let context = POSITIONS.min(self.plan.model.max_context);
        let Some(mut trial) = Trial::new(self, program, [1, 1], context)? else {
            return Ok(false);
        };
        let plain = program.variant_of(&trial.values, |v| v.grid.is_none())?;
        for past in 0..context {
            trial.stand_at(past, 0)?;
            if !trial.agree(variant, plain)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Measures launches that can be done in several ways, and leaves each in the one that
    /// is the fastest; notes which that is.
    fn choose_ways(
        &mut self,
        file: &mut ChoiceFile,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<()> {
        let Some(program) = self.entries.get(STEP) else {
            return Ok(());
        };
        let groups: Vec<Range<usize>> = groups(&program.variants).collect();
        let open = groups.iter().filter(|group| group.len() > 1).count();
        if open == 0 {
            return Ok(());
        }
        let mut report = |done| {
            progress(LoadProgress {
                trials: done,
                trials_total: open,
                ..LoadProgress::default()
            });
        };
        let mut chosen = Vec::new();
        let mut done = 0;
        report(done);
        for group in &groups {
            if group.len() == 1 {
                chosen.push(BTreeMap::new());
                continue;
            }
            let name = &program.variants[group.start].name;
            file.begin(name);
            let outcome = self.measure(program, group.clone());
            match &outcome {
                Err(error) if is_final(error) => file.give_up(name),
                // There may be memory another time, but not for ever.
                Err(Error::OutOfMemory { .. }) => {}
                _ => file.end(name),
            }
            let measured = tried(outcome)?;
            let mut least = measured.as_ref().map(Means::least).unwrap_or_default();
            // One that joined launches stand before may come to be run yet.
            let bounds = &program.variants[group.start].bounds;
            let mut others = program.variants.iter();
            let is_behind = others.any(|v| v.is_to_be_tried && v.bounds == *bounds);
            if measured.is_some() && !is_behind {
                // What there was nothing to measure of is left as it stands from now on.
                for launch in open_launches(program, group) {
                    let usual = program.variants[group.start].launches[launch].kernel;
                    least.entry(usual).or_insert(usual);
                }
            }
            if !least.is_empty() {
                let kernel = |kernel: &usize| self.kernels[*kernel].name.clone();
                let names = least
                    .iter()
                    .map(|(usual, way)| (kernel(usual), kernel(way)));
                let known = file.choices.kernels.entry(name.clone()).or_default();
                known.extend(names);
            }
            file.save();
            chosen.push(least);
            done += 1;
            report(done);
        }
        if let Some(program) = self.entries.get_mut(STEP) {
            for (group, chosen) in groups.into_iter().zip(&chosen).rev() {
                fold(&mut program.variants, group, chosen);
            }
        }
        Ok(())
    }

    /// What the launches of each of the variants `group`, which are ways to do the first,
    /// take at sizes that the first is run at; nothing if it is not run, since another one
    /// is at the same sizes.
    fn measure(&self, program: &Program, group: Range<usize>) -> Result<Means> {
        let mut means = Means::default();
        let kernel = |way: usize, launch: usize| program.variants[way].launches[launch].kernel;
        let launches = 0..program.variants[group.start].launches.len();
        let open = open_launches(program, &group);

        // Compared at each size, since work is dealt out in other ways at each; measured at
        // the last.
        let mut fit: Vec<usize> = group.clone().collect();
        let mut last = None;
        for size in self.steps_of(program, group.start) {
            let [_, seq] = size;
            let Some(mut trial) = Trial::new(self, program, size, seq)? else {
                return Ok(means);
            };
            trial.stand_at(0, 0)?;
            // The first time a driver may have something to compile.
            trial.clock(group.start, 1)?;
            let took = trial.clock(group.start, 1)?;
            let mut still = vec![group.start];
            for (salt, way) in (1..).zip(fit.into_iter().skip(1)) {
                // Nothing of what another way has left may pass for what this one gives.
                trial.stand_at(0, salt)?;
                if tried(trial.agree(way, group.start))? == Some(true) {
                    still.push(way);
                }
            }
            fit = still;
            last = Some((trial, took));
            if took * 4 > STEP_TIME {
                break;
            }
        }
        let Some((mut trial, took)) = last else {
            return Ok(means);
        };
        let all = took.saturating_mul(fit.len() as u32);
        let all = all.max(Duration::from_micros(1));
        let [least, most] = ROUNDS;
        let rounds = (ALL_STEPS.as_micros() / all.as_micros()).clamp(least.into(), most.into());
        let mut times = vec![vec![f64::INFINITY; launches.len()]; fit.len()];
        // What is left alone needs no time.
        let rounds = if fit.len() > 1 { rounds as usize } else { 0 };
        for round in 0..rounds * fit.len() {
            let way = round % fit.len();
            let profile = trial.profile(fit[way])?;
            for (least, launch) in times[way].iter_mut().zip(&profile.launches) {
                // A clock may stand still.
                if launch.ns > 0.0 {
                    *least = least.min(launch.ns);
                }
            }
        }
        for launch in open {
            let usual = kernel(group.start, launch);
            for (way, times) in fit.iter().zip(&times) {
                // Where a way has no kernel of its own it stands for nothing.
                let kernel = kernel(*way, launch);
                if *way == group.start || kernel != usual {
                    means.add(usual, kernel, times[launch]);
                }
            }
        }
        Ok(means)
    }

    /// Sizes, sequences and tokens of each, of steps that a variant is run for, the largest
    /// last: of a prompt, or else of a token of each of several sequences, or else of several
    /// prompts.
    fn steps_of(&self, program: &Program, variant: usize) -> Vec<[u64; 2]> {
        let most = |symbol: &str| program.maxima.get(symbol).copied().unwrap_or(1);
        let rows = piece_rows(program.rows);
        let longest = most(SEQ).min(rows).min(self.plan.model.max_context);
        let is_run = |size: &[u64; 2]| {
            let taken = program.variant(&sizes(self, *size, size[1]));
            taken.is_ok_and(|taken| taken == variant)
        };
        let prompts = rising(longest).map(|seq| [1, seq]);
        let prompts: Vec<[u64; 2]> = prompts.filter(is_run).collect();
        if !prompts.is_empty() {
            return prompts;
        }
        let batches = || rising(most(BATCH).min(SEQUENCES));
        let tokens = batches().map(|batch| [batch, 1]);
        let tokens: Vec<[u64; 2]> = tokens.filter(is_run).collect();
        if !tokens.is_empty() {
            return tokens;
        }
        let prompts = batches().map(|batch| [batch, longest.min(rows / batch)]);
        prompts.filter(is_run).collect()
    }

    /// Drops variants with grids that are slower than launches apart, and notes which are
    /// not.
    fn drop_slower(&mut self, file: &mut ChoiceFile) -> Result<()> {
        let Some(program) = self.entries.get(STEP) else {
            return Ok(());
        };
        let mut slower = Vec::new();
        for (index, variant) in program.variants.iter().enumerate() {
            let known = &file.choices.joined;
            if !variant.is_to_be_tried || known.contains_key(&variant.name) {
                continue;
            }
            let outcome = tried(self.is_slower(program, index));
            if let Err(error) = &outcome {
                file.note_loss(&variant.name, error);
            }
            if let Some(Some(is_slower)) = outcome? {
                let known = &mut file.choices.joined;
                known.insert(variant.name.clone(), !is_slower);
                if is_slower {
                    slower.push(index);
                }
                file.save();
            }
        }
        if let Some(program) = self.entries.get_mut(STEP) {
            for index in slower.into_iter().rev() {
                program.variants.remove(index);
            }
        }
        Ok(())
    }

    /// Whether tokens take longer by a variant with a grid than by the first that has none;
    /// nothing if that can't be said.
    fn is_slower(&self, program: &Program, variant: usize) -> Result<Option<bool>> {
        let context = POSITIONS.min(self.plan.model.max_context);
        let Some(mut trial) = Trial::new(self, program, [1, 1], context)? else {
            return Ok(None);
        };
        let plain = program.variant_of(&trial.values, |v| v.grid.is_none())?;
        trial.stand_at(0, 0)?;
        let took = trial.clock(plain, 1)?.max(Duration::from_micros(1));
        let tokens = (TOKEN_TIME.as_micros() / took.as_micros()).clamp(1, TOKENS.into()) as u32;
        let mut least = [Duration::MAX; 2];
        for _ in 0..TOKEN_ROUNDS {
            for (least, variant) in least.iter_mut().zip([variant, plain]) {
                *least = trial.clock(variant, tokens)?.min(*least);
            }
        }
        let [joined, apart] = least;
        // Time that a barrier waited in vain says nothing of others.
        Ok(trial.agree(variant, plain)?.then_some(joined > apart))
    }
}

/// Values for so many tokens of each of so many sequences.
fn sizes(model: &Model, [batch, seq]: [u64; 2], context: u64) -> Values {
    let mut values = model.slots.values();
    for (symbol, value) in [(BATCH, batch), (SEQ, seq), (PAST, 0), (CONTEXT, context)] {
        values.set(&model.slots, symbol, value);
    }
    values
}

/// Powers of two below `most`, three quarters of it, and itself.
fn rising(most: u64) -> impl Iterator<Item = u64> {
    let powers = std::iter::successors(Some(1), |n| Some(2 * n));
    let below = powers.take_while(move |n| 4 * n < 3 * most);
    let last = [3 * most / 4, most].into_iter();
    below.chain(last.filter(|n| *n > 0))
}

/// Variants with the ways to do them behind each.
fn groups(variants: &[VariantProgram]) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..variants.len()).filter(|i| variants[*i].way == 0);
    starts.map(|start| ways_of(variants, start))
}

/// The launches that are done in other ways in some of the variants `group` than in the first.
fn open_launches(program: &Program, group: &Range<usize>) -> Vec<usize> {
    let kernel = |way: usize, launch: usize| program.variants[way].launches[launch].kernel;
    let differs = |launch: &usize| {
        let usual = kernel(group.start, *launch);
        group.clone().any(|way| kernel(way, *launch) != usual)
    };
    let launches = 0..program.variants[group.start].launches.len();
    launches.filter(differs).collect()
}

/// A variant with the ways to do it.
fn ways_of(variants: &[VariantProgram], start: usize) -> Range<usize> {
    let others = variants[start + 1..].iter().take_while(|v| v.way > 0);
    start..start + 1 + others.count()
}

/// Leaves the first of the variants `group`, with each launch in the way that is `chosen`.
fn fold(variants: &mut Vec<VariantProgram>, group: Range<usize>, chosen: &BTreeMap<usize, usize>) {
    let start = group.start;
    let ways: Vec<VariantProgram> = variants.drain(start + 1..group.end).collect();
    let variant = &mut variants[start];
    for way in ways {
        for (launch, other) in variant.launches.iter_mut().zip(way.launches) {
            if chosen.get(&launch.kernel) == Some(&other.kernel) {
                *launch = other;
            }
        }
    }
}

/// Nanoseconds and launches, by the kernel of a launch as it stands, and by the kernel that
/// was launched.
#[derive(Debug, Default)]
struct Means(BTreeMap<usize, BTreeMap<usize, (f64, f64)>>);

impl Means {
    fn add(&mut self, usual: usize, kernel: usize, ns: f64) {
        let (sum, count) = self.0.entry(usual).or_default().entry(kernel).or_default();
        *sum += ns;
        *count += 1.0;
    }

    /// Which kernel takes the least time for each that has others that stand for it: its
    /// own unless another one is worth it.
    fn least(&self) -> BTreeMap<usize, usize> {
        let chosen = self.0.iter().map(|(usual, sums)| {
            let means = sums
                .iter()
                .map(|(kernel, (sum, count))| (kernel, sum / count));
            let means: BTreeMap<usize, f64> = means.map(|(k, mean)| (*k, mean)).collect();
            let own = means.get(usual).copied().unwrap_or(0.0);
            let least = means.iter().min_by(|a, b| a.1.total_cmp(b.1));
            let better = least.filter(|(_, mean)| **mean < own * WORTHWHILE);
            (*usual, better.map_or(*usual, |(kernel, _)| *kernel))
        });
        chosen.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_way_has_to_be_worth_it() {
        let mut means = Means::default();
        for (usual, kernel, ns) in [
            // Of two launches each, but for the last, which one has for itself.
            (0, 0, 60.0),
            (0, 0, 60.0),
            (0, 1, 50.0),
            (0, 1, 60.0),
            (0, 2, 55.0),
            (0, 2, 80.0),
            (0, 6, 59.0),
            (3, 3, 100.0),
            (3, 4, 98.0),
            (5, 5, f64::INFINITY),
        ] {
            means.add(usual, kernel, ns);
        }
        assert_eq!(means.least(), [(0, 1), (3, 3), (5, 5)].into());
    }

    #[test]
    fn sizes_rise_to_the_largest() {
        let sizes = |most| rising(most).collect::<Vec<u64>>();
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(2), [1, 1, 2]);
        assert_eq!(sizes(8), [1, 2, 4, 6, 8]);
        assert_eq!(
            sizes(1000),
            [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 750, 1000]
        );
    }
}
