// Default prelude of softmax and softmax_workgroup, to go with common.wgsl: rows of 768.

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn count() -> u32 {
    return sym.batch * sym.seq;
}

fn extent() -> u32 {
    return 768u;
}

fn load(i: u32, j: u32) -> f32 {
    return x[i * 768u + j];
}

fn store(i: u32, j: u32, v: f32) {
    y[i * 768u + j] = v;
}
