//! Inputs, states, parameters, and what is said when they do not fit.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::params::ParamError;
use crate::text::parse;

/// Appends `x + w` to a state and gives the sums of each column.
const APPEND: &str = "graph append {
    symbol seq <= 4
    symbol past <= 8
    %0 = input \"x\" : f32[seq, 2]
    %1 = param \"w\" : f32[2]
    %2 = state \"kept\" : f32[past, 2]
    %3 = add %0, %1
    %4 = concat %2, %3 {axis=0}
    %5 = reduce_sum %4 {axis=0} @sums
    output \"sums\" = %5
    output \"new\" = %3
    state \"kept\" = %4
}";

fn graph(text: &str) -> Graph {
    parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn params() -> BTreeMap<String, Vec<f32>> {
    BTreeMap::from([("w".to_owned(), vec![10.0, 20.0])])
}

fn tensors(list: &[(&str, T64)]) -> Tensors<f64> {
    list.iter()
        .map(|(n, t)| ((*n).to_owned(), t.clone()))
        .collect()
}

fn x(rows: usize) -> Tensors<f64> {
    let data: Vec<f64> = (0..2 * rows).map(|i| i as f64).collect();
    tensors(&[("x", HostTensor::f([rows, 2], data))])
}

fn kept(rows: usize) -> Tensors<f64> {
    tensors(&[("kept", HostTensor::f([rows, 2], vec![1.0; 2 * rows]))])
}

/// The message of a run that fails, after which the states are as before.
#[track_caller]
fn fails(text: &str, inputs: &Tensors<f64>, states: &Tensors<f64>) -> String {
    let mut after = states.clone();
    let error = run(&graph(text), &params(), inputs, &mut after).unwrap_err();
    assert_eq!(after, *states);
    error.to_string()
}

#[test]
fn the_leading_part_of_a_tensor_is_cut_along_every_axis() {
    let tensor = HostTensor::<f64>::i32([2, 3, 2], (0..12).collect::<Vec<i32>>());
    let cut = tensor.leading(&[2, 2, 1]);
    assert_eq!(cut, HostTensor::i32([2, 2, 1], [0, 2, 6, 8]));
    assert_eq!(
        tensor.leading(&[1, 9]),
        HostTensor::i32([1, 3, 2], [0, 1, 2, 3, 4, 5])
    );
    assert_eq!(tensor.leading(&[2, 0, 2]), HostTensor::i32([2, 0, 2], []));
    let truths = HostTensor::<f64>::bool([2], [true, false]);
    assert_eq!(truths.leading(&[1]), HostTensor::bool([1], [true]));
}

#[test]
fn states_go_from_run_to_run() {
    let graph = graph(APPEND);
    let params = params();
    let interpreter = Interpreter::<f64>::new(&graph, &params).unwrap();
    let mut states = zero_states(&graph, &Bindings::new().with("past", 0)).unwrap();
    assert_eq!(states["kept"], HostTensor::f([0, 2], []));
    // A state of another graph is left alone.
    states.insert("other".into(), HostTensor::i32([1], [5]));

    let out = interpreter.run(&x(1), &mut states).unwrap();
    assert_eq!(out["sums"], HostTensor::f([1, 2], [10.0, 21.0]));
    assert_eq!(states["kept"], HostTensor::f([1, 2], [10.0, 21.0]));
    let out = interpreter.run(&x(2), &mut states).unwrap();
    assert_eq!(out["new"], HostTensor::f([2, 2], [10.0, 21.0, 12.0, 23.0]));
    assert_eq!(out["sums"], HostTensor::f([1, 2], [32.0, 65.0]));
    assert_eq!(
        states["kept"],
        HostTensor::f([3, 2], [10.0, 21.0, 10.0, 21.0, 12.0, 23.0])
    );
    assert_eq!(states["other"], HostTensor::i32([1], [5]));
    assert_eq!(out.keys().collect::<Vec<_>>(), ["new", "sums"]);
}

#[test]
fn symbols_that_no_shape_tells_are_given() {
    let text = "graph g {
        symbol n <= 9
        %0 = arange {start=n, end=n*2 + 1}
        output \"y\" = %0
    }";
    let graph = graph(text);
    let params = params();
    let interpreter = Interpreter::<f32>::new(&graph, &params).unwrap();
    let run =
        |sizes: Bindings| interpreter.run_with(&BTreeMap::new(), &mut BTreeMap::new(), &sizes);
    let out = run(Bindings::new().with("n", 2)).unwrap();
    assert_eq!(out["y"], HostTensor::i32([3], [2, 3, 4]));
    let error = run(Bindings::new()).unwrap_err().to_string();
    assert_eq!(error, "%0: symbol `n` in `n + 1` is not bound");
    let error = run(Bindings::new().with("n", 10)).unwrap_err().to_string();
    assert_eq!(error, "`n` is 10, over its maximum of 9");
}

