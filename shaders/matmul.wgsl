// A batched matrix product of operands in any layout, one invocation an element: for products that
// no other kernel covers.
//
// Constants: WORKGROUP.
// Hooks: count (elements of the result), inner (length of the contracted axis), load_a(i, k) and
// load_b(i, k) (the factors for element i), store(i, v), workgroup_index.
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
    var sum = 0.0;
    for (var k = 0u; k < inner(); k++) {
        sum += load_a(i, k) * load_b(i, k);
    }
    store(i, sum);
}
