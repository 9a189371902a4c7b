// Default prelude of linear_coop and attention_coop: what matrices are loaded from and stored to lies in
// workgroup memory by fours.

alias Halves = vec4<f16>;
alias Reals = vec4<f32>;

// Element e of SPLIT of `four` in workgroup memory.
fn halves(four: vec4<f16>, e: u32) -> Halves {
    return four;
}

fn result4(at: u32) -> vec4<f32> {
    return results[at];
}
