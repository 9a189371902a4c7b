//! The plan verifier: what has to hold of a [`Plan`] before anyone runs it.
//!
//! Sizes are checked at two points: with every symbol at its maximum, and at the
//! least, where each is one, `past` and [`BLOCK`] zero. The maxima are those of
//! [`Plan::symbols`], replaced by [`Entry::symbols`](super::Entry::symbols) and,
//! within a variant, by those of its bounds that are about one symbol.
//! [`CONTEXT`] is at most [`ModelInfo::max_context`](super::ModelInfo::max_context).
//! Limits are those that a tier requires, or a grid or an
//! [`Alternative`](super::Alternative) besides, else WebGPU's defaults. A variant whose
//! launches have alternatives is checked with the first of each, the second, and so on;
//! that any of them may be mixed follows from 27.
//!
//! The plan's names
//!
//! 1. The version is [`PLAN_VERSION`].
//! 2. A symbol is declared once in a list, has a name that the text form can
//!    read, is not [`CONTEXT`] or [`BLOCK`], and its maximum is from 1 to
//!    2^31 - 1; so is the largest context.
//! 3. Weights, states, tiers, and an entry's inputs and outputs have names, unique
//!    among their kind.
//! 4. A kernel's file is a relative path that stays inside the artifact; a kernel
//!    writes at least one of its bindings.
//! 5. The uniform block lists known symbols, each once, and every symbol that a
//!    size of an entry point uses; [`BLOCK`] too if there is a stream.
//!
//! Weights
//!
//! 6. A weight buffer has a positive multiple of 16 bytes.
//! 7. Its parts have elements, start at multiples of 16, lie inside it and do not
//!    overlap.
//! 8. The parts of a parameter in one packing hold each of its rows exactly once.
//!
//! References
//!
//! 9. Every kernel, weight, state, buffer and output that is referred to exists.
//! 10. A launch has as many bindings as its kernel.
//!
//! Sizes
//!
//! 11. A size uses only symbols that have a value where it stands: those of the
//!     entry point, [`CONTEXT`] except in the types of inputs and outputs and in the
//!     ranges of slices, and [`BLOCK`] in the launches of streams alone.
//! 12. Every size, but for the ranges of slices, has a value, not negative and below
//!     2^63, at the maxima and at the least sizes.
//! 13. At the maxima, every buffer, and every state and weight that is bound, has
//!     a multiple of 4 bytes and is no larger than a storage binding may be, or an
//!     image no larger than a texture.
//! 14. Inputs and outputs fit their buffers; of an output that is streamed, a
//!     block does.
//! 15. A grid at the maxima folds into two dimensions.
//! 16. A kernel that a tier launches has no more storage bindings and textures, and no
//!     larger workgroups, than the tier's adapters offer.
//! 17. An entry point has variants without a grid, which a runtime may leave out;
//!     one of them takes the maxima, and one the least sizes.
//!
//! The flow of data
//!
//! 18. A launch does not bind a buffer that it writes a second time, and does not
//!     write weights. In a variant with a grid it may bind one several times if it
//!     may write all of them.
//! 19. A launch reads no buffer that nothing wrote before. Inputs, weights and
//!     states count as written; a binding that a kernel writes does not count as
//!     read, though the kernel may do that too. A stream reads what the variant's launches or its
//!     own earlier launches wrote: other streams may be left out of a run.
//! 20. Every output is written: by its stream if it has one, else by the launches
//!     (or it is an input).
//! 21. Outputs have buffers of their own. A stream writes no buffer that a whole
//!     output, another stream, or its own next block still needs.
//! 22. A stream has rows in a block and as many rows as its output, and an output
//!     has one stream at most.
//!
//! Checks
//!
//! 23. The kernel of a check, of a tier or a grid, exists and binds the words; a
//!     check has from 1 to 65,535 workgroups and at least one word. A tier that requires
//!     a size of subgroups has checks.
//!
//! Grids
//!
//! 24. The state of a variant's grid is a zeroed buffer of 8 bytes at the least that
//!     is no port's, and launches of variants with the same state alone bind it. No
//!     buffer that is zeroed is a port's or an image. (Which others have to be zeroed, a
//!     plan does not say by itself.)
//! 25. A launch that binds it has a constant number of workgroups, a power of two.
//!
//! Images
//!
//! 26. What is bound as texels is a weight, a state or an image. An image is bound in
//!     no other way, and neither is a state that is so once in an entry point; where
//!     states are of f16 none is. No port's buffer is an image. One that a kernel reads
//!     and writes is bound in variants with a grid alone.
//!
//! Alternatives
//!
//! 27. An alternative binds what its launch does, to read or to write it as there, but for
//!     buffers of no port that no launch of the entry point binds as it stands.
//!
//! Rows
//!
//! 28. An entry point's rows, if they are bounded, are no fewer than its largest batch and
//!     the most tokens of a sequence.
//!
//! All errors are collected.
//!
//! Buffers are whole objects here: a plan does not say which values a buffer
//! holds one after the other. That a buffer is not given to a second value while
//! the first is still needed is therefore checked where buffers are assigned, in
//! the code generator, and not here.

