//! Stored elements to f32.

use std::borrow::Cow;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use thiserror::Error;

use super::StoredTensor;

/// Output elements that one task converts: large enough that scheduling costs
/// nothing, small enough to stay in cache.
const CHUNK: usize = 1 << 16;
/// Side of the square tiles in which a matrix is transposed.
const TILE: usize = 32;

/// A tensor's type is none that weights come in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "tensor `{tensor}` in {file} is stored as {dtype}; kiln reads weights in F32, F16 and BF16: \
     save the model again in one of these"
)]
pub struct UnsupportedDtype {
    /// The tensor.
    pub tensor: String,
    /// The file that holds it.
    pub file: String,
    /// Its type.
    pub dtype: Dtype,
}

/// Whether elements of this type can be read as f32.
pub fn is_supported(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

impl<'a> StoredTensor<'a> {
    /// The elements as f32, in the stored order. Every value is exact: f16 and
    /// bf16 are subsets of f32. Stored f32 is borrowed where its bytes happen
    /// to be aligned.
    ///
    /// # Errors
    ///
    /// [`UnsupportedDtype`] for anything but F32, F16 and BF16.
    pub fn to_f32(&self) -> Result<Cow<'a, [f32]>, UnsupportedDtype> {
        match self.dtype {
            Dtype::F32 => Ok(match borrow_f32(self.bytes) {
                Some(values) => Cow::Borrowed(values),
                None => Cow::Owned(convert(self.bytes, f32::from_le_bytes)),
            }),
            Dtype::F16 => Ok(Cow::Owned(convert(self.bytes, |b| {
                f16::from_le_bytes(b).to_f32()
            }))),
            Dtype::BF16 => Ok(Cow::Owned(convert(self.bytes, |b| {
                bf16::from_le_bytes(b).to_f32()
            }))),
            _ => Err(self.unsupported()),
        }
    }

    /// The elements of a stored `[rows, columns]` as f32 of shape
    /// `[columns, rows]`. A tensor that is no matrix comes out as stored.
    ///
    /// # Errors
    ///
    /// [`UnsupportedDtype`] for anything but F32, F16 and BF16.
    pub fn to_f32_transposed(&self) -> Result<Cow<'a, [f32]>, UnsupportedDtype> {
        let &[rows, columns] = self.shape else {
            return self.to_f32();
        };
        let values = match self.dtype {
            Dtype::F32 => transpose(self.bytes, rows, columns, f32::from_le_bytes),
            Dtype::F16 => transpose(self.bytes, rows, columns, |b| {
                f16::from_le_bytes(b).to_f32()
            }),
            Dtype::BF16 => transpose(self.bytes, rows, columns, |b| {
                bf16::from_le_bytes(b).to_f32()
            }),
            _ => return Err(self.unsupported()),
        };
        Ok(Cow::Owned(values))
    }

    fn unsupported(&self) -> UnsupportedDtype {
        UnsupportedDtype {
            tensor: self.name.to_owned(),
            file: self.file.to_owned(),
            dtype: self.dtype,
        }
    }
}

/// `bytes` as f32 in place, where alignment and byte order allow.
fn borrow_f32(bytes: &[u8]) -> Option<&[f32]> {
    if cfg!(target_endian = "little") {
        bytemuck::try_cast_slice(bytes).ok()
    } else {
        None
    }
}

fn convert<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let elements = bytes.as_chunks::<N>().0;
    let mut out = vec![0.0; elements.len()];
    out.par_chunks_mut(CHUNK)
        .zip(elements.par_chunks(CHUNK))
        .for_each(|(out, elements)| {
            for (out, bytes) in out.iter_mut().zip(elements) {
                *out = element(*bytes);
            }
        });
    out
}

/// Converts a row-major `[rows, columns]` into a row-major `[columns, rows]`.
fn transpose<const N: usize>(
    bytes: &[u8],
    rows: usize,
    columns: usize,
    element: impl Fn([u8; N]) -> f32 + Sync,
) -> Vec<f32> {
    let elements = bytes.as_chunks::<N>().0;
    let mut out = vec![0.0; rows * columns];
    if out.is_empty() {
        return out;
    }
    // One task per TILE rows of the output, walked in square tiles so that
    // neither side strides through memory.
    out.par_chunks_mut(TILE * rows)
        .enumerate()
        .for_each(|(task, out)| {
            let first_column = task * TILE;
            for first_row in (0..rows).step_by(TILE) {
                let tile_rows = first_row..rows.min(first_row + TILE);
                for (offset, out_row) in out.chunks_exact_mut(rows).enumerate() {
                    for row in tile_rows.clone() {
                        out_row[row] = element(elements[row * columns + first_column + offset]);
                    }
                }
            }
        });
    out
}
