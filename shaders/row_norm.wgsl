// Layer norm or RMS norm of each row: one workgroup a row, tree reductions in workgroup memory.
// The variance is that of x - mean, in a second pass over the row.
//
// Constants: K, EPSILON, CENTER (true: layer norm; false: RMS norm), WORKGROUP (a power of two).
// Hooks: rows, load_x, store_norm4, workgroup_index.
// Grid: rows workgroups.

const K4: u32 = (K + 3u) / 4u;

var<workgroup> partial: array<f32, WORKGROUP>;

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

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup_index(workgroup_id, num_workgroups);
    if row >= rows() {
        return;
    }
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
    let rstd = inverseSqrt(workgroup_sum(lane, squares) / f32(K) + EPSILON);
    for (var k4 = lane; k4 < K4; k4 += WORKGROUP) {
        store_norm4(row, k4, (load_x(row, k4) - mean) * rstd);
    }
}
