// Default prelude, part 1: what every kernel has.
// The symbols of a launch come as one uniform; a plan may add fields behind these.

struct Symbols {
    batch: u32,
    seq: u32,
    past: u32,
    row0: u32,
}

@group(0) @binding(0) var<uniform> sym: Symbols;

// The linear index of a workgroup: grids are folded to stay under 65,535 in each dimension, so an
// index may lie beyond the last tile, and bodies return then.
fn workgroup_index(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.x + id.y * count.x + id.z * count.x * count.y;
}
