//! Which body a linear layer runs, and in what tiles.

use kiln_ir::packing::BAND_ROWS;
use kiln_ir::{Dim, Packing};

use crate::join::{self, GridSize};
use crate::lanes::LANES;
use crate::linear::Linear;
use crate::lower::Offer;
use crate::parts::Parts;
use crate::tier::{Matrices, Tier, WORKGROUP_MEMORY};
use crate::weights::{Matrix, ROW_PADDING};

/// How a linear layer's rows are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowKernel {
    /// Few rows, at most so many at a time.
    Matvec(u64),
    /// Many rows, in tiles: on a CPU of so many rows, on a GPU for about so many.
    Tiled(u64),
}

impl RowKernel {
    /// The kernel of `tier` for at most `rows` rows.
    pub fn choose(tier: Tier, rows: Option<u64>) -> Self {
        match (tier, rows) {
            (_, Some(1)) => RowKernel::Matvec(1),
            (tier, Some(rows @ ..=4)) if tier.is_cpu() => {
                RowKernel::Matvec(rows.next_power_of_two())
            }
            (Tier::SoftwareSubgroup, Some(..=8)) => RowKernel::Matvec(8),
            (Tier::SoftwareSubgroup, _) => RowKernel::Tiled(16),
            (Tier::Software, _) => RowKernel::Tiled(8),
            (_, Some(..=8)) => RowKernel::Matvec(4),
            (Tier::Coop(_), rows) => RowKernel::Tiled(rows.unwrap_or(MANY_ROWS)),
            _ => RowKernel::Tiled(64),
        }
    }

    /// Whether the kernel of `tier` normalises rows of `k` on their way in to a layer of `n`
    /// outputs, where one row is or is not [brought](brings_row). Tiles of many rows each find
    /// the statistics anew, as many times as there are tiles side by side: that pays for a narrow
    /// layer, which saves a launch, while before a wide one the norm stands apart.
    pub fn takes_norm(self, tier: Tier, [k, n]: [u64; 2], is_brought: bool) -> bool {
        match (tier, self) {
            // A launch costs little there, and loads of a row that it left as texels
            // cost less than any others.
            (tier, _) if tier.is_cpu() => false,
            // That a row is brought, and its statistics found, once for many outputs is what
            // makes this cheap.
            (_, RowKernel::Matvec(_)) => is_brought || !tier.has_subgroups(),
            // Its tiles take rows as they are, rounded to f16.
            (Tier::Coop(_), RowKernel::Tiled(_)) => false,
            (_, RowKernel::Tiled(_)) => n <= 3 * k,
        }
    }
}

/// About as many rows as a long prompt has.
const MANY_ROWS: u64 = 1024;

