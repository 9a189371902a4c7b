//! Launch plans, run on an emulated device.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::packing::BAND_ROWS;
use kiln_ir::plan::{
    self, BATCH, BLOCK, Binding, CONTEXT, Check, ImageSize, Launch, PAST, Plan, SEQ, Tier,
    WeightPart,
};
use kiln_ir::{Bindings, Dim, DimError, Symbol};

use crate::device::{Buffer, Device, Kernel};
use crate::fault::Fault;

/// What keeps a plan from being run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A kernel did what none may.
    #[error("`{label}`, kernel `{kernel}`: {fault}")]
    Launch {
        /// The launch.
        label: String,
        /// Its kernel.
        kernel: String,
        /// What it did.
        fault: Box<Fault>,
    },
    /// The plan has no tier, entry, variant, kernel or input of this name or for these
    /// sizes.
    #[error("the plan has no {0}")]
    Missing(String),
    /// Workgroups of a launch gave up waiting for each other.
    #[error("a launch of variant `{0}` has stalled: its workgroups did not meet")]
    Stalled(String),
    /// A size has no value.
    #[error(transparent)]
    Size(#[from] DimError),
}

/// A tier of a plan, with its weights on an emulated device.
///
/// Buffers and images hold no number before they are written, but for those that are
/// zeroed.
pub struct Program<'a> {
    plan: &'a Plan,
    tier: &'a Tier,
    texts: &'a BTreeMap<String, String>,
    /// Those that have been launched.
    kernels: BTreeMap<&'a str, Kernel>,
    device: Device,
    weights: Vec<Buffer>,
    /// Those that are bound as images.
    images: BTreeMap<usize, Buffer>,
    /// Whether variants are run whose launches do the work of several.
    join: bool,
    /// The most workgroups across a grid.
    across: u64,
    /// The kernels that have been launched, and those of their barriers that were reached,
    /// by where they begin in the text.
    pub launched: BTreeMap<String, BTreeSet<usize>>,
}

/// What of a plan is run, and on what.
#[derive(Clone, Copy, Debug)]
pub struct On<'t> {
    /// The tier, by its name.
    pub tier: &'t str,
    /// Whether variants are run whose launches do the work of several.
    pub join: bool,
    /// Invocations in a subgroup, where the tier does not say how many.
    pub subgroup: usize,
    /// The most workgroups across a grid: where there are more it has two dimensions, but
    /// for launches that do the work of several, whose workgroups are few.
    pub across: u64,
}

/// The buffers of an entry point, and states, at a capacity.
pub struct Session {
    entry: String,
    buffers: Vec<Buffer>,
    states: Vec<Buffer>,
    context: u64,
}

/// Words that are no numbers, as an f32 and as two halves, and that nobody has by chance.
const UNWRITTEN: u32 = 0x7fde_7ead;

impl<'a> Program<'a> {
    /// A tier of a plan: `texts` has kernels by file, `weight` gives the bytes of
    /// a weight.
    ///
    /// # Errors
    /// When there is no such tier.
    pub fn new(
        plan: &'a Plan,
        texts: &'a BTreeMap<String, String>,
        on: On<'_>,
        weight: impl Fn(&str) -> Vec<u8>,
    ) -> Result<Self, RunError> {
        let found = plan.tiers.iter().find(|t| t.name == on.tier);
        let tier = found.ok_or_else(|| RunError::Missing(format!("tier `{}`", on.tier)))?;
        let subgroup = tier.requires.subgroup_size.map(|size| size as usize);
        let subgroup = subgroup.unwrap_or(on.subgroup);
        let mut device = match tier.requires.cpu_only {
            true => Device::on_cpu(subgroup),
            false => Device::new(subgroup),
        };
        let bytes: Vec<Vec<u8>> = plan.weights.iter().map(|w| weight(&w.name)).collect();
        let entries = tier.entries.values();
        let as_images: BTreeSet<Binding> = entries.flat_map(|e| plan.images_of(e)).collect();
        let mut images = BTreeMap::new();
        for binding in as_images {
            let Binding::Weight(index) = binding else {
                continue;
            };
            let of_scales = plan.scales_of(index).map(|scales| bytes[scales].as_slice());
            let texels = match plan.weights[index].matrix() {
                Some(matrix) => in_bands(matrix, &bytes[index], of_scales.unwrap_or_default()),
                None => bytes[index].clone(),
            };
            let image = image(&mut device, plan.weights[index].image(), words(&texels));
            images.insert(index, image);
        }
        let weights = bytes.iter().map(|bytes| device.buffer(words(bytes)));
        let weights = weights.collect();
        Ok(Program {
            plan,
            tier,
            texts,
            kernels: BTreeMap::new(),
            device,
            weights,
            images,
            join: on.join,
            across: on.across,
            launched: BTreeMap::new(),
        })
    }

