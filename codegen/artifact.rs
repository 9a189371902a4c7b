//! Writing of compiled artifacts.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_ir::plan::{Plan, WeightBuffer, tier_file};
use kiln_ir::{Packing, ParamSource};
use safetensors::{Dtype, View};

use crate::Compiled;
use crate::error::CodegenError;
use crate::weights::fill;

const PLAN_FILE: &str = "plan.json";
const WEIGHT_FILE: &str = "weights.safetensors";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Told how many bytes of weights are written, and how many there are.
pub type WriteProgress<'a> = dyn FnMut(u64, u64) + 'a;

impl Compiled {
    /// Writes the artifact as a folder, whole or not at all: into a folder beside
    /// `out` first, which then takes its name. An artifact that stands there
    /// already is replaced; anything else is left alone.
    ///
    /// # Errors
    /// When a parameter cannot be read or has the wrong size, a file cannot be
    /// written, or `out` exists and is no artifact.
    pub fn write(
        &self,
        out: &Path,
        params: &dyn ParamSource,
        tokenizer: Option<&str>,
        progress: &mut WriteProgress<'_>,
    ) -> Result<(), CodegenError> {
        if out.exists() && !out.join(PLAN_FILE).is_file() {
            return Err(CodegenError::Occupied {
                path: out.to_owned(),
            });
        }
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|e| written(parent, e))?;
        let new = tempfile::Builder::new().prefix(".kiln-").tempdir_in(parent);
        let new = new.map_err(|e| written(parent, e))?;
        self.write_into(new.path(), params, tokenizer, progress)?;
        readable(new.path())?;

        // What stood there goes only once the new folder is complete.
        if out.exists() {
            let old = tempfile::Builder::new()
                .prefix(".kiln-old-")
                .tempdir_in(parent);
            let old = old.map_err(|e| written(parent, e))?;
            fs::rename(out, old.path().join("old")).map_err(|e| written(out, e))?;
        }
        fs::rename(new.path(), out).map_err(|e| written(out, e))?;
        // The folder has another name now; there is nothing left to remove.
        let _ = new.keep();
        Ok(())
    }

    fn write_into(
        &self,
        dir: &Path,
        params: &dyn ParamSource,
        tokenizer: Option<&str>,
        progress: &mut WriteProgress<'_>,
    ) -> Result<(), CodegenError> {
        let mut hashes = BTreeMap::new();
        let texts = self.kernels.iter().chain(&self.graphs);
        let tokenizer = tokenizer.map(|text| (TOKENIZER_FILE.to_owned(), text.to_owned()));
        let texts = texts.map(|(file, text)| (file.clone(), text.clone()));
        for (file, text) in texts.chain(tokenizer) {
            write_file(&dir.join(&file), text.as_bytes())?;
            hashes.insert(file, blake3::hash(text.as_bytes()).to_hex().to_string());
        }
        if !self.plan.weights.is_empty() {
            let path = dir.join(WEIGHT_FILE);
            write_weights(&self.plan.weights, &path, params, progress)?;
            let mut hasher = blake3::Hasher::new();
            hasher
                .update_mmap_rayon(&path)
                .map_err(|e| written(&path, e))?;
            hashes.insert(
                WEIGHT_FILE.to_owned(),
                hasher.finalize().to_hex().to_string(),
            );
        }
        let mut tiers = Vec::new();
        for tier in &self.plan.tiers {
            let file = tier_file(&tier.name);
            let path = dir.join(&file);
            let json = serde_json::to_vec_pretty(&tier.entries);
            let json = json.map_err(|e| written(&path, e.into()))?;
            write_file(&path, &json)?;
            hashes.insert(file, blake3::hash(&json).to_hex().to_string());
            tiers.push(tier.with_entries(BTreeMap::new()));
        }
        let plan = Plan {
            tiers,
            files: hashes,
            ..self.plan.clone()
        };
        let path = dir.join(PLAN_FILE);
        let json = serde_json::to_vec_pretty(&plan).map_err(|e| written(&path, e.into()))?;
        write_file(&path, &json)
    }
}

