//! The classes of adapters that kernels are made for, and what each runs.

use kiln_ir::plan::{Bound, Requirements};
use kiln_ir::{Dim, Packing};
use naga::valid::Capabilities;

use crate::join::MEMORY_LIMIT;
use crate::kernel::Draft;
use crate::lanes::LANES;
use crate::view::Base;

/// Bytes that a workgroup of any tier may share, WebGPU's default limit.
pub(crate) const WORKGROUP_MEMORY: u64 = 16 << 10;

/// Cooperative matrices as a class of adapters has them. A subgroup has as many
/// invocations as a matrix has rows, or two or four times as many: that is how
/// `attention_coop` shares rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrices {
    /// The tier's name.
    name: &'static str,
    /// Rows and columns of a matrix: 16 or 8.
    pub side: u64,
    /// Invocations of a subgroup.
    pub subgroup: u64,
    /// Whether matrices are loaded from and stored to arrays of scalars; see
    /// defaults/scalars.wgsl.
    pub scalars: bool,
    /// Bytes that a workgroup may share.
    pub memory: u64,
}

impl Matrices {
    /// NVIDIA's.
    pub const WARPS: Matrices = Matrices {
        name: "coop",
        side: 16,
        subgroup: 32,
        scalars: false,
        // As much as a card lets a kernel have; the tiles of heads of 256 take nearly all.
        memory: 48 << 10,
    };

    /// AMD's since RDNA 3, whose kernels drivers run in wave64 as a rule; checks say whether.
    pub const WAVES: Matrices = Matrices {
        name: "coop-wave64",
        subgroup: 64,
        // Not all of AMD's drivers let a workgroup have more.
        memory: 32 << 10,
        ..Self::WARPS
    };

    /// Apple's.
    pub const SIMDGROUPS: Matrices = Matrices {
        name: "coop-8x8",
        side: 8,
        subgroup: 32,
        scalars: true,
        memory: 32 << 10,
    };

    /// Mesa's CPU driver's since Mesa 26. They are not there for speed: by them what is
    /// written for matrices runs on a driver that anybody can install.
    pub const LAVAPIPE: Matrices = Matrices {
        name: "coop-lavapipe",
        side: 8,
        subgroup: LANES as u64,
        scalars: false,
        memory: 32 << 10,
    };

    /// The same, loaded from scalars.
    pub const LAVAPIPE_SCALARS: Matrices = Matrices {
        name: "coop-lavapipe-scalars",
        scalars: true,
        ..Self::LAVAPIPE
    };

    /// The same by the same name, for kernels that are alternatives, but loaded from arrays
    /// of scalars; none if they are already.
    pub fn by_scalars(self) -> Option<Self> {
        let scalars = Self {
            scalars: true,
            ..self
        };
        (!self.scalars).then_some(scalars)
    }

    /// What tells kernels for them from those for [`Self::WARPS`], in their names.
    pub fn mark(self) -> String {
        let mark = self.name.strip_prefix(Self::WARPS.name).unwrap_or_default();
        mark.replacen('-', ".", 1)
    }

    /// What bodies for matrices are told of them.
    pub fn constants(self) -> Vec<(&'static str, u64)> {
        vec![
            ("SIDE", self.side),
            ("SPLIT", if self.scalars { 4 } else { 1 }),
            ("SUBGROUP", self.subgroup),
        ]
    }

    /// Gives a draft whose body is for matrices their types.
    pub fn declare(self, d: &mut Draft) {
        d.enable_matrices();
        let types = if self.side == 16 {
            "matrices16"
        } else {
            "matrices8"
        };
        let places = if self.scalars { "scalars" } else { "fours" };
        for prelude in [types, places] {
            let text = kiln_shaders::default_prelude(prelude).unwrap_or_default();
            // Without the comment on the file.
            let lines = text.lines().skip_while(|line| line.starts_with("//"));
            d.hook(lines.collect::<Vec<_>>().join("\n").trim_start());
        }
    }
}

/// A class of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// A CPU driver whose subgroups are of [`LANES`], as where it has vectors of 256
    /// bits: what a workgroup wants is loaded once.
    SoftwareSubgroup,
    /// A CPU driver, such as lavapipe: no barriers in hot loops, register tiles.
    Software,
    /// A GPU with cooperative matrices, for weights of less than 32 bits.
    Coop(Matrices),
    /// A GPU with subgroup operations.
    Subgroup,
    /// WebGPU's default features and limits; runs everywhere.
    Base,
}

impl Tier {
    /// Those that are made by themselves, in the order in which a runtime tries them.
    pub const USUAL: [Tier; 7] = [
        Tier::SoftwareSubgroup,
        Tier::Software,
        Tier::Coop(Matrices::WARPS),
        Tier::Coop(Matrices::WAVES),
        Tier::Coop(Matrices::SIMDGROUPS),
        Tier::Subgroup,
        Tier::Base,
    ];

    /// Those that are made only if they are asked for.
    pub const OTHERS: [Tier; 2] = [
        Tier::Coop(Matrices::LAVAPIPE),
        Tier::Coop(Matrices::LAVAPIPE_SCALARS),
    ];

    /// Whether weights of a packing suit it: rounding activations to f16, as cooperative
    /// matrices take them, would spoil weights of 32 bits.
    pub fn takes(self, packing: Packing) -> bool {
        packing != Packing::F32 || !matches!(self, Tier::Coop(_))
    }

