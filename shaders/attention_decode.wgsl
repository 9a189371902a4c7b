// Attention of few queries over a long context: one workgroup a query and head.
//
// The keys are taken in blocks of WORKGROUP: each invocation scores one key, the
// workgroup finds the block's maximum and exponentials, then the invocations regroup, D4 to a key's
// row, each team of D4 walking every TEAMS-th key. The softmax is online from block to block, in
// f32, with a finite sentinel.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM (at most 4 * WORKGROUP), SCALE, CAUSAL, WORKGROUP (a power of two).
// Hooks: batch, queries, past, kv_len, visible_from, load_q, load_k, load_v, store_out, workgroup_index.
// Grid: batch * queries * HEADS workgroups.
// Workgroup memory: about 24 * WORKGROUP + 4 * HEAD_DIM bytes.

const D4: u32 = (HEAD_DIM + 3u) / 4u;
const TEAMS: u32 = WORKGROUP / D4;
const LOWEST: f32 = -1e30;

var<workgroup> q_row: array<vec4<f32>, D4>;
var<workgroup> weights_of_block: array<f32, WORKGROUP>;
var<workgroup> partial: array<f32, WORKGROUP>;
var<workgroup> team_out: array<vec4<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let h = tile % HEADS;
    let i = tile / HEADS % queries();
    let b = tile / (HEADS * queries());
    if b >= batch() {
        return;
    }
    let kvh = h / (HEADS / KV_HEADS);
    let begin = visible_from(b, i);
    let end = max(begin, select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL));

    for (var d = lane; d < D4; d += WORKGROUP) {
        q_row[d] = load_q(b, i, h, d) * SCALE;
    }
    workgroupBarrier();

    let team = lane / D4;
    let d4 = lane % D4;
    var out = vec4<f32>(0.0);
    var top = LOWEST;
    var total = 0.0;
    for (var block = begin; block < end; block += WORKGROUP) {
        let j = block + lane;
        var score = LOWEST;
        if j < end {
            var sum = vec4<f32>(0.0);
            for (var d = 0u; d < D4; d++) {
                sum += q_row[d] * load_k(b, j, kvh, d);
            }
            score = sum.x + sum.y + sum.z + sum.w;
        }
        partial[lane] = score;
        workgroupBarrier();
        for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
            if lane < half {
                partial[lane] = max(partial[lane], partial[lane + half]);
            }
            workgroupBarrier();
        }
        let higher = max(top, partial[0]);
        workgroupBarrier();
        let weight = select(0.0, exp(score - higher), j < end);
        weights_of_block[lane] = weight;
        workgroupBarrier();

        let keep = exp(top - higher);
        top = higher;
        total = total * keep + weight;
        out *= keep;
        if team < TEAMS {
            for (var key = team; key < min(WORKGROUP, end - block); key += TEAMS) {
                out += weights_of_block[key] * load_v(b, block + key, kvh, d4);
            }
        }
        workgroupBarrier();
    }

    team_out[lane] = out;
    partial[lane] = total;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    if lane < D4 {
        var sum = vec4<f32>(0.0);
        for (var t = 0u; t < TEAMS; t++) {
            sum += team_out[t * D4 + lane];
        }
        store_out(b, i, h, lane, sum / max(partial[0], 1e-30));
    }
}
