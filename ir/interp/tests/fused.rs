//! Fused ops: their own definition against [`crate::decompose`] and against
//! loops, in `f64`.

use proptest::prelude::*;

use super::*;
use crate::op::{Activation, AttentionSpec, MASK_VALUE, Norm, Step};
use crate::testing::{cases, graphs};

/// The interpreter's own definition, the decomposition, and single precision.
#[track_caller]
fn agrees(op: &Op, operands: &[T64]) -> T64 {
    let own = apply(op, operands);
    assert_close(&own, &apply_decomposed(op, operands), 1e-13);
    precisions_agree(op, operands);
    own
}

#[test]
fn norms() {
    let mut numbers = Numbers(11);
    for shape in [vec![1], vec![7], vec![3, 5], vec![2, 3, 130], vec![40, 513]] {
        let n = *shape.last().unwrap();
        let x = numbers.tensor(&shape);
        let (gain, bias) = (numbers.tensor(&[n]), numbers.tensor(&[n]));
        let layer = Op::Normalize(Norm::Layer { eps: 1e-3 });
        let found = agrees(&layer, &[x.clone(), gain.clone(), bias.clone()]);
        let rms = Op::Normalize(Norm::Rms { eps: 1e-3 });
        let found_rms = agrees(&rms, &[x.clone(), gain.clone()]);

        let (gain, bias) = (gain.as_f().unwrap(), bias.as_f().unwrap());
        let (mut expected, mut expected_rms) = (Vec::new(), Vec::new());
        for row in x.as_f().unwrap().chunks(n) {
            let mean = row.iter().sum::<f64>() / n as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let square = row.iter().map(|v| v * v).sum::<f64>() / n as f64;
            for (i, v) in row.iter().enumerate() {
                expected.push((v - mean) / (variance + 1e-3).sqrt() * gain[i] + bias[i]);
                expected_rms.push(v / (square + 1e-3).sqrt() * gain[i]);
            }
        }
        assert_close(&found, &HostTensor::f(shape.clone(), expected), 1e-13);
        assert_close(&found_rms, &HostTensor::f(shape, expected_rms), 1e-13);
    }
}

#[test]
fn a_large_mean_does_not_drown_the_variance() {
    // The naive `E[x^2] - E[x]^2` loses everything here in single precision.
    let row: Vec<f32> = (0..64).map(|i| 4096.0 + (i % 5) as f32).collect();
    let ones = || HostTensor::f([64], vec![1.0f32; 64]);
    let zeros = HostTensor::f([64], vec![0.0f32; 64]);
    let op = Op::Normalize(Norm::Layer { eps: 0.0 });
    let found = apply(&op, &[HostTensor::f([64], row), ones(), zeros]);
    let mean = (0..64).map(|i| f64::from(i % 5)).sum::<f64>() / 64.0;
    let variance = (0..64)
        .map(|i| (f64::from(i % 5) - mean).powi(2))
        .sum::<f64>()
        / 64.0;
    for (i, v) in found.as_f().unwrap().iter().enumerate() {
        let expected = ((i % 5) as f64 - mean) / variance.sqrt();
        assert!(
            (f64::from(*v) - expected).abs() < 1e-6,
            "{i}: {v} {expected}"
        );
    }
}

#[test]
fn activations() {
    let x = HostTensor::f([5], [-3.0, -0.5, 0.0, 0.5, 3.0]);
    // From the formulas, by another language's mathematics library.
    for (a, expected) in [
        (
            Activation::GeluTanh,
            [
                -0.003_637_392_081_772_994_3,
                -0.154_285_990_174_856_06,
                0.0,
                0.345_714_009_825_143_94,
                2.996_362_607_918_227,
            ],
        ),
        (
            Activation::GeluErf,
            [
                -0.004_049_694_094_890_31,
                -0.154_268_769_362_993_44,
                0.0,
                0.345_731_230_637_006_56,
                2.995_950_305_905_11,
            ],
        ),
        (Activation::Relu, [0.0, 0.0, 0.0, 0.5, 3.0]),
        (
            Activation::Silu,
            [
                -0.142_277_619_532_700_35,
                -0.188_770_334_399_072_7,
                0.0,
                0.311_229_665_600_927_3,
                2.857_722_380_467_299_8,
            ],
        ),
        (
            Activation::Tanh,
            [
                -0.995_054_753_686_730_4,
                -0.462_117_157_260_009_76,
                0.0,
                0.462_117_157_260_009_76,
                0.995_054_753_686_730_4,
            ],
        ),
    ] {
        let found = agrees(&Op::Activate(a), std::slice::from_ref(&x));
        for (found, expected) in found.as_f().unwrap().iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-14,
                "{a:?}: {found} {expected}"
            );
        }
        // Far out there is neither overflow nor NaN.
        let far = HostTensor::f([2], [-1e4f32, 1e4]);
        let found = apply(&Op::Activate(a), &[far]);
        assert!(found.as_f().unwrap().iter().all(|v| v.is_finite()), "{a:?}");
    }
}

