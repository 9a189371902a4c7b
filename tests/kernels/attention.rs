//! Attention and its probabilities: heads of every kind, with and without earlier
//! positions, a causal mask, a window, and padding.

use kiln_ir::plan::Launch;
use kiln_ir::{AttentionSpec, Bindings, DType, Dim, Graph, GraphBuilder, Op, Packing, Step};

use crate::common::TIERS;
use crate::suite::Suite;

/// Sequences, their queries, and the keys before these.
const SIZES: [(u64, u64, u64); 13] = [
    (1, 1, 0),
    (1, 1, 1),
    (2, 1, 63),
    (1, 1, 130),
    (3, 2, 5),
    (1, 4, 0),
    (2, 7, 9),
    (1, 8, 64),
    (1, 9, 0),
    (2, 17, 3),
    (1, 33, 31),
    (1, 64, 0),
    (1, 65, 64),
];

fn sizes(all: &[(u64, u64, u64)]) -> impl Iterator<Item = Bindings> {
    all.iter().map(|(batch, seq, past)| {
        let bindings = Bindings::new().with("batch", *batch);
        bindings.with("seq", *seq).with("past", *past)
    })
}

/// Which keys a query sees, apart from padding.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    All,
    /// Those up to its own.
    Past,
    /// So many of the last of these.
    Window(usize),
}

impl Seen {
    fn name(self) -> String {
        match self {
            Seen::All => "full".to_owned(),
            Seen::Past => "causal".to_owned(),
            Seen::Window(keys) => format!("window{keys}"),
        }
    }

    fn spec(self, (heads, kv_heads): (usize, usize), scale: f64) -> AttentionSpec {
        AttentionSpec {
            heads,
            kv_heads,
            scale,
            causal: self != Seen::All,
            window: match self {
                Seen::Window(keys) => Some(keys),
                _ => None,
            },
        }
    }
}

fn attention(head_dim: u64, (heads, kv_heads): (usize, usize), seen: Seen, padded: bool) -> Graph {
    let padding = if padded { ".padded" } else { "" };
    let mut g = GraphBuilder::new(&format!(
        "{heads}by{kv_heads}x{head_dim}.{}{padding}",
        seen.name()
    ));
    let batch = g.symbol("batch", 3).unwrap();
    let seq = g.symbol("seq", 65).unwrap();
    let past = g.symbol("past", 130).unwrap();
    let all = &past + &seq;
    let mut tensor = |name: &str, n: &Dim, heads: usize| {
        let shape = [
            batch.clone(),
            n.clone(),
            Dim::constant(heads as u64 * head_dim),
        ];
        g.input(name, DType::F32, shape).unwrap()
    };
    let q = tensor("q", &seq, heads);
    let k = tensor("k", &all, kv_heads);
    let v = tensor("v", &all, kv_heads);
    let start = padded.then(|| g.input("start", DType::I32, [batch.clone()]).unwrap());
    let spec = seen.spec((heads, kv_heads), 1.5);
    let mut operands = vec![q, k, v];
    operands.extend(start);
    let y = g.op(Op::Attention(spec), &operands).unwrap();
    operands.remove(2);
    let p = g.op(Op::AttentionProbs(spec), &operands).unwrap();
    let (y, p) = match start {
        Some(start) if spec.causal => {
            g.output("unused_y", y).unwrap();
            g.output("unused_p", p).unwrap();
            // What padding asks for is nobody's business, as long as it is finite.
            let places = g.arange(past, all).unwrap();
            let start = g.reshape(start, [batch.clone(), 1.into()]).unwrap();
            let asked = g.ge(places, start).unwrap();
            let nothing = g.f32(0.0).unwrap();
            let mut of_tokens = |x, shape: [Dim; 4]| {
                let rank = g.ty(x).rank();
                let asked = g.reshape(asked, shape.into_iter().skip(4 - rank)).unwrap();
                g.select(asked, x, nothing).unwrap()
            };
            let one = Dim::constant(1);
            (
                of_tokens(y, [one.clone(), batch.clone(), seq.clone(), one.clone()]),
                of_tokens(p, [batch, one.clone(), seq, one]),
            )
        }
        _ => (y, p),
    };
    g.output("y", y).unwrap();
    g.output("p", p).unwrap();
    g.finish()
}

#[test]
fn heads() {
    let mut suite = Suite::new(Packing::F32);
    for (head_dim, heads, seen, padded) in [
        (1, (2, 2), Seen::Past, true),
        (2, (3, 3), Seen::Past, true),
        (3, (2, 1), Seen::Past, false),
        (3, (2, 1), Seen::Window(1), true),
        (4, (2, 2), Seen::All, false),
        (6, (2, 2), Seen::All, true),
        (7, (1, 1), Seen::Past, true),
        (8, (4, 1), Seen::Past, true),
        (8, (4, 1), Seen::Window(6), false),
        (20, (6, 2), Seen::Past, false),
        (64, (4, 2), Seen::Past, true),
        (64, (4, 2), Seen::Window(33), true),
        (80, (2, 1), Seen::Past, false),
        (128, (1, 1), Seen::All, false),
        (132, (2, 1), Seen::Past, false),
        (256, (1, 1), Seen::All, true),
    ] {
        suite.add(attention(head_dim, heads, seen, padded), sizes(&SIZES));
    }
    suite.run(&TIERS);
}

