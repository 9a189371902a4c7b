// One invocation computes one element.
//
// Constants: WORKGROUP.
// Hooks: count, compute, workgroup_index.
// Grid: ceil(count / WORKGROUP) workgroups.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(workgroup_id, num_workgroups) * WORKGROUP + lane;
    if i < count() {
        compute(i);
    }
}
