//! Trials of what a plan leaves open, when a model is loaded: whether variants with
//! barriers across a grid work on a device, and which of several ways to do a launch is the
//! fastest.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use kiln_ir::plan::{CONTEXT, PAST};

use crate::choice::Choices;
use crate::dims::Values;
use crate::error::Result;
use crate::exec::{
    Allocation, GRID_STATE_BYTES, PortProgram, Program, Recorder, VariantProgram, has_stalled,
};
use crate::model::{LoadProgress, Model};
use crate::profile::{Profile, Timer};
use crate::readback::Staging;
use crate::session::STEP;
use crate::sizes::PIECE_ROWS;
use crate::trust;

/// How much less time another way has to take than the launch as it stands.
const WORTHWHILE: f64 = 0.97;

/// About how long a step takes at which ways to do its launches are measured, and how long
/// all of that may take.
const STEP_TIME: Duration = Duration::from_millis(100);
const ALL_STEPS: Duration = Duration::from_secs(1);

/// How many times as large the next size is that is tried.
const STRIDE: u32 = 4;

/// The most sequences at which ways are measured.
const SEQUENCES: u64 = 32;

/// How often each is measured, at the least and at the most.
const ROUNDS: [u32; 2] = [2, 12];

/// Tokens of each measurement of a variant for single tokens, and how often those are.
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
    /// if the program is not a session's, which has ids and where sequences start.
    fn new(
        model: &'m Model,
        program: &'m Program,
        [batch, seq]: [u64; 2],
        context: u64,
    ) -> Result<Option<Self>> {
        let values = sizes(model, [batch, seq], context);
        let Some(output) = program.outputs.first() else {
            return Ok(None);
        };
        for port in &program.inputs {
            let tokens = if port.name == "ids" { seq } else { 1 };
            if port.bytes(&values)? != 4 * batch * tokens {
                return Ok(None);
            }
        }
        let output_bytes = output.bytes(&values)?;
        Ok(Some(Trial {
            model,
            program,
            allocation: Allocation::new(model, program, &values)?,
            staging: Staging::new(&model.device, 2 * output_bytes + GRID_STATE_BYTES)?,
            values,
            output,
            output_bytes,
        }))
    }

    /// Makes tokens stand at `past`, other ones for each.
    fn stand_at(&mut self, past: u64) -> Result<()> {
        self.values.set(&self.model.slots, PAST, past);
        for port in &self.program.inputs {
            let bytes = port.bytes(&self.values)?;
            let vocab = self.model.plan.model.vocab_size.max(1);
            let id = |at: u64| ((past + at) * 7919 % vocab) as u32;
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
                .copy_grid_state(&mut recorder, &self.staging, 2 * bytes);
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

/// An outcome, or `None` where it says that the driver cannot do what was tried.
fn tried<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if trust::is_verdict(&error) => Ok(None),
        outcome => outcome.map(Some),
    }
}

