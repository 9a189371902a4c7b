//! Kernels for everything that has no kernel of its own: elementwise groups,
//! reductions, softmax and products of any two tensors.

use kiln_ir::{DType, Dim, Op, ReduceOp, ValueId};

use crate::error::CodegenError;
use crate::expr::{At, Source};
use crate::images::DEFAULT_IMAGES;
use crate::kernel::{Draft, Element, Launch};
use crate::place::{Part, describe};
use crate::tier::Tier;
use crate::view::View;
use crate::wgsl;

/// Computes or copies `id` into `output`, element by element, by workgroups of so
/// many invocations.
pub(crate) fn pointwise(
    source: Source<'_>,
    workgroup: u32,
    id: ValueId,
    output: &View,
) -> Result<Launch, CodegenError> {
    let whole = Part {
        start: 0,
        end: source.graph.ty(id).last().as_const().unwrap_or(0),
        view: output.clone(),
    };
    pointwise_parts(source, workgroup, id, std::slice::from_ref(&whole))
}

/// The most buffers of a table that a kernel reads, where they may be images.
const TABLE_BUFFERS: usize = DEFAULT_IMAGES;

/// Computes `id` into `output`: by one launch, but for rows gathered from a table
/// in more parts than a kernel can bind. There each launch has some of the parts,
/// and leaves alone what lies in others.
pub(crate) fn gathered(
    source: Source<'_>,
    workgroup: u32,
    id: ValueId,
    output: &View,
) -> Result<Vec<Launch>, CodegenError> {
    let value = source.graph.value(id);
    let table = match (&value.op, value.inputs.first()) {
        // Not yet gathered into a buffer, of which this would be a copy.
        (Op::Gather, Some(table)) if source.view(id).is_none() => {
            Some(&source.graph.value(*table).op)
        }
        _ => None,
    };
    let matrix = match table {
        Some(Op::Param { name, .. }) => source.weights.matrix(name),
        _ => None,
    };
    let (parts, scaled) = matrix.map_or((0, false), |matrix| {
        (matrix.parts.len(), matrix.packing.has_scales())
    });
    let at_a_time = if scaled {
        TABLE_BUFFERS / 2
    } else {
        TABLE_BUFFERS
    };
    if parts <= at_a_time {
        return Ok(vec![pointwise(source, workgroup, id, output)?]);
    }
    let firsts = (0..parts).step_by(at_a_time);
    let launches = firsts.map(|first| {
        let some = Source {
            table_parts: Some((first, parts.min(first + at_a_time))),
            ..source
        };
        pointwise(some, workgroup, id, output)
    });
    launches.collect()
}

