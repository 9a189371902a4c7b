// Default prelude of linear_software_matvec, to go with those of all linear_* bodies: nothing is done once
// outputs are stored.

// Called by all invocations of a workgroup when its outputs are stored; `count` is the launch's workgroups.
fn when_stored(lane: u32, count: vec3<u32>) {
}