    fn entry(&self, name: &str) -> Result<&'a plan::Entry, RunError> {
        let found = self.tier.entries.get(name);
        found.ok_or_else(|| RunError::Missing(format!("entry `{name}`")))
    }

    /// The variants of an entry point that are run.
    fn variants<'e>(&self, entry: &'e plan::Entry) -> impl Iterator<Item = &'e plan::Variant> {
        let join = self.join;
        let variants = entry.variants.iter();
        variants.filter(move |variant| join || variant.grid.is_none())
    }

    /// Runs the checks of the tier, and of its variants that are run; whether all of them
    /// find what they should.
    ///
    /// # Errors
    /// When a launch fails.
    pub fn check(&mut self) -> Result<bool, RunError> {
        let mut passed = true;
        let variants = self.tier.entries.values().flat_map(|e| self.variants(e));
        let grids = variants.filter_map(|v| v.grid.as_ref());
        let of_grids = grids.filter_map(|grid| grid.check.as_ref());
        let checks: Vec<&'a Check> = self.tier.checks.iter().chain(of_grids).collect();
        for check in checks {
            let buffer = self.device.buffer(vec![0; check.words as usize]);
            let kernel = self.plan.kernels.get(&check.kernel);
            let bindings = vec![buffer; kernel.map_or(0, |k| k.bindings.len())];
            let none = vec![0; self.plan.uniforms.len()];
            let grid = [u64::from(check.workgroups), 1];
            self.start("a check", &check.kernel, grid, &none, &bindings)?;
            passed &= self.device.words(buffer).iter().all(|word| *word == 1);
        }
        Ok(passed)
    }

    /// Buffers and states for `entry`, for sizes up to those of `capacity`; states hold
    /// `context` positions.
    ///
    /// # Errors
    /// When there is no such entry or a size has no value.
    pub fn session(
        &mut self,
        entry: &str,
        capacity: &Bindings,
        context: u64,
    ) -> Result<Session, RunError> {
        let mut sizes = capacity.clone();
        sizes.set(CONTEXT, context).set(BLOCK, 0);
        if sizes.get(&kiln_ir::Symbol::new(PAST)).is_none() {
            sizes.set(PAST, context.saturating_sub(1));
        }
        let found = self.entry(entry)?;
        let mut buffers = Vec::new();
        for buffer in &found.buffers {
            let mut bytes = 0;
            for size in &buffer.bytes {
                bytes = bytes.max(size.eval(&sizes)?);
            }
            let word = if buffer.zeroed { 0 } else { UNWRITTEN };
            buffers.push(self.hold(bytes, word, buffer.image));
        }
        let as_images = self.plan.images_of(found);
        let mut states = Vec::new();
        for (index, state) in self.plan.states.iter().enumerate() {
            let bytes = self.tier.state_bytes(state).eval(&sizes)?;
            let is_image = as_images.contains(&Binding::State(index));
            states.push(self.hold(bytes, UNWRITTEN, is_image));
        }
        Ok(Session {
            entry: entry.to_owned(),
            buffers,
            states,
            context,
        })
    }

    /// A buffer or an image of so many bytes, all words of which are `word`.
    fn hold(&mut self, bytes: u64, word: u32, is_image: bool) -> Buffer {
        let words = vec![word; bytes.div_ceil(4) as usize];
        match is_image {
            true => image(&mut self.device, ImageSize::of_bytes(bytes), words),
            false => self.device.buffer(words),
        }
    }

    /// Runs the session's entry at these sizes; `inputs` are words by name. Gives the
    /// outputs by name.
    ///
    /// # Errors
    /// When an input is missing, no variant takes the sizes, or a launch fails.
    pub fn run(
        &mut self,
        session: &Session,
        inputs: &[(&str, &[u32])],
        sizes: &Bindings,
    ) -> Result<BTreeMap<String, Vec<u32>>, RunError> {
        let entry = self.entry(&session.entry)?;
        let mut sizes = sizes.clone();
        sizes.set(CONTEXT, session.context).set(BLOCK, 0);
        for port in &entry.inputs {
            let given = inputs.iter().find(|(name, _)| *name == port.name);
            let (_, words) =
                given.ok_or_else(|| RunError::Missing(format!("input `{}`", port.name)))?;
            let buffer = self.device.words_mut(session.buffers[port.buffer]);
            buffer[..words.len()].copy_from_slice(words);
        }
        let of = |name: &str| sizes.get(&Symbol::new(name)).unwrap_or(1);
        if entry.rows.is_some_and(|rows| of(BATCH) * of(SEQ) > rows) {
            return Err(RunError::Missing("room for so many rows".to_owned()));
        }
        let mut chosen = None;
        for variant in self.variants(entry) {
            if variant.takes(&sizes)? {
                chosen = Some(variant);
                break;
            }
        }
        let variant =
            chosen.ok_or_else(|| RunError::Missing("variant for these sizes".to_owned()))?;
        let across = variant.grid.as_ref().map_or(self.across, |_| u64::MAX);
        for launch in &variant.launches {
            self.launch(session, launch, across, &sizes)?;
        }
        if let Some(grid) = &variant.grid
            && self.device.words(session.buffers[grid.state])[1] != 0
        {
            return Err(RunError::Stalled(variant.name.clone()));
        }
        let mut outputs = BTreeMap::new();
        for (index, port) in entry.outputs.iter().enumerate() {
            let elements = Dim::product(&port.ty.shape).eval(&sizes)? as usize;
            let buffer = session.buffers[port.buffer];
            let mut words = Vec::with_capacity(elements);
            let mut streams = variant.streams.iter();
            if let Some(stream) = streams.find(|stream| stream.output == index) {
                let rows = stream.rows.eval(&sizes)?;
                let row = elements / rows.max(1) as usize;
                for block in (0..rows).step_by(stream.rows_per_block as usize) {
                    let at = sizes.clone().with(BLOCK, block);
                    for launch in &stream.launches {
                        self.launch(session, launch, self.across, &at)?;
                    }
                    let count = stream.rows_per_block.min(rows - block) as usize;
                    words.extend_from_slice(&self.device.words(buffer)[..count * row]);
                }
            } else {
                words.extend_from_slice(&self.device.words(buffer)[..elements]);
            }
            outputs.insert(port.name.clone(), words);
        }
        Ok(outputs)
    }

    fn launch(
        &mut self,
        session: &Session,
        launch: &'a Launch,
        across: u64,
        sizes: &Bindings,
    ) -> Result<(), RunError> {
        let value = |name: &String| sizes.get(&kiln_ir::Symbol::new(name)).unwrap_or(0) as u32;
        let uniforms: Vec<u32> = self.plan.uniforms.iter().map(value).collect();
        let bindings = self
            .plan
            .bound(launch)
            .map(|(binding, access)| match binding {
                Binding::Weight(index) if access.is_image() => self.images[&index],
                Binding::Weight(index) => self.weights[index],
                Binding::State(index) => session.states[index],
                Binding::Buffer(index) => session.buffers[index],
            });
        let bindings: Vec<Buffer> = bindings.collect();
        let grid = plan::fold(launch.workgroups.eval(sizes)?, across);
        self.start(&launch.label, &launch.kernel, grid, &uniforms, &bindings)
    }

    fn start(
        &mut self,
        label: &str,
        name: &'a str,
        [x, y]: [u64; 2],
        uniforms: &[u32],
        bindings: &[Buffer],
    ) -> Result<(), RunError> {
        let failed = |fault| RunError::Launch {
            label: label.to_owned(),
            kernel: name.to_owned(),
            fault: Box::new(fault),
        };
        let kernel = match self.kernels.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let text = self.plan.kernels.get(name);
                let text = text.and_then(|kernel| self.texts.get(&kernel.file));
                let text = text.ok_or_else(|| RunError::Missing(format!("kernel `{name}`")))?;
                unknown.insert(Kernel::new(text).map_err(failed)?)
            }
        };
        let barriers = self
            .device
            .launch(kernel, [x as usize, y as usize, 1], uniforms, bindings);
        let known = self.launched.entry(name.to_owned()).or_default();
        known.extend(barriers.map_err(failed)?);
        Ok(())
    }
}

/// An image that holds these words, and none beyond them.
fn image(device: &mut Device, size: ImageSize, mut words: Vec<u32>) -> Buffer {
    words.resize((size.bytes() / 4) as usize, UNWRITTEN);
    device.image(size.across as usize, words)
}

/// A matrix as it lies in an image, with zeros for the rows that its last band lacks.
fn in_bands(matrix: &WeightPart, data: &[u8], scales: &[u8]) -> Vec<u8> {
    let (packing, k) = (matrix.packing, matrix.k());
    let rows = (matrix.rows as usize).next_multiple_of(BAND_ROWS);
    let mut data = data.to_vec();
    data.resize(packing.data_bytes(rows, k), 0);
    let mut bands = Vec::new();
    packing.bands(&data, scales, k, &mut bands);
    bands
}

/// Bytes as little-endian words.
fn words(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(word)
    });
    words.collect()
}