impl Linear<'_> {
    /// The kernel's body, and its tile for `n` outputs.
    pub fn tile(&self, matrix: &Matrix, n: u64) -> Tile {
        match (self.tier, self.rows) {
            (tier, rows) if tier.is_cpu() => software_tile(matrix, rows, n),
            (_, RowKernel::Tiled(rows)) if let Some(own) = self.matrices(matrix.packing) => {
                CoopTile::choose(own, rows, n).tile(matrix)
            }
            (_, RowKernel::Tiled(_)) => register_tile("", matrix, [4, 4], 4),
            (tier, RowKernel::Matvec(rows))
                if let Some(tile) = stream(tier, matrix, (rows, n), self.grid) =>
            {
                tile
            }
            (_, RowKernel::Matvec(rows)) => self.matvec_tile(matrix, rows, n),
        }
    }

    /// Other tiles for what [`Linear::tile`] is for, where there are up to `most` rows.
    pub fn other_tiles(&self, matrix: &Matrix, n: u64, (most, offer): (u64, &Offer)) -> Vec<Tile> {
        match self.rows {
            RowKernel::Matvec(_) => self.tile(matrix, n).with_other_columns(),
            RowKernel::Tiled(rows) if let Some(own) = self.matrices(matrix.packing) => {
                let usual = CoopTile::choose(own, rows, n);
                let others = usual.others(matrix.k, (most, n), offer.processors);
                others.into_iter().map(|tile| tile.tile(matrix)).collect()
            }
            RowKernel::Tiled(_) if !self.tier.is_cpu() => {
                // What finds the statistics of rows takes memory from the taller one.
                let depth = if self.norm.is_some() { 2 } else { 4 };
                match most {
                    ..=64 => vec![
                        register_tile("short", matrix, [2, 4], depth),
                        register_tile("wide", matrix, [2, 8], depth),
                    ],
                    _ => vec![
                        register_tile("tall", matrix, [8, 4], depth),
                        register_tile("large", matrix, [8, 8], 2),
                    ],
                }
            }
            RowKernel::Tiled(_) => Vec::new(),
        }
    }

    fn matvec_tile(&self, matrix: &Matrix, rows: u64, n: u64) -> Tile {
        // One 16-byte load a lane: neighbours read neighbouring loads.
        let wv = match matrix.packing {
            Packing::F32 | Packing::F16 => unit(matrix.packing),
            Packing::Q8 | Packing::Q4 => matrix.packing.group() as u64 / 4,
        };
        let groups = matrix.k.div_ceil(4 * wv);
        // Narrow layers need more workgroups to fill a card.
        let columns: u64 = if n >= 4096 { 4 } else { 2 };
        let lanes = groups.next_power_of_two().clamp(32, 128);
        if self.tier.has_subgroups() {
            return Tile {
                name: "",
                memory: WORKGROUP_MEMORY,
                matrices: None,
                cut: None,
                body: "linear_matvec_subgroup",
                workgroup: lanes as u32,
                rows,
                columns,
                wv,
                constants: vec![
                    ("WORKGROUP", lanes),
                    ("TILE_ROWS", rows),
                    ("TILE_COLS", columns),
                ],
            };
        }
        let lanes_k = lanes.min(64);
        let lanes_n = if groups < 64 { 2 } else { 1 };
        Tile {
            name: "",
            memory: WORKGROUP_MEMORY,
            matrices: None,
            cut: None,
            body: "linear_matvec",
            workgroup: (lanes_k * lanes_n) as u32,
            rows,
            columns: lanes_n * columns,
            wv,
            constants: vec![
                ("LANES_K", lanes_k),
                ("LANES_N", lanes_n),
                ("TILE_ROWS", rows),
                ("TILE_COLS", columns),
            ],
        }
    }

    /// The cooperative matrices that the kernel multiplies, if it does.
    pub fn matrices(&self, packing: Packing) -> Option<Matrices> {
        let many = matches!(self.rows, RowKernel::Tiled(_));
        let matrices = self.tier.matrices();
        matrices.filter(|_| many && packing != Packing::F32)
    }
}

/// The body for few rows on a CPU driver.
pub(crate) const FEW: &str = "linear_software_matvec";

/// The tile of a CPU driver for `n` outputs.
fn software_tile(matrix: &Matrix, rows: RowKernel, n: u64) -> Tile {
    let wv = matrix.packing.group() as u64 / 4;
    let (body, rows, columns, xv) = match rows {
        RowKernel::Matvec(rows) => (FEW, rows, BAND_ROWS as u64, wv),
        RowKernel::Tiled(rows) => {
            let stored = n.next_multiple_of(ROW_PADDING);
            // 128 sums either way: where loads of rows are shared, more of them cost less.
            let wide = rows == 8 && stored.is_multiple_of(16);
            let columns = if wide { 16 } else { 8 };
            ("linear_software_tile", rows, columns, 1)
        }
    };
    Tile {
        name: "",
        memory: WORKGROUP_MEMORY,
        matrices: None,
        cut: None,
        body,
        workgroup: LANES,
        rows,
        columns: u64::from(LANES) * columns,
        wv,
        constants: vec![
            ("TILE_ROWS", rows),
            ("TILE_COLS", columns),
            ("XV", xv),
            ("WORKGROUP", u64::from(LANES)),
        ],
    }
}

/// The tile of `linear_tiled`, whose 256 invocations have registers for so many rows and
/// outputs each, and whose steps are of so many vec4s of K.
fn register_tile(name: &'static str, matrix: &Matrix, [m, n]: [u64; 2], depth: u64) -> Tile {
    let (rows, columns) = (16 * m, 16 * n);
    Tile {
        name,
        body: "linear_tiled",
        workgroup: 256,
        rows,
        columns,
        wv: matrix.packing.group() as u64 / 4,
        constants: vec![
            ("TILE_M", rows),
            ("TILE_N", columns),
            ("TILE_K4", depth),
            ("THREAD_M", m),
            ("THREAD_N", n),
        ],
        memory: WORKGROUP_MEMORY,
        matrices: None,
        cut: None,
    }
}

