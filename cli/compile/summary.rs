//! The table at the end of `kiln compile`.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_ir::plan::{BLOCK, CONTEXT, Entry, Plan, Tier, Variant};
use kiln_ir::{Bindings, DimError};

use super::Times;
use crate::failure::Result;
use crate::table::Table;
use crate::units::{bytes, count, time};

pub fn summary(output: &Path, plan: &Plan, times: &Times) -> Result<String> {
    let model = &plan.model;
    let mut text = format!(
        "{}: {}, {} parameters in {}, context {}\n\n",
        output.display(),
        model.family,
        count(model.parameters),
        model.weight_dtype,
        model.max_context,
    );
    text += &launches(plan).to_string();
    text.push('\n');

    let weights: u64 = plan.weights.iter().map(|w| w.bytes).sum();
    let mut table = Table::new(2);
    table.row(["kernels".to_owned(), plan.kernels.len().to_string()]);
    table.row(["weights".to_owned(), bytes(weights)]);
    table.row(["activations".to_owned(), activations(plan)?]);
    table.row(["cache".to_owned(), cache(plan)?]);
    let stages = [
        ("reading", times.read),
        ("building", times.build),
        ("passes", times.passes),
        ("kernels", times.kernels),
        ("weights", times.weights),
    ];
    let stages = stages.map(|(stage, t)| format!("{stage} {}", time(t)));
    table.row(["time".to_owned(), stages.join(", ")]);
    text += &table.to_string();
    Ok(text)
}

/// Launches of each entry, a column for each tier; variants that have as many
/// in every tier share a row. Every tier has the same entries.
fn launches(plan: &Plan) -> Table {
    let mut table = Table::new(1);
    let names = plan.tiers.iter().map(|t| t.name.clone());
    table.row(std::iter::once("launches".to_owned()).chain(names));
    for entry in plan
        .tiers
        .first()
        .into_iter()
        .flat_map(|t| t.entries.keys())
    {
        let mut rows: Vec<(String, Vec<String>)> = Vec::new();
        for variant in variants(plan, entry) {
            let cells = plan.tiers.iter().map(|t| match find(t, entry, variant) {
                Some(variant) => launches_of(variant).to_string(),
                None => "-".to_owned(),
            });
            let cells: Vec<String> = cells.collect();
            match rows.last_mut() {
                Some((label, same)) if *same == cells => *label += &format!(", {variant}"),
                _ => rows.push((format!("{entry}: {variant}"), cells)),
            }
        }
        for (label, cells) in rows {
            table.row(std::iter::once(label).chain(cells));
        }
    }
    table
}

/// The variants of an entry in any tier, each behind those that its tier has before
/// it.
fn variants<'p>(plan: &'p Plan, entry: &str) -> Vec<&'p str> {
    let mut names: Vec<&str> = Vec::new();
    for tier in &plan.tiers {
        let mut at = 0;
        for variant in tier.entries.get(entry).iter().flat_map(|e| &e.variants) {
            match names.iter().position(|n| *n == variant.name) {
                Some(found) => at = found,
                None => names.insert(at, &variant.name),
            }
            at += 1;
        }
    }
    names
}

fn find<'p>(tier: &'p Tier, entry: &str, variant: &str) -> Option<&'p Variant> {
    let variants = &tier.entries.get(entry)?.variants;
    variants.iter().find(|v| v.name == variant)
}

/// A stream's launches count once, however many blocks there are.
fn launches_of(variant: &Variant) -> usize {
    let streamed = variant.streams.iter().map(|s| s.launches.len());
    variant.launches.len() + streamed.sum::<usize>()
}

/// The most that buffers of a run take, and where that is.
fn activations(plan: &Plan) -> Result<String> {
    let mut most = (0, "", "");
    for tier in &plan.tiers {
        for (name, entry) in &tier.entries {
            let bytes = buffer_bytes(plan, entry)?;
            if bytes > most.0 {
                most = (bytes, name, &tier.name);
            }
        }
    }
    let (n, entry, tier) = most;
    Ok(format!("{} at most (`{entry}` of `{tier}`)", bytes(n)))
}

fn buffer_bytes(plan: &Plan, entry: &Entry) -> std::result::Result<u64, DimError> {
    let mut largest = Bindings::at_max(&plan.symbols);
    for symbol in &entry.symbols {
        largest.set(symbol.name.name(), symbol.max);
    }
    largest.set(CONTEXT, plan.model.max_context).set(BLOCK, 0);
    let mut total = 0;
    for index in plan.buffers_of(entry) {
        let Some(buffer) = entry.buffers.get(index) else {
            continue;
        };
        let mut bytes = 0;
        for size in &buffer.bytes {
            bytes = size.eval(&largest)?.max(bytes);
        }
        total += bytes;
    }
    Ok(total)
}

/// Bytes of state for one position of one sequence, and those tiers that take another
/// number than the last, which every adapter has.
fn cache(plan: &Plan) -> std::result::Result<String, DimError> {
    let one = Bindings::new().with("batch", 1).with(CONTEXT, 1);
    let of = |tier: &Tier| -> std::result::Result<u64, DimError> {
        let states = plan.states.iter();
        states.map(|s| tier.state_bytes(s).eval(&one)).sum()
    };
    let usual = plan.tiers.last().map_or(Ok(0), of)?;
    let mut others: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for tier in &plan.tiers {
        let own = of(tier)?;
        if own != usual {
            others
                .entry(own)
                .or_default()
                .push(format!("`{}`", tier.name));
        }
    }
    let mut text = format!("{} a token", bytes(usual));
    for (own, tiers) in others {
        text += &format!(", {} on {}", bytes(own), tiers.join(", "));
    }
    Ok(text)
}
