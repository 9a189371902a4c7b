//! `kiln devices`

use kiln_runtime::Adapter;
use serde_json::json;

use crate::device::{CPU, GET_DRIVER, NO_ADAPTER};
use crate::failure::Result;
use crate::output::{print, print_line, warn};
use crate::table::Table;
use crate::units::bytes;

/// List the devices that models can run on
///
/// `--device` takes an adapter's number, a part of its name, its back end, or both
/// (`0`, `nvidia`, `vulkan`, `gl:llvmpipe`). The first adapter is the default. `cpu`
/// is the reference interpreter, which is always there, and slow.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON array instead of a table
    #[arg(long)]
    json: bool,
}

/// Limits that decide what an adapter can run.
const LIMITS: [&str; 4] = [
    "max_storage_buffer_binding_size",
    "max_buffer_size",
    "max_compute_invocations_per_workgroup",
    "max_compute_workgroup_storage_size",
];

pub fn run(args: &Args) -> Result {
    let adapters = Adapter::list();
    if args.json {
        return print_line(as_json(&adapters));
    }
    let mut table = Table::new(9);
    table.row([
        "device",
        "name",
        "back end",
        "kind",
        "largest binding",
        "subgroups",
        "matrices",
        "features",
        "driver",
    ]);
    for (index, adapter) in adapters.iter().enumerate() {
        let binding = adapter.limit(LIMITS[0]).unwrap_or(0);
        table.row([
            index.to_string(),
            adapter.name().to_owned(),
            adapter.backend().to_owned(),
            adapter.kind().to_owned(),
            bytes(binding),
            subgroups(adapter),
            matrices(adapter).join(" "),
            adapter.feature_names().join(" ").to_lowercase(),
            adapter.driver(),
        ]);
    }
    table.row([
        CPU,
        "reference interpreter",
        "-",
        "cpu",
        "-",
        "-",
        "-",
        "",
        "",
    ]);
    if adapters.is_empty() {
        warn(format_args!("{NO_ADAPTER}; {GET_DRIVER}"));
    }
    print(table)
}

/// The sizes of an adapter's subgroups, if kernels can use them. wgpu names the same range
/// for all of Metal's.
fn subgroups(adapter: &Adapter) -> String {
    match subgroup_sizes(adapter) {
        None => "-".to_owned(),
        Some([least, most]) if least == most => most.to_string(),
        Some([least, most]) => format!("{least} to {most}"),
    }
}

fn subgroup_sizes(adapter: &Adapter) -> Option<[u32; 2]> {
    let (least, most) = adapter.subgroup_sizes().into_inner();
    let names = adapter.feature_names();
    let has_some = names.iter().any(|n| n.eq_ignore_ascii_case("subgroups"));
    has_some.then_some([least, most])
}

/// The sizes M, N and K of an adapter's products of cooperative matrices of f16.
fn matrices(adapter: &Adapter) -> Vec<String> {
    let all = adapter.cooperative_matrices().into_iter();
    let all: Vec<String> = all.map(|[m, n, k]| format!("{m}x{n}x{k}")).collect();
    if all.is_empty() {
        vec!["-".to_owned()]
    } else {
        all
    }
}

fn as_json(adapters: &[Adapter]) -> serde_json::Value {
    let rows = adapters.iter().enumerate().map(|(index, a)| {
        let limits = LIMITS.iter().map(|l| (*l, a.limit(l)));
        json!({
            "device": index,
            "name": a.name(),
            "backend": a.backend(),
            "kind": a.kind(),
            "driver": a.driver(),
            "features": a.feature_names(),
            "subgroup_sizes": subgroup_sizes(a),
            "cooperative_matrices": a.cooperative_matrices(),
            "limits": limits.collect::<std::collections::BTreeMap<_, _>>(),
        })
    });
    rows.collect()
}
