// y[rows, N] = x[rows, K] * W[N, K]^T for many rows, on cooperative matrices: f16 in, f32 accumulated.
//
// A workgroup computes TILE_M rows by TILE_N outputs, a subgroup of it 16 * FRAGMENTS_M by 32 in
// accumulators of 16x16. Each step brings 64 columns of both operands to workgroup memory, rounded to
// f16, and the next step's to registers while the last are multiplied. Rows in workgroup memory are
// longer than that by PAD vec4s of f16, so that those of a matrix lie in different banks: 2 do where the
// driver loads 16 bytes at a time, 4 where it loads 8. Finished accumulators pass through workgroup
// memory to the epilogue.
//
// With PARTS over 1 (split-K), tiles beyond the last multiple of ROUND, about as many as run at once, are
// computed in as many parts of K by workgroups of their own, so that the last round takes no longer than
// what is left to do; but all are computed whole if more than MOST are left. See parts.wgsl for how parts
// become results.
//
// Accumulators have names, not places in an array: an array that a loop indexes lies in memory. The
// products of a step are written out: the driver loads what is multiplied next meanwhile, which it does
// not in a loop.
// Subgroups must have SUBGROUP invocations: the tier that has this body asks for it.
//
// Constants: K, N, SUBGROUP, SUBGROUPS_M, SUBGROUPS_N, FRAGMENTS_M (2 or 4), PAD, PARTS, ROUND, MOST.
// Hooks: rows, load_x8, load_w8, store4, workgroup_index, and keep, kept and is_complete of parts.wgsl;
// they may call half4.
// Grid: ceil(N / TILE_N) * ceil(rows / TILE_M) workgroups; with PARTS, one for each part. Those beyond
// have nothing to do.
// Workgroup: SUBGROUP * SUBGROUPS_M * SUBGROUPS_N invocations.
// Workgroup memory: 8 * (16 + PAD) * (TILE_M + TILE_N) bytes, and 1,024 a subgroup.

const FRAGMENTS_N: u32 = 2u;
const WORKGROUP: u32 = SUBGROUP * SUBGROUPS_M * SUBGROUPS_N;
const TILE_M: u32 = 16u * FRAGMENTS_M * SUBGROUPS_M;
const TILE_N: u32 = 16u * FRAGMENTS_N * SUBGROUPS_N;
// Columns of a step in eights, and the length of a row in workgroup memory in vec4s.
const STEP: u32 = 8u;
const PITCH: u32 = 2u * STEP + PAD;
const STEPS: u32 = (K + 8u * STEP - 1u) / (8u * STEP);
const X_LOADS: u32 = TILE_M * STEP / WORKGROUP;
const W_LOADS: u32 = TILE_N * STEP / WORKGROUP;

// Eight consecutive elements of a row.
struct Half8 {
    low: vec4<f16>,
    high: vec4<f16>,
}