#[test]
fn linear_with_every_prologue_and_epilogue() {
    let mut numbers = Numbers(12);
    let steps = [
        vec![],
        vec![Step::Add],
        vec![Step::Add, Step::Act(Activation::GeluTanh)],
        vec![Step::Act(Activation::Silu), Step::Mul],
        vec![Step::Mul, Step::Add, Step::Act(Activation::Relu), Step::Add],
    ];
    let norms = [
        None,
        Some(Norm::Layer { eps: 1e-5 }),
        Some(Norm::Rms { eps: 1e-6 }),
    ];
    for leading in [vec![], vec![1], vec![5], vec![2, 3], vec![70]] {
        for (k, n) in [(1, 1), (7, 3), (33, 130)] {
            for (norm, steps) in norms.iter().flat_map(|n| steps.iter().map(move |s| (n, s))) {
                let of = |last: usize| [leading.as_slice(), &[last]].concat();
                let mut operands = vec![numbers.tensor(&of(k)), numbers.tensor(&[n, k])];
                for _ in 0..norm.map_or(0, Norm::operands) {
                    operands.push(numbers.tensor(&[k]));
                }
                let count = steps.iter().filter(|s| s.has_operand()).count();
                for i in 0..count {
                    // A bias, a residual, and what broadcasts in between.
                    let shape = match i % 3 {
                        0 => vec![n],
                        1 => of(n),
                        _ => vec![1],
                    };
                    operands.push(numbers.tensor(&shape));
                }
                let (norm, steps) = (*norm, steps.clone());
                agrees(&Op::Linear { norm, steps }, &operands);
            }
        }
    }
}

#[test]
fn linear_is_a_product_with_the_rows_of_the_weight() {
    let mut numbers = Numbers(13);
    let (x, w, b) = (
        numbers.tensor(&[2, 3, 5]),
        numbers.tensor(&[4, 5]),
        numbers.tensor(&[4]),
    );
    let op = Op::Linear {
        norm: None,
        steps: vec![Step::Add, Step::Act(Activation::Relu)],
    };
    let found = apply(&op, &[x.clone(), w.clone(), b.clone()]);
    let (x, w, b) = (x.as_f().unwrap(), w.as_f().unwrap(), b.as_f().unwrap());
    for (p, found) in positions(&[6, 4]).iter().zip(found.as_f().unwrap()) {
        let (row, out) = (p[0], p[1]);
        let sum: f64 = (0..5).map(|i| x[row * 5 + i] * w[out * 5 + i]).sum();
        assert!((found - (sum + b[out]).max(0.0)).abs() < 1e-14);
    }
}

#[test]
fn rotary_turns_the_halves_of_each_head() {
    let mut numbers = Numbers(15);
    for (batch, n, heads, half) in [(1, 1, 1, 1), (2, 3, 1, 4), (1, 5, 3, 3), (2, 2, 4, 8)] {
        let x = numbers.tensor(&[batch, n, heads * 2 * half]);
        // An angle for every row, for every position, or one for all.
        for leading in [vec![batch, n], vec![n], vec![batch, 1], vec![]] {
            let angle = numbers.tensor(&[leading.as_slice(), &[half]].concat());
            let of = |f: fn(f64) -> f64| {
                let angles = angle.as_f().unwrap().iter();
                HostTensor::f(
                    angle.shape.clone(),
                    angles.map(|a| f(*a)).collect::<Vec<f64>>(),
                )
            };
            let (cos, sin) = (of(f64::cos), of(f64::sin));
            let found = agrees(&Op::Rotary, &[x.clone(), cos.clone(), sin.clone()]);
            for p in positions(&[batch, n, heads, half]) {
                let first = ((p[0] * n + p[1]) * heads + p[2]) * 2 * half + p[3];
                let angle = angle.as_f().unwrap()[at(&angle.shape, &[p[0], p[1], p[3]])];
                let of = |t: &T64| (t.as_f().unwrap()[first], t.as_f().unwrap()[first + half]);
                // As numbers in the plane.
                let ((a, b), (turned_a, turned_b)) = (of(&x), of(&found));
                let (length, start) = (a.hypot(b), b.atan2(a));
                assert!((turned_a - length * (start + angle).cos()).abs() < 1e-13);
                assert!((turned_b - length * (start + angle).sin()).abs() < 1e-13);
            }
        }
    }
}