/// Computes `id` element by element, each range of its last axis into a place of
/// its own.
pub(crate) fn pointwise_parts(
    source: Source<'_>,
    workgroup: u32,
    id: ValueId,
    outputs: &[Part],
) -> Result<Launch, CodegenError> {
    let ty = source.graph.ty(id);
    let label = describe(source.graph, id);
    let detail = source.graph.value(id).op.name().to_owned();
    let mut d = Draft::new("pointwise", detail, workgroup);
    d.constant_u32("WORKGROUP", workgroup);
    let four = source.is_vector(id, &ty.last())
        && ty.last().as_const().is_some_and(|n| n.is_multiple_of(4))
        && outputs.iter().all(Part::is_vectorised);
    let count = if four {
        ty.elements().ceil_div(4)
    } else {
        ty.elements()
    };
    d.hook(format!(
        "fn count() -> u32 {{\n    return {};\n}}\n",
        wgsl::dim(&count)
    ));
    let rank = ty.rank();
    let width = ty.last();
    let unit = if four { 4 } else { 1 };
    let columns = wgsl::dim(&width.ceil_div(unit));
    let (row, last) = match rank {
        0 => ("0u".to_owned(), "0u".to_owned()),
        1 => ("0u".to_owned(), "index".to_owned()),
        _ => (format!("index / {columns}"), format!("index % {columns}")),
    };
    let at = match rank {
        0 => At::flat("index", &[]),
        _ => At::row("row", "last", &ty.shape),
    };
    let value = match four {
        true => source.vector4(id, &at, &mut d)?,
        false => source.scalar(id, &at, &mut d)?,
    };
    let (element, value) = match (four, ty.dtype) {
        (true, _) => (Element::F32x4, value),
        (false, DType::F32) => (Element::F32, value),
        (false, DType::I32) => (Element::I32, value),
        (false, DType::Bool) => (Element::U32, format!("select(0u, 1u, {value})")),
    };
    let mut write = match outputs {
        [Part { view, .. }] => {
            let y = d.write("y", view.base, element);
            let address = match rank {
                0 => wgsl::dim(&view.offset),
                _ => wgsl::sum([view.row_address("row", unit), view.column("last", unit)]),
            };
            format!("    {y}[{address}] = {value};\n")
        }
        parts => {
            let writes = d.write_parts(parts, unit);
            format!("    let column = last * {unit}u;\n    let v = {value};\n{writes}")
        }
    };
    if let Some(condition) = source.lies_in_parts(id, &at, &mut d)? {
        write = format!("    if {condition} {{\n    {write}    }}\n");
    }
    d.hook(format!(
        "fn compute(index: u32) {{\n    let row = {row};\n    let last = {last};\n{write}}}\n"
    ));
    let bytes = &ty.elements() * &Dim::constant(8);
    Ok(Launch {
        label,
        kernel: d,
        workgroups: count.ceil_div(u64::from(workgroup)),
        flops: ty.elements(),
        bytes,
        others: Vec::new(),
    })
}

/// A position of all axes but `axis`, and the place of element `j` there.
struct Along {
    count: Dim,
    extent: Dim,
    at: At,
}

fn along(shape: &[Dim], axis: usize) -> Along {
    let mut others = shape.to_vec();
    let extent = others.get(axis).cloned().unwrap_or_else(|| 1.into());
    if let Some(n) = others.get_mut(axis) {
        *n = 1.into();
    }
    let mut at = At::flat("i", &others);
    if let Some(index) = at.index.get_mut(axis) {
        *index = "j".to_owned();
    }
    Along {
        count: Dim::product(&others),
        extent,
        at,
    }
}

fn output(source: Source<'_>, id: ValueId) -> Result<View, CodegenError> {
    let view = source.view(id).cloned();
    view.ok_or_else(|| source.unsupported(id, "its result has no place"))
}

fn common(d: &mut Draft, workgroup: u32, along: &Along) {
    d.constant_u32("WORKGROUP", workgroup);
    for (name, size) in [("count", &along.count), ("extent", &along.extent)] {
        d.hook(format!(
            "fn {name}() -> u32 {{\n    return {};\n}}\n",
            wgsl::dim(size)
        ));
    }
}

