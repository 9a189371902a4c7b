//! The classes of adapters that kernels are made for, and what each runs.

use kiln_ir::Dim;
use kiln_ir::plan::{Bound, Requirements};
use naga::valid::Capabilities;

/// A class of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// A CPU driver, such as lavapipe: no barriers in hot loops, register tiles.
    Software,
    /// A GPU with subgroup operations.
    Subgroup,
    /// WebGPU's default features and limits; runs everywhere.
    Base,
}

impl Tier {
    /// All of them, in the order in which a runtime tries them.
    pub const ALL: [Tier; 3] = [Tier::Software, Tier::Subgroup, Tier::Base];

    pub fn name(self) -> &'static str {
        match self {
            Tier::Software => "software",
            Tier::Subgroup => "subgroup",
            Tier::Base => "base",
        }
    }

    pub fn requires(self) -> Requirements {
        Requirements {
            features: match self {
                Tier::Subgroup => vec!["subgroups".to_owned()],
                Tier::Software | Tier::Base => Vec::new(),
            },
            cpu_only: self == Tier::Software,
            ..Requirements::default()
        }
    }

    /// What naga may accept in the tier's kernels.
    pub fn capabilities(self) -> Capabilities {
        // `unpack2x16float`, which every WebGPU implementation has.
        let base = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        match self {
            Tier::Subgroup => base | Capabilities::SUBGROUP,
            Tier::Software | Tier::Base => base,
        }
    }

    /// Invocations in a workgroup of kernels that treat each one alone.
    pub fn pointwise_workgroup(self) -> u32 {
        match self {
            Tier::Software => 8,
            Tier::Subgroup | Tier::Base => 64,
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
        match self {
            Tier::Software => vec![
                shape("decode", Some(1), Some(1)),
                shape("few", Some(4), Some(4)),
                shape("eight", Some(8), Some(7)),
                shape("batch", None, Some(1)),
                shape("prefill", None, None),
            ],
            Tier::Subgroup | Tier::Base => vec![
                shape("decode", Some(1), Some(1)),
                shape("few", Some(4), Some(4)),
                shape("eight", Some(8), Some(8)),
                shape("batch", None, Some(1)),
                shape("prefill", None, None),
            ],
        }
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
