//! Matrix products over strided operands.
//!
//! Two inner kernels, picked by which axis of the right operand is contiguous:
//! *dots* when it is the inner one (a transposed weight, keys), *sums* when it
//! is the outer one (values). Both keep a small tile of results in registers
//! and cut the inner axis into spans whose sums are added up, which bounds the
//! length of any chain of rounded additions.

use rayon::prelude::*;

use super::real::Real;
use super::tensor::View;

/// Rows of equal distance in a slice; columns are contiguous.
#[derive(Clone, Copy, Debug)]
struct Matrix<'s, T> {
    data: &'s [T],
    offset: usize,
    stride: usize,
}

impl<'s, T> Matrix<'s, T> {
    fn new(data: &'s [T], offset: usize, stride: usize) -> Self {
        Matrix {
            data,
            offset,
            stride,
        }
    }

    /// The same rows from `row` and `column` on.
    fn at(self, row: usize, column: usize) -> Self {
        Matrix {
            offset: self.offset + row * self.stride + column,
            ..self
        }
    }

    fn span(&self, row: usize, from: usize, len: usize) -> &'s [T] {
        let start = self.offset + row * self.stride + from;
        &self.data[start..start + len]
    }
}

/// Inner elements added up before a partial sum is.
const SPAN: usize = 512;

/// `M` times `N` dot products of spans of equal length, in `L` partial sums
/// each.
#[inline(always)]
fn dot_tile<T: Real, const M: usize, const N: usize, const L: usize>(
    x: [&[T]; M],
    w: [&[T]; N],
) -> [[T; N]; M] {
    let x = x.map(|r| r.as_chunks::<L>());
    let w = w.map(|r| r.as_chunks::<L>());
    let mut acc = [[[T::default(); L]; N]; M];
    let chunks = x
        .iter()
        .map(|r| r.0.len())
        .chain(w.iter().map(|r| r.0.len()));
    let chunks = chunks.min().unwrap_or(0);
    for c in 0..chunks {
        for j in 0..N {
            let b = w[j].0[c];
            for i in 0..M {
                let a = x[i].0[c];
                for l in 0..L {
                    acc[i][j][l] += a[l] * b[l];
                }
            }
        }
    }
    let mut out = [[T::default(); N]; M];
    for i in 0..M {
        for j in 0..N {
            let mut sum = T::default();
            for (a, b) in x[i].1.iter().zip(w[j].1) {
                sum += *a * *b;
            }
            for lane in acc[i][j] {
                sum += lane;
            }
            out[i][j] = sum;
        }
    }
    out
}

#[inline(always)]
fn dot_block<T: Real, const M: usize, const N: usize, const L: usize>(
    x: Matrix<'_, T>,
    w: Matrix<'_, T>,
    (i, j, k): (usize, usize, usize),
    out: &mut [T],
    stride: usize,
) {
    let mut acc = [[T::default(); N]; M];
    let mut from = 0;
    while from < k {
        let len = SPAN.min(k - from);
        let mut rows: [&[T]; M] = [&[]; M];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = x.span(i + r, from, len);
        }
        let mut cols: [&[T]; N] = [&[]; N];
        for (c, col) in cols.iter_mut().enumerate() {
            *col = w.span(j + c, from, len);
        }
        let part = dot_tile::<T, M, N, L>(rows, cols);
        for (sums, part) in acc.iter_mut().zip(part) {
            for (sum, p) in sums.iter_mut().zip(part) {
                *sum += p;
            }
        }
        from += len;
    }
    for (r, sums) in acc.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            out[(i + r) * stride + j + c] = *sum;
        }
    }
}

/// `out[i*stride + j] = x[i] . w[j]` for `k` columns.
fn dots_into<T: Real>(
    x: Matrix<'_, T>,
    w: Matrix<'_, T>,
    [m, n, k]: [usize; 3],
    out: &mut [T],
    stride: usize,
) {
    let mut j = 0;
    while j < n {
        let mut i = 0;
        if m >= 4 && n - j >= 2 {
            while i + 4 <= m {
                dot_block::<T, 4, 2, 4>(x, w, (i, j, k), out, stride);
                i += 4;
            }
            while i < m {
                dot_block::<T, 1, 2, 8>(x, w, (i, j, k), out, stride);
                i += 1;
            }
            j += 2;
        } else if n - j >= 4 {
            while i < m {
                dot_block::<T, 1, 4, 8>(x, w, (i, j, k), out, stride);
                i += 1;
            }
            j += 4;
        } else {
            while i < m {
                dot_block::<T, 1, 1, 8>(x, w, (i, j, k), out, stride);
                i += 1;
            }
            j += 1;
        }
    }
}

