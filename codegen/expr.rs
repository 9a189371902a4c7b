//! Printing of values that are evaluated where they are used.
//!
//! A value that lies in a buffer is a load; any other is an expression over its
//! operands. An expression is printed either for one element or, where loads of
//! four lie side by side, for four elements of the last axis at a time.

use kiln_ir::plan::Access;
use kiln_ir::{BinaryOp, DType, Dim, Graph, Op, ValueId};

use crate::elementwise::{activation, binary, unary};
use crate::error::CodegenError;
use crate::kernel::{Draft, Element};
use crate::place::Placement;
use crate::table::load_rows;
use crate::view::{Base, View, unflatten};
use crate::weights::{Matrix, MatrixPart, Weights, vector_operands};
use crate::wgsl;

/// A place in a tensor: one WGSL expression an axis, and perhaps the flat index
/// of all axes but the last, which makes for cheaper addresses.
#[derive(Clone, Debug)]
pub(crate) struct At {
    pub index: Vec<String>,
    /// The flat index, and the sizes that it runs over.
    pub row: Option<(String, Vec<Dim>)>,
}

impl At {
    /// Element `last` of row `row` of a tensor of this shape.
    pub fn row(row: &str, last: &str, shape: &[Dim]) -> Self {
        let leading = &shape[..shape.len().saturating_sub(1)];
        let mut index = unflatten(row, leading);
        if !shape.is_empty() {
            index.push(last.to_owned());
        }
        At {
            index,
            row: Some((row.to_owned(), leading.to_vec())),
        }
    }

    /// Element `flat`, counted row-major, of a tensor of this shape.
    pub fn flat(flat: &str, shape: &[Dim]) -> Self {
        At {
            index: unflatten(flat, shape),
            row: None,
        }
    }

    fn of(index: Vec<String>) -> Self {
        At { index, row: None }
    }

    fn last(&self) -> &str {
        self.index.last().map_or("0u", String::as_str)
    }
}

/// What expressions are printed from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub graph: &'a Graph,
    pub placement: &'a Placement,
    pub weights: &'a Weights,
    /// Of a table in more parts than a kernel can bind: the first of those that
    /// this one reads, and the one behind the last.
    pub table_parts: Option<(usize, usize)>,
}

impl<'a> Source<'a> {
    pub fn unsupported(&self, id: ValueId, reason: &str) -> CodegenError {
        let value = self.graph.value(id);
        CodegenError::Unsupported {
            value: id.to_string(),
            op: value.op.name(),
            source_name: value.source.clone(),
            reason: reason.to_owned(),
        }
    }

