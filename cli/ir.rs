//! `kiln ir`

use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_ir::plan::ModelInfo;
use kiln_ir::verify::verify;
use kiln_ir::{Graph, Packing, text};
use kiln_models::registry::EntryOptions;
use kiln_passes::{Changed, Pass, optimize_with, pipeline};

use crate::failure::{Failure, Result};
use crate::html::{self, Subject};
use crate::hub::HUB_ID;
use crate::model::{ModelArgs, Opened, check_dtype, dtype_parser};
use crate::out_file::{OutFile, parse_path};
use crate::output::print;
use crate::stages::{INPUT, Printer, Stages, pass_name, pass_names};

/// Graphs of any origin can be shown.
fn model_help() -> String {
    format!(
        "`demo` (built in), a folder in the Hugging Face layout{HUB_ID}, a compiled `.kiln` folder, \
         or a file of graphs as printed here; `-` reads graphs from standard input"
    )
}

/// Print a model's graph, as built or after a pass
///
/// The output can be edited and read back. The passes run in a fixed order, which
/// `--list` prints.
#[derive(clap::Args, Debug)]
#[command(mut_arg("model", |model| model.help(model_help())))]
#[command(after_help = "\
Examples:
  kiln ir demo                             the graph of a step, as built
  kiln ir demo --after fuse_linear         after a pass
  kiln ir demo --entry forward --diff      what each pass changes
  kiln ir demo | kiln ir - --pass cse      one pass on a text
  kiln ir demo --html demo.html            a page that shows all of it")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The entry point to show: `step`, `forward` or `forward_attentions`; in a file of
    /// graphs, the graph of this name. Default: `step`; of a file, and with `--html`, all
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,

    /// Show the graph after this pass, or with `all` after each one that changes it;
    /// `input` is the graph as built
    #[arg(long, visible_alias = "print-after", value_name = "PASS|all", value_parser = Stages::parse)]
    after: Option<Stages>,

    /// Show what each pass changes, as a unified diff
    #[arg(long, conflicts_with = "after")]
    diff: bool,

    /// Run only this pass and show the result; may be given several times
    #[arg(long, value_name = "PASS", value_parser = pass_name, conflicts_with = "after")]
    pass: Vec<String>,

    /// Write a page, readable offline, that shows the graph of every entry point after
    /// each pass, the launches with their kernels, and the memory plan
    #[arg(long, value_name = "FILE", value_parser = parse_path)]
    #[arg(conflicts_with_all = ["after", "diff", "pass"])]
    html: Option<PathBuf>,

    /// Type of the weights on the page of `--html`, whose kernels depend on it; graphs
    /// do not. Default: f32, or what the model was compiled with
    #[arg(long, value_name = "DTYPE", value_parser = dtype_parser(), requires = "html")]
    dtype: Option<Packing>,

    /// List the passes, in the order in which they run
    #[arg(long, exclusive = true)]
    list: bool,
}

pub fn run(args: &Args) -> Result {
    if args.list {
        return print(pass_names().join("\n") + "\n");
    }
    if let Some(file) = &args.html {
        OutFile::check(file)?;
        return html::write(file, subject(args)?);
    }
    let passes = passes(args);
    for mut graph in graphs(args)? {
        let entry = graph.name.clone();
        if let Some(stages) = stages(args) {
            let mut printer = Printer::new(stages);
            printer.see(&entry, INPUT, &graph, Changed::default());
            optimize_with(&passes, &mut graph, &mut |pass, graph, changed| {
                printer.see(&entry, pass, graph, changed);
            })?;
            printer.finish()?;
        } else {
            if !args.pass.is_empty() {
                optimize_with(&passes, &mut graph, &mut |_, _, _| {})?;
            }
            print(&graph)?;
        }
    }
    Ok(())
}

/// The stages to show; none for only the last.
fn stages(args: &Args) -> Option<Stages> {
    if args.diff {
        return Some(Stages::Diff);
    }
    let built = Stages::After(INPUT.to_owned());
    args.after.clone().filter(|stages| *stages != built)
}

/// The passes to run, up to the last that is shown.
fn passes(args: &Args) -> Vec<Box<dyn Pass>> {
    let find = |name: &String| pipeline().into_iter().find(|p| p.name() == name);
    match args.pass.is_empty() {
        false => args.pass.iter().filter_map(find).collect(),
        true => pipeline(),
    }
}

