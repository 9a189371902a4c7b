//! Kernels that check a driver: what a tier relies on, computed by its bodies and
//! plainly, and compared. See [`kiln_ir::plan::Check`].

use crate::attention;
use crate::kernel::{Draft, Element, default_hooks};
use crate::lanes;
use crate::parts::whole_hooks;
use crate::tier::{Matrices, Tier};
use crate::tile::{COOP, CoopTile};
use crate::view::Base;

/// A check before its kernel is named.
pub(crate) struct Trial {
    pub kernel: Draft,
    pub workgroups: u32,
    pub words: u64,
}

/// What must hold before `tier` is trusted.
pub(crate) fn trials(tier: Tier) -> Vec<Trial> {
    match tier {
        Tier::Coop(matrices) => {
            // A driver may choose a size for each kernel, and by its workgroup: all that
            // kernels with matrices may have.
            let workgroups = [8, 32, 64, 128, 256].into_iter();
            let workgroups = workgroups.filter(|w| *w >= matrices.subgroup);
            let subgroups = workgroups.map(|workgroup| subgroups(matrices, workgroup));
            let linears = CoopTile::both(matrices).into_iter().map(linear_coop);
            let attentions = [64, 80].into_iter();
            let attentions = attentions.filter_map(|head_dim| attention_coop(matrices, head_dim));
            subgroups.chain(linears).chain(attentions).collect()
        }
        Tier::SoftwareSubgroup => vec![lanes::trial()],
        Tier::Software | Tier::Subgroup | Tier::Base => Vec::new(),
    }
}

/// Checks the size of subgroups, and their order, in a workgroup of so many invocations.
fn subgroups(matrices: Matrices, workgroup: u64) -> Trial {
    let detail = format!("{workgroup}by{}", matrices.subgroup);
    let mut d = Draft::new("subgroups_check", detail, workgroup as u32);
    d.constant_u32("WORKGROUP", workgroup);
    d.constant_u32("SUBGROUP", matrices.subgroup);
    d.write("verdicts", Base::Local(0), Element::U32);
    Trial {
        kernel: d,
        workgroups: 1,
        words: workgroup,
    }
}

/// A product of small whole numbers, which is exact in any order of summation: a
/// little more than a tile in each direction, and a K that is no whole number of
/// steps.
fn linear_coop(tile: CoopTile) -> Trial {
    let (k, n, rows) = (200, tile.columns() + 12, tile.rows() + 5);
    let mut d = Draft::new(
        COOP,
        format!(
            "check.{}x{}{}",
            tile.rows(),
            tile.columns(),
            tile.matrices.mark()
        ),
        tile.workgroup() as u32,
    );
    tile.matrices.declare(&mut d);
    d.constant_u32("K", k);
    d.constant_u32("N", n);
    for (name, size) in tile.constants() {
        d.constant_u32(name, size);
    }
    whole_hooks(&mut d);
    let verdicts = d.write("verdicts", Base::Local(0), Element::U32);
    d.hook(format!(
        "fn rows() -> u32 {{\n    return {rows}u;\n}}\n\n\
         // From -4 to 4, without a pattern that a transposed matrix would share.\n\
         fn number(a: u32, b: u32) -> f32 {{\n    return f32((a * 7u + b * 13u + a * b % 5u) % 9u) - 4.0;\n}}\n\n\
         fn eight(a: u32, k8: u32) -> Half8 {{\n    var v: array<vec4<f16>, 2>;\n    \
         for (var i = 0u; i < 8u; i++) {{\n        if k8 * 8u + i < K {{\n            \
         v[i / 4u][i % 4u] = f16(number(a, k8 * 8u + i));\n        }}\n    }}\n    \
         return Half8(v[0], v[1]);\n}}\n\n\
         fn load_x8(row: u32, k8: u32) -> Half8 {{\n    return eight(row, k8);\n}}\n\n\
         fn load_w8(n: u32, k8: u32) -> Half8 {{\n    return eight(n + 1000u, k8);\n}}\n\n\
         fn store4(row: u32, n: u32, acc: vec4<f32>) {{\n    var expected = vec4<f32>(0.0);\n    \
         for (var k = 0u; k < K; k++) {{\n        let column = n + 1000u;\n        \
         expected += number(row, k) * vec4<f32>(number(column, k), number(column + 1u, k), number(column + 2u, k), number(column + 3u, k));\n    }}\n    \
         {verdicts}[row * (N / 4u) + n / 4u] = select(0u, 1u, all(acc == expected));\n}}\n"
    ));
    let workgroups = n.div_ceil(tile.columns()) * rows.div_ceil(tile.rows());
    Trial {
        kernel: d,
        workgroups: workgroups as u32,
        words: rows * n / 4,
    }
}

