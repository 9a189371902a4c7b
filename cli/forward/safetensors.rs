//! A safetensors file of f32 tensors, written piece by piece.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::failure::{Failure, Result};
use crate::out_file::OutFile;

/// A tensor to come.
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Writes tensors in pieces, whose places are known beforehand.
pub struct Writer {
    file: OutFile,
    /// Where each tensor's bytes begin.
    offsets: Vec<(String, u64)>,
    total: u64,
}

impl Writer {
    /// Begins a file with these tensors.
    pub fn create(path: &Path, tensors: Vec<Tensor>) -> Result<Writer> {
        let mut header = Map::new();
        let mut offsets = Vec::new();
        let mut end = 0u64;
        for tensor in tensors {
            let begin = end;
            end += tensor.shape.iter().map(|n| *n as u64).product::<u64>() * 4;
            let entry = json!({
                "dtype": "F32",
                "shape": tensor.shape,
                "data_offsets": [begin, end],
            });
            header.insert(tensor.name.clone(), entry);
            offsets.push((tensor.name, begin));
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // The data begins at a multiple of eight.
        header.resize(header.len().next_multiple_of(8), b' ');
        let data = 8 + header.len() as u64;
        for (_, offset) in &mut offsets {
            *offset += data;
        }
        let mut file = OutFile::create(path)?;
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        file.reserve(data + end)?;
        Ok(Writer {
            file,
            offsets,
            total: data + end,
        })
    }

    /// All bytes of the file.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Writes some of a tensor's bytes, from `offset` on.
    pub fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result {
        let known = self.offsets.iter().find(|(n, _)| n == name);
        let (_, begin) =
            known.ok_or_else(|| Failure::failed(format!("unexpected output `{name}`")))?;
        self.file.write_at(begin + offset, bytes)
    }

    /// Puts the file in its place; its size.
    pub fn finish(self) -> Result<u64> {
        self.file.finish()?;
        Ok(self.total)
    }
}