mod entry;
mod flow;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use entry::default_limit;

use super::{BLOCK, CONTEXT, Check, PAST, PLAN_VERSION, Plan};
use crate::dim::{Bindings, Dim, DimError, SymbolDecl};
use crate::verify::is_symbol_name;

/// Where in a plan an error is. What does not apply is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The tier's name.
    pub tier: String,
    /// The entry point's name.
    pub entry: String,
    /// The variant's name.
    pub variant: String,
    /// The launch's label.
    pub launch: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("tier", &self.tier),
            ("entry", &self.entry),
            ("variant", &self.variant),
            ("launch", &self.launch),
        ];
        let mut separator = "";
        for (kind, name) in parts.into_iter().filter(|(_, name)| !name.is_empty()) {
            write!(f, "{separator}{kind} `{name}`")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PlanError {
    /// The number of the invariant in the list at the head of this module.
    pub invariant: u8,
    /// Where it is.
    pub place: Place,
    /// What it is about: a name with its kind, or a part of the launch.
    pub subject: String,
    /// What has to hold.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != Place::default() {
            write!(f, "{}: ", self.place)?;
        }
        let (subject, expected, found) = (&self.subject, &self.expected, &self.found);
        write!(f, "{subject}: expected {expected}, found {found}")
    }
}