    pub fn view(&self, id: ValueId) -> Option<&'a View> {
        self.placement.views.get(id.index())?.as_ref()
    }

    pub fn shape(&self, id: ValueId) -> &'a [Dim] {
        &self.graph.ty(id).shape
    }

    /// The address of an element of a view: an index in units of `unit`
    /// elements, as `at`'s last one is.
    fn address(&self, view: &View, at: &At, unit: u64) -> String {
        let leading = view.shape.len().saturating_sub(1);
        match &at.row {
            Some((row, sizes)) if *sizes == view.shape[..leading] => {
                wgsl::sum([view.row_address(row, unit), view.column(at.last(), unit)])
            }
            _ => view.address(&at.index, unit),
        }
    }

    /// Where `id`, whose user takes it broadcast to the shape of `at`, is read.
    pub fn broadcast(&self, id: ValueId, at: &At, shape: &[Dim]) -> At {
        let own = self.shape(id);
        if own == shape {
            return at.clone();
        }
        let skip = at.index.len() - own.len().min(at.index.len());
        let index = at.index.iter().skip(skip).zip(own);
        At::of(
            index
                .map(|(i, n)| {
                    if n.is_one() {
                        "0u".to_owned()
                    } else {
                        i.clone()
                    }
                })
                .collect(),
        )
    }

    // One element

    /// An expression for one element of `id`.
    pub fn scalar(&self, id: ValueId, at: &At, k: &mut Draft) -> Result<String, CodegenError> {
        let value = self.graph.value(id);
        if let Some(view) = self.view(id) {
            let address = self.address(view, at, 1);
            return Ok(load(view.base, value.ty.dtype, &address, k));
        }
        let operand = |i: usize| value.inputs.get(i).copied();
        let first = operand(0);
        match (&value.op, first) {
            (Op::Const(scalar), _) => Ok(wgsl::literal(*scalar)),
            (Op::Arange { start, .. }, _) => {
                let index = at.last();
                Ok(if *start == Dim::default() {
                    format!("i32({index})")
                } else {
                    format!("i32({} + {index})", wgsl::dim(start))
                })
            }
            (Op::Param { name, ty }, _) if ty.rank() <= 1 => {
                let (buffer, offset) = self.vector(id, std::slice::from_ref(name), 0)?;
                let name = k.read("vectors", buffer, Element::F32);
                Ok(format!(
                    "{name}[{}]",
                    wgsl::sum([format!("{offset}u"), at.last().to_owned()])
                ))
            }
            (Op::Param { name, .. }, _) => {
                let row = flatten(&at.index[..at.index.len() - 1], self.shape(id));
                let last = at.last().to_owned();
                let load = self.matrix(id, name, &row, &format!("{last} / 4u"), k)?;
                Ok(format!("{load}[{last} % 4u]"))
            }
            (Op::Unary(op), Some(x)) => {
                let x = self.scalar(x, at, k)?;
                Ok(unary(*op, &x, "", k))
            }
            (Op::Activate(a), Some(x)) => {
                let x = self.scalar(x, at, k)?;
                Ok(format!("{}({x})", k.function(activation(*a, false))))
            }
            (Op::Binary(op), Some(a)) => {
                let b = operand(1).unwrap_or(a);
                let shape = &value.ty.shape;
                let ty = self.graph.ty(a).dtype;
                let a = self.scalar(a, &self.broadcast(a, at, shape), k)?;
                let b = self.scalar(b, &self.broadcast(b, at, shape), k)?;
                if *op == BinaryOp::Pow && ty != DType::F32 {
                    return Err(self.unsupported(id, "powers are of real numbers only"));
                }
                Ok(binary(*op, &a, &b, k))
            }
            (Op::Where, Some(c)) => {
                let shape = &value.ty.shape;
                let mut part = |x: Option<ValueId>| match x {
                    Some(x) => self.scalar(x, &self.broadcast(x, at, shape), k),
                    None => Err(self.unsupported(id, "an operand is missing")),
                };
                let c = part(Some(c))?;
                let (a, b) = (part(operand(1))?, part(operand(2))?);
                Ok(format!("select({b}, {a}, {c})"))
            }
            (Op::Cast(to), Some(x)) => {
                let from = self.graph.ty(x).dtype;
                let x = self.scalar(x, at, k)?;
                Ok(match (from, to) {
                    (a, b) if a == *b => x,
                    (_, DType::F32) => format!("f32({x})"),
                    (_, DType::I32) => format!("i32({x})"),
                    (_, DType::Bool) => format!("bool({x})"),
                })
            }
            (Op::Gather, Some(table)) => {
                let Some(ids) = operand(1) else {
                    return Err(self.unsupported(id, "it has no ids"));
                };
                let row = self.gathered_row(id, table, ids, at, k)?;
                let of_ids = self.shape(ids).len();
                let mut index = vec![row];
                index.extend(at.index.iter().skip(of_ids).cloned());
                self.scalar(table, &At::of(index), k)
            }
            (Op::Concat { axis }, Some(_)) => self.concat(id, *axis, at, k),
            (Op::Table(values), _) => Ok(table(values, at.last(), k)),
            (Op::Rotary, Some(_)) => self.rotary(id, at, false, k),
            (_, Some(x)) => match self.moved(id, at) {
                Some(inner) => self.scalar(x, &inner, k),
                None => Err(self.unsupported(id, "no kernel evaluates it in place")),
            },
            (_, None) => Err(self.unsupported(id, "no kernel evaluates it in place")),
        }
    }

    /// Where a movement op's operand is read for an element of its result.
    fn moved(&self, id: ValueId, at: &At) -> Option<At> {
        let value = self.graph.value(id);
        let x = *value.inputs.first()?;
        let from = self.shape(x);
        match &value.op {
            Op::Reshape { shape } => {
                let flat = flatten(&at.index, shape);
                Some(At::flat(&flat, from))
            }
            Op::Transpose { perm } => {
                let mut index = vec!["0u".to_owned(); perm.len()];
                for (i, p) in perm.iter().enumerate() {
                    *index.get_mut(*p)? = at.index.get(i)?.clone();
                }
                Some(At::of(index))
            }
            Op::Broadcast { shape } => Some(self.broadcast(x, at, shape)),
            Op::Slice { axis, start, .. } => {
                let mut index = at.index.clone();
                let place = index.get_mut(*axis)?;
                *place = format!("({})", wgsl::sum([wgsl::dim(start), place.clone()]));
                Some(At::of(index))
            }
            _ => None,
        }
    }

    fn gathered_row(
        &self,
        id: ValueId,
        table: ValueId,
        ids: ValueId,
        at: &At,
        k: &mut Draft,
    ) -> Result<String, CodegenError> {
        let rank = self.shape(ids).len();
        // The ids as a plain list, where they lie so: their row is their index.
        let listed = self
            .view(ids)
            .filter(|v| **v == View::contiguous(v.base, &v.shape));
        let index = match (&at.row, listed) {
            (Some((row, sizes)), Some(view)) if *sizes == *self.shape(ids) => {
                load(view.base, self.graph.ty(ids).dtype, row, k)
            }
            _ => self.scalar(ids, &At::of(at.index[..rank].to_vec()), k)?,
        };
        let Some(rows) = self.shape(table).first() else {
            return Err(self.unsupported(id, "its table has no axis"));
        };
        Ok(format!(
            "min(u32(max({index}, 0i)), {} - 1u)",
            wgsl::dim(rows)
        ))
    }

    fn concat(
        &self,
        id: ValueId,
        axis: usize,
        at: &At,
        k: &mut Draft,
    ) -> Result<String, CodegenError> {
        let value = self.graph.value(id);
        let rank = value.ty.rank();
        let names: Vec<String> = (0..rank).map(|i| format!("i{i}")).collect();
        let mut text = String::new();
        let mut start = Dim::default();
        for (n, part) in value.inputs.iter().enumerate() {
            let mut index = names.clone();
            if start != Dim::default() {
                index[axis] = format!("({} - {})", names[axis], wgsl::dim(&start));
            }
            let body = self.scalar(*part, &At::of(index), k)?;
            start = &start + &self.shape(*part)[axis];
            text.push_str(&if n + 1 == value.inputs.len() {
                format!("    return {body};\n")
            } else {
                let end = wgsl::dim(&start);
                format!(
                    "    if {} < {end} {{\n        return {body};\n    }}\n",
                    names[axis]
                )
            });
        }
        let ty = match value.ty.dtype {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::Bool => "bool",
        };
        let args: Vec<String> = names.iter().map(|n| format!("{n}: u32")).collect();
        let name = format!("concat_{}", k.next_function());
        k.hook(format!(
            "fn {name}({}) -> {ty} {{\n{text}}}\n",
            args.join(", ")
        ));
        Ok(format!("{name}({})", at.index.join(", ")))
    }

    /// A call of a function that turns elements of heads; see [`Op::Rotary`].
    fn rotary(
        &self,
        id: ValueId,
        at: &At,
        four: bool,
        k: &mut Draft,
    ) -> Result<String, CodegenError> {
        let value = self.graph.value(id);
        let [x, cos, sin] = value.inputs.as_slice() else {
            return Err(self.unsupported(id, "it takes three operands"));
        };
        let Some(half) = self.graph.ty(*cos).last().as_const() else {
            return Err(self.unsupported(id, "its heads have no constant width"));
        };
        let half = if four { half / 4 } else { half };
        let rank = value.ty.rank();
        let names: Vec<String> = (0..rank).map(|i| format!("i{i}")).collect();
        let last = &names[rank - 1];
        // `row` too, where it is known: it makes for cheaper addresses.
        let place = |last: &str| {
            let mut place = At::of(names.clone());
            place.index[rank - 1] = last.to_owned();
            place.row = at
                .row
                .as_ref()
                .map(|(_, sizes)| ("row".to_owned(), sizes.clone()));
            place
        };
        let mut read = |id: ValueId, place: &At| match four {
            true => self.vector4(id, place, k),
            false => self.scalar(id, place, k),
        };
        let (own, other) = (read(*x, &place(last))?, read(*x, &place("other"))?);
        let angle = self.broadcast(*cos, &place("angle"), &value.ty.shape);
        let (cos, sin) = (read(*cos, &angle)?, read(*sin, &angle)?);
        let ty = if four { "vec4<f32>" } else { "f32" };
        let whole = 2 * half;
        let name = format!("rotary_{}", k.next_function());
        let mut parameters: Vec<String> = names.iter().map(|n| format!("{n}: u32")).collect();
        let mut arguments = at.index.clone();
        if let Some((row, _)) = &at.row {
            parameters.push("row: u32".to_owned());
            arguments.push(row.clone());
        }
        k.hook(format!(
            "fn {name}({}) -> {ty} {{\n    let in_second = {last} % {whole}u >= {half}u;\n    \
             let angle = {last} % {half}u;\n    \
             let other = select({last} + {half}u, {last} - {half}u, in_second);\n    \
             let across = {other};\n    \
             return {own} * {cos} + select(-across, across, in_second) * {sin};\n}}\n",
            parameters.join(", ")
        ));
        Ok(format!("{name}({})", arguments.join(", ")))
    }

    // Four elements

    /// Whether four elements of the last axis of `id`, which is `width` long or
    /// one, can be had at a time.
    pub fn is_vector(&self, id: ValueId, width: &Dim) -> bool {
        let value = self.graph.value(id);
        if value.ty.dtype != DType::F32 || width.as_const().is_none_or(|w| w % 4 != 0) {
            return false;
        }
        let last = value.ty.last();
        if last.is_one() {
            return true;
        }
        if last != *width {
            return false;
        }
        if let Some(view) = self.view(id) {
            return view.is_vectorised();
        }
        let all = || value.inputs.iter().all(|x| self.is_vector(*x, width));
        match &value.op {
            Op::Param { .. } => true,
            Op::Unary(_) | Op::Activate(_) => all(),
            Op::Binary(op) => {
                use BinaryOp::{Add, Div, Max, Min, Mul, Sub};
                matches!(op, Add | Sub | Mul | Div | Max | Min) && all()
            }
            Op::Rotary => match value.inputs.as_slice() {
                [x, cos, sin] => {
                    let half = self.graph.ty(*cos).last();
                    self.is_vector(*x, width)
                        && self.is_vector(*cos, &half)
                        && self.is_vector(*sin, &half)
                }
                _ => false,
            },
            Op::Gather => value
                .inputs
                .first()
                .is_some_and(|table| self.shape(*table).len() > 1 && self.is_vector(*table, width)),
            Op::Broadcast { .. } => all(),
            Op::Reshape { .. } => {
                all()
                    && value
                        .inputs
                        .iter()
                        .all(|x| self.graph.ty(*x).last() == *width)
            }
            Op::Transpose { perm } => perm.last() == Some(&(perm.len() - 1)) && all(),
            Op::Slice { axis, .. } => *axis + 1 < value.ty.rank() && all(),
            _ => false,
        }
    }

    /// An expression for elements `4 * last .. 4 * last + 3` of a row of `id`,
    /// where `last` is the last of `at` and [`Source::is_vector`] holds.
    pub fn vector4(&self, id: ValueId, at: &At, k: &mut Draft) -> Result<String, CodegenError> {
        let value = self.graph.value(id);
        if value.ty.last().is_one() {
            let mut one = at.clone();
            if let Some(last) = one.index.last_mut() {
                *last = "0u".to_owned();
            }
            return Ok(format!("vec4<f32>({})", self.scalar(id, &one, k)?));
        }
        if let Some(view) = self.view(id) {
            let address = self.address(view, at, 4);
            let name = k.read(role(view.base), view.base, Element::F32x4);
            return Ok(format!("{name}[{address}]"));
        }
        let first = value.inputs.first().copied();
        match (&value.op, first) {
            (Op::Param { name, ty }, _) if ty.rank() <= 1 => {
                let (buffer, offset) = self.vector(id, std::slice::from_ref(name), 0)?;
                let name = k.read("vectors", buffer, Element::F32x4);
                let at = wgsl::sum([format!("{}u", offset / 4), at.last().to_owned()]);
                Ok(format!("{name}[{at}]"))
            }
            (Op::Param { name, .. }, _) => {
                let row = flatten(&at.index[..at.index.len() - 1], self.shape(id));
                self.matrix(id, name, &row, at.last(), k)
            }
            (Op::Unary(op), Some(x)) => {
                let x = self.vector4(x, at, k)?;
                Ok(unary(*op, &x, "4", k))
            }
            (Op::Activate(a), Some(x)) => {
                let x = self.vector4(x, at, k)?;
                Ok(format!("{}({x})", k.function(activation(*a, true))))
            }
            (Op::Binary(op), Some(a)) => {
                let b = value.inputs.get(1).copied().unwrap_or(a);
                let shape = &value.ty.shape;
                let a = self.vector4(a, &self.broadcast(a, at, shape), k)?;
                let b = self.vector4(b, &self.broadcast(b, at, shape), k)?;
                Ok(binary(*op, &a, &b, k))
            }
            (Op::Gather, Some(table)) => {
                let Some(ids) = value.inputs.get(1).copied() else {
                    return Err(self.unsupported(id, "it has no ids"));
                };
                let row = self.gathered_row(id, table, ids, at, k)?;
                let mut index = vec![row];
                index.extend(at.index.iter().skip(self.shape(ids).len()).cloned());
                self.vector4(table, &At::of(index), k)
            }
            (Op::Rotary, Some(_)) => self.rotary(id, at, true, k),
            (_, Some(x)) => {
                let inner = match &value.op {
                    // Only the leading axes are regrouped; the last keeps its unit.
                    Op::Reshape { shape } => {
                        let lead = at.index.len() - 1;
                        let flat = flatten(&at.index[..lead], &shape[..lead]);
                        At::row(&flat, at.last(), self.shape(x))
                    }
                    _ => match self.moved(id, at) {
                        Some(inner) => inner,
                        None => return Err(self.unsupported(id, "it is not read in fours")),
                    },
                };
                self.vector4(x, &inner, k)
            }
            (_, None) => Err(self.unsupported(id, "it is not read in fours")),
        }
    }

    // Parameters

    /// The buffer and the offset in elements of the parameter of one axis that
    /// stands at `position` among `names`, which `id`'s op takes together.
    pub fn vector(
        &self,
        id: ValueId,
        names: &[String],
        position: usize,
    ) -> Result<(Base, u64), CodegenError> {
        let found = self.weights.vectors(names);
        let found = found.and_then(|v| Some((v.buffer, *v.offsets.get(position)?)));
        let (buffer, offset) =
            found.ok_or_else(|| self.unsupported(id, "a parameter has no place"))?;
        Ok((Base::Weight(buffer), offset))
    }

    /// Of the parameters of one axis that `user` takes: the buffer and offset of
    /// its operand `x`, if it is one of them.
    pub fn vector_of(&self, user: ValueId, x: ValueId) -> Option<(Base, u64)> {
        let Op::Param { name, ty } = &self.graph.value(x).op else {
            return None;
        };
        if ty.rank() > 1 {
            return None;
        }
        let names = vector_operands(self.graph, user);
        let position = names.iter().position(|n| n == name)?;
        self.vector(user, &names, position).ok()
    }

    /// Four consecutive weights of a row of a packed matrix.
    fn matrix(
        &self,
        id: ValueId,
        name: &str,
        row: &str,
        k4: &str,
        kernel: &mut Draft,
    ) -> Result<String, CodegenError> {
        let Some(matrix) = self.weights.matrix(name) else {
            return Err(self.unsupported(id, "the parameter has no place"));
        };
        let loader = load_rows(matrix, self.parts(matrix), kernel)?;
        Ok(format!("{loader}({row}, {k4})"))
    }

    /// The parts of a matrix that are read.
    fn parts<'m>(&self, matrix: &'m Matrix) -> &'m [MatrixPart] {
        let read = self.table_parts.and_then(|(a, b)| matrix.parts.get(a..b));
        read.unwrap_or(&matrix.parts)
    }

    /// A condition on an element of `id`, rows gathered from a table of which only
    /// some parts are read: that it lies in one of those.
    pub fn lies_in_parts(
        &self,
        id: ValueId,
        at: &At,
        k: &mut Draft,
    ) -> Result<Option<String>, CodegenError> {
        let value = self.graph.value(id);
        let (Some(_), Op::Gather, [table, ids]) =
            (self.table_parts, &value.op, value.inputs.as_slice())
        else {
            return Ok(None);
        };
        let matrix = match &self.graph.value(*table).op {
            Op::Param { name, .. } => self.weights.matrix(name),
            _ => None,
        };
        let parts = matrix.map_or(&[][..], |matrix| self.parts(matrix));
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            return Ok(None);
        };
        let row = self.gathered_row(id, *table, *ids, at, k)?;
        let (start, end) = (first.first_row, last.first_row + last.rows);
        Ok(Some(format!("{row} >= {start}u && {row} < {end}u")))
    }
}

