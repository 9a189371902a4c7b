//! What MODEL on the command line means, and getting it ready to run.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_codegen::{CompileOptions, compile};
use kiln_ir::plan::ModelInfo;
use kiln_ir::{Graph, Packing, text};
use kiln_models::chat::{CHAT_FILE, Chat};
use kiln_models::checkpoint::CONFIG_FILE;
use kiln_models::registry::{EntryOptions, preset_names};
use kiln_models::source::{self, Loaded};
use kiln_models::tokenizer::{TOKENIZER_FILE, Tokenizer};
use kiln_runtime::{Artifact, WeightFn};

use crate::failure::{Failure, Result};
use crate::hub::{self, HUB_ID, OR_HUB};
use crate::interpreter::Interpretable;
use crate::output::warn;
use crate::progress::Bar;

/// The name of the built-in model.
const DEMO: &str = "demo";

/// The file that tells a compiled model from a checkpoint.
const PLAN_FILE: &str = "plan.json";

/// Which model.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    /// A name or a path
    #[arg(required_unless_present = "random_weights")]
    #[arg(help = format!(
        "`demo` (built in), a folder in the Hugging Face layout{HUB_ID}, or a compiled `.kiln` folder"
    ))]
    pub model: Option<String>,

    /// Instead of MODEL, use a published architecture with random weights, which needs
    /// no checkpoint
    #[arg(long, value_name = "PRESET", conflicts_with = "model", value_parser = preset_parser())]
    pub random_weights: Option<String>,
}

fn preset_parser() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(preset_names())
}

/// How large weights are stored.
#[derive(clap::Args, Debug)]
pub struct DtypeArgs {
    /// Type in which the large weights are stored; a compiled model keeps the one that
    /// it was compiled with. Default: f32
    #[arg(long, value_name = "DTYPE", value_parser = dtype_parser())]
    pub dtype: Option<Packing>,
}

/// Reads the name of a type of weights.
pub fn dtype_parser() -> impl clap::builder::TypedValueParser<Value = Packing> {
    use clap::builder::TypedValueParser;
    let names = clap::builder::PossibleValuesParser::new(Packing::ALL.map(Packing::name));
    names.try_map(|name| Packing::from_name(&name).ok_or("not a type of weights"))
}

/// A model, compiled or not.
pub enum Opened {
    /// A compiled folder.
    Artifact(Box<Artifact>),
    /// A checkpoint.
    Checkpoint(Box<Loaded>),
}

impl ModelArgs {
    /// What messages call the model.
    pub fn name(&self) -> &str {
        let names = [&self.random_weights, &self.model];
        names.into_iter().flatten().next().map_or("", |n| n)
    }

    /// Whether it is the built-in model.
    pub fn is_demo(&self) -> bool {
        self.random_weights.is_none() && self.name() == DEMO
    }

    /// Opens what the arguments name, from the hub if need be.
    pub fn open(&self) -> Result<Opened> {
        let checkpoint = |loaded| Opened::Checkpoint(Box::new(loaded));
        if let Some(preset) = &self.random_weights {
            return Ok(checkpoint(source::random_weights(preset, 0)?));
        }
        let name = self.name();
        if self.is_demo() {
            if holds_model(Path::new(name)) {
                warn(format_args!(
                    "`{name}` is the built-in model; the folder of that name here is `./{name}`"
                ));
            }
            return Ok(checkpoint(source::open_demo()?));
        }
        let path = Path::new(name);
        if path.join(PLAN_FILE).exists() || (path.is_dir() && is_kiln(path)) {
            let _bar = Bar::busy("checking the files");
            return Ok(Opened::Artifact(Box::new(Artifact::open(path)?)));
        }
        if path.is_dir() {
            return Ok(checkpoint(source::open_folder(path)?));
        }
        if path.exists() {
            return Err(Failure::failed(format!(
                "`{name}` is a file; a model is a folder, in the Hugging Face layout or compiled"
            )));
        }
        let fetched = match looks_like_path(name) {
            true => None,
            false => hub::folder(name)?,
        };
        let folder = fetched.ok_or_else(|| {
            Failure::failed(format!(
                "there is no folder `{name}`; a model is `{DEMO}`, a folder in the Hugging Face \
                 layout or a compiled one{OR_HUB}"
            ))
        })?;
        Ok(checkpoint(source::open_folder(&folder)?))
    }

