// Default prelude of linear_coop and attention_coop in place of fours.wgsl: what matrices are loaded from
// and stored to lies in workgroup memory by scalars. naga's Metal back end, unlike others, takes no pointer
// to a vector; elsewhere a driver may have other instructions for it.

alias Halves = f16;
alias Reals = f32;

// Element e of SPLIT of `four` in workgroup memory.
fn halves(four: vec4<f16>, e: u32) -> Halves {
    return four[e];
}

fn result4(at: u32) -> vec4<f32> {
    return vec4<f32>(results[4u * at], results[4u * at + 1u], results[4u * at + 2u], results[4u * at + 3u]);
}
