//! Kernels being put together: constants, bindings, hooks and a body.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use kiln_ir::Dim;
use kiln_ir::plan::Access;

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
    /// Eight f16, a struct of the body.
    Half8,
}

impl Element {
    fn wgsl(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F32x4 => "vec4<f32>",
            Element::I32 => "i32",
            Element::U32 => "u32",
            Element::U32x2 => "vec2<u32>",
            Element::Half8 => "Half8",
            Element::U32x4 => "vec4<u32>",
        }
    }
}

#[derive(Clone, Debug)]
struct Bound {
    name: String,
    base: Base,
    element: Element,
    access: Access,
}

/// The directives for cooperative matrices of f16.
const MATRICES: &str = "enable f16;\nenable wgpu_cooperative_matrix;\n\n";

/// Whether a kernel's text uses cooperative matrices.
pub(crate) fn has_matrices(text: &str) -> bool {
    text.contains(MATRICES)
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
    hooks: Vec<String>,
    functions: BTreeSet<&'static str>,
    first_workgroup: Option<String>,
    enables: &'static str,
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
            functions: BTreeSet::new(),
            first_workgroup: None,
            enables: "",
        }
    }

    pub fn constant_u32(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.constants, "const {name}: u32 = {value}u;");
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
        });
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
            let stride = part
                .view
                .strides
                .last()
                .map_or(1.into(), |s| s.ceil_div(unit));
            let column = wgsl::times(&column, &wgsl::dim(&stride));
            let address = wgsl::sum([part.view.row_address("row", unit), column]);
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

    /// Adds a function to the kernel's text, once.
    pub fn hook(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.hooks.contains(&text) {
            self.hooks.push(text);
        }
    }

    /// A number for a generated function's name.
    pub fn next_function(&self) -> usize {
        self.hooks.len()
    }

    /// Makes the kernel have a function of `kiln_shaders::functions`.
    pub fn function(&mut self, name: &'static str) -> &'static str {
        self.functions.insert(name);
        name
    }

    /// Puts the directives for cooperative matrices in front.
    pub fn enable_matrices(&mut self) {
        self.enables = MATRICES;
    }

    /// Makes workgroups count from `first`, an expression.
    pub fn first_workgroup(&mut self, first: String) {
        self.first_workgroup = Some(first);
    }

    /// The buffers behind bindings 1, 2, ...
    pub fn bases(&self) -> Vec<(Base, Access)> {
        self.bindings.iter().map(|b| (b.base, b.access)).collect()
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
        let mut out = format!("{}struct Symbols {{\n", self.enables);
        for symbol in symbols {
            let _ = writeln!(out, "    {symbol}: u32,");
        }
        out.push_str("}\n\n@group(0) @binding(0) var<uniform> sym: Symbols;\n");
        for (i, b) in self.bindings.iter().enumerate() {
            let access = match b.access {
                Access::Read => "read",
                Access::ReadWrite => "read_write",
            };
            let (at, name, element) = (i + 1, &b.name, b.element.wgsl());
            let _ = writeln!(
                out,
                "@group(0) @binding({at}) var<storage, {access}> {name}: array<{element}>;"
            );
        }
        out.push('\n');
        out.push_str(&self.constants);
        out.push('\n');
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
            out.push_str(hook.trim_end());
            out.push_str("\n\n");
        }
        let wanted: Vec<&str> = self.functions.iter().copied().collect();
        out.push_str(&kiln_shaders::functions(&wanted));
        out.push_str(body);
        out
    }
}

/// A launch before its buffers are numbered and its kernel is named.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub label: String,
    pub kernel: Draft,
    pub workgroups: Dim,
    pub flops: Dim,
    pub bytes: Dim,
}
