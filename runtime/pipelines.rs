//! Compute pipelines, created side by side and kept in a cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_ir::plan::{Access, KERNEL_ENTRY, Kernel};

use crate::device::{Device, TEXEL_FORMAT};
use crate::error::{Error, Result};

/// A kernel that is ready to be bound and dispatched.
pub(crate) struct Compiled {
    pub name: String,
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// Buffers that it binds behind the uniform block.
    pub bindings: u32,
}

/// What kernels with one uniform block share.
pub(crate) struct Compiler<'d> {
    device: &'d Device,
    /// Bytes of the uniform block.
    uniform_bytes: u64,
    checked: bool,
    cache: Option<wgpu::PipelineCache>,
    /// One layout for each list of accesses.
    layouts: Mutex<BTreeMap<Vec<Access>, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>>,
}

impl<'d> Compiler<'d> {
    pub fn new(
        device: &'d Device,
        uniform_bytes: u64,
        checked: bool,
        cache: Option<wgpu::PipelineCache>,
    ) -> Self {
        Compiler {
            device,
            uniform_bytes,
            checked,
            cache,
            layouts: Mutex::default(),
        }
    }

    /// The same for kernels with another uniform block.
    pub fn with_uniform_bytes(&self, uniform_bytes: u64) -> Self {
        let cache = self.cache.clone();
        Compiler::new(self.device, uniform_bytes, self.checked, cache)
    }

    pub fn cache(&self) -> Option<&wgpu::PipelineCache> {
        self.cache.as_ref()
    }

    pub fn compile(&self, name: &str, kernel: &Kernel, text: &str) -> Result<Compiled> {
        self.check_limits(name, kernel)?;
        let (layout, pipeline_layout) = self.layout(&kernel.bindings)?;
        let device = &self.device.inner;
        let pipeline = self.device.scoped(&format!("kernel `{name}`"), || {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(name),
                source: wgpu::ShaderSource::Wgsl(text.into()),
            };
            let module = if self.checked {
                device.create_shader_module(descriptor)
            } else {
                // SAFETY: an artifact's kernels are as the compiler wrote them
                // (their hashes were checked, or they were just made), and the
                // compiler bounds every index and loop by the plan's sizes.
                unsafe {
                    let checks = wgpu::ShaderRuntimeChecks::unchecked();
                    device.create_shader_module_trusted(descriptor, checks)
                }
            };
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(KERNEL_ENTRY),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[],
                    zero_initialize_workgroup_memory: self.checked,
                },
                cache: self.cache.as_ref(),
            })
        })?;
        Ok(Compiled {
            name: name.to_owned(),
            pipeline,
            layout,
            bindings: kernel.bindings.len() as u32,
        })
    }

    fn check_limits(&self, name: &str, kernel: &Kernel) -> Result<()> {
        const ADVICE: &str = "choose another --tier or device";
        let limits = self.device.limits();
        let [x, y, z] = kernel.workgroup_size;
        let invocations = u64::from(x) * u64::from(y) * u64::from(z);
        let textures = kernel.bindings.iter().filter(|a| a.is_image());
        let textures = textures.count() as u64;
        let rows: [(&'static str, u64, u32); 6] = [
            (
                "max_storage_buffers_per_shader_stage",
                kernel.bindings.len() as u64 - textures,
                limits.max_storage_buffers_per_shader_stage,
            ),
            (
                "max_storage_textures_per_shader_stage",
                textures,
                limits.max_storage_textures_per_shader_stage,
            ),
            (
                "max_compute_invocations_per_workgroup",
                invocations,
                limits.max_compute_invocations_per_workgroup,
            ),
            (
                "max_compute_workgroup_size_x",
                x.into(),
                limits.max_compute_workgroup_size_x,
            ),
            (
                "max_compute_workgroup_size_y",
                y.into(),
                limits.max_compute_workgroup_size_y,
            ),
            (
                "max_compute_workgroup_size_z",
                z.into(),
                limits.max_compute_workgroup_size_z,
            ),
        ];
        for (limit, wanted, offered) in rows {
            let offered = u64::from(offered);
            if wanted > offered {
                return Err(Error::Limit {
                    what: format!("kernel `{name}`"),
                    limit,
                    wanted,
                    offered,
                    advice: ADVICE,
                });
            }
        }
        Ok(())
    }

    fn layout(&self, accesses: &[Access]) -> Result<(wgpu::BindGroupLayout, wgpu::PipelineLayout)> {
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = layouts.get(accesses) {
            return Ok(found.clone());
        }
        let storage = accesses
            .iter()
            .enumerate()
            .map(|(i, access)| wgpu::BindGroupLayoutEntry {
                binding: i as u32 + 1,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: match access {
                    Access::Read | Access::ReadWrite => wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Storage {
                            read_only: *access == Access::Read,
                        },
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    image => wgpu::BindingType::StorageTexture {
                        access: match image {
                            Access::ReadWriteTexels => wgpu::StorageTextureAccess::ReadWrite,
                            Access::WriteTexels => wgpu::StorageTextureAccess::WriteOnly,
                            _ => wgpu::StorageTextureAccess::ReadOnly,
                        },
                        format: TEXEL_FORMAT,
                        view_dimension: wgpu::TextureViewDimension::D2,
                    },
                },
                count: None,
            });
        let uniform = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: wgpu::BufferSize::new(self.uniform_bytes),
            },
            count: None,
        };
        let entries: Vec<_> = std::iter::once(uniform).chain(storage).collect();
        let device = &self.device.inner;
        let made = self.device.scoped("a bind group layout", || {
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            });
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            (layout, pipeline)
        })?;
        layouts.insert(accesses.to_vec(), made.clone());
        Ok(made)
    }
}

