//! kiln's code generator: from graphs to a launch plan, WGSL kernels and packed
//! weights, without a GPU.
//!
//! [`compile`] optimises the graphs of a model's entry points and lowers them:
//!
//! 1. `weights` decides which buffers hold which parameters, in which packing;
//! 2. `place` decides which values get buffers and which are evaluated where they
//!    are used (a slice, a transpose or the addition of two embeddings costs no
//!    launch);
//! 3. for each tier of adapters and each variant of sizes, `lower` selects a
//!    kernel for every value that remains and puts its text together from
//!    generated hooks and a body of [`kiln_shaders`];
//! 4. `memory` lets values whose lifetimes do not overlap share buffers;
//! 5. `validate` has naga check every kernel with just the capabilities that its
//!    tier has, and the plan is checked by [`kiln_ir::plan::verify`].
//!
//! ```
//! use kiln_codegen::{CompileOptions, compile};
//! use kiln_ir::plan::ModelInfo;
//! use kiln_ir::{DType, GraphBuilder};
//!
//! let mut g = GraphBuilder::new("double");
//! let n = g.symbol("n", 16)?;
//! let x = g.input("x", DType::F32, [n])?;
//! let y = g.add(x, x)?;
//! g.output("y", y)?;
//! let info = ModelInfo::of("example");
//! let options = CompileOptions::default();
//! let compiled = compile(&[g.finish()], info, &options, &mut |_, _, _, _| {})?;
//! assert!(compiled.plan.tiers.iter().any(|tier| tier.name == "base"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod artifact;
mod attention;
mod elementwise;
mod error;
mod expr;
mod generic;
mod halves;
mod images;
mod join;
mod kernel;
mod kernels;
mod lanes;
mod linear;
mod lower;
mod memory;
mod names;
mod packed;
mod parts;
mod place;
mod plan;
mod row_norm;
mod states;
mod table;
mod tier;
mod tile;
mod trust;
mod validate;
mod view;
mod weights;
mod wgsl;

use std::collections::BTreeMap;

use kiln_ir::plan::{Launch, ModelInfo, Plan, Variant};
use kiln_ir::{Graph, Packing, ParamSource};
use kiln_passes::Changed;
use rayon::prelude::*;

pub use artifact::WriteProgress;
pub use error::CodegenError;
pub use validate::Target;

use tier::Tier;

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// How the weights of linear layers are stored.
    pub packing: Packing,
    /// The tiers to compile for, by name; if absent, all that devices are known to want.
    pub tiers: Option<Vec<String>>,
    /// Kernel bodies in place of kiln's own, WGSL by archetype (`softmax`,
    /// `row_norm_software`). A body gets the hooks and constants, and is launched
    /// with the grid, that the README of [`kiln_shaders`] gives for its archetype; its
    /// launches have no alternatives.
    pub bodies: BTreeMap<String, String>,
    /// The most bytes that a kernel binds of one buffer, from what a few rows of the
    /// weights take up to [`MAX_BINDING_LIMIT`]. Larger weights are split by rows,
    /// larger outputs computed a block of rows at a time, and the rows that a session
    /// computes at once, then the largest batch, halved until the rest fits. Any but
    /// [`DEFAULT_BINDING_LIMIT`] is among the limits that the plan's tiers require.
    pub binding_limit: u64,
    /// Workgroups of a launch that runs the kernels of a whole layer one after the
    /// other, with barriers across the grid in place of launches: a power of two,
    /// or 0 for no such launches. They decode for one sequence, on Vulkan, and only
    /// where all of the workgroups run at once, which a runtime tries. On a CPU a
    /// launch runs some of a layer's kernels, with any number of workgroups. It stands for
    /// the number of a device's processors, too, where work is dealt out to those.
    pub grid: u32,
}

/// As many workgroups as large GPUs have processors.
pub const DEFAULT_GRID: u32 = 128;

/// What every WebGPU adapter lets a kernel bind of one buffer: 128 MiB.
pub const DEFAULT_BINDING_LIMIT: u64 = 128 << 20;

/// The most bytes of one buffer that kernels can address, with offsets of 32 bits.
pub const MAX_BINDING_LIMIT: u64 = u32::MAX as u64;

impl Default for CompileOptions {
    /// `f32` weights for all tiers, within WebGPU's default limits.
    fn default() -> Self {
        CompileOptions {
            packing: Packing::F32,
            tiers: None,
            bodies: BTreeMap::new(),
            binding_limit: DEFAULT_BINDING_LIMIT,
            grid: DEFAULT_GRID,
        }
    }
}

/// Told of every graph as it is handed in (`input`) and after each pass: the
/// entry, the pass, the graph and what the pass did.
pub type Observer<'a> = dyn FnMut(&str, &'static str, &Graph, Changed) + 'a;

