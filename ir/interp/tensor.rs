//! Tensors: what the interpreter takes and gives, and the strided views that
//! it computes with.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::types::DType;

/// A tensor in host memory, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor<T> {
    /// The sizes of the axes.
    pub shape: Vec<usize>,
    /// The elements, as many as the product of the axes.
    pub data: HostData<T>,
}

/// A tensor's elements.
#[derive(Clone, Debug, PartialEq)]
pub enum HostData<T> {
    /// Elements of the graph's `f32`, as the interpreter computes them.
    F(Vec<T>),
    /// Elements of `i32`.
    I32(Vec<i32>),
    /// Truth values.
    Bool(Vec<bool>),
}

impl<T> HostTensor<T> {
    /// A tensor of real numbers.
    pub fn f(shape: impl Into<Vec<usize>>, data: impl Into<Vec<T>>) -> Self {
        HostTensor {
            shape: shape.into(),
            data: HostData::F(data.into()),
        }
    }

    /// A tensor of integers.
    pub fn i32(shape: impl Into<Vec<usize>>, data: impl Into<Vec<i32>>) -> Self {
        HostTensor {
            shape: shape.into(),
            data: HostData::I32(data.into()),
        }
    }

    /// A tensor of truth values.
    pub fn bool(shape: impl Into<Vec<usize>>, data: impl Into<Vec<bool>>) -> Self {
        HostTensor {
            shape: shape.into(),
            data: HostData::Bool(data.into()),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            HostData::F(_) => DType::F32,
            HostData::I32(_) => DType::I32,
            HostData::Bool(_) => DType::Bool,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match &self.data {
            HostData::F(d) => d.len(),
            HostData::I32(d) => d.len(),
            HostData::Bool(d) => d.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, if they are real numbers.
    pub fn as_f(&self) -> Option<&[T]> {
        match &self.data {
            HostData::F(d) => Some(d),
            _ => None,
        }
    }

    /// The elements, if they are integers.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match &self.data {
            HostData::I32(d) => Some(d),
            _ => None,
        }
    }

    /// The elements, if they are truth values.
    pub fn as_bool(&self) -> Option<&[bool]> {
        match &self.data {
            HostData::Bool(d) => Some(d),
            _ => None,
        }
    }
}

impl<T: Copy + Default + Send + Sync + 'static> HostTensor<T> {
    /// The first elements along each axis, as many as `shape` says, or as there are.
    pub fn leading(&self, shape: &[usize]) -> HostTensor<T> {
        fn cut<E: Elem>(data: &[E], from: &[usize], to: &[usize]) -> Vec<E> {
            let mut view = View::of(from.to_vec(), Buf::Borrowed(data));
            for (axis, size) in to.iter().enumerate() {
                view = view.slice(axis, 0..*size);
            }
            view.contiguous().into_owned()
        }
        let sizes = self.shape.iter().enumerate();
        let sizes = sizes.map(|(axis, size)| shape.get(axis).map_or(*size, |to| *to.min(size)));
        let to: Vec<usize> = sizes.collect();
        let data = match &self.data {
            HostData::F(d) => HostData::F(cut(d, &self.shape, &to)),
            HostData::I32(d) => HostData::I32(cut(d, &self.shape, &to)),
            HostData::Bool(d) => HostData::Bool(cut(d, &self.shape, &to)),
        };
        HostTensor { shape: to, data }
    }
}

/// An element of a view.
pub(super) trait Elem: Copy + Default + Send + Sync + 'static {}
impl<E: Copy + Default + Send + Sync + 'static> Elem for E {}

/// Elements that are shared or borrowed, never copied.
#[derive(Debug)]
pub(super) enum Buf<'a, E> {
    Shared(Arc<Vec<E>>),
    Borrowed(&'a [E]),
}

impl<E> Clone for Buf<'_, E> {
    fn clone(&self) -> Self {
        match self {
            Buf::Shared(v) => Buf::Shared(Arc::clone(v)),
            Buf::Borrowed(s) => Buf::Borrowed(s),
        }
    }
}

