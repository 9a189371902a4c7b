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

fn gelu_tanh(x: f32) -> f32 {
    return 0.5 * x * (1.0 + safe_tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

fn gelu_tanh4(x: vec4<f32>) -> vec4<f32> {
    return 0.5 * x * (1.0 + safe_tanh4(0.7978845608028654 * (x + 0.044715 * x * x * x)));
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

// WGSL's pow takes no negative base; a whole exponent allows one.
fn safe_pow(a: f32, b: f32) -> f32 {
    let magnitude = pow(abs(a), b);
    let odd = floor(b * 0.5) * 2.0 != b;
    return select(magnitude, -magnitude, a < 0.0 && odd);
}
