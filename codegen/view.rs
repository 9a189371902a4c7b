//! Where a tensor's elements lie in a buffer.
//!
//! A [`View`] is an affine map from a multi-index to a flat element index, but for
//! [`Panels`]. Slices, transposes and reshapes of something that lies in a buffer are
//! views of the same buffer: they cost no launch and no copy.

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

/// A last axis in pieces that are each dense, but do not follow each other: index i lies at
/// `i / width * stride + i % width`. So the heads of an attention's keys have all keys of a
/// head one behind the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Panels {
    /// Elements of a panel.
    pub width: u64,
    /// From the start of one to that of the next, in elements.
    pub stride: Dim,
}

/// A map from a multi-index to a flat element index of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub base: Base,
    pub offset: Dim,
    pub shape: Vec<Dim>,
    /// In elements, one for each axis; 1 for the last where that is in panels.
    pub strides: Vec<Dim>,
    /// The panels of the last axis, if it is no row as it stands.
    pub panels: Option<Panels>,
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
            panels: None,
        }
    }

    /// A tensor that fills `base`, whose rows, at least along one axis, are in panels: the axes
    /// before the rows lie row-major, and within them all rows of a panel come before those of
    /// the next.
    pub fn in_panels(base: Base, shape: &[Dim], width: u64) -> Self {
        let mut view = View::contiguous(base, shape);
        if let [.., rows, _] = shape {
            let axis = shape.len() - 2;
            view.strides[axis] = width.into();
            let stride = rows * &Dim::constant(width);
            view.panels = Some(Panels { width, stride });
        }
        view
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
        let last = self.shape.len().saturating_sub(1);
        match op {
            // With panels there is none but of other rows.
            op if self.panels.is_some()
                && !matches!(op, Op::Slice { axis, .. } if *axis != last) =>
            {
                None
            }
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
            Op::Reshape { shape } => self.split_axes(shape),
            _ => None,
        }
    }

    /// A reshape that only splits axes of constant sizes, and adds or drops some of size
    /// one.
    fn split_axes(&self, shape: &[Dim]) -> Option<View> {
        let mut strides = vec![Dim::constant(1); shape.len()];
        let mut new = (0..shape.len()).filter(|i| !shape[*i].is_one());
        let axes = self.shape.iter().zip(&self.strides);
        for (size, stride) in axes.filter(|(size, _)| !size.is_one()) {
            // What the axis is split into, outermost first.
            let mut parts = vec![new.next()?];
            while Dim::product(parts.iter().map(|i| &shape[*i])) != *size {
                let all = size.as_const()?;
                let so_far = Dim::product(parts.iter().map(|i| &shape[*i])).as_const()?;
                if so_far == 0 || !all.is_multiple_of(so_far) {
                    return None;
                }
                parts.push(new.next()?);
            }
            let mut inner = stride.clone();
            for i in parts.into_iter().rev() {
                strides[i] = inner.clone();
                inner = &inner * &shape[i];
            }
        }
        new.next().is_none().then(|| View {
            base: self.base,
            offset: self.offset.clone(),
            shape: shape.to_vec(),
            strides,
            panels: None,
        })
    }

    /// Whether it has the rows that `other` has, in their order, where symbols have
    /// these values.
    pub fn has_rows_of(&self, other: &View, values: &Bindings) -> bool {
        if self.base != other.base {
            return false;
        }
        let (own, other) = (
            self.where_symbols_are(values),
            other.where_symbols_are(values),
        );
        let one_row = own.rows().is_one() && other.rows().is_one();
        let row = |v: &View| (v.offset.clone(), v.shape.last().cloned());
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
            panels: self.panels.as_ref().map(|p| Panels {
                width: p.width,
                stride: at(&p.stride),
            }),
        }
    }

    /// The number of rows: the product of all axes but the last.
    pub fn rows(&self) -> Dim {
        let leading = self.shape.len().saturating_sub(1);
        Dim::product(&self.shape[..leading])
    }

    /// Whether the elements of a row lie next to each other.
    pub fn rows_are_dense(&self) -> bool {
        self.panels.is_none() && self.last_is_dense()
    }

    fn last_is_dense(&self) -> bool {
        match (self.shape.last(), self.strides.last()) {
            (Some(n), Some(s)) => n.is_one() || s.is_one(),
            _ => true,
        }
    }

    /// Whether every row starts at a multiple of four elements, and four
    /// consecutive elements of a row may be read as one vector.
    pub fn is_vectorised(&self) -> bool {
        let mut panels = self.panels.iter();
        let leading = self.shape.len().saturating_sub(1);
        let mut axes = self.shape.iter().zip(&self.strides).take(leading);
        self.last_is_dense()
            && panels.all(|p| p.width.is_multiple_of(4) && is_multiple(&p.stride, 4))
            && is_multiple(&self.offset, 4)
            // No address depends on the stride of an axis of one.
            && axes.all(|(n, s)| n.is_one() || is_multiple(s, 4))
    }

    /// The flat element index at a multi-index of WGSL expressions, one for
    /// each axis, divided by `unit`, which must divide offset and strides.
    pub fn address(&self, index: &[String], unit: u64) -> String {
        let last = self.shape.len().saturating_sub(1);
        let axes = self.strides.iter().zip(index).zip(&self.shape).enumerate();
        let terms = axes
            .filter(|(_, (_, n))| !n.is_one())
            .map(|(axis, ((s, i), _))| match axis == last {
                true => self.column(i, unit),
                false => wgsl::times(i, &wgsl::dim(&s.ceil_div(unit))),
            });
        let offset = wgsl::dim(&self.offset.ceil_div(unit));
        wgsl::sum(std::iter::once(offset).chain(terms))
    }

    /// What an index of the last axis adds to an address, both in units of `unit` elements,
    /// which must divide its stride, or the width and the stride of its panels. The index is
    /// a factor: a sum has to stand in parentheses.
    pub fn column(&self, index: &str, unit: u64) -> String {
        match &self.panels {
            None => {
                let stride = self.strides.last().map_or(1.into(), |s| s.ceil_div(unit));
                wgsl::times(index, &wgsl::dim(&stride))
            }
            Some(panels) => {
                let width = panels.width / unit;
                let panel = format!("{index} / {width}u");
                wgsl::sum([panels.address(&panel, unit), format!("{index} % {width}u")])
            }
        }
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

impl Panels {
    /// Where a panel starts, in units of `unit` elements.
    pub fn address(&self, panel: &str, unit: u64) -> String {
        wgsl::times(panel, &wgsl::dim(&self.stride.ceil_div(unit)))
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
        for shape in [
            dims(&["batch*seq", "768"]),
            dims(&["batch", "seq*12", "64"]),
            dims(&["batch", "seq", "10", "64"]),
            dims(&["batch", "seq", "12", "64", "2"]),
        ] {
            assert!(k.apply(&Op::Reshape { shape }).is_none());
        }
        let shape = dims(&["batch", "1", "seq", "12", "64"]);
        let heads = k.apply(&Op::Reshape { shape }).unwrap();
        assert_eq!(heads.strides, dims(&["seq*2304", "1", "2304", "64", "1"]));
        assert!(heads.is_vectorised());
        let index: Vec<String> = ["b", "o", "i", "h", "d"].map(String::from).to_vec();
        assert_eq!(
            heads.address(&index, 4),
            "192u + b * (sym.seq * 576u) + i * 576u + h * 16u + d"
        );
        assert_eq!(
            heads.row_address("row", 4),
            "192u + (row / 12u) * 576u + (row % 12u) * 16u"
        );
        // And one row of a head each, if the axis is split further.
        let shape = dims(&["batch", "seq", "12", "16", "4"]);
        let parts = k.apply(&Op::Reshape { shape }).unwrap();
        assert_eq!(parts.strides[2..], dims(&["64", "4", "1"]));
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

    #[test]
    fn panels_hold_all_rows_of_a_head() {
        let shape = dims(&["batch", "context", "48"]);
        let cache = View::in_panels(Base::State(0), &shape, 16);
        let index: Vec<String> = ["b", "j", "c"].map(String::from).to_vec();
        assert_eq!(
            cache.address(&index, 4),
            "b * (sym.context * 12u) + j * 4u + c / 4u * (sym.context * 4u) + c % 4u"
        );
        assert!(cache.is_vectorised() && !cache.rows_are_dense());
        let of_six = View::in_panels(Base::State(0), &shape, 6);
        assert!(!of_six.is_vectorised());

        let slice = |axis, start: &str, end: &str| Op::Slice {
            axis,
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        };
        let new = cache.apply(&slice(1, "past", "past+seq")).unwrap();
        assert_eq!(new.offset, "past*16".parse().unwrap());
        assert_eq!(
            new.row_address("row", 1),
            "(sym.past * 16u) + (row / sym.seq) * (sym.context * 48u) + (row % sym.seq) * 16u"
        );
        assert_eq!(new.panels, cache.panels);
        // What would not be panels, or panels of other rows.
        assert!(cache.apply(&slice(2, "0", "16")).is_none());
        let perm = vec![0, 2, 1];
        assert!(cache.apply(&Op::Transpose { perm }).is_none());
        let shape = dims(&["batch*context", "48"]);
        assert!(cache.apply(&Op::Reshape { shape }).is_none());
    }
}
