//! The header of a safetensors file, parsed and checked.
//!
//! The crate `safetensors` parses headers too, but reports a truncated file
//! without saying which tensor is cut off, and lets the later of two equal
//! names win. Its types are used here; the checks, and their words, are ours.

use std::fmt;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::{CheckpointError, HeaderProblem};

/// The bytes before the header: its length, little-endian.
const LENGTH_BYTES: usize = 8;
/// The format's limit on a header.
const MAX_HEADER: u64 = 100_000_000;
/// How a Git LFS pointer begins. Read as a length, it would be beyond the limit.
const LFS_POINTER: &[u8] = b"version https://git-lfs";
/// The one key of the header that is no tensor.
const METADATA_KEY: &str = "__metadata__";

/// A header whose every tensor lies within the file.
pub(super) struct Header {
    /// Where the data begins in the file.
    pub data_start: usize,
    /// The tensors, in the order of their data.
    pub tensors: Vec<NamedTensor>,
}

/// One row of a header.
pub(super) struct NamedTensor {
    pub name: String,
    pub info: TensorInfo,
}

/// Parses and checks the header of the file `label` whose content is `bytes`.
pub(super) fn parse(label: &str, bytes: &[u8]) -> Result<Header, CheckpointError> {
    let bad = |problem| CheckpointError::Header {
        file: label.to_owned(),
        problem,
    };
    if bytes.starts_with(LFS_POINTER) {
        return Err(bad(HeaderProblem::LfsPointer));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(bad(HeaderProblem::TooShort {
            found: bytes.len() as u64,
        }));
    };
    let wanted = u64::from_le_bytes(*length);
    if wanted > MAX_HEADER {
        return Err(bad(HeaderProblem::HeaderTooLong {
            wanted,
            limit: MAX_HEADER,
        }));
    }
    // At most MAX_HEADER, so it fits in a usize.
    let header_len = wanted as usize;
    let Some(header) = rest.get(..header_len) else {
        return Err(bad(HeaderProblem::HeaderCutOff {
            wanted,
            found: rest.len() as u64,
        }));
    };
    let Rows(mut tensors) =
        serde_json::from_slice(header).map_err(|e| bad(HeaderProblem::NotJson(e)))?;
    check_names(label, &tensors)?;
    tensors.sort_by(|a, b| (a.info.data_offsets, &a.name).cmp(&(b.info.data_offsets, &b.name)));
    let data_start = LENGTH_BYTES + header_len;
    check_extents(label, &tensors)?;
    check_length(label, &tensors, data_start, bytes.len())?;
    Ok(Header {
        data_start,
        tensors,
    })
}

fn check_names(label: &str, tensors: &[NamedTensor]) -> Result<(), CheckpointError> {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(CheckpointError::Duplicate {
            tensor: pair[0].to_owned(),
            first: label.to_owned(),
            second: label.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Each tensor is as long as its type and shape say and begins where the one
/// before it ends, so that no two overlap and no bytes hide between them.
fn check_extents(label: &str, tensors: &[NamedTensor]) -> Result<(), CheckpointError> {
    let mut expected = 0;
    for NamedTensor { name, info } in tensors {
        let (start, end) = info.data_offsets;
        let wanted = byte_len(info);
        let found = end.checked_sub(start);
        if found.is_none() || found != wanted {
            return Err(CheckpointError::SizeMismatch {
                file: label.to_owned(),
                tensor: name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                wanted: wanted.map_or(u64::MAX, |n| n as u64),
                found: found.unwrap_or(0) as u64,
            });
        }
        if start != expected {
            return Err(CheckpointError::Misplaced {
                file: label.to_owned(),
                tensor: name.clone(),
                wanted: expected as u64,
                found: start as u64,
            });
        }
        expected = end;
    }
    Ok(())
}

fn check_length(
    label: &str,
    tensors: &[NamedTensor],
    data_start: usize,
    file_len: usize,
) -> Result<(), CheckpointError> {
    let available = file_len - data_start;
    let mut cut_off = tensors.iter().filter(|t| t.info.data_offsets.1 > available);
    if let Some(first) = cut_off.next() {
        return Err(CheckpointError::Truncated {
            file: label.to_owned(),
            tensor: first.name.clone(),
            dtype: first.info.dtype,
            shape: first.info.shape.clone(),
            wanted: data_start as u64 + first.info.data_offsets.1 as u64,
            found: file_len as u64,
            others: cut_off.count(),
        });
    }
    let described = tensors.last().map_or(0, |t| t.info.data_offsets.1);
    if described != available {
        return Err(CheckpointError::TooLong {
            file: label.to_owned(),
            wanted: (data_start + described) as u64,
            found: file_len as u64,
        });
    }
    Ok(())
}

/// The bytes that type and shape ask for; `None` when that is no whole number
/// of bytes or beyond the address space.
fn byte_len(info: &TensorInfo) -> Option<usize> {
    let elements = info
        .shape
        .iter()
        .try_fold(1usize, |n, dim| n.checked_mul(*dim))?;
    let bits = elements.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The rows of a header in stored order, with equal names kept apart, which a
/// map would merge.
struct Rows(Vec<NamedTensor>);

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowVisitor;
        impl<'de> Visitor<'de> for RowVisitor {
            type Value = Rows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rows, A::Error> {
                let mut rows = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let info = map.next_value()?;
                        rows.push(NamedTensor { name, info });
                    }
                }
                Ok(Rows(rows))
            }
        }
        deserializer.deserialize_map(RowVisitor)
    }
}
