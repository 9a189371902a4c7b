// Default prelude for a context that is split: in place of attention.wgsl's SPLITS and store_split for
// attention_decode, and whole, with common.wgsl, for attention_combine. A query's split takes
// ceil(HEAD_DIM / 4) vec4s of sums and one of (top, total, 0, 0).

const HEADS: u32 = 12u;
const HEAD_DIM: u32 = 64u;
const SPLITS: u32 = 4u;

@group(0) @binding(1) var<storage, read_write> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

fn batch() -> u32 {
    return sym.batch;
}

fn queries() -> u32 {
    return sym.seq;
}

fn part(b: u32, i: u32, h: u32, split: u32) -> u32 {
    return (((b * sym.seq + i) * HEADS + h) * SPLITS + split) * ((HEAD_DIM + 3u) / 4u + 1u);
}

fn store_split(b: u32, i: u32, h: u32, split: u32, d4: u32, v: vec4<f32>, top: f32, total: f32) {
    parts[part(b, i, h, split) + d4] = v;
    if d4 == 0u {
        parts[part(b, i, h, split) + (HEAD_DIM + 3u) / 4u] = vec4<f32>(top, total, 0.0, 0.0);
    }
}

fn load_split(b: u32, i: u32, h: u32, split: u32, d4: u32) -> vec4<f32> {
    return parts[part(b, i, h, split) + d4];
}

fn load_split_stats(b: u32, i: u32, h: u32, split: u32) -> vec2<f32> {
    return parts[part(b, i, h, split) + (HEAD_DIM + 3u) / 4u].xy;
}

// HEAD_DIM is a multiple of 4 here.
fn store_out(b: u32, i: u32, h: u32, d4: u32, v: vec4<f32>) {
    y[((b * sym.seq + i) * HEADS + h) * (HEAD_DIM / 4u) + d4] = v;
}
