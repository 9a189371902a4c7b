//! A safetensors file of f32 tensors, written piece by piece.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use crate::failure::{Failure, Result};

/// A tensor to come.
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Writes beside the file, and renames when all is there: the file is whole or
/// not there at all.
pub struct Writer {
    path: PathBuf,
    file: NamedTempFile,
    /// Where each tensor's bytes begin.
    offsets: Vec<(String, u64)>,
    total: u64,
}

impl Writer {
    /// Begins a file with these tensors.
    pub fn create(path: &Path, tensors: Vec<Tensor>) -> Result<Writer> {
        let failed = |e| cannot_write(path, e);
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
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut file = NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(&(header.len() as u64).to_le_bytes())
            .map_err(failed)?;
        file.write_all(&header).map_err(failed)?;
        file.as_file().set_len(data + end).map_err(failed)?;
        Ok(Writer {
            path: path.to_owned(),
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
        let written = self.file.seek(SeekFrom::Start(begin + offset));
        let written = written.and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| cannot_write(&self.path, e))
    }

    /// Puts the file in its place; its size.
    pub fn finish(self) -> Result<u64> {
        let persisted = self.file.persist(&self.path);
        persisted.map_err(|e| cannot_write(&self.path, e.error))?;
        Ok(self.total)
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> Failure {
    Failure::because(format!("cannot write `{}`", path.display()), error)
}
