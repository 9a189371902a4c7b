//! The weight plan: which buffers hold which parameters, in which packing.
//!
//! One plan serves every entry point and tier. Matrices that linear layers read
//! get the packing that was asked for, split by rows where they exceed what a
//! binding may hold; embedding tables keep at least 16 bits. Parameters of one
//! axis are kept as `f32`; those that one op takes (a norm's gain and bias, a
//! layer's bias) lie in one buffer, which they share with none but what ops take
//! together with one of them, so that the kernel binds one buffer for all of them
//! and reads them at the same places in every layer, which lets layers share
//! kernels.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::packing::BAND_ROWS;
use kiln_ir::plan::{WeightBuffer, WeightPart};
use kiln_ir::{Dim, Graph, Op, Packing, ParamSource, TensorType, ValueId};
use rayon::prelude::*;

use crate::error::CodegenError;
use crate::view::Base;

/// Rows of a split matrix come in multiples of this where a binding holds as many,
/// so that all tiles but the last of the matrix are whole.
const ROW_QUANTUM: u64 = 64;

/// Matrices are padded with zero rows to a multiple of this, so that kernels
/// which take several rows at a time need not clamp.
pub(crate) const ROW_PADDING: u64 = BAND_ROWS as u64;

/// A packed matrix `[rows, k]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub packing: Packing,
    pub rows: u64,
    pub k: u64,
    /// Whether a linear layer contracts with it.
    pub is_linear: bool,
    pub parts: Vec<MatrixPart>,
}

/// Consecutive rows of a matrix in a buffer of their own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MatrixPart {
    pub data: usize,
    pub scales: Option<usize>,
    pub first_row: u64,
    pub rows: u64,
}

/// Parameters of one axis that an op takes together, in one buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vectors {
    pub buffer: usize,
    /// Where each starts, in elements, a multiple of four.
    pub offsets: Vec<u64>,
}

/// The buffers and where each parameter lies in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Weights {
    pub buffers: Vec<WeightBuffer>,
    matrices: BTreeMap<String, Matrix>,
    vectors: BTreeMap<Vec<String>, Vectors>,
    /// Number of parameters, each counted once.
    pub parameters: u64,
}

/// What the name of the buffer of a part of a matrix ends with, before its number.
pub(crate) const PART: &str = ".part";

/// What the name of the buffer of a matrix's scales ends with.
pub(crate) const SCALES: &str = ".scales";

/// The parameters of one axis that `id` takes as operands, in order.
pub(crate) fn vector_operands(graph: &Graph, id: ValueId) -> Vec<String> {
    let operands = graph.value(id).inputs.iter();
    operands.filter_map(|x| vector_param(graph, *x)).collect()
}

/// The name of a parameter of one axis at most.
fn vector_param(graph: &Graph, id: ValueId) -> Option<String> {
    match &graph.value(id).op {
        Op::Param { name, ty } if ty.rank() <= 1 => Some(name.clone()),
        _ => None,
    }
}

/// Plans the parameters of all `graphs` for linear weights in `packing`, in buffers
/// of at most `limit` bytes.
pub(crate) fn plan(
    graphs: &[Graph],
    packing: Packing,
    limit: u64,
) -> Result<Weights, CodegenError> {
    let mut params: BTreeMap<String, TensorType> = BTreeMap::new();
    let mut linear: BTreeSet<String> = BTreeSet::new();
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut matrices: Vec<String> = Vec::new();
    for graph in graphs {
        linear.extend(linear_weights(graph));
        for (name, ty) in graph.params() {
            match params.get(name) {
                None => {
                    params.insert(name.to_owned(), ty.clone());
                    if ty.rank() > 1 {
                        matrices.push(name.to_owned());
                    }
                }
                Some(known) if known != ty => {
                    return Err(CodegenError::Conflict {
                        what: "parameter",
                        name: name.to_owned(),
                        found: ty.to_string(),
                        other: known.to_string(),
                    });
                }
                Some(_) => {}
            }
        }
        for (id, value) in graph.iter() {
            let names = vector_operands(graph, id);
            let together = matches!(value.op, Op::Linear { .. } | Op::Normalize(_));
            let new = match together {
                true => vec![names],
                false => names.into_iter().map(|n| vec![n]).collect(),
            };
            // What is one number for all columns is read by itself, and so are outputs.
            let alone = value
                .inputs
                .iter()
                .filter(|x| graph.ty(**x).elements().is_one());
            let outputs = graph.outputs().iter().map(|(_, x)| x).filter(|x| **x == id);
            let alone = alone.chain(outputs).filter_map(|x| vector_param(graph, *x));
            let new = new.into_iter().chain(alone.map(|n| vec![n]));
            for group in new {
                if !group.is_empty() && !groups.contains(&group) {
                    groups.push(group);
                }
            }
        }
    }

    let mut weights = Weights::default();
    for (name, ty) in &params {
        weights.parameters += static_shape(name, ty)?.iter().product::<u64>();
    }
    for name in matrices {
        let shape = static_shape(&name, &params[&name])?;
        let is_linear = linear.contains(&name);
        let packing = match packing {
            p if is_linear => p,
            Packing::F32 => Packing::F32,
            _ => Packing::F16,
        };
        let mut matrix = weights.matrix_buffers(&name, &shape, packing, limit)?;
        matrix.is_linear = is_linear;
        weights.matrices.insert(name, matrix);
    }
    for buffer in buffers_of_groups(&groups) {
        let shapes = buffer.iter().map(|name| static_shape(name, &params[name]));
        let shapes: Vec<Vec<u64>> = shapes.collect::<Result<_, _>>()?;
        weights.vector_buffer(&buffer, &shapes, &groups);
    }
    // Matrices are split where need be; what is read as one cannot be.
    match weights.buffers.iter().find(|b| b.bytes > limit) {
        Some(buffer) => Err(CodegenError::WeightTooLarge {
            what: "all elements".to_owned(),
            name: buffer.name.clone(),
            bytes: buffer.bytes,
            limit,
        }),
        None => Ok(weights),
    }
}

