// The attention probabilities themselves, for whoever asks to see them: [batch, HEADS, queries, keys].
// One invocation a query and head walks the keys twice (online softmax, quotient); keys that a
// query does not see get 0. Not written for speed; no barriers, one body for every tier.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM, SCALE, CAUSAL, WORKGROUP.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, load_k, store_prob, workgroup_index.
// Grid: ceil(batch * HEADS * queries / WORKGROUP) workgroups.

const D4: u32 = (HEAD_DIM + 3u) / 4u;
const LOWEST: f32 = -1e30;

fn score(b: u32, i: u32, h: u32, j: u32) -> f32 {
    var sum = 0.0;
    for (var d = 0u; d < D4; d++) {
        sum += dot(load_q(b, i, h, d), load_k(b, j, h / (HEADS / KV_HEADS), d));
    }
    return sum * SCALE;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup_id, num_workgroups) * WORKGROUP + lane;
    let i = index % queries();
    let h = (index / queries()) % HEADS;
    let b = index / (queries() * HEADS);
    if b >= batch() {
        return;
    }
    let begin = visible_from(b, i);
    let end = select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL);

    var top = LOWEST;
    var total = 0.0;
    for (var j = begin; j < end; j++) {
        let s = score(b, i, h, j);
        let higher = max(top, s);
        total = total * exp(top - higher) + exp(s - higher);
        top = higher;
    }
    let norm = 1.0 / max(total, 1e-30);
    for (var j = 0u; j < kv_len(); j++) {
        var p = 0.0;
        if j >= begin && j < end {
            p = exp(score(b, i, h, j) - top) * norm;
        }
        store_prob(b, h, i, j, p);
    }
}
