//! Showing graphs between passes.

use kiln_ir::Graph;
use kiln_passes::{Changed, pipeline};
use similar::TextDiff;

use crate::failure::{Failure, Result};
use crate::output::print;

/// What the graph before the first pass is called.
pub const INPUT: &str = "input";

/// Which stages are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stages {
    /// The graph after this pass.
    After(String),
    /// The graph after each pass that changed it.
    All,
    /// What each pass changed.
    Diff,
}

impl Stages {
    /// What `--print-after` and its like take: a pass, `input`, or `all`.
    pub fn parse(text: &str) -> std::result::Result<Stages, String> {
        match text {
            "all" => Ok(Stages::All),
            text => pass_name(text).map(Stages::After),
        }
    }
}

/// The name of a pass, or `input`.
pub fn pass_name(text: &str) -> std::result::Result<String, String> {
    let names = pass_names();
    match text == INPUT || names.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("the passes are {INPUT}, {}", names.join(", "))),
    }
}

/// All passes, in the order in which they run.
pub fn pass_names() -> Vec<&'static str> {
    pipeline().iter().map(|pass| pass.name()).collect()
}

/// Prints stages as they pass by.
pub struct Printer {
    stages: Stages,
    /// The stage before, for differences.
    before: String,
    failure: Option<Failure>,
}

impl Printer {
    pub fn new(stages: Stages) -> Self {
        Printer {
            stages,
            before: String::new(),
            failure: None,
        }
    }

    /// Takes the graph of `entry` as `pass` left it; `input` is no pass and comes
    /// first.
    pub fn see(&mut self, entry: &str, pass: &str, graph: &Graph, changed: Changed) {
        if self.failure.is_some() {
            return;
        }
        let text = match &self.stages {
            Stages::After(wanted) if wanted != pass => return,
            Stages::All | Stages::Diff if pass != INPUT && !changed.any() => return,
            Stages::After(_) | Stages::All => {
                format!("// {entry}, {}\n{graph}\n", title(pass, changed))
            }
            Stages::Diff => self.diff(entry, pass, graph, changed),
        };
        self.failure = print(text).err();
    }

    fn diff(&mut self, entry: &str, pass: &str, graph: &Graph, changed: Changed) -> String {
        let before = std::mem::replace(&mut self.before, graph.to_string());
        if pass == INPUT {
            return String::new();
        }
        let diff = TextDiff::from_lines(&before, &self.before);
        let mut unified = diff.unified_diff();
        unified.context_radius(2);
        format!("// {entry}, {}\n{unified}\n", title(pass, changed))
    }

    /// Whether all could be printed.
    pub fn finish(self) -> Result {
        self.failure.map_or(Ok(()), Err)
    }
}

fn title(pass: &str, changed: Changed) -> String {
    match (pass, changed.rewrites) {
        (INPUT, _) => "as built".to_owned(),
        (pass, 1) => format!("after {pass}: 1 rewrite"),
        (pass, n) => format!("after {pass}: {n} rewrites"),
    }
}
