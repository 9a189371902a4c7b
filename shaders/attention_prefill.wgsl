// Attention of many queries: a workgroup owns TILE_QUERIES queries of one head and walks the keys in
// blocks of TILE_KEYS, held in workgroup memory. Scores live in workgroup memory alone. The softmax
// is online, in f32, with a finite sentinel: a query that sees no key gives 0.
//
// Per block: each invocation computes some scores; then the TEAM = WORKGROUP / TILE_QUERIES
// invocations of a query share the exponentials and each updates its own part of the output row.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM, SCALE, CAUSAL, SLIDES, TILE_QUERIES, TILE_KEYS, TEAM.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, load_k, load_v, store_out, workgroup_index.
// Grid: batch * HEADS * ceil(queries / TILE_QUERIES) workgroups of TILE_QUERIES * TEAM invocations.
// Workgroup memory: 16 * (TILE_QUERIES + 2 * TILE_KEYS) * (ceil(HEAD_DIM / 4) + 1)
//                   + 4 * TILE_QUERIES * (TILE_KEYS + 1) bytes.

const WORKGROUP: u32 = TILE_QUERIES * TEAM;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const STRIDE: u32 = D4 + 1u;
const SCORE_STRIDE: u32 = TILE_KEYS + 1u;
const TEAM_D4: u32 = (D4 + TEAM - 1u) / TEAM;
const LOWEST: f32 = -1e30;

var<workgroup> q_tile: array<vec4<f32>, TILE_QUERIES * STRIDE>;
var<workgroup> k_tile: array<vec4<f32>, TILE_KEYS * STRIDE>;
var<workgroup> v_tile: array<vec4<f32>, TILE_KEYS * STRIDE>;
var<workgroup> scores: array<f32, TILE_QUERIES * SCORE_STRIDE>;

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
    let from_key = visible_from(b, first);
    let last = min(first + TILE_QUERIES, queries());
    let end = select(kv_len(), min(past() + last, kv_len()), CAUSAL);

    for (var e = lane; e < TILE_QUERIES * D4; e += WORKGROUP) {
        let i = min(first + e / D4, queries() - 1u);
        q_tile[(e / D4) * STRIDE + e % D4] = load_q(b, i, h, e % D4) * SCALE;
    }

    let my_query = lane / TEAM;
    let member = lane % TEAM;
    var out: array<vec4<f32>, TEAM_D4>;
    var top = LOWEST;
    var total = 0.0;

    for (var block = from_key; block < end; block += TILE_KEYS) {
        for (var e = lane; e < TILE_KEYS * D4; e += WORKGROUP) {
            let j = min(block + e / D4, end - 1u);
            k_tile[(e / D4) * STRIDE + e % D4] = load_k(b, j, kvh, e % D4);
            v_tile[(e / D4) * STRIDE + e % D4] = load_v(b, j, kvh, e % D4);
        }
        workgroupBarrier();

        for (var e = lane; e < TILE_QUERIES * TILE_KEYS; e += WORKGROUP) {
            let query = e / TILE_KEYS;
            let key = e % TILE_KEYS;
            var sum = 0.0;
            for (var d = 0u; d < D4; d++) {
                sum += dot(q_tile[query * STRIDE + d], k_tile[key * STRIDE + d]);
            }
            let j = block + key;
            let i = first + query;
            let seen = j < end && (!CAUSAL || j <= past() + i) && (!SLIDES || j >= visible_from(b, i));
            scores[query * SCORE_STRIDE + key] = select(LOWEST, sum, seen);
        }
        workgroupBarrier();

        var higher = top;
        for (var key = 0u; key < TILE_KEYS; key++) {
            higher = max(higher, scores[my_query * SCORE_STRIDE + key]);
        }
        workgroupBarrier();
        for (var key = member; key < TILE_KEYS; key += TEAM) {
            let s = scores[my_query * SCORE_STRIDE + key];
            scores[my_query * SCORE_STRIDE + key] = select(0.0, exp(s - higher), s > LOWEST);
        }
        workgroupBarrier();

        let keep = exp(top - higher);
        top = higher;
        total *= keep;
        for (var d = 0u; d < TEAM_D4; d++) {
            out[d] *= keep;
        }
        for (var key = 0u; key < TILE_KEYS; key++) {
            let weight = scores[my_query * SCORE_STRIDE + key];
            total += weight;
            for (var d = 0u; d < TEAM_D4; d++) {
                out[d] += weight * v_tile[key * STRIDE + min(d * TEAM + member, D4 - 1u)];
            }
        }
        workgroupBarrier();
    }

    if first + my_query < queries() {
        let norm = 1.0 / max(total, 1e-30);
        for (var d = 0u; d < TEAM_D4; d++) {
            if d * TEAM + member < D4 {
                store_out(b, first + my_query, h, d * TEAM + member, out[d] * norm);
            }
        }
    }
}
