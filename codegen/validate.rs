//! Checks of emitted kernels by naga, and their translation.

use naga::TypeInner;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use crate::error::CodegenError;

/// A language that kernels can be translated to, to be read or compiled ahead of
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// SPIR-V, as binary words, for Vulkan.
    SpirV,
    /// The Metal Shading Language.
    Msl,
    /// HLSL, for Direct3D 12: of shader model 6.0, and where a kernel has f16 of 6.2, with
    /// types of 16 bits.
    Hlsl,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 3] = [Target::SpirV, Target::Msl, Target::Hlsl];

    /// The name, as in `--emit`.
    pub fn name(self) -> &'static str {
        match self {
            Target::SpirV => "spirv",
            Target::Msl => "msl",
            Target::Hlsl => "hlsl",
        }
    }

    /// The target of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// The ending of a file in this language.
    pub fn extension(self) -> &'static str {
        match self {
            Target::SpirV => "spv",
            Target::Msl => "metal",
            Target::Hlsl => "hlsl",
        }
    }
}

/// Parses and validates a kernel's text.
///
/// # Errors
/// naga's report, with the places that it speaks of.
pub(crate) fn validate(
    text: &str,
    capabilities: Capabilities,
) -> Result<(naga::Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator.validate(&module);
    let info = info.map_err(|e| e.emit_to_string(text))?;
    Ok((module, info))
}

/// Bytes of workgroup memory that a kernel's text declares; nothing if it is not
/// valid.
pub(crate) fn workgroup_memory(text: &str) -> Option<u64> {
    let module = naga::front::wgsl::parse_str(text).ok()?;
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).ok()?;
    let shared = module.global_variables.iter();
    let shared = shared.filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    Some(
        shared
            .map(|(_, v)| u64::from(layouter[v.ty].to_stride()))
            .sum(),
    )
}

/// Translates a validated kernel.
///
/// # Errors
/// naga's report.
pub(crate) fn translate(
    kernel: &str,
    target: Target,
    module: &naga::Module,
    info: &ModuleInfo,
) -> Result<Vec<u8>, CodegenError> {
    let failed = |message: String| CodegenError::Translate {
        kernel: kernel.to_owned(),
        target: target.name(),
        message,
    };
    match target {
        Target::SpirV => {
            // Subgroup operations came with SPIR-V 1.3.
            let options = spv::Options {
                lang_version: (1, 3),
                ..spv::Options::default()
            };
            let words = spv::write_vec(module, info, &options, None);
            let words = words.map_err(|e| failed(e.to_string()))?;
            Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
        }
        Target::Msl => {
            let options = msl::Options {
                lang_version: (2, 4),
                fake_missing_bindings: true,
                ..msl::Options::default()
            };
            let pipeline = msl::PipelineOptions::default();
            let written = msl::write_string(module, info, &options, &pipeline);
            written
                .map(|(text, _)| text.into_bytes())
                .map_err(|e| failed(e.to_string()))
        }
        Target::Hlsl => {
            let is_half = |ty: &naga::Type| match ty.inner {
                TypeInner::Scalar(scalar) | TypeInner::Vector { scalar, .. } => scalar.width == 2,
                _ => false,
            };
            let has_halves = module.types.iter().any(|(_, ty)| is_half(ty));
            let options = hlsl::Options {
                shader_model: match has_halves {
                    true => hlsl::ShaderModel::V6_2,
                    false => hlsl::ShaderModel::V6_0,
                },
                ..hlsl::Options::default()
            };
            let mut text = String::new();
            let pipeline = hlsl::PipelineOptions::default();
            let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
            let written = writer.write(module, info, None);
            written.map_err(|e| failed(e.to_string()))?;
            Ok(text.into_bytes())
        }
    }
}
