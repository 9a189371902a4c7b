//! The fused ops, evaluated by their own definition. [`crate::decompose`] says
//! the same in primitive ops; tests hold one against the other.

use rayon::prelude::*;

use super::matmul::linear as product;
use super::real::Real;
use super::reduce::{activation, normalize, softmax_row};
use super::tensor::{View, map, zip};
use crate::op::{AttentionSpec, MASK_VALUE, Norm, Step};

fn vectors<T: Real>(operands: &[&View<'_, T>]) -> Vec<Vec<T>> {
    operands
        .iter()
        .map(|v| v.contiguous().into_owned())
        .collect()
}

/// [`crate::Op::Normalize`].
pub(super) fn norm<T: Real>(
    norm: Norm,
    x: &View<'_, T>,
    operands: &[&View<'_, T>],
) -> View<'static, T> {
    View::new(x.shape.clone(), normalize(norm, x, &vectors(operands)))
}

/// [`crate::Op::Linear`].
pub(super) fn linear<T: Real>(
    norm: Option<Norm>,
    steps: &[Step],
    x: &View<'_, T>,
    w: &View<'_, T>,
    operands: &[&View<'_, T>],
) -> View<'static, T> {
    let split = norm.map_or(0, Norm::operands);
    let mut shape = x.shape.clone();
    let last = shape.len() - 1;
    shape[last] = w.shape[0];
    let rows = shape[..last].iter().product();
    let data = match norm {
        Some(norm) => product(&normalize(norm, x, &vectors(&operands[..split])), w, rows),
        None => product(&x.contiguous(), w, rows),
    };
    let mut out = View::new(shape.clone(), data);
    let mut operands = operands[split..].iter();
    for step in steps {
        out = match step {
            Step::Act(a) => map(&out, |x| activation(*a, x)),
            Step::Add | Step::Mul => match operands.next() {
                Some(y) if *step == Step::Add => zip(&out, *y, &shape, |a: T, b: T| a + b),
                Some(y) => zip(&out, *y, &shape, |a: T, b: T| a * b),
                None => out,
            },
        };
    }
    out
}

/// [`crate::Op::Rotary`].
pub(super) fn rotary<T: Real>(
    x: &View<'_, T>,
    cos: &View<'_, T>,
    sin: &View<'_, T>,
) -> View<'static, T> {
    let mut shape = x.shape.clone();
    let (width, half) = (shape[x.rank() - 1], cos.shape[cos.rank() - 1]);
    let last = shape.len() - 1;
    shape[last] = half;
    let (cos, sin) = (cos.broadcast(&shape), sin.broadcast(&shape));
    let (cos, sin) = (cos.contiguous(), sin.contiguous());
    let mut out = x.contiguous().into_owned();
    let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (row, (cos, sin)) in out.chunks_exact_mut(width).zip(angles) {
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            let pairs = first.iter_mut().zip(second);
            for ((a, b), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                (*a, *b) = (*a * *cos - *b * *sin, *b * *cos + *a * *sin);
            }
        }
    }
    View::new(x.shape.clone(), out)
}

/// The operands of attention with the heads told apart.
struct Heads<'s, T> {
    q: &'s [T],
    k: &'s [T],
    start: Option<&'s [i32]>,
    spec: AttentionSpec,
    n: usize,
    m: usize,
    d: usize,
}

