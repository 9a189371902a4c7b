// Prelude of sample_score and sample_choose: how the runtime binds a batch's logits and what sampling
// needs besides. Whole: the runtime puts its constants in front and a body behind.

struct Sampling {
    vocab: u32,
    batch: u32,
    // Fed to a sequence that ended.
    pad: u32,
    // The number of most likely tokens to keep; 0 keeps all.
    top_k: u32,
    // The share of the probability to keep, times 2^32; 0 keeps all.
    top_p: u32,
    // Tokens at a larger distance are dropped.
    farthest: u32,
    // Distances are differences of logits times this, below the limit ...
    scale: f32,
    // ... from which on they count as infinite.
    limit: f32,
    penalty: f32,
    inverse_penalty: f32,
    seed_low: u32,
    seed_high: u32,
}

struct Sequence {
    // The next token's, padding not counted: it selects the random number.
    position: u32,
    // Tokens chosen so far.
    chosen: u32,
    ended: u32,
    unused: u32,
}

struct Best {
    score: f32,
    id: u32,
}

@group(0) @binding(0) var<uniform> sampling: Sampling;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> scores: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> bests: array<Best>;
// A bit for each token: first those that end a sequence, then for each sequence those that occurred.
@group(0) @binding(4) var<storage, read_write> marks: array<u32>;
@group(0) @binding(5) var<storage, read_write> sequences: array<Sequence>;
@group(0) @binding(6) var<storage, read_write> ids: array<u32>;
// What was chosen, step after step, each a token for every sequence.
@group(0) @binding(7) var<storage, read_write> tokens: array<u32>;

// Below every score: padding, and logits that are no finite number.
const EXCLUDED: f32 = -1e37;

// In `tokens` where no logit was finite.
const NO_TOKEN: u32 = 0xffffffffu;

fn quads() -> u32 {
    return (sampling.vocab + 3u) / 4u;
}

fn is_marked(row: u32, id: u32) -> bool {
    let words = (sampling.vocab + 31u) / 32u;
    return ((marks[row * words + id / 32u] >> (id % 32u)) & 1u) == 1u;
}

fn mark(row: u32, id: u32) {
    let words = (sampling.vocab + 31u) / 32u;
    marks[row * words + id / 32u] |= 1u << (id % 32u);
}

// The token follows: it is logged, fed to the next step, and ends its sequence if it is of those.
fn choose(b: u32, id: u32, found: bool) {
    let slot = sequences[b].chosen * sampling.batch + b;
    sequences[b].chosen += 1u;
    sequences[b].position += 1u;
    if sequences[b].ended != 0u {
        ids[b] = sampling.pad;
        tokens[slot] = sampling.pad;
        return;
    }
    if !found {
        ids[b] = sampling.pad;
        tokens[slot] = NO_TOKEN;
        sequences[b].ended = 1u;
        return;
    }
    tokens[slot] = id;
    if is_marked(0u, id) {
        ids[b] = sampling.pad;
        sequences[b].ended = 1u;
        return;
    }
    ids[b] = id;
    if sampling.penalty != 1.0 {
        mark(b + 1u, id);
    }
}
