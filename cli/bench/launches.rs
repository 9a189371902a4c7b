//! The launches of a run, those that differ only in the layer together.

use std::collections::BTreeMap;
use std::fmt;

use kiln_runtime::{Clock, Profile};
use serde::Serialize;

use super::ceilings::Ceilings;
use crate::table::Table;
use crate::units::rate;

/// Launches by what they compute, in the order of their first one.
#[derive(Serialize)]
pub struct Launches {
    /// `device` or `host`: what measured them.
    pub clock: &'static str,
    pub launches: usize,
    pub total_us: f64,
    pub groups: Vec<Group>,
}

/// Launches that differ only in the layer.
#[derive(Serialize)]
pub struct Group {
    /// Their label, with `*` for the layer.
    pub label: String,
    pub kernel: String,
    pub count: usize,
    pub total_us: f64,
    pub bytes_per_s: f64,
    pub flops_per_s: f64,
    /// The share of the ceiling that is nearer.
    pub of_ceiling: f64,
}

#[derive(Default)]
struct Sum {
    kernel: String,
    count: usize,
    ns: f64,
    bytes: u64,
    flops: u64,
}

impl Launches {
    pub fn new(profile: &Profile, ceilings: &Ceilings) -> Launches {
        let mut order: Vec<String> = Vec::new();
        let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
        for launch in &profile.launches {
            let label = without_layer(&launch.label);
            let sum = sums.entry(label.clone()).or_default();
            if sum.count == 0 {
                order.push(label);
                sum.kernel.clone_from(&launch.kernel);
            }
            sum.count += 1;
            sum.ns += launch.ns;
            sum.bytes += launch.bytes;
            sum.flops += launch.flops;
        }
        let groups = order.into_iter().filter_map(|label| {
            let sum = sums.remove(&label)?;
            let per_s = |n: u64| n as f64 / (sum.ns.max(1.0) * 1e-9);
            let (bytes_per_s, flops_per_s) = (per_s(sum.bytes), per_s(sum.flops));
            Some(Group {
                label,
                kernel: sum.kernel,
                count: sum.count,
                total_us: sum.ns * 1e-3,
                bytes_per_s,
                flops_per_s,
                of_ceiling: ceilings.share(bytes_per_s, flops_per_s),
            })
        });
        Launches {
            clock: match profile.clock {
                Clock::Device => "device",
                Clock::Host => "host",
            },
            launches: profile.launches.len(),
            total_us: profile.launches.iter().map(|l| l.ns * 1e-3).sum(),
            groups: groups.collect(),
        }
    }
}

/// `h.3.attn.c_attn` as `h.*.attn.c_attn`.
fn without_layer(label: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts = label
        .split('.')
        .map(|part| if is_number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

impl fmt::Display for Launches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(2);
        table.row([
            "launch",
            "kernel",
            "count",
            "each",
            "total",
            "",
            "bytes",
            "operations",
            "of ceiling",
        ]);
        for group in &self.groups {
            table.row([
                group.label.clone(),
                group.kernel.clone(),
                group.count.to_string(),
                format!("{:.1} µs", group.total_us / group.count as f64),
                format!("{:.1} µs", group.total_us),
                format!("{:.0}%", 100.0 * group.total_us / self.total_us.max(1e-9)),
                rate(group.bytes_per_s, "B/s"),
                rate(group.flops_per_s, "FLOP/s"),
                format!("{:.0}%", 100.0 * group.of_ceiling),
            ]);
        }
        write!(f, "{table}")?;
        let (count, total, clock) = (self.launches, self.total_us, self.clock);
        writeln!(f, "{count} launches, {total:.1} µs by the {clock}'s clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_taken_out_of_a_label() {
        assert_eq!(without_layer("h.11.attn.c_attn"), "h.*.attn.c_attn");
        assert_eq!(without_layer("ln_f"), "ln_f");
        assert_eq!(without_layer("h.3.ln_1 + c"), "h.*.ln_1 + c");
    }
}
