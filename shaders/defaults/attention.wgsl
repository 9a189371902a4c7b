// Default prelude of the attention_* bodies, to go with common.wgsl: q and the result as
// [batch, seq, HEADS, HEAD_DIM], the cache as [batch, KV_HEADS, CONTEXT, HEAD_DIM].

const HEADS: u32 = 12u;
const KV_HEADS: u32 = 12u;
const HEAD_DIM: u32 = 64u;
const SCALE: f32 = 0.125;
const CAUSAL: bool = true;
const SLIDES: bool = false;
const CONTEXT: u32 = 1024u;

@group(0) @binding(1) var<storage, read> q_in: array<f32>;
@group(0) @binding(2) var<storage, read> k_cache: array<f32>;
@group(0) @binding(3) var<storage, read> v_cache: array<f32>;
@group(0) @binding(4) var<storage, read> starts: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

fn batch() -> u32 {
    return sym.batch;
}

fn queries() -> u32 {
    return sym.seq;
}

// The position of the first query.
fn past() -> u32 {
    return sym.past;
}

// Keys of the sequence, those of this launch among them.
fn kv_len() -> u32 {
    return sym.past + sym.seq;
}

// The first key that a query sees, behind padding and not beyond its window; up to kv_len().
fn visible_from(b: u32, i: u32) -> u32 {
    return starts[b];
}

// Four consecutive elements, 0 beyond HEAD_DIM. Indices are always in range. Where HEAD_DIM is a
// multiple of 4 the buffers are bound as array<vec4<f32>> and each of these is one load or store.
fn load_q(b: u32, i: u32, h: u32, d4: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var e = 0u; e < 4u; e++) {
        if d4 * 4u + e < HEAD_DIM {
            v[e] = q_in[((b * sym.seq + i) * HEADS + h) * HEAD_DIM + d4 * 4u + e];
        }
    }
    return v;
}

fn load_k(b: u32, j: u32, kvh: u32, d4: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var e = 0u; e < 4u; e++) {
        if d4 * 4u + e < HEAD_DIM {
            v[e] = k_cache[((b * KV_HEADS + kvh) * CONTEXT + j) * HEAD_DIM + d4 * 4u + e];
        }
    }
    return v;
}

fn load_v(b: u32, j: u32, kvh: u32, d4: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var e = 0u; e < 4u; e++) {
        if d4 * 4u + e < HEAD_DIM {
            v[e] = v_cache[((b * KV_HEADS + kvh) * CONTEXT + j) * HEAD_DIM + d4 * 4u + e];
        }
    }
    return v;
}

fn store_out(b: u32, i: u32, h: u32, d4: u32, v: vec4<f32>) {
    for (var e = 0u; e < 4u; e++) {
        if d4 * 4u + e < HEAD_DIM {
            y[((b * sym.seq + i) * HEADS + h) * HEAD_DIM + d4 * 4u + e] = v[e];
        }
    }
}

// attention_decode_subgroup hands over its sums, not yet divided. Unsplit, this is the end of it; a
// split kernel writes v, top and total to a buffer instead.
const SPLITS: u32 = 1u;

fn store_split(b: u32, i: u32, h: u32, split: u32, d4: u32, v: vec4<f32>, top: f32, total: f32) {
    store_out(b, i, h, d4, v / max(total, 1e-30));
}

// attention_probs: one probability.
fn store_prob(b: u32, h: u32, i: u32, j: u32, p: f32) {
    y[((b * HEADS + h) * sym.seq + i) * kv_len() + j] = p;
}
