// Default prelude of the row_norm* bodies, to go with common.wgsl.

const K: u32 = 768u;
const EPSILON: f32 = 1e-5;
const CENTER: bool = true;

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn rows() -> u32 {
    return sym.batch * sym.seq;
}

// Four consecutive elements, 0 beyond K.
fn load_x(row: u32, k4: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) {
        if k4 * 4u + i < K {
            v[i] = x[row * K + k4 * 4u + i];
        }
    }
    return v;
}

// The epilogue of four consecutive normalised elements; what lies beyond K is dropped.
fn store_norm4(row: u32, k4: u32, v: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        let k = k4 * 4u + i;
        if k < K {
            y[row * K + k] = v[i] * gain[k] + bias[k];
        }
    }
}
