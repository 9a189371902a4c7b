// A reduction along an axis by an associative and commutative function: as reduce, one workgroup for
// each position of the other axes. For long axes on a GPU.
//
// Constants: WORKGROUP (a power of two), IDENTITY (f32, of the function).
// Hooks: count (positions), extent (length of the axis), load(i, j), combine(a, b), store(i, v),
// workgroup_index. `store` finishes a mean.
// Grid: count workgroups.

var<workgroup> partial: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(workgroup_id, num_workgroups);
    if i >= count() {
        return;
    }
    var value = IDENTITY;
    for (var j = lane; j < extent(); j += WORKGROUP) {
        value = combine(value, load(i, j));
    }
    partial[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[lane] = combine(partial[lane], partial[lane + half]);
        }
        workgroupBarrier();
    }
    if lane == 0u {
        store(i, partial[0]);
    }
}