impl<'a, E: Clone> From<Cow<'a, [E]>> for Buf<'a, E> {
    fn from(values: Cow<'a, [E]>) -> Self {
        match values {
            Cow::Owned(v) => Buf::Shared(Arc::new(v)),
            Cow::Borrowed(s) => Buf::Borrowed(s),
        }
    }
}

impl<E> Buf<'_, E> {
    pub(super) fn slice(&self) -> &[E] {
        match self {
            Buf::Shared(v) => v,
            Buf::Borrowed(s) => s,
        }
    }
}

/// A tensor as steps through a buffer: transposing, slicing and broadcasting
/// only change the steps.
#[derive(Clone, Debug)]
pub(super) struct View<'a, E> {
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
    pub(super) offset: usize,
    buf: Buf<'a, E>,
}

/// The strides of a row-major tensor.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

impl<'a, E: Elem> View<'a, E> {
    /// A row-major tensor that owns its elements.
    pub(super) fn new(shape: Vec<usize>, data: Vec<E>) -> Self {
        Self::of(shape, Buf::Shared(Arc::new(data)))
    }

    /// A row-major tensor over a buffer.
    pub(super) fn of(shape: Vec<usize>, buf: Buf<'a, E>) -> Self {
        View {
            strides: row_major(&shape),
            shape,
            offset: 0,
            buf,
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.shape.len()
    }

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The whole buffer, which [`View::offset`] and the strides index.
    pub(super) fn data(&self) -> &[E] {
        self.buf.slice()
    }

    fn is_row_major(&self) -> bool {
        let mut expected = 1;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }

    /// The elements in row-major order; copied only if they lie otherwise.
    pub(super) fn contiguous(&self) -> Cow<'_, [E]> {
        let n = self.elements();
        if n == 0 {
            return Cow::Borrowed(&[]);
        }
        if self.is_row_major() {
            return Cow::Borrowed(&self.data()[self.offset..self.offset + n]);
        }
        Cow::Owned(map_to_vec(self, |x| x))
    }

    /// The elements in row-major order, moved out if no one else has them.
    pub(super) fn into_vec(self) -> Vec<E> {
        let n = self.elements();
        if self.is_row_major() && self.offset == 0 && self.data().len() == n {
            return match self.buf {
                Buf::Shared(v) => Arc::try_unwrap(v).unwrap_or_else(|v| v.as_ref().clone()),
                Buf::Borrowed(s) => s.to_vec(),
            };
        }
        self.contiguous().into_owned()
    }

    /// The same tensor, with an axis whose neighbours are adjacent in memory;
    /// copied if they are not.
    pub(super) fn with_unit_stride(&self, axis: usize) -> View<'a, E> {
        if self.strides[axis] == 1 || self.elements() == 0 {
            return self.clone();
        }
        View::new(self.shape.clone(), self.contiguous().into_owned())
    }

    /// The tensor broadcast to `shape`, which it broadcasts to.
    pub(super) fn broadcast(&self, shape: &[usize]) -> View<'a, E> {
        let extra = shape.len() - self.rank();
        let strides = (0..shape.len()).map(|i| match i.checked_sub(extra) {
            Some(axis) if self.shape[axis] == shape[i] => self.strides[axis],
            _ => 0,
        });
        View {
            strides: strides.collect(),
            shape: shape.to_vec(),
            offset: self.offset,
            buf: self.buf.clone(),
        }
    }

    pub(super) fn transpose(&self, perm: &[usize]) -> View<'a, E> {
        View {
            shape: perm.iter().map(|p| self.shape[*p]).collect(),
            strides: perm.iter().map(|p| self.strides[*p]).collect(),
            offset: self.offset,
            buf: self.buf.clone(),
        }
    }

    pub(super) fn slice(&self, axis: usize, range: Range<usize>) -> View<'a, E> {
        let mut out = self.clone();
        out.shape[axis] = range.len();
        out.offset += range.start * self.strides[axis];
        out
    }

    pub(super) fn reshape(&self, shape: &[usize]) -> View<'a, E> {
        if self.is_row_major() {
            return View {
                strides: row_major(shape),
                shape: shape.to_vec(),
                offset: self.offset,
                buf: self.buf.clone(),
            };
        }
        View::new(shape.to_vec(), self.contiguous().into_owned())
    }
}

