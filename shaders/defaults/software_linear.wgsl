// Default prelude of the linear_software_* bodies, to go with those of all linear_* bodies: each invocation
// loads by itself what all invocations of a workgroup want.

// `row`, or the last one for rows beyond that.
fn tile_row(row: u32) -> u32 {
    if TILE_ROWS == 1u || ROW_SLACK {
        return row;
    }
    return min(row, rows() - 1u);
}

// XV vec4s from k4 on of TILE_ROWS rows from `row` on, the same for all invocations of a workgroup, which
// all call it together.
fn load_xs(row: u32, k4: u32, lane: u32) -> array<array<vec4<f32>, XV>, TILE_ROWS> {
    var given: array<array<vec4<f32>, XV>, TILE_ROWS>;
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var i = 0u; i < XV; i++) {
            given[r][i] = load_x(tile_row(row + r), k4 + i);
        }
    }
    return given;
}

// The scales of group g of rows n to n + 7; n is a multiple of 8.
fn w_scales(n: u32, g: u32) -> array<vec4<f32>, 2> {
    return array<vec4<f32>, 2>(
        vec4<f32>(w_scale(n, g), w_scale(n + 1u, g), w_scale(n + 2u, g), w_scale(n + 3u, g)),
        vec4<f32>(w_scale(n + 4u, g), w_scale(n + 5u, g), w_scale(n + 6u, g), w_scale(n + 7u, g)),
    );
}
