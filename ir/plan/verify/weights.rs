//! Invariants 6 to 8: where parameters lie in weight buffers.

use std::collections::BTreeMap;

use super::Report;
use crate::packing::Packing;
use crate::plan::{Plan, WeightPart};

/// What weight buffers and the parts in them are aligned to, in bytes: kernels
/// read 16 bytes at a time.
const ALIGNMENT: u64 = 16;

pub(super) fn check(plan: &Plan, report: &mut Report) {
    for weight in &plan.weights {
        let subject = format!("weight `{}`", weight.name);
        if weight.bytes == 0 || !weight.bytes.is_multiple_of(ALIGNMENT) {
            let expected = format!("a positive multiple of {ALIGNMENT} bytes");
            report.error(6, subject.clone(), expected, weight.bytes);
        }
        let mut parts: Vec<&WeightPart> = weight.contents.iter().collect();
        parts.sort_by_key(|p| p.offset);
        let mut free = 0;
        for part in parts {
            let subject = format!("{subject}, part of `{}`", part.param);
            let bytes = bytes(part);
            if bytes == 0 {
                report.error(7, subject.clone(), "elements", "none");
            }
            if !part.offset.is_multiple_of(ALIGNMENT) {
                let expected = format!("an offset that is a multiple of {ALIGNMENT}");
                report.error(7, subject.clone(), expected, part.offset);
            }
            let end = part.offset.saturating_add(bytes);
            let range = || format!("{}..{end}", part.offset);
            if end > weight.bytes {
                let expected = format!("a range within 0..{}", weight.bytes);
                report.error(7, subject.clone(), expected, range());
            }
            if part.offset < free {
                let expected = format!("a range from {free} on, where the part before ends");
                report.error(7, subject, expected, range());
            }
            free = free.max(end);
        }
    }
    rows(plan, report);
}

/// The rows of a parameter, and the elements of one.
fn matrix(part: &WeightPart) -> (u64, u64) {
    match part.shape.as_slice() {
        [leading @ .., k] => (product(leading), *k),
        [] => (1, 1),
    }
}

fn product(sizes: &[u64]) -> u64 {
    sizes.iter().fold(1, |a, b| a.saturating_mul(*b))
}

/// The bytes of a part. A parameter of one axis is not padded to groups.
fn bytes(part: &WeightPart) -> u64 {
    let (_, k) = matrix(part);
    let groups = part
        .rows
        .saturating_mul(k.div_ceil(part.packing.group() as u64));
    if part.scales {
        groups.div_ceil(2).saturating_mul(4)
    } else if part.shape.len() < 2 && part.packing == Packing::F32 {
        part.rows.saturating_mul(k).saturating_mul(4)
    } else {
        groups.saturating_mul(part.packing.group_bytes() as u64)
    }
}

/// Each row of each parameter once.
fn rows(plan: &Plan, report: &mut Report) {
    let mut params: BTreeMap<_, Vec<&WeightPart>> = BTreeMap::new();
    for part in plan.weights.iter().flat_map(|w| &w.contents) {
        let key = (part.param.as_str(), part.packing, part.scales);
        params.entry(key).or_default().push(part);
    }
    for ((param, packing, scales), mut parts) in params {
        parts.sort_by_key(|p| p.first_row);
        let what = if scales { "scales" } else { "rows" };
        let subject = format!("{what} of `{param}` as {}", packing.name());
        let Some(first) = parts.first() else {
            continue;
        };
        if let Some(other) = parts.iter().find(|p| p.shape != first.shape) {
            let expected = format!("the shape {:?} in each part", first.shape);
            let found = format!("{:?}", other.shape);
            report.error(8, subject, expected, found);
            continue;
        }
        let (all, _) = matrix(first);
        let mut next = 0;
        for part in &parts {
            let end = part.first_row.saturating_add(part.rows);
            if part.first_row != next || end > all {
                let expected = format!("rows from {next} on, of {all}");
                report.error(
                    8,
                    subject.clone(),
                    expected,
                    format!("{}..{end}", part.first_row),
                );
            }
            next = end;
        }
        if next < all {
            report.error(8, subject, format!("{all} rows"), next);
        }
    }
}
