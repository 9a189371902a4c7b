// y[rows, N] = x[rows, K] * W[N, K]^T for many rows, on cooperative matrices: f16 in, f32 accumulated.
//
// A workgroup computes TILE_M rows by TILE_N outputs, a subgroup of it SIDE * FRAGMENTS_M by SIDE * 2 in
// accumulators of SIDE x SIDE. Each step brings 64 columns of both operands to workgroup memory, rounded to
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
// Constants: K, N, SIDE (16 or 8), PIECES (64 / SIDE), SPLIT (elements of workgroup memory for a vec4: 1 or
// 4), SUBGROUP, SUBGROUPS_M, SUBGROUPS_N, FRAGMENTS_M (2 or 4), PAD, PARTS, ROUND, MOST.
// Hooks: rows, load_x8, load_w8, store4, workgroup_index, and keep, kept and is_complete of parts.wgsl;
// they may call half4. The types MatrixA, MatrixB, MatrixC, Halves and Reals, with halves and result4:
// see defaults/matrices16.wgsl and defaults/fours.wgsl.
// Grid: ceil(N / TILE_N) * ceil(rows / TILE_M) workgroups; with PARTS, one for each part. Those beyond
// have nothing to do.
// Workgroup: SUBGROUP * SUBGROUPS_M * SUBGROUPS_N invocations.
// Workgroup memory: 8 * (16 + PAD) * (TILE_M + TILE_N) bytes, and 4 * SIDE * SIDE a subgroup.

const FRAGMENTS_N: u32 = 2u;
const WORKGROUP: u32 = SUBGROUP * SUBGROUPS_M * SUBGROUPS_N;
const TILE_M: u32 = SIDE * FRAGMENTS_M * SUBGROUPS_M;
const TILE_N: u32 = SIDE * FRAGMENTS_N * SUBGROUPS_N;
// vec4s of a row of an accumulator, and of all of it.
const ACROSS: u32 = SIDE / 4u;
const RESULT: u32 = SIDE * ACROSS;
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

var<workgroup> x_tile: array<Halves, TILE_M * PITCH * SPLIT>;
var<workgroup> w_tile: array<Halves, TILE_N * PITCH * SPLIT>;
// An accumulator of each subgroup.
var<workgroup> results: array<Reals, RESULT * SUBGROUPS_M * SUBGROUPS_N * SPLIT>;

// vec4s of a part.
const PART: u32 = TILE_M * TILE_N / 4u;
const WHOLE: u32 = 0xffffffffu;
const NOTHING: u32 = 0xfffffffeu;

// To be called by all, behind a store of SIDE x SIDE results whose first is at (m, n): of a tile that is WHOLE,
// of a part, which are kept from `at` on, or of NOTHING.
fn finish(m: u32, n: u32, lane: u32, at: u32) {
    workgroupBarrier();
    let own = lane / SUBGROUP * RESULT;
    for (var i = lane % SUBGROUP; i < RESULT; i += SUBGROUP) {
        let row = m + i / ACROSS;
        let column = n + i % ACROSS * 4u;
        if PARTS > 1u && at != WHOLE {
            if at != NOTHING {
                keep(at + own + i, result4(own + i));
            }
        } else if row < rows() && column < N {
            store4(row, column, result4(own + i));
        }
    }
    workgroupBarrier();
}

