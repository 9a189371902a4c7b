//! Graphs for this crate's tests: one that uses every op, and random ones.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::dim::Dim;
use crate::graph::{Graph, GraphError, ValueId};
use crate::op::{
    Activation, AttentionSpec, BinaryOp, MASK_VALUE, Norm, Op, ReduceOp, Scalar, Step, UnaryOp,
};
use crate::types::{DType, TensorType};

pub(crate) fn dim(text: &str) -> Dim {
    text.parse().unwrap()
}

pub(crate) fn dims(texts: &[&str]) -> Vec<Dim> {
    texts.iter().map(|t| dim(t)).collect()
}

pub(crate) fn ty(dtype: DType, shape: &[&str]) -> TensorType {
    TensorType::new(dtype, dims(shape))
}

/// A graph that uses every op and every attribute's every kind of value.
pub(crate) fn every_op() -> Graph {
    build_every_op().unwrap()
}

fn build_every_op() -> Result<Graph, GraphError> {
    let mut g = Graph::new("every \"op\"");
    g.declare_symbol("batch", 3)?;
    g.declare_symbol("seq", 16)?;
    g.declare_symbol("past", 15)?;
    let mut named = |op: Op, inputs: &[ValueId], source: &str| g.push(op, inputs, source);

    let x = named(
        Op::Input {
            name: "x".into(),
            ty: ty(DType::F32, &["batch", "seq", "8"]),
        },
        &[],
        "",
    )?;
    let ids = named(
        Op::Input {
            name: "ids \\ \"quoted\"\n\t\r\u{7f}é".into(),
            ty: ty(DType::I32, &["batch", "seq"]),
        },
        &[],
        "",
    )?;
    let start = named(
        Op::Input {
            name: "start".into(),
            ty: ty(DType::I32, &["batch"]),
        },
        &[],
        "",
    )?;
    let kept = named(
        Op::State {
            name: "h.0.kept".into(),
            ty: ty(DType::F32, &["batch", "past", "8"]),
        },
        &[],
        "h.0",
    )?;
    let mut param = |name: &str, shape: &[&str]| {
        let op = Op::Param {
            name: name.into(),
            ty: ty(DType::F32, shape),
        };
        named(op, &[], name)
    };
    let table = param("wte", &["11", "8"])?;
    let square = param("h.0.square", &["8", "8"])?;
    let wide = param("h.0.wide", &["5", "8"])?;
    let gain = param("gain", &["8"])?;
    let bias = param("bias", &["8"])?;
    let wide_bias = param("wide bias", &["5"])?;
    let scalar = param("scalar", &[])?;

    let mut push = |op: Op, inputs: &[ValueId]| g.push(op, inputs, "a.b-c_d.9");
    for value in [0.0, -0.0, 1.5, 1e-5, 3e38, -1e-300, MASK_VALUE, 0.1, 5e-324] {
        push(Op::Const(Scalar::F32(value)), &[])?;
    }
    for value in [0, -1, 7, i32::MAX, i32::MIN] {
        push(Op::Const(Scalar::I32(value)), &[])?;
    }
    for value in [false, true] {
        push(Op::Const(Scalar::Bool(value)), &[])?;
    }
    push(Op::Table(vec![1.0, 0.1, -0.0, 5e-324]), &[])?;
    let positions = push(
        Op::Arange {
            start: "past".into(),
            end: dim("past + seq"),
        },
        &[],
    )?;
    push(
        Op::Arange {
            start: dim("ceil(seq*3 - 1 / 4)"),
            end: dim("ceil(seq*3 - 1 / 4)*2 + 5"),
        },
        &[],
    )?;

    let seen = push(Op::Binary(BinaryOp::Lt), &[ids, positions])?;
    for op in UnaryOp::ALL {
        push(
            Op::Unary(*op),
            &[if *op == UnaryOp::Not { seen } else { x }],
        )?;
    }
    for op in BinaryOp::ALL {
        let logical = matches!(op, BinaryOp::And | BinaryOp::Or);
        let pair = if logical { [seen, seen] } else { [x, gain] };
        push(Op::Binary(*op), &pair)?;
    }
    push(Op::Where, &[seen, ids, positions])?;
    for to in [DType::F32, DType::I32, DType::Bool] {
        push(Op::Cast(to), &[x])?;
    }

    let shape = dims(&["batch*seq", "2", "4"]);
    let split = push(Op::Reshape { shape }, &[x])?;
    push(
        Op::Reshape {
            shape: dims(&["1", "1"]),
        },
        &[scalar],
    )?;
    push(Op::Reshape { shape: vec![] }, &[scalar])?;
    let perm = vec![1, 0, 2];
    push(Op::Transpose { perm }, &[split])?;
    push(Op::Transpose { perm: vec![] }, &[scalar])?;
    let shape = dims(&["7", "batch", "seq", "8"]);
    push(Op::Broadcast { shape }, &[gain])?;
    let last = Op::Slice {
        axis: 1,
        start: dim("seq - 1"),
        end: dim("seq"),
    };
    push(last, &[x])?;
    let appended = push(Op::Concat { axis: 1 }, &[kept, x])?;
    push(Op::Concat { axis: 0 }, &[gain])?;
    let embedded = push(Op::Gather, &[table, ids])?;

    push(Op::MatMul, &[x, square])?;
    for op in ReduceOp::ALL {
        push(Op::Reduce { op: *op, axis: 2 }, &[x])?;
    }
    push(Op::Softmax { axis: 1 }, &[x])?;

    let layer = Norm::Layer { eps: 1e-5 };
    let rms = Norm::Rms { eps: 1e-6 };
    push(Op::Normalize(layer), &[x, gain, bias])?;
    push(Op::Normalize(rms), &[x, gain])?;
    for a in Activation::ALL {
        push(Op::Activate(*a), &[x])?;
    }
    let mut linear =
        |norm, steps: Vec<Step>, inputs: &[ValueId]| push(Op::Linear { norm, steps }, inputs);
    linear(None, vec![], &[x, wide])?;
    linear(None, vec![Step::Add], &[x, wide, wide_bias])?;
    let mut steps: Vec<Step> = Activation::ALL.iter().map(|a| Step::Act(*a)).collect();
    steps.extend([Step::Mul, Step::Add]);
    linear(Some(layer), steps, &[x, square, gain, bias, x, embedded])?;
    let out = linear(Some(rms), vec![Step::Mul], &[x, wide, gain, wide_bias])?;

    let spec = |heads, kv_heads, causal| AttentionSpec {
        heads,
        kv_heads,
        scale: 0.353_553_390_593_273_8,
        causal,
        window: None,
    };
    let windowed = AttentionSpec {
        window: Some(3),
        ..spec(2, 1, true)
    };
    let narrow = Op::Slice {
        axis: 2,
        start: 0.into(),
        end: 4.into(),
    };
    let shared = push(narrow, &[appended])?;
    push(Op::Attention(spec(2, 2, true)), &[x, appended, appended])?;
    push(
        Op::Attention(spec(4, 2, false)),
        &[x, shared, shared, start],
    )?;
    push(Op::AttentionProbs(spec(2, 2, false)), &[x, appended])?;
    push(Op::AttentionProbs(windowed), &[x, shared])?;
    push(Op::AttentionProbs(spec(4, 2, true)), &[x, shared, start])?;
    let angle = push(
        Op::Slice {
            axis: 0,
            start: 0.into(),
            end: 2.into(),
        },
        &[gain],
    )?;
    push(Op::Rotary, &[x, angle, angle])?;

    g.add_output("y", out)?;
    g.add_output("the same \"y\"", out)?;
    g.set_state("h.0.kept", appended)?;
    Ok(g)
}

