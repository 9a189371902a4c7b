//! The launch plan: what a device does, as data.
//!
//! A plan names weights, states and, per tier and entry point, buffers and
//! launches. Sizes and grids are [`Dim`] expressions over the plan's symbols,
//! so one plan serves every batch and prompt length up to the symbols' maxima.
//! Nothing here refers to a graphics API: any program that can create a compute
//! pipeline from WGSL, bind buffers and dispatch can run a plan.
//!
//! # How a launch is run
//!
//! Each kernel has the uniform block [`Plan::uniforms`] at binding 0 of group 0
//! (`u32` values in that order, padded to 16 bytes), and the launch's
//! [`Launch::bindings`] at bindings 1, 2, ... in order, each as the kernel's
//! [`Access`] says. A grid is the number of
//! workgroups; a flat count over 65,535 is folded by the *runner*: it dispatches
//! `(x, y, 1)` with `x <= 65535`, and kernels return beyond their count.
//!
//! A launch may have [`Alternative`]s, which compute the same in other ways. Which is the
//! fastest depends on the device; a runner takes the launch as it stands, or measures.
//!
//! # Symbols
//!
//! `batch`, `seq` and `past` are those of the entry's graph. Two more belong to
//! the plan: `context` is the capacity, in positions, of each sequence in the
//! states, fixed when a session is created; `block` is the first row of a
//! [`Stream`]'s current block.
//!
//! [`verify`](verify::verify) checks what a plan has to satisfy.

mod slice;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::dim::{Bindings, Dim, DimError, SymbolDecl};
use crate::packing::{BAND_ROWS, Packing};
use crate::types::{DType, TensorType};

pub use slice::{SliceRange, always_within, least};

/// The version of the plan format. A reader refuses another one.
pub const PLAN_VERSION: u32 = 12;

/// The symbol of an entry's graph that holds how many sequences there are.
pub const BATCH: &str = "batch";

/// The symbol that holds how many tokens each of them has.
pub const SEQ: &str = "seq";

/// The most rows, sequences times tokens of each, that a session computes at once of a longer
/// prompt: enough to keep a large device busy, and a bound on what is allocated.
pub const PIECE_ROWS: u64 = 1024;

/// The symbol of an entry's graph that holds how many positions the states have
/// taken; zero in a new session.
pub const PAST: &str = "past";

/// The symbol that holds the states' capacity in positions.
pub const CONTEXT: &str = "context";

/// The symbol that holds the first row of a stream's current block.
pub const BLOCK: &str = "block";

/// Everything that a runtime needs besides the weights' bytes, the kernels' text and, in an
/// artifact, the entry points of its tiers ([`tier_file`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the writer.
    pub version: u32,
    /// Name and version of the compiler.
    pub compiler: String,
    /// What was compiled.
    pub model: ModelInfo,
    /// Symbols and their inclusive maxima.
    pub symbols: Vec<SymbolDecl>,
    /// The members of the uniform block, in order.
    pub uniforms: Vec<String>,
    /// Buffers filled once, from the weight file.
    pub weights: Vec<WeightBuffer>,
    /// Buffers that outlive a run.
    pub states: Vec<StateBuffer>,
    /// Kernels by name.
    pub kernels: BTreeMap<String, Kernel>,
    /// The tiers, most capable first. A runtime takes the first one whose
    /// requirements the adapter meets.
    pub tiers: Vec<Tier>,
    /// BLAKE3 hash (hex) of every other file of the artifact, by path relative
    /// to its folder.
    pub files: BTreeMap<String, String>,
}

impl Plan {
    /// What a launch binds and how its kernel uses it; nothing if there is no such
    /// kernel.
    pub fn bound(&self, launch: &Launch) -> impl Iterator<Item = (Binding, Access)> {
        let kernel = self.kernels.get(&launch.kernel);
        let accesses = kernel.into_iter().flat_map(|k| &k.bindings);
        launch.bindings.iter().copied().zip(accesses.copied())
    }