    pub fn name(self) -> &'static str {
        match self {
            Tier::SoftwareSubgroup => "software-subgroup",
            Tier::Software => "software",
            Tier::Coop(matrices) => matrices.name,
            Tier::Subgroup => "subgroup",
            Tier::Base => "base",
        }
    }

    pub fn requires(self) -> Requirements {
        let matrices = self.matrices();
        let features: &[&str] = match self {
            Tier::Coop(_) => &["subgroups", "shader-f16", "wgpu-cooperative-matrix"],
            Tier::SoftwareSubgroup | Tier::Subgroup => &["subgroups"],
            Tier::Software | Tier::Base => &[],
        };
        let memory = MEMORY_LIMIT.to_owned();
        Requirements {
            features: features.iter().map(|f| (*f).to_owned()).collect(),
            limits: matrices.map(|m| (memory, m.memory)).into_iter().collect(),
            cpu_only: self.is_cpu(),
            subgroup_size: match self {
                Tier::SoftwareSubgroup => Some(LANES),
                Tier::Coop(matrices) => Some(matrices.subgroup as u32),
                Tier::Software | Tier::Subgroup | Tier::Base => None,
            },
            max_subgroup_size: None,
            cooperative_matrix: matrices.map(|m| [m.side as u32; 3]),
        }
    }

    /// Its cooperative matrices, if it has some.
    pub fn matrices(self) -> Option<Matrices> {
        match self {
            Tier::Coop(matrices) => Some(matrices),
            _ => None,
        }
    }

    /// Bytes that a workgroup may share.
    pub fn workgroup_memory(self) -> u64 {
        self.matrices().map_or(WORKGROUP_MEMORY, |m| m.memory)
    }

    /// Whether it is a CPU driver's.
    pub fn is_cpu(self) -> bool {
        matches!(self, Tier::SoftwareSubgroup | Tier::Software)
    }

    /// Whether kernels are those that add up across the subgroups of a GPU.
    pub fn has_subgroups(self) -> bool {
        matches!(self, Tier::Coop(_) | Tier::Subgroup)
    }

    /// Whether kernels bind images where they can: Mesa's CPU driver loads from them at
    /// twice the rate (shaders/MEASUREMENTS.md).
    pub fn reads_images(self) -> bool {
        self.is_cpu()
    }

    /// Whether states are kept in f16, of which half the bytes are read: attention with
    /// cooperative matrices rounds keys and values to that anyway, so prompts give the same.
    /// Single tokens, and heads that matrices do not take, find them rounded.
    pub fn halves_states(self) -> bool {
        self.matrices().is_some()
    }

    /// Bytes of an element in a buffer of reals.
    pub fn element_bytes(self, base: Base) -> u64 {
        match base {
            Base::State(_) if self.halves_states() => 2,
            _ => 4,
        }
    }

    /// What naga may accept in the tier's kernels.
    pub fn capabilities(self) -> Capabilities {
        // `unpack2x16float`, which every WebGPU implementation has.
        let base = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        match self {
            Tier::Coop(_) => {
                let matrices = Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
                base | Capabilities::SUBGROUP | matrices
            }
            Tier::SoftwareSubgroup | Tier::Subgroup => base | Capabilities::SUBGROUP,
            Tier::Software | Tier::Base => base,
        }
    }

    /// Invocations in a workgroup of kernels that treat each one alone.
    pub fn pointwise_workgroup(self) -> u32 {
        match self {
            Tier::SoftwareSubgroup | Tier::Software => LANES,
            Tier::Coop(_) | Tier::Subgroup | Tier::Base => 64,
        }
    }

    /// The specialisations of an entry for up to so many rows of a linear layer
    /// and so many queries of a sequence; the last takes any number.
    pub fn shapes(self) -> Vec<Shape> {
        let shape = |name, rows, queries| Shape {
            name,
            rows,
            queries,
        };
        // Kernels for few rows are for the steps of as many sequences. On a CPU a short prompt,
        // which comes once, is better off with those of any prompt: of eight rows, they take
        // half as long to compile, and to load.
        let (few, of_each) = match self.is_cpu() {
            true => (4, 1),
            false => (8, 8),
        };
        let mut shapes = vec![
            shape("decode", Some(1), Some(1)),
            shape("few", Some(few), Some(of_each)),
            shape("batch", None, Some(1)),
            shape("prefill", None, None),
        ];
        match self {
            Tier::SoftwareSubgroup => shapes.insert(2, shape("eight", Some(8), Some(of_each))),
            Tier::Coop(_) => {
                // Before large tiles, small ones: a card wants many of them.
                shapes.insert(3, shape("short", Some(128), None));
                shapes.insert(4, shape("middle", Some(512), None));
            }
            Tier::Software | Tier::Subgroup | Tier::Base => {}
        }
        shapes
    }
}

/// The sizes that a variant of an entry is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub name: &'static str,
    /// At most so many rows.
    pub rows: Option<u64>,
    /// At most so many queries a sequence.
    pub queries: Option<u64>,
}

impl Shape {
    /// The conditions on the entry's sizes.
    pub fn bounds(self, rows: Option<&Dim>, queries: Option<&Dim>) -> Vec<Bound> {
        let limits = [(rows, self.rows), (queries, self.queries)];
        let mut out: Vec<Bound> = Vec::new();
        for (size, max) in limits {
            if let (Some(size), Some(max)) = (size, max)
                && size.as_const().is_none()
            {
                out.push(Bound {
                    size: size.clone(),
                    max,
                });
            }
        }
        out
    }
}
