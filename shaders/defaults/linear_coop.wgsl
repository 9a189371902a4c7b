// Default prelude of linear_coop, to go with common.wgsl: rows of activations and f16 weights, both
// padded to whole eights.

const K: u32 = 768u;
const N: u32 = 2304u;

@group(0) @binding(1) var<storage, read> weights: array<Half8>;
@group(0) @binding(2) var<storage, read> x: array<Half8>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

fn rows() -> u32 {
    return sym.batch * sym.seq;
}

// Eight consecutive activations of a row, 0 beyond K: k8 may lie there.
fn load_x8(row: u32, k8: u32) -> Half8 {
    if k8 >= K / 8u {
        return Half8(vec4<f16>(0.0h), vec4<f16>(0.0h));
    }
    return x[row * (K / 8u) + k8];
}

// Eight consecutive weights of a row; beyond K anything finite will do.
fn load_w8(n: u32, k8: u32) -> Half8 {
    return weights[n * (K / 8u) + min(k8, K / 8u - 1u)];
}

// The epilogue of four consecutive outputs, as in linear.wgsl.
fn store4(row: u32, n: u32, acc: vec4<f32>) {
    y[row * (N / 4u) + n / 4u] = acc;
}
