// e^(x - max) / sum along an axis as one writes it down: a reading for the largest
// element, one for the sum, and one for the result.
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
    for (var j = 1u; j < extent(); j++) {
        top = max(top, load(i, j));
    }
    var total = 0.0;
    for (var j = 0u; j < extent(); j++) {
        total += exp(load(i, j) - top);
    }
    for (var j = 0u; j < extent(); j++) {
        store(i, j, exp(load(i, j) - top) / total);
    }
}
