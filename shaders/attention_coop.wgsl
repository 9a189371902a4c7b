// Attention of many queries on cooperative matrices: f16 in, f32 accumulated, scores never written.
//
// A workgroup takes 16 * SUBGROUPS queries of a head, a subgroup 16 of them. Keys and values come to
// workgroup memory 32 at a time, rounded to f16; the next are fetched meanwhile. Scores go through it to
// the lanes, two to a query, which mask them and keep the softmax online, in f32, with a finite
// sentinel; the weights return as f16. Their product with the values goes to the lanes the same way,
// which hold the sums: those have to be scaled row by row, and a cooperative matrix can't be.
//
// With PARTS over 1 (split-KV), workgroups of their own take as many parts of a tile's keys, if there are no
// more than MOST tiles: else the last tile, which has the most keys, is waited for when all others are done.
// The tiles that take longest come first. See parts.wgsl for how parts become results.
//
// Subgroups must have SUBGROUP invocations: the tier that has this body asks for it.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM (a multiple of 16), SCALE, CAUSAL, SUBGROUP (32), SUBGROUPS,
//            PARTS, MOST.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, half_k, half_v, store_out, workgroup_index,
// and keep, kept and is_complete of parts.wgsl. half_k and half_v give keys and values in f16, and may
// call half4.
// Grid: PARTS * batch * HEADS * ceil(queries / (16 * SUBGROUPS)) workgroups.
// Workgroup: SUBGROUP * SUBGROUPS invocations.
// Workgroup memory: (64 + 16 * SUBGROUPS) * (2 * HEAD_DIM + 16) + 5,632 * SUBGROUPS bytes.

const WORKGROUP: u32 = SUBGROUP * SUBGROUPS;
const D4: u32 = HEAD_DIM / 4u;
const KEYS: u32 = 32u;
const TILE: u32 = 16u * SUBGROUPS;
// Lengths of rows in workgroup memory, in vec4s: of queries, keys and values, of softmax weights,
// and of results.
const PITCH: u32 = D4 + 2u;
const WEIGHTS: u32 = KEYS / 4u + 2u;
const RESULTS: u32 = 17u;
// Columns of the output are computed 64 at a time.
const GROUPS: u32 = (HEAD_DIM + 63u) / 64u;
const LOWEST: f32 = -1e30;
const LOADS: u32 = (KEYS * D4 + WORKGROUP - 1u) / WORKGROUP;
// vec4s of a part: the sums of each lane, and how they are scaled.
const PART: u32 = (8u * GROUPS + 1u) * WORKGROUP;

var<workgroup> q_tile: array<vec4<f16>, TILE * PITCH>;
var<workgroup> k_tile: array<vec4<f16>, KEYS * PITCH>;
var<workgroup> v_tile: array<vec4<f16>, KEYS * PITCH>;
var<workgroup> weights: array<vec4<f16>, TILE * WEIGHTS>;
var<workgroup> results: array<vec4<f32>, TILE * RESULTS>;

