//! Names of a graph's that something else has to bear: files, members of a struct, buffers.

use std::collections::BTreeSet;

use kiln_ir::Graph;
use kiln_ir::plan::{BLOCK, CONTEXT};

use crate::error::CodegenError;
use crate::weights::{PART, SCALES};

/// Holds that each graph has a name of its own that a file can have, and that no symbol or
/// parameter is called like a size, or a buffer of another parameter, that the generator adds.
pub(crate) fn check(graphs: &[Graph]) -> Result<(), CodegenError> {
    let wrong = |what, name: &str, reason: &str| CodegenError::Name {
        what,
        name: name.to_owned(),
        reason: reason.to_owned(),
    };
    let mut entries = BTreeSet::new();
    let mut params = BTreeSet::new();
    for graph in graphs {
        let name = graph.name.as_str();
        // A file is called so, with something behind it.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            let reason = "names of entry points have letters, digits, `_`, `-` and, but for the \
                          first, `.`";
            return Err(wrong("graph", name, reason));
        }
        if !entries.insert(name) {
            let reason = "another one has this name; each is an entry point";
            return Err(wrong("graph", name, reason));
        }
        for symbol in &graph.symbols {
            let name = symbol.name.name();
            if name == CONTEXT || name == BLOCK {
                let reason = "kiln has a size of its own by that name; take another one";
                return Err(wrong("symbol", name, reason));
            }
        }
        params.extend(graph.params().map(|(name, _)| name.to_owned()));
    }
    let is_taken = |name: &&String| {
        let (whole, is_scales) = match name.strip_suffix(SCALES) {
            Some(of) => (of, true),
            None => (name.as_str(), false),
        };
        let of_part = whole
            .rsplit_once(PART)
            .filter(|(_, n)| n.parse::<u64>().is_ok());
        is_scales && params.contains(whole) || of_part.is_some_and(|(of, _)| params.contains(of))
    };
    match params.iter().find(is_taken) {
        None => Ok(()),
        Some(name) => {
            let reason = "that is what a part or the scales of another parameter are called";
            Err(wrong("parameter", name, reason))
        }
    }
}
