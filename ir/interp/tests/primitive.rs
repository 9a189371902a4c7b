//! Primitive ops.

use super::*;
use crate::op::{BinaryOp, MASK_VALUE, ReduceOp, Scalar, UnaryOp};

fn f(values: &[f64]) -> T64 {
    HostTensor::f([values.len()], values)
}

fn i(values: &[i32]) -> T64 {
    HostTensor::i32([values.len()], values)
}

fn b(values: &[bool]) -> T64 {
    HostTensor::bool([values.len()], values)
}

fn unary(op: UnaryOp, x: T64) -> T64 {
    apply(&Op::Unary(op), &[x])
}

fn binary(op: BinaryOp, x: T64, y: T64) -> T64 {
    apply(&Op::Binary(op), &[x, y])
}

fn cast(to: DType, x: T64) -> T64 {
    apply(&Op::Cast(to), &[x])
}

/// Equal but for the last few bits.
#[track_caller]
fn near(found: &T64, expected: &[f64]) {
    let found = found.as_f().unwrap();
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= 1e-15 * b.abs().max(1.0),
            "{found:?} {expected:?}"
        );
    }
}

#[test]
fn constants_and_ranges() {
    let of = |op: Op| apply::<f64>(&op, &[]);
    assert_eq!(of(Op::Const(Scalar::F32(0.1))), HostTensor::f([], [0.1]));
    assert_eq!(of(Op::Const(Scalar::I32(-3))), HostTensor::i32([], [-3]));
    assert_eq!(
        of(Op::Const(Scalar::Bool(true))),
        HostTensor::bool([], [true])
    );
    let range = |start: u64, end: u64| {
        of(Op::Arange {
            start: start.into(),
            end: end.into(),
        })
    };
    assert_eq!(range(3, 7), i(&[3, 4, 5, 6]));
    assert_eq!(range(5, 5), i(&[]));
}

#[test]
fn elementwise_functions_of_reals() {
    let x = || f(&[-2.0, -0.5, 0.0, 0.5, 1.0]);
    let positive = || f(&[0.25, 1.0, 2.0, 9.0]);
    near(&unary(UnaryOp::Neg, x()), &[2.0, 0.5, 0.0, -0.5, -1.0]);
    near(&unary(UnaryOp::Abs, x()), &[2.0, 0.5, 0.0, 0.5, 1.0]);
    near(
        &unary(UnaryOp::Exp, x()),
        &[
            0.135_335_283_236_612_7,
            0.606_530_659_712_633_4,
            1.0,
            1.648_721_270_700_128_2,
            std::f64::consts::E,
        ],
    );
    near(
        &unary(UnaryOp::Log, positive()),
        &[
            -2.0 * std::f64::consts::LN_2,
            0.0,
            std::f64::consts::LN_2,
            2.197_224_577_336_219_6,
        ],
    );
    near(
        &unary(UnaryOp::Tanh, x()),
        &[
            -0.964_027_580_075_816_9,
            -0.462_117_157_260_009_76,
            0.0,
            0.462_117_157_260_009_76,
            0.761_594_155_955_764_9,
        ],
    );
    near(
        &unary(UnaryOp::Erf, x()),
        &[
            -0.995_322_265_018_952_7,
            -0.520_499_877_813_046_5,
            0.0,
            0.520_499_877_813_046_5,
            0.842_700_792_949_714_9,
        ],
    );
    near(
        &unary(UnaryOp::Sqrt, positive()),
        &[0.5, 1.0, std::f64::consts::SQRT_2, 3.0],
    );
    near(
        &unary(UnaryOp::Rsqrt, positive()),
        &[2.0, 1.0, std::f64::consts::FRAC_1_SQRT_2, 1.0 / 3.0],
    );
    let half_turn = std::f64::consts::PI;
    let angles = || f(&[0.0, half_turn / 6.0, half_turn / 2.0, -half_turn]);
    near(&unary(UnaryOp::Sin, angles()), &[0.0, 0.5, 1.0, 0.0]);
    near(
        &unary(UnaryOp::Cos, angles()),
        &[1.0, 0.866_025_403_784_438_6, 0.0, -1.0],
    );
}

