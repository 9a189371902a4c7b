//! Which tier of a plan an adapter can run.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use kiln_ir::plan::{Alternative, Grid, Plan, Requirements, Tier, Variant};
use wgpu::{Features, Limits};

use crate::adapter::Adapter;
use crate::error::{Error, Result};

/// What decides which tiers run: a summary of an [`Adapter`].
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// The adapter's name, for messages.
    pub adapter: String,
    /// The features it offers.
    pub features: Features,
    /// The limits it offers.
    pub limits: Limits,
    /// Whether it runs on a CPU.
    pub is_cpu: bool,
    /// The sizes of its subgroups, from the least to the largest.
    pub subgroup_sizes: RangeInclusive<u32>,
    /// The sizes M, N and K of the products of cooperative matrices of f16 that it
    /// accumulates in f32.
    pub cooperative_matrices: Vec<[u32; 3]>,
    /// Whether its API orders what the workgroups of one launch write and read, as
    /// barriers across a grid need it: of those that wgpu knows, Vulkan alone.
    pub orders_grids: bool,
}

impl From<&Adapter> for Capabilities {
    fn from(adapter: &Adapter) -> Self {
        Capabilities {
            adapter: adapter.to_string(),
            features: adapter.features(),
            limits: adapter.limits(),
            is_cpu: adapter.is_cpu(),
            subgroup_sizes: adapter.subgroup_sizes(),
            cooperative_matrices: adapter.cooperative_matrices(),
            orders_grids: adapter.info().backend == wgpu::Backend::Vulkan,
        }
    }
}

/// The tier to run: the one called `name`, or the first whose requirements are
/// met.
///
/// # Errors
/// When there is no such tier, or what it (or every tier) needs is not offered;
/// the error names each missing feature and limit.
pub fn choose<'p>(plan: &'p Plan, on: &Capabilities, name: Option<&str>) -> Result<&'p Tier> {
    choose_but(plan, on, name, &BTreeMap::new())
}

/// As [`choose`], but none of `distrusted`, which have reasons, by itself.
pub(crate) fn choose_but<'p>(
    plan: &'p Plan,
    on: &Capabilities,
    name: Option<&str>,
    distrusted: &BTreeMap<&str, String>,
) -> Result<&'p Tier> {
    if let Some(name) = name {
        let Some(tier) = plan.tiers.iter().find(|t| t.name == name) else {
            return Err(no_such_tier(plan, name));
        };
        let lacks = missing(&tier.requires, on, is_checked(tier));
        if lacks.is_empty() {
            return Ok(tier);
        }
        return Err(Error::TierUnsupported {
            tier: name.to_owned(),
            adapter: on.adapter.clone(),
            lacks: lacks.join(", "),
        });
    }
    let mut reasons = Vec::new();
    for tier in &plan.tiers {
        let mut lacks = missing(&tier.requires, on, is_checked(tier));
        if let Some(reason) = distrusted.get(tier.name.as_str()) {
            lacks.push(format!("a driver that runs it correctly ({reason})"));
        }
        if lacks.is_empty() {
            return Ok(tier);
        }
        reasons.push(format!("`{}` lacks {}", tier.name, lacks.join(", ")));
    }
    Err(Error::NoTier {
        adapter: on.adapter.clone(),
        reasons: reasons.join("; "),
    })
}

pub(crate) fn no_such_tier(plan: &Plan, name: &str) -> Error {
    let names: Vec<&str> = plan.tiers.iter().map(|t| t.name.as_str()).collect();
    Error::NoSuchTier {
        name: name.to_owned(),
        available: names.join(", "),
    }
}