impl<T: Real> Heads<'_, T> {
    /// Where the `d` elements of a key (or value) start.
    fn key_at(&self, batch: usize, head: usize, key: usize) -> usize {
        let shared = head / (self.spec.heads / self.spec.kv_heads);
        ((batch * self.m + key) * self.spec.kv_heads + shared) * self.d
    }

    /// The probabilities of one query over all keys.
    fn probabilities(&self, batch: usize, head: usize, query: usize, out: &mut [T]) {
        let at = ((batch * self.n + query) * self.spec.heads + head) * self.d;
        let q = &self.q[at..at + self.d];
        let mut first = self.start.map_or(0, |s| i64::from(s[batch]));
        // The last key that a causal query sees; it may see none.
        let last = if self.spec.causal {
            query as i64 + self.m as i64 - self.n as i64
        } else {
            i64::MAX
        };
        if let Some(window) = self.spec.window {
            first = first.max(last.saturating_sub_unsigned((window as u64).saturating_sub(1)));
        }
        let scale = T::of(self.spec.scale);
        for (key, out) in out.iter_mut().enumerate() {
            let seen = (first..=last).contains(&(key as i64));
            *out = if seen {
                let at = self.key_at(batch, head, key);
                dot(q, &self.k[at..at + self.d]) * scale
            } else {
                T::of(MASK_VALUE)
            };
        }
        softmax_row(out);
    }

    /// Calls `f(batch, head, query, row)` for each row of `out`, side by side.
    fn each(&self, out: &mut [T], width: usize, f: impl Fn(usize, usize, usize, &mut [T]) + Sync) {
        if width == 0 {
            return;
        }
        let rows = out.par_chunks_mut(width).enumerate();
        rows.with_min_len(4).for_each(|(i, row)| {
            let (rest, query) = (i / self.n, i % self.n);
            f(rest / self.spec.heads, rest % self.spec.heads, query, row);
        });
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut lanes = [T::default(); 8];
    for (a, b) in a.iter().zip(b) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += *x * *y;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(x, y)| *x * *y);
    lanes
        .into_iter()
        .chain(rest)
        .fold(T::default(), |a, b| a + b)
}

/// [`crate::Op::AttentionProbs`]: `[batch, heads, n, m]`.
pub(super) fn attention_probs<T: Real>(
    spec: AttentionSpec,
    q: &View<'_, T>,
    k: &View<'_, T>,
    start: Option<&View<'_, i32>>,
) -> View<'static, T> {
    let (batch, n, m) = (q.shape[0], q.shape[1], k.shape[1]);
    let (q_data, k_data) = (q.contiguous(), k.contiguous());
    let start = start.map(View::contiguous);
    let heads = Heads {
        q: &q_data,
        k: &k_data,
        start: start.as_deref(),
        spec,
        n,
        m,
        d: q.shape[2] / spec.heads,
    };
    let mut out = vec![T::default(); batch * spec.heads * n * m];
    heads.each(&mut out, m, |b, h, i, row| {
        heads.probabilities(b, h, i, row);
    });
    View::new(vec![batch, spec.heads, n, m], out)
}

/// [`crate::Op::Attention`]: `[batch, n, heads * d]`.
pub(super) fn attention<T: Real>(
    spec: AttentionSpec,
    q: &View<'_, T>,
    k: &View<'_, T>,
    v: &View<'_, T>,
    start: Option<&View<'_, i32>>,
) -> View<'static, T> {
    let (batch, n, m) = (q.shape[0], q.shape[1], k.shape[1]);
    let (q_data, k_data, v_data) = (q.contiguous(), k.contiguous(), v.contiguous());
    let start = start.map(View::contiguous);
    let d = q.shape[2] / spec.heads;
    let heads = Heads {
        q: &q_data,
        k: &k_data,
        start: start.as_deref(),
        spec,
        n,
        m,
        d,
    };
    // Head by head, then the heads are put side by side.
    let mut out = vec![T::default(); batch * spec.heads * n * d];
    heads.each(&mut out, d, |b, h, i, row| {
        let mut probabilities = vec![T::default(); m];
        heads.probabilities(b, h, i, &mut probabilities);
        for (key, p) in probabilities.into_iter().enumerate() {
            if p == T::default() {
                continue;
            }
            let at = heads.key_at(b, h, key);
            for (out, v) in row.iter_mut().zip(&v_data[at..at + d]) {
                *out += p * *v;
            }
        }
    });
    View::new(vec![batch, spec.heads, n, d], out)
        .transpose(&[0, 2, 1, 3])
        .reshape(&[batch, n, spec.heads * d])
}
