// y[rows, N] = x[rows, K] * W[N, K]^T for few rows, on a CPU driver.
//
// There a load costs far more than the arithmetic that uses it, and costs the same whether its
// address is uniform or not, whether it brings 4 bytes or 16. So every invocation takes TILE_COLS
// consecutive outputs of TILE_ROWS rows, walks K one weight group (WV vec4s, loaded 16 bytes at a
// time) after another, and has each activation once for all its outputs.
// No barriers in the loop over K.
//
// Constants: K, N, WV, AHEAD, XV (WV), GROUPS, TILE_ROWS, TILE_COLS (8), WORKGROUP, ROW_SLACK
//            (see linear_software_tile). Rows of weights are padded to a multiple of TILE_COLS.
// Hooks: rows, load_xs, Element, first_w, load_w, w_scales, store4, when_stored, workgroup_index.
// Grid: ceil(N / (WORKGROUP * TILE_COLS)) * ceil(rows / TILE_ROWS) workgroups.

// The outputs of the last invocation that has some.
const LAST: u32 = (N - 1u) / TILE_COLS * TILE_COLS;

// The outputs from n on of the rows from `row` on.
fn multiply(row: u32, n: u32, lane: u32) {
    // Beyond the last outputs all invocations go on, for what they load for each other.
    let stored = min(n, LAST);
    var acc: array<array<f32, TILE_COLS>, TILE_ROWS>;
    for (var group = 0u; group < GROUPS; group++) {
        var x = load_xs(row, group * WV, lane);
        // Each cache line of a step's weights is asked for before the first is waited for: a processor
        // does not look as far ahead as the unpacking of one output is long. The scales lie behind them
        // and are loaded behind them: the other way round it takes longer.
        var firsts: array<Element, TILE_COLS>;
        // unroll TILE_COLS
        for (var c = 0u; c < TILE_COLS; c++) {
            if AHEAD {
                firsts[c] = first_w(stored + c, group);
            }
        }
        var scales = w_scales(stored, group);
        // unroll TILE_COLS
        for (var c = 0u; c < TILE_COLS; c++) {
            var first = firsts[c];
            if !AHEAD {
                first = first_w(stored + c, group);
            }
            var w = load_w(first, stored + c, group);
            let scale = scales[c / 4u][c % 4u];
            for (var r = 0u; r < TILE_ROWS; r++) {
                var sum = vec4<f32>(0.0);
                for (var i = 0u; i < WV; i++) {
                    sum += w[i] * x[r][i];
                }
                acc[r][c] += scale * (sum.x + sum.y + sum.z + sum.w);
            }
        }
    }

    // The epilogue is there once, for the first row, and the others move up: written out for each row it
    // takes the driver seconds to compile, and an array that a variable indexes lies in memory.
    let last = min(row + TILE_ROWS, rows());
    for (var r = row; r < last; r++) {
        for (var c = 0u; c < TILE_COLS; c += 4u) {
            if n + c < N {
                store4(r, n + c, vec4<f32>(acc[0][c], acc[0][c + 1u], acc[0][c + 2u], acc[0][c + 3u]));
            }
        }
        for (var next = 1u; next < TILE_ROWS; next++) {
            acc[next - 1u] = acc[next];
        }
    }
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
    let first = (tile / row_tiles) * WORKGROUP * TILE_COLS;
    if first < N {
        multiply(row, first + lane * TILE_COLS, lane);
    }
    when_stored(lane, num_workgroups);
}