/// The features that a tier requires, and those that its variants with grids and other
/// ways to do its launches do where they can be had, as wgpu's flags; unknown names are
/// left out.
pub fn features(tier: &Tier, on: &Capabilities) -> Features {
    let variants = || tier.entries.values().flat_map(|e| &e.variants);
    let grids = variants().filter_map(|v| v.grid.as_ref());
    let grids = grids.filter(|g| takes_grid(g, on)).map(|g| &g.requires);
    let launches = variants().flat_map(Variant::all_launches);
    let ways = launches.flat_map(|l| &l.alternatives);
    let ways = ways.filter(|w| takes_way(w, on)).map(|w| &w.requires);
    let all = grids.chain(ways).chain([&tier.requires]);
    let names = all.flat_map(|r| &r.features);
    let known = names.filter_map(|name| Features::from_str(name).ok());
    known.fold(Features::empty(), |all, f| all | f)
}

/// Whether variants with this grid can be tried.
pub(crate) fn takes_grid(grid: &Grid, on: &Capabilities) -> bool {
    on.orders_grids && missing(&grid.requires, on, false).is_empty()
}

/// Whether another way to do a launch can be tried.
pub(crate) fn takes_way(way: &Alternative, on: &Capabilities) -> bool {
    (on.orders_grids || !way.shares) && missing(&way.requires, on, false).is_empty()
}

/// Whether which size subgroups have is found out before a tier is trusted.
fn is_checked(tier: &Tier) -> bool {
    !tier.checks.is_empty()
}

/// What of that is not offered. Of several sizes of subgroups one will do only where
/// `checked` says that it will be found out which one kernels get.
fn missing(requires: &Requirements, on: &Capabilities, checked: bool) -> Vec<String> {
    let mut out = Vec::new();
    if requires.cpu_only && !on.is_cpu {
        out.push("a CPU to run on".to_owned());
    }
    for name in &requires.features {
        match Features::from_str(name) {
            Ok(feature) if on.features.contains(feature) => {}
            Ok(_) => out.push(format!("the feature `{name}`")),
            Err(()) => out.push(format!("the feature `{name}` (unknown to this kiln)")),
        }
    }
    let (least, most) = (on.subgroup_sizes.start(), on.subgroup_sizes.end());
    let one_of = |size: &u32| match checked {
        true => on.subgroup_sizes.contains(size),
        false => on.subgroup_sizes == (*size..=*size),
    };
    if let Some(size) = requires.subgroup_size
        && !one_of(&size)
    {
        let alone = if checked { "" } else { " alone" };
        out.push(format!(
            "subgroups of {size}{alone} (has them of {least} to {most})"
        ));
    }
    if let Some(size) = requires.max_subgroup_size
        && *most > size
    {
        out.push(format!(
            "subgroups of {size} at most (has them of {least} to {most})"
        ));
    }
    if let Some(sizes) = requires.cooperative_matrix
        && !on.cooperative_matrices.contains(&sizes)
    {
        let [m, n, k] = sizes;
        out.push(format!("cooperative matrices of {m}x{n}x{k} in f16"));
    }
    for (name, wanted) in &requires.limits {
        match limit(&on.limits, name) {
            Some(offered) if offered >= *wanted => {}
            Some(offered) => out.push(format!(
                "the limit `{name}` (needs {wanted}, offers {offered})"
            )),
            None => out.push(format!("the limit `{name}` (unknown to this kiln)")),
        }
    }
    out
}

/// The value of a limit by its WebGPU name in snake case.
pub fn limit(limits: &Limits, name: &str) -> Option<u64> {
    macro_rules! find {
        ($($field:ident),* $(,)?) => {
            match name {
                $(stringify!($field) => Some(u64::from(limits.$field)),)*
                _ => None,
            }
        };
    }
    find!(
        max_bind_groups,
        max_bindings_per_bind_group,
        max_dynamic_uniform_buffers_per_pipeline_layout,
        max_storage_buffers_per_shader_stage,
        max_storage_textures_per_shader_stage,
        max_texture_dimension_2d,
        max_uniform_buffers_per_shader_stage,
        max_uniform_buffer_binding_size,
        max_storage_buffer_binding_size,
        max_buffer_size,
        max_compute_workgroup_storage_size,
        max_compute_invocations_per_workgroup,
        max_compute_workgroup_size_x,
        max_compute_workgroup_size_y,
        max_compute_workgroup_size_z,
        max_compute_workgroups_per_dimension,
    )
}