fn written(path: &Path, source: std::io::Error) -> CodegenError {
    CodegenError::Write {
        path: path.to_owned(),
        source,
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CodegenError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| written(parent, e))?;
    }
    fs::write(path, bytes).map_err(|e| written(path, e))
}

/// Temporary folders are for their owner alone; an artifact is for whoever may
/// read what is beside it.
fn readable(dir: &Path) -> Result<(), CodegenError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir, mode).map_err(|e| written(dir, e))?;
    }
    let _ = dir;
    Ok(())
}

/// A buffer as a tensor of the weight file, filled when it is written.
struct Tensor<'w> {
    writer: &'w Writer<'w>,
    index: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

struct Writer<'w> {
    buffers: &'w [WeightBuffer],
    params: &'w dyn ParamSource,
    state: RefCell<State<'w>>,
}

struct State<'w> {
    /// Scales that were made along with their weights.
    scales: BTreeMap<usize, Vec<u8>>,
    error: Option<CodegenError>,
    done: u64,
    total: u64,
    progress: &'w mut dyn FnMut(u64, u64),
}

impl Writer<'_> {
    fn fill(&self, index: usize) -> Vec<u8> {
        let mut state = self.state.borrow_mut();
        let bytes = self.buffers.get(index).map_or(0, |b| b.bytes);
        let made = match state.scales.remove(&index) {
            Some(scales) => scales,
            // The writer that calls this cannot fail; the first error is kept,
            // and the file is thrown away.
            None if state.error.is_some() => vec![0; bytes as usize],
            None => match fill(self.buffers, index, self.params) {
                Ok(filled) => {
                    if let Some(scales) = filled.scales {
                        state.scales.insert(index + 1, scales);
                    }
                    filled.bytes
                }
                Err(error) => {
                    state.error = Some(error);
                    vec![0; bytes as usize]
                }
            },
        };
        state.done += bytes;
        let (done, total) = (state.done, state.total);
        (state.progress)(done, total);
        made
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.writer.fill(self.index))
    }

    fn data_len(&self) -> usize {
        self.writer
            .buffers
            .get(self.index)
            .map_or(0, |b| b.bytes as usize)
    }
}

fn write_weights(
    buffers: &[WeightBuffer],
    path: &Path,
    params: &dyn ParamSource,
    progress: &mut WriteProgress<'_>,
) -> Result<(), CodegenError> {
    let writer = Writer {
        buffers,
        params,
        state: RefCell::new(State {
            scales: BTreeMap::new(),
            error: None,
            done: 0,
            total: buffers.iter().map(|b| b.bytes).sum(),
            progress,
        }),
    };
    let tensors = buffers.iter().enumerate().map(|(index, buffer)| {
        let (dtype, width) = stored_as(buffer);
        let tensor = Tensor {
            writer: &writer,
            index,
            dtype,
            shape: vec![buffer.bytes as usize / width],
        };
        (buffer.name.as_str(), tensor)
    });
    let done = safetensors::serialize_to_file(tensors, None, path);
    if let Some(error) = writer.state.borrow_mut().error.take() {
        return Err(error);
    }
    done.map_err(|e| written(path, std::io::Error::other(e)))
}

/// The element type of a buffer in the file, and its bytes.
fn stored_as(buffer: &WeightBuffer) -> (Dtype, usize) {
    match buffer.contents.first() {
        Some(part) if part.scales => (Dtype::F16, 2),
        Some(part) => match part.packing {
            Packing::F32 => (Dtype::F32, 4),
            Packing::F16 => (Dtype::F16, 2),
            Packing::Q8 => (Dtype::I8, 1),
            Packing::Q4 => (Dtype::U8, 1),
        },
        None => (Dtype::U8, 1),
    }
}
