// Default prelude of linear_coop and attention_coop in place of parts.wgsl: tiles are computed whole.

fn keep(at: u32, v: vec4<f32>) {
}

fn kept(at: u32) -> vec4<f32> {
    return vec4<f32>(0.0);
}

fn is_complete(tile: u32, lane: u32) -> bool {
    return false;
}