/// So many random cases. A failure prints what it was about; keep it as a test
/// of its own rather than as a seed in a file.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What a random op is made of.
pub(crate) type Choice = [u16; 6];

/// Random graphs: each choice becomes an op on earlier values, if any op takes
/// them. All are valid; they may have unused values and, after
/// [`Graph::remove_dead`], holes among the ids.
pub(crate) fn graphs() -> impl Strategy<Value = Graph> {
    (vec(any::<Choice>(), 1..60), any::<bool>()).prop_map(|(choices, sweep)| {
        let mut graph = random(&choices);
        if sweep {
            graph.remove_dead();
        }
        graph
    })
}

/// The graph that `choices` stand for.
pub(crate) fn random(choices: &[Choice]) -> Graph {
    let mut g = Graph::new("random");
    g.declare_symbol("batch", 3).unwrap();
    g.declare_symbol("seq", 5).unwrap();
    g.declare_symbol("past", 4).unwrap();
    let leaves = [
        Op::Input {
            name: "x".into(),
            ty: ty(DType::F32, &["batch", "seq", "4"]),
        },
        Op::Input {
            name: "ids".into(),
            ty: ty(DType::I32, &["batch", "seq"]),
        },
        Op::State {
            name: "kept".into(),
            ty: ty(DType::F32, &["batch", "past", "4"]),
        },
        Op::Param {
            name: "square".into(),
            ty: ty(DType::F32, &["4", "4"]),
        },
        Op::Param {
            name: "gain".into(),
            ty: ty(DType::F32, &["4"]),
        },
        Op::Const(Scalar::F32(0.5)),
        Op::Const(Scalar::I32(2)),
        Op::Const(Scalar::Bool(true)),
    ];
    let mut values: Vec<ValueId> = Vec::new();
    for leaf in leaves {
        values.push(g.push(leaf, &[], "").unwrap());
    }
    let mut named = 0;
    for choice in choices {
        let (op, inputs) = op_for(choice, &g, &values);
        let source = ["", "h.0.attn", "a name", "é\"\\"][usize::from(choice[0]) / 64 % 4];
        if !is_small(&op, &inputs, &g) {
            continue;
        }
        let id = g.push(op, &inputs, source).unwrap();
        values.push(id);
        if choice[5] % 8 == 0 {
            g.add_output(&format!("out.{named}"), id).unwrap();
            named += 1;
        }
    }
    let last = values[values.len() - 1];
    g.add_output("last", last).unwrap();
    g
}