struct Case {
    spec: AttentionSpec,
    batch: usize,
    n: usize,
    m: usize,
    d: usize,
}

/// Probabilities and result, element by element.
fn attention_by_loops(case: &Case, operands: &[T64]) -> (Vec<f64>, Vec<f64>) {
    let Case {
        spec,
        batch,
        n,
        m,
        d,
    } = *case;
    let (q, k, v) = (
        operands[0].as_f().unwrap(),
        operands[1].as_f().unwrap(),
        operands[2].as_f().unwrap(),
    );
    let start = operands.get(3).map(|s| s.as_i32().unwrap());
    let (mut probabilities, mut out) = (Vec::new(), vec![0.0; batch * n * spec.heads * d]);
    for (b, h) in positions(&[batch, spec.heads]).iter().map(|p| (p[0], p[1])) {
        for i in 0..n {
            let kv = h * spec.kv_heads / spec.heads;
            let key = |j: usize| ((b * m + j) * spec.kv_heads + kv) * d;
            let query = ((b * n + i) * spec.heads + h) * d;
            let scores: Vec<f64> = (0..m)
                .map(|j| {
                    let late = spec.causal && j + n > i + m;
                    let early = start.is_some_and(|s| (j as i64) < i64::from(s[b]));
                    let far = spec.window.is_some_and(|window| j + n + window <= i + m);
                    if late || early || far {
                        return MASK_VALUE;
                    }
                    let dot: f64 = (0..d).map(|e| q[query + e] * k[key(j) + e]).sum();
                    dot * spec.scale
                })
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (j, w) in weights.iter().enumerate() {
                probabilities.push(w / total);
                for e in 0..d {
                    out[query + e] += w / total * v[key(j) + e];
                }
            }
        }
    }
    (probabilities, out)
}

