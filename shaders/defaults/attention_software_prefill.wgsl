// Default prelude of attention_software_prefill, to go with that of all attention_* bodies: each invocation
// loads by itself what all invocations of a workgroup want.

// A key and a value, the same for all invocations of a workgroup, which all call these together.
fn load_key(b: u32, j: u32, kvh: u32, lane: u32) -> array<vec4<f32>, D4> {
    var given: array<vec4<f32>, D4>;
    for (var d = 0u; d < D4; d++) {
        given[d] = load_k(b, j, kvh, d);
    }
    return given;
}

fn load_value(b: u32, j: u32, kvh: u32, lane: u32) -> array<vec4<f32>, D4> {
    var given: array<vec4<f32>, D4>;
    for (var d = 0u; d < D4; d++) {
        given[d] = load_v(b, j, kvh, d);
    }
    return given;
}
