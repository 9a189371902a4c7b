//! Linear layers: every tile, prologue, epilogue and packing.

use kiln_ir::plan::{ImageSize, MOST_TEXELS};
use kiln_ir::{Activation, Bindings, DType, Dim, Graph, GraphBuilder, Norm, Op, Packing, Step};

use crate::common::{TIERS, everything};
use crate::suite::{IDS, Suite};

/// `[n, k]` matrices: sizes of one, of primes, one under and over a group of
/// weights, a workgroup's columns and a tile.
const SHAPES: [(u64, u64); 22] = [
    (1, 1),
    (1, 9),
    (2, 3),
    (3, 64),
    (4, 8),
    (5, 65),
    (7, 7),
    (8, 63),
    (9, 1),
    (15, 16),
    (16, 127),
    (17, 129),
    (31, 2),
    (32, 33),
    (33, 9),
    (63, 15),
    (64, 64),
    (65, 31),
    (127, 8),
    (128, 17),
    (129, 65),
    (257, 12),
];

/// Sequences and their length, for rows of 1 to 9, 15 to 17, 33 and 65: one under
/// and over each tile.
const ROWS: [(u64, u64); 14] = [
    (1, 1),
    (2, 1),
    (1, 3),
    (2, 2),
    (1, 5),
    (3, 2),
    (1, 7),
    (2, 4),
    (3, 3),
    (3, 5),
    (1, 16),
    (1, 17),
    (3, 11),
    (1, 65),
];

/// One of the rows for each kernel that a tier takes for more or fewer of them.
const KERNELS: [(u64, u64); 4] = [(1, 1), (3, 1), (1, 6), (2, 9)];

pub fn sizes(rows: &[(u64, u64)]) -> impl Iterator<Item = Bindings> {
    rows.iter()
        .map(|(batch, seq)| Bindings::new().with("batch", *batch).with("seq", *seq))
}

/// A step of an epilogue and what its operand is.
#[derive(Clone, Copy)]
enum Then {
    /// Adds a vector.
    Bias,
    /// Multiplies by a vector.
    Scale,
    /// Adds a tensor of the result's shape.
    Residual,
    /// Multiplies by one.
    Gate,
    /// Adds a number for each position.
    Position,
    Act(Activation),
}

/// `epilogue(norm(x) . w^T)`
fn layer(name: &str, (k, n): (u64, u64), norm: Option<Norm>, then: &[Then]) -> Graph {
    let mut g = GraphBuilder::new(name);
    let batch = g.symbol("batch", 3).unwrap();
    let seq = g.symbol("seq", 65).unwrap();
    let tensor = |last: u64| [batch.clone(), seq.clone(), Dim::constant(last)];
    let mut operands = vec![
        g.input("x", DType::F32, tensor(k)).unwrap(),
        g.root_param(&format!("{name}.weight"), [n, k]).unwrap(),
    ];
    for i in 0..norm.map_or(0, Norm::operands) {
        operands.push(g.root_param(&format!("{name}.norm.{i}"), [k]).unwrap());
    }
    let mut steps = Vec::new();
    for (i, step) in then.iter().enumerate() {
        steps.push(match step {
            Then::Bias | Then::Residual | Then::Position => Step::Add,
            Then::Scale | Then::Gate => Step::Mul,
            Then::Act(activation) => Step::Act(*activation),
        });
        let operand = format!("{name}.{i}");
        operands.extend(match step {
            Then::Bias | Then::Scale => Some(g.root_param(&operand, [n]).unwrap()),
            Then::Residual | Then::Gate => Some(g.input(&operand, DType::F32, tensor(n)).unwrap()),
            Then::Position => {
                let shape = [seq.clone(), 1.into()];
                Some(g.input(&operand, DType::F32, shape).unwrap())
            }
            Then::Act(_) => None,
        });
    }
    let y = g.op(Op::Linear { norm, steps }, &operands).unwrap();
    g.output("y", y).unwrap();
    g.finish()
}

fn shapes(packing: Packing, shapes: &[(u64, u64)], rows: &[(u64, u64)]) -> Suite {
    let mut suite = Suite::new(packing);
    for (k, n) in shapes {
        let name = format!("{k}to{n}");
        suite.add(layer(&name, (*k, *n), None, &[]), sizes(rows));
    }
    suite
}

#[test]
fn every_shape() {
    shapes(Packing::F32, &SHAPES, &ROWS).run(&TIERS);
}

