// Attention of many queries on cooperative matrices: f16 in, f32 accumulated, scores never written.
//
// A workgroup takes SIDE * SUBGROUPS queries of a head, a subgroup SIDE of them. Keys and values come to
// workgroup memory 32 at a time, rounded to f16; the next are fetched meanwhile. Scores go through it to
// the lanes, SUBGROUP / SIDE to a query, which mask them and keep the softmax online, in f32, with a finite
// sentinel; the weights return as f16. Their product with the values goes to the lanes the same way,
// which hold the sums: those have to be scaled row by row, and a cooperative matrix can't be.
//
// With PARTS over 1 (split-KV), workgroups of their own take as many parts of a tile's keys, if there are no
// more than MOST tiles: else the last tile, which has the most keys, is waited for when all others are done.
// The tiles that take longest come first. See parts.wgsl for how parts become results.
//
// Subgroups must have SUBGROUP invocations: the tier that has this body asks for it.
//
// Constants: HEADS, KV_HEADS, SIDE (16 or 8), HEAD_DIM (a multiple of SIDE), SCALE, CAUSAL, SLIDES,
//            SUBGROUP (one, two or four times SIDE), SUBGROUPS, SPLIT (see linear_coop.wgsl), PARTS, MOST.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, half_k, half_v, store_out, workgroup_index,
// and keep, kept and is_complete of parts.wgsl. half_k and half_v give keys and values in f16, and may
// call half4. Types as those of linear_coop.wgsl.
// Grid: PARTS * batch * HEADS * ceil(queries / (SIDE * SUBGROUPS)) workgroups.
// Workgroup: SUBGROUP * SUBGROUPS invocations.
// Workgroup memory: (64 + TILE) * (2 * HEAD_DIM + 16) + TILE * (96 + 16 * SIDE) bytes, where TILE is
// SIDE * SUBGROUPS.

const WORKGROUP: u32 = SUBGROUP * SUBGROUPS;
const D4: u32 = HEAD_DIM / 4u;
const KEYS: u32 = 32u;
const TILE: u32 = SIDE * SUBGROUPS;
// vec4s of a row of a matrix.
const ACROSS: u32 = SIDE / 4u;
// Lanes that share a query, and the vec4s that each has of a group of its output.
const TEAM: u32 = SUBGROUP / SIDE;
const OWN: u32 = SIDE / TEAM;
// vec4s of a query's scores that each has.
const SCORES: u32 = KEYS / 4u / TEAM;
// Lengths of rows in workgroup memory, in vec4s: of queries, keys and values, of softmax weights,
// and of results.
const PITCH: u32 = D4 + 2u;
const WEIGHTS: u32 = KEYS / 4u + 2u;
const RESULTS: u32 = SIDE + 1u;
// Columns of the output are computed in groups of four matrices.
const GROUPS: u32 = (HEAD_DIM + 4u * SIDE - 1u) / (4u * SIDE);
const LOWEST: f32 = -1e30;
const LOADS: u32 = (KEYS * D4 + WORKGROUP - 1u) / WORKGROUP;
// vec4s of a part: the sums of each lane, and how they are scaled.
const PART: u32 = (OWN * GROUPS + 1u) * WORKGROUP;

var<workgroup> q_tile: array<Halves, TILE * PITCH * SPLIT>;
var<workgroup> k_tile: array<Halves, KEYS * PITCH * SPLIT>;
var<workgroup> v_tile: array<Halves, KEYS * PITCH * SPLIT>;
var<workgroup> weights: array<Halves, TILE * WEIGHTS * SPLIT>;
var<workgroup> results: array<Reals, TILE * RESULTS * SPLIT>;

