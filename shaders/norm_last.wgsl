// Layer norm or RMS norm of the rows that a launch leaves, on a CPU driver: by the workgroup of it that is
// done last, in place of a launch of its own, which would cost more than the norm.
//
// Workgroups count themselves in done[0] when their part of the rows is stored. Who completes the count
// sets it to 0, for the next launch, and finds all of the rows: nobody waits for anybody. No memory is
// asked to be coherent across workgroups, for a CPU's is.
// The variance is that of x - mean, in a second pass over the row.
//
// To be called by all invocations of every workgroup.
//
// Constants: NORM_K (a multiple of 4), NORM_EPSILON, NORM_CENTER (true: layer norm; false: RMS norm),
//            WORKGROUP.
// Hooks: rows, load_stored, store_norm4. Bindings: done.

const NORM_K4: u32 = NORM_K / 4u;

var<workgroup> is_last: u32;
var<workgroup> norm_parts: array<f32, WORKGROUP>;

// The sum of what all invocations give.
fn norm_sum(lane: u32, part: vec4<f32>) -> f32 {
    norm_parts[lane] = part.x + part.y + part.z + part.w;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < WORKGROUP; i++) {
        sum += norm_parts[i];
    }
    workgroupBarrier();
    return sum;
}

fn norm_last(lane: u32, count: vec3<u32>) {
    storageBarrier();
    if lane == 0u {
        is_last = u32(atomicAdd(&done[0], 1u) + 1u == count.x * count.y * count.z);
        if is_last == 1u {
            atomicStore(&done[0], 0u);
        }
    }
    if workgroupUniformLoad(&is_last) == 0u {
        return;
    }
    for (var row = 0u; row < rows(); row++) {
        var mean = 0.0;
        if NORM_CENTER {
            var sum = vec4<f32>(0.0);
            for (var k4 = lane; k4 < NORM_K4; k4 += WORKGROUP) {
                sum += load_stored(row, k4);
            }
            mean = norm_sum(lane, sum) / f32(NORM_K);
        }
        var squares = vec4<f32>(0.0);
        for (var k4 = lane; k4 < NORM_K4; k4 += WORKGROUP) {
            let d = load_stored(row, k4) - mean;
            squares += d * d;
        }
        let rstd = inverseSqrt(norm_sum(lane, squares) / f32(NORM_K) + NORM_EPSILON);
        for (var k4 = lane; k4 < NORM_K4; k4 += WORKGROUP) {
            store_norm4(row, k4, (load_stored(row, k4) - mean) * rstd);
        }
    }
}
