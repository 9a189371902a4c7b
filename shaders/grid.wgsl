// A barrier across the grid of a launch, in two halves: what is done between them waits for nobody.
//
// A workgroup arrives, and later waits until all have arrived; what any of them wrote before it
// arrived is then seen by all. Arrivals are counted in grid_state[0], which is never reset: GRID is a
// power of two, so the count overflows between two barriers and never within one. Workgroups that do
// not run at the same time would wait for each other for ever, so after PATIENCE looks at the count
// one gives up and says so in grid_state[1], and from then on nobody waits.
//
// To be called by all invocations of a workgroup. Waiting again for the same arrival is harmless.
//
// Constants: GRID, PATIENCE. Bindings: grid_state.

// What the count is when all have arrived.
var<private> grid_target: u32;

// To be called first. The count is then from the last multiple of GRID on: nobody gets further before
// all have arrived.
fn grid_begin(lane: u32) {
    if lane == 0u {
        grid_target = atomicLoad(&grid_state[0]) / GRID * GRID;
    }
}

fn grid_arrive(lane: u32) {
    // What all of the workgroup stored goes ahead of what lane 0 says.
    storageBarrier();
    if lane == 0u {
        grid_target += GRID;
        // What it returns is not asked for: nothing waits for that.
        atomicAdd(&grid_state[0], 1u);
    }
}

fn grid_is_complete() -> bool {
    return i32(atomicLoad(&grid_state[0]) - grid_target) >= 0i;
}

fn grid_wait(lane: u32) {
    if lane == 0u {
        for (var looks = 0u; looks < PATIENCE; looks++) {
            if grid_is_complete() || (looks % 64u == 63u && atomicLoad(&grid_state[1]) != 0u) {
                break;
            }
        }
        if !grid_is_complete() {
            atomicStore(&grid_state[1], 1u);
        }
    }
    // Orders what follows behind the look that was the last. It need make nothing visible: buffers that
    // stages share are coherent.
    workgroupBarrier();
}
