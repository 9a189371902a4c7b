//! The cases of every pass: `cases/PASS/CASE.kiln`, in the graph's text form.
//!
//! A case is a graph and, after it, what the pass makes of it; or a graph alone,
//! which the pass must leave as it is. `cases/pipeline` is for all passes, one
//! after the other. Whatever the text says, the numbers must be the same before
//! and after.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::numbers::compare;
use kiln_ir::Graph;
use kiln_ir::text::parse_all;
use kiln_ir::verify::verify;
use kiln_passes::{Pass, optimize, pipeline};

fn cases(of: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(of);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

fn run(pass: Option<&dyn Pass>, path: &Path) -> Result<bool, String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let graphs = parse_all(&text).map_err(|e| e.to_string())?;
    let (before, wanted) = match graphs.as_slice() {
        [before] => (before, None),
        [before, after] => (before, Some(after)),
        _ => return Err("expected one graph or two".to_owned()),
    };
    verify(before).map_err(|e| e.to_string())?;
    let mut after = before.clone();
    let mut fired = false;
    match pass {
        Some(pass) => fired = pass.run(&mut after).map_err(|e| e.to_string())?.any(),
        None => optimize(&mut after, &mut |_, _, changed| fired |= changed.any())
            .map_err(|e| e.to_string())?,
    }
    verify(&after).map_err(|e| format!("{e}\n{after}"))?;
    for seed in 0..4 {
        compare(before, &after, seed).map_err(|e| format!("{e}\n{after}"))?;
    }
    let text = |graph: &Graph| {
        let mut graph = graph.clone();
        graph.compact();
        graph.name.clear();
        graph.to_string()
    };
    let (found, wanted_text) = (text(&after), text(wanted.unwrap_or(before)));
    if found != wanted_text {
        return Err(format!("expected\n{wanted_text}found\n{found}"));
    }
    if fired != wanted.is_some() {
        return Err(format!("it claims to have changed something: {fired}"));
    }
    Ok(fired)
}

/// Runs every case; `both` asks for at least one that fires and one that does
/// not.
fn run_all(name: &str, pass: Option<&dyn Pass>, both: bool) -> Vec<String> {
    let mut failures = Vec::new();
    let mut seen = [false; 2];
    for path in cases(name) {
        match run(pass, &path) {
            Ok(fired) => seen[usize::from(fired)] = true,
            Err(e) => failures.push(format!("{}: {e}", path.display())),
        }
    }
    if both && failures.is_empty() && seen != [true; 2] {
        failures.push(format!(
            "`{name}` has no case that fires, or none that does not"
        ));
    }
    failures
}

#[test]
fn every_pass_does_what_its_cases_say() {
    let mut failures = Vec::new();
    for pass in pipeline() {
        failures.extend(run_all(pass.name(), Some(&*pass), true));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn the_pipeline_does_what_its_cases_say() {
    let failures = run_all("pipeline", None, false);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_folder_of_cases_is_a_pass() {
    let passes = pipeline();
    for folder in cases("") {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let known = name == "pipeline" || passes.iter().any(|p| p.name() == name);
        assert!(known, "there is no pass `{name}`");
    }
}
