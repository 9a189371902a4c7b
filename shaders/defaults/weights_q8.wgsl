// Weights as signed bytes in blocks of 32 along K, each block with an f16 scale:
//   weights  4 in a u32, the first in the low byte; rows padded with zeros to whole blocks
//   scales   [N, GROUPS] f16, two in a u32; the array is padded to a whole u32
// A group is a block.

const WV: u32 = 8u;
// linear_stream_subgroup reads weights in units of 16 bytes, UV vec4s.
const UV: u32 = 4u;
const SCALED: bool = true;

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

fn w_element(n: u32, t: u32) -> vec4<u32> {
    return weights[n * (GROUPS * 2u) + t];
}

// 2^24 times the weights: each byte is left in the high byte of a word, which takes fewer steps than
// its own place does. w_scale makes up for it.
fn unpack_q8(v: u32) -> vec4<f32> {
    let bytes = (vec4<u32>(v) << vec4<u32>(24u, 16u, 8u, 0u)) & vec4<u32>(0xff000000u);
    return vec4<f32>(bitcast<vec4<i32>>(bytes));
}

alias Element = vec4<u32>;

fn first_w(n: u32, g: u32) -> Element {
    return w_element(n, g * 2u);
}

fn load_w(first: Element, n: u32, g: u32) -> array<vec4<f32>, WV> {
    let a = first;
    let b = w_element(n, g * 2u + 1u);
    return array<vec4<f32>, WV>(
        unpack_q8(a.x), unpack_q8(a.y), unpack_q8(a.z), unpack_q8(a.w),
        unpack_q8(b.x), unpack_q8(b.y), unpack_q8(b.z), unpack_q8(b.w),
    );
}

// The word that weights 4 * k4 .. 4 * k4 + 3 of row n are in, alone where that can be loaded.
fn w_word(n: u32, k4: u32) -> u32 {
    return weights[n * (GROUPS * 2u) + k4 / 4u][k4 % 4u];
}

fn load_w4(n: u32, k4: u32) -> vec4<f32> {
    return unpack_q8(w_word(n, k4));
}

// What a half becomes as a scale of unpacked weights.
fn w_unit(halves: vec2<f32>) -> vec2<f32> {
    return halves * (1.0 / 16777216.0);
}

fn w_scale(n: u32, g: u32) -> f32 {
    let i = n * GROUPS + g;
    return w_unit(unpack2x16float(scales[i / 2u] >> (16u * (i % 2u)))).x;
}

// A unit with the word that its scale lies in, as they are loaded.
struct Unit {
    bytes: vec4<u32>,
    scale: u32,
}

// The block of unit u of row n, which is two units.
fn block_of(n: u32, u: u32) -> u32 {
    return n * (UNITS / 2u) + u / 2u;
}

// Unit u of row n.
fn fetch_unit(n: u32, u: u32) -> Unit {
    return Unit(weights[n * UNITS + u], scales[block_of(n, u) / 2u]);
}

// A word of it.
fn touch_unit(n: u32, u: u32) -> u32 {
    return weights[n * UNITS + u].x;
}

// As unpack_q8, by the bits of 2^23 + 128 + a byte: GPUs convert numbers at a fraction of the rate at
// which they add.
fn unpack_bits(v: u32) -> vec4<f32> {
    let byte = (vec4<u32>(v) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    return bitcast<vec4<f32>>(byte ^ vec4<u32>(0x4b000080u)) - 8388736.0;
}

// Its weights, unscaled.
fn unit_weights(unit: Unit) -> array<vec4<f32>, UV> {
    let v = unit.bytes;
    return array<vec4<f32>, UV>(unpack_bits(v.x), unpack_bits(v.y), unpack_bits(v.z), unpack_bits(v.w));
}

// The scale of unit u of row n.
fn unit_scale(unit: Unit, n: u32, u: u32) -> f32 {
    return unpack2x16float(unit.scale >> (16u * (block_of(n, u) % 2u))).x;
}
