// Default prelude of attention_coop, to go with that of all attention_* bodies.

// Four consecutive elements rounded to f16; as they are, where the cache has such.
fn half_k(b: u32, j: u32, kvh: u32, d4: u32) -> vec4<f16> {
    return half4(load_k(b, j, kvh, d4));
}

fn half_v(b: u32, j: u32, kvh: u32, d4: u32) -> vec4<f16> {
    return half4(load_v(b, j, kvh, d4));
}
