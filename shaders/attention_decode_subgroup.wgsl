// Attention of few queries over a long context, as attention_decode: one workgroup a query, head and
// split of the context, without a barrier before the end.
//
// Four neighbouring lanes share a key, each with every fourth vec4 of it, and walk every TEAMS-th;
// KEYS keys and their values are under way at a time. The softmax is online for each four, in f32,
// with a finite sentinel. Then the fours of a subgroup are joined by shuffles, and the subgroups
// through workgroup memory, half of those that are left in each round. Works for every subgroup size.
//
// Constants: HEADS, KV_HEADS, HEAD_DIM, SCALE, CAUSAL, SPLITS, KEYS, WORKGROUP.
// Hooks: batch, queries, past, kv_len, visible_from, load_q, load_k, load_v, store_split, workgroup_index.
// Grid: batch * queries * HEADS * SPLITS workgroups.
// Workgroup memory: WORKGROUP / 8 * (4 * HEAD_DIM + 16) bytes.

const D4: u32 = (HEAD_DIM + 3u) / 4u;
const PARTS: u32 = (D4 + 3u) / 4u;
const LOWEST: f32 = -1e30;
// Subgroups have four invocations at the least, and half of them hand over their sums.
const SLOTS: u32 = WORKGROUP / 8u;

var<workgroup> sums: array<array<vec4<f32>, D4>, SLOTS>;
// The largest score and the sum of exponentials.
var<workgroup> stats: array<vec2<f32>, SLOTS>;

struct Partial {
    out: array<vec4<f32>, PARTS>,
    top: f32,
    total: f32,
}

fn join(a: Partial, b: Partial) -> Partial {
    var x = a;
    var y = b;
    let top = max(x.top, y.top);
    let keep = exp(x.top - top);
    let add = exp(y.top - top);
    for (var p = 0u; p < PARTS; p++) {
        x.out[p] = x.out[p] * keep + y.out[p] * add;
    }
    x.top = top;
    x.total = x.total * keep + y.total * add;
    return x;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let tile = workgroup_index(workgroup_id, num_workgroups);
    let split = tile % SPLITS;
    let h = (tile / SPLITS) % HEADS;
    let i = (tile / (SPLITS * HEADS)) % queries();
    let b = tile / (SPLITS * HEADS * queries());
    if b >= batch() {
        return;
    }
    let kvh = h / (HEADS / KV_HEADS);
    let from_key = visible_from(b, i);
    let to_key = max(from_key, select(kv_len(), min(past() + i + 1u, kv_len()), CAUSAL));
    let share = (to_key - from_key + SPLITS - 1u) / SPLITS;
    let begin = min(from_key + split * share, to_key);
    let end = min(begin + share, to_key);

    let lane = subgroup_lane % 4u;
    // A subgroup may be larger than the workgroup, whose invocations it then has alone.
    let width = min(subgroup_size, WORKGROUP);
    let teams = subgroups * (width / 4u);
    let team = subgroup * (width / 4u) + subgroup_lane / 4u;
    var q: array<vec4<f32>, PARTS>;
    for (var p = 0u; p < PARTS; p++) {
        if p * 4u + lane < D4 {
            q[p] = load_q(b, i, h, p * 4u + lane) * SCALE;
        }
    }

    var own: Partial;
    own.top = LOWEST;
    for (var base = begin; base < end; base += teams * KEYS) {
        var k: array<array<vec4<f32>, PARTS>, KEYS>;
        var v: array<array<vec4<f32>, PARTS>, KEYS>;
        for (var u = 0u; u < KEYS; u++) {
            let j = min(base + u * teams + team, end - 1u);
            for (var p = 0u; p < PARTS; p++) {
                // Beyond the head the query is 0, and nothing is stored.
                let d4 = min(p * 4u + lane, D4 - 1u);
                k[u][p] = load_k(b, j, kvh, d4);
                v[u][p] = load_v(b, j, kvh, d4);
            }
        }
        var score: array<f32, KEYS>;
        var top = own.top;
        for (var u = 0u; u < KEYS; u++) {
            var products = vec4<f32>(0.0);
            for (var p = 0u; p < PARTS; p++) {
                products += q[p] * k[u][p];
            }
            var sum = products.x + products.y + products.z + products.w;
            sum += subgroupShuffleXor(sum, 1u);
            sum += subgroupShuffleXor(sum, 2u);
            score[u] = select(LOWEST, sum, base + u * teams + team < end);
            top = max(top, score[u]);
        }
        let keep = exp(own.top - top);
        own.top = top;
        own.total *= keep;
        for (var p = 0u; p < PARTS; p++) {
            own.out[p] *= keep;
        }
        for (var u = 0u; u < KEYS; u++) {
            let weight = select(0.0, exp(score[u] - top), base + u * teams + team < end);
            own.total += weight;
            for (var p = 0u; p < PARTS; p++) {
                own.out[p] += weight * v[u][p];
            }
        }
    }

    for (var mask = 4u; mask < width; mask *= 2u) {
        var other: Partial;
        other.top = subgroupShuffleXor(own.top, mask);
        other.total = subgroupShuffleXor(own.total, mask);
        for (var p = 0u; p < PARTS; p++) {
            other.out[p] = subgroupShuffleXor(own.out[p], mask);
        }
        own = join(own, other);
    }
    for (var left = subgroups; left > 1u; left = (left + 1u) / 2u) {
        let half = (left + 1u) / 2u;
        if subgroup >= half && subgroup < left && subgroup_lane < 4u {
            for (var p = 0u; p < PARTS; p++) {
                if p * 4u + lane < D4 {
                    sums[subgroup - half][p * 4u + lane] = own.out[p];
                }
            }
            stats[subgroup - half] = vec2<f32>(own.top, own.total);
        }
        workgroupBarrier();
        if subgroup < left - half {
            var other: Partial;
            other.top = stats[subgroup].x;
            other.total = stats[subgroup].y;
            for (var p = 0u; p < PARTS; p++) {
                other.out[p] = sums[subgroup][min(p * 4u + lane, D4 - 1u)];
            }
            own = join(own, other);
        }
        workgroupBarrier();
    }
    if subgroup == 0u && subgroup_lane < 4u {
        for (var p = 0u; p < PARTS; p++) {
            if p * 4u + lane < D4 {
                store_split(b, i, h, split, p * 4u + lane, own.out[p], own.top, own.total);
            }
        }
    }
}
