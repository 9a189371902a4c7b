// Whether the invocations of a workgroup are the lanes of a subgroup, in their order, so that all get by a
// broadcast from lane i what invocation i has. Leaves 1 in every word if they are.
//
// Constants: none.
// Hooks: verdicts.
// Grid: one workgroup.

@compute @workgroup_size(8)
fn main(@builtin(local_invocation_index) lane: u32) {
    let low = vec4<u32>(
        subgroupBroadcast(lane, 0u),
        subgroupBroadcast(lane, 1u),
        subgroupBroadcast(lane, 2u),
        subgroupBroadcast(lane, 3u),
    );
    let high = vec4<u32>(
        subgroupBroadcast(lane, 4u),
        subgroupBroadcast(lane, 5u),
        subgroupBroadcast(lane, 6u),
        subgroupBroadcast(lane, 7u),
    );
    let right = all(low == vec4<u32>(0u, 1u, 2u, 3u)) & all(high == vec4<u32>(4u, 5u, 6u, 7u));
    verdicts[lane] = u32(right);
}