    /// The buffers that launches of an entry point bind as they stand, and those of its
    /// inputs and outputs; what is not among them is there for alternatives alone.
    pub fn buffers_of(&self, entry: &Entry) -> BTreeSet<usize> {
        let bound = self
            .bound_by(entry)
            .filter_map(|(binding, _)| match binding {
                Binding::Buffer(index) => Some(index),
                Binding::Weight(_) | Binding::State(_) => None,
            });
        let ports = entry.inputs.iter().chain(&entry.outputs);
        bound.chain(ports.map(|port| port.buffer)).collect()
    }

    /// What the launches of an entry point bind, and how.
    pub fn bound_by(&self, entry: &Entry) -> impl Iterator<Item = (Binding, Access)> {
        let launches = entry.variants.iter().flat_map(Variant::all_launches);
        launches.flat_map(|launch| self.bound(launch))
    }

    /// What of it is bound as an image.
    pub fn images_of(&self, entry: &Entry) -> BTreeSet<Binding> {
        let images = self.bound_by(entry).filter(|(_, access)| access.is_image());
        images.map(|(binding, _)| binding).collect()
    }

    /// Which of the weights has the scales of the matrix in `weights[index]`.
    pub fn scales_of(&self, index: usize) -> Option<usize> {
        let of = self.weights.get(index)?.matrix()?;
        self.weights.iter().position(|weight| {
            matches!(weight.contents.as_slice(), [part]
                if part.scales && part.param == of.param && part.first_row == of.first_row)
        })
    }
}

/// What was compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The family's name in the registry (`gpt2`).
    pub family: String,
    /// The checkpoint's `config.json`, as read.
    pub config: String,
    /// How the large weights are stored (`f32`, `f16`, `q8`, `q4`).
    pub weight_dtype: String,
    /// Number of parameters, tied ones counted once.
    pub parameters: u64,
    /// The size of the vocabulary.
    pub vocab_size: u64,
    /// The largest number of positions, prompt and generated together.
    pub max_context: u64,
    /// Tokens that end a text.
    pub eos_tokens: Vec<u32>,
}

impl ModelInfo {
    /// A model of this family of which nothing else is known, as a graph that was
    /// built by hand is.
    pub fn of(family: &str) -> Self {
        ModelInfo {
            family: family.to_owned(),
            config: String::new(),
            weight_dtype: Packing::F32.name().to_owned(),
            parameters: 0,
            vocab_size: 0,
            max_context: 1,
            eos_tokens: Vec::new(),
        }
    }
}

/// A buffer that is filled once: (part of) a parameter, its scales, or several
/// small parameters one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightBuffer {
    /// The tensor's name in the weight file.
    pub name: String,
    /// Its bytes, a multiple of 16.
    pub bytes: u64,
    /// What it holds.
    pub contents: Vec<WeightPart>,
}

impl WeightBuffer {
    /// The matrix whose weights it holds, with nothing else.
    pub fn matrix(&self) -> Option<&WeightPart> {
        match self.contents.as_slice() {
            [part] if part.shape.len() > 1 && !part.scales => Some(part),
            _ => None,
        }
    }

    /// Its size as an image: a matrix in bands, see [`crate::packing`], with its scales.
    pub fn image(&self) -> ImageSize {
        match self.matrix() {
            Some(part) => ImageSize::of_matrix(part.packing, part.rows, part.k() as u64),
            None => ImageSize::of_bytes(self.bytes),
        }
    }
}

/// Rows of one parameter within a [`WeightBuffer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightPart {
    /// The parameter's dotted name.
    pub param: String,
    /// Its shape in the graph.
    pub shape: Vec<u64>,
    /// The layout; see [`crate::packing`].
    pub packing: Packing,
    /// Whether these are the groups' scales rather than the weights.
    #[serde(default)]
    pub scales: bool,
    /// The first of the rows (products of all axes but the last) held here.
    pub first_row: u64,
    /// How many rows are held here.
    pub rows: u64,
    /// Where they start, in bytes.
    pub offset: u64,
}

