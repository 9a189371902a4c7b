// Default prelude of lanes_check and subgroups_check, which need no other.

@group(0) @binding(1) var<storage, read_write> verdicts: array<u32>;
