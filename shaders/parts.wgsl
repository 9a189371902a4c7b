// Parts of what a tile sums up (split-K, split-KV), each for a workgroup of its own, on a GPU: each keeps its sums, and who
// keeps the last of a tile adds them up, in the order of the parts, so that sums do not depend on who
// that is. Nobody waits for anybody.
//
// Workgroups count themselves in arrived[tile] when their sums are kept. Who completes the count sets it
// to 0, for the next launch. That it finds what others have kept rests on `parts` being coherent, and on
// the driver ordering it before the count, which no API promises.
//
// Constants: PARTS. Bindings: parts, arrived.

var<workgroup> is_last: u32;

fn keep(at: u32, v: vec4<f32>) {
    parts[at] = v;
}

fn kept(at: u32) -> vec4<f32> {
    return parts[at];
}

// To be called by all, behind what they kept: whether all parts of a tile are.
fn is_complete(tile: u32, lane: u32) -> bool {
    // What all of the workgroup kept goes ahead of what lane 0 says.
    storageBarrier();
    if lane == 0u {
        is_last = u32(atomicAdd(&arrived[tile], 1u) + 1u == PARTS);
        if is_last == 1u {
            atomicStore(&arrived[tile], 0u);
        }
    }
    return workgroupUniformLoad(&is_last) == 1u;
}
