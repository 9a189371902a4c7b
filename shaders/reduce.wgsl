// A reduction along an axis, one invocation for each position of the other axes.
//
// Constants: WORKGROUP.
// Hooks: count (positions), extent (length of the axis), load(i, j), combine(a, b), store(i, v),
// workgroup_index. `store` finishes a mean.
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
    var value = load(i, 0u);
    for (var j = 1u; j < extent(); j++) {
        value = combine(value, load(i, j));
    }
    store(i, value);
}
