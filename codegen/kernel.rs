//! Kernels being put together: constants, bindings, hooks and a body.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::iter;

use kiln_ir::plan::{Access, ImageSize};
use kiln_ir::{Dim, Packing};

use crate::halves::bind_halves;
use crate::images::bind_image;
use crate::place::Part;
use crate::view::Base;
use crate::wgsl;

/// The type of a binding's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F32x4,
    I32,
    U32,
    U32x2,
    U32x4,
    F16,
    F16x4,
    /// Eight f16, a struct of the body.
    Half8,
    /// A word that invocations of several workgroups change.
    AtomicU32,
}

impl Element {
    /// 16 bytes of the weights of a matrix.
    pub fn of(packing: Packing) -> Self {
        match packing {
            Packing::F32 => Element::F32x4,
            Packing::F16 | Packing::Q8 | Packing::Q4 => Element::U32x4,
        }
    }

    pub fn wgsl(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F32x4 => "vec4<f32>",
            Element::I32 => "i32",
            Element::U32 => "u32",
            Element::U32x2 => "vec2<u32>",
            Element::F16 => "f16",
            Element::F16x4 => "vec4<f16>",
            Element::Half8 => "Half8",
            Element::AtomicU32 => "atomic<u32>",
            Element::U32x4 => "vec4<u32>",
        }
    }
}

/// A buffer as a kernel binds it.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub name: String,
    pub base: Base,
    pub element: Element,
    pub access: Access,
    /// Whether other workgroups of the launch see what is written.
    pub coherent: bool,
    /// Whether what is written is loaded again.
    pub reloaded: bool,
}

impl Bound {
    /// Has hooks that have another text for what is bound have that.
    pub fn take_others(&self, hooks: &mut [Hook]) {
        for hook in hooks {
            if let Some((_, other)) = hook.otherwise.take_if(|(name, _)| *name == self.name) {
                hook.text = other;
            }
        }
    }

    /// Puts calls of `function`, whose text is added, in place of the loads from it, or the
    /// stores to it, in `hooks`.
    pub fn call(&self, hooks: &mut Vec<Hook>, function: &str, text: String) {
        for hook in hooks.iter_mut() {
            hook.text = match self.access.writes() {
                true => wgsl::call_for_store(&hook.text, &self.name, function),
                false => wgsl::call_for_load(&hook.text, &self.name, function),
            };
        }
        hooks.push(Hook {
            text,
            otherwise: None,
        });
    }
}

/// A function of a kernel's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub text: String,
    /// What is bound, and the text where that is an image, or a buffer of f16.
    pub otherwise: Option<(String, String)>,
}

/// What names end in of kernels that keep states in f16.
pub(crate) const HALF_STATES: &str = ".f16_states";

/// The hooks of a default prelude.
pub(crate) fn default_hooks(prelude: &str) -> impl Iterator<Item = &'static str> {
    let text = kiln_shaders::default_prelude(prelude).unwrap_or_default();
    text.split("\n\n").filter(|block| block.contains("fn "))
}

/// The directive for f16 in a kernel's types, and that for cooperative matrices.
const HALVES: &str = "enable f16;\n";
const MATRICES: &str = "enable wgpu_cooperative_matrix;\n";

/// What stands before a binding whose writes other workgroups of the launch see.
pub(crate) const COHERENT: &str = "@coherent ";

/// The type of an image that a kernel reads and writes.
const READ_WRITE_IMAGE: &str = "texture_storage_2d<rgba32uint, read_write>";

/// Whether a kernel's text uses what WebGPU has: no cooperative matrices, no memory
/// that is coherent across a grid, and no images of four words a texel that are read
/// and written.
pub(crate) fn is_webgpu(text: &str) -> bool {
    let others = [MATRICES, COHERENT, READ_WRITE_IMAGE];
    !others.iter().any(|other| text.contains(other))
}

/// A kernel and the launch that it is made for.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// The archetype, a body of `kiln_shaders`.
    pub body: &'static str,
    /// What tells it from others of the archetype; part of its name.
    pub detail: String,
    pub workgroup: u32,
    constants: String,
    bindings: Vec<Bound>,
    hooks: Vec<Hook>,
    wanted: BTreeSet<&'static str>,
    first_workgroup: Option<String>,
    has_matrices: bool,
    /// How often loops of a workgroup go round, where that is often.
    pub rounds: Dim,
}