impl Model {
    /// Tries variants with grids, and where something is to be `known` measures what is
    /// not known so far. Leaves the variants that are run; gives all that is known then.
    pub(crate) fn try_out(
        &mut self,
        known: Option<&Choices>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Choices> {
        let mut found = known.cloned().unwrap_or_default();
        self.try_grids(known.map(|_| &mut found.joined))?;
        self.choose_ways(&mut found.kernels, progress)?;
        Ok(found)
    }

    /// Runs each variant with a grid that is to be tried, and drops those in which a
    /// workgroup waited in vain, since how many run at once depends on the kernel, those
    /// that differ from the variant that is run without them, those that the driver
    /// refuses, and those that are not `faster`, if that is asked for.
    fn try_grids(&mut self, mut faster: Option<&mut BTreeMap<String, bool>>) -> Result<()> {
        let mut unfit = Vec::new();
        for (name, program) in &self.entries {
            for (index, variant) in program.variants.iter().enumerate() {
                // Other ways to do its launches are compared with it, later.
                if !variant.is_to_be_tried || variant.way > 0 {
                    continue;
                }
                let measures = faster
                    .as_ref()
                    .is_some_and(|f| !f.contains_key(&variant.name));
                let outcome = tried(self.try_grid(program, index, measures))?;
                if let (Some(Some(is_faster)), Some(faster)) = (outcome, &mut faster)
                    && measures
                {
                    faster.insert(variant.name.clone(), is_faster);
                }
                if outcome.flatten() != Some(true) {
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

    /// Whether a variant with a grid is worth it; nothing if it does not give, for some
    /// tokens one after the other, what the first gives that has none. It is if it is not
    /// slower than that, or nobody `measures`.
    fn try_grid(&self, program: &Program, variant: usize, measures: bool) -> Result<Option<bool>> {
        const POSITIONS: u64 = 4;
        let context = POSITIONS.min(self.plan.model.max_context);
        let Some(mut trial) = Trial::new(self, program, [1, 1], context)? else {
            return Ok(None);
        };
        let plain = program.variant_of(&trial.values, |v| v.grid.is_none())?;
        for past in 0..context {
            trial.stand_at(past)?;
            if !trial.agree(variant, plain)? {
                return Ok(None);
            }
        }
        if !measures {
            return Ok(Some(true));
        }
        let mut least = [Duration::MAX; 2];
        for _ in 0..TOKEN_ROUNDS {
            for (least, variant) in least.iter_mut().zip([variant, plain]) {
                *least = trial.clock(variant, TOKENS)?.min(*least);
            }
        }
        let [joined, apart] = least;
        Ok(Some(joined <= apart))
    }

    /// Measures launches that can be done in several ways, and leaves each in the one that
    /// is the fastest; adds to `found` which that is.
    fn choose_ways(
        &mut self,
        found: &mut BTreeMap<String, BTreeMap<String, String>>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<()> {
        let Some(program) = self.entries.get(STEP) else {
            return Ok(());
        };
        let groups: Vec<Range<usize>> = groups(&program.variants).collect();
        let mut chosen = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            let mut report = |done: usize, all: usize| {
                progress(LoadProgress {
                    trials: at * all + done,
                    trials_total: groups.len() * all,
                    ..LoadProgress::default()
                });
            };
            let measured = tried(self.measure(program, group.clone(), &mut report))?;
            chosen.push(measured.map(|sums| sums.least()).unwrap_or_default());
        }
        let name = |kernel: &usize| self.kernels[*kernel].name.clone();
        for (group, chosen) in groups.iter().zip(&chosen) {
            let names = chosen.iter().map(|(usual, way)| (name(usual), name(way)));
            let variant = &program.variants[group.start].name;
            if !chosen.is_empty() {
                found.entry(variant.clone()).or_default().extend(names);
            }
        }
        if let Some(program) = self.entries.get_mut(STEP) {
            for (group, chosen) in groups.into_iter().zip(&chosen).rev() {
                fold(&mut program.variants, group, chosen);
            }
        }
        Ok(())
    }

    /// What the launches of each of the variants `group`, which are ways to do the first,
    /// take at sizes that the first is run at.
    fn measure(
        &self,
        program: &Program,
        group: Range<usize>,
        report: &mut dyn FnMut(usize, usize),
    ) -> Result<Sums> {
        let mut sums = Sums::default();
        let kernel = |way: usize, launch: usize| program.variants[way].launches[launch].kernel;
        let launches = 0..program.variants[group.start].launches.len();
        let differs = |launch: &usize| {
            let usual = kernel(group.start, *launch);
            group.clone().any(|way| kernel(way, *launch) != usual)
        };
        let open: Vec<usize> = launches.clone().filter(differs).collect();
        if open.is_empty() {
            return Ok(sums);
        }
        let Some((mut trial, took)) = self.step_of(program, group.start)? else {
            // Where it can't be run there is no time to win.
            open.iter()
                .map(|launch| kernel(group.start, *launch))
                .for_each(|usual| sums.add(usual, usual, 0.0));
            return Ok(sums);
        };
        let mut fit = vec![group.start];
        for way in group.clone().skip(1) {
            if tried(trial.agree(way, group.start))? == Some(true) {
                fit.push(way);
            }
        }
        let all = took
            .saturating_mul(fit.len() as u32)
            .max(Duration::from_micros(1));
        let [least, most] = ROUNDS;
        let rounds = (ALL_STEPS.as_micros() / all.as_micros()).clamp(least.into(), most.into());
        let mut times = vec![vec![f64::INFINITY; launches.len()]; fit.len()];
        let trials = rounds as usize * fit.len();
        for done in 0..trials {
            report(done, trials);
            let way = done % fit.len();
            let profile = trial.profile(fit[way])?;
            for (least, launch) in times[way].iter_mut().zip(&profile.launches) {
                *least = least.min(launch.ns);
            }
        }
        for launch in open {
            let usual = kernel(group.start, launch);
            for (way, times) in fit.iter().zip(&times) {
                // Where a way has no kernel of its own it stands for nothing.
                let kernel = kernel(*way, launch);
                if *way == group.start || kernel != usual {
                    sums.add(usual, kernel, times[launch]);
                }
            }
        }
        report(trials, trials);
        Ok(sums)
    }

    /// A step that a variant takes: of a prompt, as long as they come if that does not take
    /// too long, or else of a token of each of several sequences; and how long it takes.
    fn step_of<'m>(
        &'m self,
        program: &'m Program,
        variant: usize,
    ) -> Result<Option<(Trial<'m>, Duration)>> {
        let most = |symbol: &str| program.maxima.get(symbol).copied().unwrap_or(1);
        let longest = most("seq").min(PIECE_ROWS).min(self.plan.model.max_context);
        let prompts = rising(longest).map(|seq| [1, seq]);
        let batches = rising(most("batch").min(SEQUENCES)).map(|batch| [batch, 1]);
        for all in [prompts.collect::<Vec<_>>(), batches.collect()] {
            let mut found = None;
            for size in all {
                let [_, seq] = size;
                let taken = program.variant(&sizes(self, size, seq));
                if !taken.is_ok_and(|taken| taken == variant) {
                    continue;
                }
                let Some(mut trial) = Trial::new(self, program, size, seq)? else {
                    return Ok(None);
                };
                trial.stand_at(0)?;
                // The first time a driver may have something to compile.
                trial.clock(variant, 1)?;
                let took = trial.clock(variant, 1)?;
                found = Some((trial, took));
                if took * STRIDE > STEP_TIME {
                    break;
                }
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// Values for so many tokens of each of so many sequences.
fn sizes(model: &Model, [batch, seq]: [u64; 2], context: u64) -> Values {
    let mut values = model.slots.values();
    for (symbol, value) in [
        ("batch", batch),
        ("seq", seq),
        (PAST, 0),
        (CONTEXT, context),
    ] {
        values.set(&model.slots, symbol, value);
    }
    values
}

/// Numbers up to `most`, each [`STRIDE`] times the last.
fn rising(most: u64) -> impl Iterator<Item = u64> {
    let powers = std::iter::successors(Some(1), |n| Some(n * u64::from(STRIDE)));
    powers.take_while(move |n| *n < most).chain([most])
}

/// Variants with the ways to do them behind each.
fn groups(variants: &[VariantProgram]) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..variants.len()).filter(|i| variants[*i].way == 0);
    starts.map(|start| ways_of(variants, start))
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

/// Nanoseconds by the kernel of a launch as it stands, and by the kernel that was launched.
#[derive(Debug, Default)]
struct Sums(BTreeMap<usize, BTreeMap<usize, f64>>);

impl Sums {
    fn add(&mut self, usual: usize, kernel: usize, ns: f64) {
        let sums = self.0.entry(usual).or_default();
        *sums.entry(kernel).or_default() += ns;
    }

    /// Which kernel takes the least time for each that has others that stand for it: its
    /// own unless another one is worth it.
    fn least(&self) -> BTreeMap<usize, usize> {
        let chosen = self.0.iter().filter_map(|(usual, sums)| {
            let own = *sums.get(usual)?;
            let least = sums.iter().min_by(|a, b| a.1.total_cmp(b.1))?;
            let is_worthwhile = *least.1 < own * WORTHWHILE;
            Some((*usual, if is_worthwhile { *least.0 } else { *usual }))
        });
        chosen.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_way_has_to_be_worth_it() {
        let mut sums = Sums::default();
        for (usual, kernel, ns) in [
            // Of two launches each.
            (0, 0, 60.0),
            (0, 0, 60.0),
            (0, 1, 50.0),
            (0, 1, 60.0),
            (0, 2, 55.0),
            (0, 2, 80.0),
            (3, 3, 100.0),
            (3, 4, 98.0),
            (5, 5, 1.0),
        ] {
            sums.add(usual, kernel, ns);
        }
        assert_eq!(sums.least(), [(0, 1), (3, 3), (5, 5)].into());
    }
}
