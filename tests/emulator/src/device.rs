//! Buffers, kernels, and their launches.

use std::collections::BTreeSet;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Handle, Module, Type, TypeInner};

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
        self.global(handle).name.as_deref().unwrap_or_default()
    }

    pub(crate) fn global(&self, handle: Handle<GlobalVariable>) -> &GlobalVariable {
        &self.module.global_variables[handle]
    }
}

/// Whether buffers have words that atomics use.
fn has_atomics(module: &Module) -> bool {
    let buffers = module.global_variables.iter().map(|(_, variable)| variable);
    let mut buffers = buffers.filter(|v| matches!(v.space, AddressSpace::Storage { .. }));
    buffers.any(|variable| is_of_atomics(module, &module.types[variable.ty].inner))
}

fn is_of_atomics(module: &Module, inner: &TypeInner) -> bool {
    let of = |ty: Handle<Type>| is_of_atomics(module, &module.types[ty].inner);
    match inner {
        TypeInner::Atomic(_) => true,
        TypeInner::Array { base, .. } => of(*base),
        TypeInner::Struct { members, .. } => members.iter().any(|member| of(member.ty)),
        _ => false,
    }
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

    /// Launches a kernel in a grid of so many workgroups along each axis: `uniforms` are
    /// the words of the uniform block at binding 0 of group 0, `bindings` the buffers at 1,
    /// 2, ... Gives the barriers that were reached, by where they begin in the kernel's text.
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
