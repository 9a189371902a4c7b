//! Buffers, kernels, and their launches.

use std::collections::BTreeSet;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Handle, Module, Statement};

use crate::fault::Fault;
use crate::launch::Launch;

/// A kernel that is ready to be launched.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) module: Module,
    pub(crate) info: ModuleInfo,
    /// Whether invocations of different workgroups can wait for each other, so that
    /// all have to run at once.
    pub(crate) has_atomics: bool,
}

impl Kernel {
    /// Parses a kernel's WGSL, which has one entry point.
    ///
    /// # Errors
    /// [`Fault::Invalid`], with naga's report.
    pub fn new(text: &str) -> Result<Self, Fault> {
        let invalid = |report: String| Fault::Invalid(report);
        let module = naga::front::wgsl::parse_str(text);
        let module = module.map_err(|e| invalid(e.emit_to_string(text)))?;
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        let info = validator.validate(&module);
        let info = info.map_err(|e| invalid(e.emit_to_string(text)))?;
        if module.entry_points.len() != 1 {
            return Err(invalid(format!(
                "it has {} entry points, not one",
                module.entry_points.len()
            )));
        }
        Ok(Kernel {
            has_atomics: has_atomics(&module),
            module,
            info,
        })
    }

    /// Invocations in a workgroup.
    pub(crate) fn workgroup(&self) -> usize {
        let sizes = self
            .module
            .entry_points
            .iter()
            .flat_map(|e| e.workgroup_size);
        sizes.map(|n| n as usize).product()
    }

    pub(crate) fn name(&self, handle: Handle<GlobalVariable>) -> &str {
        self.global(handle).name.as_deref().unwrap_or("a variable")
    }

    pub(crate) fn global(&self, handle: Handle<GlobalVariable>) -> &GlobalVariable {
        &self.module.global_variables[handle]
    }
}

fn has_atomics(module: &Module) -> bool {
    let functions = module.functions.iter().map(|(_, f)| f);
    let mut functions = functions.chain(module.entry_points.iter().map(|e| &e.function));
    functions.any(|f| any(&f.body, &|s| matches!(s, Statement::Atomic { .. })))
}

/// Whether a statement of a block is such a one.
fn any(block: &naga::Block, is: &dyn Fn(&Statement) -> bool) -> bool {
    block.iter().any(|statement| {
        is(statement)
            || match statement {
                Statement::Block(block) => any(block, is),
                Statement::If { accept, reject, .. } => any(accept, is) || any(reject, is),
                Statement::Switch { cases, .. } => cases.iter().any(|case| any(&case.body, is)),
                Statement::Loop {
                    body, continuing, ..
                } => any(body, is) || any(continuing, is),
                _ => false,
            }
    })
}

/// A buffer of a [`Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Buffer(pub(crate) usize);

/// An emulated device: subgroups of a size, and memory.
#[derive(Debug)]
pub struct Device {
    subgroup: usize,
    buffers: Vec<Vec<u32>>,
}

impl Device {
    /// A device whose subgroups have so many invocations each.
    pub fn new(subgroup: usize) -> Self {
        Device {
            subgroup,
            buffers: Vec::new(),
        }
    }

    /// A buffer that holds these words.
    pub fn buffer(&mut self, words: Vec<u32>) -> Buffer {
        self.buffers.push(words);
        Buffer(self.buffers.len() - 1)
    }

    /// What a buffer holds.
    pub fn words(&self, buffer: Buffer) -> &[u32] {
        &self.buffers[buffer.0]
    }

    /// What a buffer holds, to be changed.
    pub fn words_mut(&mut self, buffer: Buffer) -> &mut [u32] {
        &mut self.buffers[buffer.0]
    }

    /// Launches a kernel in a grid of so many workgroups along each axis: `uniforms` are the words of the uniform
    /// block at binding 0 of group 0, `bindings` the buffers at 1, 2, ... Gives the barriers
    /// that were reached, by where they begin in the kernel's text.
    ///
    /// # Errors
    /// The [`Fault`] that ended the launch. Buffers then hold what had been written.
    pub fn launch(
        &mut self,
        kernel: &Kernel,
        grid: [usize; 3],
        uniforms: &[u32],
        bindings: &[Buffer],
    ) -> Result<BTreeSet<usize>, Fault> {
        for (_, variable) in kernel.module.global_variables.iter() {
            let (Some(place), AddressSpace::Storage { .. }) = (&variable.binding, variable.space)
            else {
                continue;
            };
            if place.binding == 0 || place.binding as usize > bindings.len() {
                return Err(Fault::Unbound {
                    name: variable.name.clone().unwrap_or_default(),
                    binding: place.binding,
                    given: bindings.len(),
                });
            }
        }
        Launch::new(
            kernel,
            self.subgroup,
            grid,
            uniforms,
            bindings,
            &mut self.buffers,
        )
        .run()
    }
}
