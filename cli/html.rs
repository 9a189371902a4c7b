//! `kiln ir --html`: a page on which a model can be read.
//!
//! The page shows each entry point's graph as built and after each pass, the
//! launches of each tier with their kernels, the memory plan over time, and the
//! weights. It is one file without references to others, so it can be kept, sent
//! and opened without a network. What it shows is in it as JSON, which [`stages`]
//! and [`lowered`] make; the scripts in `html/page` draw it. The same model gives
//! the same bytes.

mod intern;
mod lowered;
mod stages;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use kiln_codegen::{CompileOptions, lower};
use kiln_ir::plan::{ModelInfo, Plan};
use kiln_ir::{Graph, Packing};
use kiln_passes::optimize;
use serde::Serialize;

use crate::failure::Result;
use crate::out_file::OutFile;
use crate::output::warn;
use crate::stages::INPUT;
use lowered::Lowered;
use stages::{Graphs, Recorder};

const TEMPLATE: &str = include_str!("html/page/page.html");
const STYLE: &str = include_str!("html/page/page.css");

/// In the order of their use of each other; together they are one module.
const SCRIPTS: [&str; 13] = [
    include_str!("html/page/dom.js"),
    include_str!("html/page/dim.js"),
    include_str!("html/page/data.js"),
    include_str!("html/page/state.js"),
    include_str!("html/page/fold.js"),
    include_str!("html/page/layout.js"),
    include_str!("html/page/picture.js"),
    include_str!("html/page/graph.js"),
    include_str!("html/page/wgsl.js"),
    include_str!("html/page/launches.js"),
    include_str!("html/page/memory.js"),
    include_str!("html/page/weights.js"),
    include_str!("html/page/main.js"),
];

/// What a page is about.
pub struct Subject {
    /// What to call the model.
    pub title: String,
    /// The graphs of its entry points, as built.
    pub graphs: Vec<Graph>,
    /// What is known of the model.
    pub model: ModelInfo,
    /// How weights are stored, if it is not compiled already.
    pub packing: Packing,
    /// Its plan and kernels (by path), if it is.
    pub compiled: Option<(Plan, BTreeMap<String, String>)>,
}

/// All that the page shows.
#[derive(Serialize)]
struct Data {
    title: String,
    family: String,
    parameters: u64,
    weight_dtype: String,
    max_context: u64,
    graphs: Graphs,
    lowered: Option<Lowered>,
    /// Why there is no plan, if there is none.
    not_lowered: Option<String>,
}

/// Writes the page about `subject` to `file`.
pub fn write(file: &Path, subject: Subject) -> Result {
    // Nothing is left of a file that was not begun.
    let page = page(subject)?;
    let mut file = OutFile::create(file)?;
    file.write(page.as_bytes())?;
    file.finish()
}

fn page(subject: Subject) -> Result<String> {
    let data = data(subject)?;
    let title = escape(&data.title);
    let json = in_script(&serde_json::to_string(&data)?);
    let script = SCRIPTS.join("\n");
    let parts = [
        ("title", &*title),
        ("style", STYLE),
        ("data", &*json),
        ("script", &*script),
    ];
    Ok(fill(TEMPLATE, &parts))
}

fn data(subject: Subject) -> Result<Data> {
    let mut recorder = Recorder::default();
    let mut optimised = Vec::new();
    for graph in &subject.graphs {
        let mut graph = graph.clone();
        recorder.begin(&graph);
        recorder.see(INPUT, &graph, 0);
        optimize(&mut graph, &mut |pass, graph, changed| {
            recorder.see(pass, graph, changed.rewrites);
        })?;
        optimised.push(graph);
    }
    let made = match subject.compiled {
        Some(compiled) => Ok(compiled),
        // A graph that a person wrote may lack kernels, and can be shown still.
        None => lower(
            &subject.graphs,
            &optimised,
            subject.model.clone(),
            &CompileOptions {
                packing: subject.packing,
                ..CompileOptions::default()
            },
        )
        .map(|c| (c.plan, c.kernels)),
    };
    let (lowered, not_lowered) = match made {
        Ok((plan, kernels)) => (
            Some((Lowered::new(&plan, &kernels, &subject.graphs), plan.model)),
            None,
        ),
        Err(error) => {
            warn(format_args!("the page shows no launches: {error}"));
            (None, Some(error.to_string()))
        }
    };
    let (lowered, model) = match lowered {
        Some((lowered, model)) => (Some(lowered), model),
        None => (None, subject.model),
    };
    Ok(Data {
        title: subject.title,
        family: model.family,
        parameters: model.parameters,
        weight_dtype: model.weight_dtype,
        max_context: model.max_context,
        graphs: recorder.finish(),
        lowered,
        not_lowered,
    })
}

/// `template` with each `{{name}}` replaced. What is put in is not looked at
/// again.
fn fill(template: &str, parts: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        let part = parts.iter().find(|(n, _)| *n == name);
        out.push_str(before);
        out.push_str(part.map_or("", |(_, text)| text));
        rest = after;
    }
    out + rest
}

/// Text as HTML.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// JSON that cannot end the script element that it stands in: these characters
/// occur only within its strings, where they may be written as escapes.
fn in_script(json: &str) -> String {
    json.replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
}
