//! Several launches in one: the kernels of a layer, one after the other, with
//! barriers across the grid between them in place of launches; on a CPU driver with
//! tickets for their tiles.
//!
//! At one row a layer's launches do little, and a launch with the barrier of an API
//! before it takes longer than a barrier of the grid's own. The kernels' texts are
//! put together as they are: what each declares gets a prefix, and its entry point
//! becomes a function that is called for every tile which falls to a workgroup. See
//! [`kiln_ir::plan::Grid`] for what that relies on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::rc::Rc;

use kiln_ir::plan::{Access, Binding, Kernel, Requirements};
use kiln_ir::{Bindings, Dim};

use crate::error::CodegenError;
use crate::kernel::{self, Draft, Element, HALF_STATES, Launch, binding, uniforms};
use crate::lanes::LANES;
use crate::tier::Tier;
use crate::view::Base;
use crate::wgsl;

/// Invocations in a workgroup of launches that are joined by barriers.
pub(crate) const WORKGROUP: u64 = 256;

/// Bytes that a workgroup of theirs may share: what the sums of attention leave is
/// for the row that a linear layer has there.
pub(crate) const MEMORY: u64 = 45 << 10;

/// The grid of launches joined by barriers, as the kernels that become parts of them
/// see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GridSize {
    pub workgroups: u64,
    /// Bytes that a row may take in workgroup memory.
    pub row_memory: u64,
}

/// How the stages of a joined launch come one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// So many workgroups, all of which run at once, with barriers across the grid.
    Barriers(u32),
    /// As many as there are, which take tickets, on a CPU driver.
    Tickets,
}

impl Meeting {
    /// That of a tier, in grids of `grid` workgroups where all run at once.
    pub fn of(tier: Tier, grid: u32) -> Option<Self> {
        match tier {
            _ if grid == 0 => None,
            Tier::SoftwareSubgroup | Tier::Software => Some(Meeting::Tickets),
            Tier::Coop(_) | Tier::Subgroup => Some(Meeting::Barriers(grid)),
            Tier::Base => None,
        }
    }

    /// Invocations in a workgroup.
    fn workgroup(self) -> u32 {
        match self {
            Meeting::Barriers(_) => WORKGROUP as u32,
            Meeting::Tickets => LANES,
        }
    }

    /// Workgroups of a launch.
    pub fn workgroups(self) -> u32 {
        match self {
            Meeting::Barriers(grid) => grid,
            // More than CPU drivers have threads.
            Meeting::Tickets => 64,
        }
    }

    /// Bytes of the state.
    pub fn state_bytes(self) -> u64 {
        match self {
            Meeting::Barriers(_) => 8,
            Meeting::Tickets => 8 + 8 * MOST_STAGES as u64,
        }
    }

    /// How often a workgroup looks whether the others are there before it gives up.
    fn patience(self) -> u32 {
        match self {
            // A fifth of a second on an H100.
            Meeting::Barriers(_) => 1 << 18,
            // About a millisecond; looks are rounds of a loop.
            Meeting::Tickets => 1 << 14,
        }
    }

    /// The functions by which workgroups meet.
    fn functions(self) -> &'static str {
        match self {
            Meeting::Barriers(_) => kiln_shaders::GRID,
            Meeting::Tickets => kiln_shaders::TICKETS,
        }
    }

    /// Whether stages that go round loops so often in all can be joined.
    fn joins(self, stages: usize, rounds: u64) -> bool {
        match self {
            Meeting::Barriers(_) => true,
            Meeting::Tickets => stages <= MOST_STAGES && rounds <= MOST_ROUNDS,
        }
    }
}

/// Stages of a launch on a CPU driver, whose compiler takes more than twice as long for
/// twice as many: five took 2 s longer than three and two, for a token 3% shorter.
const MOST_STAGES: usize = 3;

/// How often the loops of such a launch may go round, if one workgroup does all. Mesa's
/// ends them after 65,535 rounds (shaders/MEASUREMENTS.md), of which some are for
/// waiting and for loops that were to be unrolled.
const MOST_ROUNDS: u64 = 1 << 15;

/// The feature that makes what a workgroup writes visible to others.
pub(crate) const COHERENT_FEATURE: &str = "wgpu-memory-decoration-coherent";

/// The limit of the storage buffers that a kernel binds.
pub(crate) const BUFFERS_LIMIT: &str = "max_storage_buffers_per_shader_stage";

/// The limit of the bytes that a workgroup shares.
pub(crate) const MEMORY_LIMIT: &str = "max_compute_workgroup_storage_size";

