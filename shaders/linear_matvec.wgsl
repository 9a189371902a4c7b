// y[rows, N] = x[rows, K] * W[N, K]^T for few rows: bound by the bytes of W.
//
// A workgroup is LANES_N teams of LANES_K invocations. A team takes TILE_COLS consecutive outputs of
// TILE_ROWS rows and splits K: its lanes read neighbouring weight groups, 16 bytes a load, with
// TILE_COLS loads in flight, then sum up in workgroup memory by a tree. With NORM, the statistics of
// each row are computed first, by the whole workgroup: mean, then variance of x - mean.
//
// Constants: K, K4, N, WV, GROUPS, LANES_K and LANES_N (powers of two), TILE_ROWS, TILE_COLS,
//            NORM, CENTER, EPSILON.
// Hooks: rows, load_x, norm_gain and norm_bias (with NORM), first_w, load_w, w_scale, store, workgroup_index.
// Grid: ceil(N / (LANES_N * TILE_COLS)) * ceil(rows / TILE_ROWS) workgroups.
// Workgroup memory: 4 * LANES_K * LANES_N * TILE_COLS bytes.

const WORKGROUP: u32 = LANES_K * LANES_N;

var<workgroup> partial: array<f32, WORKGROUP * TILE_COLS>;

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

// Mean and 1 / standard deviation of a row.
fn row_stats(row: u32, lane: u32) -> vec2<f32> {
    var mean = 0.0;
    if CENTER {
        var sum = 0.0;
        for (var k4 = lane; k4 < K4; k4 += WORKGROUP) {
            sum += dot(load_x(row, k4), vec4<f32>(1.0));
        }
        mean = workgroup_sum(lane, sum) / f32(K);
    }
    var squares = 0.0;
    for (var k4 = lane; k4 < K4; k4 += WORKGROUP) {
        let inside = k4 * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(K);
        let d = select(vec4<f32>(0.0), load_x(row, k4) - mean, inside);
        squares += dot(d, d);
    }
    return vec2<f32>(mean, inverseSqrt(workgroup_sum(lane, squares) / f32(K) + EPSILON));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row_tiles = (rows() + TILE_ROWS - 1u) / TILE_ROWS;
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let row = (tile % row_tiles) * TILE_ROWS;
    let first = (tile / row_tiles) * (LANES_N * TILE_COLS);
    if first >= N {
        return;
    }
    let team = lane / LANES_K;
    let lane_k = lane % LANES_K;
    let n = first + team * TILE_COLS;

    var stats: array<vec2<f32>, TILE_ROWS>;
    if NORM {
        for (var r = 0u; r < TILE_ROWS; r++) {
            stats[r] = row_stats(min(row + r, rows() - 1u), lane);
        }
    }

    var acc: array<array<f32, TILE_COLS>, TILE_ROWS>;
    for (var group = lane_k; group < GROUPS; group += LANES_K) {
        var x: array<array<vec4<f32>, WV>, TILE_ROWS>;
        for (var r = 0u; r < TILE_ROWS; r++) {
            for (var i = 0u; i < WV; i++) {
                let k4 = group * WV + i;
                x[r][i] = load_x(min(row + r, rows() - 1u), k4);
                if NORM {
                    x[r][i] = (x[r][i] - stats[r].x) * stats[r].y * norm_gain(k4) + norm_bias(k4);
                }
            }
        }
        for (var c = 0u; c < TILE_COLS; c++) {
            let column = min(n + c, N - 1u);
            var w = load_w(first_w(column, group), column, group);
            let scale = w_scale(column, group);
            for (var r = 0u; r < TILE_ROWS; r++) {
                var sum = 0.0;
                for (var i = 0u; i < WV; i++) {
                    sum += dot(w[i], x[r][i]);
                }
                acc[r][c] += scale * sum;
            }
        }
    }

    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var c = 0u; c < TILE_COLS; c++) {
            partial[c * WORKGROUP + lane] = acc[r][c];
        }
        workgroupBarrier();
        for (var half = LANES_K / 2u; half > 0u; half /= 2u) {
            if lane_k < half {
                for (var c = 0u; c < TILE_COLS; c++) {
                    partial[c * WORKGROUP + lane] += partial[c * WORKGROUP + lane + half];
                }
            }
            workgroupBarrier();
        }
        for (var c = lane_k; c < TILE_COLS; c += LANES_K) {
            if n + c < N && row + r < rows() {
                store(row + r, n + c, partial[c * WORKGROUP + team * LANES_K]);
            }
        }
        workgroupBarrier();
    }
}