impl Draft {
    pub fn new(body: &'static str, detail: String, workgroup: u32) -> Self {
        Draft {
            body,
            detail,
            workgroup,
            constants: String::new(),
            bindings: Vec::new(),
            hooks: Vec::new(),
            wanted: BTreeSet::new(),
            first_workgroup: None,
            has_matrices: false,
            rounds: Dim::default(),
        }
    }

    /// The declarations of the constants, one a line.
    pub fn constants(&self) -> &str {
        &self.constants
    }

    pub fn constant_u32(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.constants, "const {name}: u32 = {value}u;");
    }

    /// The kernel with another value for a constant; none if it has no such.
    pub fn with_constant(&self, name: &str, value: u64) -> Option<Self> {
        let mut other = self.clone();
        let start = format!("const {name}: u32 = ");
        let at = other.constants.find(&start)? + start.len();
        let end = at + other.constants[at..].find(';')?;
        other.constants.replace_range(at..end, &format!("{value}u"));
        Some(other)
    }

    pub fn constant_bool(&mut self, name: &str, value: bool) {
        let _ = writeln!(self.constants, "const {name}: bool = {value};");
    }

    pub fn constant_f32(&mut self, name: &str, value: f64) {
        let value = crate::wgsl::float(value);
        let _ = writeln!(self.constants, "const {name}: f32 = {value};");
    }

    /// The name under which the kernel binds `base`; `role` if it is free.
    pub fn bind(&mut self, role: &str, base: Base, element: Element, access: Access) -> String {
        let same = |b: &&Bound| b.base == base && b.element == element && b.access == access;
        if let Some(found) = self.bindings.iter().find(same) {
            return found.name.clone();
        }
        let taken = |name: &str| self.bindings.iter().any(|b| b.name == name);
        let mut name = role.to_owned();
        let mut count = 1;
        while taken(&name) {
            count += 1;
            name = format!("{role}_{count}");
        }
        self.bindings.push(Bound {
            name: name.clone(),
            base,
            element,
            access,
            coherent: false,
            reloaded: false,
        });
        name
    }

    /// As [`Draft::write`], for what other workgroups of the launch read.
    pub fn write_coherently(&mut self, role: &str, base: Base, element: Element) -> String {
        let name = self.write(role, base, element);
        if let Some(bound) = self.bindings.iter_mut().find(|b| b.name == name) {
            bound.coherent = true;
        }
        name
    }

    /// As [`Draft::write`], for what the kernel loads too.
    pub fn reload(&mut self, role: &str, base: Base, element: Element) -> String {
        let name = self.write(role, base, element);
        if let Some(bound) = self.bindings.iter_mut().find(|b| b.name == name) {
            bound.reloaded = true;
        }
        name
    }

    pub fn read(&mut self, role: &str, base: Base, element: Element) -> String {
        self.bind(role, base, element, Access::Read)
    }

    pub fn write(&mut self, role: &str, base: Base, element: Element) -> String {
        self.bind(role, base, element, Access::ReadWrite)
    }

    /// Statements that write `v`, one or four elements, at `row`, which counts from a
    /// block's start, and `column`.
    pub fn write_parts(&mut self, outputs: &[Part], unit: u64) -> String {
        let mut out = String::new();
        for (i, part) in outputs.iter().enumerate() {
            let element = match unit {
                4 => Element::F32x4,
                _ => Element::F32,
            };
            let name = self.write("y", part.view.base, element);
            let column = match (part.start, unit) {
                (0, 1) => "column".to_owned(),
                (0, _) => "column / 4u".to_owned(),
                (start, 1) => format!("(column - {start}u)"),
                (start, _) => format!("(column - {start}u) / 4u"),
            };
            let row = part.view.row_address("row", unit);
            let address = wgsl::sum([row, part.view.column(&column, unit)]);
            let statement = format!("{name}[{address}] = v;");
            out.push_str(&match (i, outputs.len()) {
                (_, 1) => format!("    {statement}\n"),
                (0, _) => format!(
                    "    if column < {}u {{\n        {statement}\n    }}",
                    part.end
                ),
                (i, n) if i + 1 == n => format!(" else {{\n        {statement}\n    }}\n"),
                _ => format!(
                    " else if column < {}u {{\n        {statement}\n    }}",
                    part.end
                ),
            });
        }
        out
    }

    /// Adds a function to the kernel's text, once. It loads from what is bound by
    /// `name[i]` alone, and stores by statements `name[i] = v;`, for which
    /// [`Draft::make_image`] and [`Draft::halve_states`] look.
    pub fn hook(&mut self, text: impl Into<String>) {
        self.add(Hook {
            text: text.into(),
            otherwise: None,
        });
    }

    /// As [`Draft::hook`], for one that has another text where what is bound as `name` is
    /// an image, or a buffer of f16, which that loads from as it is bound: by a place across
    /// and down, where that is how an image of bands is loaded from.
    pub fn hook_of(&mut self, name: &str, text: String, otherwise: String) {
        self.add(Hook {
            text,
            otherwise: Some((name.to_owned(), otherwise)),
        });
    }

    /// Puts another function in place of one; whether that was there.
    pub fn replace(&mut self, hook: &str, other: &str) -> bool {
        let known = self.hooks.iter_mut().find(|h| h.text == hook);
        known
            .map(|known| other.clone_into(&mut known.text))
            .is_some()
    }

    fn add(&mut self, hook: Hook) {
        if !self.hooks.contains(&hook) {
            self.hooks.push(hook);
        }
    }

    /// A number for a generated function's name.
    pub fn next_function(&self) -> usize {
        self.hooks.len()
    }

    /// Makes the kernel have a function of `kiln_shaders::functions`.
    pub fn function(&mut self, name: &'static str) -> &'static str {
        self.wanted.insert(name);
        name
    }

    /// Puts the directives for cooperative matrices in front.
    pub fn enable_matrices(&mut self) {
        self.has_matrices = true;
    }

    /// Makes workgroups count from `first`, an expression.
    pub fn first_workgroup(&mut self, first: String) {
        self.first_workgroup = Some(first);
    }

    /// The buffers behind bindings 1, 2, ...
    pub fn bases(&self) -> Vec<(Base, Access)> {
        self.bindings.iter().map(|b| (b.base, b.access)).collect()
    }

    /// Whether it writes elements of this type to `base`.
    pub fn writes(&self, base: Base, element: Element) -> bool {
        let mut bindings = self.bindings.iter();
        bindings.any(|b| b.base == base && b.element == element && b.access.writes())
    }

    /// The buffers as they are bound.
    pub fn bindings(&self) -> &[Bound] {
        &self.bindings
    }

    /// Whether workgroups read what others of the launch write.
    pub fn shares(&self) -> bool {
        self.bindings.iter().any(|b| b.coherent)
    }

    /// How many images are bound.
    pub fn images(&self) -> usize {
        let images = self.bindings.iter().filter(|b| b.access.is_image());
        images.count()
    }

    /// Binds the buffer `base` as an image, which holds what is in `with` too.
    pub fn make_image(&mut self, base: Base, size: ImageSize, with: Option<Base>) {
        self.bindings.retain(|b| Some(b.base) != with);
        let mut bindings = self.bindings.iter_mut();
        if let Some(bound) = bindings.find(|b| b.base == base) {
            bind_image(bound, size, &mut self.hooks);
        }
    }

    /// Binds states as buffers of f16, and says so in the name if there are any.
    pub fn halve_states(&mut self) {
        let bindings = self.bindings.iter_mut();
        for bound in bindings.filter(|b| matches!(b.base, Base::State(_))) {
            bind_halves(bound, &mut self.hooks);
        }
        if self.has_half_states() {
            self.detail.push_str(HALF_STATES);
        }
    }

    /// Whether it binds such buffers.
    pub fn has_half_states(&self) -> bool {
        let mut elements = self.bindings.iter().map(|b| b.element);
        elements.any(|element| matches!(element, Element::F16 | Element::F16x4))
    }

    /// The directives for what is in its types.
    pub fn enables(&self) -> String {
        // Those with matrices have f16 in workgroup memory too.
        let mut out = String::new();
        if self.has_matrices || self.has_half_states() {
            out.push_str(HALVES);
        }
        if self.has_matrices {
            out.push_str(MATRICES);
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out
    }

    /// Whether workgroups count from 0.
    pub fn counts_from_zero(&self) -> bool {
        self.first_workgroup.is_none()
    }

    /// The name of a kernel with this text, if no other has it.
    pub fn name(&self) -> String {
        match self.detail.as_str() {
            "" => self.body.to_owned(),
            detail => format!("{}.{detail}", self.body),
        }
    }

    /// The text, without a line that names it. `symbols` are the members of the
    /// uniform block, `body` the archetype's text.
    pub fn text(&self, symbols: &[String], body: &str) -> String {
        let mut out = self.enables();
        out.push_str(&uniforms(symbols));
        for (at, b) in (1..).zip(&self.bindings) {
            out.push_str(&binding(at, &b.name, b.element, b.access, b.coherent));
        }
        out.push('\n');
        out.push_str(&self.functions(body));
        out
    }

    /// What stands behind the bindings: constants, hooks and the body.
    pub fn functions(&self, body: &str) -> String {
        let mut out = format!("{}\n", self.constants);
        // Grids over the limit of a dimension are folded; bodies return beyond
        // their last tile.
        let first = self
            .first_workgroup
            .as_ref()
            .map_or(String::new(), |f| format!(" + {f}"));
        let _ = writeln!(
            out,
            "fn workgroup_index(id: vec3<u32>, count: vec3<u32>) -> u32 {{\n    \
             return id.x + id.y * count.x + id.z * count.x * count.y{first};\n}}\n"
        );
        for hook in &self.hooks {
            out.push_str(hook.text.trim_end());
            out.push_str("\n\n");
        }
        let wanted: Vec<&str> = self.wanted.iter().copied().collect();
        out.push_str(&kiln_shaders::functions(&wanted));
        out.push_str(body);
        out
    }
}

/// The uniform block, with these members.
pub(crate) fn uniforms(symbols: &[String]) -> String {
    let member = |symbol: &String| format!("    {}: u32,\n", wgsl::member(symbol));
    let members: Vec<String> = symbols.iter().map(member).collect();
    format!(
        "struct Symbols {{\n{}}}\n\n@group(0) @binding(0) var<uniform> sym: Symbols;\n",
        members.concat()
    )
}

/// The declaration of a buffer.
pub(crate) fn binding(
    at: usize,
    name: &str,
    element: Element,
    access: Access,
    coherent: bool,
) -> String {
    let coherent = if coherent { COHERENT } else { "" };
    let element = element.wgsl();
    let access = match access {
        Access::Read => "read",
        Access::ReadWrite => "read_write",
        image => {
            let access = match image {
                Access::ReadWriteTexels => "read_write",
                Access::WriteTexels => "write",
                _ => "read",
            };
            return format!(
                "@group(0) @binding({at}) var {name}: texture_storage_2d<rgba32uint, {access}>;\n"
            );
        }
    };
    format!("@group(0) @binding({at}) {coherent}var<storage, {access}> {name}: array<{element}>;\n")
}

/// A launch before its buffers are numbered and its kernel is named.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub label: String,
    pub kernel: Draft,
    pub workgroups: Dim,
    pub flops: Dim,
    pub bytes: Dim,
    /// Other ways to compute the same.
    pub others: Vec<Way>,
}

impl Launch {
    /// The kernels of all its ways.
    pub fn kernels(&self) -> impl Iterator<Item = &Draft> {
        iter::once(&self.kernel).chain(self.others.iter().map(|way| &way.kernel))
    }

    /// The kernels of all its ways.
    pub fn kernels_mut(&mut self) -> impl Iterator<Item = &mut Draft> {
        iter::once(&mut self.kernel).chain(self.others.iter_mut().map(|way| &mut way.kernel))
    }
}

/// A way to do what a launch does.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub kernel: Draft,
    pub workgroups: Dim,
    /// Bytes that a workgroup shares, if they are more than the tier has.
    pub memory: Option<u64>,
}