/// Every broken invariant of a plan; there is at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PlanErrors {
    /// What is broken, in the order of the plan.
    pub errors: Vec<PlanError>,
}

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the plan is not valid:")?;
        for error in &self.errors {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

/// Checks every invariant of a plan whose tiers have their entry points.
///
/// # Errors
/// All that do not hold.
pub fn verify(plan: &Plan) -> Result<(), PlanErrors> {
    let mut report = Report::default();
    header(plan, &mut report);
    uniforms(plan, &mut report);
    weights::check(plan, &mut report);
    states(plan, &mut report);
    for tier in &plan.tiers {
        report.place = Place {
            tier: tier.name.clone(),
            ..Place::default()
        };
        for check in &tier.checks {
            checked(plan, check, &mut report);
        }
        if let (Some(size), []) = (tier.requires.subgroup_size, &tier.checks[..]) {
            let wanted = format!("a check that subgroups have {size} invocations");
            report.error(23, "its requirements", wanted, "none");
        }
        for (name, entry) in &tier.entries {
            report.place = Place {
                tier: tier.name.clone(),
                entry: name.clone(),
                ..Place::default()
            };
            entry::check(plan, tier, entry, &mut report);
        }
    }
    if report.errors.is_empty() {
        Ok(())
    } else {
        Err(PlanErrors {
            errors: report.errors,
        })
    }
}

/// Collects errors at the place that is being looked at.
#[derive(Default)]
struct Report {
    place: Place,
    errors: Vec<PlanError>,
}

impl Report {
    fn error(
        &mut self,
        invariant: u8,
        subject: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) {
        self.errors.push(PlanError {
            invariant,
            place: self.place.clone(),
            subject: subject.into(),
            expected: expected.into(),
            found: found.to_string(),
        });
    }

    /// Leaves each error once, of those from `first` on.
    fn once(&mut self, first: usize) {
        let found = self.errors.split_off(first);
        for error in found {
            if !self.errors[first..].contains(&error) {
                self.errors.push(error);
            }
        }
    }

    /// Names of one kind: present, each once.
    fn names<'n>(&mut self, kind: &str, names: impl IntoIterator<Item = &'n str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            let subject = format!("{kind} `{name}`");
            if name.is_empty() {
                self.error(3, subject, "a name", "none");
            } else if !seen.insert(name) {
                self.error(3, subject, "a name of its own", "another of this name");
            }
        }
    }

    fn declarations(&mut self, declared: &[SymbolDecl]) {
        let mut seen = BTreeSet::new();
        for SymbolDecl { name: symbol, max } in declared {
            let (name, subject) = (symbol.name(), format!("symbol `{symbol}`"));
            if !is_symbol_name(name) || name == CONTEXT || name == BLOCK {
                let expected = format!(
                    "a name of letters, digits and `_` that is no word of the text form, \
                     `{CONTEXT}` or `{BLOCK}`"
                );
                self.error(2, subject.clone(), expected, format!("`{symbol}`"));
            }
            if !seen.insert(name) {
                self.error(2, subject.clone(), "one declaration", "two");
            }
            self.maximum(&subject, *max);
        }
    }

    fn maximum(&mut self, subject: &str, max: u64) {
        if max == 0 || max > i32::MAX as u64 {
            self.error(2, subject, "a maximum from 1 to 2^31 - 1", max);
        }
    }

    /// Whether `dim` uses no symbol but those in `allowed` (11) and has a value
    /// everywhere it is checked (12).
    fn dim(
        &mut self,
        subject: &str,
        dim: &Dim,
        allowed: &[&str],
        at: &[(&str, &Bindings)],
    ) -> bool {
        let mut symbols = dim.symbols();
        symbols.retain(|s| !allowed.contains(&s.name()));
        for symbol in &symbols {
            let expected = format!("symbols that have a value here ({})", allowed.join(", "));
            self.error(11, subject, expected, format!("`{symbol}` in `{dim}`"));
        }
        if !symbols.is_empty() {
            return false;
        }
        let mut valued = true;
        for (when, sizes) in at {
            if let Err(e) = dim.eval(sizes) {
                let found = match e {
                    DimError::OutOfRange { dim, value } => format!("`{dim}` = {value}"),
                    e => e.to_string(),
                };
                let expected = format!("a value from 0 to 2^63 - 1 at {when}");
                self.error(12, subject, expected, found);
                valued = false;
            }
        }
        valued
    }
}

const AT_MAXIMA: &str = "the symbols' maxima";
const AT_LEAST: &str = "the least sizes";

/// The values that symbols may take.
#[derive(Clone, Debug)]
struct Sizes {
    /// The declared symbols, plan's and entry's.
    declared: Vec<String>,
    max: Bindings,
    min: Bindings,
}

impl Sizes {
    fn new(plan: &Plan, entry_symbols: &[SymbolDecl]) -> Self {
        let mut maxima: BTreeMap<&str, u64> = BTreeMap::new();
        for decl in plan.symbols.iter().chain(entry_symbols) {
            maxima.insert(decl.name.name(), decl.max);
        }
        let mut max = Bindings::new().with(CONTEXT, plan.model.max_context);
        let mut min = Bindings::new().with(CONTEXT, 1);
        for (name, value) in &maxima {
            max.set(name, *value);
            min.set(name, u64::from(*name != PAST));
        }
        Sizes {
            declared: maxima.keys().map(|n| (*n).to_owned()).collect(),
            max,
            min,
        }
    }