/// The widest heads of one kernel for CPU drivers, and the narrowest and wide ones of the
/// other. There the loops that a driver writes out end, so a device runs them on every tier.
#[test]
fn wide_heads() {
    let mut suite = Suite::new(Packing::F32);
    for (head_dim, seen) in [
        (128, Seen::Past),
        (130, Seen::Past),
        (256, Seen::Window(33)),
    ] {
        suite.add(attention(head_dim, (2, 1), seen, true), sizes(&SIZES));
    }
    suite.run(&TIERS);
}

/// Attention whose result one linear layer reads: with one query a context goes in
/// parts, which the layer joins.
fn projected(head_dim: u64, (heads, kv_heads): (usize, usize), seen: Seen, outputs: u64) -> Graph {
    let name = format!("{heads}by{kv_heads}x{head_dim}.{}.projected", seen.name());
    let mut g = GraphBuilder::new(&name);
    let batch = g.symbol("batch", 3).unwrap();
    let seq = g.symbol("seq", 65).unwrap();
    let past = g.symbol("past", 130).unwrap();
    let all = &past + &seq;
    let width = |heads: usize| heads as u64 * head_dim;
    let mut tensor = |name: &str, n: &Dim, width: u64| {
        let shape = [batch.clone(), n.clone(), width.into()];
        g.input(name, DType::F32, shape).unwrap()
    };
    let q = tensor("q", &seq, width(heads));
    let k = tensor("k", &all, width(kv_heads));
    let v = tensor("v", &all, width(kv_heads));
    let residual = tensor("residual", &seq, outputs);
    let spec = seen.spec((heads, kv_heads), 0.5);
    let x = g.op(Op::Attention(spec), &[q, k, v]).unwrap();
    let name = format!("w.{head_dim}");
    let w = g.root_param(&name, [outputs, width(heads)]).unwrap();
    let op = Op::Linear {
        norm: None,
        steps: vec![Step::Add],
    };
    let y = g.op(op, &[x, w, residual]).unwrap();
    g.output("y", y).unwrap();
    g.finish()
}

#[test]
fn contexts_in_parts() {
    for packing in [Packing::F32, Packing::Q8] {
        let mut suite = Suite::new(packing);
        // Of 3 and of 20 elements, whole vec4s or not; rows with and without a rest.
        for (head_dim, heads, seen, outputs) in [
            (3, (2, 1), Seen::Past, 5),
            (20, (3, 3), Seen::Window(17), 33),
            (64, (4, 2), Seen::Past, 70),
        ] {
            suite.add(projected(head_dim, heads, seen, outputs), sizes(&SIZES));
        }
        let plan = suite.compile(None).plan;
        for (tier, parts) in [("software", false), ("subgroup", true), ("base", false)] {
            let tier = plan.tiers.iter().find(|t| t.name == tier).unwrap();
            for entry in ["4by2x64.causal.projected", "3by3x20.window17.projected"] {
                let decode = &tier.entries[entry].variants[0];
                let split = |l: &Launch| l.kernel.contains(".split");
                let found = decode.launches.iter().filter(|l| split(l)).count();
                assert_eq!(found, if parts { 2 } else { 0 }, "{entry} on {}", tier.name);
            }
        }
        suite.run(&TIERS);
    }
}

/// Heads that kernels for many queries take, with and without a mask and padding.
pub fn many_queries() -> Suite {
    let mut suite = Suite::new(Packing::F16);
    for (head_dim, heads, seen, padded) in [
        (16, (4, 2), Seen::Past, true),
        (16, (4, 2), Seen::Window(7), false),
        (32, (2, 2), Seen::Past, false),
        (32, (2, 2), Seen::Window(40), true),
        (32, (2, 1), Seen::All, true),
    ] {
        let many = SIZES.iter().filter(|(_, seq, _)| *seq > 8);
        let many: Vec<_> = many.copied().collect();
        suite.add(attention(head_dim, heads, seen, padded), sizes(&many));
    }
    suite
}

/// For each size of a subgroup.
pub fn across_lanes() -> Suite {
    let mut suite = Suite::new(Packing::F32);
    for (head_dim, heads, seen) in [(3, (2, 1), Seen::Window(5)), (64, (4, 2), Seen::Past)] {
        suite.add(attention(head_dim, heads, seen, true), sizes(&SIZES));
    }
    suite.add(projected(64, (4, 2), Seen::Past, 70), sizes(&SIZES));
    suite
}

/// Probabilities that are computed and read in blocks of rows.
#[test]
fn blocks() {
    let mut g = GraphBuilder::new("blocks");
    let batch = g.symbol("batch", 1).unwrap();
    let seq = g.symbol("seq", 3000).unwrap();
    let shape = [batch, seq, 8.into()];
    let q = g.input("q", DType::F32, shape.clone()).unwrap();
    let k = g.input("k", DType::F32, shape).unwrap();
    let spec = Seen::Past.spec((2, 2), 0.5);
    let p = g.op(Op::AttentionProbs(spec), &[q, k]).unwrap();
    g.output("p", p).unwrap();
    let mut suite = Suite::new(Packing::F32);
    let sizes = [1, 65, 701].map(|seq| Bindings::new().with("batch", 1).with("seq", seq));
    suite.add(g.finish(), sizes);
    suite.run(&TIERS);
}