/// The feature that lets a kernel read and write one image.
const IMAGE_FEATURE: &str = "texture-adapter-specific-format-features";

/// The hooks of bodies that fetch something before their input is there, or before
/// the operands of their epilogue are.
pub(crate) const AWAITS: [&str; 2] = [
    "fn await_input(lane: u32) {\n}\n",
    "fn await_operands(lane: u32) {\n}\n",
];

/// All launches in ranges: neighbours of one layer that can be joined, where there are as
/// many rows as at one of `corners`, and each other one alone; none if nothing can be
/// joined.
pub(crate) fn groups(
    launches: &[Launch],
    meeting: Meeting,
    (corners, maxima): (&[Bindings], &Bindings),
) -> Result<Vec<Range<usize>>, CodegenError> {
    let layer_of = |at: usize| layer(&launches[at].label);
    let is_first = |at: usize| at == 0 || layer_of(at - 1) != layer_of(at);
    let is_norm = |at: usize| launches[at].kernel.body.starts_with("row_norm");
    // Of the layers' first launches.
    let firsts = (0..launches.len()).filter(|at| layer_of(*at).is_some() && is_first(*at));
    let (norms, others): (Vec<usize>, Vec<usize>) = firsts.partition(|at| is_norm(*at));
    let all_begin_alike = norms.len() > 1 && others.is_empty();
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut rounds = 0;
    for (at, launch) in launches.iter().enumerate() {
        let mut tiles = 0;
        for corner in corners {
            tiles = tiles.max(launch.workgroups.at(corner).eval(maxima)?);
        }
        let own = tiles.saturating_mul(launch.kernel.rounds.eval(maxima)?);
        let can_join = |at: usize| {
            // Where only the first layer begins with a norm as a launch of its own, and
            // others have theirs from the launch before: joined, it would make that layer's
            // kernel one more to compile, over which CPU drivers take long.
            let alone = meeting == Meeting::Tickets && !all_begin_alike;
            let leads = alone && is_first(at) && is_norm(at);
            layer_of(at).filter(|_| !leads && can_join(&launches[at], meeting, corners))
        };
        rounds = u64::saturating_add(rounds, own);
        match out.last_mut() {
            Some(last)
                if can_join(at).is_some()
                    && can_join(last.start) == can_join(at)
                    && meeting.joins(at + 1 - last.start, rounds) =>
            {
                last.end = at + 1;
            }
            _ => {
                out.push(at..at + 1);
                rounds = own;
            }
        }
    }
    Ok(match out.len() == launches.len() {
        true => Vec::new(),
        false => out,
    })
}

fn can_join(launch: &Launch, meeting: Meeting, corners: &[Bindings]) -> bool {
    let kernel = &launch.kernel;
    kernel.workgroup == meeting.workgroup()
        && kernel.counts_from_zero()
        && corners
            .iter()
            .all(|c| launch.workgroups.at(c).as_const().is_some())
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
    pub body: Rc<str>,
    /// The buffers that it binds.
    pub buffers: Vec<Binding>,
    /// Workgroups that it would be launched with.
    pub tiles: Dim,
}

/// A joined kernel and what it binds.
pub(crate) struct Joined {
    /// The last parts of the stages' labels.
    pub name: String,
    pub text: String,
    /// Invocations in a workgroup.
    pub workgroup: u32,
    pub bindings: Vec<(Binding, Access)>,
}

