//! Invariants 9 to 17 and 22: references and sizes of an entry point.

use std::collections::{BTreeMap, BTreeSet};

use super::{AT_LEAST, AT_MAXIMA, Report, Sizes, flow};
use crate::dim::{Atom, Bindings, Dim, Symbol};
use crate::plan::{
    Access, BATCH, BLOCK, Binding, CONTEXT, Entry, Grid, ImageSize, Launch, MOST_TEXELS, PAST,
    Plan, Port, Requirements, SEQ, Stream, Tier, Variant,
};

/// A limit that [`crate::plan::Requirements`] does not name is WebGPU's default.
const DEFAULT_LIMITS: &[(&str, u64)] = &[
    (BINDING_SIZE, 128 << 20),
    (STORAGE_BUFFERS, 8),
    (STORAGE_TEXTURES, 4),
    (TEXTURE_SIZE, MOST_TEXELS),
    (INVOCATIONS, 256),
    (WORKGROUPS, 65_535),
    ("max_compute_workgroup_size_x", 256),
    ("max_compute_workgroup_size_y", 256),
    ("max_compute_workgroup_size_z", 64),
];
const BINDING_SIZE: &str = "max_storage_buffer_binding_size";
const STORAGE_BUFFERS: &str = "max_storage_buffers_per_shader_stage";
const STORAGE_TEXTURES: &str = "max_storage_textures_per_shader_stage";
const TEXTURE_SIZE: &str = "max_texture_dimension_2d";
const INVOCATIONS: &str = "max_compute_invocations_per_workgroup";
const WORKGROUPS: &str = "max_compute_workgroups_per_dimension";

/// What every WebGPU adapter offers, of the limits that plans are held to, by their names.
pub fn default_limit(name: &str) -> Option<u64> {
    let default = DEFAULT_LIMITS.iter().find(|(n, _)| *n == name);
    default.map(|(_, limit)| *limit)
}

/// What adapters of a tier offer that have what a variant or a launch requires besides.
fn limit(tier: &Tier, besides: Option<&Requirements>, name: &str) -> u64 {
    let all = [besides, Some(&tier.requires)];
    let required = all.into_iter().flatten();
    let required = required.filter_map(|r| r.limits.get(name)).max().copied();
    required.unwrap_or(default_limit(name).unwrap_or(u64::MAX))
}

/// Calls `f` with every size of an entry point.
pub(super) fn dims(entry: &Entry, f: &mut dyn FnMut(&Dim)) {
    let ports = entry.inputs.iter().chain(&entry.outputs);
    ports.flat_map(|p| &p.ty.shape).for_each(&mut *f);
    entry
        .buffers
        .iter()
        .flat_map(|b| &b.bytes)
        .for_each(&mut *f);
    for variant in &entry.variants {
        variant.bounds.iter().for_each(|b| f(&b.size));
        variant.streams.iter().for_each(|s| f(&s.rows));
        for launch in variant.all_launches() {
            f(&launch.workgroups);
            f(&launch.flops);
            f(&launch.bytes);
            launch.alternatives.iter().for_each(|a| f(&a.workgroups));
        }
    }
}

pub(super) fn check(plan: &Plan, tier: &Tier, entry: &Entry, report: &mut Report) {
    kernels((plan, tier, entry), report);
    alternatives((plan, entry), report);
    let sizes = Sizes::new(plan, &entry.symbols);
    coverage(entry, &sizes, report);
    let ways = entry.variants.iter().flat_map(Variant::each_way);
    let entry = &Entry {
        variants: ways.collect(),
        ..entry.clone()
    };
    let images = plan.images_of(entry);
    let mut checker = Checker {
        plan,
        tier,
        entry,
        sizes,
        images,
        report,
    };
    checker.report.declarations(&entry.symbols);
    checker.rows();
    checker.ports();
    checker.slices();
    checker.buffers();
    checker.bound_buffers();
    checker.zeroed_buffers();
    let first = checker.report.errors.len();
    for variant in &entry.variants {
        checker.report.place.variant.clone_from(&variant.name);
        checker.variant(variant);
        flow::check(plan, entry, variant, checker.report);
    }
    checker.report.once(first);
    checker.report.place.variant.clear();
    flow::outputs_apart(entry, checker.report);
}

