//! Compiled artifacts: a folder, or its parts in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Seek};
use std::path::{Component, Path, PathBuf};

use kiln_ir::plan::{Kernel, PLAN_VERSION, Plan, Tier, tier_file};
use rayon::prelude::*;

use crate::check::{check_plan, check_tier};
use crate::error::{Altered, Error, Result};
use crate::tier::no_such_tier;
use crate::weights::{MappedWeights, WeightSource, missing};

const PLAN_FILE: &str = "plan.json";
const WEIGHT_FILE: &str = "weights.safetensors";

/// What the file of a kernel, and that of a graph, ends with in a folder.
const KERNEL_FILE: &str = ".wgsl";
const GRAPH_FILE: &str = ".kiln";

/// A plan with its kernels' text and weights.
pub struct Artifact {
    plan: Plan,
    texts: Texts,
    weights: Box<dyn WeightSource>,
}

/// Where the texts of kernels, graphs and companions are, by path, and with a folder what
/// tiers launch.
enum Texts {
    /// In the files of a folder, which are read when they are wanted: a run needs the
    /// kernels of one tier, and those of all take 3 to 6 MB for GPT-2.
    Folder(PathBuf),
    Memory {
        kernels: BTreeMap<String, String>,
        graphs: BTreeMap<String, String>,
        companions: BTreeMap<String, String>,
    },
}

impl Texts {
    /// A text that is in memory.
    fn get(&self, file: &str) -> Option<&str> {
        match self {
            Texts::Folder(_) => None,
            Texts::Memory {
                kernels, graphs, ..
            } => {
                let text = kernels.get(file).or_else(|| graphs.get(file));
                text.map(String::as_str)
            }
        }
    }
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact")
            .field("model", &self.plan.model)
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

impl Artifact {
    /// Opens a `.kiln` folder and checks it: the plan's version, and that every
    /// file the plan lists is there with the hash it lists. The folder has to stay as it is:
    /// texts, tiers and weights are read, and what tiers say is checked, when they are wanted.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::File`] for a missing or altered file,
    /// [`Error::Plan`] and [`Error::Weight`] for content that does not fit.
    pub fn open(dir: &Path) -> Result<Self> {
        let plan = read_plan(dir)?;
        verify_files(dir, &plan)?;

        let is_text = |file: &str| file.ends_with(KERNEL_FILE) && plan.files.contains_key(file);
        check_plan(&plan, is_text)?;
        for tier in plan.tiers.iter().filter(|t| t.entries.is_empty()) {
            listed_tier(&plan, &tier.name)?;
        }

        let weights: Box<dyn WeightSource> = if plan.weights.is_empty() {
            Box::new(BTreeMap::<String, Vec<u8>>::new())
        } else {
            let unlisted = !plan.files.contains_key(WEIGHT_FILE);
            if unlisted {
                return Err(Error::plan(format!("it does not list `{WEIGHT_FILE}`")));
            }
            let mapped = MappedWeights::open(&dir.join(WEIGHT_FILE))?;
            for weight in &plan.weights {
                match mapped.bytes_of(&weight.name) {
                    None => return Err(missing(&weight.name)),
                    Some(bytes) if bytes != weight.bytes => {
                        return Err(wrong_size(&weight.name, bytes, weight.bytes));
                    }
                    Some(_) => {}
                }
            }
            Box::new(mapped)
        };
        Ok(Artifact {
            plan,
            // Files are read later, when the process may have another working directory.
            texts: Texts::Folder(std::path::absolute(dir).map_err(|source| Error::Io {
                path: dir.to_owned(),
                source,
            })?),
            weights,
        })
    }

    /// An artifact from parts in memory, as the compiler makes them. `kernels`
    /// are texts by the path that [`Kernel::file`](kiln_ir::plan::Kernel::file)
    /// names, `graphs` by `graphs/ENTRY.kiln`, and `companions` by the names for which
    /// [`Artifact::companion`] is asked. [`Plan::files`] is not looked at.
    ///
    /// # Errors
    /// [`Error::Version`] or [`Error::Plan`].
    pub fn from_parts(
        plan: Plan,
        kernels: BTreeMap<String, String>,
        graphs: BTreeMap<String, String>,
        companions: BTreeMap<String, String>,
        weights: Box<dyn WeightSource>,
    ) -> Result<Self> {
        if plan.version != PLAN_VERSION {
            return Err(version(u64::from(plan.version)));
        }
        check_plan(&plan, |file| kernels.contains_key(file))?;
        Ok(Artifact {
            plan,
            texts: Texts::Memory {
                kernels,
                graphs,
                companions,
            },
            weights,
        })
    }

