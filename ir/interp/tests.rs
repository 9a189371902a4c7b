//! The interpreter against values worked out by hand and loops written without
//! it. Fused ops are held against [`crate::decompose`] as well.

mod fused;
mod primitive;
mod running;

use std::collections::BTreeMap;

use super::*;
use crate::decompose::decompose;

type T64 = HostTensor<f64>;

/// A graph of one op whose operands are inputs `0`, `1`, ... of constant shapes.
fn graph_of<T>(op: &Op, operands: &[HostTensor<T>]) -> Graph {
    let mut g = Graph::new("one");
    let mut inputs = Vec::new();
    for (i, operand) in operands.iter().enumerate() {
        let input = Op::Input {
            name: i.to_string(),
            ty: TensorType::new(operand.dtype(), operand.shape.clone()),
        };
        inputs.push(g.push(input, &[], "").unwrap());
    }
    let y = g.push(op.clone(), &inputs, "").unwrap();
    g.add_output("y", y).unwrap();
    g
}

fn run_one<T: Real>(graph: &Graph, operands: &[HostTensor<T>]) -> HostTensor<T> {
    let names = (0..).map(|i: usize| i.to_string());
    let inputs = names.zip(operands.iter().cloned()).collect();
    let params = BTreeMap::<String, Vec<f32>>::new();
    let mut out = run(graph, &params, &inputs, &mut BTreeMap::new()).unwrap();
    out.remove("y").unwrap()
}

/// The value of one op.
fn apply<T: Real>(op: &Op, operands: &[HostTensor<T>]) -> HostTensor<T> {
    run_one(&graph_of(op, operands), operands)
}

/// The value of one op by its decomposition.
fn apply_decomposed<T: Real>(op: &Op, operands: &[HostTensor<T>]) -> HostTensor<T> {
    let graph = decompose(&graph_of(op, operands)).unwrap();
    assert!(graph.iter().all(|(_, v)| !v.op.is_fused()));
    run_one(&graph, operands)
}

/// Numbers between -2 and 2 that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        // A multiple of 2^-20: exact in f32, so that both precisions see the
        // same numbers.
        ((self.0 >> 42) as f64 / f64::from(1 << 22) * 4.0 - 2.0) as f32 as f64
    }

    fn tensor(&mut self, shape: &[usize]) -> T64 {
        let data: Vec<f64> = (0..shape.iter().product()).map(|_| self.next()).collect();
        HostTensor::f(shape, data)
    }

    fn ids(&mut self, shape: &[usize], below: i32) -> T64 {
        let n = shape.iter().product();
        let data: Vec<i32> = (0..n)
            .map(|_| ((self.next() + 2.0) * 1000.0) as i32 % below)
            .collect();
        HostTensor::i32(shape, data)
    }
}

fn narrow(tensor: &T64) -> HostTensor<f32> {
    match &tensor.data {
        HostData::F(d) => HostTensor::f(
            tensor.shape.clone(),
            d.iter().map(|v| *v as f32).collect::<Vec<f32>>(),
        ),
        HostData::I32(d) => HostTensor::i32(tensor.shape.clone(), d.clone()),
        HostData::Bool(d) => HostTensor::bool(tensor.shape.clone(), d.clone()),
    }
}

/// `|a - b| / |b|` over all elements, for finite tensors of one shape. Where `b` is
/// next to nothing (the tail of a GELU), it counts as 1e-3 an element.
#[track_caller]
fn distance(a: &T64, b: &T64) -> f64 {
    assert_eq!(a.shape, b.shape);
    let (a, b) = (a.as_f().unwrap(), b.as_f().unwrap());
    assert!(a.iter().chain(b).all(|v| v.is_finite()));
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    let size = square(&mut b.iter().copied());
    (difference / size.max(1e-6 * b.len().max(1) as f64)).sqrt()
}

#[track_caller]
fn assert_close(a: &T64, b: &T64, tolerance: f64) {
    let distance = distance(a, b);
    assert!(distance <= tolerance, "{distance} for {:?}", a.shape);
}

/// The same op in both precisions.
#[track_caller]
fn precisions_agree(op: &Op, operands: &[T64]) {
    let wide = apply(op, operands);
    let single: Vec<HostTensor<f32>> = operands.iter().map(narrow).collect();
    let single = apply(op, &single);
    let Some(single) = single.as_f() else {
        return;
    };
    let single = HostTensor::f(
        wide.shape.clone(),
        single.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>(),
    );
    let distance = distance(&single, &wide);
    assert!(distance <= 1e-5, "{op:?}: {distance}");
}

/// All positions of a tensor of this shape, in row-major order.
fn positions(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for size in shape {
        let longer = all.iter().flat_map(|p: &Vec<usize>| {
            (0..*size).map(move |i| {
                let mut p = p.clone();
                p.push(i);
                p
            })
        });
        all = longer.collect();
    }
    all
}

/// Where an element lies in a row-major tensor; axes are matched from the last,
/// and those of size one hold for every index.
fn at(shape: &[usize], position: &[usize]) -> usize {
    let skip = position.len() - shape.len();
    let pairs = shape.iter().zip(&position[skip..]);
    pairs.fold(0, |at, (size, i)| {
        at * size + if *size == 1 { 0 } else { *i }
    })
}
