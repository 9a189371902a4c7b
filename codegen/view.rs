//! Where a tensor's elements lie in a buffer.
//!
//! A [`View`] is an affine map from a multi-index to a flat element index.
//! Slices, transposes and reshapes of something that lies in a buffer are views
//! of the same buffer: they cost no launch and no copy.

use kiln_ir::{Bindings, Dim, Op};

use crate::wgsl;

/// A buffer that a kernel can bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Base {
    /// An index into the plan's weights.
    Weight(usize),
    /// An index into the plan's states.
    State(usize),
    /// A buffer of the entry point before memory planning; one for each
    /// materialised value.
    Local(usize),
}

/// An affine map from a multi-index to a flat element index of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub base: Base,
    pub offset: Dim,
    pub shape: Vec<Dim>,
    /// In elements, one for each axis.
    pub strides: Vec<Dim>,
}

impl View {
    /// A tensor that fills `base` from its start, row-major.
    pub fn contiguous(base: Base, shape: &[Dim]) -> Self {
        let mut strides = vec![Dim::constant(1); shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = &strides[i] * &shape[i];
        }
        View {
            base,
            offset: 0.into(),
            shape: shape.to_vec(),
            strides,
        }
    }

    /// Whether the elements lie row-major without gaps.
    fn is_contiguous(&self) -> bool {
        let dense = View::contiguous(self.base, &self.shape);
        let axes = self.shape.iter().zip(&self.strides).zip(&dense.strides);
        axes.into_iter().all(|((n, a), b)| n.is_one() || a == b)
    }

    /// The view of `op` applied to the viewed tensor, where there is one.
    pub fn apply(&self, op: &Op) -> Option<View> {
        let mut view = self.clone();
        match op {
            Op::Slice { axis, start, end } => {
                view.offset = &view.offset + &(start * view.strides.get(*axis)?);
                view.shape[*axis] = end - start;
                Some(view)
            }
            Op::Transpose { perm } => {
                view.shape = perm.iter().map(|p| self.shape[*p].clone()).collect();
                view.strides = perm.iter().map(|p| self.strides[*p].clone()).collect();
                Some(view)
            }
            Op::Reshape { shape } if self.is_contiguous() => {
                let mut dense = View::contiguous(self.base, shape);
                dense.offset = self.offset.clone();
                Some(dense)
            }
            Op::Reshape { shape } => self.reshape_units(shape),
            _ => None,
        }
    }

    /// A reshape that only adds or drops axes of size one.
    fn reshape_units(&self, shape: &[Dim]) -> Option<View> {
        let kept = |dims: &[Dim]| -> Vec<usize> {
            (0..dims.len()).filter(|i| !dims[*i].is_one()).collect()
        };
        let (from, to) = (kept(&self.shape), kept(shape));
        let same = from.len() == to.len()
            && from
                .iter()
                .zip(&to)
                .all(|(a, b)| self.shape[*a] == shape[*b]);
        if !same {
            return None;
        }
        let mut strides = vec![Dim::constant(1); shape.len()];
        for (a, b) in from.iter().zip(&to) {
            strides[*b] = self.strides[*a].clone();
        }
        Some(View {
            base: self.base,
            offset: self.offset.clone(),
            shape: shape.to_vec(),
            strides,
        })
    }

    /// Whether it has the rows that `other` has, in their order, where symbols have
    /// these values.
    pub fn has_rows_of(&self, other: &View, values: &Bindings) -> bool {
        let (own, other) = (
            self.where_symbols_are(values),
            other.where_symbols_are(values),
        );
        let one_row = own.rows().is_one() && other.rows().is_one();
        let row = |v: &View| (v.base, v.offset.clone(), v.shape.last().cloned());
        own == other
            || one_row && row(&own) == row(&other) && own.rows_are_dense() && other.rows_are_dense()
    }

    fn where_symbols_are(&self, values: &Bindings) -> View {
        let at = |dim: &Dim| dim.at(values);
        View {
            base: self.base,
            offset: at(&self.offset),
            shape: self.shape.iter().map(at).collect(),
            strides: self.strides.iter().map(at).collect(),
        }
    }

    /// The number of rows: the product of all axes but the last.
    pub fn rows(&self) -> Dim {
        let leading = self.shape.len().saturating_sub(1);
        Dim::product(&self.shape[..leading])
    }

    /// Whether the elements of a row lie next to each other.
    pub fn rows_are_dense(&self) -> bool {
        match (self.shape.last(), self.strides.last()) {
            (Some(n), Some(s)) => n.is_one() || s.is_one(),
            _ => true,
        }
    }

    /// Whether every row starts at a multiple of four elements, and four
    /// consecutive elements of a row may be read as one vector.
    pub fn is_vectorised(&self) -> bool {
        let leading = self.strides.len().saturating_sub(1);
        self.rows_are_dense()
            && is_multiple(&self.offset, 4)
            && self.strides[..leading].iter().all(|s| is_multiple(s, 4))
    }