/// A softmax or a reduction along an axis.
pub(crate) fn along_axis(
    source: Source<'_>,
    tier: Tier,
    id: ValueId,
) -> Result<Launch, CodegenError> {
    let value = source.graph.value(id);
    let Some(x) = value.inputs.first().copied() else {
        return Err(source.unsupported(id, "it has no operand"));
    };
    if source.graph.ty(x).dtype != DType::F32 {
        return Err(source.unsupported(id, "only real numbers are reduced"));
    }
    let shape = source.shape(x);
    let (axis, reduce) = match &value.op {
        Op::Softmax { axis } => (*axis, None),
        Op::Reduce { op, axis } => (*axis, Some(*op)),
        _ => return Err(source.unsupported(id, "it is no reduction")),
    };
    let place = along(shape, axis);
    let long = !tier.is_cpu();
    let workgroup = tier.pointwise_workgroup();
    let body = match (reduce, long) {
        (Some(_), true) => "reduce_workgroup",
        (Some(_), false) => "reduce",
        (None, true) => "softmax_workgroup",
        (None, false) => "softmax",
    };
    let detail = reduce
        .map_or("", ReduceOp::word)
        .trim_start_matches("reduce_");
    let mut d = Draft::new(body, detail.to_owned(), workgroup);
    common(&mut d, workgroup, &place);
    let loaded = source.scalar(x, &place.at, &mut d)?;
    d.hook(format!(
        "fn load(i: u32, j: u32) -> f32 {{\n    return {loaded};\n}}\n"
    ));
    let out = output(source, id)?;
    let y = d.write("y", out.base, Element::F32);
    match reduce {
        None => {
            let address = out.address(&place.at.index, 1);
            d.hook(format!(
                "fn store(i: u32, j: u32, v: f32) {{\n    {y}[{address}] = v;\n}}\n"
            ));
        }
        Some(op) => {
            let combined = match op {
                ReduceOp::Max => "max(a, b)",
                ReduceOp::Sum | ReduceOp::Mean => "a + b",
            };
            d.hook(format!(
                "fn combine(a: f32, b: f32) -> f32 {{\n    return {combined};\n}}\n"
            ));
            let identity = if op == ReduceOp::Max {
                f64::from(f32::MIN)
            } else {
                0.0
            };
            d.constant_f32("IDENTITY", identity);
            let mut index = place.at.index.clone();
            if let Some(i) = index.get_mut(axis) {
                *i = "0u".to_owned();
            }
            let address = out.address(&index, 1);
            let v = if op == ReduceOp::Mean {
                "v / f32(extent())"
            } else {
                "v"
            };
            d.hook(format!(
                "fn store(i: u32, v: f32) {{\n    {y}[{address}] = {v};\n}}\n"
            ));
        }
    }
    let elements = Dim::product(shape);
    let workgroups = match long {
        true => place.count,
        false => place.count.ceil_div(u64::from(workgroup)),
    };
    Ok(Launch {
        label: describe(source.graph, id),
        kernel: d,
        workgroups,
        flops: &elements * &Dim::constant(4),
        bytes: &elements * &Dim::constant(8),
        others: Vec::new(),
    })
}

/// A product of any two tensors.
pub(crate) fn matmul(source: Source<'_>, tier: Tier, id: ValueId) -> Result<Launch, CodegenError> {
    let value = source.graph.value(id);
    let [a, b] = value.inputs.as_slice() else {
        return Err(source.unsupported(id, "it takes two operands"));
    };
    let shape = &value.ty.shape;
    let rank = shape.len();
    let Some(inner) = source.shape(*a).last().cloned() else {
        return Err(source.unsupported(id, "its operands have no axes"));
    };
    let workgroup = tier.pointwise_workgroup();
    let mut d = Draft::new("matmul", String::new(), workgroup);
    d.constant_u32("WORKGROUP", workgroup);
    let count = Dim::product(shape);
    for (name, size) in [("count", &count), ("inner", &inner)] {
        d.hook(format!(
            "fn {name}() -> u32 {{\n    return {};\n}}\n",
            wgsl::dim(size)
        ));
    }
    let whole = At::flat("i", shape).index;
    for (name, x, replaced) in [("load_a", *a, rank - 1), ("load_b", *b, rank - 2)] {
        let mut index = whole.clone();
        index[replaced] = "k".to_owned();
        let own = source.shape(x);
        let index = index.iter().skip(rank - own.len()).zip(own);
        let index = index.map(|(i, n)| {
            if n.is_one() {
                "0u".to_owned()
            } else {
                i.clone()
            }
        });
        let at = At {
            index: index.collect(),
            row: None,
        };
        let loaded = source.scalar(x, &at, &mut d)?;
        d.hook(format!(
            "fn {name}(i: u32, k: u32) -> f32 {{\n    return {loaded};\n}}\n"
        ));
    }
    let out = output(source, id)?;
    let y = d.write("y", out.base, Element::F32);
    let address = out.address(&whole, 1);
    d.hook(format!(
        "fn store(i: u32, v: f32) {{\n    {y}[{address}] = v;\n}}\n"
    ));
    Ok(Launch {
        label: describe(source.graph, id),
        kernel: d,
        workgroups: count.ceil_div(u64::from(workgroup)),
        flops: &(&count * &inner) * &Dim::constant(2),
        bytes: &count * &Dim::constant(12),
        others: Vec::new(),
    })
}
