//! Buffers, kernels, and their launches.

use std::collections::BTreeSet;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, GlobalVariable, Handle, ImageClass, ImageDimension, Module, StorageAccess,
    StorageFormat, Type, TypeInner,
};

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

    /// How a buffer or an image is accessed.
    pub(crate) fn access(&self, variable: &GlobalVariable) -> Option<StorageAccess> {
        match (variable.space, &self.module.types[variable.ty].inner) {
            (AddressSpace::Storage { access }, _) => Some(access),
            (
                AddressSpace::Handle,
                TypeInner::Image {
                    class:
                        ImageClass::Storage {
                            format: StorageFormat::Rgba32Uint,
                            access,
                        },
                    dim: ImageDimension::D2,
                    arrayed: false,
                },
            ) => Some(*access),
            _ => None,
        }
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

/// A buffer or an image of a [`Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Buffer(pub(crate) usize);

/// What a [`Buffer`] holds.
#[derive(Debug)]
pub(crate) struct Memory {
    pub words: Vec<u32>,
    /// Texels in a row, if it is an image.
    pub across: Option<usize>,
}

/// Words of a texel: images are of the format `rgba32uint`.
pub(crate) const TEXEL: usize = 4;

/// An emulated device: subgroups of a size, and memory.
#[derive(Debug)]
pub struct Device {
    pub(crate) subgroup: usize,
    /// Whether all memory is coherent, as [`kiln_ir::plan::Requirements::cpu_only`] has it.
    pub(crate) is_cpu: bool,
    pub(crate) memory: Vec<Memory>,
}

impl Device {
    /// A device whose subgroups have so many invocations each.
    pub fn new(subgroup: usize) -> Self {
        Device {
            subgroup,
            is_cpu: false,
            memory: Vec::new(),
        }
    }

    /// A device on a CPU, where buffers and images that do not say so are coherent too.
    pub fn on_cpu(subgroup: usize) -> Self {
        Device {
            is_cpu: true,
            ..Device::new(subgroup)
        }
    }

    /// A buffer that holds these words.
    pub fn buffer(&mut self, words: Vec<u32>) -> Buffer {
        self.hold(Memory {
            words,
            across: None,
        })
    }

    /// An image with so many texels of four words in a row, at least one, which holds these
    /// words, row by row. What does not fill a row is not a part of it.
    pub fn image(&mut self, across: usize, words: Vec<u32>) -> Buffer {
        self.hold(Memory {
            words,
            across: Some(across),
        })
    }

    fn hold(&mut self, memory: Memory) -> Buffer {
        self.memory.push(memory);
        Buffer(self.memory.len() - 1)
    }

    /// What a buffer or an image holds.
    pub fn words(&self, buffer: Buffer) -> &[u32] {
        &self.memory[buffer.0].words
    }

    /// The same, to be changed.
    pub fn words_mut(&mut self, buffer: Buffer) -> &mut [u32] {
        &mut self.memory[buffer.0].words
    }

    /// Launches a kernel in a grid of so many workgroups along each axis: `uniforms` are
    /// the words of the uniform block at binding 0 of group 0, `bindings` the buffers and
    /// images at 1, 2, ... Gives the barriers that were reached, by where they begin in the kernel's text.
    ///
    /// # Errors
    /// The [`Fault`] that ended the launch. Buffers and images then hold what had been written.
    pub fn launch(
        &mut self,
        kernel: &Kernel,
        grid: [usize; 3],
        uniforms: &[u32],
        bindings: &[Buffer],
    ) -> Result<BTreeSet<usize>, Fault> {
        for (_, variable) in kernel.module.global_variables.iter() {
            let is_image = variable.space == AddressSpace::Handle;
            if is_image && kernel.access(variable).is_none() {
                let name = variable.name.as_deref().unwrap_or_default();
                return Err(Fault::Unsupported(format!("the type of `{name}`")));
            }
            if !is_image && !matches!(variable.space, AddressSpace::Storage { .. }) {
                continue;
            }
            let Some(place) = &variable.binding else {
                continue;
            };
            let index = (place.binding as usize).checked_sub(1);
            let bound = index.and_then(|index| bindings.get(index));
            let across = bound.map(|buffer| self.memory[buffer.0].across);
            if across.is_none_or(|across| across.is_some() != is_image) {
                return Err(Fault::Unbound {
                    name: variable.name.clone().unwrap_or_default(),
                    binding: place.binding,
                    what: if is_image { "image" } else { "buffer" },
                });
            }
        }
        Launch::new(self, kernel, grid, uniforms, bindings).run()
    }
}