/// Layers that more rows than a few go through, of less than a tile, of whole tiles and
/// a little more, K of whole steps and not, behind a norm and not.
pub fn many_rows(packing: Packing) -> Suite {
    use Then::{Act, Bias, Residual};
    let mut suite = Suite::new(packing);
    for ((k, n), norm) in [
        ((18, 7), None),
        ((63, 65), Some(LAYER)),
        ((64, 64), Some(RMS)),
        ((128, 130), None),
        ((200, 30), Some(LAYER)),
    ] {
        let name = format!("{k}to{n}");
        let then = [Bias, Act(Activation::GeluTanh), Residual];
        let graph = layer(&name, (k, n), norm, &then);
        suite.add(graph, sizes(&[(1, 9), (1, 64), (1, 65), (3, 63)]));
    }
    suite
}

/// Less than a group of weights a row, whole groups, and groups with a rest.
const PACKED: [(u64, u64); 5] = [(1, 3), (31, 9), (32, 64), (65, 31), (96, 7)];

#[test]
fn f16() {
    shapes(Packing::F16, &PACKED, &ROWS).run(&TIERS);
}

#[test]
fn q8() {
    shapes(Packing::Q8, &PACKED, &ROWS).run(&TIERS);
}

#[test]
fn q4() {
    shapes(Packing::Q4, &PACKED, &ROWS).run(&TIERS);
}

const LAYER: Norm = Norm::Layer { eps: 1e-5 };
const RMS: Norm = Norm::Rms { eps: 1e-6 };

/// Layers with all epilogues, or every so many of them, behind each norm.
fn epilogues(norms: &[Option<Norm>], step: usize) -> Suite {
    use Activation::{GeluErf, GeluTanh, Relu, Silu, Tanh};
    use Then::{Act, Bias, Gate, Position, Residual, Scale};
    let all: [&[Then]; 13] = [
        &[],
        &[Bias],
        &[Residual],
        &[Act(GeluTanh)],
        &[Act(GeluErf), Scale],
        &[Act(Relu)],
        &[Bias, Act(Silu)],
        &[Bias, Act(Tanh), Residual],
        &[Bias, Residual],
        &[Scale, Bias],
        &[Act(Silu), Gate],
        &[Gate, Residual, Position],
        &[Position, Act(GeluTanh), Scale, Residual, Bias],
    ];
    // Rows of whole fours and others, of inputs and of results.
    let widths = [(16, 24), (21, 27), (20, 30), (13, 8)];
    let mut suite = Suite::new(Packing::F32);
    for (i, norm) in norms.iter().enumerate() {
        for (j, then) in all.iter().enumerate().step_by(step) {
            let name = format!("norm{i}.then{j}");
            let widths = widths[(i + j) % widths.len()];
            suite.add(layer(&name, widths, *norm, then), sizes(&KERNELS));
        }
    }
    suite
}

#[test]
fn epilogues_alone() {
    epilogues(&[None], 1).run(&TIERS);
}

#[test]
fn epilogues_behind_a_norm() {
    let norms = [Some(LAYER), Some(RMS)];
    epilogues(&norms, 1).run(&["subgroup", "base"]);
    // A software driver takes long over each of these kernels.
    epilogues(&norms, 3).run(&["software-subgroup", "software"]);
}

/// What a subgroup's size decides: sums along rows, for layers and norms.
pub fn across_lanes() -> Suite {
    let mut suite = shapes(Packing::F32, &[(5, 7), (64, 9), (129, 65)], &KERNELS);
    for (norm, name) in [(LAYER, "layer"), (RMS, "rms")] {
        for (k, n) in [(7, 5), (65, 8), (260, 12)] {
            let name = format!("{name}.{k}to{n}");
            let graph = layer(&name, (k, n), Some(norm), &[Then::Bias, Then::Residual]);
            suite.add(graph, sizes(&KERNELS));
        }
    }
    suite
}

