// e^(x - max) / sum along an axis: as softmax, one workgroup for each position of the other axes.
// For long axes on a GPU. Each lane has the largest element and the sum of its share, and a tree
// brings them together.
//
// Constants: WORKGROUP (a power of two).
// Hooks: count (positions), extent (length of the axis), load(i, j), store(i, j, v), workgroup_index.
// Grid: count workgroups.

struct Share {
    top: f32,
    // Relative to `top`.
    total: f32,
}

var<workgroup> shares: array<Share, WORKGROUP>;

fn join(a: Share, b: Share) -> Share {
    let least = exp(-abs(a.top - b.top));
    if a.top > b.top {
        return Share(a.top, a.total + b.total * least);
    }
    return Share(b.top, a.total * least + b.total);
}

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
    // A lane without elements has any one, and nothing of the sum.
    var share = Share(load(i, min(lane, extent() - 1u)), 0.0);
    for (var j = lane; j < extent(); j += WORKGROUP) {
        share = join(share, Share(load(i, j), 1.0));
    }
    shares[lane] = share;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            shares[lane] = join(shares[lane], shares[lane + half]);
        }
        workgroupBarrier();
    }
    let whole = shares[0];
    for (var j = lane; j < extent(); j += WORKGROUP) {
        store(i, j, exp(load(i, j) - whole.top) / whole.total);
    }
}