/// How `N` operands are stepped through for one shape, with axes merged where
/// all of them allow it.
struct Layout<const N: usize> {
    shape: Vec<usize>,
    strides: Vec<[usize; N]>,
    offsets: [usize; N],
}

impl<const N: usize> Layout<N> {
    fn new(shape: &[usize], strides: [&[usize]; N], offsets: [usize; N]) -> Self {
        let mut out = Layout {
            shape: Vec::new(),
            strides: Vec::new(),
            offsets,
        };
        for (axis, size) in shape.iter().enumerate() {
            if *size == 1 {
                continue;
            }
            let steps = strides.map(|s| s[axis]);
            if let (Some(last), Some(outer)) = (out.shape.last_mut(), out.strides.last_mut())
                && (0..N).all(|i| outer[i] == steps[i] * size)
            {
                *last *= size;
                *outer = steps;
            } else {
                out.shape.push(*size);
                out.strides.push(steps);
            }
        }
        if out.shape.is_empty() {
            out.shape.push(1);
            out.strides.push([0; N]);
        }
        out
    }

    /// Calls `f(position, length, offsets)` for each run along the innermost
    /// axis of the elements in `range`; positions count from its start.
    fn runs(&self, range: Range<usize>, mut f: impl FnMut(usize, usize, [usize; N])) {
        let last = self.shape.len() - 1;
        let inner = self.shape[last];
        let mut at = range.start;
        while at < range.end {
            let column = at % inner;
            let len = (inner - column).min(range.end - at);
            let mut offsets = self.offsets;
            for (o, s) in offsets.iter_mut().zip(self.strides[last]) {
                *o += column * s;
            }
            let mut rest = at / inner;
            for axis in (0..last).rev() {
                let index = rest % self.shape[axis];
                rest /= self.shape[axis];
                for (o, s) in offsets.iter_mut().zip(self.strides[axis]) {
                    *o += index * s;
                }
            }
            f(at - range.start, len, offsets);
            at += len;
        }
    }

    fn steps(&self) -> [usize; N] {
        self.strides[self.shape.len() - 1]
    }
}

/// Elements that one task makes.
const CHUNK: usize = 1 << 14;

/// A vector of `n` elements, made in pieces side by side.
fn fill<O: Elem>(n: usize, make: impl Fn(Range<usize>, &mut [O]) + Sync) -> Vec<O> {
    let mut out = vec![O::default(); n];
    if n <= CHUNK {
        make(0..n, &mut out);
    } else {
        let pieces = out.par_chunks_mut(CHUNK).enumerate();
        pieces.for_each(|(i, piece)| make(i * CHUNK..i * CHUNK + piece.len(), piece));
    }
    out
}

fn map_to_vec<A: Elem, O: Elem>(x: &View<'_, A>, f: impl Fn(A) -> O + Sync) -> Vec<O> {
    let layout = Layout::new(&x.shape, [&x.strides], [x.offset]);
    let (data, [step]) = (x.data(), layout.steps());
    fill(x.elements(), |range, out| {
        layout.runs(range, |at, len, [o]| {
            let out = &mut out[at..at + len];
            if step == 1 {
                for (out, x) in out.iter_mut().zip(&data[o..o + len]) {
                    *out = f(*x);
                }
            } else {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = f(data[o + i * step]);
                }
            }
        });
    })
}

/// `f` of each element.
pub(super) fn map<A: Elem, O: Elem>(
    x: &View<'_, A>,
    f: impl Fn(A) -> O + Sync,
) -> View<'static, O> {
    View::new(x.shape.clone(), map_to_vec(x, f))
}