    /// Opens a checkpoint; what is compiled is refused.
    pub fn open_checkpoint(&self, what_for: &str) -> Result<Loaded> {
        match self.open()? {
            Opened::Checkpoint(loaded) => Ok(*loaded),
            Opened::Artifact(_) => Err(Failure::failed(format!(
                "`{}` is already compiled; {what_for} takes the checkpoint that it was made from",
                self.name()
            ))),
        }
    }
}

/// Whether a folder is a model, compiled or not.
fn holds_model(folder: &Path) -> bool {
    [PLAN_FILE, CONFIG_FILE]
        .iter()
        .any(|file| folder.join(file).is_file())
}

fn is_kiln(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "kiln")
}

/// Whether a person who wrote this meant a path rather than a hub id.
fn looks_like_path(name: &str) -> bool {
    let slashes = name.matches(['/', '\\']).count();
    name.starts_with(['.', '/', '~'])
        || name.contains('\\')
        || slashes > 1
        || name.ends_with(".kiln")
}

/// Refuses tiers that have no kernels for weights of a type.
pub fn check_tier(tier: &str, packing: Packing) -> Result {
    match packing {
        Packing::F32 if is_coop(tier) => Err(Failure::usage(format!(
            "`--tier {tier}` multiplies matrices of f16, so it needs --dtype f16, q8 or q4"
        ))),
        _ => Ok(()),
    }
}

fn is_coop(tier: &str) -> bool {
    tier.starts_with("coop")
}

impl Opened {
    /// The maxima of a model's symbols for `batch` sequences.
    pub fn options_for(batch: usize) -> EntryOptions {
        EntryOptions {
            max_batch: batch.max(1) as u64,
            ..EntryOptions::default()
        }
    }

    /// What the model is.
    pub fn info(&self) -> ModelInfo {
        match self {
            Opened::Artifact(artifact) => artifact.plan().model.clone(),
            Opened::Checkpoint(loaded) => loaded.info(&EntryOptions::default()),
        }
    }

    /// Refuses a tier that has no kernels for the model's weights.
    pub fn check_tier(&self, name: &str, dtype: Option<Packing>, tier: Option<&str>) -> Result {
        let Some(tier) = tier else {
            return Ok(());
        };
        match self {
            Opened::Checkpoint(_) => check_tier(tier, dtype.unwrap_or(Packing::F32)),
            Opened::Artifact(a) if is_coop(tier) && a.plan().model.weight_dtype == "f32" => {
                Err(Failure::failed(format!(
                    "`{name}` was compiled with --dtype f32, for which there is no tier `{tier}`; \
                     compile the checkpoint again with --dtype f16, q8 or q4"
                )))
            }
            Opened::Artifact(_) => Ok(()),
        }
    }

