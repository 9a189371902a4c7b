// Attention of few queries over a long context, on a CPU driver: one workgroup a query and head.
// Each invocation walks every WORKGROUP-th key with an online softmax of its own; they meet once,
// at the end, in workgroup memory. The one barrier is outside the loop over keys.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM, SCALE, CAUSAL, WORKGROUP.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, load_k, load_v, store_out, workgroup_index.
// Grid: batch * queries * HEADS workgroups.
// Workgroup memory: WORKGROUP * (16 * ceil(HEAD_DIM / 4) + 8) bytes.

const D4: u32 = (HEAD_DIM + 3u) / 4u;
const LOWEST: f32 = -1e30;

var<workgroup> part_out: array<array<vec4<f32>, D4>, WORKGROUP>;
var<workgroup> part_top: array<f32, WORKGROUP>;
var<workgroup> part_total: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let b = tile / (queries() * HEADS);
    let i = (tile / HEADS) % queries();
    let h = tile % HEADS;
    if b >= batch() {
        return;
    }
    let kvh = h / (HEADS / KV_HEADS);
    let end = select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL);

    var q: array<vec4<f32>, D4>;
    for (var d = 0u; d < D4; d++) {
        q[d] = load_q(b, i, h, d) * SCALE;
    }
    var out: array<vec4<f32>, D4>;
    var top = LOWEST;
    var total = 0.0;
    for (var j = visible_from(b, i) + lane; j < end; j += WORKGROUP) {
        var sum = vec4<f32>(0.0);
        for (var d = 0u; d < D4; d++) {
            sum += q[d] * load_k(b, j, kvh, d);
        }
        let score = sum.x + sum.y + sum.z + sum.w;
        let higher = max(top, score);
        let keep = exp(top - higher);
        let weight = exp(score - higher);
        total = total * keep + weight;
        top = higher;
        for (var d = 0u; d < D4; d++) {
            out[d] = out[d] * keep + load_v(b, j, kvh, d) * weight;
        }
    }

    for (var d = 0u; d < D4; d++) {
        part_out[lane][d] = out[d];
    }
    part_top[lane] = top;
    part_total[lane] = total;
    workgroupBarrier();

    var highest = LOWEST;
    for (var p = 0u; p < WORKGROUP; p++) {
        highest = max(highest, part_top[p]);
    }
    var keep: array<f32, WORKGROUP>;
    var weights = 0.0;
    for (var p = 0u; p < WORKGROUP; p++) {
        keep[p] = exp(part_top[p] - highest);
        weights += part_total[p] * keep[p];
    }
    for (var d = lane; d < D4; d += WORKGROUP) {
        var sum = vec4<f32>(0.0);
        for (var p = 0u; p < WORKGROUP; p++) {
            sum += part_out[p][d] * keep[p];
        }
        store_out(b, i, h, d, sum / max(weights, 1e-30));
    }
}