/// Optimises and lowers the graphs of a model's entry points.
///
/// # Errors
/// When a graph is not valid, a value has no kernel, entry points disagree about
/// a parameter or state, or a buffer exceeds what a binding may hold.
pub fn compile(
    graphs: &[Graph],
    model: ModelInfo,
    options: &CompileOptions,
    observer: &mut Observer<'_>,
) -> Result<Compiled, CodegenError> {
    let mut optimised = Vec::with_capacity(graphs.len());
    for graph in graphs {
        let mut graph = graph.clone();
        let name = graph.name.clone();
        observer(&name, "input", &graph, Changed::default());
        kiln_passes::optimize(&mut graph, &mut |pass, graph, changed| {
            observer(&name, pass, graph, changed);
        })?;
        optimised.push(graph);
    }
    lower(graphs, &optimised, model, options)
}

/// Lowers graphs that are optimised already, by a pipeline of your own perhaps.
/// `sources` are the graphs as they were built, which the artifact keeps for
/// reading and for the interpreter.
///
/// # Errors
/// As [`compile`].
pub fn lower(
    sources: &[Graph],
    optimised: &[Graph],
    model: ModelInfo,
    options: &CompileOptions,
) -> Result<Compiled, CodegenError> {
    let tiers = tiers(options)?;
    names::check(optimised)?;
    // The sampler's kernels are the runtime's, not the plan's.
    let archetypes = kiln_shaders::BODIES.iter().map(|(name, _)| *name);
    let archetypes: Vec<&str> = archetypes.filter(|n| !n.starts_with("sample_")).collect();
    let mut replaced = options.bodies.keys();
    if let Some(name) = replaced.find(|n| !archetypes.contains(&n.as_str())) {
        return Err(CodegenError::NoSuchBody {
            name: name.clone(),
            available: archetypes.join(", "),
        });
    }
    if options.binding_limit > MAX_BINDING_LIMIT {
        return Err(CodegenError::BindingLimit {
            found: options.binding_limit,
            most: MAX_BINDING_LIMIT,
        });
    }
    if options.grid != 0 && !options.grid.is_power_of_two() {
        return Err(CodegenError::Grid {
            found: options.grid,
        });
    }
    let made = plan::make(optimised, model, options, &tiers)?;
    check_bindings(&made.plan)?;
    kiln_ir::plan::verify::verify(&made.plan)?;
    let graphs = sources
        .iter()
        .map(|g| (format!("graphs/{}.kiln", g.name), g.to_string()));
    let compiled = Compiled {
        plan: made.plan,
        kernels: made.kernels,
        graphs: graphs.collect(),
    };
    compiled.check_kernels()?;
    Ok(compiled)
}

/// Holds that no launch binds more buffers than a tier's devices let it. What does is a graph's,
/// not the generator's: an op of so many operands, or results.
fn check_bindings(plan: &Plan) -> Result<(), CodegenError> {
    let tiers = plan.tiers.iter();
    let entries = tiers.flat_map(|tier| tier.entries.iter().map(move |entry| (tier, entry)));
    for (tier, (name, entry)) in entries {
        let most = tier.requires.limits.get(join::BUFFERS_LIMIT);
        let most = most.copied().unwrap_or(STORAGE_BUFFERS);
        // Variants with a grid say themselves what they need.
        let variants = entry.variants.iter().filter(|v| v.grid.is_none());
        for launch in variants.flat_map(|v| v.all_launches()) {
            let kernel = plan.kernels.get(&launch.kernel);
            let buffers = kernel.into_iter().flat_map(|k| &k.bindings);
            let found = buffers.filter(|b| !b.is_image()).count();
            if found as u64 > most {
                return Err(CodegenError::TooManyBuffers {
                    entry: name.clone(),
                    label: launch.label.clone(),
                    found,
                    most,
                });
            }
        }
    }
    Ok(())
}

fn tiers(options: &CompileOptions) -> Result<Vec<Tier>, CodegenError> {
    let suit = |tiers: &[Tier]| -> Vec<Tier> {
        let suit = tiers.iter().filter(|t| t.takes(options.packing));
        suit.copied().collect()
    };
    let mut all = suit(&Tier::USUAL);
    let Some(names) = &options.tiers else {
        return Ok(all);
    };
    all.extend(suit(&Tier::OTHERS));
    for name in names {
        if !all.iter().any(|t| t.name() == name) {
            let all: Vec<&str> = all.iter().map(|t| t.name()).collect();
            return Err(CodegenError::NoSuchTier {
                name: name.clone(),
                available: all.join(", "),
            });
        }
    }
    all.retain(|t| names.iter().any(|n| n == t.name()));
    Ok(all)
}