impl Weights {
    /// Where the matrix called `name` lies.
    pub fn matrix(&self, name: &str) -> Option<&Matrix> {
        self.matrices.get(name)
    }

    /// The parts of the matrices that linear layers contract with.
    pub fn linear_parts(&self) -> impl Iterator<Item = &MatrixPart> {
        let matrices = self.matrices.values().filter(|m| m.is_linear);
        matrices.flat_map(|m| &m.parts)
    }

    /// Where the parameters of one axis called `names`, all those that one op
    /// takes, lie.
    pub fn vectors(&self, names: &[String]) -> Option<&Vectors> {
        self.vectors.get(names)
    }

    /// The buffers that a kernel binds to read the parameter `name` by itself.
    pub fn buffers_of(&self, name: &str) -> BTreeSet<Base> {
        if let Some(matrix) = self.matrices.get(name) {
            let parts = matrix.parts.iter();
            let buffers = parts.flat_map(|p| [Some(p.data), p.scales]).flatten();
            return buffers.map(Base::Weight).collect();
        }
        let own = self.vectors.get(std::slice::from_ref(&name.to_owned()));
        own.map(|v| Base::Weight(v.buffer)).into_iter().collect()
    }

    /// A buffer for the parameters called `names`, which holds those of `groups`
    /// that consist of them.
    fn vector_buffer(&mut self, names: &[String], shapes: &[Vec<u64>], groups: &[Vec<String>]) {
        let mut buffer = WeightBuffer {
            name: names.join("+"),
            bytes: 0,
            contents: Vec::new(),
        };
        let mut offset_of = BTreeMap::new();
        for (name, shape) in names.iter().zip(shapes) {
            offset_of.insert(name, buffer.bytes / 4);
            buffer.contents.push(WeightPart {
                param: name.clone(),
                shape: shape.clone(),
                packing: Packing::F32,
                scales: false,
                first_row: 0,
                rows: 1,
                offset: buffer.bytes,
            });
            buffer.bytes += shape.iter().product::<u64>().div_ceil(4).max(1) * 16;
        }
        let index = self.buffers.len();
        self.buffers.push(buffer);
        for group in groups {
            let offsets = group.iter().map(|name| offset_of.get(name).copied());
            if let Some(offsets) = offsets.collect::<Option<Vec<u64>>>() {
                let buffer = index;
                self.vectors
                    .insert(group.clone(), Vectors { buffer, offsets });
            }
        }
    }