    /// The flat element index at a multi-index of WGSL expressions, one for
    /// each axis, divided by `unit`, which must divide offset and strides.
    pub fn address(&self, index: &[String], unit: u64) -> String {
        let axes = self.strides.iter().zip(index).zip(&self.shape);
        let terms = axes
            .filter(|((_, _), n)| !n.is_one())
            .map(|((s, i), _)| wgsl::times(i, &wgsl::dim(&s.ceil_div(unit))));
        let offset = wgsl::dim(&self.offset.ceil_div(unit));
        wgsl::sum(std::iter::once(offset).chain(terms))
    }

    /// The flat element index of the first element of row `row` (a WGSL
    /// expression), divided by `unit`.
    pub fn row_address(&self, row: &str, unit: u64) -> String {
        let leading = self.shape.len().saturating_sub(1);
        // Adjacent axes that lie densely one inside the other are one axis.
        let mut merged: Vec<(Dim, Dim)> = Vec::new();
        for (n, s) in self.shape.iter().zip(&self.strides).take(leading) {
            match merged.last_mut() {
                _ if n.is_one() => {}
                Some((size, stride)) if *stride == n * s => {
                    *size = &*size * n;
                    *stride = s.clone();
                }
                _ => merged.push((n.clone(), s.clone())),
            }
        }
        let sizes: Vec<Dim> = merged.iter().map(|(n, _)| n.clone()).collect();
        let index = unflatten(row, &sizes);
        let terms = merged
            .iter()
            .zip(&index)
            .map(|((_, s), i)| wgsl::times(i, &wgsl::dim(&s.ceil_div(unit))));
        let offset = wgsl::dim(&self.offset.ceil_div(unit));
        wgsl::sum(std::iter::once(offset).chain(terms))
    }
}

/// Whether every value of the dimension is certainly a multiple of `n`.
pub(crate) fn is_multiple(dim: &Dim, n: u64) -> bool {
    dim.terms().all(|(_, c)| c.unsigned_abs() % n == 0)
}

/// The multi-index of a flat row-major index over axes of these sizes, as WGSL
/// expressions.
pub(crate) fn unflatten(flat: &str, sizes: &[Dim]) -> Vec<String> {
    let mut out = Vec::with_capacity(sizes.len());
    for i in 0..sizes.len() {
        if sizes[i].is_one() {
            out.push("0u".to_owned());
            continue;
        }
        let inner = Dim::product(&sizes[i + 1..]);
        let outer = Dim::product(&sizes[..i]);
        let mut text = flat.to_owned();
        if !inner.is_one() {
            text = format!("{text} / {}", wgsl::dim(&inner));
        }
        if !outer.is_one() {
            text = format!("{text} % {}", wgsl::dim(&sizes[i]));
        }
        out.push(if text == flat {
            text
        } else {
            format!("({text})")
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &[&str]) -> Vec<Dim> {
        text.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn a_slice_of_the_last_axis_is_a_view() {
        let qkv = View::contiguous(Base::Local(0), &dims(&["batch", "seq", "2304"]));
        let k = qkv
            .apply(&Op::Slice {
                axis: 2,
                start: 768.into(),
                end: 1536.into(),
            })
            .unwrap();
        assert!(k.is_vectorised());
        assert_eq!(k.row_address("row", 1), "768u + row * 2304u");
        assert_eq!(k.row_address("row", 4), "192u + row * 576u");
        assert!(
            k.apply(&Op::Reshape {
                shape: dims(&["batch*seq", "768"])
            })
            .is_none()
        );
    }

    #[test]
    fn the_last_position_is_a_view() {
        let x = View::contiguous(Base::Local(0), &dims(&["batch", "seq", "8"]));
        let last = x
            .apply(&Op::Slice {
                axis: 1,
                start: "seq - 1".parse().unwrap(),
                end: "seq".into(),
            })
            .unwrap();
        let flat = last
            .apply(&Op::Reshape {
                shape: dims(&["batch", "8"]),
            })
            .unwrap();
        let wanted = "(sym.seq * 8u - 8u) + row * (sym.seq * 8u)";
        assert_eq!(last.row_address("row", 1), wanted);
        assert_eq!(flat.row_address("row", 1), wanted);
    }

    #[test]
    fn a_transpose_keeps_the_buffer() {
        let x = View::contiguous(Base::Local(0), &dims(&["batch", "seq", "4", "8"]));
        let t = x
            .apply(&Op::Transpose {
                perm: vec![0, 2, 1, 3],
            })
            .unwrap();
        assert_eq!(t.strides, dims(&["seq*32", "8", "32", "1"]));
        assert!(
            t.apply(&Op::Reshape {
                shape: dims(&["batch", "seq*4", "8"])
            })
            .is_none()
        );
        let index: Vec<String> = ["b", "h", "i", "d"].map(String::from).to_vec();
        assert_eq!(
            t.address(&index, 1),
            "b * (sym.seq * 32u) + h * 8u + i * 32u + d"
        );
    }
}
