//! The adapters of this machine, and how one is chosen.

use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use wgpu::{Backend, Backends, DeviceType, DownlevelFlags, Features, Limits};

use crate::error::{Error, Result};
use crate::threads::Threads;

/// A graphics adapter that can run compute kernels, through one back end.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(crate) inner: wgpu::Adapter,
    pub(crate) info: wgpu::AdapterInfo,
    /// Those of a driver that computes on the processors.
    pub(crate) threads: Arc<OnceLock<Threads>>,
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
    /// of the adapter's name or its back end in any case (`nvidia`, `llvmpipe`,
    /// `gl`), or both as `gl:llvmpipe`. A number beyond the list names an adapter
    /// that has it as a word: `4090`. Without a selector, the first.
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
        let names: Vec<_> = all.iter().map(|a| (a.name(), a.backend())).collect();
        let found = choose(selector, &names).and_then(|index| all.get(index));
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

/// Which of the adapters, by their names and back ends, a selector means.
fn choose(selector: &str, adapters: &[(&str, &str)]) -> Option<usize> {
    let selector = selector.trim().to_lowercase();
    if selector.is_empty() {
        return None;
    }
    let number = selector.parse::<usize>().ok();
    if number.is_some_and(|index| index < adapters.len()) {
        return number;
    }
    adapters.iter().position(|(name, backend)| {
        let name = name.to_lowercase();
        match selector.split_once(':') {
            // A digit of a longer number says nothing.
            _ if number.is_some() => words(&name).any(|word| word == selector),
            Some((b, rest)) if b == *backend => name.contains(rest),
            _ => selector == *backend || name.contains(&selector),
        }
    })
}

fn words(name: &str) -> impl Iterator<Item = &str> {
    // A version is one word: `15.0.6`.
    name.split(|c: char| !c.is_alphanumeric() && c != '.')
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
            threads: Arc::default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_an_index_or_a_part_of_a_name() {
        let adapters = [
            ("NVIDIA GeForce RTX 4090", "vulkan"),
            ("llvmpipe (LLVM 15.0.6, 256 bits)", "vulkan"),
            ("llvmpipe (LLVM 15.0.6, 256 bits)", "gl"),
        ];
        let choose = |selector| choose(selector, &adapters);
        assert_eq!(choose("0"), Some(0));
        assert_eq!(choose("2"), Some(2));
        assert_eq!(choose("NVidia"), Some(0));
        assert_eq!(choose("llvmpipe"), Some(1));
        assert_eq!(choose("gl"), Some(2));
        assert_eq!(choose("gl:llvmpipe"), Some(2));
        assert_eq!(choose("gl:nvidia"), None);
        assert_eq!(choose("abacus"), None);
    }

    #[test]
    fn a_number_beyond_the_list_is_a_whole_word() {
        let adapters = [
            ("NVIDIA GeForce RTX 4090 Laptop GPU", "vulkan"),
            ("llvmpipe (LLVM 15.0.6, 256 bits)", "gl"),
        ];
        assert_eq!(choose("4090", &adapters), Some(0));
        for number in ["4", "5", "6", "15", "90", "409"] {
            assert_eq!(choose(number, &adapters), None, "{number}");
        }
    }

    #[test]
    fn an_empty_selector_names_nothing() {
        assert_eq!(choose("", &[("llvmpipe", "gl")]), None);
        assert_eq!(choose(" ", &[("llvmpipe", "gl")]), None);
    }
}