// What `finish` would store of a whole tile, from parts that were kept, the first from `at` on.
fn join_parts(m: u32, n: u32, lane: u32, at: u32) {
    let own = lane / SUBGROUP * RESULT;
    for (var i = lane % SUBGROUP; i < RESULT; i += SUBGROUP) {
        let row = m + i / ACROSS;
        let column = n + i % ACROSS * 4u;
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
    let m = own / SUBGROUPS_N * (SIDE * FRAGMENTS_M);
    let n = own % SUBGROUPS_N * (SIDE * FRAGMENTS_N);

    var c00: MatrixC;
    var c01: MatrixC;
    var c10: MatrixC;
    var c11: MatrixC;
    var c20: MatrixC;
    var c21: MatrixC;
    var c30: MatrixC;
    var c31: MatrixC;
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
            // unroll SPLIT
            for (var e = 0u; e < SPLIT; e++) {
                x_tile[slot * SPLIT + e] = halves(x[i].low, e);
                x_tile[(slot + 1u) * SPLIT + e] = halves(x[i].high, e);
            }
        }
        for (var i = 0u; i < W_LOADS; i++) {
            let at = i * WORKGROUP + lane;
            let slot = at / STEP * PITCH + at % STEP * 2u;
            // unroll SPLIT
            for (var e = 0u; e < SPLIT; e++) {
                w_tile[slot * SPLIT + e] = halves(w[i].low, e);
                w_tile[(slot + 1u) * SPLIT + e] = halves(w[i].high, e);
            }
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
        // unroll PIECES
        for (var piece = 0u; piece < PIECES; piece++) {
            let k = piece * ACROSS;
            let b0 = coopLoad<MatrixB>(&w_tile[(n * PITCH + k) * SPLIT], PITCH * SPLIT);
            let b1 = coopLoad<MatrixB>(&w_tile[((n + SIDE) * PITCH + k) * SPLIT], PITCH * SPLIT);
            let a0 = coopLoadT<MatrixA>(&x_tile[(m * PITCH + k) * SPLIT], PITCH * SPLIT);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let a1 = coopLoadT<MatrixA>(&x_tile[((m + SIDE) * PITCH + k) * SPLIT], PITCH * SPLIT);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if FRAGMENTS_M > 2u {
                let a2 = coopLoadT<MatrixA>(&x_tile[((m + 2u * SIDE) * PITCH + k) * SPLIT], PITCH * SPLIT);
                c20 = coopMultiplyAdd(a2, b0, c20);
                c21 = coopMultiplyAdd(a2, b1, c21);
                let a3 = coopLoadT<MatrixA>(&x_tile[((m + 3u * SIDE) * PITCH + k) * SPLIT], PITCH * SPLIT);
                c30 = coopMultiplyAdd(a3, b0, c30);
                c31 = coopMultiplyAdd(a3, b1, c31);
            }
        }
    }

    let place = own * RESULT * SPLIT;
    let right = column + n + SIDE;
    // Fragments of a part lie one behind the other, those of all subgroups together.
    let at = select(select(WHOLE, part * PART, is_part), NOTHING, is_idle);
    let next = select(0u, WORKGROUP / SUBGROUP * RESULT, is_part && !is_idle);
    coopStoreT(c00, &results[place], ACROSS * SPLIT);
    finish(row + m, column + n, lane, at);
    coopStoreT(c01, &results[place], ACROSS * SPLIT);
    finish(row + m, right, lane, at + next);
    coopStoreT(c10, &results[place], ACROSS * SPLIT);
    finish(row + m + SIDE, column + n, lane, at + 2u * next);
    coopStoreT(c11, &results[place], ACROSS * SPLIT);
    finish(row + m + SIDE, right, lane, at + 3u * next);
    if FRAGMENTS_M > 2u {
        coopStoreT(c20, &results[place], ACROSS * SPLIT);
        finish(row + m + 2u * SIDE, column + n, lane, at + 4u * next);
        coopStoreT(c21, &results[place], ACROSS * SPLIT);
        finish(row + m + 2u * SIDE, right, lane, at + 5u * next);
        coopStoreT(c30, &results[place], ACROSS * SPLIT);
        finish(row + m + 3u * SIDE, column + n, lane, at + 6u * next);
        coopStoreT(c31, &results[place], ACROSS * SPLIT);
        finish(row + m + 3u * SIDE, right, lane, at + 7u * next);
    }
    if PARTS > 1u && is_part && !is_idle {
        if is_complete(tile - whole, lane) {
            let of_tile = (tile - whole) * PARTS * PART;
            join_parts(row + m, column + n, lane, of_tile);
            join_parts(row + m, right, lane, of_tile + next);
            join_parts(row + m + SIDE, column + n, lane, of_tile + 2u * next);
            join_parts(row + m + SIDE, right, lane, of_tile + 3u * next);
            if FRAGMENTS_M > 2u {
                join_parts(row + m + 2u * SIDE, column + n, lane, of_tile + 4u * next);
                join_parts(row + m + 2u * SIDE, right, lane, of_tile + 5u * next);
                join_parts(row + m + 3u * SIDE, column + n, lane, of_tile + 6u * next);
                join_parts(row + m + 3u * SIDE, right, lane, of_tile + 7u * next);
            }
        }
    }
}
