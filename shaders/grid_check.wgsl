// Checks a driver's barriers across a grid: each round every invocation writes a word, and behind a
// barrier reads that of an invocation of another workgroup. Leaves 1 in every word if all was right.
//
// The words are bound twice, as the buffers of joined launches are: plainly and as the barriers' state,
// the first two of them. The third counts workgroups that are done.
//
// Constants: WORKGROUP, ROUNDS; GRID and PATIENCE of grid.wgsl.
// Hooks: words, grid_state; grid_begin, grid_arrive and grid_wait of grid.wgsl.
// Grid: GRID workgroups.

const STATES: u32 = 3u;

fn word_of(round: u32, workgroup: u32, lane: u32) -> u32 {
    return round * 0x10001u + workgroup * 977u + lane * 31u;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    grid_begin(lane);
    let own = STATES + workgroup_id.x * WORKGROUP + lane;
    var is_right = true;
    for (var round = 0u; round < ROUNDS; round++) {
        words[own] = word_of(round, workgroup_id.x, lane);
        grid_arrive(lane);
        grid_wait(lane);
        let workgroup = (workgroup_id.x + 1u + round * 5u) % GRID;
        let neighbour = (lane + round) % WORKGROUP;
        let found = words[STATES + workgroup * WORKGROUP + neighbour];
        is_right = is_right && found == word_of(round, workgroup, neighbour);
        // Before it is written again.
        grid_arrive(lane);
        grid_wait(lane);
    }
    let is_stalled = atomicLoad(&grid_state[1]) != 0u;
    words[own] = select(0u, 1u, is_right && !is_stalled);
    grid_arrive(lane);
    grid_wait(lane);
    if lane == 0u && atomicAdd(&grid_state[2], 1u) == GRID - 1u && !is_stalled {
        atomicStore(&grid_state[0], 1u);
        atomicStore(&grid_state[1], 1u);
        atomicStore(&grid_state[2], 1u);
    }
}