impl WeightPart {
    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.shape.last().map_or(1, |k| *k as usize)
    }
}

/// A buffer that outlives a run, such as a layer's key cache. In which order elements lie in it
/// is the kernels' own affair, the same for all entries of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateBuffer {
    /// The state's name.
    pub name: String,
    /// Its bytes at a session's maxima, of elements of 32 bits; see [`Tier::state_bytes`].
    pub bytes: Dim,
}

/// A compute kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Path of the WGSL text, relative to the artifact, in which it ends in `.wgsl`.
    pub file: String,
    /// Invocations per workgroup.
    pub workgroup_size: [u32; 3],
    /// How each binding after the uniform block is used.
    pub bindings: Vec<Access>,
}

/// The entry function of every kernel.
pub const KERNEL_ENTRY: &str = "main";

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
    /// `texture_storage_2d<rgba32uint, read>`: a weight, a state or a buffer as an image,
    /// whose texels are its bytes, 16 each, in rows as [`ImageSize`] has them. A
    /// matrix lies in bands in it, with its scales; see [`crate::packing`].
    Texels,
    /// `texture_storage_2d<rgba32uint, write>`: such a state or buffer.
    WriteTexels,
    /// `texture_storage_2d<rgba32uint, read_write>`: the same, in a launch that does the
    /// work of several, of a variant with a [`Grid`].
    ReadWriteTexels,
}

impl Access {
    /// Whether a kernel may write what it binds so.
    pub const fn writes(self) -> bool {
        matches!(
            self,
            Access::ReadWrite | Access::WriteTexels | Access::ReadWriteTexels
        )
    }

    /// Whether an image is bound.
    pub const fn is_image(self) -> bool {
        matches!(
            self,
            Access::Texels | Access::WriteTexels | Access::ReadWriteTexels
        )
    }
}

/// Bytes of a texel.
pub const TEXEL_BYTES: u64 = 16;

/// Texels in a row of an image that holds no matrix.
pub const TEXELS_IN_ROW: u64 = 4096;

/// Texels across and down that an image can have on every WebGPU adapter.
pub const MOST_TEXELS: u64 = 8192;

/// How many texels an image has across and down, and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Texels in a row.
    pub across: u64,
    /// Rows.
    pub down: u64,
    /// The bands of a matrix that a row begins with, if it holds no part of others: band b
    /// then lies in row `b / bands_across`, from texel `b % bands_across` times a band's
    /// texels on. Else texels lie one after the other, row by row.
    pub bands_across: Option<u64>,
}

impl ImageSize {
    /// That of so many bytes, one after the other.
    pub const fn of_bytes(bytes: u64) -> Self {
        ImageSize {
            across: TEXELS_IN_ROW,
            down: bytes.div_ceil(TEXEL_BYTES * TEXELS_IN_ROW),
            bands_across: None,
        }
    }

    /// That of a matrix of so many rows of `k` elements, in bands, with its scales.
    ///
    /// A row of texels is a band, so that whoever walks a band finds once what depends on
    /// the row; or several, the fewest that leave no more than [`MOST_TEXELS`] rows. Bands
    /// that are too long for that lie one after the other.
    pub fn of_matrix(packing: Packing, rows: u64, k: u64) -> Self {
        let bands = rows.div_ceil(BAND_ROWS as u64);
        let band = packing.band_texels(k);
        let bands_across = bands.div_ceil(MOST_TEXELS).max(1);
        let across = bands_across.saturating_mul(band);
        if across > MOST_TEXELS {
            return Self::of_bytes(bands.saturating_mul(band).saturating_mul(TEXEL_BYTES));
        }
        ImageSize {
            across,
            down: bands.div_ceil(bands_across),
            bands_across: Some(bands_across),
        }
    }