#[test]
fn ranges_start_below_zero_too() {
    let text = "graph g {
        symbol n <= 8
        %0 = input \"x\" : i32[n]
        %1 = arange {start=-2, end=n - 2}
        %2 = arange {start=-n, end=0}
        %3 = add %1, %2
        output \"y\" = %1
        output \"z\" = %3
    }";
    let inputs = tensors(&[("x", HostTensor::i32([3], [0, 0, 0]))]);
    let out = run(&graph(text), &params(), &inputs, &mut tensors(&[])).unwrap();
    assert_eq!(out["y"], HostTensor::i32([3], [-2, -1, 0]));
    assert_eq!(out["z"], HostTensor::i32([3], [-5, -3, -1]));
}

#[test]
fn one_value_under_several_names() {
    let text = "graph g {
        %0 = input \"x\" : f32[2]
        %1 = state \"s\" : f32[2]
        %2 = neg %0
        output \"a\" = %2
        output \"b\" = %2
        output \"x\" = %0
        output \"before\" = %1
        state \"s\" = %2
    }";
    let mut states = tensors(&[("s", HostTensor::f([2], [7.0, 8.0]))]);
    let inputs = tensors(&[("x", HostTensor::f([2], [1.0, 2.0]))]);
    let out = run(&graph(text), &params(), &inputs, &mut states).unwrap();
    let negated = HostTensor::f([2], [-1.0, -2.0]);
    assert_eq!((&out["a"], &out["b"]), (&negated, &negated));
    assert_eq!(out["x"], inputs["x"]);
    assert_eq!(out["before"], HostTensor::f([2], [7.0, 8.0]));
    assert_eq!(states["s"], negated);
}

#[test]
fn inputs_and_states_have_to_fit() {
    let missing = fails(APPEND, &BTreeMap::new(), &kept(1));
    assert_eq!(missing, "input `x` is missing; expected f32[seq, 2]");
    let missing = fails(APPEND, &x(1), &BTreeMap::new());
    assert_eq!(missing, "state `kept` is missing; expected f32[past, 2]");
    let mut more = x(1);
    more.insert("y".into(), HostTensor::i32([], [1]));
    assert_eq!(fails(APPEND, &more, &kept(1)), "there is no input `y`");
    let wrong = tensors(&[("x", HostTensor::f([1, 3], [0.0; 3]))]);
    assert_eq!(
        fails(APPEND, &wrong, &kept(1)),
        "input `x`: expected f32[seq, 2], here f32[1, 2], found f32[1, 3]"
    );
    let wrong = tensors(&[("x", HostTensor::i32([1, 2], [0; 2]))]);
    assert_eq!(
        fails(APPEND, &wrong, &kept(1)),
        "input `x`: expected f32[seq, 2], here f32[1, 2], found i32[1, 2]"
    );
    let wrong = tensors(&[("kept", HostTensor::f([2], [0.0; 2]))]);
    assert_eq!(
        fails(APPEND, &x(1), &wrong),
        "state `kept`: expected f32[past, 2], here f32[2, 2], found f32[2]"
    );
    let short = HostTensor {
        shape: vec![2, 2],
        data: HostData::F(vec![0.0; 3]),
    };
    assert_eq!(
        fails(APPEND, &tensors(&[("x", short)]), &kept(1)),
        "input `x`: expected f32[seq, 2], here f32[2, 2], found f32[2, 2] with 3 elements"
    );
    assert_eq!(
        fails(APPEND, &x(5), &kept(1)),
        "`seq` is 5, over its maximum of 4"
    );
    let two = "graph g {
        symbol n <= 4
        %0 = input \"a\" : f32[n]
        %1 = input \"b\" : f32[n + 1]
        output \"y\" = %1
    }";
    let five = tensors(&[
        ("a", HostTensor::f([2], [0.0; 2])),
        ("b", HostTensor::f([5], [0.0; 5])),
    ]);
    assert_eq!(
        fails(two, &five, &BTreeMap::new()),
        "input `b`: expected f32[n + 1], here f32[3], found f32[5]"
    );
}