/// Attention of more than one tile of queries over more than one step of keys, with
/// a past; compared within what rounding to f16 takes away.
fn attention_coop(matrices: Matrices, head_dim: u64) -> Option<Trial> {
    let (batch, heads, kv_heads, queries, past) = (2, 4, 2, 70_u64, 9);
    let constants = attention::coop_tile(matrices, head_dim)?;
    let size = |name: &str| constants.iter().find(|(n, _)| *n == name).map(|(_, s)| *s);
    let subgroups = size("SUBGROUPS")?;
    let mut d = Draft::new(
        attention::COOP,
        format!("check.{head_dim}{}", matrices.mark()),
        (size("SUBGROUP")? * subgroups) as u32,
    );
    matrices.declare(&mut d);
    d.constant_u32("HEADS", heads);
    d.constant_u32("KV_HEADS", kv_heads);
    d.constant_u32("HEAD_DIM", head_dim);
    d.constant_f32("SCALE", 0.125);
    d.constant_bool("CAUSAL", true);
    d.constant_bool("SLIDES", true);
    let whole = [("PARTS", 1), ("MOST", 0)];
    for (name, size) in constants.iter().chain(&whole) {
        d.constant_u32(name, size);
    }
    let sizes = [
        ("batch", batch),
        ("queries", queries),
        ("past", past),
        ("kv_len", past + queries),
    ];
    for (name, size) in sizes {
        d.hook(format!("fn {name}() -> u32 {{\n    return {size}u;\n}}\n"));
    }
    for hook in default_hooks(attention::COOP) {
        d.hook(hook);
    }
    whole_hooks(&mut d);
    let verdicts = d.write("verdicts", Base::Local(0), Element::U32);
    d.hook(format!(
        "fn visible_from(b: u32, i: u32) -> u32 {{\n    return max(3u * b, i / 2u);\n}}\n\n\
         // Eighths from -1 to 1, other ones for queries, keys and values.\n\
         fn eighths(kind: u32, b: u32, i: u32, h: u32, d4: u32) -> vec4<f32> {{\n    \
         let d = d4 * 4u + vec4<u32>(0u, 1u, 2u, 3u);\n    \
         return (vec4<f32>((i * 7u + d * 5u + i * d % 11u + h * 3u + b + kind * 2u) % 17u) - 8.0) / 8.0;\n}}\n\n\
         fn load_q(b: u32, i: u32, h: u32, d4: u32) -> vec4<f32> {{\n    return eighths(0u, b, i, h, d4);\n}}\n\n\
         fn load_k(b: u32, j: u32, kvh: u32, d4: u32) -> vec4<f32> {{\n    return eighths(1u, b, j, kvh, d4);\n}}\n\n\
         fn load_v(b: u32, j: u32, kvh: u32, d4: u32) -> vec4<f32> {{\n    return eighths(2u, b, j, kvh, d4);\n}}\n\n\
         fn store_out(b: u32, i: u32, h: u32, d4: u32, v: vec4<f32>) {{\n    \
         let kvh = h / (HEADS / KV_HEADS);\n    var sum = vec4<f32>(0.0);\n    var total = 0.0;\n    \
         for (var j = visible_from(b, i); j <= past() + i; j++) {{\n        var score = 0.0;\n        \
         for (var d = 0u; d < HEAD_DIM / 4u; d++) {{\n            \
         score += dot(load_q(b, i, h, d), load_k(b, j, kvh, d)) * SCALE;\n        }}\n        \
         let weight = exp(score);\n        total += weight;\n        \
         sum += weight * load_v(b, j, kvh, d4);\n    }}\n    \
         let error = abs(v - sum / total);\n    \
         {verdicts}[((b * queries() + i) * HEADS + h) * (HEAD_DIM / 4u) + d4] = select(0u, 1u, all(error < vec4<f32>(0.01)));\n}}\n"
    ));
    Some(Trial {
        kernel: d,
        workgroups: (batch * heads * queries.div_ceil(matrices.side * subgroups)) as u32,
        words: batch * queries * heads * head_dim / 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate;

    #[test]
    fn marks_tell_matrices_apart() {
        let all = Tier::USUAL.into_iter().chain(Tier::OTHERS);
        let marks: Vec<String> = all.filter_map(|t| Some(t.matrices()?.mark())).collect();
        let different: std::collections::BTreeSet<&String> = marks.iter().collect();
        assert_eq!(different.len(), marks.len(), "{marks:?}");
    }

    /// What bodies declare is what a tier asks for, and what tiles reckon with.
    #[test]
    fn workgroups_have_the_memory_and_the_invocations_that_are_asked_for() {
        let text = |d: &Draft| d.text(&[], kiln_shaders::body(d.body).unwrap());
        for tier in Tier::USUAL.into_iter().chain(Tier::OTHERS) {
            let Some(matrices) = tier.matrices() else {
                continue;
            };
            let [side, subgroup] = [matrices.side, matrices.subgroup];
            assert!([1, 2, 4].contains(&(subgroup / side)) && subgroup.is_multiple_of(side));
            let others = CoopTile::both(matrices).map(|t| t.others(1024, (1024, 1024), 8));
            for tile in CoopTile::both(matrices) {
                let declared = validate::workgroup_memory(&text(&linear_coop(tile).kernel));
                assert_eq!(declared, Some(tile.memory()), "{}: {tile:?}", tier.name());
                assert!(tile.memory() <= matrices.memory, "{}", tier.name());
                assert!(tile.workgroup() <= 256, "{}", tier.name());
            }
            // Alternatives may ask a device for more than the tier does, in the plan; no more
            // than those of the first tier, with rows that are spaced, which an H100 has.
            for tile in others.into_iter().flatten() {
                assert!(tile.memory() <= 48 << 10, "{}: {tile:?}", tier.name());
            }
            for head_dim in [16, 64, 80, 128] {
                let Some(trial) = attention_coop(matrices, head_dim) else {
                    continue;
                };
                let declared = validate::workgroup_memory(&text(&trial.kernel)).unwrap();
                assert!(declared <= matrices.memory, "{}, {head_dim}", tier.name());
                assert!(trial.kernel.workgroup <= 256, "{}", tier.name());
            }
        }
    }
}