/// Whether an op takes these operands and its result can be evaluated at the
/// maxima, and cheaply.
fn is_small(op: &Op, inputs: &[ValueId], g: &Graph) -> bool {
    let types: Vec<&TensorType> = inputs.iter().map(|i| g.ty(*i)).collect();
    let Ok(ty) = crate::infer::infer(op, &types) else {
        return false;
    };
    let at_max = crate::Bindings::at_max(&g.symbols);
    // An axis that is symbolic may be too short for the slice.
    if let (Op::Slice { axis, end, .. }, [x]) = (op, types.as_slice())
        && (&x.shape[*axis] - end).eval(&at_max).is_err()
    {
        return false;
    }
    let shape = ty.eval_shape(&at_max);
    shape.is_ok_and(|s| s.iter().product::<usize>() <= 1 << 14)
}

fn pick<T: Clone>(all: &[T], index: u16) -> T {
    all[usize::from(index) % all.len()].clone()
}

/// An op and operands for it; they need not fit.
fn op_for(choice: &Choice, g: &Graph, values: &[ValueId]) -> (Op, Vec<ValueId>) {
    let [kind, a, b, c, p, q] = *choice;
    // Later values more often than earlier ones.
    let value = |i: u16| {
        let back = usize::from(i) % values.len();
        let back = if i > 1 << 15 { back % 6 } else { back };
        values[values.len() - 1 - back % values.len()]
    };
    let (x, y, z) = (value(a), value(b), value(c));
    let shape = g.ty(x).shape.clone();
    let axis = usize::from(p) % shape.len().max(1);
    let size = shape.get(axis).cloned().unwrap_or_default();
    let gain = values[4];
    let norm = pick(&[Norm::Layer { eps: 1e-5 }, Norm::Rms { eps: 1e-6 }], p);
    let heads = usize::from(p) % 3 + 1;
    let spec = AttentionSpec {
        heads,
        kv_heads: if q % 2 == 0 { heads } else { 1 },
        scale: f64::from(q % 7) / 4.0 - 0.5,
        causal: q % 3 == 0,
        window: (q % 6 == 0).then_some(usize::from(p) % 4 + 1),
    };
    match kind % 23 {
        0 | 1 => (Op::Unary(pick(UnaryOp::ALL, p)), vec![x]),
        2..=4 => (Op::Binary(pick(BinaryOp::ALL, p)), vec![x, y]),
        5 => (Op::Where, vec![x, y, z]),
        6 => (
            Op::Cast(pick(&[DType::F32, DType::I32, DType::Bool], p)),
            vec![x],
        ),
        7 => {
            // Two axes merged, or one of size one put in.
            let mut shape = shape;
            if p % 2 == 0 && shape.len() > 1 {
                let at = usize::from(q) % (shape.len() - 1);
                let merged = shape.remove(at) * shape[at].clone();
                shape[at] = merged;
            } else {
                shape.insert(axis, 1.into());
            }
            (Op::Reshape { shape }, vec![x])
        }
        8 => {
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            perm.rotate_left(axis);
            if q % 2 == 0 {
                perm.reverse();
            }
            (Op::Transpose { perm }, vec![x])
        }
        9 => {
            let mut shape = shape;
            shape.insert(0, pick(&[Dim::from(2), Dim::from("batch")], p));
            (Op::Broadcast { shape }, vec![x])
        }
        10 => {
            let (start, end) = match q % 4 {
                0 => (0.into(), 1.into()),
                1 => (size.clone() - 1, size),
                2 => (1.into(), size),
                _ => (0.into(), size),
            };
            (Op::Slice { axis, start, end }, vec![x])
        }
        11 => (Op::Concat { axis }, vec![x, y]),
        12 => (Op::Gather, vec![x, y]),
        13 => (Op::MatMul, vec![x, y]),
        14 => {
            let op = pick(ReduceOp::ALL, q);
            (Op::Reduce { op, axis }, vec![x])
        }
        15 => (Op::Softmax { axis }, vec![x]),
        16 => {
            let operands = std::iter::repeat_n(gain, norm.operands());
            (
                Op::Normalize(norm),
                std::iter::once(x).chain(operands).collect(),
            )
        }
        17 => (Op::Activate(pick(Activation::ALL, p)), vec![x]),
        18 => {
            let norm = (q % 2 == 0).then_some(norm);
            let act = Step::Act(pick(Activation::ALL, p));
            let steps = pick(&[vec![], vec![act, Step::Add], vec![Step::Mul, act]], q);
            let mut inputs = vec![x, values[3]];
            inputs.extend(std::iter::repeat_n(gain, norm.map_or(0, Norm::operands)));
            let operands = steps.iter().filter(|s| s.has_operand()).count();
            inputs.extend(std::iter::repeat_n(y, operands));
            (Op::Linear { norm, steps }, inputs)
        }
        19 => (Op::Attention(spec), vec![x, y, y]),
        20 => (Op::AttentionProbs(spec), vec![x, y]),
        21 => (Op::Rotary, vec![x, y, z]),
        _ => {
            let start = pick(&[Dim::from(0), Dim::from("past")], p);
            let end = &start + &pick(&[Dim::from("seq"), Dim::from(3)], q);
            (Op::Arange { start, end }, vec![])
        }
    }
}