/// Inputs that are parts of something else, whose rows do not lie together or do
/// not start at a multiple of four.
#[test]
fn views() {
    let mut suite = Suite::new(Packing::F32);
    for (name, start, end) in [("even", 4, 20), ("odd", 3, 20)] {
        let mut g = GraphBuilder::new(name);
        let batch = g.symbol("batch", 3).unwrap();
        let seq = g.symbol("seq", 65).unwrap();
        let x = g.input("x", DType::F32, [batch, seq, 24.into()]).unwrap();
        let part = g.slice(x, 2, start, end).unwrap();
        let w = g
            .root_param(&format!("{name}.w"), [10, end - start])
            .unwrap();
        let gain = g
            .root_param(&format!("{name}.gain"), [end - start])
            .unwrap();
        for (output, norm) in [("plain", None), ("norm", Some(RMS))] {
            let mut operands = vec![part, w];
            operands.extend(norm.map(|_| gain));
            let op = Op::Linear {
                norm,
                steps: vec![],
            };
            let y = g.op(op, &operands).unwrap();
            g.output(output, y).unwrap();
        }
        suite.add(g.finish(), sizes(&KERNELS));
    }
    // The last position of each sequence, and rows along another axis.
    let mut g = GraphBuilder::new("last");
    let batch = g.symbol("batch", 3).unwrap();
    let seq = g.symbol("seq", 65).unwrap();
    let x = g
        .input("x", DType::F32, [batch.clone(), seq.clone(), 12.into()])
        .unwrap();
    let w = g.root_param("last.w", [7, 12]).unwrap();
    let last = g
        .slice(x, 1, &seq - &Dim::constant(1), seq.clone())
        .unwrap();
    let flat = g.reshape(last, [batch, 12.into()]).unwrap();
    let turned = g.transpose(x, &[1, 0, 2]).unwrap();
    for (output, x) in [("last", flat), ("turned", turned)] {
        let op = Op::Linear {
            norm: None,
            steps: vec![],
        };
        let y = g.op(op, &[x, w]).unwrap();
        g.output(output, y).unwrap();
    }
    suite.add(g.finish(), sizes(&KERNELS));
    suite.run(&TIERS);
}

/// A layer whose norm is written with what another layer gives, which is computed before it or
/// behind it: only what is there can be added by the launch that the layer ends with.
#[test]
fn sums_with_another_layer() {
    let mut suite = Suite::new(Packing::F32);
    for (name, first) in [("before", 1), ("behind", 0)] {
        let mut g = GraphBuilder::new(name);
        let batch = g.symbol("batch", 3).unwrap();
        let seq = g.symbol("seq", 65).unwrap();
        let x = g.input("x", DType::F32, [batch, seq, 12.into()]).unwrap();
        let gain = g.root_param(&format!("{name}.gain"), [8]).unwrap();
        let layers = ["w0", "w1"].map(|w| {
            let w = g.root_param(&format!("{name}.{w}"), [8, 12]).unwrap();
            let op = Op::Linear {
                norm: None,
                steps: vec![],
            };
            g.op(op, &[x, w]).unwrap()
        });
        let norm = g.op(Op::Normalize(RMS), &[layers[first], gain]).unwrap();
        let sum = g.add(norm, layers[1 - first]).unwrap();
        g.output("sum", sum).unwrap();
        suite.add(g.finish(), sizes(&KERNELS));
    }
    suite.run(&TIERS);
}

/// A matrix `[rows, width]` that is read by rows and multiplied by, as the embedding
/// of GPT-2, for so many sequences of so many tokens.
fn tied(name: &str, (rows, width): (u64, u64), (batch, seq): (u64, u64)) -> Graph {
    let mut g = GraphBuilder::new(name);
    let batch = g.symbol("batch", batch).unwrap();
    let seq = g.symbol("seq", seq).unwrap();
    let ids = g
        .input("ids", DType::I32, [batch.clone(), seq.clone()])
        .unwrap();
    let table = g
        .root_param(&format!("{name}.table"), [rows, width])
        .unwrap();
    // From all over the matrix.
    let far = g.i32(rows as i32 / IDS).unwrap();
    let ids = g.mul(ids, far).unwrap();
    let x = g.gather(table, ids).unwrap();
    g.output("x", x).unwrap();
    let first = g
        .input("first", DType::F32, [batch, seq, width.into()])
        .unwrap();
    let op = Op::Linear {
        norm: None,
        steps: vec![],
    };
    let y = g.op(op, &[first, table]).unwrap();
    g.output("y", y).unwrap();
    g.finish()
}

/// A matrix that a binding does not hold whole under WebGPU's default limits.
#[test]
fn split_weights() {
    let mut suite = Suite::new(Packing::F32);
    let graph = tied("large", (33_001, 1024), (3, 4));
    suite.add(graph, sizes(&[(1, 1), (3, 4)]));
    suite.run(&["software-subgroup", "software", "base"]);
}

