// y[rows, N] = x[rows, K] * W[N, K]^T for many rows: tiles in workgroup memory, register tiles.
//
// A workgroup computes TILE_M rows by TILE_N outputs; an invocation THREAD_M rows by THREAD_N
// consecutive outputs. Each step brings 4 * TILE_K4 columns of both operands to workgroup memory,
// dequantised, as vec4s along K, so that nothing is transposed; one vec4 of padding a row keeps the
// reads of neighbouring invocations in different banks. Weights are laid so that output
// THREAD_N * t + j is at slot j * THREADS_N + t: neighbours t read neighbouring slots.
//
// Constants: K, K4, N, WV, TILE_M, TILE_N, TILE_K4, THREAD_M, THREAD_N (a multiple of 4).
//            NORM, CENTER, EPSILON.
// Hooks: rows, load_x, norm_gain and norm_bias (with NORM), load_w4, w_scale, store4, workgroup_index.
// Grid: ceil(N / TILE_N) * ceil(rows / TILE_M) workgroups.
// Workgroup: (TILE_M / THREAD_M) * (TILE_N / THREAD_N) invocations.
// Workgroup memory: 16 * (TILE_M + TILE_N) * (TILE_K4 + 1) bytes, with NORM 4 * (WORKGROUP + 2 * TILE_M) more.

const THREADS_M: u32 = TILE_M / THREAD_M;
const THREADS_N: u32 = TILE_N / THREAD_N;
const WORKGROUP: u32 = THREADS_M * THREADS_N;
const STRIDE: u32 = TILE_K4 + 1u;

var<workgroup> x_tile: array<vec4<f32>, TILE_M * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, TILE_N * STRIDE>;
// Invocations that find the statistics of a row together.
const TEAM: u32 = WORKGROUP / TILE_M;

var<workgroup> partial: array<f32, select(1u, WORKGROUP, NORM)>;
var<workgroup> mean_of: array<f32, select(1u, TILE_M, NORM)>;
var<workgroup> rstd_of: array<f32, select(1u, TILE_M, NORM)>;

// To be called by all: the sum of a team's values.
fn team_sum(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < TEAM; i++) {
        sum += partial[lane / TEAM * TEAM + i];
    }
    workgroupBarrier();
    return sum;
}

// Mean and 1 / standard deviation of the tile's rows.
fn find_statistics(row: u32, lane: u32) {
    let m = min(row + lane / TEAM, rows() - 1u);
    var mean = 0.0;
    if CENTER {
        var sum = 0.0;
        for (var k4 = lane % TEAM; k4 < K4; k4 += TEAM) {
            sum += dot(load_x(m, k4), vec4<f32>(1.0));
        }
        mean = team_sum(lane, sum) / f32(K);
    }
    var squares = 0.0;
    for (var k4 = lane % TEAM; k4 < K4; k4 += TEAM) {
        let inside = k4 * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(K);
        let d = select(vec4<f32>(0.0), load_x(m, k4) - mean, inside);
        squares += dot(d, d);
    }
    let rstd = inverseSqrt(team_sum(lane, squares) / f32(K) + EPSILON);
    if lane % TEAM == 0u {
        mean_of[lane / TEAM] = mean;
        rstd_of[lane / TEAM] = rstd;
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
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let row = (tile % row_tiles) * TILE_M;
    let n = (tile / row_tiles) * TILE_N;
    if n >= N {
        return;
    }
    let thread_m = lane / THREADS_N;
    let thread_n = lane % THREADS_N;

    if NORM {
        find_statistics(row, lane);
    }
    var acc: array<array<f32, THREAD_N>, THREAD_M>;
    for (var step = 0u; step < K4; step += TILE_K4) {
        for (var i = lane; i < TILE_M * TILE_K4; i += WORKGROUP) {
            let m = i / TILE_K4;
            let k4 = step + i % TILE_K4;
            var v = vec4<f32>(0.0);
            if k4 < K4 {
                v = load_x(min(row + m, rows() - 1u), k4);
                if NORM {
                    v = (v - mean_of[m]) * rstd_of[m] * norm_gain(k4) + norm_bias(k4);
                }
            }
            x_tile[m * STRIDE + i % TILE_K4] = v;
        }
        for (var i = lane; i < TILE_N * TILE_K4; i += WORKGROUP) {
            let c = i / TILE_K4;
            let k4 = step + i % TILE_K4;
            let column = min(n + c, N - 1u);
            var v = vec4<f32>(0.0);
            if k4 < K4 {
                v = load_w4(column, k4) * w_scale(column, k4 / WV);
            }
            let slot = (c % THREAD_N) * THREADS_N + c / THREAD_N;
            w_tile[slot * STRIDE + i % TILE_K4] = v;
        }
        workgroupBarrier();
        for (var k4 = 0u; k4 < TILE_K4; k4++) {
            var w: array<vec4<f32>, THREAD_N>;
            for (var c = 0u; c < THREAD_N; c++) {
                w[c] = w_tile[(c * THREADS_N + thread_n) * STRIDE + k4];
            }
            for (var r = 0u; r < THREAD_M; r++) {
                let x = x_tile[(thread_m * THREAD_M + r) * STRIDE + k4];
                for (var c = 0u; c < THREAD_N; c++) {
                    acc[r][c] += dot(x, w[c]);
                }
            }
        }
        workgroupBarrier();
    }

    for (var r = 0u; r < THREAD_M; r++) {
        let m = row + thread_m * THREAD_M + r;
        if m < rows() {
            for (var c = 0u; c < THREAD_N; c += 4u) {
                let column = n + thread_n * THREAD_N + c;
                if column < N {
                    store4(m, column, vec4<f32>(acc[r][c], acc[r][c + 1u], acc[r][c + 2u], acc[r][c + 3u]));
                }
            }
        }
    }
}
