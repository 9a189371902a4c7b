// Default prelude of linear_coop and attention_coop in place of whole.wgsl, for parts.wgsl.

// The sums of parts, those of a tile one after the other, and how many of a tile are there: 0 each
// between launches.
@group(0) @binding(8) @coherent var<storage, read_write> parts: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> arrived: array<atomic<u32>>;