    /// The plan. Where it was read from a folder its tiers have no entry points:
    /// [`Artifact::tier`] has them.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A tier with its entry points, which are read from the folder if there is one.
    ///
    /// # Errors
    /// [`Error::NoSuchTier`] when there is none; [`Error::File`], [`Error::Io`] or
    /// [`Error::Plan`] when its file is not what the plan lists, or not what a plan demands.
    pub fn tier(&self, name: &str) -> Result<Cow<'_, Tier>> {
        let Some(tier) = self.plan.tiers.iter().find(|t| t.name == name) else {
            return Err(no_such_tier(&self.plan, name));
        };
        let dir = match &self.texts {
            Texts::Folder(dir) if tier.entries.is_empty() => dir,
            _ => return Ok(Cow::Borrowed(tier)),
        };
        let (file, hash) = listed_tier(&self.plan, name)?;
        verify_file(dir, &file, hash)?;
        let path = dir.join(&file);
        let opened = File::open(&path).map_err(|source| Error::Io { path, source })?;
        let entries = serde_json::from_reader(BufReader::new(opened));
        let entries = entries.map_err(|e| Error::plan(format!("`{file}`: {e}")))?;
        let tier = tier.with_entries(entries);
        check_tier(&self.plan, &tier)?;
        Ok(Cow::Owned(tier))
    }

    /// The plan with the entry points of all tiers.
    ///
    /// # Errors
    /// As [`Artifact::tier`].
    pub fn whole_plan(&self) -> Result<Plan> {
        let tiers = self.plan.tiers.iter();
        let tiers = tiers.map(|t| Ok(self.tier(&t.name)?.into_owned()));
        Ok(Plan {
            tiers: tiers.collect::<Result<_>>()?,
            ..self.plan.clone()
        })
    }

    /// The plan's kernel `name`.
    pub(crate) fn kernel(&self, name: &str) -> Result<&Kernel> {
        let kernel = self.plan.kernels.get(name);
        kernel.ok_or_else(|| Error::plan(format!("there is no kernel `{name}`")))
    }

    /// The paths of the kernels' texts, in the order of the kernels' names.
    pub fn kernel_files(&self) -> impl Iterator<Item = &str> {
        self.plan.kernels.values().map(|k| k.file.as_str())
    }

    /// The paths of the graphs' texts (`graphs/step.kiln`), in order.
    pub fn graph_files(&self) -> impl Iterator<Item = &str> {
        let (of_folder, of_memory) = match &self.texts {
            Texts::Folder(_) => (Some(self.plan.files.keys()), None),
            Texts::Memory { graphs, .. } => (None, Some(graphs.keys())),
        };
        let of_folder = of_folder.into_iter().flatten();
        let of_folder = of_folder.filter(|f| f.ends_with(GRAPH_FILE));
        let all = of_folder.chain(of_memory.into_iter().flatten());
        all.map(String::as_str)
    }

    /// A kernel's WGSL or a graph's text, by its path.
    ///
    /// # Errors
    /// [`Error::NoSuchText`] when there is none; [`Error::File`] when its file has gone or is
    /// no longer what the plan lists, and [`Error::Io`] when it cannot be read.
    pub fn text(&self, file: &str) -> Result<Cow<'_, str>> {
        let none = || Error::NoSuchText {
            file: file.to_owned(),
        };
        let dir = match &self.texts {
            Texts::Folder(dir) => dir,
            held => return held.get(file).map(Cow::Borrowed).ok_or_else(none),
        };
        let hash = self.text_hash(file).ok_or_else(none)?;
        read_text(dir, file, &hash).map(Cow::Owned)
    }

    /// The text of a file that goes with the model and that this crate does not read, such
    /// as its tokenizer; none if the artifact has no such file.
    ///
    /// # Errors
    /// [`Error::File`] when the file has gone or is no longer what the plan lists, and
    /// [`Error::Io`] when it cannot be read.
    pub fn companion(&self, file: &str) -> Result<Option<Cow<'_, str>>> {
        match &self.texts {
            Texts::Memory { companions, .. } => Ok(companions
                .get(file)
                .map(|text| Cow::Borrowed(text.as_str()))),
            // Companions lie beside the plan.
            Texts::Folder(dir) => match self.plan.files.get(file) {
                Some(hash) if !file.contains('/') && file != WEIGHT_FILE => {
                    read_text(dir, file, hash).map(|text| Some(Cow::Owned(text)))
                }
                _ => Ok(None),
            },
        }
    }

    /// The BLAKE3 hash of a kernel's WGSL or a graph's text, in hexadecimal.
    pub(crate) fn text_hash(&self, file: &str) -> Option<Cow<'_, str>> {
        match &self.texts {
            Texts::Folder(_) => {
                let is_text = file.ends_with(KERNEL_FILE) || file.ends_with(GRAPH_FILE);
                let hash = self.plan.files.get(file).filter(|_| is_text)?;
                Some(Cow::Borrowed(hash))
            }
            held => {
                let hash = blake3::hash(held.get(file)?.as_bytes()).to_hex();
                Some(Cow::Owned(hash.to_string()))
            }
        }
    }

    /// The folder, as an absolute path, unless the artifact is in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.texts {
            Texts::Folder(dir) => Some(dir),
            Texts::Memory { .. } => None,
        }
    }

    /// Where the weights' bytes come from.
    pub fn weights(&self) -> &dyn WeightSource {
        self.weights.as_ref()
    }

    /// All bytes of the packed weight `name`.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be read.
    pub fn weight(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.weights.visit(name, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }
}