#[test]
fn elementwise_functions_of_integers_and_truth_values() {
    let x = || i(&[-2, 0, 5, i32::MIN]);
    assert_eq!(unary(UnaryOp::Neg, x()), i(&[2, 0, -5, i32::MIN]));
    assert_eq!(unary(UnaryOp::Abs, x()), i(&[2, 0, 5, i32::MIN]));
    assert_eq!(unary(UnaryOp::Not, b(&[true, false])), b(&[false, true]));
}

#[test]
fn arithmetic_of_reals() {
    let (x, y) = (|| f(&[1.0, -3.0, 0.5]), || f(&[2.0, 4.0, -0.25]));
    near(&binary(BinaryOp::Add, x(), y()), &[3.0, 1.0, 0.25]);
    near(&binary(BinaryOp::Sub, x(), y()), &[-1.0, -7.0, 0.75]);
    near(&binary(BinaryOp::Mul, x(), y()), &[2.0, -12.0, -0.125]);
    near(&binary(BinaryOp::Div, x(), y()), &[0.5, -0.75, -2.0]);
    near(&binary(BinaryOp::Max, x(), y()), &[2.0, 4.0, 0.5]);
    near(&binary(BinaryOp::Min, x(), y()), &[1.0, -3.0, -0.25]);
    // A negative base with a whole exponent is fine.
    near(
        &binary(
            BinaryOp::Pow,
            f(&[3.0, -2.0, -2.0, -2.0, 4.0, 2.0]),
            f(&[2.0, 2.0, 3.0, 5.0, 0.5, -1.0]),
        ),
        &[9.0, 4.0, -8.0, -32.0, 2.0, 0.5],
    );
}

#[test]
fn arithmetic_of_integers() {
    let (x, y) = (|| i(&[7, -7, i32::MAX, i32::MIN]), || i(&[2, 2, 1, -1]));
    assert_eq!(
        binary(BinaryOp::Add, x(), y()),
        i(&[9, -5, i32::MIN, i32::MAX])
    );
    assert_eq!(
        binary(BinaryOp::Sub, x(), y()),
        i(&[5, -9, i32::MAX - 1, i32::MIN + 1])
    );
    assert_eq!(
        binary(BinaryOp::Mul, x(), y()),
        i(&[14, -14, i32::MAX, i32::MIN])
    );
    // Towards zero; an overflow wraps, and a division by zero does nothing.
    assert_eq!(
        binary(BinaryOp::Div, x(), y()),
        i(&[3, -3, i32::MAX, i32::MIN])
    );
    assert_eq!(binary(BinaryOp::Div, i(&[5, 0]), i(&[0, 0])), i(&[5, 0]));
    assert_eq!(binary(BinaryOp::Max, x(), y()), i(&[7, 2, i32::MAX, -1]));
    assert_eq!(binary(BinaryOp::Min, x(), y()), i(&[2, -7, 1, i32::MIN]));
}

#[test]
fn comparisons_and_logic() {
    let table = [
        (BinaryOp::Lt, [true, false, false]),
        (BinaryOp::Le, [true, true, false]),
        (BinaryOp::Gt, [false, false, true]),
        (BinaryOp::Ge, [false, true, true]),
        (BinaryOp::Eq, [false, true, false]),
    ];
    for (op, expected) in table {
        let reals = binary(op, f(&[-1.0, 0.5, 3.0]), f(&[0.0, 0.5, 2.5]));
        assert_eq!(reals, b(&expected), "{op:?}");
        let integers = binary(op, i(&[i32::MIN, 4, 1]), i(&[i32::MAX, 4, 0]));
        assert_eq!(integers, b(&expected), "{op:?}");
    }
    let (x, y) = (
        || b(&[false, false, true, true]),
        || b(&[false, true, false, true]),
    );
    assert_eq!(
        binary(BinaryOp::And, x(), y()),
        b(&[false, false, false, true])
    );
    assert_eq!(
        binary(BinaryOp::Or, x(), y()),
        b(&[false, true, true, true])
    );
    assert_eq!(
        binary(BinaryOp::Eq, x(), y()),
        b(&[true, false, false, true])
    );
}