/// How tiles of `linear_coop` are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Parts of a tile.
    count: u64,
    /// Tiles that run at once: of fewer, and of what is left over, there are parts.
    round: u64,
    /// The most tiles that are cut.
    most: u64,
}

/// The most parts, for each tile that runs at once.
const PARTS_OF_ROUND: u64 = 2;

/// The tile of `linear_coop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CoopTile {
    name: &'static str,
    pub matrices: Matrices,
    subgroups: [u64; 2],
    fragments_m: u64,
    /// vec4s of f16 between rows in workgroup memory.
    pad: u64,
    cut: Option<Cut>,
}

/// As many invocations as a subgroup has on most GPUs.
const USUAL_SUBGROUP: u64 = 32;

/// The body for cooperative matrices, and the columns of one of its steps.
pub(crate) const COOP: &str = "linear_coop";
pub(crate) const COOP_STEP: u64 = 64;

impl CoopTile {
    /// The large one and the small one. Four subgroups of 64 invocations are as many
    /// invocations as WebGPU lets a workgroup have.
    pub fn both(matrices: Matrices) -> [CoopTile; 2] {
        let large = CoopTile {
            name: "large",
            matrices,
            subgroups: [2, if matrices.subgroup > 32 { 2 } else { 4 }],
            fragments_m: 4,
            pad: 2,
            cut: None,
        };
        let small = CoopTile {
            name: "small",
            subgroups: [2, 2],
            fragments_m: 2,
            ..large
        };
        [large, small]
    }

    /// The tile for about `rows` rows and `n` outputs: the large one where there are
    /// enough of it to fill a card.
    fn choose(matrices: Matrices, rows: u64, n: u64) -> Self {
        let [large, small] = Self::both(matrices);
        let usual = match rows.div_ceil(large.rows()) * n.div_ceil(large.columns()) {
            96.. if rows > small.rows() => large,
            _ => small,
        };
        CoopTile { name: "", ..usual }
    }

    /// What may be faster for up to `most` rows of `k`, and `n` outputs, on a device of so
    /// many processors.
    pub fn others(self, k: u64, (most, n): (u64, u64), processors: u64) -> Vec<CoopTile> {
        let tiles = |tile: CoopTile| most.div_ceil(tile.rows()) * n.div_ceil(tile.columns());
        let both = Self::both(self.matrices);
        let is_other = |other: &CoopTile| other.fragments_m != self.fragments_m;
        let [_, small] = both;
        let mut others: Vec<CoopTile> = both
            .into_iter()
            .filter(|other| is_other(other) && most > small.rows())
            .collect();
        let spaced = CoopTile {
            name: "spaced",
            pad: 4,
            ..self
        };
        others.push(spaced);
        // Of the large tile two run at once on a processor.
        let round = processors * 2 * both[0].workgroup() / self.workgroup();
        // Few tiles leave processors without any, unless there are many parts of each.
        let steps = k.div_ceil(COOP_STEP);
        let counts: &[(&str, u64)] = match round / tiles(self).max(1) {
            ..8 => &[("parts3", 3), ("parts5", 5)],
            8.. => &[("parts5", 5), ("parts10", 10)],
        };
        for (name, count) in counts.iter().copied() {
            // More than fit are better computed whole: they fill a round.
            let most = tiles(self).min(PARTS_OF_ROUND * round / count);
            if steps >= 2 * count {
                let cut = Some(Cut { count, round, most });
                others.push(CoopTile { name, cut, ..self });
            }
        }
        if let Some(matrices) = self.matrices.by_scalars() {
            others.push(CoopTile {
                name: "scalars",
                matrices,
                ..self
            });
        }
        others
    }

    /// Rows and outputs of a workgroup.
    pub fn rows(self) -> u64 {
        self.matrices.side * self.fragments_m * self.subgroups[0]
    }

    pub fn columns(self) -> u64 {
        2 * self.matrices.side * self.subgroups[1]
    }

