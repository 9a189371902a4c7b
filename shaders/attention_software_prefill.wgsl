// Attention of many queries, on a CPU driver: one invocation owns TILE_QUERIES queries of one head
// and walks the keys, so that each key and value it loads serves all of them. Scores are never
// written. The softmax is online, in f32, with a finite sentinel: a query that sees no key gives 0.
// No workgroup memory, no barriers.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM, SCALE, CAUSAL, SLIDES, TILE_QUERIES, WORKGROUP.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, load_key, load_value, store_out, workgroup_index.
// Grid: batch * HEADS * ceil(queries / (WORKGROUP * TILE_QUERIES)) workgroups.

const D4: u32 = (HEAD_DIM + 3u) / 4u;
const LOWEST: f32 = -1e30;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let query_tiles = (queries() + WORKGROUP * TILE_QUERIES - 1u) / (WORKGROUP * TILE_QUERIES);
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let b = tile / (query_tiles * HEADS);
    let h = (tile / query_tiles) % HEADS;
    // Lanes interleave, so that they end at about the same key.
    let tile_first = (tile % query_tiles) * WORKGROUP * TILE_QUERIES;
    if b >= batch() || tile_first >= queries() {
        return;
    }
    let first = tile_first + lane;
    let kvh = h / (HEADS / KV_HEADS);

    var q: array<array<vec4<f32>, D4>, TILE_QUERIES>;
    var out: array<array<vec4<f32>, D4>, TILE_QUERIES>;
    var top: array<f32, TILE_QUERIES>;
    var total: array<f32, TILE_QUERIES>;
    var begin: array<u32, TILE_QUERIES>;
    var end: array<u32, TILE_QUERIES>;
    for (var t = 0u; t < TILE_QUERIES; t++) {
        let i = min(first + t * WORKGROUP, queries() - 1u);
        for (var d = 0u; d < D4; d++) {
            q[t][d] = load_q(b, i, h, d) * SCALE;
        }
        top[t] = LOWEST;
        begin[t] = visible_from(b, i);
        end[t] = select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL);
    }

    // From the first key of the workgroup's first query up to the last key of its last: all invocations
    // go on, for what they load for each other.
    let last = min(tile_first + WORKGROUP * TILE_QUERIES, queries()) - 1u;
    let all = select(kv_len(), min(past() + last + 1u, kv_len()), CAUSAL);
    for (var j = visible_from(b, tile_first); j < all; j++) {
        var score: array<f32, TILE_QUERIES>;
        let k = load_key(b, j, kvh, lane);
        for (var d = 0u; d < D4; d++) {
            for (var t = 0u; t < TILE_QUERIES; t++) {
                score[t] += dot(q[t][d], k[d]);
            }
        }
        var keep: array<f32, TILE_QUERIES>;
        var weight: array<f32, TILE_QUERIES>;
        for (var t = 0u; t < TILE_QUERIES; t++) {
            let seen = j < end[t] && (!SLIDES || j >= begin[t]);
            let higher = max(top[t], select(LOWEST, score[t], seen));
            keep[t] = exp(top[t] - higher);
            weight[t] = select(0.0, exp(score[t] - higher), seen);
            total[t] = total[t] * keep[t] + weight[t];
            top[t] = higher;
        }
        let v = load_value(b, j, kvh, lane);
        for (var d = 0u; d < D4; d++) {
            for (var t = 0u; t < TILE_QUERIES; t++) {
                out[t][d] = out[t][d] * keep[t] + v[d] * weight[t];
            }
        }
    }

    for (var t = 0u; t < TILE_QUERIES; t++) {
        let i = first + t * WORKGROUP;
        if i < queries() {
            let norm = 1.0 / max(total[t], 1e-30);
            for (var d = 0u; d < D4; d++) {
                store_out(b, i, h, d, out[t][d] * norm);
            }
        }
    }
}
