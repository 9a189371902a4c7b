// Default prelude of the linear_* bodies, to go with common.wgsl and one weights_*.wgsl:
// rows of activations in one buffer, a bias, the result in another.

const K: u32 = 768u;
const N: u32 = 2304u;
const K4: u32 = (K + 3u) / 4u;
const GROUPS: u32 = (K4 + WV - 1u) / WV;
const UNITS: u32 = GROUPS * WV / UV;

// With NORM, linear_matvec* normalise each row on its way in.
const NORM: bool = false;
const CENTER: bool = true;
const EPSILON: f32 = 1e-5;

// Whether load_x may be called for up to TILE_ROWS - 1 rows beyond rows(); linear_software_tile asks.
const ROW_SLACK: bool = false;

@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

fn rows() -> u32 {
    return sym.batch * sym.seq;
}

// Four consecutive activations of a row, 0 beyond K. `row` is always below rows(); `k4` may lie
// beyond K when K is no multiple of a weight group. Where K is a multiple of 4 * WV, `x` is bound as
// array<vec4<f32>> and this is one load.
fn load_x(row: u32, k4: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) {
        if k4 * 4u + i < K {
            v[i] = x[row * K + k4 * 4u + i];
        }
    }
    return v;
}

// Gain and bias of the norm: what is read becomes (load_x - mean) * rstd * gain + bias. Beyond K
// anything finite will do: weights there are 0. Called only with NORM.
fn norm_gain(k4: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}

fn norm_bias(k4: u32) -> vec4<f32> {
    return vec4<f32>(0.0);
}

// The epilogue of one element.
fn store(row: u32, n: u32, acc: f32) {
    y[row * N + n] = acc + bias[n];
}

// What the epilogue of one element reads, apart from it for linear_stream_subgroup.
struct Operands {
    bias: f32,
}

fn operands(row: u32, n: u32) -> Operands {
    return Operands(bias[n]);
}

fn finish(row: u32, n: u32, acc: f32, operands: Operands) {
    y[row * N + n] = acc + operands.bias;
}

// The epilogue of four consecutive elements; n is a multiple of 4 below N, what lies beyond N is
// dropped. Where N is a multiple of 4 this is written with vec4 loads and one vec4 store.
fn store4(row: u32, n: u32, acc: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if n + i < N {
            store(row, n + i, acc[i]);
        }
    }
}

// 0, which the driver can't know.
fn zero() -> u32 {
    return u32(sym.batch == 0u);
}

// Return, to all invocations of a workgroup, once operands and once load_x may be called.
fn await_operands(lane: u32) {
}

fn await_input(lane: u32) {
}
