// First half of sampling: the repetition penalty, and the best token of each chunk of a sequence's
// vocabulary, the lowest id of equals. Scores are kept for sample_choose, four to a vector, filled up
// with EXCLUDED; with GREEDY nothing else will read them.
//
// Constants: WORKGROUP (a power of two), CHUNKS, GREEDY; EXCLUDED.
// Hooks: sampling, quads, logits, is_marked, scores, bests of defaults/sample.wgsl.
// Grid: CHUNKS by batch workgroups, not folded.

var<workgroup> best: array<Best, WORKGROUP>;

fn better(a: Best, b: Best) -> bool {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// Infinities and NaN, told by their bits, since compilers may take them for absent. The clamp keeps
// what follows finite.
fn score(b: u32, id: u32) -> f32 {
    if id >= sampling.vocab {
        return EXCLUDED;
    }
    let logit = logits[b * sampling.vocab + id];
    if (bitcast<u32>(logit) & 0x7f800000u) == 0x7f800000u {
        return EXCLUDED;
    }
    let x = clamp(logit, -1e30, 1e30);
    if sampling.penalty != 1.0 && is_marked(b + 1u, id) {
        return x * select(sampling.penalty, sampling.inverse_penalty, x > 0.0);
    }
    return x;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunk = workgroup_id.x;
    let b = workgroup_id.y;
    let share = (quads() + CHUNKS - 1u) / CHUNKS;
    let end = min((chunk + 1u) * share, quads());
    var top = Best(EXCLUDED, 0xffffffffu);
    for (var q = chunk * share + lane; q < end; q += WORKGROUP) {
        var quad: vec4<f32>;
        for (var e = 0u; e < 4u; e++) {
            let x = score(b, q * 4u + e);
            quad[e] = x;
            if x > top.score {
                top = Best(x, q * 4u + e);
            }
        }
        if !GREEDY {
            scores[b * quads() + q] = quad;
        }
    }
    best[lane] = top;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half && better(best[lane + half], best[lane]) {
            best[lane] = best[lane + half];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        bests[b * CHUNKS + chunk] = best[0];
    }
}