    pub fn workgroup(self) -> u64 {
        self.matrices.subgroup * self.subgroups[0] * self.subgroups[1]
    }

    pub fn constants(self) -> Vec<(&'static str, u64)> {
        let mut out = self.matrices.constants();
        out.extend([
            ("PIECES", COOP_STEP / self.matrices.side),
            ("SUBGROUPS_M", self.subgroups[0]),
            ("SUBGROUPS_N", self.subgroups[1]),
            ("FRAGMENTS_M", self.fragments_m),
            ("PAD", self.pad),
            ("PARTS", self.cut.map_or(1, |c| c.count)),
            ("ROUND", self.cut.map_or(1, |c| c.round)),
            ("MOST", self.cut.map_or(0, |c| c.most)),
        ]);
        out
    }

    /// Bytes that a workgroup shares.
    pub fn memory(self) -> u64 {
        let subgroups = self.subgroups[0] * self.subgroups[1];
        let results = 4 * self.matrices.side * self.matrices.side * subgroups;
        8 * (COOP_STEP / 4 + self.pad) * (self.rows() + self.columns()) + results
    }

    fn tile(self, matrix: &Matrix) -> Tile {
        Tile {
            name: self.name,
            body: COOP,
            workgroup: self.workgroup() as u32,
            rows: self.rows(),
            columns: self.columns(),
            wv: matrix.packing.group() as u64 / 4,
            constants: self.constants(),
            memory: self.memory(),
            matrices: Some(self.matrices),
            cut: self.cut,
        }
    }
}

/// A kernel's body, and what it computes at a time.
pub(crate) struct Tile {
    /// What tells it from others for the same; part of the kernel's name.
    pub name: &'static str,
    pub body: &'static str,
    /// Invocations of a workgroup.
    pub workgroup: u32,
    /// Rows of a workgroup.
    pub rows: u64,
    /// Columns of a workgroup.
    pub columns: u64,
    /// vec4s of a group of weights as the body takes them.
    pub wv: u64,
    /// The body's other constants.
    pub constants: Vec<(&'static str, u64)>,
    /// Bytes that a workgroup shares, at the most.
    pub memory: u64,
    /// The cooperative matrices that multiply it, if its body is [`COOP`].
    pub matrices: Option<Matrices>,
    /// Whether workgroups compute parts of tiles.
    cut: Option<Cut>,
}

impl Tile {
    /// The same for half and for twice as many outputs of a workgroup, and where it streams
    /// weights, with twice as many of them under way.
    fn with_other_columns(&self) -> Vec<Tile> {
        let (name, step) = match self.body {
            STREAM => ("COLUMNS", self.constant("TILE_COLS")),
            _ => ("TILE_COLS", 1),
        };
        let columns = self.constant(name);
        let mut out = Vec::new();
        for (of, other) in [("half", columns / 2), ("double", 2 * columns)] {
            if other >= step && other.is_multiple_of(step) {
                let mut tile = self.with(of, name, other);
                tile.columns = self.columns * other / columns;
                out.push(tile);
            }
        }
        let batch = self.constant("BATCH");
        if self.body == STREAM && self.constant("UNITS") > batch * USUAL_SUBGROUP {
            out.push(self.with("deep", "BATCH", 2 * batch));
        }
        out
    }

    /// The same by another name with another value for a constant.
    fn with(&self, of: &'static str, name: &str, value: u64) -> Tile {
        let constants = self.constants.iter().map(|(own, size)| match *own == name {
            true => (*own, value),
            false => (*own, *size),
        });
        Tile {
            name: of,
            constants: constants.collect(),
            ..*self
        }
    }

    /// What workgroups compute parts of, if they do.
    pub fn parts(&self) -> Option<Parts> {
        self.cut.map(|cut| Parts {
            count: cut.count,
            tiles: cut.most,
            size: self.rows * self.columns,
        })
    }

    /// Workgroups for so many tiles, as if no more were left over than are cut.
    pub fn workgroups(&self, tiles: &Dim) -> Dim {
        let Some(Cut { count, round, .. }) = self.cut else {
            return tiles.clone();
        };
        let rounds = &(tiles + &Dim::constant(1)).ceil_div(round) - &Dim::constant(1);
        let whole = &rounds * &Dim::constant(round);
        &whole + &(&(tiles - &whole) * &Dim::constant(count))
    }

