// Default prelude of matmul, to go with common.wgsl: a[seq, 64] * b[64, seq].

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn count() -> u32 {
    return sym.seq * sym.seq;
}

fn inner() -> u32 {
    return 64u;
}

fn load_a(i: u32, k: u32) -> f32 {
    return a[(i / sym.seq) * 64u + k];
}

fn load_b(i: u32, k: u32) -> f32 {
    return b[k * sym.seq + i % sym.seq];
}

fn store(i: u32, v: f32) {
    y[i] = v;
}