/// The kernel of `stages`, whose workgroups share the buffer `state`.
///
/// # Errors
/// The archetype whose entry point has not the form that those of bodies have.
pub(crate) fn join(
    stages: &[Stage<'_>],
    (meeting, state): (Meeting, usize),
    symbols: &[String],
) -> Result<Joined, String> {
    let bound = Bound::new(stages);
    let mut functions = String::new();
    let mut shared = Shared::default();
    let mut calls = Vec::new();
    for (at, stage) in stages.iter().enumerate() {
        let prefix = format!("s{at}_");
        let mut text = stage.launch.kernel.functions(&stage.body);
        if waits_inside(stages, at) {
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
        let arguments: Option<Vec<String>> = entry
            .builtins
            .iter()
            .map(|builtin| argument(builtin, &stage.tiles))
            .collect();
        calls.push(format!(
            "{prefix}main({});",
            arguments.ok_or_else(no_entry)?.join(", ")
        ));
    }

    let enables = stages.iter().map(|stage| stage.launch.kernel.enables());
    // Those for matrices have those for f16 in them.
    let mut out = enables.max_by_key(String::len).unwrap_or_default();
    out.push_str(&uniforms(symbols));
    for (at, (key, name)) in (1..).zip(bound.keys.iter().zip(&bound.all_names)) {
        let access = bound.access(key.0);
        let coherent = access == Access::ReadWrite && meeting != Meeting::Tickets;
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
    let (name, count) = match meeting {
        Meeting::Barriers(grid) => ("GRID", grid),
        Meeting::Tickets => ("STAGES", stages.len() as u32),
    };
    let patience = meeting.patience();
    let _ = writeln!(
        out,
        "\nconst {name}: u32 = {count}u;\nconst PATIENCE: u32 = {patience}u;\n"
    );
    out.push_str(&shared.declarations());
    out.push_str(meeting.functions());
    out.push('\n');
    out.push_str(&functions);
    out.push_str(&match meeting {
        Meeting::Barriers(grid) => barriers(stages, &calls, grid),
        Meeting::Tickets => tickets(stages, &calls),
    });

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
    let halves = stages.iter().any(|s| s.launch.kernel.has_half_states());
    let states = if halves { HALF_STATES } else { "" };
    Ok(Joined {
        name: format!("joined.{}{states}", parts.join(".")),
        text: out,
        workgroup: meeting.workgroup(),
        bindings,
    })
}

/// Whether a stage waits for the one before it by itself, once it has fetched what it
/// can.
fn waits_inside(stages: &[Stage<'_>], at: usize) -> bool {
    at > 0 && stages[at].body.contains("await_input(")
}

/// The entry point of stages with barriers across the grid between them.
fn barriers(stages: &[Stage<'_>], calls: &[String], grid: u32) -> String {
    let mut body = "    grid_begin(lane);\n".to_owned();
    for (at, (stage, call)) in stages.iter().zip(calls).enumerate() {
        if at > 0 {
            body.push_str("    grid_arrive(lane);\n");
            if !waits_inside(stages, at) {
                body.push_str("    grid_wait(lane);\n");
            }
        }
        // At least once, for the wait inside; beyond the last tile it returns.
        let tiles = stage.tiles.as_const().unwrap_or(0).max(u64::from(grid));
        let _ = match tiles == u64::from(grid) {
            true => writeln!(
                body,
                "    {{\n        let tile = workgroup.x;\n        {call}\n    }}"
            ),
            // A tile may take the memory that the last one's loads are from.
            false => writeln!(
                body,
                "    for (var tile = workgroup.x; tile < {tiles}u; tile += GRID) {{\n        {call}\n        workgroupBarrier();\n    }}"
            ),
        };
    }
    format!(
        "@compute @workgroup_size({WORKGROUP})\nfn main(\n    \
         @builtin(workgroup_id) workgroup: vec3<u32>,\n    \
         @builtin(local_invocation_index) lane: u32,\n    \
         @builtin(subgroup_invocation_id) subgroup_lane: u32,\n    \
         @builtin(subgroup_size) subgroup_size: u32,\n    \
         @builtin(subgroup_id) subgroup: u32,\n    \
         @builtin(num_subgroups) subgroups: u32,\n) {{\n{body}}}\n"
    )
}

/// The entry point of stages whose tiles are taken by tickets.
///
/// A tile's loop is entered only by who has one: llvmpipe goes through the body of a loop
/// even if no invocation is left in it, and since Mesa 26 what it reads of the uniforms in
/// a loop in there is found by a pointer that none has set.
fn tickets(stages: &[Stage<'_>], calls: &[String]) -> String {
    let mut body = String::new();
    let mut last = String::new();
    for (at, (stage, call)) in stages.iter().zip(calls).enumerate() {
        if at > 0 {
            let before = at - 1;
            let _ = writeln!(
                body,
                "    if !grid_wait({before}u, {last}, lane) {{\n        return;\n    }}"
            );
        }
        last = wgsl::dim(&stage.tiles);
        let take = format!("grid_take({at}u, lane)");
        let declare = if at == 0 { "var " } else { "" };
        let _ = writeln!(
            body,
            "    {declare}tile = {take};\n    if tile < {last} {{\n        loop {{\n            \
             {call}\n            grid_complete({at}u, lane);\n            tile = {take};\n            \
             if tile >= {last} {{\n                break;\n            }}\n        }}\n    }}"
        );
    }
    let workgroup = Meeting::Tickets.workgroup();
    format!(
        "fn stages(lane: u32) {{\n{body}}}\n\n@compute @workgroup_size({workgroup})\nfn main(\n    \
         @builtin(num_workgroups) workgroups: vec3<u32>,\n    \
         @builtin(local_invocation_index) lane: u32,\n) {{\n    \
         stages(lane);\n    grid_leave(workgroups.x, {last}, lane);\n}}\n"
    )
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

/// What the entry point of a stage of so many tiles gets in place of a builtin.
fn argument(builtin: &str, tiles: &Dim) -> Option<String> {
    Some(match builtin {
        "workgroup_id" => "vec3<u32>(tile, 0u, 0u)".to_owned(),
        "num_workgroups" => format!("vec3<u32>({}, 1u, 1u)", wgsl::dim(tiles)),
        "local_invocation_index" => "lane".to_owned(),
        "subgroup_invocation_id" => "subgroup_lane".to_owned(),
        "subgroup_size" => "subgroup_size".to_owned(),
        "subgroup_id" => "subgroup".to_owned(),
        "num_subgroups" => "subgroups".to_owned(),
        _ => return None,
    })
}

/// The bindings of all stages: each buffer once for each type that it is read or
/// written as, and writable as all of them if a stage writes it; each image once.
struct Bound {
    keys: Vec<(Binding, Element)>,
    all_names: Vec<String>,
    /// How stages bind a buffer.
    accesses: BTreeMap<Binding, BTreeSet<Access>>,
}

impl Bound {
    fn new(stages: &[Stage<'_>]) -> Self {
        let mut out = Bound {
            keys: Vec::new(),
            all_names: Vec::new(),
            accesses: BTreeMap::new(),
        };
        for stage in stages {
            for (own, buffer) in stage.launch.kernel.bindings().iter().zip(&stage.buffers) {
                let accesses = out.accesses.entry(*buffer).or_default();
                accesses.insert(own.access);
                let key = key(own, *buffer);
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
            let key = key(own, *buffer);
            let at = self.keys.iter().position(|k| *k == key);
            at.map_or(String::new(), |at| self.all_names[at].clone())
        });
        names.collect()
    }

    fn access(&self, buffer: Binding) -> Access {
        let mut accesses = self.accesses.get(&buffer).into_iter().flatten().copied();
        let first = accesses.next().unwrap_or(Access::Read);
        accesses.fold(first, |all, access| match all == access {
            true => all,
            false if all.is_image() => Access::ReadWriteTexels,
            false => Access::ReadWrite,
        })
    }
}

/// What is bound once. Hooks find elements of every type in an image's texels.
fn key(own: &kernel::Bound, buffer: Binding) -> (Binding, Element) {
    let element = match own.access.is_image() {
        true => Element::U32x4,
        false => own.element,
    };
    (buffer, element)
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
/// bytes, and for their kernels.
pub(crate) fn requires<'k>(
    meeting: Meeting,
    memory: u64,
    kernels: impl Iterator<Item = &'k Kernel>,
) -> Requirements {
    let (mut buffers, mut images) = (0, 0);
    for kernel in kernels {
        let of_kernel = kernel.bindings.iter().filter(|a| a.is_image()).count() as u64;
        images = images.max(of_kernel);
        buffers = buffers.max(kernel.bindings.len() as u64 - of_kernel);
    }
    let mut limits = vec![(BUFFERS_LIMIT, buffers)];
    let features: &[&str] = match meeting {
        Meeting::Barriers(_) => {
            limits.push((MEMORY_LIMIT, memory));
            &["subgroups", COHERENT_FEATURE]
        }
        Meeting::Tickets => {
            limits.push(("max_storage_textures_per_shader_stage", images));
            &[IMAGE_FEATURE]
        }
    };
    Requirements {
        features: features.iter().map(|f| (*f).to_owned()).collect(),
        limits: limits
            .into_iter()
            .map(|(name, size)| (name.to_owned(), size))
            .collect(),
        // Lanes beyond a workgroup's invocations keep llvmpipe from ending the loops that
        // wait as they should (seen with vectors of 512 bits, whose subgroups are of 16).
        max_subgroup_size: (meeting == Meeting::Tickets).then_some(meeting.workgroup()),
        ..Requirements::default()
    }
}

/// A check of the driver's barriers across a grid.
pub(crate) fn check(grid: u32) -> Draft {
    let mut d = Draft::new("grid_check", grid.to_string(), WORKGROUP as u32);
    d.write_coherently("words", Base::Local(0), Element::U32);
    d.write("grid_state", Base::Local(0), Element::AtomicU32);
    d.constant_u32("GRID", grid);
    d.constant_u32("PATIENCE", Meeting::Barriers(grid).patience());
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
