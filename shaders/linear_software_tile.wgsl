// y[rows, N] = x[rows, K] * W[N, K]^T for many rows, on a CPU driver.
//
// A register tile an invocation: TILE_ROWS rows by TILE_COLS consecutive outputs, 4 steps of K at a
// time, so that TILE_ROWS + TILE_COLS loads feed 4 * TILE_ROWS * TILE_COLS multiply-adds.
// No barriers in the loop over K. The inner loops have constant trip counts; the driver unrolls
// them and keeps the arrays in registers. Clamped indices cost a tenth of the time, because the
// addresses of a tile then have no common base; so they are clamped only where they can be out of
// range, and unscaled weights have one loop over K instead of two.
//
// Constants: K, N, WV, GROUPS, SCALED, TILE_ROWS, TILE_COLS (a multiple of 8), WORKGROUP, ROW_SLACK
//            (load_x may be called for up to TILE_ROWS - 1 rows beyond the last; what it gives is not
//            used). Rows of weights are padded to a multiple of TILE_COLS.
// Hooks: rows, load_xs, load_w4, w_scales, store4, workgroup_index.
// Grid: ceil(N / (WORKGROUP * TILE_COLS)) * ceil(rows / TILE_ROWS) workgroups.

// vec4s of a row of weights under one scale.
const SPAN: u32 = select(GROUPS * WV, WV, SCALED);

// The outputs of the last invocation that has some.
const LAST: u32 = (N - 1u) / TILE_COLS * TILE_COLS;

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
    if first >= N {
        return;
    }
    let n = first + lane * TILE_COLS;
    // Beyond the last outputs all invocations go on, for what they load for each other.
    let stored = min(n, LAST);

    var acc: array<array<f32, TILE_COLS>, TILE_ROWS>;
    for (var span = 0u; span < GROUPS * WV / SPAN; span++) {
        var scale: array<f32, TILE_COLS>;
        for (var first = 0u; first < TILE_COLS; first += 8u) {
            var scales = w_scales(stored + first, span);
            for (var c = 0u; c < 8u; c++) {
                scale[first + c] = scales[c / 4u][c % 4u];
            }
        }
        for (var i = 0u; i < SPAN; i++) {
            let k4 = span * SPAN + i;
            var w: array<vec4<f32>, TILE_COLS>;
            for (var c = 0u; c < TILE_COLS; c++) {
                w[c] = scale[c] * load_w4(stored + c, k4);
            }
            let x = load_xs(row, k4, lane);
            // unroll TILE_ROWS
            for (var r = 0u; r < TILE_ROWS; r++) {
                for (var c = 0u; c < TILE_COLS; c++) {
                    acc[r][c] += dot(x[r][0], w[c]);
                }
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
