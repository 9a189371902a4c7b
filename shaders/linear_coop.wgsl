// y[rows, N] = x[rows, K] * W[N, K]^T for many rows, on cooperative matrices: f16 in, f32 accumulated.
//
// A workgroup computes TILE_M rows by TILE_N outputs, a subgroup of it 16 * FRAGMENTS_M by 32 in
// accumulators of 16x16. Each step brings 64 columns of both operands to workgroup memory, rounded to
// f16, and the next step's to registers while the last are multiplied. Rows in workgroup memory are
// longer than that by 16 bytes, so that those of a matrix lie in different banks. Finished
// accumulators pass through workgroup memory to the epilogue.
//
// Accumulators have names, not places in an array: an array that a loop indexes lies in memory. The
// products of a step are written out: the driver loads what is multiplied next meanwhile, which it does
// not in a loop.
// Subgroups must have SUBGROUP invocations: the tier that has this body asks for it.
//
// Constants: K, N, SUBGROUP, SUBGROUPS_M, SUBGROUPS_N, FRAGMENTS_M (2 or 4).
// Hooks: rows, load_x8, load_w8, store4, workgroup_index; they may call half4.
// Grid: ceil(N / TILE_N) * ceil(rows / TILE_M) workgroups.
// Workgroup: SUBGROUP * SUBGROUPS_M * SUBGROUPS_N invocations.
// Workgroup memory: 144 * (TILE_M + TILE_N) bytes, and 1,024 a subgroup.

const FRAGMENTS_N: u32 = 2u;
const WORKGROUP: u32 = SUBGROUP * SUBGROUPS_M * SUBGROUPS_N;
const TILE_M: u32 = 16u * FRAGMENTS_M * SUBGROUPS_M;
const TILE_N: u32 = 16u * FRAGMENTS_N * SUBGROUPS_N;
// Columns of a step in eights, and the length of a row in workgroup memory in vec4s.
const STEP: u32 = 8u;
const PITCH: u32 = 2u * STEP + 2u;
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

// To be called by all, behind a store of 16x16 results whose first is at (m, n).
fn finish(m: u32, n: u32, lane: u32) {
    workgroupBarrier();
    let own = lane / SUBGROUP * 64u;
    for (var at = lane % SUBGROUP; at < 64u; at += SUBGROUP) {
        let row = m + at / 4u;
        let column = n + at % 4u * 4u;
        if row < rows() && column < N {
            store4(row, column, results[own + at]);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row_tiles = (rows() + TILE_M - 1u) / TILE_M;
    let tiles = row_tiles * ((N + TILE_N - 1u) / TILE_N);
    // A workgroup beyond the last tile computes that again: cooperative operations may not stand
    // behind a return.
    let tile = min(workgroup_index(workgroup_id, num_workgroups), tiles - 1u);
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
        x[i] = load_x8(min(row + at / STEP, rows() - 1u), at % STEP);
    }
    for (var i = 0u; i < W_LOADS; i++) {
        let at = i * WORKGROUP + lane;
        w[i] = load_w8(min(column + at / STEP, N - 1u), at % STEP);
    }
    for (var step = 0u; step < STEPS; step++) {
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
        if step + 1u < STEPS {
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
    let last = column + n + 16u;
    coopStoreT(c00, &results[place], 4u);
    finish(row + m, column + n, lane);
    coopStoreT(c01, &results[place], 4u);
    finish(row + m, last, lane);
    coopStoreT(c10, &results[place], 4u);
    finish(row + m + 16u, column + n, lane);
    coopStoreT(c11, &results[place], 4u);
    finish(row + m + 16u, last, lane);
    if FRAGMENTS_M > 2u {
        coopStoreT(c20, &results[place], 4u);
        finish(row + m + 32u, column + n, lane);
        coopStoreT(c21, &results[place], 4u);
        finish(row + m + 32u, last, lane);
        coopStoreT(c30, &results[place], 4u);
        finish(row + m + 48u, column + n, lane);
        coopStoreT(c31, &results[place], 4u);
        finish(row + m + 48u, last, lane);
    }
}
