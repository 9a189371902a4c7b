// Weights as 4-bit numbers in blocks of 32 along K, each block with an f16 scale:
//   weights  8 in a u32, stored plus 8: of weights 0..7, 0..3 are the low nibbles of bytes 0..3,
//            4..7 the high ones; rows padded to whole blocks with 8s, which mean 0
//   scales   [N, GROUPS] f16, two in a u32; the array is padded to a whole u32
// A group is a block.

const WV: u32 = 8u;
// linear_stream_subgroup reads weights in units of 16 bytes, UV vec4s.
const UV: u32 = 8u;
const SCALED: bool = true;

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

fn w_element(n: u32, t: u32) -> vec4<u32> {
    return weights[n * GROUPS + t];
}

// 2^28 times the weights in the low nibbles of v's bytes: each is left in the high nibble of a word,
// where changing its highest bit takes 8 away. w_scale makes up for it.
fn unpack_q4(v: u32) -> vec4<f32> {
    let nibbles = (vec4<u32>(v) << vec4<u32>(28u, 20u, 12u, 4u)) & vec4<u32>(0xf0000000u);
    return vec4<f32>(bitcast<vec4<i32>>(nibbles));
}

alias Element = vec4<u32>;

fn first_w(n: u32, g: u32) -> Element {
    return w_element(n, g);
}

fn load_w(first: Element, n: u32, g: u32) -> array<vec4<f32>, WV> {
    let v = first ^ vec4<u32>(0x88888888u);
    return array<vec4<f32>, WV>(
        unpack_q4(v.x), unpack_q4(v.x >> 4u), unpack_q4(v.y), unpack_q4(v.y >> 4u),
        unpack_q4(v.z), unpack_q4(v.z >> 4u), unpack_q4(v.w), unpack_q4(v.w >> 4u),
    );
}

fn w_word(n: u32, k4: u32) -> u32 {
    return weights[n * GROUPS + k4 / 8u][k4 / 2u % 4u];
}

fn load_w4(n: u32, k4: u32) -> vec4<f32> {
    return unpack_q4((w_word(n, k4) ^ 0x88888888u) >> (4u * (k4 % 2u)));
}

// What a half becomes as a scale of unpacked weights.
fn w_unit(halves: vec2<f32>) -> vec2<f32> {
    return halves * (1.0 / 268435456.0);
}

fn w_scale(n: u32, g: u32) -> f32 {
    let i = n * GROUPS + g;
    return w_unit(unpack2x16float(scales[i / 2u] >> (16u * (i % 2u)))).x;
}

// A unit with the word that its scale lies in, as they are loaded.
struct Unit {
    nibbles: vec4<u32>,
    scale: u32,
}

// Unit u of row n, which is a block.
fn fetch_unit(n: u32, u: u32) -> Unit {
    let block = n * UNITS + u;
    return Unit(weights[block], scales[block / 2u]);
}

// A word of it.
fn touch_unit(n: u32, u: u32) -> u32 {
    return weights[n * UNITS + u].x;
}

// As unpack_q4, by the bits of 2^23 + a nibble: GPUs convert numbers at a fraction of the rate at which
// they add.
fn unpack_bits(v: u32) -> vec4<f32> {
    let nibble = (vec4<u32>(v) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u);
    return bitcast<vec4<f32>>(nibble | vec4<u32>(0x4b000000u)) - 8388616.0;
}

// Its weights, unscaled.
fn unit_weights(unit: Unit) -> array<vec4<f32>, UV> {
    let v = unit.nibbles;
    return array<vec4<f32>, UV>(
        unpack_bits(v.x), unpack_bits(v.x >> 4u), unpack_bits(v.y), unpack_bits(v.y >> 4u),
        unpack_bits(v.z), unpack_bits(v.z >> 4u), unpack_bits(v.w), unpack_bits(v.w >> 4u),
    );
}

// The scale of unit u of row n.
fn unit_scale(unit: Unit, n: u32, u: u32) -> f32 {
    return unpack2x16float(unit.scale >> (16u * ((n * UNITS + u) % 2u))).x;
}