#[test]
fn casts() {
    let reals = || f(&[-1.9, -0.0, 0.9, 2.5, 3e9, -3e9, f64::NAN]);
    let whole = i(&[-1, 0, 0, 2, i32::MAX, i32::MIN, 0]);
    assert_eq!(cast(DType::I32, reals()), whole);
    let truth = b(&[true, false, true, true, true, true, true]);
    assert_eq!(cast(DType::Bool, reals()), truth);
    assert_eq!(
        cast(DType::F32, i(&[-3, 0, i32::MAX])),
        f(&[-3.0, 0.0, 2_147_483_647.0])
    );
    assert_eq!(cast(DType::Bool, i(&[-3, 0, 1])), b(&[true, false, true]));
    assert_eq!(cast(DType::F32, b(&[true, false])), f(&[1.0, 0.0]));
    assert_eq!(cast(DType::I32, b(&[true, false])), i(&[1, 0]));
    assert_eq!(cast(DType::I32, i(&[7])), i(&[7]));
}

#[test]
fn operands_broadcast_as_in_numpy() {
    let mut numbers = Numbers(1);
    for (a, b, shape) in [
        (vec![2, 3], vec![3], vec![2, 3]),
        (vec![2, 1], vec![1, 5], vec![2, 5]),
        (vec![], vec![4, 2], vec![4, 2]),
        (vec![3, 1, 2], vec![4, 1], vec![3, 4, 2]),
        (vec![2, 0], vec![1], vec![2, 0]),
        // Enough for several threads, and runs of every kind.
        (vec![31, 1, 40, 1], vec![1, 23, 1, 3], vec![31, 23, 40, 3]),
        (vec![129, 257], vec![257], vec![129, 257]),
    ] {
        let (x, y) = (numbers.tensor(&a), numbers.tensor(&b));
        let found = binary(BinaryOp::Sub, x.clone(), y.clone());
        assert_eq!(found.shape, shape);
        let (x, y) = (x.as_f().unwrap(), y.as_f().unwrap());
        for (p, found) in positions(&shape).iter().zip(found.as_f().unwrap()) {
            assert_eq!(*found, x[at(&a, p)] - y[at(&b, p)]);
        }
    }
    let choice = HostTensor::bool([2, 1], [true, false]);
    let found = apply(
        &Op::Where,
        &[choice, i(&[1, 2, 3]), HostTensor::i32([], [9])],
    );
    assert_eq!(found, HostTensor::i32([2, 3], [1, 2, 3, 9, 9, 9]));
    let found = apply(
        &Op::Where,
        &[b(&[true, false]), f(&[1.0, 2.0]), f(&[3.0, 4.0])],
    );
    assert_eq!(found, f(&[1.0, 4.0]));
    let found = apply(&Op::Where, &[b(&[true, false]), b(&[true]), b(&[false])]);
    assert_eq!(found, b(&[true, false]));
}

fn counted(shape: &[usize]) -> T64 {
    let n: usize = shape.iter().product();
    HostTensor::i32(shape, (0..n as i32).collect::<Vec<i32>>())
}