// Beyond its range a half would be infinite.
fn half4(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

var<workgroup> x_tile: array<vec4<f16>, TILE_M * PITCH>;
var<workgroup> w_tile: array<vec4<f16>, TILE_N * PITCH>;
// An accumulator of each subgroup.
var<workgroup> results: array<vec4<f32>, 64u * SUBGROUPS_M * SUBGROUPS_N>;

// vec4s of a part.
const PART: u32 = TILE_M * TILE_N / 4u;
const WHOLE: u32 = 0xffffffffu;
const NOTHING: u32 = 0xfffffffeu;

// To be called by all, behind a store of 16x16 results whose first is at (m, n): of a tile that is WHOLE,
// of a part, which are kept from `at` on, or of NOTHING.
fn finish(m: u32, n: u32, lane: u32, at: u32) {
    workgroupBarrier();
    let own = lane / SUBGROUP * 64u;
    for (var i = lane % SUBGROUP; i < 64u; i += SUBGROUP) {
        let row = m + i / 4u;
        let column = n + i % 4u * 4u;
        if PARTS > 1u && at != WHOLE {
            if at != NOTHING {
                keep(at + own + i, results[own + i]);
            }
        } else if row < rows() && column < N {
            store4(row, column, results[own + i]);
        }
    }
    workgroupBarrier();
}

// What `finish` would store of a whole tile, from parts that were kept, the first from `at` on.
fn join_parts(m: u32, n: u32, lane: u32, at: u32) {
    let own = lane / SUBGROUP * 64u;
    for (var i = lane % SUBGROUP; i < 64u; i += SUBGROUP) {
        let row = m + i / 4u;
        let column = n + i % 4u * 4u;
        if row < rows() && column < N {
            var sum = kept(at + own + i);
            for (var part = 1u; part < PARTS; part++) {
                sum += kept(at + part * PART + own + i);
            }
            store4(row, column, sum);
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row_tiles = (rows() + TILE_M - 1u) / TILE_M;
    let tiles = row_tiles * ((N + TILE_N - 1u) / TILE_N);
    // Tiles that are computed whole; behind them come parts of the others.
    let rest = tiles % ROUND;
    let whole = select(tiles, tiles - rest, PARTS > 1u && rest <= MOST);
    // Cooperative operations may not stand behind a return: a workgroup beyond the last computes that
    // again, or with PARTS nothing.
    let number = workgroup_index(workgroup_id, num_workgroups);
    let last = whole + (tiles - whole) * PARTS - 1u;
    let is_idle = PARTS > 1u && number > last;
    let index = min(number, last);
    let part = max(index, whole) - whole;
    let is_part = PARTS > 1u && index >= whole;
    let tile = select(index, whole + part / PARTS, is_part);
    let first = select(0u, part % PARTS * STEPS / PARTS, is_part);
    let end = select(select(STEPS, (part % PARTS + 1u) * STEPS / PARTS, is_part), first, is_idle);
    let row = tile % row_tiles * TILE_M;
    let column = tile / row_tiles * TILE_N;
    let own = lane / SUBGROUP;
    let m = own / SUBGROUPS_N * (16u * FRAGMENTS_M);
    let n = own % SUBGROUPS_N * (16u * FRAGMENTS_N);

    var c00: coop_mat16x16<f32, C>;
    var c01: coop_mat16x16<f32, C>;
    var c10: coop_mat16x16<f32, C>;
    var c11: coop_mat16x16<f32, C>;
    var c20: coop_mat16x16<f32, C>;
    var c21: coop_mat16x16<f32, C>;
    var c30: coop_mat16x16<f32, C>;
    var c31: coop_mat16x16<f32, C>;
    var x: array<Half8, X_LOADS>;
    var w: array<Half8, W_LOADS>;
    for (var i = 0u; i < X_LOADS; i++) {
        let at = i * WORKGROUP + lane;
        x[i] = load_x8(min(row + at / STEP, rows() - 1u), first * STEP + at % STEP);
    }
    for (var i = 0u; i < W_LOADS; i++) {
        let at = i * WORKGROUP + lane;
        w[i] = load_w8(min(column + at / STEP, N - 1u), first * STEP + at % STEP);
    }
    for (var step = first; step < end; step++) {
        workgroupBarrier();
        for (var i = 0u; i < X_LOADS; i++) {
            let at = i * WORKGROUP + lane;
            let slot = at / STEP * PITCH + at % STEP * 2u;
            x_tile[slot] = x[i].low;
            x_tile[slot + 1u] = x[i].high;
        }
        for (var i = 0u; i < W_LOADS; i++) {
            let at = i * WORKGROUP + lane;
            let slot = at / STEP * PITCH + at % STEP * 2u;
            w_tile[slot] = w[i].low;
            w_tile[slot + 1u] = w[i].high;
        }
        workgroupBarrier();
        if step + 1u < end {
            for (var i = 0u; i < X_LOADS; i++) {
                let at = i * WORKGROUP + lane;
                x[i] = load_x8(min(row + at / STEP, rows() - 1u), (step + 1u) * STEP + at % STEP);
            }
            for (var i = 0u; i < W_LOADS; i++) {
                let at = i * WORKGROUP + lane;
                w[i] = load_w8(min(column + at / STEP, N - 1u), (step + 1u) * STEP + at % STEP);
            }
        }
        // unroll 0u 4u 8u 12u
        for (var k = 0u; k < 2u * STEP; k += 4u) {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[n * PITCH + k], PITCH);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[(n + 16u) * PITCH + k], PITCH);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[m * PITCH + k], PITCH);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[(m + 16u) * PITCH + k], PITCH);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if FRAGMENTS_M > 2u {
                let a2 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[(m + 32u) * PITCH + k], PITCH);
                c20 = coopMultiplyAdd(a2, b0, c20);
                c21 = coopMultiplyAdd(a2, b1, c21);
                let a3 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[(m + 48u) * PITCH + k], PITCH);
                c30 = coopMultiplyAdd(a3, b0, c30);
                c31 = coopMultiplyAdd(a3, b1, c31);
            }
        }
    }

    let place = own * 64u;
    let right = column + n + 16u;
    // Fragments of a part lie one behind the other, those of all subgroups together.
    let at = select(select(WHOLE, part * PART, is_part), NOTHING, is_idle);
    let next = select(0u, WORKGROUP / SUBGROUP * 64u, is_part && !is_idle);
    coopStoreT(c00, &results[place], 4u);
    finish(row + m, column + n, lane, at);
    coopStoreT(c01, &results[place], 4u);
    finish(row + m, right, lane, at + next);
    coopStoreT(c10, &results[place], 4u);
    finish(row + m + 16u, column + n, lane, at + 2u * next);
    coopStoreT(c11, &results[place], 4u);
    finish(row + m + 16u, right, lane, at + 3u * next);
    if FRAGMENTS_M > 2u {
        coopStoreT(c20, &results[place], 4u);
        finish(row + m + 32u, column + n, lane, at + 4u * next);
        coopStoreT(c21, &results[place], 4u);
        finish(row + m + 32u, right, lane, at + 5u * next);
        coopStoreT(c30, &results[place], 4u);
        finish(row + m + 48u, column + n, lane, at + 6u * next);
        coopStoreT(c31, &results[place], 4u);
        finish(row + m + 48u, right, lane, at + 7u * next);
    }
    if PARTS > 1u && is_part && !is_idle {
        if is_complete(tile - whole, lane) {
            let of_tile = (tile - whole) * PARTS * PART;
            join_parts(row + m, column + n, lane, of_tile);
            join_parts(row + m, right, lane, of_tile + next);
            join_parts(row + m + 16u, column + n, lane, of_tile + 2u * next);
            join_parts(row + m + 16u, right, lane, of_tile + 3u * next);
            if FRAGMENTS_M > 2u {
                join_parts(row + m + 32u, column + n, lane, of_tile + 4u * next);
                join_parts(row + m + 32u, right, lane, of_tile + 5u * next);
                join_parts(row + m + 48u, column + n, lane, of_tile + 6u * next);
                join_parts(row + m + 48u, right, lane, of_tile + 7u * next);
            }
        }
    }
}