/// Variants without a grid take the largest sizes and the least.
fn coverage(entry: &Entry, sizes: &Sizes, report: &mut Report) {
    let variants = || entry.variants.iter().filter(|v| v.grid.is_none());
    if variants().next().is_none() {
        let expected = "at least one without a grid";
        report.error(17, "variants", expected, "none");
        return;
    }
    for (when, at) in sizes.both() {
        if variants().any(|v| v.takes(at) == Ok(true)) {
            continue;
        }
        let bounds = variants().map(|v| {
            let bounds = v.bounds.iter().map(|b| format!("{} <= {}", b.size, b.max));
            let bounds: Vec<String> = bounds.collect();
            format!("`{}` for {}", v.name, bounds.join(" and "))
        });
        let found: Vec<String> = bounds.collect();
        let expected = format!("one that takes {when}");
        report.error(17, "variants", expected, found.join("; "));
    }
}

/// Alternatives bind what their launches do, and in the same way, but for buffers that no
/// launch binds as it stands: so any of them may stand beside any other.
fn alternatives((plan, entry): (&Plan, &Entry), report: &mut Report) {
    let usual: BTreeSet<Binding> = plan.bound_by(entry).map(|(binding, _)| binding).collect();
    let ports = entry.inputs.iter().chain(&entry.outputs);
    let ports: BTreeSet<Binding> = ports.map(|port| Binding::Buffer(port.buffer)).collect();
    for variant in &entry.variants {
        report.place.variant.clone_from(&variant.name);
        for launch in variant.all_launches() {
            report.place.launch.clone_from(&launch.label);
            let bound = |launch: &Launch| -> BTreeSet<(Binding, bool)> {
                let bound = plan.bound(launch).map(|(b, access)| (b, access.writes()));
                let shared = bound.filter(|(b, _)| usual.contains(b) || ports.contains(b));
                shared.collect()
            };
            let wanted = bound(launch);
            // One without a kernel, or whose bindings are not as many, is told of elsewhere.
            let is_whole = |way: &Launch| {
                let kernel = plan.kernels.get(&way.kernel);
                kernel.is_some_and(|k| k.bindings.len() == way.bindings.len())
            };
            for way in launch.each_way().skip(1).filter(is_whole) {
                let found = bound(&way);
                if let Some((other, _)) = found.symmetric_difference(&wanted).next() {
                    let subject = format!("alternative `{}`", way.kernel);
                    let expected = "what the launch binds, read and written as it is there";
                    report.error(27, subject, expected, format!("{other:?}, which is not"));
                }
            }
            report.place.launch.clear();
        }
        report.place.variant.clear();
    }
}

/// Kernels that an entry point launches, each once, within the least limits of those who
/// launch it.
fn kernels((plan, tier, entry): (&Plan, &Tier, &Entry), report: &mut Report) {
    let mut names: BTreeMap<&str, (bool, Vec<Option<&Requirements>>)> = BTreeMap::new();
    for variant in &entry.variants {
        let grid = variant.grid.as_ref().map(|g| &g.requires);
        for launch in variant.all_launches() {
            let others = launch.alternatives.iter();
            let others = others.map(|a| (&a.kernel, Some(&a.requires)));
            for (kernel, besides) in others.chain([(&launch.kernel, grid)]) {
                let (in_grids, all) = names.entry(kernel).or_insert((true, Vec::new()));
                *in_grids &= grid.is_some();
                if !all.contains(&besides) {
                    all.push(besides);
                }
            }
        }
    }
    for (name, (in_grids, besides)) in names {
        let Some(kernel) = plan.kernels.get(name) else {
            continue;
        };
        let subject = format!("kernel `{name}`");
        if !in_grids && kernel.bindings.contains(&Access::ReadWriteTexels) {
            let expected = "variants with a grid alone to launch it";
            let found = "an image that it reads and writes";
            report.error(26, subject.clone(), expected, found);
        }
        let mut at_most = |what: &str, name: &str, found: u64| {
            let limits = besides.iter().map(|besides| limit(tier, *besides, name));
            let most = limits.min().unwrap_or(u64::MAX);
            if found > most {
                let expected = format!("at most {most} {what} (`{name}`)");
                report.error(16, subject.clone(), expected, found);
            }
        };
        let textures = kernel.bindings.iter().filter(|a| a.is_image());
        let textures = textures.count() as u64;
        let buffers = kernel.bindings.len() as u64 - textures;
        at_most("storage bindings", STORAGE_BUFFERS, buffers);
        at_most("storage textures", STORAGE_TEXTURES, textures);
        let sizes = kernel.workgroup_size.map(u64::from);
        let invocations = sizes.iter().fold(1, |a: u64, b| a.saturating_mul(*b));
        at_most("invocations", INVOCATIONS, invocations);
        for (axis, size) in ["x", "y", "z"].into_iter().zip(sizes) {
            let name = format!("max_compute_workgroup_size_{axis}");
            at_most(&format!("invocations along {axis}"), &name, size);
        }
        if invocations == 0 {
            let found = format!("{:?}", kernel.workgroup_size);
            report.error(16, subject, "invocations along each axis", found);
        }
    }
}

