//! Kernels of single ops: elementwise, movement, reductions, norms, products.

use kiln_ir::{
    Activation, BinaryOp, Bindings, DType, Dim, Graph, GraphBuilder, Norm, Op, Packing, ReduceOp,
    UnaryOp, ValueId,
};

use crate::common::TIERS;
use crate::suite::{IDS, Suite};

fn sizes(all: &[(u64, u64)]) -> Vec<Bindings> {
    let both = |(a, b): &(u64, u64)| Bindings::new().with("a", *a).with("b", *b);
    all.iter().map(both).collect()
}

const SIZES: [(u64, u64); 8] = [
    (1, 1),
    (1, 7),
    (2, 8),
    (3, 9),
    (5, 63),
    (2, 64),
    (3, 65),
    (7, 130),
];

/// A graph over the symbols `a` and `b`.
fn build(name: &str, body: impl FnOnce(&mut GraphBuilder, Dim, Dim)) -> Graph {
    let mut g = GraphBuilder::new(name);
    let a = g.symbol("a", 7).unwrap();
    let b = g.symbol("b", 130).unwrap();
    body(&mut g, a, b);
    g.finish()
}

fn suite_of(graphs: impl IntoIterator<Item = Graph>) -> Suite {
    let mut suite = Suite::new(Packing::F32);
    for graph in graphs {
        suite.add(graph, sizes(&SIZES));
    }
    suite
}

fn out(g: &mut GraphBuilder, name: &str, value: ValueId) {
    g.output(name, value).unwrap();
}

#[test]
fn elementwise() {
    let real = |name: &str, width: Option<u64>| {
        build(name, |g, a, b| {
            let shape = vec![a, b.clone(), width.map_or(b, Dim::constant)];
            let x = g.input("x", DType::F32, shape.clone()).unwrap();
            let y = g.input("y", DType::F32, shape).unwrap();
            let two = g.f32(2.0).unwrap();
            let positive = g.add(x, two).unwrap();
            for op in UnaryOp::ALL {
                let operand = match op {
                    UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Rsqrt => positive,
                    UnaryOp::Not => g.lt(x, y).unwrap(),
                    _ => x,
                };
                let z = g.op(Op::Unary(*op), &[operand]).unwrap();
                out(g, op.word(), z);
            }
            for op in BinaryOp::ALL {
                let operands = match op {
                    BinaryOp::And | BinaryOp::Or => [g.lt(x, y).unwrap(), g.ge(y, two).unwrap()],
                    BinaryOp::Pow => [positive, y],
                    BinaryOp::Div => [x, positive],
                    _ => [x, y],
                };
                let z = g.op(Op::Binary(*op), &operands).unwrap();
                out(g, op.word(), z);
            }
            for act in Activation::ALL {
                let z = g.op(Op::Activate(*act), &[x]).unwrap();
                out(g, &format!("activate_{}", act.word()), z);
            }
        })
    };
    // A last axis of whole fours is taken four elements at a time.
    let small: Vec<Bindings> = sizes(&[(1, 1), (3, 5), (2, 17)]);
    let mut suite = Suite::new(Packing::F32);
    suite.add(real("ones", None), small.clone());
    suite.add(real("fours", Some(12)), small);
    suite.run(&TIERS);
}

/// Arguments at which a careless formula gives infinity or NaN.
#[test]
fn large_arguments() {
    let graph = build("large", |g, a, b| {
        let x = g.input("x", DType::F32, [a, b, 4.into()]).unwrap();
        for scale in [60.0, 1e4, 1e18] {
            let factor = g.f32(scale).unwrap();
            let x = g.mul(x, factor).unwrap();
            let tanh = g.tanh(x).unwrap();
            out(g, &format!("tanh_{scale:e}"), tanh);
            let erf = g.erf(x).unwrap();
            out(g, &format!("erf_{scale:e}"), erf);
            for act in Activation::ALL {
                let y = g.op(Op::Activate(*act), &[x]).unwrap();
                out(g, &format!("activate_{}_{scale:e}", act.word()), y);
            }
            let p = g.softmax(x, 1).unwrap();
            out(g, &format!("softmax_{scale:e}"), p);
        }
    });
    let mut suite = Suite::new(Packing::F32);
    suite.add(graph, sizes(&[(2, 65)]));
    suite.run(&TIERS);
}

/// Rows of which a mask hides all, some or no elements.
#[test]
fn masked_softmax() {
    let graph = build("masked", |g, a, b| {
        let x = g.input("x", DType::F32, [a, b]).unwrap();
        let hidden = g.f32(f64::from(f32::MIN)).unwrap();
        for (name, below) in [("all", 2.0), ("some", 0.5), ("none", -2.0)] {
            let below = g.f32(below).unwrap();
            let is_hidden = g.lt(x, below).unwrap();
            let masked = g.select(is_hidden, hidden, x).unwrap();
            for axis in 0..2 {
                let p = g.softmax(masked, axis).unwrap();
                out(g, &format!("{name}_{axis}"), p);
            }
        }
    });
    suite_of([graph]).run(&TIERS);
}

