// Default prelude of lanes_check, which needs no other.

@group(0) @binding(1) var<storage, read_write> verdicts: array<u32>;