struct Checker<'p, 'r> {
    plan: &'p Plan,
    tier: &'p Tier,
    entry: &'p Entry,
    sizes: Sizes,
    /// What is bound as texels.
    images: BTreeSet<Binding>,
    report: &'r mut Report,
}

impl Checker<'_, '_> {
    /// One sequence, and one token of each of many, are always taken.
    fn rows(&mut self) {
        let max = |name: &str| self.sizes.max.get(&Symbol::new(name)).unwrap_or(0);
        let least = max(BATCH).max(max(SEQ));
        if let Some(rows) = self.entry.rows
            && rows < least
        {
            let expected = format!("{least} at the least, for `{BATCH}` and `{SEQ}`");
            self.report.error(28, "rows", expected, rows);
        }
    }

    fn ports(&mut self) {
        let entry = self.entry;
        for (kind, ports) in [("input", &entry.inputs), ("output", &entry.outputs)] {
            let names = ports.iter().map(|p| p.name.as_str());
            self.report.names(kind, names);
            for port in ports {
                let subject = format!("{kind} `{}`", port.name);
                for dim in &port.ty.shape {
                    let (allowed, at) = (self.sizes.with(&[]), self.sizes.both());
                    self.report.dim(&subject, dim, &allowed, &at);
                }
                match entry.buffers.get(port.buffer) {
                    None => {
                        let expected = format!("one of the {} buffers", entry.buffers.len());
                        self.report.error(9, subject, expected, port.buffer);
                    }
                    Some(buffer) if buffer.image => {
                        let found = format!("`{}`", buffer.name);
                        self.report
                            .error(26, subject, "a buffer that is no image", found);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn slices(&mut self) {
        for slice in &self.entry.slices {
            let allowed = self.sizes.with(&[]);
            for dim in [&slice.start, &slice.end, &slice.size] {
                // They have no value where a run is refused.
                let subject = format!("slice `{}`", slice.name);
                self.report.dim(&subject, dim, &allowed, &[]);
            }
        }
    }

    fn buffers(&mut self) {
        for (index, buffer) in self.entry.buffers.iter().enumerate() {
            let subject = format!("buffer {index} (`{}`)", buffer.name);
            for bytes in &buffer.bytes {
                self.held(&subject, bytes, buffer.image);
            }
        }
    }

    /// A size in bytes of something that is bound whole.
    fn held(&mut self, subject: &str, bytes: &Dim, image: bool) {
        let (allowed, at) = (self.sizes.with(&[CONTEXT]), self.sizes.both());
        if !self.report.dim(subject, bytes, &allowed, &at) {
            return;
        }
        self.fits_at_maxima(subject, bytes, image);
    }

    fn fits_at_maxima(&mut self, subject: &str, bytes: &Dim, image: bool) {
        if let Ok(bytes) = bytes.eval(&self.sizes.max) {
            match image {
                true => self.fits_image(subject, ImageSize::of_bytes(bytes)),
                false => self.fits_buffer(subject, bytes),
            }
        }
    }

    fn fits_buffer(&mut self, subject: &str, bytes: u64) {
        let most = limit(self.tier, None, BINDING_SIZE);
        if !bytes.is_multiple_of(4) {
            let expected = format!("a multiple of 4 bytes at {AT_MAXIMA}");
            self.report.error(13, subject, expected, bytes);
        }
        if bytes > most {
            let expected = format!("at most {most} bytes (`{BINDING_SIZE}`) at {AT_MAXIMA}");
            self.report.error(13, subject, expected, bytes);
        }
    }

    fn fits_image(&mut self, subject: &str, size: ImageSize) {
        let most = limit(self.tier, None, TEXTURE_SIZE);
        let ImageSize { across, down, .. } = size;
        if across.max(down) > most {
            let expected = format!("at most {most} texels across and down (`{TEXTURE_SIZE}`)");
            let found = format!("{across} and {down}");
            self.report.error(13, subject, expected, found);
        }
    }

    /// States and weights that this entry point binds, each once as a buffer and once
    /// as an image.
    fn bound_buffers(&mut self) {
        let bound = self.plan.bound_by(self.entry);
        let bound: BTreeSet<(Binding, bool)> = bound
            .map(|(binding, access)| (binding, access.is_image()))
            .collect();
        for (binding, image) in bound {
            match binding {
                Binding::Weight(i) => {
                    if let Some(weight) = self.plan.weights.get(i) {
                        let subject = format!("weight `{}`", weight.name);
                        match image {
                            true => self.fits_image(&subject, weight.image()),
                            false => self.fits_buffer(&subject, weight.bytes),
                        }
                        let scaled = weight.matrix().is_some_and(|m| m.packing.has_scales());
                        if image && scaled && self.plan.scales_of(i).is_none() {
                            let expected = "its scales among the weights, for an image of both";
                            self.report.error(26, subject, expected, "none");
                        }
                    }
                }
                Binding::State(i) => {
                    if let Some(state) = self.plan.states.get(i) {
                        let subject = format!("state `{}`", state.name);
                        let bytes = self.tier.state_bytes(state);
                        self.fits_at_maxima(&subject, &bytes, image);
                    }
                }
                Binding::Buffer(_) => {}
            }
        }
    }

    fn variant(&mut self, variant: &Variant) {
        for bound in &variant.bounds {
            let (allowed, at) = (self.sizes.with(&[CONTEXT]), self.sizes.both());
            self.report.dim("a bound", &bound.size, &allowed, &at);
        }
        let max = within(variant, &self.sizes.max);
        // A variant that does not take the least sizes is never run with them.
        let min = if variant.takes(&self.sizes.min) == Ok(true) {
            self.sizes.min.clone()
        } else {
            max.clone()
        };
        if let Some(grid) = &variant.grid {
            self.grid(variant, grid);
        }
        for launch in &variant.launches {
            self.launch(launch, (&max, &min), &[CONTEXT]);
        }
        let mut streamed = BTreeSet::new();
        for (index, stream) in variant.streams.iter().enumerate() {
            if !streamed.insert(stream.output) {
                let subject = format!("stream {index}");
                let found = format!("another stream of output {}", stream.output);
                self.report
                    .error(22, subject, "an output of its own", found);
            }
            let block = self.stream(index, stream, &max);
            let (max, min) = (max.clone().with(BLOCK, block), min.clone().with(BLOCK, 0));
            for launch in &stream.launches {
                self.launch(launch, (&max, &min), &[CONTEXT, BLOCK]);
            }
        }
        self.ports_fit(variant, &[(AT_MAXIMA, &max), (AT_LEAST, &min)]);
    }

    /// Buffers that count on their words being 0 are nobody else's.
    fn zeroed_buffers(&mut self) {
        for (index, buffer) in self.entry.buffers.iter().enumerate() {
            let mut ports = self.entry.inputs.iter().chain(&self.entry.outputs);
            let port = ports.find(|port| port.buffer == index);
            if buffer.zeroed && (buffer.image || port.is_some()) {
                let subject = format!("buffer {index} (`{}`)", buffer.name);
                let found = port.map_or("an image".to_owned(), |p| format!("that of `{}`", p.name));
                let expected = "no image and a buffer of its own, as it is zeroed";
                self.report.error(24, subject, expected, found);
            }
        }
    }

    fn grid(&mut self, variant: &Variant, grid: &Grid) {
        if let Some(check) = &grid.check {
            super::checked(self.plan, check, self.report);
        }
        let subject = format!("grid state {}", grid.state);
        let Some(buffer) = self.entry.buffers.get(grid.state) else {
            let expected = format!("one of the {} buffers", self.entry.buffers.len());
            self.report.error(24, subject, expected, "none");
            return;
        };
        let bytes = buffer
            .bytes
            .iter()
            .filter_map(|b| b.eval(&self.sizes.min).ok());
        let bytes = bytes.max().unwrap_or(0);
        if bytes < 8 {
            self.report.error(24, &subject, "at least 8 bytes", bytes);
        }
        if !buffer.zeroed {
            self.report
                .error(24, &subject, "a zeroed buffer", "one of any words");
        }
        let mut ports = self.entry.inputs.iter().chain(&self.entry.outputs);
        if let Some(port) = ports.find(|p| p.buffer == grid.state) {
            let found = format!("that of `{}`", port.name);
            self.report
                .error(24, &subject, "a buffer of its own", found);
        }
        let own = Binding::Buffer(grid.state);
        for other in &self.entry.variants {
            let shares = other.grid.as_ref().is_some_and(|g| g.state == grid.state);
            if !shares && other.all_launches().any(|l| l.bindings.contains(&own)) {
                let found = format!("a launch of variant `{}`, which has none", other.name);
                self.report
                    .error(24, &subject, "launches with this grid", found);
            }
        }
        for launch in variant.all_launches().filter(|l| l.bindings.contains(&own)) {
            let count = launch.workgroups.as_const();
            if !count.is_some_and(u64::is_power_of_two) {
                self.report.place.launch.clone_from(&launch.label);
                let expected = "a constant power of two";
                let found = &launch.workgroups;
                self.report.error(25, "workgroups", expected, found);
                self.report.place.launch.clear();
            }
        }
    }

    /// Checks a stream; the result is the first row of its last block.
    fn stream(&mut self, index: usize, stream: &Stream, max: &Bindings) -> u64 {
        let subject = format!("stream {index}");
        match self.entry.outputs.get(stream.output) {
            None => {
                let expected = format!("one of the {} outputs", self.entry.outputs.len());
                self.report
                    .error(9, subject.clone(), expected, stream.output);
            }
            Some(port) => {
                let leading = port.ty.shape.len().saturating_sub(1);
                let rows = Dim::product(&port.ty.shape[..leading]);
                if rows != stream.rows {
                    let expected = format!("the {rows} rows of `{}`", port.name);
                    self.report
                        .error(22, subject.clone(), expected, &stream.rows);
                }
            }
        }
        if stream.rows_per_block == 0 {
            self.report.error(22, subject.clone(), "rows in a block", 0);
        }
        let allowed = self.sizes.with(&[]);
        self.report
            .dim(&subject, &stream.rows, &allowed, &self.sizes.both());
        let rows = stream.rows.eval(max).unwrap_or(0);
        let last = rows.saturating_sub(1).checked_div(stream.rows_per_block);
        last.unwrap_or(0) * stream.rows_per_block
    }

    fn launch(&mut self, launch: &Launch, (max, min): (&Bindings, &Bindings), others: &[&str]) {
        self.report.place.launch.clone_from(&launch.label);
        let allowed = self.sizes.with(others);
        let at = [(AT_MAXIMA, max), (AT_LEAST, min)];
        for (what, dim) in [("flops", &launch.flops), ("bytes", &launch.bytes)] {
            self.report.dim(what, dim, &allowed, &at);
        }
        let grid = &launch.workgroups;
        if self.report.dim("workgroups", grid, &allowed, &at)
            && let Ok(count) = grid.eval(max)
        {
            let side = limit(self.tier, None, WORKGROUPS);
            if count > side.saturating_mul(side) {
                let expected = format!("at most {side} times {side} (`{WORKGROUPS}`)");
                self.report.error(
                    15,
                    "workgroups",
                    expected,
                    format!("{count} at {AT_MAXIMA}"),
                );
            }
        }
        self.references(launch);
        self.report.place.launch.clear();
    }

    fn references(&mut self, launch: &Launch) {
        match self.plan.kernels.get(&launch.kernel) {
            None => {
                let found = format!("`{}`", launch.kernel);
                self.report
                    .error(9, "kernel", "a kernel of the plan", found);
            }
            Some(kernel) if kernel.bindings.len() != launch.bindings.len() => {
                let wanted = kernel.bindings.len();
                let expected = format!("{wanted}, as kernel `{}` has", launch.kernel);
                self.report
                    .error(10, "bindings", expected, launch.bindings.len());
            }
            Some(_) => {}
        }
        for (at, (binding, access)) in (1..).zip(self.plan.bound(launch)) {
            let image = match binding {
                Binding::Weight(_) => access.is_image(),
                Binding::State(_) => self.images.contains(&binding),
                Binding::Buffer(i) => self.entry.buffers.get(i).is_some_and(|b| b.image),
            };
            if access.is_image() && self.tier.half_states && matches!(binding, Binding::State(_)) {
                let expected = "a buffer, as states of f16 are";
                self.report
                    .error(26, format!("binding {at}"), expected, "an image");
            }
            if image != access.is_image() {
                let expected = match image {
                    true => "no image, or one that is bound as texels",
                    false => "a weight, a state or an image, for its texels",
                };
                let subject = format!("binding {at}");
                self.report
                    .error(26, subject, expected, format!("{binding:?}"));
            }
        }
        for (at, binding) in launch.bindings.iter().enumerate() {
            let (kind, index, count) = match *binding {
                Binding::Weight(i) => ("weights", i, self.plan.weights.len()),
                Binding::State(i) => ("states", i, self.plan.states.len()),
                Binding::Buffer(i) => ("buffers", i, self.entry.buffers.len()),
            };
            if index >= count {
                // Numbered as in WGSL, where the uniform block is binding 0.
                let subject = format!("binding {}", at + 1);
                self.report
                    .error(9, subject, format!("one of the {count} {kind}"), index);
            }
        }
    }

    fn ports_fit(&mut self, variant: &Variant, at: &[(&str, &Bindings)]) {
        let inputs = self.entry.inputs.iter().map(|p| ("input", p, None));
        let outputs = self.entry.outputs.iter().enumerate().map(|(i, p)| {
            let stream = variant.streams.iter().find(|s| s.output == i);
            ("output", p, stream)
        });
        for (kind, port, stream) in inputs.chain(outputs) {
            let Some(buffer) = self.entry.buffers.get(port.buffer) else {
                continue;
            };
            for (when, sizes) in at {
                let Some(wanted) = port_bytes(port, stream, sizes) else {
                    continue;
                };
                let held = buffer.bytes.iter().filter_map(|b| b.eval(sizes).ok());
                let held = held.max().unwrap_or(0);
                if wanted > held {
                    let expected = format!("a buffer of {wanted} bytes at {when}");
                    let found = format!("{held} in buffer {} (`{}`)", port.buffer, buffer.name);
                    let subject = format!("{kind} `{}`", port.name);
                    self.report.error(14, subject, expected, found);
                }
            }
        }
    }
}

/// The bytes of a port that its buffer holds at a time.
fn port_bytes(port: &Port, stream: Option<&Stream>, sizes: &Bindings) -> Option<u64> {
    let (last, leading) = match port.ty.shape.split_last() {
        Some((last, leading)) => (last.eval(sizes).ok()?, leading),
        None => (1, &[][..]),
    };
    let rows = Dim::product(leading).eval(sizes).ok()?;
    let rows = stream.map_or(rows, |s| rows.min(s.rows_per_block));
    let elements = rows.saturating_mul(last);
    Some(elements.saturating_mul(port.dtype().device_bytes()))
}

/// The maxima within a variant: a bound on a product of symbols bounds each of
/// them, as far as the others are at least one.
fn within(variant: &Variant, max: &Bindings) -> Bindings {
    let mut out = max.clone();
    for bound in &variant.bounds {
        let mut terms = bound.size.terms();
        let (Some((atoms, coefficient)), None) = (terms.next(), terms.next()) else {
            continue;
        };
        let may_be_zero = |a: &Atom| !matches!(a, Atom::Symbol(s) if s.name() != PAST);
        if coefficient < 1 || (atoms.len() > 1 && atoms.iter().any(may_be_zero)) {
            continue;
        }
        let most = bound.max / coefficient.unsigned_abs();
        for atom in atoms {
            if let Atom::Symbol(symbol) = atom
                && let Some(value) = out.get(symbol)
            {
                out.set(symbol.name(), value.min(most));
            }
        }
    }
    out
}