#[test]
fn integers_and_truth_values() {
    let graph = build("integers", |g, a, b| {
        let ids = g.input("ids", DType::I32, [a.clone(), b.clone()]).unwrap();
        let x = g.input("x", DType::F32, [a, b.clone()]).unwrap();
        let places = g.arange(0, b.clone()).unwrap();
        for op in [
            BinaryOp::Add,
            BinaryOp::Sub,
            BinaryOp::Mul,
            BinaryOp::Max,
            BinaryOp::Min,
            BinaryOp::Lt,
            BinaryOp::Le,
            BinaryOp::Gt,
            BinaryOp::Ge,
            BinaryOp::Eq,
        ] {
            let y = g.op(Op::Binary(op), &[ids, places]).unwrap();
            out(g, op.word(), y);
        }
        let less = g.lt(ids, places).unwrap();
        let chosen = g.select(less, ids, places).unwrap();
        out(g, "where_i32", chosen);
        let real = g.cast(ids, DType::F32).unwrap();
        let chosen = g.select(less, x, real).unwrap();
        out(g, "where_f32", chosen);
        let ten = g.f32(10.0).unwrap();
        let large = g.mul(x, ten).unwrap();
        for (name, value, to) in [
            ("f32_to_i32", large, DType::I32),
            ("f32_to_bool", x, DType::Bool),
            ("i32_to_bool", ids, DType::Bool),
            ("bool_to_f32", less, DType::F32),
            ("bool_to_i32", less, DType::I32),
        ] {
            let y = g.cast(value, to).unwrap();
            out(g, name, y);
        }
        let later = g
            .arange(&b - &Dim::constant(1), &b * &Dim::constant(2))
            .unwrap();
        out(g, "arange", later);
    });
    suite_of([graph]).run(&TIERS);
}

#[test]
fn movement() {
    let graph = build("movement", |g, a, b| {
        let x = g
            .input("x", DType::F32, [a.clone(), b.clone(), 6.into()])
            .unwrap();
        let row = g.input("row", DType::F32, [6]).unwrap();
        let column = g
            .input("column", DType::F32, [b.clone(), 1.into()])
            .unwrap();
        let turned = g.transpose(x, &[2, 0, 1]).unwrap();
        out(g, "transpose", turned);
        let split = g
            .reshape(x, [a.clone(), b.clone(), 2.into(), 3.into()])
            .unwrap();
        let split = g.transpose(split, &[0, 2, 1, 3]).unwrap();
        out(g, "heads", split);
        let merged = g.reshape(split, [&a * &b, 6.into()]).unwrap();
        out(g, "merged", merged);
        let part = g.slice(x, 2, 1, 4).unwrap();
        out(g, "slice", part);
        let last = g.slice(x, 1, &b - &Dim::constant(1), b.clone()).unwrap();
        out(g, "last", last);
        let wide = g.broadcast(row, [a.clone(), b.clone(), 6.into()]).unwrap();
        out(g, "broadcast", wide);
        let sum = g.add(x, row).unwrap();
        let sum = g.mul(sum, column).unwrap();
        out(g, "rows_and_columns", sum);
        for axis in 0..3 {
            let joined = g.concat(&[x, x, sum], axis).unwrap();
            out(g, &format!("concat_{axis}"), joined);
        }
        let back = g.transpose(turned, &[1, 2, 0]).unwrap();
        let joined = g.concat(&[part, back, x], 2).unwrap();
        out(g, "concat_views", joined);
        out(g, "the_input", x);
    });
    suite_of([graph]).run(&TIERS);
}

#[test]
fn reductions() {
    let graph = build("reductions", |g, a, b| {
        let x = g.input("x", DType::F32, [a, b, 5.into()]).unwrap();
        let half = g.f32(0.5).unwrap();
        let x = g.add(x, half).unwrap();
        for axis in 0..3 {
            for op in ReduceOp::ALL {
                let y = g.reduce(*op, x, axis).unwrap();
                out(g, &format!("{}_{axis}", op.word()), y);
            }
            let p = g.softmax(x, axis).unwrap();
            out(g, &format!("softmax_{axis}"), p);
        }
    });
    suite_of([graph]).run(&TIERS);
}