#[test]
fn movement() {
    let shape = |sizes: &[u64]| sizes.iter().map(|s| (*s).into()).collect();
    let x = || counted(&[2, 3]);
    let reshaped = apply(
        &Op::Reshape {
            shape: shape(&[3, 1, 2]),
        },
        &[x()],
    );
    assert_eq!(reshaped, HostTensor::i32([3, 1, 2], [0, 1, 2, 3, 4, 5]));
    let transposed = apply(&Op::Transpose { perm: vec![1, 0] }, &[x()]);
    assert_eq!(transposed, HostTensor::i32([3, 2], [0, 3, 1, 4, 2, 5]));
    let repeated = apply(
        &Op::Broadcast {
            shape: shape(&[2, 2, 3]),
        },
        &[x()],
    );
    assert_eq!(
        repeated,
        HostTensor::i32([2, 2, 3], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    );
    let slice = |axis, start: u64, end: u64| {
        let (start, end) = (start.into(), end.into());
        apply(&Op::Slice { axis, start, end }, &[x()])
    };
    assert_eq!(slice(1, 1, 3), HostTensor::i32([2, 2], [1, 2, 4, 5]));
    assert_eq!(slice(0, 1, 2), HostTensor::i32([1, 3], [3, 4, 5]));
    assert_eq!(slice(0, 2, 2), HostTensor::i32([0, 3], []));
    let beside = apply(
        &Op::Concat { axis: 1 },
        &[x(), counted(&[2, 1]), counted(&[2, 0])],
    );
    assert_eq!(beside, HostTensor::i32([2, 4], [0, 1, 2, 0, 3, 4, 5, 1]));
    let below = apply(&Op::Concat { axis: 0 }, &[x(), counted(&[1, 3])]);
    assert_eq!(below, HostTensor::i32([3, 3], [0, 1, 2, 3, 4, 5, 0, 1, 2]));
    let flags = apply(&Op::Concat { axis: 0 }, &[b(&[true]), b(&[false, true])]);
    assert_eq!(flags, b(&[true, false, true]));
}

#[test]
fn every_permutation_moves_every_element() {
    let sizes = [2, 3, 4, 5];
    let x = counted(&sizes);
    for perm in positions(&[4, 4, 4, 4]) {
        let mut sorted = perm.clone();
        sorted.sort_unstable();
        if sorted != [0, 1, 2, 3] {
            continue;
        }
        let found = apply(
            &Op::Transpose { perm: perm.clone() },
            std::slice::from_ref(&x),
        );
        let shape: Vec<usize> = perm.iter().map(|p| sizes[*p]).collect();
        assert_eq!(found.shape, shape);
        for (to, value) in positions(&shape).iter().zip(found.as_i32().unwrap()) {
            let mut from = [0; 4];
            for (axis, index) in perm.iter().zip(to) {
                from[*axis] = *index;
            }
            assert_eq!(*value as usize, at(&sizes, &from), "{perm:?}");
        }
    }
}

#[test]
fn gather_takes_rows_and_clamps_ids() {
    let ids = HostTensor::i32([2, 2], [1, 0, -5, 99]);
    let rows = apply(&Op::Gather, &[counted(&[3, 2]), ids.clone()]);
    assert_eq!(rows, HostTensor::i32([2, 2, 2], [2, 3, 0, 1, 0, 1, 4, 5]));
    let elements = apply(&Op::Gather, &[f(&[0.5, 1.5, 2.5]), ids]);
    assert_eq!(elements, HostTensor::f([2, 2], [1.5, 0.5, 0.5, 2.5]));
    let none = apply(&Op::Gather, &[counted(&[3, 2]), i(&[])]);
    assert_eq!(none, HostTensor::i32([0, 2], []));
}

#[test]
fn movement_composes_without_losing_track() {
    // A transposed slice of a broadcast, reshaped: views upon views.
    let text = "graph g {
        %0 = input \"x\" : i32[3, 1, 4]
        %1 = broadcast %0 {shape=[3, 2, 4]}
        %2 = slice %1 {axis=2, start=1, end=4}
        %3 = transpose %2 {perm=[2, 0, 1]}
        %4 = reshape %3 {shape=[9, 2]}
        %5 = slice %4 {axis=0, start=2, end=7}
        %6 = concat %5, %5 {axis=1}
        output \"y\" = %6
    }";
    let graph = crate::text::parse(text).unwrap();
    let inputs = BTreeMap::from([("x".to_owned(), counted(&[3, 1, 4]))]);
    let params = BTreeMap::<String, Vec<f32>>::new();
    let out = run(&graph, &params, &inputs, &mut BTreeMap::new()).unwrap();
    // Row r of %4 is column 1 + r/3 of row r%3 of x, twice.
    let expected: Vec<i32> = (2..7).flat_map(|r| [r % 3 * 4 + 1 + r / 3; 4]).collect();
    assert_eq!(out["y"], HostTensor::i32([5, 4], expected));
}

/// `a` by `b` with three loops.
fn matmul_by_loops(a: &T64, b: &T64, shape: &[usize]) -> T64 {
    let k = *a.shape.last().unwrap();
    let (x, y) = (a.as_f().unwrap(), b.as_f().unwrap());
    let values = positions(shape).into_iter().map(|p| {
        let last = p.len() - 1;
        let sums = (0..k).map(|i| {
            let (mut left, mut right) = (p.clone(), p.clone());
            left[last] = i;
            right[last - 1] = i;
            x[at(&a.shape, &left)] * y[at(&b.shape, &right)]
        });
        sums.sum::<f64>()
    });
    HostTensor::f(shape, values.collect::<Vec<f64>>())
}