pub(crate) fn wrong_size(name: &str, found: u64, wanted: u64) -> Error {
    Error::Weight {
        name: name.to_owned(),
        reason: format!("it has {found} bytes, the plan wants {wanted}"),
    }
}

fn version(found: u64) -> Error {
    Error::Version {
        found,
        supported: PLAN_VERSION,
    }
}

/// The text of a file that has this hash.
fn read_text(dir: &Path, file: &str, hash: &str) -> Result<String> {
    let path = dir.join(file);
    let bytes = match fs::read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(altered(dir, file, Altered::Missing));
        }
        bytes => bytes.map_err(|source| Error::Io { path, source })?,
    };
    if blake3::hash(&bytes).to_hex().as_str() != hash {
        return Err(altered(dir, file, Altered::Altered));
    }
    let text = String::from_utf8(bytes);
    text.map_err(|_| Error::plan(format!("`{file}` is not UTF-8 text")))
}

/// The file of a tier's entry points, and its hash.
fn listed_tier<'p>(plan: &'p Plan, name: &str) -> Result<(String, &'p str)> {
    let file = tier_file(name);
    match plan.files.get(&file) {
        Some(hash) => Ok((file, hash)),
        None => Err(Error::plan(format!(
            "it does not list `{file}`; compile the model again"
        ))),
    }
}

fn altered(dir: &Path, file: &str, how: Altered) -> Error {
    Error::File {
        artifact: dir.to_owned(),
        file: file.to_owned(),
        how,
    }
}

/// What is read of any version's plan.
#[derive(serde::Deserialize)]
struct Head {
    version: Option<serde_json::Value>,
}

impl Head {
    fn version(&self) -> Option<u64> {
        self.version.as_ref()?.as_u64()
    }
}

fn read_plan(dir: &Path) -> Result<Plan> {
    let path = dir.join(PLAN_FILE);
    let io = |source| Error::Io {
        path: dir.to_owned(),
        source,
    };
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound && dir.is_dir() => {
            return Err(altered(dir, PLAN_FILE, Altered::Missing));
        }
        Err(source) => return Err(io(source)),
    };
    // As a stream: once a block of megabytes is given back, glibc takes all blocks up to that
    // size from its heap, where gaps are left (7 MB of a run's peak).
    let parsed: serde_json::Result<Plan> = serde_json::from_reader(BufReader::new(&file));
    // Another version's plan need not parse as ours.
    let found = match &parsed {
        Ok(plan) => Some(u64::from(plan.version)),
        Err(_) => {
            file.rewind().map_err(io)?;
            let head: serde_json::Result<Head> = serde_json::from_reader(BufReader::new(&file));
            head.map_or(Some(PLAN_VERSION.into()), |head| head.version())
        }
    };
    match found {
        Some(v) if v == u64::from(PLAN_VERSION) => {}
        Some(v) => return Err(version(v)),
        None => return Err(Error::plan(format!("`{PLAN_FILE}` has no version"))),
    }
    parsed.map_err(|e| Error::plan(format!("`{PLAN_FILE}`: {e}")))
}

fn verify_files(dir: &Path, plan: &Plan) -> Result<()> {
    let files: Vec<_> = plan.files.iter().collect();
    let checked: Vec<Result<()>> = files
        .par_iter()
        .map(|(file, hash)| verify_file(dir, file, hash))
        .collect();
    // The first in the plan's order, so that the message is always the same.
    checked.into_iter().collect()
}

fn verify_file(dir: &Path, file: &str, hash: &str) -> Result<()> {
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_));
    if !Path::new(file).components().all(inside) {
        return Err(Error::plan(format!("`{file}` lies outside the artifact")));
    }
    let how = |how| altered(dir, file, how);
    let path = dir.join(file);
    let mut hasher = blake3::Hasher::new();
    match hasher.update_mmap_rayon(&path) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(how(Altered::Missing)),
        Err(source) => return Err(Error::Io { path, source }),
    }
    match hasher.finalize().to_hex().as_str() == hash {
        true => Ok(()),
        false => Err(how(Altered::Altered)),
    }
}
