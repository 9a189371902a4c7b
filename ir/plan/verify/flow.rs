//! Invariants 18 to 21: who writes what before whom.

use std::collections::{BTreeMap, BTreeSet};

use super::Report;
use crate::plan::{Binding, Entry, Launch, Plan, Variant};

/// What a sequence of launches does to the buffers of an entry point.
#[derive(Default)]
struct Trace {
    /// Written so far.
    written: BTreeSet<usize>,
    /// Read before the sequence wrote them.
    needed: BTreeSet<usize>,
}

pub(super) fn check(plan: &Plan, entry: &Entry, variant: &Variant, report: &mut Report) {
    let inputs: BTreeSet<usize> = entry.inputs.iter().map(|p| p.buffer).collect();
    let joins = variant.grid.is_some();
    let main = trace((plan, entry, joins), &variant.launches, &inputs, report);
    let before: BTreeSet<usize> = inputs.union(&main.written).copied().collect();
    let streams = variant.streams.iter();
    let streams = streams.map(|s| trace((plan, entry, joins), &s.launches, &before, report));
    let streams: Vec<Trace> = streams.collect();

    for (index, port) in entry.outputs.iter().enumerate() {
        let subject = format!("output `{}`", port.name);
        let own = variant.streams.iter().position(|s| s.output == index);
        let (written, by) = match own.and_then(|i| streams.get(i)) {
            Some(stream) => (&stream.written, "its stream"),
            None => (&before, "the launches"),
        };
        if !written.contains(&port.buffer) {
            let expected = format!("{} to be written by {by}", named(entry, port.buffer));
            report.error(20, subject.clone(), expected, "no launch that does");
        }
        for (at, stream) in streams.iter().enumerate() {
            if own != Some(at) && stream.written.contains(&port.buffer) {
                let expected = format!("{} to itself", named(entry, port.buffer));
                let found = format!("stream {at}, which writes it");
                report.error(21, subject.clone(), expected, found);
            }
        }
    }
    for (at, stream) in streams.iter().enumerate() {
        for buffer in &stream.needed {
            let writer = streams.iter().position(|s| s.written.contains(buffer));
            if let Some(writer) = writer {
                let expected = format!("{} unchanged between blocks", named(entry, *buffer));
                let found = format!("stream {writer}, which writes it");
                report.error(21, format!("stream {at}"), expected, found);
            }
        }
    }
}

/// Outputs lie apart.
pub(super) fn outputs_apart(entry: &Entry, report: &mut Report) {
    let mut taken = BTreeMap::new();
    for port in &entry.outputs {
        if let Some(other) = taken.insert(port.buffer, &port.name) {
            let found = format!("{}, which is that of `{other}`", named(entry, port.buffer));
            let subject = format!("output `{}`", port.name);
            report.error(21, subject, "a buffer of its own", found);
        }
    }
}

fn named(entry: &Entry, buffer: usize) -> String {
    let name = entry.buffers.get(buffer).map_or("?", |b| b.name.as_str());
    format!("buffer {buffer} (`{name}`)")
}

fn describe(plan: &Plan, entry: &Entry, binding: Binding) -> String {
    match binding {
        Binding::Buffer(i) => named(entry, i),
        Binding::Weight(i) => {
            let name = plan.weights.get(i).map_or("?", |w| w.name.as_str());
            format!("weight `{name}`")
        }
        Binding::State(i) => {
            let name = plan.states.get(i).map_or("?", |s| s.name.as_str());
            format!("state `{name}`")
        }
    }
}

/// `joins` says that a launch may be several, one after the other.
fn trace(
    (plan, entry, joins): (&Plan, &Entry, bool),
    launches: &[Launch],
    before: &BTreeSet<usize>,
    report: &mut Report,
) -> Trace {
    let mut out = Trace::default();
    for launch in launches {
        report.place.launch.clone_from(&launch.label);
        let mut writes = BTreeSet::new();
        let mut reads = BTreeSet::new();
        for (binding, access) in plan.bound(launch) {
            let repeated = if access.writes() {
                let again = !writes.insert(binding);
                (again && !joins) || reads.contains(&binding)
            } else {
                reads.insert(binding);
                writes.contains(&binding)
            };
            if repeated {
                let subject = describe(plan, entry, binding);
                let expected = "to be bound once, as it is written";
                report.error(18, subject, expected, "another binding of it");
            }
        }
        for binding in &reads {
            let Binding::Buffer(buffer) = *binding else {
                continue;
            };
            if !out.written.contains(&buffer) {
                out.needed.insert(buffer);
                if !before.contains(&buffer) {
                    let subject = named(entry, buffer);
                    let expected = "to be written before it is read";
                    report.error(19, subject, expected, "no earlier launch that does");
                }
            }
        }
        for binding in &writes {
            match *binding {
                Binding::Buffer(buffer) => {
                    out.written.insert(buffer);
                }
                Binding::Weight(_) => {
                    let subject = describe(plan, entry, *binding);
                    report.error(18, subject, "to be read only", "a kernel that writes it");
                }
                Binding::State(_) => {}
            }
        }
    }
    report.place.launch.clear();
    out
}