    /// The bytes of its texels.
    pub const fn bytes(&self) -> u64 {
        let texels = self.across.saturating_mul(self.down);
        texels.saturating_mul(TEXEL_BYTES)
    }

    /// Whether every WebGPU adapter can have it.
    pub const fn fits_everywhere(&self) -> bool {
        self.across <= MOST_TEXELS && self.down <= MOST_TEXELS
    }
}

/// A set of launches for one class of adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tier {
    /// `base`, `subgroup`, `software`, `software-subgroup`, or one for cooperative matrices,
    /// whose name begins with `coop`.
    pub name: String,
    /// What the adapter must offer.
    pub requires: Requirements,
    /// What must hold of its driver before the tier is trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Whether its kernels keep the elements of states in f16.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub half_states: bool,
    /// Entry points by name.
    ///
    /// In an artifact they are in a file of their own ([`tier_file`]), and the plan's tiers
    /// have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entries: BTreeMap<String, Entry>,
}

impl Tier {
    /// The same with other entry points, without a copy of its own, which are large.
    pub fn with_entries(&self, entries: BTreeMap<String, Entry>) -> Self {
        Tier {
            name: self.name.clone(),
            requires: self.requires.clone(),
            checks: self.checks.clone(),
            half_states: self.half_states,
            entries,
        }
    }
}

/// The file of an artifact that has the entry points of a tier, by their names: what
/// [`Tier::entries`] is in JSON. A device runs one tier, and need not read the others.
pub fn tier_file(tier: &str) -> String {
    format!("tiers/{tier}.json")
}

impl Tier {
    /// The bytes of a state in this tier, at a session's maxima: a multiple of 4.
    pub fn state_bytes(&self, state: &StateBuffer) -> Dim {
        match self.half_states {
            true => &state.bytes.ceil_div(8) * &Dim::constant(4),
            false => state.bytes.clone(),
        }
    }
}

/// What an adapter must offer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Requirements {
    /// Features by WebGPU's name (`subgroups`, `shader-f16`).
    #[serde(default)]
    pub features: Vec<String>,
    /// Limits by WebGPU's name in snake case
    /// (`max_storage_buffers_per_shader_stage`).
    #[serde(default)]
    pub limits: BTreeMap<String, u64>,
    /// Set for a profile that only suits adapters running on a CPU: what a workgroup
    /// stores is seen by others of the launch that find, by an atomic, that it has.
    #[serde(default)]
    pub cpu_only: bool,
    /// The size of every subgroup, where kernels rely on one. Adapters that have several
    /// run kernels in one of them, and a check has to find out in which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subgroup_size: Option<u32>,
    /// The largest that a subgroup may be, where lanes beyond a workgroup's invocations
    /// would not do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_subgroup_size: Option<u32>,
    /// The sizes M, N and K of the product of cooperative matrices of f16,
    /// accumulated in f32, that kernels use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooperative_matrix: Option<[u32; 3]>,
}

/// A kernel that computes something twice, once the way that is in doubt, and
/// compares. Drivers are known to miscompile what is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The kernel. Its bindings are all of one buffer of words, which are 0 before.
    pub kernel: String,
    /// The workgroups to launch.
    pub workgroups: u32,
    /// The words of the buffer, which must all be 1 behind it.
    pub words: u64,
}

/// An entry point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Symbols whose maxima differ from [`Plan::symbols`] here: `step` takes
    /// fewer tokens at a time than `forward`. These win over the
    /// plan's; may be empty.
    #[serde(default)]
    pub symbols: Vec<SymbolDecl>,
    /// Inputs in order.
    pub inputs: Vec<Port>,
    /// Outputs in order.
    pub outputs: Vec<Port>,
    /// Buffers that live for a run.
    pub buffers: Vec<Buffer>,
    /// The most rows, [`BATCH`] times [`SEQ`], of a run, if not as many as the maxima make:
    /// buffers have room for no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Slices that may not lie within their axes at all sizes. A runner refuses sizes at which
    /// one does not, for kernels would read something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<SliceRange>,
    /// Specialisations; the first whose bounds hold is run.
    pub variants: Vec<Variant>,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(flatten)]
    pub ty: TensorType,
    /// The buffer, an index into [`Entry::buffers`].
    pub buffer: usize,
}

