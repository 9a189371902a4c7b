//! What a plan must satisfy before it is run.
//!
//! The compiler checks its plans far more closely; this is what keeps a plan that
//! was damaged or written by another program from being indexed out of bounds:
//! every index and kernel name resolves, a launch binds as many buffers as its
//! kernel has, every kernel's text is there, ports and states of grids lie in
//! buffers, matrices have columns, and a stream's rows are many and its output
//! exists. What the texts of kernels do with what they bind is not looked at: they
//! are trusted as the compiler's.

use kiln_ir::plan::{Binding, Entry, Launch, Plan, Tier};

use crate::error::{Error, Result};

/// `has_text` says whether there is a text by that path.
pub(crate) fn check_plan(plan: &Plan, has_text: impl Fn(&str) -> bool) -> Result<()> {
    for (name, kernel) in &plan.kernels {
        if !has_text(&kernel.file) {
            let file = &kernel.file;
            return Err(Error::plan(format!(
                "kernel `{name}` has no text: `{file}` is not among the artifact's files of WGSL"
            )));
        }
    }
    for weight in &plan.weights {
        if weight.bytes == 0 || !weight.bytes.is_multiple_of(4) {
            return Err(Error::plan(format!(
                "weight `{}` has {} bytes, not a positive multiple of 4",
                weight.name, weight.bytes
            )));
        }
        if weight.matrix().is_some_and(|matrix| matrix.k() == 0) {
            return Err(Error::plan(format!(
                "the matrix `{}` has rows of no elements",
                weight.name
            )));
        }
    }
    plan.tiers
        .iter()
        .try_for_each(|tier| check_tier(plan, tier))
}

pub(crate) fn check_tier(plan: &Plan, tier: &Tier) -> Result<()> {
    for (name, entry) in &tier.entries {
        let place = format!("tier `{}`, entry `{name}`", tier.name);
        check_entry(plan, entry).map_err(|e| Error::plan(format!("{place}: {e}")))?;
    }
    Ok(())
}

fn check_entry(plan: &Plan, entry: &Entry) -> std::result::Result<(), String> {
    for port in entry.inputs.iter().chain(&entry.outputs) {
        if port.buffer >= entry.buffers.len() {
            return Err(format!("`{}` lies in no buffer", port.name));
        }
    }
    if entry.variants.is_empty() {
        return Err("no variant".to_owned());
    }
    for variant in &entry.variants {
        for stream in &variant.streams {
            if stream.output >= entry.outputs.len() || stream.rows_per_block == 0 {
                return Err(format!("variant `{}` has a bad stream", variant.name));
            }
        }
        if let Some(grid) = &variant.grid
            && grid.state >= entry.buffers.len()
        {
            return Err(format!(
                "the grid of variant `{}` has its state in no buffer",
                variant.name
            ));
        }
        for variant in variant.each_way() {
            for launch in variant.all_launches() {
                check_launch(plan, entry, launch)?;
            }
        }
    }
    Ok(())
}

fn check_launch(plan: &Plan, entry: &Entry, launch: &Launch) -> std::result::Result<(), String> {
    let label = &launch.label;
    let Some(kernel) = plan.kernels.get(&launch.kernel) else {
        return Err(format!("`{label}`: no kernel `{}`", launch.kernel));
    };
    let (found, wanted) = (launch.bindings.len(), kernel.bindings.len());
    if found != wanted {
        return Err(format!(
            "`{label}` binds {found} buffers, its kernel has {wanted}"
        ));
    }
    for binding in &launch.bindings {
        let fits = match *binding {
            Binding::Weight(i) => i < plan.weights.len(),
            Binding::State(i) => i < plan.states.len(),
            Binding::Buffer(i) => i < entry.buffers.len(),
        };
        if !fits {
            return Err(format!("`{label}`: {binding:?} does not exist"));
        }
    }
    Ok(())
}