    fn both(&self) -> [(&'static str, &Bindings); 2] {
        [(AT_MAXIMA, &self.max), (AT_LEAST, &self.min)]
    }

    /// The declared symbols and these.
    fn with<'s>(&'s self, others: &[&'s str]) -> Vec<&'s str> {
        let declared = self.declared.iter().map(String::as_str);
        declared.chain(others.iter().copied()).collect()
    }
}

fn header(plan: &Plan, report: &mut Report) {
    if plan.version != PLAN_VERSION {
        report.error(1, "version", PLAN_VERSION.to_string(), plan.version);
    }
    report.declarations(&plan.symbols);
    report.maximum("the model's largest context", plan.model.max_context);
    report.names("weight", plan.weights.iter().map(|w| w.name.as_str()));
    report.names("state", plan.states.iter().map(|s| s.name.as_str()));
    report.names("tier", plan.tiers.iter().map(|t| t.name.as_str()));
    for (name, kernel) in &plan.kernels {
        let mut parts = kernel.file.split('/');
        let bad = |part: &str| ["", ".", ".."].contains(&part) || part.contains(['\\', ':']);
        if parts.any(bad) {
            let expected = "a relative path inside the artifact";
            let found = format!("`{}`", kernel.file);
            report.error(4, format!("kernel `{name}`"), expected, found);
        }
        if !kernel.bindings.iter().any(|a| a.writes()) {
            let subject = format!("kernel `{name}`");
            report.error(4, subject, "a binding that it writes", "none");
        }
    }
}

fn uniforms(plan: &Plan, report: &mut Report) {
    let entries = || plan.tiers.iter().flat_map(|t| t.entries.values());
    let of_entries = entries().flat_map(|e| &e.symbols);
    let declared = plan.symbols.iter().chain(of_entries);
    let known: BTreeSet<&str> = declared
        .map(|d| d.name.name())
        .chain([CONTEXT, BLOCK])
        .collect();
    let mut seen = BTreeSet::new();
    for name in &plan.uniforms {
        if !known.contains(name.as_str()) {
            let expected = format!("a declared symbol, `{CONTEXT}` or `{BLOCK}`");
            report.error(5, format!("uniform `{name}`"), expected, "neither");
        }
        if !seen.insert(name.as_str()) {
            report.error(5, format!("uniform `{name}`"), "one place", "two");
        }
    }
    let mut used = BTreeSet::new();
    for entry in entries() {
        entry::dims(entry, &mut |dim| used.extend(dim.symbols()));
        if entry.variants.iter().any(|v| !v.streams.is_empty()) {
            used.insert(crate::dim::Symbol::new(BLOCK));
        }
    }
    for symbol in used.iter().filter(|s| !seen.contains(s.name())) {
        let expected = format!("every symbol that sizes use, `{symbol}` too");
        report.error(5, "the uniform block", expected, plan.uniforms.join(", "));
    }
}

fn checked(plan: &Plan, check: &Check, report: &mut Report) {
    let subject = format!("check `{}`", check.kernel);
    match plan.kernels.get(&check.kernel).map(|k| k.bindings.len()) {
        Some(1..) => {}
        Some(count) => report.error(23, &subject, "a kernel with a binding", count),
        None => report.error(23, &subject, "a kernel of the plan", "none"),
    }
    if !(1..=65_535).contains(&check.workgroups) {
        report.error(23, &subject, "from 1 to 65535 workgroups", check.workgroups);
    }
    if check.words == 0 {
        report.error(23, &subject, "at least one word", 0);
    }
}

/// A state's bytes, whatever entry point binds it.
fn states(plan: &Plan, report: &mut Report) {
    let sizes = Sizes::new(plan, &[]);
    for state in &plan.states {
        let subject = format!("state `{}`", state.name);
        report.dim(
            &subject,
            &state.bytes,
            &sizes.with(&[CONTEXT]),
            &sizes.both(),
        );
    }
}