    /// One of the constants; 1 if there is no such.
    pub fn constant(&self, name: &str) -> u64 {
        let mut constants = self.constants.iter();
        constants.find(|(n, _)| *n == name).map_or(1, |(_, v)| *v)
    }
}

/// The steps of [`STREAM`] whose weights are brought nearer while others are waited for.
pub(crate) const TOUCH: &str = "TOUCH";

/// The body that reads weights by units.
pub(crate) const STREAM: &str = "linear_stream_subgroup";

/// vec4s of 16 bytes of weights.
pub(crate) fn unit(packing: Packing) -> u64 {
    match packing {
        Packing::F32 => 1,
        Packing::F16 => 2,
        Packing::Q8 => 4,
        Packing::Q4 => 8,
    }
}

/// Whether a kernel for one row brings the row to workgroup memory, and so reads
/// each element but once.
pub(crate) fn brings_row(tier: Tier, matrix: &Matrix, grid: Option<GridSize>) -> bool {
    stream(tier, matrix, (1, matrix.rows), grid).is_some()
}

/// `linear_stream_subgroup` for up to `rows` rows at a time and `n` outputs, if the
/// tier has subgroups and a row fits in workgroup memory. Sizes for one row are those
/// that were fastest on an H100 (docs/performance.md).
fn stream(
    tier: Tier,
    matrix: &Matrix,
    (rows, n): (u64, u64),
    grid: Option<GridSize>,
) -> Option<Tile> {
    const WORKGROUP: u64 = join::WORKGROUP;
    let packing = matrix.packing;
    let uv = unit(packing);
    let row = packing.groups(matrix.k as usize) as u64 * packing.group() as u64 / 4;
    let bytes = 16 * row + 2 * WORKGROUP;
    let memory = match (grid, tier) {
        (Some(grid), _) => grid.row_memory,
        // More leaves a processor room for fewer workgroups, but another body for one row
        // takes longer.
        (None, tier) if rows > 1 || bytes > WORKGROUP_MEMORY => tier.workgroup_memory(),
        (None, _) => WORKGROUP_MEMORY,
    };
    if bytes > memory || !tier.has_subgroups() {
        return None;
    }
    // Rows that do not fit beside these find their weights in a cache.
    let rows = 1 << rows.min(memory / bytes).ilog2();
    // In a grid, a part for each workgroup. About 400 workgroups fill a card; more
    // outputs each make up for the row that each has to bring, until the last ones
    // to finish are felt.
    let columns = match (grid, n) {
        (Some(grid), _) => n.div_ceil(grid.workgroups),
        (None, ..=2048) if rows > 1 => 8,
        (None, ..=2048) => 4,
        (None, _) => (n.div_ceil(400).next_multiple_of(8)).min(48),
    };
    // A row of few units leaves lanes without any: two outputs at a time make up
    // for it. A grid has few subgroups, each of which has to have more under way.
    let large = grid.is_some() && columns >= 12;
    let (tile_cols, batch) = match packing {
        // As few steps as there can be, each of as many units as another.
        Packing::F16 if large && row / uv > 128 => {
            let units = (row / uv).div_ceil(32);
            (2, units.div_ceil(units.div_ceil(8)))
        }
        // What is read of several rows serves two outputs.
        Packing::F32 | Packing::F16 if rows > 1 => (2, 2),
        Packing::F32 | Packing::F16 => (1, 4),
        Packing::Q8 if large && row / uv > 64 => (4, 2),
        Packing::Q8 | Packing::Q4 => (2, 2),
    };
    let columns = columns.next_multiple_of(tile_cols);
    Some(Tile {
        name: "",
        memory,
        matrices: None,
        cut: None,
        body: STREAM,
        workgroup: WORKGROUP as u32,
        rows,
        columns,
        wv: uv,
        constants: vec![
            ("UV", uv),
            ("UNITS", row / uv),
            ("WORKGROUP", WORKGROUP),
            ("TILE_ROWS", rows),
            ("TILE_COLS", tile_cols),
            ("BATCH", batch),
            ("COLUMNS", columns),
            (TOUCH, 0),
        ],
    })
}
