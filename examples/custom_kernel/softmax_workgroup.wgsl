// softmax.wgsl with a workgroup for each position: every lane reads its share, and a
// tree brings the shares together, once for the largest element and once for the sum.
//
// Constants: WORKGROUP (a power of two).
// Hooks: count, extent, load(i, j), store(i, j, v), workgroup_index.
// Grid: count workgroups.

// Below every score, and finite: WGSL lets a driver assume that there is no
// infinity.
const LOWEST: f32 = -1e30;

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
    var top = LOWEST;
    for (var j = lane; j < extent(); j += WORKGROUP) {
        top = max(top, load(i, j));
    }
    partial[lane] = top;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[lane] = max(partial[lane], partial[lane + half]);
        }
        workgroupBarrier();
    }
    top = partial[0];
    workgroupBarrier();

    var total = 0.0;
    for (var j = lane; j < extent(); j += WORKGROUP) {
        let v = load(i, j);
        total += select(0.0, exp(v - top), v > LOWEST);
    }
    partial[lane] = total;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    let norm = 1.0 / max(partial[0], 1e-30);

    for (var j = lane; j < extent(); j += WORKGROUP) {
        let v = load(i, j);
        store(i, j, select(0.0, exp(v - top) * norm, v > LOWEST));
    }
}
