// Joins the splits of attention_decode: out = sum of e^(top_s - top) * out_s over the same of total_s.
// One invocation four elements of a result, no barriers.
//
// Constants: HEADS, HEAD_DIM, SPLITS, WORKGROUP.
// Hooks: batch, queries, load_split, load_split_stats, store_out, workgroup_index.
// Grid: ceil(batch * queries * HEADS * ceil(HEAD_DIM / 4) / WORKGROUP) workgroups.

const D4: u32 = (HEAD_DIM + 3u) / 4u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup_id, num_workgroups) * WORKGROUP + lane;
    let d4 = index % D4;
    let h = (index / D4) % HEADS;
    let i = (index / (D4 * HEADS)) % queries();
    let b = index / (D4 * HEADS * queries());
    if b >= batch() {
        return;
    }
    var top = -1e30;
    for (var s = 0u; s < SPLITS; s++) {
        top = max(top, load_split_stats(b, i, h, s).x);
    }
    var sum = vec4<f32>(0.0);
    var total = 0.0;
    for (var s = 0u; s < SPLITS; s++) {
        let stats = load_split_stats(b, i, h, s);
        let keep = exp(stats.x - top);
        sum += keep * load_split(b, i, h, s, d4);
        total += keep * stats.y;
    }
    store_out(b, i, h, d4, sum / max(total, 1e-30));
}