impl Port {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.ty.dtype
    }
}

/// A buffer of an entry point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// What it holds, for a person.
    pub name: String,
    /// Its bytes: the largest of these at a session's maxima.
    pub bytes: Vec<Dim>,
    /// Whether it is an image, which is bound as texels alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub image: bool,
    /// Whether launches count on its words being 0 when it is made, and on finding them as
    /// the last launch left them. Of other buffers nothing is read that no launch of the
    /// same run, or input, has written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zeroed: bool,
}

/// The launches of an entry for sizes within bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// For a person: `decode`, `prefill`.
    pub name: String,
    /// What the adapter must offer besides what the tier requires, and what must
    /// hold of its driver, or the variant is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<Grid>,
    /// Every condition must hold.
    pub bounds: Vec<Bound>,
    /// In order.
    pub launches: Vec<Launch>,
    /// Outputs too large to be held whole; run after the launches.
    #[serde(default)]
    pub streams: Vec<Stream>,
}

impl Variant {
    /// Whether every bound holds at these sizes.
    ///
    /// # Errors
    /// When a bound has no value there.
    pub fn takes(&self, sizes: &Bindings) -> Result<bool, DimError> {
        Bound::all_hold(&self.bounds, sizes)
    }

    /// All launches, those of streams last.
    pub fn all_launches(&self) -> impl Iterator<Item = &Launch> {
        let streamed = self.streams.iter().flat_map(|s| &s.launches);
        self.launches.iter().chain(streamed)
    }

    /// All launches, those of streams last.
    pub fn all_launches_mut(&mut self) -> impl Iterator<Item = &mut Launch> {
        let streamed = self.streams.iter_mut().flat_map(|s| &mut s.launches);
        self.launches.iter_mut().chain(streamed)
    }

    /// In how many ways its launches can be done at the most.
    pub fn ways(&self) -> usize {
        let ways = self.all_launches().map(|l| 1 + l.alternatives.len());
        ways.max().unwrap_or(1)
    }

    /// The variant with each launch done in its way `index`, or as it stands where it has
    /// no such, and no others left.
    #[must_use]
    pub fn way(&self, index: usize) -> Variant {
        let mut variant = self.clone();
        for launch in variant.all_launches_mut() {
            launch.take(index);
        }
        variant
    }

    /// The variant in each of its ways.
    pub fn each_way(&self) -> impl Iterator<Item = Variant> {
        (0..self.ways()).map(|index| self.way(index))
    }
}

/// What a variant relies on whose launches do the work of several, one stage after the
/// other: workgroups of a launch see what others wrote before they say so by an atomic.
///
/// With a check, the workgroups of a launch have barriers across its grid, and all of
/// them run at the same time. No API promises that, so a runtime tries it out: it
/// checks the driver, and compares what the variant gives with what the first gives
/// that has no grid, before it takes it for good; it may leave it if it is slower. A
/// workgroup waits for a bounded time and then gives up.
///
/// Without, they are for a CPU, take tiles of a stage from each other, and wait for
/// none that has not begun: there is nothing to try out, and a runtime may launch fewer
/// of them, as many as run at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// What the adapter must offer besides what the tier requires.
    pub requires: Requirements,
    /// What must hold of its driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// The state that workgroups share, an index into [`Entry::buffers`], which nothing
    /// else uses: two words at the least, zeroed. The second is not 0 once a
    /// launch has failed, since a workgroup gave up waiting for others for one; results
    /// are meaningless from then on.
    pub state: usize,
}

/// A condition on sizes: `size <= max`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// An expression.
    pub size: Dim,
    /// Its inclusive maximum.
    pub max: u64,
}