/// `M` rows times `C` columns of sums over `k`.
#[inline(always)]
fn sum_block<T: Real, const M: usize, const C: usize>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    (i, j, k): (usize, usize, usize),
    out: &mut [T],
    stride: usize,
) {
    let mut total = [[T::default(); C]; M];
    let mut from = 0;
    while from < k {
        let len = SPAN.min(k - from);
        let mut rows: [&[T]; M] = [&[]; M];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = a.span(i + r, from, len);
        }
        let mut acc = [[T::default(); C]; M];
        for r in 0..len {
            let Some(cols) = b.span(from + r, j, C).first_chunk::<C>() else {
                continue;
            };
            for (sums, row) in acc.iter_mut().zip(rows) {
                let factor = row[r];
                for (sum, col) in sums.iter_mut().zip(cols) {
                    *sum += factor * *col;
                }
            }
        }
        for (sums, part) in total.iter_mut().zip(acc) {
            for (sum, p) in sums.iter_mut().zip(part) {
                *sum += p;
            }
        }
        from += len;
    }
    for (r, sums) in total.iter().enumerate() {
        let start = (i + r) * stride + j;
        out[start..start + C].copy_from_slice(sums);
    }
}

/// `out[i*stride + j]` = sum over `r` of `a[i][r] * b[r][j]`.
fn sums_into<T: Real>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    [m, n, k]: [usize; 3],
    out: &mut [T],
    stride: usize,
) {
    let mut i = 0;
    while i < m {
        let mut j = 0;
        if m - i >= 4 {
            while j + 8 <= n {
                sum_block::<T, 4, 8>(a, b, (i, j, k), out, stride);
                j += 8;
            }
            while j < n {
                sum_block::<T, 4, 1>(a, b, (i, j, k), out, stride);
                j += 1;
            }
            i += 4;
        } else {
            while j + 16 <= n {
                sum_block::<T, 1, 16>(a, b, (i, j, k), out, stride);
                j += 16;
            }
            while j < n {
                sum_block::<T, 1, 1>(a, b, (i, j, k), out, stride);
                j += 1;
            }
            i += 1;
        }
    }
}

/// Rows of the left operand that one task takes: they stay in cache while the
/// right operand passes by.
const BAND: usize = 64;

/// Columns of the result that one task makes.
const COLUMNS: usize = 128;

/// Work, in multiplications, below which threads do not pay.
const SERIAL: usize = 1 << 16;

/// Whether the right operand's contiguous axis is the inner one.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Dots,
    Sums,
}

/// One product `[m, k] x [k, n]` into `out[m, n]`.
fn product<T: Real>(
    kind: Kind,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    [m, n, k]: [usize; 3],
    out: &mut [T],
) {
    let run = |row: usize, rows: usize, from: usize, cols: usize, out: &mut [T], stride: usize| {
        let a = a.at(row, 0);
        let size = [rows, cols, k];
        match kind {
            Kind::Dots => dots_into(a, b.at(from, 0), size, out, stride),
            Kind::Sums => sums_into(a, b.at(0, from), size, out, stride),
        }
    };
    if m * n * k <= SERIAL {
        run(0, m, 0, n, out, n);
    } else if m == 1 {
        let pieces = out.par_chunks_mut(COLUMNS).enumerate();
        pieces.for_each(|(c, piece)| {
            let cols = piece.len();
            run(0, 1, c * COLUMNS, cols, piece, cols);
        });
    } else if m >= 4 * BAND {
        let bands = out.par_chunks_mut(BAND * n).enumerate();
        bands.for_each(|(band, piece)| {
            run(band * BAND, piece.len() / n, 0, n, piece, n);
        });
    } else {
        // Columns are shared out; each task makes a tile of its own.
        let starts: Vec<usize> = (0..n).step_by(COLUMNS).collect();
        for (band, piece) in out.chunks_mut(BAND * n).enumerate() {
            let rows = piece.len() / n;
            let tiles = starts.par_iter().map(|from| {
                let cols = COLUMNS.min(n - from);
                let mut tile = vec![T::default(); rows * cols];
                run(band * BAND, rows, *from, cols, &mut tile, cols);
                tile
            });
            let tiles: Vec<Vec<T>> = tiles.collect();
            for (from, tile) in starts.iter().zip(tiles) {
                let cols = tile.len() / rows;
                for (row, part) in piece.chunks_mut(n).zip(tile.chunks(cols)) {
                    row[*from..from + cols].copy_from_slice(part);
                }
            }
        }
    }
}