/// What a buffer is called in a kernel.
fn role(base: Base) -> &'static str {
    match base {
        Base::Weight(_) => "weights",
        Base::State(_) => "cache",
        Base::Local(_) => "x",
    }
}

/// An element of constants in a row.
fn table(values: &[f64], index: &str, k: &mut Draft) -> String {
    let list: Vec<String> = values.iter().map(|v| wgsl::float(*v)).collect();
    let name = format!("table_{}", k.next_function());
    // In a variable: not every compiler indexes a constant by what is none.
    k.hook(format!(
        "fn {name}(i: u32) -> f32 {{\n    var values = array<f32, {}>({});\n    \
         return values[i];\n}}\n",
        values.len(),
        list.join(", ")
    ));
    format!("{name}({index})")
}

/// A load of one element.
pub(crate) fn load(base: Base, dtype: DType, address: &str, k: &mut Draft) -> String {
    let (role, element) = match dtype {
        DType::F32 => (role(base), Element::F32),
        DType::I32 => ("ids", Element::I32),
        DType::Bool => ("flags", Element::U32),
    };
    let name = k.bind(role, base, element, Access::Read);
    match dtype {
        DType::Bool => format!("({name}[{address}] != 0u)"),
        _ => format!("{name}[{address}]"),
    }
}

/// The row-major flat index over axes of these sizes.
fn flatten(index: &[String], sizes: &[Dim]) -> String {
    let terms = index
        .iter()
        .enumerate()
        .filter(|(i, _)| !sizes[*i].is_one());
    let terms = terms.map(|(i, text)| {
        let inner = Dim::product(&sizes[i + 1..index.len()]);
        wgsl::times(text, &wgsl::dim(&inner))
    });
    let terms: Vec<String> = terms.collect();
    match terms.len() {
        1 => terms[0].clone(),
        _ => format!("({})", wgsl::sum(terms)),
    }
}