/// Matrices in many parts: of a tile's rows or fewer, of rows that are whole groups
/// of weights or have a rest, the last part with fewer rows than the others.
#[test]
fn split_weights_in_every_packing() {
    // What lowers parts knows no tiers, so each packing runs on one of a CPU and one of a GPU.
    let tiers = [["software-subgroup", "base"], ["software", "subgroup"]];
    for (packing, rows, width, rows_of_a_part, two) in [
        (Packing::F32, 403, 64, 64, tiers[0]),
        (Packing::F16, 113, 33, 16, tiers[1]),
        (Packing::Q8, 77, 45, 8, tiers[0]),
        (Packing::Q4, 403, 64, 64, tiers[1]),
    ] {
        let bytes = packing.data_bytes(rows_of_a_part, width as usize) as u64;
        // As many tokens as a binding holds.
        let most = (bytes / (4 * width)).min(4);
        let mut suite = Suite::new(packing).with_bindings_of(bytes);
        let graph = tied("tied", (rows, width), (1, most));
        suite.add(graph, sizes(&[(1, 1), (1, most)]));

        let name = packing.name();
        let plan = suite.compile(None).plan;
        let parts = rows.div_ceil(rows_of_a_part as u64) as usize;
        let buffers = if packing.has_scales() { 2 } else { 1 };
        assert_eq!(plan.weights.len(), buffers * parts, "{name}");
        for tier in &plan.tiers {
            for variant in &tier.entries["tied"].variants {
                // One launch cannot bind all parts of the table; the layer's each bind
                // one.
                let streamed = variant.streams.iter().flat_map(|s| &s.launches);
                let launches = variant.launches.iter().chain(streamed);
                let (gathers, layers): (Vec<_>, Vec<_>) =
                    launches.partition(|launch| launch.kernel.contains("gather"));
                assert!(gathers.len() > 1, "{name}");
                assert_eq!(layers.len(), parts, "{name}");
            }
        }
        suite.run(if everything() { &TIERS } else { &two });
    }
}

/// Matrices that lie in images in each of the ways that there are: two or three bands in
/// a row of texels, of which the last has fewer, and bands that are longer than one.
#[test]
fn bands_of_images() {
    let cpu = ["software-subgroup", "software"];
    for (packing, rows, bands_across) in [
        (Packing::F32, 8 * MOST_TEXELS + 3, 2),
        (Packing::Q4, 8 * MOST_TEXELS + 3, 2),
        (Packing::F16, 16 * MOST_TEXELS + 3, 3),
        (Packing::Q8, 16 * MOST_TEXELS + 3, 3),
    ] {
        let size = ImageSize::of_matrix(packing, rows, 32);
        assert_eq!(size.bands_across, Some(bands_across));
        let mut suite = Suite::new(packing);
        suite.add(tied("high", (rows, 32), (1, 2)), sizes(&[(1, 2)]));
        suite.run(&cpu);
    }
    for (packing, k) in [
        (Packing::F32, 4_112),
        (Packing::F16, 8_208),
        (Packing::Q8, 15_456),
        (Packing::Q4, 29_152),
    ] {
        let size = ImageSize::of_matrix(packing, 20, k);
        assert_eq!(size.bands_across, None, "{k}");
        let mut suite = Suite::new(packing);
        suite.add(layer("long", (k, 20), None, &[]), sizes(&[(1, 1), (1, 3)]));
        suite.run(&cpu);
    }
}

/// Results that are computed and read in blocks of rows.
#[test]
fn blocks() {
    let mut g = GraphBuilder::new("blocks");
    let batch = g.symbol("batch", 1).unwrap();
    let seq = g.symbol("seq", 20_000).unwrap();
    let x = g
        .input("x", DType::F32, [batch.clone(), seq.clone(), 3.into()])
        .unwrap();
    let w = g.root_param("w", [1001, 3]).unwrap();
    let bias = g.root_param("bias", [1001]).unwrap();
    let row = g.input("row", DType::F32, [seq.clone(), 1.into()]).unwrap();
    let op = Op::Linear {
        norm: None,
        steps: vec![Step::Add, Step::Add],
    };
    let y = g.op(op, &[x, w, bias, row]).unwrap();
    g.output("y", y).unwrap();
    let mut suite = Suite::new(Packing::F32);
    suite.add(g.finish(), sizes(&[(1, 1), (1, 70), (1, 9001)]));
    suite.run(&TIERS);
}