fn graphs(args: &Args) -> Result<Vec<Graph>> {
    if let Some(graphs) = written(args)? {
        return Ok(graphs);
    }
    let name = args.model.name();
    let entry = args.entry.as_deref().unwrap_or("step");
    match args.model.open()? {
        Opened::Checkpoint(loaded) => {
            Ok(vec![loaded.model.graph(entry, &EntryOptions::default())?])
        }
        Opened::Artifact(artifact) => {
            let file = format!("graphs/{entry}.kiln");
            let known: Vec<&str> = artifact.graph_files().collect();
            if !known.contains(&file.as_str()) {
                let known = known.join(", ");
                let message = format!("`{name}` has no graph `{entry}`; it holds {known}");
                return Err(Failure::failed(message));
            }
            parse(args, &format!("`{name}/{file}`"), &artifact.text(&file)?)
        }
    }
}

/// The graphs of a file or of standard input, if MODEL is one.
fn written(args: &Args) -> Result<Option<Vec<Graph>>> {
    let name = args.model.name();
    if name == "-" {
        let mut source = String::new();
        let read = std::io::stdin().read_to_string(&mut source);
        read.map_err(|e| Failure::because("cannot read standard input", e))?;
        return parse(args, "standard input", &source).map(Some);
    }
    // A pipe will do, such as a shell's `<(...)`.
    let path = Path::new(name);
    if args.model.model.is_some() && path.exists() && !path.is_dir() {
        let source = std::fs::read_to_string(name);
        let source = source.map_err(|e| Failure::because(format!("cannot read `{name}`"), e))?;
        return parse(args, &format!("`{name}`"), &source).map(Some);
    }
    Ok(None)
}

/// What a page is to show: all entry points, or the one that is asked for.
fn subject(args: &Args) -> Result<Subject> {
    let name = args.model.name();
    // A page does not tell where on a disk the model lay.
    let title = Path::new(name).file_name().unwrap_or(name.as_ref());
    let title = match name {
        "-" => "graph".to_owned(),
        _ => title.to_string_lossy().into_owned(),
    };
    let packing = args.dtype.unwrap_or(Packing::F32);
    if let Some(graphs) = written(args)? {
        let maxima = graphs.iter().flat_map(|g| &g.symbols).map(|s| s.max);
        let model = ModelInfo {
            max_context: maxima.max().unwrap_or(1),
            ..ModelInfo::of("")
        };
        return Ok(Subject {
            title,
            graphs,
            model,
            packing,
            compiled: None,
        });
    }
    match args.model.open()? {
        Opened::Checkpoint(loaded) => {
            let options = EntryOptions::default();
            let entries = match &args.entry {
                Some(entry) => vec![entry.as_str()],
                None => loaded.model.entries(),
            };
            let graphs = entries
                .into_iter()
                .map(|entry| loaded.model.graph(entry, &options));
            Ok(Subject {
                title,
                graphs: graphs.collect::<std::result::Result<_, _>>()?,
                model: loaded.info(&options),
                packing,
                compiled: None,
            })
        }
        Opened::Artifact(artifact) => {
            check_dtype(name, artifact.plan(), args.dtype)?;
            let source = artifact.graph_files().map(|file| artifact.text(file));
            let source: String = source.collect::<std::result::Result<_, _>>()?;
            let kernels = artifact.kernel_files();
            let kernels = kernels.map(|f| Ok((f.to_owned(), artifact.text(f)?.into_owned())));
            let kernels: Result<_> = kernels.collect();
            Ok(Subject {
                title,
                graphs: parse(args, &format!("`{name}`"), &source)?,
                model: artifact.plan().model.clone(),
                packing,
                compiled: Some((artifact.whole_plan()?, kernels?)),
            })
        }
    }
}

/// The graphs of a text, or the one that is asked for.
fn parse(args: &Args, origin: &str, source: &str) -> Result<Vec<Graph>> {
    let parsed = text::parse_all(source);
    let graphs = parsed.map_err(|e| Failure::because(format!("{origin} is not a graph"), e))?;
    if graphs.is_empty() {
        return Err(Failure::failed(format!(
            "{origin} holds no graph; `kiln ir demo` prints what one looks like"
        )));
    }
    for graph in &graphs {
        verify(graph).map_err(|e| Failure::failed(format!("{origin}: {e}")))?;
    }
    let Some(entry) = &args.entry else {
        return Ok(graphs);
    };
    let names: Vec<String> = graphs.iter().map(|g| g.name.clone()).collect();
    match graphs.into_iter().find(|g| g.name == *entry) {
        Some(graph) => Ok(vec![graph]),
        None => Err(Failure::failed(format!(
            "{origin} has no graph `{entry}`; it has {}",
            names.join(", ")
        ))),
    }
}
