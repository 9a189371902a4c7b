// y[rows, N] = x[rows, K] * W[N, K]^T for many rows, on a CPU driver.
//
// A register tile an invocation: TILE_ROWS rows by TILE_COLS consecutive outputs, 4 steps of K at a
// time, so that TILE_ROWS + TILE_COLS loads feed 4 * TILE_ROWS * TILE_COLS multiply-adds.
// No workgroup memory, no barriers. The inner loops have constant trip counts; the driver unrolls
// them and keeps the arrays in registers.
//
// Constants: K, N, WV, GROUPS, TILE_ROWS, TILE_COLS (a multiple of 4), WORKGROUP.
// Hooks: rows, load_x, load_w4, w_scale, store4, workgroup_index.
// Grid: ceil(N / (WORKGROUP * TILE_COLS)) * ceil(rows / TILE_ROWS) workgroups.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row_tiles = (rows() + TILE_ROWS - 1u) / TILE_ROWS;
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let row = (tile % row_tiles) * TILE_ROWS;
    let n = ((tile / row_tiles) * WORKGROUP + lane) * TILE_COLS;
    if n >= N {
        return;
    }

    var acc: array<array<f32, TILE_COLS>, TILE_ROWS>;
    for (var group = 0u; group < GROUPS; group++) {
        var scale: array<f32, TILE_COLS>;
        for (var c = 0u; c < TILE_COLS; c++) {
            scale[c] = w_scale(min(n + c, N - 1u), group);
        }
        for (var i = 0u; i < WV; i++) {
            let k4 = group * WV + i;
            var w: array<vec4<f32>, TILE_COLS>;
            for (var c = 0u; c < TILE_COLS; c++) {
                w[c] = scale[c] * load_w4(min(n + c, N - 1u), k4);
            }
            for (var r = 0u; r < TILE_ROWS; r++) {
                let x = load_x(min(row + r, rows() - 1u), k4);
                for (var c = 0u; c < TILE_COLS; c++) {
                    acc[r][c] += dot(x, w[c]);
                }
            }
        }
    }

    for (var r = 0u; r < TILE_ROWS; r++) {
        if row + r < rows() {
            for (var c = 0u; c < TILE_COLS; c += 4u) {
                if n + c < N {
                    store4(row + r, n + c, vec4<f32>(acc[r][c], acc[r][c + 1u], acc[r][c + 2u], acc[r][c + 3u]));
                }
            }
        }
    }
}
