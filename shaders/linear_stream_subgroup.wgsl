// y[rows, N] = x[rows, K] * W[N, K]^T: one row, or a few, TILE_ROWS at a time; bound by the bytes of W.
//
// A workgroup brings its rows to workgroup memory once, normalised where asked, and computes COLUMNS
// outputs of each from there; a subgroup takes TILE_COLS of them at a time, its lanes 16 bytes of a row
// of weights each (a unit), BATCH units in flight. What is fetched next is under way while the last is
// summed up, across outputs too. The first weights are fetched before the rows are there, and what the
// epilogue reads as soon as it is: where other workgroups have to finish first, they are waited for
// behind that. Of the weights of TOUCH steps more one word in 32 bytes is loaded then and forgotten
// (prefetch), for the cache that all processors share. The rows lie transposed, so that neighbouring lanes, which read UV vec4s each, find them
// in neighbouring places, whatever the weights' type. Works for every subgroup size.
//
// Constants: K, K4, N, UNITS (units of a row of weights), UV (vec4s of a unit), WORKGROUP, TILE_ROWS,
//            TILE_COLS, BATCH, COLUMNS (a multiple of TILE_COLS), TOUCH, NORM, CENTER, EPSILON.
// Hooks: rows, load_x, norm_gain and norm_bias (with NORM), Unit, fetch_unit, touch_unit, unit_weights,
//        unit_scale, Operands, operands, finish, zero, workgroup_index; await_operands and await_input,
//        which return, to all invocations, once operands and once load_x may be called.
// Grid: ceil(N / COLUMNS) * ceil(rows / TILE_ROWS) workgroups.
// Workgroup memory: TILE_ROWS * (16 * UNITS * UV + 2 * WORKGROUP) bytes.

const ROW: u32 = UNITS * UV;
// vec4s of the row that an invocation holds while it is normalised.
const HELD: u32 = (ROW + WORKGROUP - 1u) / WORKGROUP;
// Words that an invocation touches, two units apart.
const TOUCHES: u32 = (BATCH + 1u) / 2u;
// Subgroups have four invocations at the least.
const MAX_SUBGROUPS: u32 = WORKGROUP / 4u;

var<workgroup> x_rows: array<vec4<f32>, TILE_ROWS * ROW>;
var<workgroup> partial: array<f32, 2u * TILE_ROWS * MAX_SUBGROUPS>;

// To be called by all, each time with another slot: the sum over the workgroup.
fn workgroup_sum(value: f32, slot: u32, subgroup: u32, subgroups: u32) -> f32 {
    let own = subgroupAdd(value);
    partial[slot * MAX_SUBGROUPS + subgroup] = own;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < subgroups; i++) {
        sum += partial[slot * MAX_SUBGROUPS + i];
    }
    return sum;
}

// Where vec4 k4 of the workgroup's row r lies.
fn place(r: u32, k4: u32) -> u32 {
    return r * ROW + (k4 % UV) * UNITS + k4 / UV;
}

// The workgroup's row r, which is `row` of all.
fn bring_row(r: u32, row: u32, lane: u32, subgroup: u32, subgroups: u32) {
    if !NORM {
        for (var k4 = lane; k4 < ROW; k4 += WORKGROUP) {
            x_rows[place(r, k4)] = load_x(row, k4);
        }
        return;
    }
    var held: array<vec4<f32>, HELD>;
    var gain: array<vec4<f32>, HELD>;
    var bias: array<vec4<f32>, HELD>;
    var sum = 0.0;
    for (var i = 0u; i < HELD; i++) {
        let k4 = min(i * WORKGROUP + lane, ROW - 1u);
        held[i] = load_x(row, k4);
        gain[i] = norm_gain(k4);
        bias[i] = norm_bias(k4);
        if i * WORKGROUP + lane < ROW {
            sum += dot(held[i], vec4<f32>(1.0));
        }
    }
    var mean = 0.0;
    if CENTER {
        mean = workgroup_sum(sum, 2u * r, subgroup, subgroups) / f32(K);
    }
    var squares = 0.0;
    for (var i = 0u; i < HELD; i++) {
        let k = (i * WORKGROUP + lane) * 4u + vec4<u32>(0u, 1u, 2u, 3u);
        let d = select(vec4<f32>(0.0), held[i] - mean, k < vec4<u32>(K));
        squares += dot(d, d);
    }
    let rstd = inverseSqrt(workgroup_sum(squares, 2u * r + 1u, subgroup, subgroups) / f32(K) + EPSILON);
    for (var i = 0u; i < HELD; i++) {
        let k4 = i * WORKGROUP + lane;
        if k4 < ROW {
            x_rows[place(r, k4)] = (held[i] - mean) * rstd * gain[i] + bias[i];
        }
    }
}

fn is_row(row: u32) -> bool {
    return TILE_ROWS == 1u || row < rows();
}

