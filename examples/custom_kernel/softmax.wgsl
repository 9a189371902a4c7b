// e^(x - max) / sum along an axis in two readings of it instead of three: the
// sum is kept relative to the greatest element so far, and scaled when a greater
// one comes (Milakov and Gimelshein, 2018).
//
// Constants: WORKGROUP.
// Hooks: count, extent, load(i, j), store(i, j, v), workgroup_index.
// Grid: ceil(count / WORKGROUP) workgroups.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(workgroup_id, num_workgroups) * WORKGROUP + lane;
    if i >= count() {
        return;
    }
    var top = load(i, 0u);
    var total = 1.0;
    for (var j = 1u; j < extent(); j++) {
        let v = load(i, j);
        let greater = max(top, v);
        total = total * exp(top - greater) + exp(v - greater);
        top = greater;
    }
    for (var j = 0u; j < extent(); j++) {
        store(i, j, exp(load(i, j) - top) / total);
    }
}
