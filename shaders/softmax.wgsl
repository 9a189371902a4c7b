// e^(x - max) / sum along an axis, one invocation for each position of the other axes, in two
// readings: the sum is relative to the largest element so far, and scaled where a larger one comes
// (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018).
//
// Constants: WORKGROUP.
// Hooks: count (positions), extent (length of the axis), load(i, j), store(i, j, v), workgroup_index.
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
        let least = exp(-abs(v - top));
        total = select(total + least, total * least + 1.0, v > top);
        top = max(top, v);
    }
    for (var j = 0u; j < extent(); j++) {
        store(i, j, exp(load(i, j) - top) / total);
    }
}
