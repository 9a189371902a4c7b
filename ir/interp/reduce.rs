//! Reductions, softmax and normalisations: whatever looks at a whole axis.
//! Sums are made in `f64`, whatever the tensors are made of.

use rayon::prelude::*;

use super::real::Real;
use super::tensor::View;
use crate::op::{Activation, Norm, ReduceOp};

/// Elements that one task looks at.
const CHUNK: usize = 1 << 14;

fn by_rows<T: Real>(data: &mut [T], width: usize, f: impl Fn(&mut [T]) + Sync + Send) {
    if width == 0 {
        return;
    }
    if data.len() <= CHUNK {
        data.chunks_mut(width).for_each(f);
    } else {
        data.par_chunks_mut(width)
            .with_min_len(CHUNK.div_ceil(width))
            .for_each(f);
    }
}

/// The sum of `f` of each element, in eight partial sums.
fn sum<T: Real>(values: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(value.wide());
        }
    }
    let tail: f64 = rest.iter().map(|v| f(v.wide())).sum();
    lanes.iter().sum::<f64>() + tail
}

fn largest<T: Real>(values: &[T]) -> T {
    let lowest = T::of(f64::NEG_INFINITY);
    values.iter().fold(lowest, |a, b| a.larger(*b))
}

fn reduced<T: Real>(op: ReduceOp, values: &[T]) -> T {
    match op {
        ReduceOp::Sum => T::of(sum(values, |v| v)),
        ReduceOp::Mean => T::of(sum(values, |v| v) / values.len() as f64),
        ReduceOp::Max => largest(values),
    }
}

/// `x` with `axis` moved to the end, and the way back.
fn axis_last<'a, T: Real>(x: &View<'a, T>, axis: usize) -> (View<'a, T>, Vec<usize>) {
    let mut perm: Vec<usize> = (0..x.rank()).filter(|a| *a != axis).collect();
    perm.push(axis);
    let mut back = vec![0; perm.len()];
    for (to, from) in perm.iter().enumerate() {
        back[*from] = to;
    }
    (x.transpose(&perm), back)
}

/// A reduction along an axis, which stays with size one.
pub(super) fn reduce<T: Real>(op: ReduceOp, x: &View<'_, T>, axis: usize) -> View<'static, T> {
    let mut shape = x.shape.clone();
    let width = std::mem::replace(&mut shape[axis], 1);
    let (moved, _) = axis_last(x, axis);
    let mut out = vec![T::default(); shape.iter().product()];
    if width == 0 {
        out.fill(reduced(op, &[]));
    } else {
        let data = moved.contiguous();
        if data.len() <= CHUNK {
            for (out, row) in out.iter_mut().zip(data.chunks(width)) {
                *out = reduced(op, row);
            }
        } else {
            let rows = out.par_iter_mut().zip(data.par_chunks(width));
            rows.with_min_len(CHUNK.div_ceil(width))
                .for_each(|(out, row)| *out = reduced(op, row));
        }
    }
    View::new(shape, out)
}

/// A row's `e^(x - max) / sum`, in place.
pub(super) fn softmax_row<T: Real>(row: &mut [T]) {
    let max = largest(row);
    for value in row.iter_mut() {
        *value = (*value - max).exp();
    }
    let total = T::of(sum(row, |v| v));
    for value in row.iter_mut() {
        *value = *value / total;
    }
}

/// `e^(x - max) / sum` along an axis.
pub(super) fn softmax<T: Real>(x: &View<'_, T>, axis: usize) -> View<'static, T> {
    let (moved, back) = axis_last(x, axis);
    let mut data = moved.contiguous().into_owned();
    by_rows(&mut data, x.shape[axis], softmax_row);
    View::new(moved.shape, data).transpose(&back)
}

/// Rows of width `gain.len()` normalised.
pub(super) fn normalize<T: Real>(norm: Norm, x: &View<'_, T>, operands: &[Vec<T>]) -> Vec<T> {
    let mut data = x.contiguous().into_owned();
    let width = x.shape.last().copied().unwrap_or(0);
    by_rows(&mut data, width, |row| normalize_row(norm, row, operands));
    data
}

fn normalize_row<T: Real>(norm: Norm, row: &mut [T], operands: &[Vec<T>]) {
    let n = row.len() as f64;
    let (shift, square) = match norm {
        Norm::Layer { .. } => {
            let mean = sum(row, |v| v) / n;
            (mean, sum(row, |v| (v - mean) * (v - mean)) / n)
        }
        Norm::Rms { .. } => (0.0, sum(row, |v| v * v) / n),
    };
    let factor = 1.0 / (square + norm.eps()).sqrt();
    for (i, value) in row.iter_mut().enumerate() {
        let mut v = T::of((value.wide() - shift) * factor);
        if let Some(gain) = operands.first() {
            v = v * gain[i];
        }
        if let Some(bias) = operands.get(1) {
            v += bias[i];
        }
        *value = v;
    }
}

/// A nonlinearity's value.
pub(super) fn activation<T: Real>(a: Activation, x: T) -> T {
    let (half, one) = (T::of(0.5), T::of(1.0));
    match a {
        Activation::GeluTanh => {
            let inner =
                T::of((2.0 / std::f64::consts::PI).sqrt()) * (x + T::of(0.044_715) * x * x * x);
            half * x * (one + inner.tanh())
        }
        Activation::GeluErf => {
            half * x * (one + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
        }
        Activation::Relu => x.larger(T::default()),
        Activation::Silu => x / (one + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}
