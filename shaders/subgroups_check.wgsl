// Whether subgroups have SUBGROUP invocations each, which follow one another in their workgroup: an adapter
// that has several sizes says only by running which of them a kernel gets. Leaves 1 in every word if it is so.
//
// Constants: WORKGROUP, a multiple of SUBGROUP.
// Hooks: verdicts.
// Grid: one workgroup.

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) own: u32,
    @builtin(subgroup_size) size: u32,
) {
    let first = subgroupBroadcastFirst(lane);
    // No lane further away: of a smaller subgroup it would not be there.
    let neighbour = subgroupShuffleXor(lane, 1u);
    let in_order = own == lane % SUBGROUP && first == lane - lane % SUBGROUP;
    let right = size == SUBGROUP && in_order && neighbour == (lane ^ 1u);
    verdicts[lane] = u32(right);
}