impl Bound {
    /// Whether every one of `bounds` holds at these sizes.
    ///
    /// # Errors
    /// When one has no value there.
    pub fn all_hold(bounds: &[Bound], sizes: &Bindings) -> Result<bool, DimError> {
        for bound in bounds {
            if bound.size.eval(sizes)? > bound.max {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One dispatch. In a variant with a [`Grid`] it may do the work of several, one after
/// the other, and then bind a buffer more than once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// What it computes, for a person and for profiles: `h.3.attn.c_attn`.
    pub label: String,
    /// The kernel's name.
    pub kernel: String,
    /// The number of workgroups, flat; see [`fold`].
    pub workgroups: Dim,
    /// The buffers at bindings 1, 2, ...
    pub bindings: Vec<Binding>,
    /// Arithmetic operations (a multiply-add counts two).
    pub flops: Dim,
    /// Bytes that must move at the least: operands read once, results written
    /// once.
    pub bytes: Dim,
    /// Other ways to compute the same. That a launch has several, and an adapter none or
    /// some of them, changes results no more than the order of sums does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
}

/// How a flat count of workgroups is launched where a dimension holds at most `across`: so
/// many times so many, the second as small as can be and the first no larger than needed.
/// Kernels return beyond the last that is theirs.
pub fn fold(workgroups: u64, across: u64) -> [u64; 2] {
    let down = workgroups.div_ceil(across.max(1)).max(1);
    [workgroups.div_ceil(down), down]
}

impl Launch {
    /// The launch in each of its ways.
    pub fn each_way(&self) -> impl Iterator<Item = Launch> {
        (0..=self.alternatives.len()).map(|index| {
            let mut launch = self.clone();
            launch.take(index);
            launch
        })
    }

    /// The kernels of all its ways, by their names.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        let others = self.alternatives.iter().map(|way| &way.kernel);
        std::iter::once(&self.kernel)
            .chain(others)
            .map(String::as_str)
    }

    /// Does it in its way `index`: 0 is as it stands, the others are its alternatives in
    /// their order. Where there is no such it stays as it stands. Others are dropped.
    pub fn take(&mut self, index: usize) {
        let mut others = std::mem::take(&mut self.alternatives);
        if index > 0 && index <= others.len() {
            let way = others.swap_remove(index - 1);
            self.kernel = way.kernel;
            self.workgroups = way.workgroups;
            self.bindings = way.bindings;
        }
    }
}

/// Another way to do what a [`Launch`] does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// The kernel's name.
    pub kernel: String,
    /// The number of workgroups, flat.
    pub workgroups: Dim,
    /// The buffers at bindings 1, 2, ...
    pub bindings: Vec<Binding>,
    /// What the adapter must offer besides what the tier requires.
    #[serde(default)]
    pub requires: Requirements,
    /// Whether workgroups have to see what others of the launch wrote before they said so
    /// by an atomic, besides what a variant's [`Grid`] asks of a driver. No API promises
    /// that, so a runtime compares what it gives before it takes it for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shares: bool,
}

/// Which buffer a launch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// An index into [`Plan::weights`].
    Weight(usize),
    /// An index into [`Plan::states`].
    State(usize),
    /// An index into [`Entry::buffers`].
    Buffer(usize),
}

/// An output that is produced and read back in blocks of rows, because whole it
/// might exceed what an adapter can bind (the logits of 1,024 positions of GPT-2
/// take 206 MB).
///
/// The runner sets the uniform `block` to 0, [`Stream::rows_per_block`], ... and
/// after each round reads `min(rows_per_block, rows - block)` rows from the
/// start of the output's buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stream {
    /// The output, an index into [`Entry::outputs`].
    pub output: usize,
    /// All rows: the product of all axes but the last.
    pub rows: Dim,
    /// Rows in a block.
    pub rows_per_block: u64,
    /// Run for each block.
    pub launches: Vec<Launch>,
}

#[cfg(test)]
mod tests;
