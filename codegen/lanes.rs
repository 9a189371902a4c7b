//! What the invocations of a workgroup load for each other, on a CPU driver.
//!
//! There a load brings each lane of a subgroup something, and costs as much where all
//! want the same. So each lane loads another part of that, and broadcasts hand the parts
//! on, at one instruction a component.

use std::fmt::Write as _;

use crate::kernel::{Draft, Element};
use crate::tier::Tier;
use crate::trust::Trial;
use crate::view::Base;

/// Invocations of a workgroup that is one subgroup.
pub(crate) const LANES: u32 = 8;

/// Whether invocations load for each other on a tier.
pub(crate) fn share_loads(tier: Tier) -> bool {
    tier == Tier::SoftwareSubgroup
}

/// The hook `plain`, which gives all invocations of a workgroup the same `count` vec4s,
/// as `tier` has it: with subgroups, each is loaded by one of them. `load` is an expression
/// for number `at`, `place` says where a number lies in what is returned.
pub(crate) fn share(
    tier: Tier,
    plain: &str,
    count: u64,
    load: &str,
    place: impl Fn(u64) -> String,
) -> String {
    if !share_loads(tier) {
        return plain.to_owned();
    }
    let (head, _) = plain.split_once(" {\n").unwrap_or_default();
    let (_, ty) = head.split_once(" -> ").unwrap_or_default();
    let mut out = format!("{head} {{\n    var given: {ty};\n");
    let lanes = u64::from(LANES);
    for first in (0..count).step_by(LANES as usize) {
        let end = count.min(first + lanes);
        let mut at = match first {
            0 => "lane".to_owned(),
            _ => format!("lane + {first}u"),
        };
        if end - first < lanes {
            at = format!("min({at}, {}u)", end - 1);
        }
        let _ = writeln!(
            out,
            "    {{\n        let at = {at};\n        let own = {load};"
        );
        for number in first..end {
            let (place, lane) = (place(number), number - first);
            let _ = writeln!(
                out,
                "        given{place} = subgroupBroadcast(own, {lane}u);"
            );
        }
        out.push_str("    }\n");
    }
    out.push_str("    return given;\n}\n");
    out
}

/// The hook `plain`, which gives all invocations of a workgroup their sums of each number in
/// `part`, as `tier` has it: with subgroups they need no memory and no barriers.
pub(crate) fn add_up(tier: Tier, plain: &str) -> String {
    if !share_loads(tier) {
        return plain.to_owned();
    }
    let at = plain.find("fn ").unwrap_or_default();
    let (head, _) = plain[at..].split_once(" {\n").unwrap_or_default();
    let (_, ty) = head.split_once(" -> ").unwrap_or_default();
    format!(
        "{head} {{\n    var sums: {ty};\n    \
         for (var t = 0u; t < TILE_QUERIES; t++) {{\n        \
         sums[t] = subgroupAdd(part[t]);\n    }}\n    return sums;\n}}\n"
    )
}

/// Checks that the invocations of a workgroup are the lanes of a subgroup, in their order.
pub(crate) fn trial() -> Trial {
    let mut d = Draft::new("lanes_check", String::new(), LANES);
    d.write("verdicts", Base::Local(0), Element::U32);
    Trial {
        kernel: d,
        workgroups: 1,
        words: LANES.into(),
    }
}
