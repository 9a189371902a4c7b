// Weights as f32: rows padded with zeros to whole groups. WV may be 1, 2, 4 or 8.

const WV: u32 = 4u;
// linear_stream_subgroup reads weights in units of 16 bytes, UV vec4s.
const UV: u32 = 1u;
const SCALED: bool = false;

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

// 16 bytes of row n, the t-th. In an image (packed.rs of the code generator) they lie elsewhere.
fn w_element(n: u32, t: u32) -> vec4<f32> {
    return weights[n * (GROUPS * WV) + t];
}

// 16 bytes of weights.
alias Element = vec4<f32>;

// The first element of group g of row n.
fn first_w(n: u32, g: u32) -> Element {
    return w_element(n, g * WV);
}

// All weights of group g of row n, unscaled, of which `first` are the first.
fn load_w(first: Element, n: u32, g: u32) -> array<vec4<f32>, WV> {
    var w: array<vec4<f32>, WV>;
    w[0] = first;
    for (var i = 1u; i < WV; i++) {
        w[i] = w_element(n, g * WV + i);
    }
    return w;
}

// Weights 4 * k4 .. 4 * k4 + 3 of row n, unscaled.
fn load_w4(n: u32, k4: u32) -> vec4<f32> {
    return w_element(n, k4);
}

// The scale of group g of row n.
fn w_scale(n: u32, g: u32) -> f32 {
    return 1.0;
}

alias Unit = vec4<f32>;

// Unit u of row n.
fn fetch_unit(n: u32, u: u32) -> Unit {
    return weights[n * UNITS + u];
}

// A word of it.
fn touch_unit(n: u32, u: u32) -> u32 {
    return bitcast<u32>(weights[n * UNITS + u].x);
}

// Its weights, unscaled.
fn unit_weights(unit: Unit) -> array<vec4<f32>, UV> {
    return array<vec4<f32>, UV>(unit);
}

// The scale of unit u of row n.
fn unit_scale(unit: Unit, n: u32, u: u32) -> f32 {
    return 1.0;
}
