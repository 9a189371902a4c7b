// Default prelude of attention_software_wide, to go with that of all attention_* bodies: lanes add up
// through workgroup memory.

// The sums over the invocations of a workgroup, which all call this together.
var<workgroup> lane_parts: array<array<f32, TILE_QUERIES>, WORKGROUP>;
fn over_lanes(part: array<f32, TILE_QUERIES>, lane: u32) -> array<f32, TILE_QUERIES> {
    lane_parts[lane] = part;
    workgroupBarrier();
    var sums: array<f32, TILE_QUERIES>;
    for (var p = 0u; p < WORKGROUP; p++) {
        for (var t = 0u; t < TILE_QUERIES; t++) {
            sums[t] += lane_parts[p][t];
        }
    }
    workgroupBarrier();
    return sums;
}
