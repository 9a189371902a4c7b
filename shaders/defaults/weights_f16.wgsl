// Weights as f16, two in a u32, the first in the low half: rows padded with zeros to whole groups.
// WV may be 2, 4 or 8. No f16 feature is needed.

const WV: u32 = 4u;
// linear_stream_subgroup reads weights in units of 16 bytes, UV vec4s.
const UV: u32 = 2u;
const SCALED: bool = false;

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

fn w_element(n: u32, t: u32) -> vec4<u32> {
    return weights[n * (GROUPS * WV / 2u) + t];
}

alias Element = vec4<u32>;

fn first_w(n: u32, g: u32) -> Element {
    return w_element(n, g * (WV / 2u));
}

fn load_w(first: Element, n: u32, g: u32) -> array<vec4<f32>, WV> {
    var w: array<vec4<f32>, WV>;
    var v = first;
    for (var i = 0u; i < WV / 2u; i++) {
        if i > 0u {
            v = w_element(n, g * (WV / 2u) + i);
        }
        w[2u * i] = vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
        w[2u * i + 1u] = vec4<f32>(unpack2x16float(v.z), unpack2x16float(v.w));
    }
    return w;
}

fn load_w4(n: u32, k4: u32) -> vec4<f32> {
    let v = w_element(n, k4 / 2u);
    let pair = select(v.xy, v.zw, k4 % 2u == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}

fn w_scale(n: u32, g: u32) -> f32 {
    return 1.0;
}

alias Unit = vec4<u32>;

// Unit u of row n.
fn fetch_unit(n: u32, u: u32) -> Unit {
    return weights[n * UNITS + u];
}

// A word of it.
fn touch_unit(n: u32, u: u32) -> u32 {
    return weights[n * UNITS + u].x;
}

// Its weights, unscaled.
fn unit_weights(unit: Unit) -> array<vec4<f32>, UV> {
    return array<vec4<f32>, UV>(
        vec4<f32>(unpack2x16float(unit.x), unpack2x16float(unit.y)),
        vec4<f32>(unpack2x16float(unit.z), unpack2x16float(unit.w)),
    );
}

// The scale of unit u of row n.
fn unit_scale(unit: Unit, n: u32, u: u32) -> f32 {
    return 1.0;
}