fn tile_row(row: u32) -> u32 {
    if TILE_ROWS == 1u {
        return row;
    }
    return min(row, rows() - 1u);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let index = workgroup_index(workgroup_id, num_workgroups);
    // Rows side by side read the same weights.
    let row_tiles = (rows() + TILE_ROWS - 1u) / TILE_ROWS;
    let row = (index % row_tiles) * TILE_ROWS;
    let first = index / row_tiles * COLUMNS;
    if first >= N {
        await_input(lane);
        return;
    }
    let end = min(first + COLUMNS, N);
    let batches = (UNITS + subgroup_size * BATCH - 1u) / (subgroup_size * BATCH);
    let tiles = (end - first + TILE_COLS - 1u) / TILE_COLS;
    // Of the tiles, this subgroup has every subgroups-th.
    let steps = (tiles + subgroups - 1u - subgroup) / subgroups * batches;

    var n = first + subgroup * TILE_COLS;
    var batch = 0u;
    var units: array<array<Unit, BATCH>, TILE_COLS>;
    if steps > 0u {
        for (var c = 0u; c < TILE_COLS; c++) {
            for (var i = 0u; i < BATCH; i++) {
                units[c][i] = fetch_unit(min(n + c, N - 1u), min(i * subgroup_size + subgroup_lane, UNITS - 1u));
            }
        }
    }
    // Lane c of the subgroup finishes output c.
    await_operands(lane);
    var extra: array<Operands, TILE_ROWS>;
    if subgroup_lane < TILE_COLS {
        // unroll TILE_ROWS
        for (var r = 0u; r < TILE_ROWS; r++) {
            extra[r] = operands(tile_row(row + r), min(n + subgroup_lane, N - 1u));
        }
    }
    var touched: array<u32, max(1u, TOUCH * TILE_COLS * TOUCHES)>;
    for (var t = 0u; t < TOUCH; t++) {
        if t + 1u < steps {
            let touched_n = n + (t + 1u) / batches * subgroups * TILE_COLS;
            for (var c = 0u; c < TILE_COLS; c++) {
                for (var i = 0u; i < TOUCHES; i++) {
                    let unit = ((t + 1u) % batches * BATCH + 2u * i) * subgroup_size + 2u * subgroup_lane;
                    touched[(t * TILE_COLS + c) * TOUCHES + i] =
                        touch_unit(min(touched_n + c, N - 1u), min(unit, UNITS - 1u));
                }
            }
        }
    }
    await_input(lane);
    // unroll TILE_ROWS
    for (var r = 0u; r < TILE_ROWS; r++) {
        bring_row(r, tile_row(row + r), lane, subgroup, subgroups);
    }
    workgroupBarrier();
    if TOUCH > 0u {
        // Adds nothing, which the driver does not know: it would leave out the loads.
        var all = 0u;
        for (var i = 0u; i < TOUCH * TILE_COLS * TOUCHES; i++) {
            all |= touched[i];
        }
        n += min(all, zero());
    }

    var acc: array<array<f32, TILE_COLS>, TILE_ROWS>;
    for (var step = 0u; step < steps; step++) {
        let is_last = batch + 1u == batches;
        let next_batch = select(batch + 1u, 0u, is_last);
        let next_n = select(n, n + subgroups * TILE_COLS, is_last);
        var next: array<array<Unit, BATCH>, TILE_COLS>;
        if step + 1u < steps {
            for (var c = 0u; c < TILE_COLS; c++) {
                for (var i = 0u; i < BATCH; i++) {
                    let unit = (next_batch * BATCH + i) * subgroup_size + subgroup_lane;
                    next[c][i] = fetch_unit(min(next_n + c, N - 1u), min(unit, UNITS - 1u));
                }
            }
        }
        for (var i = 0u; i < BATCH; i++) {
            let unit = (batch * BATCH + i) * subgroup_size + subgroup_lane;
            if unit < UNITS {
                // unroll TILE_ROWS
                for (var r = 0u; r < TILE_ROWS; r++) {
                    var x: array<vec4<f32>, UV>;
                    for (var j = 0u; j < UV; j++) {
                        x[j] = x_rows[r * ROW + j * UNITS + unit];
                    }
                    for (var c = 0u; c < TILE_COLS; c++) {
                        var w = unit_weights(units[c][i]);
                        var sum = 0.0;
                        for (var j = 0u; j < UV; j++) {
                            sum += dot(w[j], x[j]);
                        }
                        acc[r][c] += sum * unit_scale(units[c][i], min(n + c, N - 1u), unit);
                    }
                }
            }
        }
        if is_last {
            // unroll TILE_ROWS
            for (var r = 0u; r < TILE_ROWS; r++) {
                var value = 0.0;
                for (var c = 0u; c < TILE_COLS; c++) {
                    let sum = subgroupAdd(acc[r][c]);
                    value = select(value, sum, subgroup_lane == c);
                    acc[r][c] = 0.0;
                }
                if subgroup_lane < TILE_COLS {
                    if n + subgroup_lane < end && is_row(row + r) {
                        finish(row + r, n + subgroup_lane, value, extra[r]);
                    }
                    extra[r] = operands(tile_row(row + r), min(next_n + subgroup_lane, N - 1u));
                }
            }
        }
        batch = next_batch;
        n = next_n;
        units = next;
    }
}