/// `(a[..., m, k], b[..., k, n]) -> [..., m, n]`, leading axes broadcast to
/// `shape`.
pub(super) fn matmul<T: Real>(
    a: &View<'_, T>,
    b: &View<'_, T>,
    shape: &[usize],
) -> View<'static, T> {
    let rank = shape.len();
    let (m, n) = (shape[rank - 2], shape[rank - 1]);
    let k = a.shape[a.rank() - 1];
    let batch_shape = &shape[..rank - 2];
    let batches: usize = batch_shape.iter().product();
    let mut out = vec![T::default(); batches * m * n];
    if out.is_empty() || k == 0 {
        return View::new(shape.to_vec(), out);
    }

    let a = a.with_unit_stride(a.rank() - 1);
    let b_inner = b.strides[b.rank() - 2];
    let (kind, b) = if b_inner == 1 && k > 1 {
        (Kind::Dots, b.clone())
    } else {
        (Kind::Sums, b.with_unit_stride(b.rank() - 1))
    };
    let b_stride = match kind {
        Kind::Dots => b.strides[b.rank() - 1],
        Kind::Sums => b.strides[b.rank() - 2],
    };

    // A right operand without leading axes: all rows of the left one are rows
    // of a single product.
    if b.shape[..b.rank() - 2].iter().product::<usize>() == 1 {
        let a = a.contiguous();
        let rows = batches * m;
        let a = Matrix::new(&a, 0, k);
        let b = Matrix::new(b.data(), b.offset, b_stride);
        product(kind, a, b, [rows, n, k], &mut out);
        return View::new(shape.to_vec(), out);
    }

    let full = |v: &View<'_, T>| [batch_shape, &v.shape[v.rank() - 2..]].concat();
    let (a, b) = (a.broadcast(&full(&a)), b.broadcast(&full(&b)));
    let one = |index: usize, out: &mut [T]| {
        let (mut at_a, mut at_b, mut rest) = (a.offset, b.offset, index);
        for axis in (0..rank - 2).rev() {
            let i = rest % batch_shape[axis];
            rest /= batch_shape[axis];
            at_a += i * a.strides[axis];
            at_b += i * b.strides[axis];
        }
        let x = Matrix::new(a.data(), at_a, a.strides[rank - 2]);
        let y = Matrix::new(b.data(), at_b, b_stride);
        match kind {
            Kind::Dots => dots_into(x, y, [m, n, k], out, n),
            Kind::Sums => sums_into(x, y, [m, n, k], out, n),
        }
    };
    let parts = m * n;
    if batches * m * n * k <= SERIAL {
        out.chunks_mut(parts)
            .enumerate()
            .for_each(|(i, c)| one(i, c));
    } else {
        out.par_chunks_mut(parts)
            .enumerate()
            .for_each(|(i, c)| one(i, c));
    }
    View::new(shape.to_vec(), out)
}

/// `x[rows, k] . w[n, k]^T -> [rows, n]`.
pub(super) fn linear<T: Real>(x: &[T], w: &View<'_, T>, rows: usize) -> Vec<T> {
    let (n, k) = (w.shape[0], w.shape[1]);
    let mut out = vec![T::default(); rows * n];
    if out.is_empty() || k == 0 {
        return out;
    }
    let w = w.with_unit_stride(1);
    let w = Matrix::new(w.data(), w.offset, w.strides[0]);
    product(Kind::Dots, Matrix::new(x, 0, k), w, [rows, n, k], &mut out);
    out
}