/// `f` of each pair of elements, both broadcast to `shape`.
pub(super) fn zip<A: Elem, B: Elem, O: Elem>(
    a: &View<'_, A>,
    b: &View<'_, B>,
    shape: &[usize],
    f: impl Fn(A, B) -> O + Sync,
) -> View<'static, O> {
    let (a, b) = (a.broadcast(shape), b.broadcast(shape));
    let layout = Layout::new(shape, [&a.strides, &b.strides], [a.offset, b.offset]);
    let (x, y, steps) = (a.data(), b.data(), layout.steps());
    let data = fill(a.elements(), |range, out| {
        layout.runs(range, |at, len, [p, q]| {
            let out = &mut out[at..at + len];
            match steps {
                [1, 1] => {
                    let pairs = x[p..p + len].iter().zip(&y[q..q + len]);
                    for (out, (a, b)) in out.iter_mut().zip(pairs) {
                        *out = f(*a, *b);
                    }
                }
                [1, 0] => {
                    let b = y[q];
                    for (out, a) in out.iter_mut().zip(&x[p..p + len]) {
                        *out = f(*a, b);
                    }
                }
                [0, 1] => {
                    let a = x[p];
                    for (out, b) in out.iter_mut().zip(&y[q..q + len]) {
                        *out = f(a, *b);
                    }
                }
                [s, t] => {
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = f(x[p + i * s], y[q + i * t]);
                    }
                }
            }
        });
    });
    View::new(shape.to_vec(), data)
}

/// `if condition { a } else { b }`, all three broadcast to `shape`.
pub(super) fn select<E: Elem>(
    condition: &View<'_, bool>,
    a: &View<'_, E>,
    b: &View<'_, E>,
    shape: &[usize],
) -> View<'static, E> {
    let c = condition.broadcast(shape);
    let (a, b) = (a.broadcast(shape), b.broadcast(shape));
    let strides: [&[usize]; 3] = [&c.strides, &a.strides, &b.strides];
    let layout = Layout::new(shape, strides, [c.offset, a.offset, b.offset]);
    let (cond, x, y, [r, s, t]) = (c.data(), a.data(), b.data(), layout.steps());
    let data = fill(c.elements(), |range, out| {
        layout.runs(range, |at, len, [o, p, q]| {
            for (i, out) in out[at..at + len].iter_mut().enumerate() {
                *out = if cond[o + i * r] {
                    x[p + i * s]
                } else {
                    y[q + i * t]
                };
            }
        });
    });
    View::new(shape.to_vec(), data)
}

/// Operands one after the other along an axis.
pub(super) fn concat<E: Elem>(parts: &[&View<'_, E>], axis: usize) -> View<'static, E> {
    let mut shape = parts.first().map_or_else(Vec::new, |p| p.shape.clone());
    shape[axis] = parts.iter().map(|p| p.shape[axis]).sum();
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut data = Vec::with_capacity(outer * shape[axis] * inner);
    let sources: Vec<(Cow<'_, [E]>, usize)> = parts
        .iter()
        .map(|p| (p.contiguous(), p.shape[axis] * inner))
        .collect();
    for i in 0..outer {
        for (source, len) in &sources {
            data.extend_from_slice(&source[i * len..(i + 1) * len]);
        }
    }
    View::new(shape, data)
}

/// Rows of a table by id, clamped to the table.
pub(super) fn gather<E: Elem>(
    table: &View<'_, E>,
    ids: &View<'_, i32>,
) -> Result<View<'static, E>, String> {
    let rows = table.shape[0];
    let mut shape = ids.shape.clone();
    shape.extend_from_slice(&table.shape[1..]);
    let ids = ids.contiguous();
    let Some(top) = rows.checked_sub(1) else {
        return if ids.is_empty() {
            Ok(View::new(shape, Vec::new()))
        } else {
            Err("cannot gather from a table without rows".to_owned())
        };
    };
    let width: usize = table.shape[1..].iter().product();
    let mut data = Vec::with_capacity(ids.len() * width);
    for id in ids.iter() {
        let row = usize::try_from(*id).unwrap_or(0).min(top);
        let row = table.slice(0, row..row + 1);
        data.extend_from_slice(&row.contiguous());
    }
    Ok(View::new(shape, data))
}
