// Default prelude of linear_software_matvec in place of stored.wgsl, for norm_last.wgsl: rows of y,
// normalised, in another buffer.

const NORM_K: u32 = N;
const NORM_EPSILON: f32 = 1e-5;
const NORM_CENTER: bool = true;

@group(0) @binding(6) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> normed: array<vec4<f32>>;
// 0 between launches.
@group(0) @binding(8) var<storage, read_write> done: array<atomic<u32>>;

fn when_stored(lane: u32, count: vec3<u32>) {
    norm_last(lane, count);
}

// Four consecutive elements of what was stored.
fn load_stored(row: u32, k4: u32) -> vec4<f32> {
    let i = row * N + 4u * k4;
    return vec4<f32>(y[i], y[i + 1u], y[i + 2u], y[i + 3u]);
}

// The epilogue of four consecutive normalised elements.
fn store_norm4(row: u32, k4: u32, v: vec4<f32>) {
    normed[row * NORM_K4 + k4] = v * gain[k4];
}
