// Layer norm or RMS norm of each row, on a CPU driver: one invocation a row, no barriers.
// The variance is that of x - mean, in a second pass over the row.
//
// Constants: K, EPSILON, CENTER (true: layer norm; false: RMS norm), WORKGROUP.
// Hooks: rows, load_x, store_norm4, workgroup_index.
// Grid: ceil(rows / WORKGROUP) workgroups.

const K4: u32 = (K + 3u) / 4u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup_index(workgroup_id, num_workgroups) * WORKGROUP + lane;
    if row >= rows() {
        return;
    }
    var mean = 0.0;
    if CENTER {
        var sum = vec4<f32>(0.0);
        for (var k4 = 0u; k4 < K4; k4++) {
            sum += load_x(row, k4);
        }
        mean = (sum.x + sum.y + sum.z + sum.w) / f32(K);
    }
    var squares = vec4<f32>(0.0);
    for (var k4 = 0u; k4 < K4; k4++) {
        let d = load_x(row, k4) - mean;
        squares += select(vec4<f32>(0.0), d * d, k4 * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(K));
    }
    let rstd = inverseSqrt((squares.x + squares.y + squares.z + squares.w) / f32(K) + EPSILON);
    for (var k4 = 0u; k4 < K4; k4++) {
        store_norm4(row, k4, (load_x(row, k4) - mean) * rstd);
    }
}