    /// The model's own tokenizer, if it has one.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        match self {
            Opened::Checkpoint(loaded) => Ok(loaded.tokenizer.clone()),
            Opened::Artifact(artifact) => {
                let Some(json) = artifact.companion(TOKENIZER_FILE)? else {
                    return Ok(None);
                };
                let info = &artifact.plan().model;
                let tokenizer = Tokenizer::from_json(TOKENIZER_FILE, &json)?;
                let tokenizer = tokenizer.with_limit(info.vocab_size as usize);
                Ok(Some(tokenizer.with_eos(info.eos_tokens.first().copied())))
            }
        }
    }

    /// What the model needs to hold a conversation, if it can.
    pub fn chat(&self) -> Result<Option<Chat>> {
        match self {
            Opened::Checkpoint(loaded) => match &loaded.chat {
                Ok(chat) => Ok(chat.clone()),
                Err(error) => Err(Failure::failed(error.to_string())),
            },
            Opened::Artifact(artifact) => match artifact.companion(CHAT_FILE)? {
                Some(json) => Ok(Some(Chat::from_json(CHAT_FILE, &json)?)),
                None => Ok(None),
            },
        }
    }

    /// The compiled model; a checkpoint's `entries` are compiled here and now.
    pub fn into_artifact(
        self,
        name: &str,
        entries: &[&str],
        batch: usize,
        dtype: Option<Packing>,
    ) -> Result<Artifact> {
        match self {
            Opened::Artifact(artifact) => {
                check_dtype(name, artifact.plan(), dtype)?;
                Ok(*artifact)
            }
            Opened::Checkpoint(loaded) => {
                let _bar = Bar::busy("compiling");
                let options = Self::options_for(batch);
                compile_in_memory(*loaded, entries, &options, dtype.unwrap_or(Packing::F32))
            }
        }
    }

    /// The model for the interpreter.
    pub fn into_interpretable(
        self,
        name: &str,
        entries: &[&str],
        batch: usize,
        dtype: Option<Packing>,
    ) -> Result<Interpretable> {
        match self {
            Opened::Checkpoint(loaded) if matches!(dtype, None | Some(Packing::F32)) => {
                let options = Self::options_for(batch);
                let mut graphs = BTreeMap::new();
                for entry in entries {
                    graphs.insert((*entry).to_owned(), loaded.model.graph(entry, &options)?);
                }
                Ok(Interpretable {
                    info: loaded.info(&options),
                    graphs,
                    params: loaded.params,
                })
            }
            // The rounded weights of another type come out of the artifact.
            other => interpret_artifact(other.into_artifact(name, entries, batch, dtype)?),
        }
    }
}

/// Refuses a type of weights that a compiled model does not have.
pub fn check_dtype(name: &str, plan: &kiln_ir::plan::Plan, wanted: Option<Packing>) -> Result {
    let has = &plan.model.weight_dtype;
    match wanted {
        Some(wanted) if wanted.name() != has => Err(Failure::failed(format!(
            "`{name}` was compiled with --dtype {has} and cannot run as {0}; \
             compile the checkpoint again with --dtype {0}",
            wanted.name()
        ))),
        _ => Ok(()),
    }
}

/// The files that go with a model when it is compiled, by name.
pub fn companions(loaded: &Loaded) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    if let Some(tokenizer) = &loaded.tokenizer {
        files.insert(TOKENIZER_FILE.to_owned(), tokenizer.to_json()?);
    }
    // What is wrong with it is told to those who compile or talk.
    if let Ok(Some(chat)) = &loaded.chat {
        files.insert(CHAT_FILE.to_owned(), chat.to_json()?);
    }
    Ok(files)
}

fn compile_in_memory(
    loaded: Loaded,
    entries: &[&str],
    options: &EntryOptions,
    packing: Packing,
) -> Result<Artifact> {
    let mut graphs = Vec::new();
    for entry in entries {
        graphs.push(loaded.model.graph(entry, options)?);
    }
    let compile_options = CompileOptions {
        packing,
        ..CompileOptions::default()
    };
    let info = loaded.info(options);
    let compiled = compile(&graphs, info, &compile_options, &mut |_, _, _, _| {})?;
    let companions = companions(&loaded)?;
    let (plan, kernels, graphs) = (
        compiled.plan.clone(),
        compiled.kernels.clone(),
        compiled.graphs.clone(),
    );
    let params = loaded.params;
    let weights = WeightFn(move |name: &str| Ok(compiled.weight(name, params.as_ref())?));
    Ok(Artifact::from_parts(
        plan,
        kernels,
        graphs,
        companions,
        Box::new(weights),
    )?)
}

/// The graphs that an artifact carries, on its own weights.
fn interpret_artifact(artifact: Artifact) -> Result<Interpretable> {
    let mut graphs = BTreeMap::new();
    for file in artifact.graph_files() {
        let parsed = text::parse(&artifact.text(file)?);
        let graph: Graph =
            parsed.map_err(|e| Failure::because(format!("cannot read the graph `{file}`"), e))?;
        graphs.insert(graph.name.clone(), graph);
    }
    Ok(Interpretable {
        info: artifact.plan().model.clone(),
        graphs,
        params: Box::new(artifact),
    })
}
