//! The interpreter against the node tests of the ONNX standard; see
//! `tests/fixtures/onnx/make.py`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test, outside its functions"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kiln_ir::decompose::decompose;
use kiln_ir::interp::{HostData, HostTensor, Real, Tensors, run};
use kiln_ir::text::parse;
use kiln_ir::{DType, Graph};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    graph: String,
    inputs: Vec<Stored>,
    output: Stored,
}

#[derive(Deserialize)]
struct Stored {
    #[serde(rename = "type")]
    dtype: DType,
    shape: Vec<usize>,
    data: Vec<Element>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Element {
    Bool(bool),
    Number(f64),
}

impl Stored {
    fn tensor<T: Real>(&self) -> HostTensor<T> {
        let numbers = self.data.iter().map(|e| match e {
            Element::Number(v) => *v,
            Element::Bool(v) => f64::from(u8::from(*v)),
        });
        let shape = self.shape.clone();
        match self.dtype {
            // By way of f32, which is what the numbers are.
            DType::F32 => HostTensor::f(
                shape,
                numbers
                    .map(|v| T::of(f64::from(v as f32)))
                    .collect::<Vec<T>>(),
            ),
            DType::I32 => HostTensor::i32(shape, numbers.map(|v| v as i32).collect::<Vec<i32>>()),
            DType::Bool => {
                HostTensor::bool(shape, numbers.map(|v| v != 0.0).collect::<Vec<bool>>())
            }
        }
    }
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/onnx/cases.json");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; make.py makes it", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Runs a case and compares: integers and truth values exactly, real numbers as
/// closely as the single precision of the expected ones allows.
fn check<T: Real>(case: &Case, graph: &Graph, how: &str) {
    let names = (0..).map(|i: usize| i.to_string());
    let inputs: Tensors<T> = names.zip(case.inputs.iter().map(Stored::tensor)).collect();
    let params = BTreeMap::<String, Vec<f32>>::new();
    let out = run(graph, &params, &inputs, &mut BTreeMap::new())
        .unwrap_or_else(|e| panic!("{} ({how}): {e}", case.name));
    let (found, expected) = (&out["y"], case.output.tensor::<T>());
    assert_eq!(found.shape, expected.shape, "{} ({how})", case.name);
    let (HostData::F(a), HostData::F(b)) = (&found.data, &expected.data) else {
        assert_eq!(*found, expected, "{} ({how})", case.name);
        return;
    };
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let (a, b) = (a.wide(), b.wide());
        let close = (a - b).abs() <= 1e-6 + 2e-6 * b.abs();
        assert!(
            close,
            "{} ({how}), element {i}: {a}, expected {b}",
            case.name
        );
    }
}

#[test]
fn the_interpreter_passes_the_node_tests_of_onnx() {
    let cases = cases();
    let mut ops = BTreeSet::new();
    for case in &cases {
        let graph = parse(&case.graph).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        ops.extend(graph.iter().map(|(_, v)| v.op.name()));
        check::<f32>(case, &graph, "f32");
        check::<f64>(case, &graph, "f64");
        if graph.iter().any(|(_, v)| v.op.is_fused()) {
            let graph = decompose(&graph).unwrap();
            check::<f64>(case, &graph, "f64, decomposed");
        }
    }
    // A file that lost its cases would pass everything else.
    assert!(cases.len() >= 100, "{}", cases.len());
    let wanted = [
        "abs",
        "activate",
        "add",
        "and",
        "attention",
        "broadcast",
        "concat",
        "cos",
        "div",
        "eq",
        "erf",
        "exp",
        "gather",
        "ge",
        "gt",
        "layer_norm",
        "le",
        "linear",
        "log",
        "lt",
        "matmul",
        "max",
        "min",
        "mul",
        "neg",
        "not",
        "or",
        "pow",
        "reduce_max",
        "reduce_mean",
        "reduce_sum",
        "reshape",
        "rms_norm",
        "sin",
        "slice",
        "softmax",
        "sqrt",
        "sub",
        "tanh",
        "transpose",
        "where",
    ];
    for op in wanted {
        assert!(ops.contains(op), "no case has {op}");
    }
}
