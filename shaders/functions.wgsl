// Functions that generated expressions call; codegen copies only those that a kernel uses. Each
// stands alone between blank lines. A trailing 4 marks the vec4 form.

// Some drivers give NaN for large arguments; beyond 15 the result is 1 in f32 anyway.
fn safe_tanh(x: f32) -> f32 {
    return tanh(clamp(x, -15.0, 15.0));
}

fn safe_tanh4(x: vec4<f32>) -> vec4<f32> {
    return tanh(clamp(x, vec4<f32>(-15.0), vec4<f32>(15.0)));
}

// The error function by Abramowitz and Stegun 7.1.26; absolute error below 1.5e-7. The argument is
// clamped because beyond 10 the exponential's argument would be needlessly large.
fn erf4(x: vec4<f32>) -> vec4<f32> {
    let a = min(abs(x), vec4<f32>(10.0));
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - p * exp(-a * a));
}

fn erf(x: f32) -> f32 {
    return erf4(vec4<f32>(x)).x;
}

// (1 + tanh u) / 2 is 1 / (1 + e^(-2u)): one exponential, where a driver's tanh takes two, and exact
// where u is far below 0. The exponential's argument is clamped so that it stays finite.
fn gelu_tanh(x: f32) -> f32 {
    return x / (1.0 + exp(clamp(-1.5957691216057308 * (x + 0.044715 * x * x * x), -80.0, 80.0)));
}

fn gelu_tanh4(x: vec4<f32>) -> vec4<f32> {
    let double = -1.5957691216057308 * (x + 0.044715 * x * x * x);
    return x / (1.0 + exp(clamp(double, vec4<f32>(-80.0), vec4<f32>(80.0))));
}

fn gelu_erf(x: f32) -> f32 {
    return 0.5 * x * (1.0 + erf(0.7071067811865476 * x));
}

fn gelu_erf4(x: vec4<f32>) -> vec4<f32> {
    return 0.5 * x * (1.0 + erf4(0.7071067811865476 * x));
}

fn relu(x: f32) -> f32 {
    return max(x, 0.0);
}

fn relu4(x: vec4<f32>) -> vec4<f32> {
    return max(x, vec4<f32>(0.0));
}

// The exponential's argument is clamped so that it stays finite; below -80 the result is 0 in f32
// but for its last bits.
fn silu(x: f32) -> f32 {
    return x / (1.0 + exp(min(-x, 80.0)));
}

fn silu4(x: vec4<f32>) -> vec4<f32> {
    return x / (1.0 + exp(min(-x, vec4<f32>(80.0))));
}

// WGSL's pow takes no negative base; a whole exponent allows one, and with others the power is no
// number. Its bits come from a variable, since no constant may be such.
fn safe_pow(a: f32, b: f32) -> f32 {
    var none = 0x7fc00000u;
    let magnitude = select(pow(abs(a), b), 1.0, b == 0.0);
    let odd = floor(b * 0.5) * 2.0 != b;
    let power = select(magnitude, -magnitude, a < 0.0 && odd);
    return select(power, bitcast<f32>(none), a < 0.0 && floor(b) != b);
}

// The upper 32 of a product's 64 bits.
fn multiply_high(a: u32, b: u32) -> u32 {
    let low_a = a & 0xffffu;
    let low_b = b & 0xffffu;
    let first = (a >> 16u) * low_b + ((low_a * low_b) >> 16u);
    let second = low_a * (b >> 16u) + (first & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (first >> 16u) + (second >> 16u);
}

// The sine of an angle plus so many quarter turns; absolute error below 2e-7. A driver's own need
// only be exact between -pi and pi. The angle is brought near zero as a fraction of a turn in 32
// bits, which takes integers alone (Payne and Hanek, 1983): no compiler may reorder them as it may
// reorder the usual sums of floating-point numbers. Beyond 2^24, where neighbouring numbers are a
// third of a turn apart, the angle is clamped.
fn sine(x: f32, quarters: u32) -> f32 {
    let a = min(abs(x), 16777215.0);
    let bits = bitcast<u32>(a);
    // a = mantissa / 2^shift. Times 2^64 / (2 pi), whose words follow, the turns stand above bit
    // 64 + shift of 96.
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let shift = min(150u - (bits >> 23u), 31u);
    let low = multiply_high(mantissa, 0x9391054au);
    let middle = low + mantissa * 0x28be60dbu;
    let high = multiply_high(mantissa, 0x28be60dbu) + select(0u, 1u, middle < low);
    let turns = select((middle >> shift) | (high << ((32u - shift) & 31u)), middle, shift == 0u);
    // The nearest quarter turn, and what is left: up to an eighth either way.
    let quarter = (turns + 0x20000000u) >> 30u;
    let left = f32(bitcast<i32>(turns - (quarter << 30u))) * 1.4629180792671596e-9;
    let is_small = a < 0.7853981;
    let r = select(left, a, is_small) * select(1.0, -1.0, x < 0.0);
    let whole = select(quarter, 0u, is_small);
    let n = quarters + select(whole, 0u - whole, x < 0.0);
    // Taylor's series: the next term is below 2e-9 of an eighth of a turn.
    let z = r * r;
    let s = r + r * z * (-1.0 / 6.0 + z * (1.0 / 120.0 + z * (-1.0 / 5040.0 + z / 362880.0)));
    let c = 1.0 + z * (-0.5 + z * (1.0 / 24.0 + z * (-1.0 / 720.0 + z * (1.0 / 40320.0 - z / 3628800.0))));
    let value = select(s, c, (n & 1u) == 1u);
    return select(value, -value, (n & 2u) == 2u);
}

fn safe_sin(x: f32) -> f32 {
    return sine(x, 0u);
}

fn safe_sin4(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(sine(x.x, 0u), sine(x.y, 0u), sine(x.z, 0u), sine(x.w, 0u));
}

fn safe_cos(x: f32) -> f32 {
    return sine(x, 1u);
}

fn safe_cos4(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(sine(x.x, 1u), sine(x.y, 1u), sine(x.z, 1u), sine(x.w, 1u));
}