    fn matrix_buffers(
        &mut self,
        name: &str,
        shape: &[u64],
        packing: Packing,
        limit: u64,
    ) -> Result<Matrix, CodegenError> {
        let (k, rows) = match shape {
            [leading @ .., k] => (*k, leading.iter().product()),
            [] => (1, 1),
        };
        let row_bytes = packing.data_bytes(1, k as usize) as u64;
        let Some(per_part) = rows_of_a_part(rows, limit / row_bytes.max(1)) else {
            return Err(CodegenError::WeightTooLarge {
                what: format!("{ROW_PADDING} rows"),
                name: name.to_owned(),
                bytes: ROW_PADDING * row_bytes,
                limit,
            });
        };
        let mut parts = Vec::new();
        let mut first_row = 0;
        while first_row < rows || parts.is_empty() {
            let part_rows = per_part.min(rows - first_row);
            let suffix = if part_rows == rows {
                String::new()
            } else {
                format!("{PART}{}", parts.len())
            };
            let mut push = |scales: bool, bytes: usize| {
                let kind = if scales { SCALES } else { "" };
                self.buffers.push(WeightBuffer {
                    name: format!("{name}{suffix}{kind}"),
                    bytes: (bytes as u64).next_multiple_of(16).max(16),
                    contents: vec![WeightPart {
                        param: name.to_owned(),
                        shape: shape.to_vec(),
                        packing,
                        scales,
                        first_row,
                        rows: part_rows,
                        offset: 0,
                    }],
                });
                self.buffers.len() - 1
            };
            let stored = part_rows.next_multiple_of(ROW_PADDING) as usize;
            let data = push(false, packing.data_bytes(stored, k as usize));
            let scales = packing
                .has_scales()
                .then(|| push(true, packing.scale_bytes(stored, k as usize)));
            parts.push(MatrixPart {
                data,
                scales,
                first_row,
                rows: part_rows,
            });
            first_row += part_rows;
        }
        Ok(Matrix {
            packing,
            rows,
            k,
            is_linear: false,
            parts,
        })
    }
}

/// How many of a matrix's `rows` lie in a buffer that has room for `most`: all, or
/// such a number of them that the fewest buffers are filled alike. None where there
/// is no room for the least.
fn rows_of_a_part(rows: u64, most: u64) -> Option<u64> {
    if rows.next_multiple_of(ROW_PADDING) <= most {
        return Some(rows);
    }
    let quantum = match most {
        ROW_QUANTUM.. => ROW_QUANTUM,
        _ => ROW_PADDING,
    };
    let most = most / quantum * quantum;
    if most == 0 {
        return None;
    }
    let parts = rows.div_ceil(most);
    Some(rows.div_ceil(parts).next_multiple_of(quantum))
}

/// The parameters of each buffer, for ops that take these groups of them. Groups
/// that share a parameter (a norm that two linear layers with biases of their own
/// take in) share a buffer, so that each parameter is stored once.
fn buffers_of_groups(groups: &[Vec<String>]) -> Vec<Vec<String>> {
    let mut buffers: Vec<Vec<String>> = Vec::new();
    for group in groups {
        let shares = |buffer: &Vec<String>| buffer.iter().any(|name| group.contains(name));
        let place = buffers.iter().position(shares).unwrap_or(buffers.len());
        let joined: Vec<_> = buffers.extract_if(.., |buffer| shares(buffer)).collect();
        let mut names: Vec<String> = Vec::new();
        for name in joined.iter().flatten().chain(group) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        buffers.insert(place, names);
    }
    buffers
}

/// The parameters that linear ops contract with.
fn linear_weights(graph: &Graph) -> BTreeSet<String> {
    let weights = graph.iter().filter_map(|(_, v)| match v.op {
        Op::Linear { .. } => v.inputs.get(1),
        _ => None,
    });
    weights
        .filter_map(|w| match &graph.value(*w).op {
            Op::Param { name, .. } => Some(name.clone()),
            _ => None,
        })
        .collect()
}

fn static_shape(name: &str, ty: &TensorType) -> Result<Vec<u64>, CodegenError> {
    let dims: Option<Vec<u64>> = ty.shape.iter().map(Dim::as_const).collect();
    dims.ok_or_else(|| CodegenError::Unsupported {
        value: name.to_owned(),
        op: "param",
        source_name: String::new(),
        reason: format!("a parameter's shape must be constant, but this one is {ty}"),
    })
}

