//! Writing of compiled artifacts.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
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

/// Told how many bytes of weights are written, and how many there are.
pub type WriteProgress<'a> = dyn FnMut(u64, u64) + 'a;

impl Compiled {
    /// Writes the artifact as a folder, whole or not at all: into a folder beside
    /// `out` first, which then takes its name. An artifact that stands there
    /// already is replaced, and stays until the new one is in its place; anything
    /// else is left alone. `companions` are the texts of files, by name, that go with
    /// the model and that the compiler does not read, such as its tokenizer.
    ///
    /// # Errors
    /// When a parameter cannot be read or has the wrong size, a companion has a name that
    /// is not its to have, a file cannot be written, or [`Compiled::check_output`] refuses `out`.
    pub fn write(
        &self,
        out: &Path,
        params: &dyn ParamSource,
        companions: &BTreeMap<String, String>,
        progress: &mut WriteProgress<'_>,
    ) -> Result<(), CodegenError> {
        Self::check_output(out)?;
        // What a link points to is replaced, not the link.
        let target = fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|e| written(parent, e))?;
        let new = tempfile::Builder::new().prefix(".kiln-").tempdir_in(parent);
        let new = new.map_err(|e| written(parent, e))?;
        self.write_into(new.path(), params, companions, progress)?;
        // Writing took a while, in which something may have been put there.
        Self::check_output(out)?;
        put_in_place(new.path(), &target, parent)?;
        // The folder has another name now; there is nothing left to remove.
        let _ = new.keep();
        Ok(())
    }

    /// Whether [`Compiled::write`] may write to `out`: nothing is there, or an
    /// artifact that holds nothing but what its plan lists.
    ///
    /// # Errors
    /// [`CodegenError::Occupied`] names what is in the way.
    pub fn check_output(out: &Path) -> Result<(), CodegenError> {
        let occupied = |what: String| CodegenError::Occupied {
            path: out.to_owned(),
            what,
        };
        if fs::symlink_metadata(out).is_err() {
            return Ok(());
        }
        if !out.exists() {
            return Err(occupied("is a broken link".to_owned()));
        }
        let Some(listed) = listed_files(out) else {
            return Err(occupied("is not a compiled model".to_owned()));
        };
        let strange = strange_files(out, &listed).map_err(|e| written(out, e))?;
        match strange.as_slice() {
            [] => Ok(()),
            [first] => Err(occupied(format!("also holds `{first}`"))),
            [first, others @ ..] => {
                let others = others.len();
                Err(occupied(format!("also holds `{first}` and {others} more")))
            }
        }
    }

    fn write_into(
        &self,
        dir: &Path,
        params: &dyn ParamSource,
        companions: &BTreeMap<String, String>,
        progress: &mut WriteProgress<'_>,
    ) -> Result<(), CodegenError> {
        let own = |name: &str| [PLAN_FILE, WEIGHT_FILE].contains(&name);
        let is_plain =
            |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']);
        if let Some(name) = companions.keys().find(|name| own(name) || !is_plain(name)) {
            return Err(CodegenError::Companion { name: name.clone() });
        }
        let mut hashes = BTreeMap::new();
        for (file, text) in self.kernels.iter().chain(&self.graphs).chain(companions) {
            write_file(&dir.join(file), text.as_bytes())?;
            let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
            hashes.insert(file.clone(), hash);
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

/// Renames `new` to `out`, both in the folder `parent`. What stood there is moved
/// aside first, goes only once the new folder is in place, and comes back if that
/// fails.
fn put_in_place(new: &Path, out: &Path, parent: &Path) -> Result<(), CodegenError> {
    if !out.exists() {
        return fs::rename(new, out).map_err(|e| written(out, e));
    }
    let aside = tempfile::Builder::new()
        .prefix(".kiln-old-")
        .tempdir_in(parent);
    let aside = aside.map_err(|e| written(parent, e))?;
    let old = aside.path().join("old");
    fs::rename(out, &old).map_err(|e| written(out, e))?;
    let Err(source) = fs::rename(new, out) else {
        return Ok(());
    };
    if fs::rename(&old, out).is_err() {
        let _ = aside.keep();
        return Err(CodegenError::Displaced {
            path: out.to_owned(),
            old,
            source,
        });
    }
    Err(written(out, source))
}

/// The files that the plan in a folder lists, and the plan; `None` if there is no plan
/// of kiln's. Its format does not matter: artifacts of older versions can be replaced.
fn listed_files(dir: &Path) -> Option<BTreeSet<String>> {
    let text = fs::read(dir.join(PLAN_FILE)).ok()?;
    let plan: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let compiler = plan.get("compiler")?.as_str()?;
    let files = plan.get("files")?.as_object()?;
    compiler.starts_with("kiln ").then_some(())?;
    let listed = files.keys().cloned();
    Some(listed.chain([PLAN_FILE.to_owned()]).collect())
}

/// Whether a file manager leaves such a file in every folder that somebody looks at.
fn is_of_file_manager(name: &std::ffi::OsStr) -> bool {
    [".DS_Store", "Thumbs.db", "desktop.ini"]
        .iter()
        .any(|known| name == *known)
}

/// The paths of all files below a folder that are not `listed`, in order. A link counts
/// as a file, and so does a folder without files.
fn strange_files(dir: &Path, listed: &BTreeSet<String>) -> std::io::Result<Vec<String>> {
    let mut strange = Vec::new();
    let mut folders = vec![(dir.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let mut is_empty = true;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            is_empty = false;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                folders.push((entry.path(), name + "/"));
            } else if !listed.contains(&name) && !is_of_file_manager(&entry.file_name()) {
                strange.push(name);
            }
        }
        if is_empty {
            strange.push(prefix);
        }
    }
    strange.sort();
    Ok(strange)
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
    // safetensors writes a temporary file, which is for its owner alone, and renames
    // it; an artifact is for whoever may read what is beside it.
    let usual = fs::File::create(path).and_then(|file| file.metadata());
    let usual = usual.map_err(|e| written(path, e))?.permissions();
    let done = safetensors::serialize_to_file(tensors, None, path);
    if let Some(error) = writer.state.borrow_mut().error.take() {
        return Err(error);
    }
    done.map_err(|e| written(path, std::io::Error::other(e)))?;
    fs::set_permissions(path, usual).map_err(|e| written(path, e))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_there_comes_back_if_the_new_folder_cannot_take_its_place() {
        let parent = tempfile::tempdir().unwrap();
        let (new, out) = (parent.path().join("new"), parent.path().join("out"));
        fs::create_dir(&out).unwrap();
        fs::write(out.join(PLAN_FILE), "old").unwrap();
        // There is no new folder to rename.
        let failed = put_in_place(&new, &out, parent.path()).unwrap_err();
        assert!(matches!(failed, CodegenError::Write { .. }), "{failed}");
        assert_eq!(fs::read_to_string(out.join(PLAN_FILE)).unwrap(), "old");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);

        fs::create_dir(&new).unwrap();
        put_in_place(&new, &out, parent.path()).unwrap();
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_a_plan_of_kilns_lists_may_go() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at(PLAN_FILE), r#"{"files": {"a": ""}}"#).unwrap();
        assert_eq!(listed_files(dir.path()), None, "any other program's plan");
        let plan = r#"{"compiler": "kiln 0.0.1", "files": {"kernels/a.wgsl": ""}}"#;
        fs::write(at(PLAN_FILE), plan).unwrap();
        let listed = listed_files(dir.path()).unwrap();
        fs::create_dir(at("kernels")).unwrap();
        fs::write(at("kernels/a.wgsl"), "").unwrap();
        assert!(strange_files(dir.path(), &listed).unwrap().is_empty());
        fs::write(at("kernels/b.wgsl"), "").unwrap();
        fs::create_dir(at("notes")).unwrap();
        let strange = strange_files(dir.path(), &listed).unwrap();
        assert_eq!(strange, ["kernels/b.wgsl", "notes/"]);
    }
}
