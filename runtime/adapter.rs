//! The adapters of this machine, and how one is chosen.

use std::ops::RangeInclusive;

use wgpu::{Backend, Backends, DeviceType, DownlevelFlags, Features, Limits};

use crate::error::{Error, Result};

/// A graphics adapter that can run compute kernels, through one back end.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(crate) inner: wgpu::Adapter,
    pub(crate) info: wgpu::AdapterInfo,
}

impl Adapter {
    /// Every adapter, the most suitable first: discrete, integrated, virtual,
    /// then software; for the same kind OpenGL last. The order is that of
    /// [`Adapter::select`]'s indices.
    pub fn list() -> Vec<Adapter> {
        let backends = Backends::VULKAN | Backends::METAL | Backends::DX12 | Backends::GL;
        enumerate(backends)
    }

    /// The adapter that `selector` names: an index into [`Adapter::list`], a part
    /// of the adapter's or back end's name in any case (`nvidia`, `llvmpipe`,
    /// `gl`), or both as `gl:llvmpipe`. Without a selector, the first.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none at all, [`Error::NoSuchAdapter`]
    /// when none fits.
    pub fn select(selector: Option<&str>) -> Result<Adapter> {
        let Some(selector) = selector else {
            return Self::default_adapter();
        };
        let all = Self::list();
        if all.is_empty() {
            return Err(Error::NoAdapter);
        }
        // A number beyond the list may still be a part of a name: `4090`.
        let index = selector.parse::<usize>().ok();
        let indexed = index.and_then(|index| all.get(index));
        let found = indexed.or_else(|| all.iter().find(|a| a.matches(selector)));
        found.cloned().ok_or_else(|| {
            let names = all.iter().enumerate();
            let names: Vec<String> = names.map(|(i, a)| format!("{i}: {a}")).collect();
            Error::NoSuchAdapter {
                selector: selector.to_owned(),
                available: names.join("; "),
            }
        })
    }

    /// The first of [`Adapter::list`], without starting OpenGL where a GPU is
    /// found without it.
    fn default_adapter() -> Result<Adapter> {
        let mut found = enumerate(Backends::VULKAN | Backends::METAL | Backends::DX12);
        if found.first().is_none_or(Adapter::is_cpu) {
            found.extend(enumerate(Backends::GL));
            sort(&mut found);
        }
        found.into_iter().next().ok_or(Error::NoAdapter)
    }

    fn matches(&self, selector: &str) -> bool {
        let selector = selector.to_lowercase();
        let name = self.info.name.to_lowercase();
        let backend = self.backend();
        match selector.split_once(':') {
            Some((b, rest)) if b == backend => name.contains(rest),
            _ => selector == backend || name.contains(&selector),
        }
    }

    /// The same adapter, found through an instance of its own, with which it shares nothing
    /// that the driver keeps for an instance: lavapipe's devices of one instance wait for
    /// each other where kernels become machine code. Of several that are the same in all
    /// that wgpu knows of them it is the first.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when it is no longer there.
    pub(crate) fn apart(&self) -> Result<Adapter> {
        let found = enumerate(self.info.backend.into());
        let same = found.into_iter().find(|a| a.info == self.info);
        same.ok_or(Error::NoAdapter)
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The back end: `vulkan`, `metal`, `dx12` or `gl`.
    pub fn backend(&self) -> &'static str {
        match self.info.backend {
            Backend::Vulkan => "vulkan",
            Backend::Metal => "metal",
            Backend::Dx12 => "dx12",
            Backend::Gl => "gl",
            Backend::BrowserWebGpu => "webgpu",
            Backend::Noop => "noop",
        }
    }

    /// The kind of device: `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub fn kind(&self) -> &'static str {
        match self.info.device_type {
            DeviceType::DiscreteGpu => "discrete",
            DeviceType::IntegratedGpu => "integrated",
            DeviceType::VirtualGpu => "virtual",
            DeviceType::Cpu => "cpu",
            DeviceType::Other => "other",
        }
    }

    /// Whether the adapter is a software driver.
    pub fn is_cpu(&self) -> bool {
        self.info.device_type == DeviceType::Cpu
    }

    /// The driver's name and version.
    pub fn driver(&self) -> String {
        let parts = [self.info.driver.as_str(), self.info.driver_info.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        parts.join(" ")
    }

    /// Everything wgpu knows of the adapter.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// The features it offers.
    pub fn features(&self) -> Features {
        self.inner.features()
    }

    /// The names of those of its features that a tier may ask for.
    pub fn feature_names(&self) -> Vec<&'static str> {
        let useful = Features::SUBGROUP
            | Features::SUBGROUP_BARRIER
            | Features::SHADER_F16
            | Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | Features::MEMORY_DECORATION_COHERENT
            | Features::TIMESTAMP_QUERY
            | Features::PIPELINE_CACHE;
        let offered = (useful & self.features()).iter();
        offered.filter_map(|f| f.as_str()).collect()
    }

    /// The sizes of its subgroups, from the least to the largest.
    pub fn subgroup_sizes(&self) -> RangeInclusive<u32> {
        self.info.subgroup_min_size..=self.info.subgroup_max_size
    }

    /// The sizes M, N and K of the products of cooperative matrices of f16 that it
    /// accumulates in f32.
    pub fn cooperative_matrices(&self) -> Vec<[u32; 3]> {
        let offered = self.inner.cooperative_matrix_properties().into_iter();
        let types = (
            wgpu::CooperativeScalarType::F16,
            wgpu::CooperativeScalarType::F32,
        );
        offered
            .filter(|p| (p.ab_type, p.cr_type) == types)
            .map(|p| [p.m_size, p.n_size, p.k_size])
            .collect()
    }

    /// A limit by its WebGPU name in snake case.
    pub fn limit(&self, name: &str) -> Option<u64> {
        crate::tier::limit(&self.limits(), name)
    }

    /// The limits it offers.
    pub fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {})", self.name(), self.backend(), self.kind())
    }
}

fn enumerate(backends: Backends) -> Vec<Adapter> {
    if wgpu::Instance::enabled_backend_features().is_empty() {
        return Vec::new();
    }
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    // The environment (WGPU_VALIDATION, WGPU_DEBUG) can switch validation layers
    // on; by default they are off in debug builds too.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(backends));
    let mut out: Vec<Adapter> = found
        .into_iter()
        .filter(|a| {
            let downlevel = a.get_downlevel_capabilities();
            downlevel.flags.contains(DownlevelFlags::COMPUTE_SHADERS)
        })
        .map(|inner| Adapter {
            info: inner.get_info(),
            inner,
        })
        .collect();
    sort(&mut out);
    out
}

fn sort(adapters: &mut [Adapter]) {
    adapters.sort_by_key(|a| (kind_rank(a.info.device_type), a.info.backend == Backend::Gl));
}

fn kind_rank(kind: DeviceType) -> u8 {
    match kind {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}
