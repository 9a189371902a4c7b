//! Several launches in one: the kernels of a layer, one after the other, with
//! barriers across the grid between them in place of launches.
//!
//! At one row a layer's launches do little, and a launch with the barrier of an API
//! before it takes longer than a barrier of the grid's own. The kernels' texts are
//! put together as they are: what each declares gets a prefix, and its entry point
//! becomes a function that is called for every tile which falls to a workgroup. See
//! [`kiln_ir::plan::Grid`] for what that relies on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;

use kiln_ir::plan::{Access, Binding, Requirements};

use crate::kernel::{Draft, Element, Launch, binding, uniforms};
use crate::view::Base;
use crate::wgsl;

/// Invocations in a workgroup of joined launches.
pub(crate) const WORKGROUP: u64 = 256;

/// Bytes that a workgroup of theirs may share: what the sums of attention leave is
/// for the row that a linear layer has there.
pub(crate) const MEMORY: u64 = 45 << 10;

/// The grid of joined launches, as the kernels that become parts of them see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GridSize {
    pub workgroups: u64,
    /// Bytes that a row may take in workgroup memory.
    pub row_memory: u64,
}

/// The feature that makes what a workgroup writes visible to others.
const FEATURE: &str = "wgpu-memory-decoration-coherent";

/// How often a workgroup looks whether the others have arrived before it gives up:
/// a fifth of a second on an H100.
const PATIENCE: u32 = 1 << 18;

/// The hooks of bodies that fetch something before their input is there, or before
/// the operands of their epilogue are.
pub(crate) const AWAITS: [&str; 2] = [
    "fn await_input(lane: u32) {\n}\n",
    "fn await_operands(lane: u32) {\n}\n",
];

/// All launches in ranges: neighbours of one layer that can be joined, and each
/// other one alone; none if nothing can be joined.
pub(crate) fn groups(launches: &[Launch]) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    let layer_of = |at: usize| layer(&launches[at].label).filter(|_| can_join(&launches[at]));
    for at in 0..launches.len() {
        match out.last_mut() {
            Some(last) if layer_of(at).is_some() && layer_of(last.start) == layer_of(at) => {
                last.end = at + 1;
            }
            _ => out.push(at..at + 1),
        }
    }
    match out.len() == launches.len() {
        true => Vec::new(),
        false => out,
    }
}

fn can_join(launch: &Launch) -> bool {
    let kernel = &launch.kernel;
    u64::from(kernel.workgroup) == WORKGROUP
        && kernel.counts_from_zero()
        && launch.workgroups.as_const().is_some()
}

/// The layer that a label names: up to its first number.
pub(crate) fn layer(label: &str) -> Option<&str> {
    let mut end = 0;
    for part in label.split('.') {
        end += part.len();
        if part.parse::<u32>().is_ok() {
            return label.get(..end);
        }
        end += 1;
    }
    None
}

/// A kernel of a joined launch.
pub(crate) struct Stage<'a> {
    pub launch: &'a Launch,
    /// Its archetype's text.
    pub body: String,
    /// The buffers that it binds.
    pub buffers: Vec<Binding>,
    /// Workgroups that it would be launched with.
    pub tiles: u64,
}

/// A joined kernel and what it binds.
pub(crate) struct Joined {
    /// The last parts of the stages' labels.
    pub name: String,
    pub text: String,
    pub bindings: Vec<(Binding, Access)>,
}

