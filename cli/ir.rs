//! `kiln ir`

use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_ir::plan::ModelInfo;
use kiln_ir::verify::verify;
use kiln_ir::{Graph, text};
use kiln_models::registry::EntryOptions;
use kiln_passes::{Changed, Pass, optimize_with, pipeline};

use crate::failure::{Failure, Result};
use crate::html::{self, Subject};
use crate::model::{ModelArgs, Opened};
use crate::out_file::parse_path;
use crate::output::print;
use crate::stages::{INPUT, Printer, Stages, pass_name, pass_names};

/// Print a model's graph, as built or after a pass
///
/// MODEL may also be a file of graphs in this text form, or `-` for standard
/// input: what is printed here can be edited and fed to any pass. The passes run
/// in a fixed order, which `--list` prints.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kiln ir demo                             the graph of a step, as built
  kiln ir demo --after fuse_linear         after a pass
  kiln ir demo --entry forward --diff      what each pass changes
  kiln ir demo | kiln ir - --pass cse      one pass on a text
  kiln ir demo --html demo.html            all of it, to look at")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The entry point to show: `step`, `forward` or `forward_attentions`. Of a
    /// file: the graph of this name; by default all
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,

    /// Show the graph after this pass; `input` is the graph as built
    #[arg(long, value_name = "PASS", value_parser = pass_name)]
    after: Option<String>,

    /// Show the graph after this pass, or after each one that changes it
    #[arg(long, value_name = "PASS|all", value_parser = Stages::parse, conflicts_with = "after")]
    print_after: Option<Stages>,

    /// Show what each pass changes, as a unified diff
    #[arg(long, conflicts_with_all = ["after", "print_after"])]
    diff: bool,

    /// Run only this pass, whose result is shown; may be given several times
    #[arg(long, value_name = "PASS", value_parser = pass_name, conflicts_with_all = ["after", "print_after"])]
    pass: Vec<String>,

    /// Write a page that shows every entry point's graph at every stage, the
    /// launches with their kernels, and the memory plan; it needs no network
    #[arg(long, value_name = "FILE", value_parser = parse_path)]
    #[arg(conflicts_with_all = ["after", "print_after", "diff", "pass"])]
    html: Option<PathBuf>,

    /// List the passes, in the order in which they run
    #[arg(long, exclusive = true)]
    list: bool,
}

pub fn run(args: &Args) -> Result {
    if args.list {
        return print(pass_names().join("\n") + "\n");
    }
    if let Some(file) = &args.html {
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
    let after = args.after.clone().filter(|pass| pass != INPUT);
    args.print_after.clone().or(after.map(Stages::After))
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
    if args.model.model.is_some() && Path::new(name).is_file() {
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
                compiled: None,
            })
        }
        Opened::Artifact(artifact) => {
            let source = artifact.graph_files().map(|file| artifact.text(file));
            let source: String = source.collect::<std::result::Result<_, _>>()?;
            let kernels = artifact.kernel_files();
            let kernels = kernels.map(|f| Ok((f.to_owned(), artifact.text(f)?.into_owned())));
            let kernels: Result<_> = kernels.collect();
            Ok(Subject {
                title,
                graphs: parse(args, &format!("`{name}`"), &source)?,
                model: artifact.plan().model.clone(),
                compiled: Some((artifact.whole_plan()?, kernels?)),
            })
        }
    }
}

/// The graphs of a text, or the one that is asked for.
fn parse(args: &Args, origin: &str, source: &str) -> Result<Vec<Graph>> {
    let parsed = text::parse_all(source);
    let graphs = parsed.map_err(|e| Failure::because(format!("{origin} is no graph"), e))?;
    for graph in &graphs {
        let valid = verify(graph);
        valid.map_err(|e| {
            Failure::because(format!("{origin}: graph `{}` is not valid", graph.name), e)
        })?;
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
