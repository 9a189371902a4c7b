// y[rows, N] = x[rows, K] * W[N, K]^T for few rows: as linear_matvec, with subgroup reductions.
//
// The whole workgroup splits K for TILE_COLS consecutive outputs of TILE_ROWS rows. Works for every
// subgroup size and makes no assumption on which invocations form a subgroup: each subgroup leaves
// its sum in the slot of its first invocation, zeros in the others, and then sums all slots.
//
// Constants: K, K4, N, WV, GROUPS, WORKGROUP, TILE_ROWS, TILE_COLS, NORM, CENTER, EPSILON.
// Hooks: rows, load_x, norm_gain and norm_bias (with NORM), first_w, load_w, w_scale, store, workgroup_index.
// Grid: ceil(N / TILE_COLS) * ceil(rows / TILE_ROWS) workgroups.
// Workgroup memory: 4 * WORKGROUP * TILE_ROWS * TILE_COLS bytes.

const TILE: u32 = TILE_ROWS * TILE_COLS;

var<workgroup> partial: array<array<f32, WORKGROUP>, TILE>;

struct Place {
    lane: u32,
    subgroup_lane: u32,
    subgroup_size: u32,
}

fn leave_sum(slot: u32, value: f32, place: Place) {
    let sum = subgroupAdd(value);
    partial[slot][place.lane] = select(0.0, sum, place.subgroup_lane == 0u);
}

// To be called by all, a barrier behind leave_sum.
fn collect_sum(slot: u32, place: Place) -> f32 {
    var sum = 0.0;
    for (var base = 0u; base < WORKGROUP; base += place.subgroup_size) {
        let i = base + place.subgroup_lane;
        if i < WORKGROUP {
            sum += partial[slot][i];
        }
    }
    return subgroupAdd(sum);
}

fn workgroup_sum(value: f32, place: Place) -> f32 {
    leave_sum(0u, value, place);
    workgroupBarrier();
    let sum = collect_sum(0u, place);
    workgroupBarrier();
    return sum;
}

// Mean and 1 / standard deviation of a row.
fn row_stats(row: u32, place: Place) -> vec2<f32> {
    var mean = 0.0;
    if CENTER {
        var sum = 0.0;
        for (var k4 = place.lane; k4 < K4; k4 += WORKGROUP) {
            sum += dot(load_x(row, k4), vec4<f32>(1.0));
        }
        mean = workgroup_sum(sum, place) / f32(K);
    }
    var squares = 0.0;
    for (var k4 = place.lane; k4 < K4; k4 += WORKGROUP) {
        let inside = k4 * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(K);
        let d = select(vec4<f32>(0.0), load_x(row, k4) - mean, inside);
        squares += dot(d, d);
    }
    return vec2<f32>(mean, inverseSqrt(workgroup_sum(squares, place) / f32(K) + EPSILON));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_size: u32,
) {
    let row_tiles = (rows() + TILE_ROWS - 1u) / TILE_ROWS;
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let row = (tile % row_tiles) * TILE_ROWS;
    let n = (tile / row_tiles) * TILE_COLS;
    if n >= N {
        return;
    }
    let place = Place(lane, subgroup_lane, subgroup_size);

    var stats: array<vec2<f32>, TILE_ROWS>;
    if NORM {
        for (var r = 0u; r < TILE_ROWS; r++) {
            stats[r] = row_stats(min(row + r, rows() - 1u), place);
        }
    }

    var acc: array<array<f32, TILE_COLS>, TILE_ROWS>;
    for (var group = lane; group < GROUPS; group += WORKGROUP) {
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
            leave_sum(r * TILE_COLS + c, acc[r][c], place);
        }
    }
    workgroupBarrier();
    // Every subgroup holds every sum; invocation i of the workgroup stores output i.
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var c = 0u; c < TILE_COLS; c++) {
            let slot = r * TILE_COLS + c;
            let sum = collect_sum(slot, place);
            if lane == slot % WORKGROUP && n + c < N && row + r < rows() {
                store(row + r, n + c, sum);
            }
        }
    }
}