fn norms() -> Vec<Graph> {
    let widths = [1, 2, 3, 7, 8, 64, 65, 128, 257];
    let graphs = widths.map(|width: u64| {
        build(&format!("norms.{width}"), |g, a, b| {
            let x = g.input("x", DType::F32, [a, b, width.into()]).unwrap();
            let half = g.f32(0.5).unwrap();
            let x = g.add(x, half).unwrap();
            let gain = g.root_param(&format!("{width}.gain"), [width]).unwrap();
            let bias = g.root_param(&format!("{width}.bias"), [width]).unwrap();
            let layer = Op::Normalize(Norm::Layer { eps: 1e-5 });
            let y = g.op(layer, &[x, gain, bias]).unwrap();
            out(g, "layer", y);
            let rms = Op::Normalize(Norm::Rms { eps: 1e-6 });
            let y = g.op(rms, &[x, gain]).unwrap();
            out(g, "rms", y);
        })
    });
    graphs.into()
}

#[test]
fn norms_of_every_width() {
    suite_of(norms()).run(&TIERS);
}

/// For each size of a subgroup.
pub fn across_lanes() -> Suite {
    suite_of(norms().split_off(5))
}

/// Angles of each sequence's own positions, and of positions that all share.
#[test]
fn rotary() {
    let graphs = [(1, 2), (3, 6), (2, 8), (1, 64)].map(|(heads, head_dim): (u64, u64)| {
        build(&format!("rotary.{heads}x{head_dim}"), |g, a, b| {
            let width = Dim::constant(heads * head_dim);
            let x = g
                .input("x", DType::F32, [a.clone(), b.clone(), width])
                .unwrap();
            let half = Dim::constant(head_dim / 2);
            let turns: Vec<f64> = (0..head_dim / 2).map(|i| 0.9f64.powi(i as i32)).collect();
            let turns = g.table(turns).unwrap();
            let ids = g
                .input("ids", DType::I32, [a.clone(), b.clone(), 1.into()])
                .unwrap();
            let own = g.cast(ids, DType::F32).unwrap();
            let shared = g.arange(0, b.clone()).unwrap();
            let shared = g.cast(shared, DType::F32).unwrap();
            let shared = g.reshape(shared, [b, 1.into()]).unwrap();
            for (name, positions) in [("own", own), ("shared", shared)] {
                let angles = g.mul(positions, turns).unwrap();
                assert_eq!(g.shape(angles).last(), Some(&half));
                let (cos, sin) = (g.cos(angles).unwrap(), g.sin(angles).unwrap());
                let y = g.op(Op::Rotary, &[x, cos, sin]).unwrap();
                out(g, name, y);
            }
        })
    });
    suite_of(graphs).run(&TIERS);
}

#[test]
fn products() {
    let graph = build("products", |g, a, b| {
        let x = g
            .input("x", DType::F32, [a.clone(), b.clone(), 9.into()])
            .unwrap();
        let y = g
            .input("y", DType::F32, [a.clone(), 9.into(), b.clone()])
            .unwrap();
        let shared = g.input("shared", DType::F32, [9, 7]).unwrap();
        let z = g.matmul(x, y).unwrap();
        out(g, "batched", z);
        let z = g.matmul(y, x).unwrap();
        out(g, "long", z);
        let z = g.matmul(x, shared).unwrap();
        out(g, "shared", z);
        let turned = g.transpose(x, &[0, 2, 1]).unwrap();
        let z = g.matmul(turned, x).unwrap();
        out(g, "transposed", z);
        let row = g.reshape(x, [a, 1.into(), b, 9.into()]).unwrap();
        let stack = g.input("stack", DType::F32, [3, 9, 2]).unwrap();
        let z = g.matmul(row, stack).unwrap();
        out(g, "broadcast", z);
    });
    suite_of([graph]).run(&TIERS);
}

/// Rows of tables that are read alone and that are a layer's weights too, in
/// every packing; ids outside a table are clamped to it.
#[test]
fn gather() {
    for packing in Packing::ALL {
        let mut suite = Suite::new(packing);
        for width in [1, 3, 8, 33, 64] {
            let graph = build(&format!("gather.{width}"), |g, a, b| {
                let ids = g.input("ids", DType::I32, [a.clone(), b.clone()]).unwrap();
                let rows = IDS as u64;
                let alone = g
                    .root_param(&format!("alone.{width}"), [rows, width])
                    .unwrap();
                let tied = g
                    .root_param(&format!("tied.{width}"), [rows, width])
                    .unwrap();
                let x = g.gather(alone, ids).unwrap();
                out(g, "alone", x);
                let y = g.gather(tied, ids).unwrap();
                let both = g.add(x, y).unwrap();
                out(g, "both", both);
                let op = Op::Linear {
                    norm: None,
                    steps: Vec::new(),
                };
                let z = g.op(op, &[both, tied]).unwrap();
                out(g, "linear", z);
            });
            suite.add(graph, sizes(&[(1, 1), (3, 7)]));
        }
        suite.run(&["software-subgroup", "software", "base"]);
    }
}
