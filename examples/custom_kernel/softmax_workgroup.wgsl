// softmax.wgsl with a workgroup for each position: every lane keeps the greatest
// element and the sum of its share, and a tree brings them together.
//
// Constants: WORKGROUP (a power of two).
// Hooks: count, extent, load(i, j), store(i, j, v), workgroup_index.
// Grid: count workgroups.

// Below every score, and finite: WGSL lets a driver assume that there is no
// infinity.
const LOWEST: f32 = -1e30;

struct Share {
    top: f32,
    total: f32,
}

var<workgroup> shares: array<Share, WORKGROUP>;

fn join(a: Share, b: Share) -> Share {
    let top = max(a.top, b.top);
    return Share(top, a.total * exp(a.top - top) + b.total * exp(b.top - top));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // The same for the whole workgroup, so that barriers may follow.
    let i = workgroup_index(workgroup_id, num_workgroups);
    if i >= count() {
        return;
    }
    var share = Share(LOWEST, 0.0);
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
