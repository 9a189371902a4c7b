//! Where the bytes of weight buffers come from.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::MmapOptions;
use safetensors::SafeTensors;

use crate::error::{BoxError, Error, Result};

/// Supplies the bytes of weight buffers by name.
pub trait WeightSource: Send + Sync {
    /// Calls `sink` with the bytes of `name`, in order and in as many pieces as
    /// the source sees fit; each piece's length is a multiple of 4.
    ///
    /// # Errors
    /// When there is no such weight, it cannot be read, or `sink` fails.
    fn visit(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

impl WeightSource for BTreeMap<String, Vec<u8>> {
    fn visit(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self.get(name) {
            Some(bytes) => sink(bytes),
            None => Err(missing(name)),
        }
    }
}

/// A function from a weight's name to its bytes, as a [`WeightSource`].
pub struct WeightFn<F>(pub F);

impl<F> WeightSource for WeightFn<F>
where
    F: Fn(&str) -> std::result::Result<Vec<u8>, BoxError> + Send + Sync,
{
    fn visit(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let bytes = (self.0)(name).map_err(|e| Error::Weight {
            name: name.to_owned(),
            reason: e.to_string(),
        })?;
        sink(&bytes)
    }
}

pub(crate) fn missing(name: &str) -> Error {
    Error::Weight {
        name: name.to_owned(),
        reason: "it is not in the weight file".to_owned(),
    }
}

/// Bytes of the weight file that are mapped at a time. Mapped pages count as the
/// process's memory once read, so a window keeps a run's peak near the size of
/// the weights.
const WINDOW: u64 = 8 << 20;

/// A weight file, read through a moving memory-mapped window.
pub(crate) struct MappedWeights {
    path: PathBuf,
    file: File,
    /// Offset in the file and length of each tensor.
    tensors: BTreeMap<String, (u64, u64)>,
}

impl MappedWeights {
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is only read, and dropped at the end of this function;
        // a file that another process truncates meanwhile ends this one with a
        // bus error, as with every memory map.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(io)?;
        let bad = |e: safetensors::SafeTensorError| Error::Weight {
            name: path.display().to_string(),
            reason: format!("the file is not valid safetensors: {e}"),
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(bad)?;
        let base = header as u64 + 8;
        let tensors = metadata.tensors();
        let tensors = tensors.into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            (name, (base + start as u64, (end - start) as u64))
        });
        let tensors = tensors.collect();
        drop(map);
        Ok(MappedWeights {
            path: path.to_owned(),
            file,
            tensors,
        })
    }

    pub fn bytes_of(&self, name: &str) -> Option<u64> {
        self.tensors.get(name).map(|(_, bytes)| *bytes)
    }
}

impl WeightSource for MappedWeights {
    fn visit(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (offset, bytes) = *self.tensors.get(name).ok_or_else(|| missing(name))?;
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(WINDOW);
            let mut options = MmapOptions::new();
            let options = options.offset(offset + done).len(len as usize);
            // SAFETY: as in `open`; the window lies within the file, whose size
            // the header was checked against.
            let map = unsafe { options.map(&self.file) };
            let map = map.map_err(|source| Error::Io {
                path: self.path.clone(),
                source,
            })?;
            sink(&map)?;
            done += len;
        }
        Ok(())
    }
}