// Beyond its range a half would be infinite.
fn half4(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

// The largest of those that the lanes of a query have, and their sum.
fn largest(own: f32) -> f32 {
    var all = own;
    if TEAM > 1u {
        all = max(all, subgroupShuffleXor(all, 1u));
    }
    if TEAM > 2u {
        all = max(all, subgroupShuffleXor(all, 2u));
    }
    return all;
}

fn summed(own: f32) -> f32 {
    var all = own;
    if TEAM > 1u {
        all += subgroupShuffleXor(all, 1u);
    }
    if TEAM > 2u {
        all += subgroupShuffleXor(all, 2u);
    }
    return all;
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
    let visible = visible_from(b, first);
    let last_key = select(kv_len(), min(past() + min(first + TILE, queries()), kv_len()), CAUSAL);
    let rounds = select((max(last_key, visible) - visible + KEYS - 1u) / KEYS, 0u, is_idle);
    let from_key = visible + index % parts * rounds / parts * KEYS;
    let to_key = min(visible + (index % parts + 1u) * rounds / parts * KEYS, last_key);

    for (var at = lane; at < TILE * D4; at += WORKGROUP) {
        let i = min(first + at / D4, queries() - 1u);
        let slot = at / D4 * PITCH + at % D4;
        let q = half4(load_q(b, i, h, at % D4) * SCALE);
        // unroll SPLIT
        for (var e = 0u; e < SPLIT; e++) {
            q_tile[slot * SPLIT + e] = halves(q, e);
        }
    }
    // The subgroup's rows, and the lane's: every TEAM-th vec4 of it from `own` on.
    let m = lane / SUBGROUP * SIDE;
    let row = m + lane % SUBGROUP / TEAM;
    let own = lane % TEAM;
    let i = first + row;
    var out: array<vec4<f32>, OWN * GROUPS>;
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
                // unroll SPLIT
                for (var e = 0u; e < SPLIT; e++) {
                    k_tile[slot * SPLIT + e] = halves(k[n], e);
                    v_tile[slot * SPLIT + e] = halves(v[n], e);
                }
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
        var s0: MatrixC;
        var s1: MatrixC;
        var s2: MatrixC;
        var s3: MatrixC;
        for (var d = 0u; d < D4; d += ACROSS) {
            let q = coopLoadT<MatrixA>(&q_tile[(m * PITCH + d) * SPLIT], PITCH * SPLIT);
            let k0 = coopLoad<MatrixB>(&k_tile[d * SPLIT], PITCH * SPLIT);
            let k1 = coopLoad<MatrixB>(&k_tile[(SIDE * PITCH + d) * SPLIT], PITCH * SPLIT);
            s0 = coopMultiplyAdd(q, k0, s0);
            s1 = coopMultiplyAdd(q, k1, s1);
            if KEYS > 2u * SIDE {
                let k2 = coopLoad<MatrixB>(&k_tile[(2u * SIDE * PITCH + d) * SPLIT], PITCH * SPLIT);
                let k3 = coopLoad<MatrixB>(&k_tile[(3u * SIDE * PITCH + d) * SPLIT], PITCH * SPLIT);
                s2 = coopMultiplyAdd(q, k2, s2);
                s3 = coopMultiplyAdd(q, k3, s3);
            }
        }
        let place = m * RESULTS;
        coopStoreT(s0, &results[place * SPLIT], RESULTS * SPLIT);
        coopStoreT(s1, &results[(place + ACROSS) * SPLIT], RESULTS * SPLIT);
        if KEYS > 2u * SIDE {
            coopStoreT(s2, &results[(place + 2u * ACROSS) * SPLIT], RESULTS * SPLIT);
            coopStoreT(s3, &results[(place + 3u * ACROSS) * SPLIT], RESULTS * SPLIT);
        }
        workgroupBarrier();

        var scores: array<vec4<f32>, SCORES>;
        var seen: array<vec4<bool>, SCORES>;
        var higher = top;
        for (var p = 0u; p < SCORES; p++) {
            let j = base + (TEAM * p + own) * 4u + vec4<u32>(0u, 1u, 2u, 3u);
            let last = select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL);
            seen[p] = j < vec4<u32>(last);
            if SLIDES {
                seen[p] &= j >= vec4<u32>(visible_from(b, i));
            }
            scores[p] = select(vec4<f32>(LOWEST), result4(row * RESULTS + TEAM * p + own), seen[p]);
            let pairs = max(scores[p].xy, scores[p].zw);
            higher = max(higher, max(pairs.x, pairs.y));
        }
        higher = largest(higher);
        let keep = exp(top - higher);
        top = higher;
        var sum = vec4<f32>(0.0);
        for (var p = 0u; p < SCORES; p++) {
            let weight = select(vec4<f32>(0.0), exp(scores[p] - higher), seen[p]);
            sum += weight;
            let slot = row * WEIGHTS + TEAM * p + own;
            // unroll SPLIT
            for (var e = 0u; e < SPLIT; e++) {
                weights[slot * SPLIT + e] = halves(vec4<f16>(weight), e);
            }
        }
        total = total * keep + sum.x + sum.y + sum.z + sum.w;
        workgroupBarrier();

        for (var g = 0u; g < GROUPS; g++) {
            var o0: MatrixC;
            var o1: MatrixC;
            var o2: MatrixC;
            var o3: MatrixC;
            // Beyond the head, its last columns again: they go nowhere.
            let c0 = g * SIDE;
            let c1 = min(c0 + ACROSS, D4 - ACROSS);
            let c2 = min(c0 + 2u * ACROSS, D4 - ACROSS);
            let c3 = min(c0 + 3u * ACROSS, D4 - ACROSS);
            for (var j = 0u; j < KEYS; j += SIDE) {
                let w = coopLoadT<MatrixA>(&weights[(m * WEIGHTS + j / 4u) * SPLIT], WEIGHTS * SPLIT);
                let v0 = coopLoadT<MatrixB>(&v_tile[(j * PITCH + c0) * SPLIT], PITCH * SPLIT);
                let v1 = coopLoadT<MatrixB>(&v_tile[(j * PITCH + c1) * SPLIT], PITCH * SPLIT);
                let v2 = coopLoadT<MatrixB>(&v_tile[(j * PITCH + c2) * SPLIT], PITCH * SPLIT);
                let v3 = coopLoadT<MatrixB>(&v_tile[(j * PITCH + c3) * SPLIT], PITCH * SPLIT);
                o0 = coopMultiplyAdd(w, v0, o0);
                o1 = coopMultiplyAdd(w, v1, o1);
                o2 = coopMultiplyAdd(w, v2, o2);
                o3 = coopMultiplyAdd(w, v3, o3);
            }
            coopStoreT(o0, &results[place * SPLIT], RESULTS * SPLIT);
            coopStoreT(o1, &results[(place + ACROSS) * SPLIT], RESULTS * SPLIT);
            coopStoreT(o2, &results[(place + 2u * ACROSS) * SPLIT], RESULTS * SPLIT);
            coopStoreT(o3, &results[(place + 3u * ACROSS) * SPLIT], RESULTS * SPLIT);
            workgroupBarrier();
            for (var p = 0u; p < OWN; p++) {
                let addend = result4(row * RESULTS + TEAM * p + own);
                let at = OWN * g + p;
                out[at] = out[at] * keep + addend;
            }
            if g + 1u < GROUPS {
                workgroupBarrier();
            }
        }
    }

    total = summed(total);
    // vec4s of the lane's row: OWN of each lane make a group.
    if parts == 1u {
        if i < queries() && !is_idle {
            for (var p = 0u; p < OWN * GROUPS; p++) {
                let d4 = p / OWN * SIDE + p % OWN * TEAM + own;
                if d4 < D4 {
                    store_out(b, i, h, d4, out[p] / max(total, 1e-30));
                }
            }
        }
    } else if !is_idle {
        for (var p = 0u; p < OWN * GROUPS; p++) {
            keep(index * PART + p * WORKGROUP + lane, out[p]);
        }
        keep(index * PART + OWN * GROUPS * WORKGROUP + lane, vec4<f32>(top, total, 0.0, 0.0));
        if is_complete(tile, lane) && i < queries() {
            let at = tile * PARTS * PART + lane;
            var scales: array<vec2<f32>, PARTS>;
            var highest = LOWEST;
            for (var part = 0u; part < PARTS; part++) {
                scales[part] = kept(at + part * PART + OWN * GROUPS * WORKGROUP).xy;
                highest = max(highest, scales[part].x);
            }
            var all = 0.0;
            for (var part = 0u; part < PARTS; part++) {
                scales[part].x = exp(scales[part].x - highest);
                all += scales[part].x * scales[part].y;
            }
            for (var p = 0u; p < OWN * GROUPS; p++) {
                var sum = vec4<f32>(0.0);
                for (var part = 0u; part < PARTS; part++) {
                    sum += scales[part].x * kept(at + part * PART + p * WORKGROUP);
                }
                let d4 = p / OWN * SIDE + p % OWN * TEAM + own;
                if d4 < D4 {
                    store_out(b, i, h, d4, sum / max(all, 1e-30));
                }
            }
        }
    }
}
