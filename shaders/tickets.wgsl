// The stages of a launch one after the other, on a CPU driver: there each workgroup runs to its end on
// one thread, while others run on others, and in which order they begin is not known.
//
// A workgroup takes tiles of a stage until none is left, and then waits until all are done. It waits for
// workgroups that have begun and hold a tile each, so any number of them may run at once, and one alone
// does everything. Where threads share processors a wait may be long: a workgroup that has looked
// PATIENCE times leaves, and those that hold tiles, or begin later, go on without it. Who does the last
// tile of a stage finds all done and never waits, so there is always one that goes on to the end. Whoever
// leaves last sets the counts to 0, for the next launch.
//
// Such a driver ends the loops of an invocation early, without a word, when they have gone round too
// often in all. Each tile therefore ends with a loop that has to go round twice, and grid_state[1] is not
// 0 once one did not: results are meaningless from then on.
//
// All functions are to be called by all invocations of a workgroup.
//
// Constants: PATIENCE, STAGES. Bindings: grid_state, of 2 + 2 * STAGES words.

var<workgroup> grid_ticket: u32;
var<workgroup> grid_done: u32;
var<private> grid_patience: u32 = PATIENCE;

// The next tile of a stage that nobody has taken; one beyond the last when there is none.
fn grid_take(stage: u32, lane: u32) -> u32 {
    if lane == 0u {
        grid_ticket = atomicAdd(&grid_state[2u + 2u * stage], 1u);
    }
    return workgroupUniformLoad(&grid_ticket);
}

// Says that a tile of a stage is done. The barriers order what the workgroup has stored, in buffers and
// in images, before the count; that others see it who find the count is what a tier for CPUs asks of them.
fn grid_complete(stage: u32, lane: u32) {
    storageBarrier();
    textureBarrier();
    if lane == 0u {
        let all = 2u + atomicLoad(&grid_state[1]);
        var rounds = 0u;
        while rounds < all {
            rounds += 1u;
        }
        if rounds != all {
            atomicStore(&grid_state[1], 1u);
        }
        atomicAdd(&grid_state[3u + 2u * stage], 1u);
    }
}

// Waits until all tiles of a stage are done; whether they are.
fn grid_wait(stage: u32, tiles: u32, lane: u32) -> bool {
    if lane == 0u {
        // Adds nothing: a load the driver would take out of the loop.
        var done = atomicAdd(&grid_state[3u + 2u * stage], 0u);
        while done < tiles && grid_patience > 0u {
            grid_patience -= 1u;
            done = atomicAdd(&grid_state[3u + 2u * stage], 0u);
        }
        grid_done = u32(done >= tiles);
    }
    return workgroupUniformLoad(&grid_done) == 1u;
}

// To be called by each of `workgroups` at its end. The last stage has so many tiles.
fn grid_leave(workgroups: u32, tiles: u32, lane: u32) {
    if lane == 0u && atomicAdd(&grid_state[0], 1u) + 1u == workgroups {
        if atomicLoad(&grid_state[1u + 2u * STAGES]) < tiles {
            atomicStore(&grid_state[1], 1u);
        }
        for (var i = 0u; i < 2u * STAGES; i++) {
            atomicStore(&grid_state[2u + i], 0u);
        }
        atomicStore(&grid_state[0], 0u);
    }
}