#[test]
fn values_that_cannot_be_computed_are_named() {
    let text = "graph g {
        symbol n <= 4
        %0 = input \"x\" : f32[n, 2]
        %1 = slice %0 {axis=0, start=1, end=3} @h.0.crop
        output \"y\" = %1
    }";
    assert_eq!(
        fails(text, &x(2), &BTreeMap::new()),
        "%1 = slice in `h.0.crop`: expected a range within 0..2, found 1..3"
    );
    let text = "graph g {
        symbol n <= 4
        %0 = input \"x\" : f32[n, 2]
        %1 = const {i32=0}
        %2 = gather %0, %1
        output \"y\" = %2
    }";
    assert_eq!(
        fails(text, &x(0), &BTreeMap::new()),
        "%2 = gather: cannot gather from a table without rows"
    );
    let text = "graph g {
        symbol n <= 4
        %0 = input \"x\" : f32[n, 2]
        %1 = slice %0 {axis=0, start=3, end=n} @late
        output \"y\" = %1
    }";
    assert_eq!(
        fails(text, &x(1), &BTreeMap::new()),
        "%1 in `late`: `n - 3` evaluates to -2, outside 0..=2^63-1"
    );
}

#[test]
fn parameters_have_to_be_there_and_fit() {
    let graph = graph(APPEND);
    let new = |params: BTreeMap<String, Vec<f32>>| {
        Interpreter::<f64>::new(&graph, &params)
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        new(BTreeMap::new()),
        "parameter `w`: there is no parameter `w`"
    );
    assert_eq!(
        new([("w".to_owned(), vec![1.0; 3])].into()),
        "parameter `w`: expected f32[2] (2 elements), found 3 real numbers"
    );
}

#[test]
fn an_invalid_graph_is_not_run() {
    let graph = graph("graph g { %0 = const {i32=1} : f32[] output \"y\" = %0 }");
    let error = Interpreter::<f64>::new(&graph, &params())
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "graph `g` is not valid:\n  %0 = const: expected type i32[], found f32[]"
    );
}

/// Lends its parameters and counts how often.
struct Lender {
    values: Vec<f32>,
    asked: AtomicUsize,
}

impl ParamSource for Lender {
    fn param(&self, _: &str) -> Result<Cow<'_, [f32]>, ParamError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Cow::Borrowed(&self.values))
    }
}

#[test]
fn parameters_are_read_once_and_borrowed() {
    let lender = Lender {
        values: vec![10.0, 20.0],
        asked: AtomicUsize::new(0),
    };
    let graph = graph(APPEND);
    let first = Interpreter::<f32>::new(&graph, &lender).unwrap();
    let second = first.sharing(&graph, &lender).unwrap();
    for interpreter in [&first, &second] {
        let inputs = [("x".to_owned(), HostTensor::f([1, 2], [1.0, 2.0]))].into();
        let mut states = zero_states(&graph, &Bindings::new().with("past", 0)).unwrap();
        let out = interpreter.run(&inputs, &mut states).unwrap();
        assert_eq!(out["new"], HostTensor::f([1, 2], [11.0, 22.0]));
    }
    assert_eq!(lender.asked.load(Ordering::Relaxed), 1);
    let Buf::Borrowed(held) = second.params["w"] else {
        panic!("the parameter was copied");
    };
    assert!(std::ptr::eq(held, lender.values.as_slice()));
}

#[test]
fn what_no_output_needs_is_not_computed() {
    let text = "graph g {
        %0 = input \"x\" : f32[2]
        %1 = input \"table\" : f32[0]
        %2 = const {i32=0}
        %3 = gather %1, %2
        output \"y\" = %0
    }";
    let inputs = tensors(&[
        ("x", HostTensor::f([2], [1.0, 2.0])),
        ("table", HostTensor::f([0], [])),
    ]);
    let out = run(&graph(text), &params(), &inputs, &mut BTreeMap::new()).unwrap();
    assert_eq!(out["y"], inputs["x"]);
}