/// The bytes of the buffer at `index` and, for the weights of a quantised
/// matrix, of the buffer of its scales.
///
/// # Errors
/// When a parameter cannot be read, or has another size than the graph says.
pub(crate) fn fill(
    buffers: &[WeightBuffer],
    index: usize,
    params: &dyn ParamSource,
) -> Result<Filled, CodegenError> {
    let Some(buffer) = buffers.get(index) else {
        return Ok(Filled::default());
    };
    // Zeroed pages are not touched until they are written.
    let mut out = Filled {
        bytes: vec![0; buffer.bytes as usize],
        scales: None,
    };
    for part in &buffer.contents {
        let values = params
            .param(&part.param)
            .map_err(|source| CodegenError::Param {
                name: part.param.clone(),
                source,
            })?;
        let expected: u64 = part.shape.iter().product();
        if values.len() as u64 != expected {
            return Err(CodegenError::ParamSize {
                name: part.param.clone(),
                found: values.len(),
                expected,
            });
        }
        let offset = part.offset as usize;
        if part.shape.len() <= 1 {
            let places = out.bytes[offset..].chunks_exact_mut(4);
            for (place, value) in places.zip(values.iter()) {
                place.copy_from_slice(&value.to_le_bytes());
            }
            continue;
        }
        let k = part.shape.last().copied().unwrap_or(1) as usize;
        let first = part.first_row as usize * k;
        let rows = &values[first..first + part.rows as usize * k];
        if part.packing != Packing::F32 {
            check_range(part, rows)?;
        }
        let packed = part.packing.pack(rows, k);
        let (own, other) = match part.scales {
            true => (packed.scales, None),
            false => (packed.data, Some(packed.scales)),
        };
        if buffer.contents.len() == 1 {
            // A large one: not copied once more, only padded.
            out.bytes = own;
            out.bytes.resize(buffer.bytes as usize, 0);
        } else {
            out.bytes[offset..offset + own.len()].copy_from_slice(&own);
        }
        if let Some(scales) = other.filter(|s| !s.is_empty()) {
            // The buffer of the scales stands behind that of the weights.
            let bytes = buffers.get(index + 1).map_or(0, |b| b.bytes as usize);
            let mut padded = scales;
            padded.resize(bytes, 0);
            out.scales = Some(padded);
        }
    }
    Ok(out)
}

/// Holds that a packing has room for these weights of a part.
fn check_range(part: &WeightPart, rows: &[f32]) -> Result<(), CodegenError> {
    let (name, packing) = (part.param.clone(), part.packing);
    let most = packing.most();
    let is_lost = |v: &&f32| !v.is_finite() || v.abs() > most;
    // By pieces: asking for each weight whether another thread has found one takes longer
    // than to look at it.
    let pieces = rows.par_chunks(1 << 14);
    match pieces.find_map_first(|piece| piece.iter().find(is_lost)) {
        None => Ok(()),
        Some(value) if !value.is_finite() => Err(CodegenError::NoNumber {
            name,
            value: *value,
        }),
        Some(value) => Err(CodegenError::ParamValue {
            name,
            value: *value,
            packing,
            most,
        }),
    }
}

/// What [`fill`] makes.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    pub bytes: Vec<u8>,
    /// Those of the next buffer, where it holds the scales of this one.
    pub scales: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_their_buffers() {
        for most in [8, 9, 15, 16, 63, 64, 65, 127, 128, 1000, 43_690] {
            // Up to a few buffers' worth, one over and under included.
            let some =
                (1..=4 * most.min(100)).chain((1..5).flat_map(|n| n * most - 2..n * most + 2));
            for rows in some {
                let part = rows_of_a_part(rows, most).unwrap();
                let stored = part.min(rows).next_multiple_of(ROW_PADDING);
                assert!(stored <= most, "{rows} rows: {part} in one of {most}");
                let whole = rows.next_multiple_of(ROW_PADDING) <= most;
                assert_eq!(part == rows, whole, "{rows} rows: {part} in one of {most}");
                // None that the others could have held.
                let fewest = rows.div_ceil(most - most % if most < 64 { 8 } else { 64 });
                if !whole {
                    assert!(rows.div_ceil(part) <= fewest, "{rows} rows: {part}");
                }
            }
        }
        for (rows, most) in [(1, 7), (8, 0), (100, 7)] {
            assert_eq!(rows_of_a_part(rows, most), None);
        }
    }

    #[test]
    fn groups_that_share_a_parameter_share_a_buffer() {
        let groups = |texts: &[&str]| -> Vec<Vec<String>> {
            let words = |t: &&str| t.split(' ').map(str::to_owned).collect();
            texts.iter().map(words).collect()
        };
        let apart = groups(&["a b", "c", "d e"]);
        assert_eq!(buffers_of_groups(&apart), apart);
        let shared = groups(&["norm gate", "other", "norm up", "norm"]);
        assert_eq!(
            buffers_of_groups(&shared),
            groups(&["norm gate up", "other"])
        );
        // The last brings two together.
        let chained = groups(&["a b", "x", "c d", "b c"]);
        assert_eq!(buffers_of_groups(&chained), groups(&["a b c d", "x"]));
    }
}
