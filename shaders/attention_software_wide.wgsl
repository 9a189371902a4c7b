// Attention over wide heads, on a CPU driver: a workgroup owns TILE_QUERIES queries of one head, and each
// of its invocations every WORKGROUP-th vec4 of them, of the keys and of the values. So an invocation
// holds little, and loops over a head are short: a driver that writes them out in vectors of 8 lanes
// takes half a minute over each of the other software bodies where heads are of 256. What lanes have of a score they
// add up. Scores are never written. The softmax is online, in f32, with a finite sentinel: a query
// that sees no key gives 0.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM, SCALE, CAUSAL, SLIDES, TILE_QUERIES, WORKGROUP.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, load_k, load_v, over_lanes, store_out, workgroup_index.
// Grid: batch * HEADS * ceil(queries / TILE_QUERIES) workgroups.
// Workgroup memory: that of over_lanes, 4 * WORKGROUP * TILE_QUERIES bytes at most.

const D4: u32 = (HEAD_DIM + 3u) / 4u;
const OWN: u32 = (D4 + WORKGROUP - 1u) / WORKGROUP;
const LOWEST: f32 = -1e30;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let query_tiles = (queries() + TILE_QUERIES - 1u) / TILE_QUERIES;
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let b = tile / (query_tiles * HEADS);
    let h = (tile / query_tiles) % HEADS;
    let first = (tile % query_tiles) * TILE_QUERIES;
    if b >= batch() {
        return;
    }
    let kvh = h / (HEADS / KV_HEADS);

    var q: array<array<vec4<f32>, OWN>, TILE_QUERIES>;
    var out: array<array<vec4<f32>, OWN>, TILE_QUERIES>;
    var top: array<f32, TILE_QUERIES>;
    var total: array<f32, TILE_QUERIES>;
    var begin: array<u32, TILE_QUERIES>;
    var end: array<u32, TILE_QUERIES>;
    for (var t = 0u; t < TILE_QUERIES; t++) {
        let i = min(first + t, queries() - 1u);
        for (var e = 0u; e < OWN; e++) {
            let d = lane + e * WORKGROUP;
            // Beyond the head zeros, so that it does not matter what is loaded of keys there.
            q[t][e] = select(vec4<f32>(0.0), load_q(b, i, h, min(d, D4 - 1u)) * SCALE, d < D4);
        }
        top[t] = LOWEST;
        begin[t] = visible_from(b, i);
        end[t] = select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL);
    }

    // From the first key of the first query up to the last key of the last.
    let last = min(first + TILE_QUERIES, queries()) - 1u;
    let all = select(kv_len(), min(past() + last + 1u, kv_len()), CAUSAL);
    for (var j = visible_from(b, first); j < all; j++) {
        var part: array<f32, TILE_QUERIES>;
        for (var e = 0u; e < OWN; e++) {
            let k = load_k(b, j, kvh, min(lane + e * WORKGROUP, D4 - 1u));
            for (var t = 0u; t < TILE_QUERIES; t++) {
                part[t] += dot(q[t][e], k);
            }
        }
        let score = over_lanes(part, lane);
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
        for (var e = 0u; e < OWN; e++) {
            let v = load_v(b, j, kvh, min(lane + e * WORKGROUP, D4 - 1u));
            for (var t = 0u; t < TILE_QUERIES; t++) {
                out[t][e] = out[t][e] * keep[t] + v * weight[t];
            }
        }
    }

    for (var t = 0u; t < TILE_QUERIES; t++) {
        let i = first + t;
        if i < queries() {
            let norm = 1.0 / max(total[t], 1e-30);
            for (var e = 0u; e < OWN; e++) {
                let d = lane + e * WORKGROUP;
                if d < D4 {
                    store_out(b, i, h, d, out[t][e] * norm);
                }
            }
        }
    }
}