/// A pipeline cache on disk.
pub(crate) struct CacheFile {
    path: PathBuf,
    /// Hash of the data as loaded, to write only what changed.
    loaded: Option<blake3::Hash>,
}

impl CacheFile {
    /// Opens the cache of `device` in `dir`; `key` says whose kernels it is for.
    /// Any failure means no cache: it saves time and nothing else.
    pub fn open(
        device: &Device,
        dir: &Path,
        key: &str,
    ) -> Option<(CacheFile, wgpu::PipelineCache)> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let adapter = wgpu::util::pipeline_cache_key(&device.adapter().info)?;
        let path = dir.join(format!("{adapter}-{key}.bin"));
        // The file is a hash and the data it is of, so that a file that was cut
        // short or changed is never given to the driver.
        let data = fs::read(&path).ok().and_then(|bytes| {
            let (hash, data) = bytes.split_at_checked(blake3::OUT_LEN)?;
            (blake3::hash(data).as_bytes() == hash).then(|| data.to_vec())
        });
        let loaded = data.as_deref().map(blake3::hash);
        let cache = device.scoped("the pipeline cache", || {
            // SAFETY: the data is what `get_data` returned for this adapter key,
            // by its hash; the driver checks its own version in it.
            unsafe {
                let descriptor = wgpu::PipelineCacheDescriptor {
                    label: None,
                    data: data.as_deref(),
                    fallback: true,
                };
                device.inner.create_pipeline_cache(&descriptor)
            }
        });
        cache.ok().map(|cache| (CacheFile { path, loaded }, cache))
    }

    /// Writes the cache back if it changed; failures are of no consequence.
    pub fn save(&self, cache: &wgpu::PipelineCache) {
        let Some(data) = cache.get_data() else {
            return;
        };
        let hash = blake3::hash(&data);
        if self.loaded == Some(hash) {
            return;
        }
        let bytes = [hash.as_bytes().as_slice(), &data].concat();
        write_whole(&self.path, &bytes);
    }
}

/// Writes a file of a cache, whole or not at all, with the folders that it lies in; whether
/// that could be done, which is of no consequence but for time.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> bool {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    // Others, of this process too, may write the same file.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{count}", std::process::id()));
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = folder
        .and_then(|()| fs::write(&temporary, bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.is_ok()
}

/// The user's cache folder for kiln, where the system has such a thing.
pub(crate) fn user_cache_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
    let base = if cfg!(windows) {
        PathBuf::from(var("LOCALAPPDATA")?)
    } else if cfg!(target_os = "macos") {
        PathBuf::from(var("HOME")?).join("Library/Caches")
    } else {
        match var("XDG_CACHE_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(var("HOME")?).join(".cache"),
        }
    };
    Some(base.join("kiln").join("pipelines"))
}
