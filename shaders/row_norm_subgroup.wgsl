// Layer norm or RMS norm of each row: one workgroup a row, subgroup reductions. Works for every
// subgroup size and makes no assumption on which invocations form a subgroup.
// The variance is that of x - mean, in a second pass over the row, which the workgroup holds.
//
// Constants: K, EPSILON, CENTER (true: layer norm; false: RMS norm), WORKGROUP.
// Hooks: rows, load_x, store_norm4, workgroup_index.
// Grid: rows workgroups.

const K4: u32 = (K + 3u) / 4u;
// vec4s of the row that an invocation holds.
const HELD: u32 = (K4 + WORKGROUP - 1u) / WORKGROUP;

var<workgroup> partial: array<f32, WORKGROUP>;

struct Place {
    lane: u32,
    subgroup_lane: u32,
    subgroup_size: u32,
}

// Each subgroup leaves its sum in the slot of its first invocation, zeros in the others, and then
// sums all slots.
fn workgroup_sum(value: f32, place: Place) -> f32 {
    let own = subgroupAdd(value);
    partial[place.lane] = select(0.0, own, place.subgroup_lane == 0u);
    workgroupBarrier();
    var sum = 0.0;
    for (var base = 0u; base < WORKGROUP; base += place.subgroup_size) {
        let i = base + place.subgroup_lane;
        if i < WORKGROUP {
            sum += partial[i];
        }
    }
    let total = subgroupAdd(sum);
    workgroupBarrier();
    return total;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_size: u32,
) {
    let row = workgroup_index(workgroup_id, num_workgroups);
    if row >= rows() {
        return;
    }
    let place = Place(lane, subgroup_lane, subgroup_size);
    var held: array<vec4<f32>, HELD>;
    var sum = 0.0;
    for (var i = 0u; i < HELD; i++) {
        let k4 = i * WORKGROUP + lane;
        if k4 < K4 {
            held[i] = load_x(row, k4);
            sum += dot(held[i], vec4<f32>(1.0));
        }
    }
    var mean = 0.0;
    if CENTER {
        mean = workgroup_sum(sum, place) / f32(K);
    }
    var squares = 0.0;
    for (var i = 0u; i < HELD; i++) {
        let k = (i * WORKGROUP + lane) * 4u + vec4<u32>(0u, 1u, 2u, 3u);
        let d = select(vec4<f32>(0.0), held[i] - mean, k < vec4<u32>(K));
        squares += dot(d, d);
    }
    let rstd = inverseSqrt(workgroup_sum(squares, place) / f32(K) + EPSILON);
    for (var i = 0u; i < HELD; i++) {
        let k4 = i * WORKGROUP + lane;
        if k4 < K4 {
            store_norm4(row, k4, (held[i] - mean) * rstd);
        }
    }
}