/// Storage buffers that any device lets a kernel bind, by WebGPU's default limits.
const STORAGE_BUFFERS: u64 = 8;

/// A compiled model, without its weights' bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The launch plan. [`Plan::files`] is empty until the artifact is written.
    pub plan: Plan,
    /// The kernels' WGSL by path (`kernels/NAME.wgsl`).
    pub kernels: BTreeMap<String, String>,
    /// The graphs as they were built, as text, by path (`graphs/ENTRY.kiln`).
    pub graphs: BTreeMap<String, String>,
}

impl Compiled {
    /// The bytes of one of the plan's weight buffers.
    ///
    /// # Errors
    /// When there is none of this name, or a parameter cannot be read or has the
    /// wrong size.
    pub fn weight(&self, name: &str, params: &dyn ParamSource) -> Result<Vec<u8>, CodegenError> {
        let index = self.plan.weights.iter().position(|w| w.name == name);
        let Some(index) = index else {
            return Err(CodegenError::NoSuchWeight {
                name: name.to_owned(),
            });
        };
        Ok(weights::fill(&self.plan.weights, index, params)?.bytes)
    }

    /// Every kernel in another language, by file name; to SPIR-V alone those that
    /// WebGPU could not run, with cooperative matrices, barriers across a grid, or images
    /// that are read and written.
    ///
    /// # Errors
    /// When naga cannot translate one.
    pub fn translate(&self, target: Target) -> Result<BTreeMap<String, Vec<u8>>, CodegenError> {
        let kernels = self.plan.kernels.iter().map(|(name, kernel)| {
            let text = self.kernels.get(&kernel.file).map_or("", String::as_str);
            (name, text)
        });
        let kernels: Vec<_> = kernels
            .filter(|(_, text)| target == Target::SpirV || kernel::is_webgpu(text))
            .collect();
        let least = self.least_tiers();
        let translated = kernels.into_par_iter().map(|(name, text)| {
            let tier = least.get(name.as_str()).copied().unwrap_or(Tier::Base);
            let valid = validate::validate(text, capabilities(tier, text));
            let (module, info) = valid.map_err(|message| invalid(name, tier.name(), message))?;
            let bytes = validate::translate(name, target, &module, &info)?;
            Ok((format!("{name}.{}", target.extension()), bytes))
        });
        translated.collect()
    }

    /// Has naga check every kernel.
    fn check_kernels(&self) -> Result<(), CodegenError> {
        let kernels: Vec<_> = self.plan.kernels.iter().collect();
        let least = self.least_tiers();
        kernels.par_iter().try_for_each(|(name, kernel)| {
            let text = self.kernels.get(&kernel.file).map_or("", String::as_str);
            let tier = least.get(name.as_str()).copied().unwrap_or(Tier::Base);
            let valid = validate::validate(text, capabilities(tier, text));
            valid
                .map(|_| ())
                .map_err(|message| invalid(name, tier.name(), message))
        })
    }

    /// By kernel the least capable of the tiers that launch it, which says what naga may
    /// accept in it.
    fn least_tiers(&self) -> BTreeMap<&str, Tier> {
        let mut least: BTreeMap<&str, Tier> = BTreeMap::new();
        let power = |tier: &Tier| tier.capabilities().bits().count_ones();
        for tier in &self.plan.tiers {
            let mut known = Tier::USUAL.into_iter().chain(Tier::OTHERS);
            let Some(own) = known.find(|k| k.name() == tier.name) else {
                continue;
            };
            let variants = || tier.entries.values().flat_map(|e| &e.variants);
            let grids = variants().filter_map(|v| v.grid.as_ref());
            let checks = grids.filter_map(|g| g.check.as_ref()).chain(&tier.checks);
            let launches = variants().flat_map(Variant::all_launches);
            let launched = launches.flat_map(Launch::kernels);
            for kernel in checks.map(|c| c.kernel.as_str()).chain(launched) {
                let least = least.entry(kernel).or_insert(own);
                if power(&own) < power(least) {
                    *least = own;
                }
            }
        }
        least
    }
}

/// What naga may accept in a kernel of a tier.
fn capabilities(tier: Tier, text: &str) -> naga::valid::Capabilities {
    let of_grids = match text.contains(kernel::COHERENT) {
        true => naga::valid::Capabilities::MEMORY_DECORATION_COHERENT,
        false => naga::valid::Capabilities::empty(),
    };
    tier.capabilities() | of_grids
}

fn invalid(kernel: &str, tier: &str, message: String) -> CodegenError {
    CodegenError::InvalidKernel {
        kernel: kernel.to_owned(),
        tier: tier.to_owned(),
        message,
    }
}
