//! Checks of a driver before a tier, or a variant with a grid, is trusted; see
//! [`kiln_ir::plan::Check`] and [`kiln_ir::plan::Grid`].

use std::collections::BTreeMap;

use kiln_ir::plan::{Check, Entry, Grid, Tier, Variant};
use wgpu::BufferUsages as Usage;

use crate::artifact::Artifact;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::LoadOptions;
use crate::pipelines::{CacheFile, Compiled, Compiler};
use crate::readback::Staging;
use crate::tier::{Capabilities, takes_grid};

/// The first of the tier's checks that the device fails, if any: the kernel, and
/// what is wrong with it.
///
/// # Errors
/// When the plan lacks a kernel, or its text cannot be read. A kernel that the driver
/// refuses, or does not finish, is a failed check, and so is one that loses `device`,
/// which is there for this tier alone.
pub(crate) fn failure<'t>(
    device: &Device,
    artifact: &Artifact,
    tier: &'t Tier,
    options: &LoadOptions,
) -> Result<Option<(&'t str, String)>> {
    for check in &tier.checks {
        let reason = match reason(device, artifact, check, options) {
            Err(error @ Error::DeviceLost { .. }) => Some(error.to_string()),
            reason => reason?,
        };
        if let Some(reason) = reason {
            return Ok(Some((&check.kernel, reason + &of_subgroups(device, tier))));
        }
    }
    Ok(None)
}

/// What else may be the reason where subgroups have to be of one size and may be of others.
fn of_subgroups(device: &Device, tier: &Tier) -> String {
    let (least, most) = device.adapter().subgroup_sizes().into_inner();
    match tier.requires.subgroup_size {
        Some(size) if least < most => format!(
            " (the tier is for subgroups of {size}; this driver has them of {least} to {most}, and \
             may run kernels in others)"
        ),
        _ => String::new(),
    }
}

/// Why the device fails a check, if it does.
fn reason(
    device: &Device,
    artifact: &Artifact,
    check: &Check,
    options: &LoadOptions,
) -> Result<Option<String>> {
    match wrong_words(device, artifact, check, options) {
        Ok(0) => Ok(None),
        Ok(wrong) => Ok(Some(format!(
            "{wrong} of {} results are wrong",
            check.words
        ))),
        Err(error) if is_verdict(&error) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Whether an error says that a driver cannot do what was tried: it refuses that, or offers
/// less. All others would keep anything else from being done too.
pub(crate) fn is_verdict(error: &Error) -> bool {
    matches!(error, Error::Refused { .. } | Error::Limit { .. })
}

/// The tier with the entries `names` alone, without the variants whose grids the device
/// cannot have or `options` do not want, or whose check it fails.
///
/// # Errors
/// As [`failure`], and when the device is lost.
pub(crate) fn without_bad_grids(
    device: &Device,
    artifact: &Artifact,
    (tier, names): (&Tier, &[&str]),
    on: &Capabilities,
    options: &LoadOptions,
) -> Result<Tier> {
    let is_loaded = |name: &String| names.contains(&name.as_str());
    let entries = || tier.entries.iter().filter(|(name, _)| is_loaded(name));
    // Variants share a check, and may want different things besides.
    let wanted = |grid: &Grid| options.join && takes_grid(grid, on);
    let mut passed: BTreeMap<&str, bool> = BTreeMap::new();
    let grids = entries().flat_map(|(_, entry)| &entry.variants);
    for grid in grids.filter_map(|v| v.grid.as_ref()).filter(|g| wanted(g)) {
        if let Some(check) = &grid.check
            && !passed.contains_key(check.kernel.as_str())
        {
            let reason = reason(device, artifact, check, options)?;
            passed.insert(&check.kernel, reason.is_none());
        }
    }
    let is_good = |grid: &Grid| {
        let check = grid.check.as_ref();
        wanted(grid) && check.is_none_or(|c| passed.get(&*c.kernel) == Some(&true))
    };
    let entries = entries().map(|(name, entry)| {
        let grids = |v: &&Variant| v.grid.as_ref().is_none_or(is_good);
        let entry = Entry {
            symbols: entry.symbols.clone(),
            inputs: entry.inputs.clone(),
            outputs: entry.outputs.clone(),
            buffers: entry.buffers.clone(),
            rows: entry.rows,
            slices: entry.slices.clone(),
            variants: entry.variants.iter().filter(grids).cloned().collect(),
        };
        (name.clone(), entry)
    });
    Ok(tier.with_entries(entries.collect()))
}

/// Whether two results are the same but for the order of sums: within a thousandth of
/// their norm, where a wrong element of a layer would be far outside it.
pub(crate) fn agree(a: &[f32], b: &[f32]) -> bool {
    let (mut apart, mut norm) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        // What is no number is so in both, or the sum is none.
        if a.to_bits() != b.to_bits() {
            apart += f64::from(a - b).powi(2);
        }
        if b.is_finite() {
            norm += f64::from(*b).powi(2);
        }
    }
    apart <= 1e-6 * norm
}

/// How many of a check's words are not 1 behind it.
fn wrong_words(
    device: &Device,
    artifact: &Artifact,
    check: &Check,
    options: &LoadOptions,
) -> Result<u64> {
    let compiled = compile(device, artifact, check, options)?;
    let uniform_bytes = crate::model::uniform_bytes(artifact.plan());
    let advice = "choose another --tier";
    let uniform = device.buffer("check", uniform_bytes, Usage::UNIFORM, advice)?;
    let bytes = check.words * 4;
    let words = device.buffer("check", bytes, Usage::STORAGE | Usage::COPY_SRC, advice)?;
    let staging = Staging::new(device, bytes)?;
    let what = format!("the check `{}`", check.kernel);
    let submitted = device.scoped(&what, || {
        let uniform = wgpu::BufferBinding {
            buffer: &uniform,
            offset: 0,
            size: wgpu::BufferSize::new(uniform_bytes),
        };
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(uniform),
        }];
        entries.extend((1..=compiled.bindings).map(|binding| wgpu::BindGroupEntry {
            binding,
            resource: words.as_entire_binding(),
        }));
        let group = device.inner.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&check.kernel),
            layout: &compiled.layout,
            entries: &entries,
        });
        let mut encoder = device.inner.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&compiled.pipeline);
            pass.set_bind_group(0, &group, &[0]);
            pass.dispatch_workgroups(check.workgroups, 1, 1);
        }
        staging.copy(&mut encoder, &words, 0, bytes);
        device.queue.submit([encoder.finish()])
    })?;
    staging.read(device, bytes, Some(submitted), |bytes| {
        let right = bytes.chunks_exact(4).filter(|w| **w == 1u32.to_le_bytes());
        Ok(check.words - right.count() as u64)
    })
}

fn compile(
    device: &Device,
    artifact: &Artifact,
    check: &Check,
    options: &LoadOptions,
) -> Result<Compiled> {
    let name = &check.kernel;
    let kernel = artifact.kernel(name)?;
    let text = artifact.text(&kernel.file)?;
    let key = blake3::hash(text.as_bytes()).to_hex();
    let cache = options
        .cache_dir
        .as_deref()
        .and_then(|dir| CacheFile::open(device, dir, &key[..16]));
    let (file, cache) = cache.unzip();
    let uniform_bytes = crate::model::uniform_bytes(artifact.plan());
    let compiler = Compiler::new(device, uniform_bytes, options.checked, cache);
    let compiled = compiler.compile(name, kernel, &text)?;
    if let (Some(file), Some(cache)) = (file, compiler.cache()) {
        file.save(cache);
    }
    Ok(compiled)
}
