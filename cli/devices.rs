//! `kiln devices`

use kiln_runtime::Adapter;
use serde_json::json;

use crate::device::{CPU, NO_DRIVER};
use crate::failure::Result;
use crate::output::{print, print_line, warn};
use crate::table::Table;
use crate::units::bytes;

/// List what models can run on
///
/// Each adapter has a number, which `--device` takes; a part of its name or
/// back end (`nvidia`, `vulkan`, `gl:llvmpipe`) will do as well. The first is the
/// one that runs by default. `cpu` is the reference interpreter: always there,
/// and slow.
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
    let mut table = Table::new(7);
    table.row([
        "device",
        "name",
        "back end",
        "kind",
        "largest binding",
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
            adapter.feature_names().join(" ").to_lowercase(),
            adapter.driver(),
        ]);
    }
    table.row([CPU, "reference interpreter", "-", "cpu", "-", "", ""]);
    if adapters.is_empty() {
        warn(NO_DRIVER);
    }
    print(table)
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
            "limits": limits.collect::<std::collections::BTreeMap<_, _>>(),
        })
    });
    rows.collect()
}
