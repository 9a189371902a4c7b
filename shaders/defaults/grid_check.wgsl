// Default prelude of grid_check, which needs no other: one buffer, bound twice.

@group(0) @binding(1) @coherent var<storage, read_write> words: array<u32>;
@group(0) @binding(2) var<storage, read_write> grid_state: array<atomic<u32>>;
