// Default prelude of pointwise, to go with common.wgsl: an embedding, four elements at a time.

const EMBED4: u32 = 192u;
const VOCAB: u32 = 50257u;

@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> tokens: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

fn count() -> u32 {
    return sym.batch * sym.seq * EMBED4;
}

fn compute(index: u32) {
    let row = index / EMBED4;
    let token = min(ids[row], VOCAB - 1u);
    let position = sym.past + row % sym.seq;
    y[index] = tokens[token * EMBED4 + index % EMBED4] + positions[position * EMBED4 + index % EMBED4];
}