/// The kernel of `stages` in a grid of `grid` workgroups whose barriers' state is
/// the buffer `state`.
///
/// # Errors
/// The archetype whose entry point has not the form that those of bodies have.
pub(crate) fn join(
    stages: &[Stage<'_>],
    (grid, state): (u32, usize),
    symbols: &[String],
) -> Result<Joined, String> {
    let bound = Bound::new(stages);
    let mut body = "    grid_begin(lane);\n".to_owned();
    let mut functions = String::new();
    let mut shared = Shared::default();
    for (at, stage) in stages.iter().enumerate() {
        let prefix = format!("s{at}_");
        let mut text = stage.launch.kernel.functions(&stage.body);
        let waits_inside = at > 0 && stage.body.contains("await_input(");
        if waits_inside {
            for hook in AWAITS {
                if hook.contains("await_input") || reads_late(stage, &stages[at - 1]) {
                    let waiting = hook.replace("{\n", "{\n    grid_wait(lane);\n");
                    text = text.replace(hook, &waiting);
                }
            }
        }
        let mut names: BTreeMap<&str, String> = wgsl::declared(&text)
            .into_iter()
            .map(|name| (name, format!("{prefix}{name}")))
            .collect();
        let of_stage = bound.names(stage);
        for (own, name) in stage.launch.kernel.bindings().iter().zip(of_stage) {
            names.insert(&own.name, name);
        }
        let text = wgsl::rename(&text, &names);
        let no_entry = || stage.launch.kernel.body.to_owned();
        let entry = wgsl::Entry::take(&text).ok_or_else(no_entry)?;
        let _ = writeln!(functions, "// Stage {at}: {}\n", stage.launch.kernel.name());
        functions.push_str(&shared.take(&entry.text));
        functions.push('\n');

        if at > 0 {
            body.push_str("    grid_arrive(lane);\n");
            if !waits_inside {
                body.push_str("    grid_wait(lane);\n");
            }
        }
        let arguments: Option<Vec<&str>> = entry
            .builtins
            .iter()
            .map(|builtin| argument(builtin))
            .collect();
        let call = format!(
            "{prefix}main({});",
            arguments.ok_or_else(no_entry)?.join(", ")
        );
        // At least once, for the wait inside; beyond the last tile it returns.
        let _ = writeln!(
            body,
            "    for (var tile = workgroup.x; tile < {}u; tile += GRID) {{\n        {call}\n        workgroupBarrier();\n    }}",
            stage.tiles.max(u64::from(grid))
        );
    }

    let mut out = uniforms(symbols);
    for (at, (key, name)) in (1..).zip(bound.keys.iter().zip(&bound.all_names)) {
        let access = bound.access(key.0);
        let coherent = access == Access::ReadWrite;
        out.push_str(&binding(at, name, key.1, access, coherent));
    }
    let last = bound.keys.len() + 1;
    out.push_str(&binding(
        last,
        "grid_state",
        Element::AtomicU32,
        Access::ReadWrite,
        false,
    ));
    let _ = writeln!(
        out,
        "\nconst GRID: u32 = {grid}u;\nconst PATIENCE: u32 = {PATIENCE}u;\n"
    );
    out.push_str(&shared.declarations());
    out.push_str(kiln_shaders::GRID);
    out.push('\n');
    out.push_str(&functions);
    let _ = writeln!(
        out,
        "@compute @workgroup_size({WORKGROUP})\nfn main(\n    \
         @builtin(workgroup_id) workgroup: vec3<u32>,\n    \
         @builtin(local_invocation_index) lane: u32,\n    \
         @builtin(subgroup_invocation_id) subgroup_lane: u32,\n    \
         @builtin(subgroup_size) subgroup_size: u32,\n    \
         @builtin(subgroup_id) subgroup: u32,\n    \
         @builtin(num_subgroups) subgroups: u32,\n) {{\n{body}}}"
    );

    let mut bindings: Vec<(Binding, Access)> = bound
        .keys
        .iter()
        .map(|(buffer, _)| (*buffer, bound.access(*buffer)))
        .collect();
    bindings.push((Binding::Buffer(state), Access::ReadWrite));
    let parts = stages
        .iter()
        .map(|s| s.launch.label.rsplit('.').next().unwrap_or_default());
    let parts: Vec<&str> = parts.collect();
    Ok(Joined {
        name: format!("joined.{}", parts.join(".")),
        text: out,
        bindings,
    })
}

/// Whether a stage reads what the stage before it writes in another hook than
/// `load_x`: in `operands`, or in a function that it calls.
fn reads_late(stage: &Stage<'_>, before: &Stage<'_>) -> bool {
    let written = |buffer: &Binding| {
        let mut own = before.launch.kernel.bindings().iter().zip(&before.buffers);
        own.any(|(b, written)| b.access == Access::ReadWrite && written == buffer)
    };
    let text = stage.launch.kernel.functions("");
    let others = text.split("\n\n").filter(|f| !f.starts_with("fn load_x("));
    let others: String = others.collect();
    let mut own = stage.launch.kernel.bindings().iter().zip(&stage.buffers);
    own.any(|(b, buffer)| written(buffer) && others.contains(&format!("{}[", b.name)))
}

/// What a stage's entry point gets in place of a builtin.
fn argument(builtin: &str) -> Option<&'static str> {
    Some(match builtin {
        "workgroup_id" => "vec3<u32>(tile, 0u, 0u)",
        "num_workgroups" => "vec3<u32>(GRID, 1u, 1u)",
        "local_invocation_index" => "lane",
        "subgroup_invocation_id" => "subgroup_lane",
        "subgroup_size" => "subgroup_size",
        "subgroup_id" => "subgroup",
        "num_subgroups" => "subgroups",
        _ => return None,
    })
}

/// The bindings of all stages: each buffer once for each type that it is read or
/// written as, and writable as all of them if a stage writes it.
struct Bound {
    keys: Vec<(Binding, Element)>,
    all_names: Vec<String>,
    written: BTreeSet<Binding>,
}