#[test]
fn attention_in_all_its_forms() {
    let mut numbers = Numbers(14);
    // Prompt, decode, prompt after a prompt, more queries than keys, one of all.
    let lengths = [(5, 5), (1, 9), (3, 7), (6, 2), (1, 1)];
    for (n, m) in lengths {
        for (heads, kv_heads) in [(1, 1), (3, 3), (4, 2), (6, 1)] {
            for (batch, d) in [(1, 1), (3, 5), (2, 16)] {
                for (causal, window, with_start) in [
                    (false, None, false),
                    (false, None, true),
                    (true, None, false),
                    (true, None, true),
                    (true, Some(1), false),
                    (true, Some(3), true),
                    (true, Some(i32::MAX as usize), false),
                ] {
                    let spec = AttentionSpec {
                        heads,
                        kv_heads,
                        scale: 0.37,
                        causal,
                        window,
                    };
                    let mut operands = vec![
                        numbers.tensor(&[batch, n, heads * d]),
                        numbers.tensor(&[batch, m, kv_heads * d]),
                        numbers.tensor(&[batch, m, kv_heads * d]),
                    ];
                    if with_start {
                        // From nothing hidden to everything and more.
                        operands.push(numbers.ids(&[batch], m as i32 + 3));
                    }
                    let case = Case {
                        spec,
                        batch,
                        n,
                        m,
                        d,
                    };
                    let (probabilities, out) = attention_by_loops(&case, &operands);

                    let found = agrees(&Op::Attention(spec), &operands);
                    let shape = [batch, n, heads * d];
                    assert_close(&found, &HostTensor::f(shape, out), 1e-13);

                    operands.remove(2);
                    let found = agrees(&Op::AttentionProbs(spec), &operands);
                    let shape = [batch, heads, n, m];
                    assert_close(&found, &HostTensor::f(shape, probabilities), 1e-13);
                }
            }
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_the_mean() {
    let spec = AttentionSpec {
        heads: 1,
        kv_heads: 1,
        scale: 1.0,
        causal: true,
        window: None,
    };
    let q = HostTensor::f([1, 2, 1], [3.0f32, -4.0]);
    let k = HostTensor::f([1, 2, 1], [1.0, 2.0]);
    let v = HostTensor::f([1, 2, 1], [1.0, 5.0]);
    let all_hidden = HostTensor::i32([1], [2]);
    let found = apply(&Op::Attention(spec), &[q.clone(), k.clone(), v, all_hidden]);
    assert_eq!(found, HostTensor::f([1, 2, 1], [3.0, 3.0]));
    // Nor does a query before all keys: query 0 of 3 with 2 keys.
    let q = HostTensor::f([1, 3, 1], [3.0f32, -4.0, 1.0]);
    let found = apply(&Op::AttentionProbs(spec), &[q, k]);
    assert_eq!(found.as_f().unwrap()[..4], [0.5, 0.5, 1.0, 0.0]);
}

#[test]
fn attention_without_keys_is_zero() {
    let spec = AttentionSpec {
        heads: 2,
        kv_heads: 1,
        scale: 1.0,
        causal: false,
        window: None,
    };
    let q = HostTensor::f([1, 2, 4], [1.0f64; 8]);
    let none = HostTensor::f([1, 0, 2], []);
    let found = apply(
        &Op::Attention(spec),
        &[q.clone(), none.clone(), none.clone()],
    );
    assert_eq!(found, HostTensor::f([1, 2, 4], [0.0; 8]));
    let found = apply(&Op::AttentionProbs(spec), &[q, none]);
    assert_eq!(found, HostTensor::f([1, 2, 2, 0], []));
}

/// All values of a graph at these sizes; none if the graph does not take them.
fn all_values(graph: &Graph, sizes: &Bindings) -> BTreeMap<String, T64> {
    let mut graph = graph.clone();
    for id in graph.order().to_vec() {
        graph.add_output(&id.to_string(), id).unwrap();
    }
    let mut numbers = Numbers(sizes.iter().fold(7, |a, (_, v)| a * 31 + v));
    let mut params = BTreeMap::new();
    let mut inputs = Tensors::new();
    let mut states = Tensors::new();
    for (_, value) in graph.iter() {
        let Ok(shape) = value.ty.eval_shape(sizes) else {
            return BTreeMap::new();
        };
        match &value.op {
            Op::Param { name, .. } => {
                let values = numbers.tensor(&shape);
                params.insert(name.clone(), narrow(&values).as_f().unwrap().to_vec());
            }
            Op::Input { name, ty } => {
                let tensor = match ty.dtype {
                    DType::I32 => numbers.ids(&shape, 6),
                    _ => numbers.tensor(&shape),
                };
                inputs.insert(name.clone(), tensor);
            }
            Op::State { name, .. } => {
                states.insert(name.clone(), numbers.tensor(&shape));
            }
            _ => {}
        }
    }
    run(&graph, &params, &inputs, &mut states).unwrap_or_default()
}

fn is_tame(tensor: &T64) -> bool {
    match &tensor.data {
        HostData::F(d) => d.iter().all(|v| v.abs() < 1e3),
        _ => true,
    }
}

proptest! {
    #![proptest_config(cases(128))]

    /// Each fused op of a random graph, on the operands it has there.
    #[test]
    fn fused_ops_mean_their_decomposition(
        graph in graphs(),
        batch in 1..4u64,
        seq in 1..6u64,
        past in 0..5u64,
    ) {
        let sizes = Bindings::new().with("batch", batch).with("seq", seq).with("past", past);
        let values = all_values(&graph, &sizes);
        for (_, value) in graph.iter().filter(|(_, v)| v.op.is_fused()) {
            let operands = value.inputs.iter().map(|i| values.get(&i.to_string()).cloned());
            let Some(operands) = operands.collect::<Option<Vec<T64>>>() else {
                continue;
            };
            if operands.iter().any(|t| !is_tame(t)) {
                continue;
            }
            let own = apply(&value.op, &operands);
            let by_parts = apply_decomposed(&value.op, &operands);
            if own.as_f().unwrap().iter().all(|v| v.is_finite()) {
                assert_close(&own, &by_parts, 1e-10);
            }
        }
    }

    /// A whole graph has the types that it claims, at any sizes: `evaluate`
    /// asserts it.
    #[test]
    fn random_graphs_run(graph in graphs(), seq in 1..6u64, past in 0..5u64) {
        let sizes = Bindings::new().with("batch", 2).with("seq", seq).with("past", past);
        all_values(&graph, &sizes);
    }
}