// Beyond its range a half would be infinite.
fn half4(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let query_tiles = (queries() + TILE - 1u) / TILE;
    let tiles = batch() * HEADS * query_tiles;
    let parts = select(1u, PARTS, tiles <= MOST);
    // Cooperative operations may not stand behind a return: a workgroup beyond the last computes that
    // again, or with PARTS nothing.
    let index = workgroup_index(workgroup_id, num_workgroups);
    let is_idle = PARTS > 1u && index >= tiles * parts;
    let tile = min(index / parts, tiles - 1u);
    let turn = tile % query_tiles;
    let first = select(turn, query_tiles - 1u - turn, PARTS > 1u) * TILE;
    let h = tile / query_tiles % HEADS;
    let b = tile / (query_tiles * HEADS);
    let kvh = h / (HEADS / KV_HEADS);
    let visible = visible_from(b);
    let last_key = select(kv_len(), min(past() + min(first + TILE, queries()), kv_len()), CAUSAL);
    let rounds = select((max(last_key, visible) - visible + KEYS - 1u) / KEYS, 0u, is_idle);
    let from_key = visible + index % parts * rounds / parts * KEYS;
    let to_key = min(visible + (index % parts + 1u) * rounds / parts * KEYS, last_key);

    for (var at = lane; at < TILE * D4; at += WORKGROUP) {
        let i = min(first + at / D4, queries() - 1u);
        q_tile[at / D4 * PITCH + at % D4] = half4(load_q(b, i, h, at % D4) * SCALE);
    }
    // The subgroup's rows, and the lane's: every second vec4 of it from `side` on.
    let m = lane / SUBGROUP * 16u;
    let row = m + lane % SUBGROUP / 2u;
    let side = lane % 2u;
    let i = first + row;
    var out: array<vec4<f32>, 8u * GROUPS>;
    var top = LOWEST;
    var total = 0.0;
    var k: array<vec4<f16>, LOADS>;
    var v: array<vec4<f16>, LOADS>;
    for (var n = 0u; n < LOADS; n++) {
        let at = n * WORKGROUP + lane;
        let j = min(from_key + at / D4, kv_len() - 1u);
        k[n] = half_k(b, j, kvh, at % D4);
        v[n] = half_v(b, j, kvh, at % D4);
    }
    for (var base = from_key; base < to_key; base += KEYS) {
        // Nobody reads the last keys and values any more: all have met behind their products, which
        // takes a barrier of the whole workgroup there.
        for (var n = 0u; n < LOADS; n++) {
            let at = n * WORKGROUP + lane;
            if at < KEYS * D4 {
                let slot = at / D4 * PITCH + at % D4;
                k_tile[slot] = k[n];
                v_tile[slot] = v[n];
            }
        }
        workgroupBarrier();
        if base + KEYS < to_key {
            for (var n = 0u; n < LOADS; n++) {
                let at = n * WORKGROUP + lane;
                let j = min(base + KEYS + at / D4, kv_len() - 1u);
                k[n] = half_k(b, j, kvh, at % D4);
                v[n] = half_v(b, j, kvh, at % D4);
            }
        }
        var s0: coop_mat16x16<f32, C>;
        var s1: coop_mat16x16<f32, C>;
        for (var d = 0u; d < D4; d += 4u) {
            let q = coopLoadT<coop_mat16x16<f16, A>>(&q_tile[m * PITCH + d], PITCH);
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&k_tile[d], PITCH);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&k_tile[16u * PITCH + d], PITCH);
            s0 = coopMultiplyAdd(q, k0, s0);
            s1 = coopMultiplyAdd(q, k1, s1);
        }
        coopStoreT(s0, &results[m * RESULTS], RESULTS);
        coopStoreT(s1, &results[m * RESULTS + 4u], RESULTS);
        workgroupBarrier();

        var scores: array<vec4<f32>, 4>;
        var seen: array<vec4<bool>, 4>;
        var higher = top;
        for (var p = 0u; p < 4u; p++) {
            let j = base + (2u * p + side) * 4u + vec4<u32>(0u, 1u, 2u, 3u);
            let last = select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL);
            seen[p] = j < vec4<u32>(last);
            scores[p] = select(vec4<f32>(LOWEST), results[row * RESULTS + 2u * p + side], seen[p]);
            let pairs = max(scores[p].xy, scores[p].zw);
            higher = max(higher, max(pairs.x, pairs.y));
        }
        higher = max(higher, subgroupShuffleXor(higher, 1u));
        let keep = exp(top - higher);
        top = higher;
        var sum = vec4<f32>(0.0);
        for (var p = 0u; p < 4u; p++) {
            let weight = select(vec4<f32>(0.0), exp(scores[p] - higher), seen[p]);
            sum += weight;
            weights[row * WEIGHTS + 2u * p + side] = vec4<f16>(weight);
        }
        total = total * keep + sum.x + sum.y + sum.z + sum.w;
        workgroupBarrier();

        for (var g = 0u; g < GROUPS; g++) {
            var o0: coop_mat16x16<f32, C>;
            var o1: coop_mat16x16<f32, C>;
            var o2: coop_mat16x16<f32, C>;
            var o3: coop_mat16x16<f32, C>;
            // Beyond the head, its last columns again: they go nowhere.
            let c1 = min(g * 16u + 4u, D4 - 4u);
            let c2 = min(g * 16u + 8u, D4 - 4u);
            let c3 = min(g * 16u + 12u, D4 - 4u);
            for (var j = 0u; j < KEYS; j += 16u) {
                let w = coopLoadT<coop_mat16x16<f16, A>>(&weights[m * WEIGHTS + j / 4u], WEIGHTS);
                let v0 = coopLoadT<coop_mat16x16<f16, B>>(&v_tile[j * PITCH + g * 16u], PITCH);
                let v1 = coopLoadT<coop_mat16x16<f16, B>>(&v_tile[j * PITCH + c1], PITCH);
                let v2 = coopLoadT<coop_mat16x16<f16, B>>(&v_tile[j * PITCH + c2], PITCH);
                let v3 = coopLoadT<coop_mat16x16<f16, B>>(&v_tile[j * PITCH + c3], PITCH);
                o0 = coopMultiplyAdd(w, v0, o0);
                o1 = coopMultiplyAdd(w, v1, o1);
                o2 = coopMultiplyAdd(w, v2, o2);
                o3 = coopMultiplyAdd(w, v3, o3);
            }
            coopStoreT(o0, &results[m * RESULTS], RESULTS);
            coopStoreT(o1, &results[m * RESULTS + 4u], RESULTS);
            coopStoreT(o2, &results[m * RESULTS + 8u], RESULTS);
            coopStoreT(o3, &results[m * RESULTS + 12u], RESULTS);
            workgroupBarrier();
            for (var p = 0u; p < 8u; p++) {
                let addend = results[row * RESULTS + 2u * p + side];
                let at = 8u * g + p;
                out[at] = out[at] * keep + addend;
            }
            if g + 1u < GROUPS {
                workgroupBarrier();
            }
        }
    }

    total += subgroupShuffleXor(total, 1u);
    // vec4s of the lane's row: eight of each side make a group.
    if parts == 1u {
        if i < queries() && !is_idle {
            for (var p = 0u; p < 8u * GROUPS; p++) {
                let d4 = p / 8u * 16u + p % 8u * 2u + side;
                if d4 < D4 {
                    store_out(b, i, h, d4, out[p] / max(total, 1e-30));
                }
            }
        }
    } else if !is_idle {
        for (var p = 0u; p < 8u * GROUPS; p++) {
            keep(index * PART + p * WORKGROUP + lane, out[p]);
        }
        keep(index * PART + 8u * GROUPS * WORKGROUP + lane, vec4<f32>(top, total, 0.0, 0.0));
        if is_complete(tile, lane) && i < queries() {
            let at = tile * PARTS * PART + lane;
            var scales: array<vec2<f32>, PARTS>;
            var highest = LOWEST;
            for (var part = 0u; part < PARTS; part++) {
                scales[part] = kept(at + part * PART + 8u * GROUPS * WORKGROUP).xy;
                highest = max(highest, scales[part].x);
            }
            var all = 0.0;
            for (var part = 0u; part < PARTS; part++) {
                scales[part].x = exp(scales[part].x - highest);
                all += scales[part].x * scales[part].y;
            }
            for (var p = 0u; p < 8u * GROUPS; p++) {
                var sum = vec4<f32>(0.0);
                for (var part = 0u; part < PARTS; part++) {
                    sum += scales[part].x * kept(at + part * PART + p * WORKGROUP);
                }
                let d4 = p / 8u * 16u + p % 8u * 2u + side;
                if d4 < D4 {
                    store_out(b, i, h, d4, sum / max(all, 1e-30));
                }
            }
        }
    }
}