#[test]
fn matrix_products_of_all_sizes() {
    let by_hand = apply(
        &Op::MatMul,
        &[
            HostTensor::f([2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            HostTensor::f([3, 2], [1.0, 0.0, 0.0, 1.0, 2.0, -1.0]),
        ],
    );
    assert_eq!(by_hand, HostTensor::f([2, 2], [7.0, -1.0, 16.0, -1.0]));

    // Around the sizes of register tiles, spans and tasks.
    let mut numbers = Numbers(2);
    for (m, k, n) in [
        (1, 1, 1),
        (1, 7, 5),
        (3, 8, 2),
        (4, 9, 17),
        (5, 16, 9),
        (1, 513, 300),
        (2, 600, 131),
        (7, 1025, 3),
        (65, 33, 129),
        (260, 37, 11),
        (6, 0, 3),
        (0, 4, 3),
    ] {
        let (a, b) = (numbers.tensor(&[m, k]), numbers.tensor(&[k, n]));
        let expected = matmul_by_loops(&a, &b, &[m, n]);
        let found = apply(&Op::MatMul, &[a.clone(), b.clone()]);
        assert_close(&found, &expected, 1e-14);
        // The same with either operand stored the other way round.
        let flip = |x: &T64| apply(&Op::Transpose { perm: vec![1, 0] }, std::slice::from_ref(x));
        let text = |left: &str, right: &str| {
            let stored = |name: &str, of: &str, rows: usize, columns: usize| match name {
                "" => format!("input \"{of}\" : f32[{rows}, {columns}]"),
                _ => format!("input \"{of}\" : f32[{columns}, {rows}]"),
            };
            let moved = |name: &str, id: usize| match name {
                "" => format!(
                    "reshape %{id} {{shape={}}}",
                    if id == 0 {
                        format!("[{m}, {k}]")
                    } else {
                        format!("[{k}, {n}]")
                    }
                ),
                _ => format!("transpose %{id} {{perm=[1, 0]}}"),
            };
            format!(
                "graph g {{ %0 = {} %1 = {} %2 = {} %3 = {} %4 = matmul %2, %3 output \"y\" = %4 }}",
                stored(left, "0", m, k),
                stored(right, "1", k, n),
                moved(left, 0),
                moved(right, 1),
            )
        };
        for (left, right) in [("t", ""), ("", "t"), ("t", "t")] {
            let graph = crate::text::parse(&text(left, right)).unwrap();
            let x = if left == "t" { flip(&a) } else { a.clone() };
            let y = if right == "t" { flip(&b) } else { b.clone() };
            assert_close(&run_one(&graph, &[x, y]), &expected, 1e-14);
        }
        if m * k * n > 0 {
            precisions_agree(&Op::MatMul, &[a, b]);
        }
    }
}

#[test]
fn matrix_products_broadcast_their_leading_axes() {
    let mut numbers = Numbers(3);
    for (a, b, shape) in [
        (vec![3, 2, 4], vec![4, 5], vec![3, 2, 5]),
        (vec![2, 4], vec![3, 4, 5], vec![3, 2, 5]),
        (vec![2, 1, 3, 4], vec![5, 4, 2], vec![2, 5, 3, 2]),
        (vec![2, 3, 6, 33], vec![2, 3, 33, 70], vec![2, 3, 6, 70]),
        (vec![0, 2, 4], vec![4, 5], vec![0, 2, 5]),
    ] {
        let (x, y) = (numbers.tensor(&a), numbers.tensor(&b));
        let found = apply(&Op::MatMul, &[x.clone(), y.clone()]);
        assert_close(&found, &matmul_by_loops(&x, &y, &shape), 1e-14);
    }
}

/// The values along `axis` for each position of the others, which is that of
/// the axis's first element.
fn lines(x: &T64, axis: usize) -> Vec<(Vec<usize>, Vec<f64>)> {
    let mut shape = x.shape.clone();
    let size = std::mem::replace(&mut shape[axis], 1);
    let data = x.as_f().unwrap();
    let line = |p: Vec<usize>| {
        let along = (0..size).map(|i| {
            let mut p = p.clone();
            p[axis] = i;
            data[at(&x.shape, &p)]
        });
        let along = along.collect();
        (p, along)
    };
    positions(&shape).into_iter().map(line).collect()
}

#[test]
fn reductions_along_each_axis() {
    let mut numbers = Numbers(4);
    for shape in [vec![3, 4, 5], vec![1, 7], vec![130, 257], vec![9]] {
        for axis in 0..shape.len() {
            let x = numbers.tensor(&shape);
            let lines = lines(&x, axis);
            let mut kept = shape.clone();
            kept[axis] = 1;
            for (op, of) in [
                (
                    ReduceOp::Sum,
                    (|l: &[f64]| l.iter().sum()) as fn(&[f64]) -> f64,
                ),
                (ReduceOp::Mean, |l| l.iter().sum::<f64>() / l.len() as f64),
                (ReduceOp::Max, |l| {
                    l.iter().copied().fold(f64::MIN, f64::max)
                }),
            ] {
                let expected: Vec<f64> = lines.iter().map(|(_, l)| of(l)).collect();
                let expected = HostTensor::f(kept.clone(), expected);
                let op = Op::Reduce { op, axis };
                assert_close(&apply(&op, std::slice::from_ref(&x)), &expected, 1e-13);
                precisions_agree(&op, std::slice::from_ref(&x));
            }
        }
    }
    let empty = HostTensor::f([2, 0], []);
    let sum = Op::Reduce {
        op: ReduceOp::Sum,
        axis: 1,
    };
    assert_eq!(apply(&sum, &[empty]), HostTensor::f([2, 1], [0.0, 0.0]));
}

#[test]
fn softmax_along_each_axis() {
    let by_hand = apply(
        &Op::Softmax { axis: 0 },
        &[f(&[0.0, std::f64::consts::LN_2, 0.0])],
    );
    near(&by_hand, &[0.25, 0.5, 0.25]);
    let mut numbers = Numbers(5);
    for shape in [vec![3, 4, 5], vec![1, 1], vec![130, 257]] {
        for axis in 0..shape.len() {
            let x = numbers.tensor(&shape);
            let mut expected = vec![0.0; x.len()];
            for (mut p, line) in lines(&x, axis) {
                let total: f64 = line.iter().map(|v| v.exp()).sum();
                for (i, v) in line.iter().enumerate() {
                    p[axis] = i;
                    expected[at(&shape, &p)] = v.exp() / total;
                }
            }
            let expected = HostTensor::f(shape.clone(), expected);
            let op = Op::Softmax { axis };
            assert_close(&apply(&op, std::slice::from_ref(&x)), &expected, 1e-13);
            precisions_agree(&op, &[x]);
        }
    }
}

#[test]
fn softmax_stays_finite_at_the_ends() {
    let softmax = Op::Softmax { axis: 0 };
    near(&apply(&softmax, &[f(&[1e308, -1e308])]), &[1.0, 0.0]);
    near(
        &apply(&softmax, &[f(&[MASK_VALUE, MASK_VALUE])]),
        &[0.5, 0.5],
    );
    let single = HostTensor::f([3], [f32::MAX, f32::MIN, f32::MAX]);
    assert_eq!(
        apply(&softmax, &[single]),
        HostTensor::f([3], [0.5, 0.0, 0.5])
    );
}

#[test]
fn elementwise_precisions_agree() {
    let mut numbers = Numbers(6);
    let x = numbers.tensor(&[5, 7]);
    let y = numbers.tensor(&[7]);
    let positive = apply(&Op::Unary(UnaryOp::Exp), std::slice::from_ref(&x));
    for op in UnaryOp::ALL {
        let operand = match op {
            UnaryOp::Not => continue,
            UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Rsqrt => &positive,
            _ => &x,
        };
        precisions_agree(&Op::Unary(*op), std::slice::from_ref(operand));
    }
    for op in BinaryOp::ALL {
        match op {
            BinaryOp::And | BinaryOp::Or => {}
            BinaryOp::Pow | BinaryOp::Div => {
                precisions_agree(
                    &Op::Binary(*op),
                    &[x.clone(), positive.clone()].map(|t| {
                        if *op == BinaryOp::Pow {
                            apply(&Op::Unary(UnaryOp::Abs), &[t])
                        } else {
                            t
                        }
                    }),
                );
            }
            _ => precisions_agree(&Op::Binary(*op), &[x.clone(), y.clone()]),
        }
    }
}