#[cfg(test)]
mod tests {
    use kiln_ir::plan::{Check, Entry, Variant};

    use super::*;

    #[test]
    fn limits_are_found_by_their_names() {
        let limits = Limits::defaults();
        assert_eq!(limit(&limits, "max_buffer_size"), Some(256 << 20));
        assert_eq!(
            limit(&limits, "max_storage_buffers_per_shader_stage"),
            Some(8)
        );
        assert_eq!(limit(&limits, "max_wishes"), None);
    }

    #[test]
    fn every_missing_feature_and_limit_is_named() {
        let on = Capabilities {
            adapter: "toaster".into(),
            features: Features::empty(),
            limits: Limits::defaults(),
            is_cpu: false,
            subgroup_sizes: 8..=24,
            cooperative_matrices: vec![[8, 8, 8]],
            orders_grids: true,
        };
        let mut requires = Requirements {
            features: vec!["subgroups".into(), "telepathy".into()],
            subgroup_size: Some(32),
            max_subgroup_size: Some(16),
            cooperative_matrix: Some([16, 16, 16]),
            ..Requirements::default()
        };
        requires
            .limits
            .insert("max_compute_invocations_per_workgroup".into(), 1024);
        let lacks = missing(&requires, &on, true).join(", ");
        assert_eq!(
            lacks,
            "the feature `subgroups`, the feature `telepathy` (unknown to this kiln), \
             subgroups of 32 (has them of 8 to 24), subgroups of 16 at most (has them of 8 to \
             24), cooperative matrices of 16x16x16 in f16, \
             the limit `max_compute_invocations_per_workgroup` (needs 1024, offers 256)"
        );
        let mut on = on;
        on.subgroup_sizes = 8..=64;
        for (checked, lacks) in [(true, false), (false, true)] {
            let all = missing(&requires, &on, checked).join(", ");
            assert_eq!(all.contains("subgroups of 32"), lacks, "{all}");
        }
        let grid = |names: &[&str]| Variant {
            name: "joined".into(),
            grid: Some(Grid {
                requires: Requirements {
                    features: names.iter().map(|n| (*n).to_owned()).collect(),
                    ..Requirements::default()
                },
                check: Some(Check {
                    kernel: String::new(),
                    workgroups: 1,
                    words: 1,
                }),
                state: 0,
            }),
            bounds: Vec::new(),
            launches: Vec::new(),
            streams: Vec::new(),
        };
        // What a grid wants is asked for where all of it is there.
        let entry = Entry {
            symbols: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            buffers: Vec::new(),
            rows: None,
            slices: Vec::new(),
            variants: vec![
                grid(&["shader-f16"]),
                grid(&["timestamp-query", "telepathy"]),
            ],
        };
        let tier = Tier {
            name: "subgroup".into(),
            requires,
            checks: Vec::new(),
            half_states: false,
            entries: [("step".to_owned(), entry)].into(),
        };
        assert_eq!(features(&tier, &on), Features::SUBGROUP);
        on.features = Features::SHADER_F16;
        assert_eq!(
            features(&tier, &on),
            Features::SUBGROUP | Features::SHADER_F16
        );
        on.orders_grids = false;
        assert_eq!(features(&tier, &on), Features::SUBGROUP);

        let mut on = Capabilities {
            orders_grids: true,
            ..on
        };
        let mut narrow = grid(&[]).grid.unwrap();
        for (at_most, largest, taken) in
            [(None, 16, true), (Some(8), 16, false), (Some(8), 8, true)]
        {
            narrow.requires.max_subgroup_size = at_most;
            on.subgroup_sizes = 4..=largest;
            assert_eq!(takes_grid(&narrow, &on), taken, "{at_most:?}, {largest}");
        }
    }
}