impl Bound {
    fn new(stages: &[Stage<'_>]) -> Self {
        let mut out = Bound {
            keys: Vec::new(),
            all_names: Vec::new(),
            written: BTreeSet::new(),
        };
        for stage in stages {
            for (own, buffer) in stage.launch.kernel.bindings().iter().zip(&stage.buffers) {
                if own.access == Access::ReadWrite {
                    out.written.insert(*buffer);
                }
                let key = (*buffer, own.element);
                if !out.keys.contains(&key) {
                    out.keys.push(key);
                    let role = own
                        .name
                        .trim_end_matches(|c: char| c.is_ascii_digit() || c == '_');
                    out.all_names.push(format!("{role}_{}", out.keys.len()));
                }
            }
        }
        out
    }

    /// The names of a stage's bindings.
    fn names(&self, stage: &Stage<'_>) -> Vec<String> {
        let own = stage.launch.kernel.bindings().iter().zip(&stage.buffers);
        let names = own.map(|(own, buffer)| {
            let key = (*buffer, own.element);
            let at = self.keys.iter().position(|k| *k == key);
            at.map_or(String::new(), |at| self.all_names[at].clone())
        });
        names.collect()
    }

    fn access(&self, buffer: Binding) -> Access {
        match self.written.contains(&buffer) {
            true => Access::ReadWrite,
            false => Access::Read,
        }
    }
}

/// Arrays in workgroup memory that the stages have in common: those of one name and
/// type of elements, as large as the largest.
#[derive(Default)]
struct Shared {
    /// By name and type, the lengths.
    arrays: BTreeMap<(String, String), Vec<String>>,
}

impl Shared {
    /// Takes the arrays out of a stage's text.
    fn take(&mut self, text: &str) -> String {
        // Those of one name and another type are no others' and keep their prefix.
        let is_free = |plain: &str, element: &str, arrays: &BTreeMap<(String, String), _>| {
            let mut same = arrays.keys().filter(|(name, _)| name == plain);
            same.all(|(_, known)| known == element)
        };
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut kept = String::new();
        for line in text.lines() {
            match array(line) {
                Some((name, element, length))
                    if let Some((_, plain)) = name.split_once('_')
                        && is_free(plain, element, &self.arrays) =>
                {
                    let key = (plain.to_owned(), element.to_owned());
                    self.arrays.entry(key).or_default().push(length.to_owned());
                    names.insert(name.to_owned(), format!("shared_{plain}"));
                }
                _ => {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        let names = names.iter().map(|(a, b)| (a.as_str(), b.clone()));
        wgsl::rename(&kept, &names.collect())
    }

    fn declarations(&self) -> String {
        let mut out = String::new();
        for ((name, element), lengths) in &self.arrays {
            let mut lengths = lengths.iter();
            let first = lengths.next().cloned().unwrap_or_default();
            let most = lengths.fold(first, |most, length| format!("max({most}, {length})"));
            let _ = writeln!(
                out,
                "var<workgroup> shared_{name}: array<{element}, {most}>;"
            );
        }
        out.push('\n');
        out
    }
}

/// The name, type of elements and length of an array in workgroup memory.
fn array(line: &str) -> Option<(&str, &str, &str)> {
    let rest = line.strip_prefix("var<workgroup> ")?.strip_suffix(">;")?;
    let (name, rest) = rest.split_once(": array<")?;
    let (element, length) = rest.rsplit_once(", ")?;
    Some((name, element, length))
}

/// What an adapter must offer for joined launches whose workgroups share so many
/// bytes, and bind so many buffers, at the most.
pub(crate) fn requires(memory: u64, bindings: u64) -> Requirements {
    let limits = [
        ("max_compute_workgroup_storage_size", memory),
        ("max_storage_buffers_per_shader_stage", bindings),
    ];
    Requirements {
        features: vec!["subgroups".to_owned(), FEATURE.to_owned()],
        limits: limits.map(|(name, size)| (name.to_owned(), size)).into(),
        ..Requirements::default()
    }
}

/// A check of the driver's barriers across a grid.
pub(crate) fn check(grid: u32) -> Draft {
    let mut d = Draft::new("grid_check", grid.to_string(), WORKGROUP as u32);
    d.write_coherently("words", Base::Local(0), Element::U32);
    d.write("grid_state", Base::Local(0), Element::AtomicU32);
    d.constant_u32("GRID", grid);
    d.constant_u32("PATIENCE", PATIENCE);
    d.constant_u32("WORKGROUP", WORKGROUP);
    d.constant_u32("ROUNDS", 64);
    d.hook(kiln_shaders::GRID);
    d
}

/// The words of that check's buffer.
pub(crate) fn check_words(grid: u32) -> u64 {
    3 + u64::from(grid) * WORKGROUP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_one_type_are_shared_and_others_are_not() {
        let mut shared = Shared::default();
        let stage = |prefix: &str, element: &str| {
            format!(
                "var<workgroup> {prefix}_row: array<{element}, {prefix}_N>;\n\
                 fn {prefix}_f() {{\n    {prefix}_row[0] = 1.0;\n}}\n"
            )
        };
        let of =
            |prefix: &str, name: &str| format!("fn {prefix}_f() {{\n    {name}[0] = 1.0;\n}}\n");
        assert_eq!(shared.take(&stage("s0", "f32")), of("s0", "shared_row"));
        assert_eq!(shared.take(&stage("s1", "f32")), of("s1", "shared_row"));
        let other = stage("s2", "vec4<f32>");
        assert_eq!(shared.take(&other), other);
        assert_eq!(
            shared.declarations(),
            "var<workgroup> shared_row: array<f32, max(s0_N, s1_N)>;\n\n"
        );
    }
}
