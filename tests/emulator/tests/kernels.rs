//! What kernels compute on an emulated device, and what they must not do there.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

use half::f16;
use kiln_emulator::{Device, Fault, Kernel};

/// Launches a kernel with these declarations, functions and statements; `y` has so many
/// words, which are given, and `x` the words `x`.
fn launch(
    subgroup: usize,
    workgroups: usize,
    (declarations, body): (&str, &str),
    x: Vec<u32>,
    words: usize,
) -> Result<Vec<u32>, Fault> {
    let text = format!(
        "enable f16;
         enable wgpu_cooperative_matrix;
         @group(0) @binding(1) var<storage, read> x: array<u32>;
         @group(0) @binding(2) var<storage, read_write> y: array<u32>;
         {declarations}
         @compute @workgroup_size(64)
         fn main(
             @builtin(local_invocation_index) lane: u32,
             @builtin(workgroup_id) workgroup: vec3<u32>,
             @builtin(subgroup_invocation_id) subgroup_lane: u32,
         ) {{
             let at = workgroup.x * 64u + lane;
             {body}
         }}"
    );
    let kernel = Kernel::new(&text)?;
    let mut device = Device::new(subgroup);
    let (x, y) = (device.buffer(x), device.buffer(vec![0; words]));
    device.launch(&kernel, [workgroups, 1, 1], &[], &[x, y])?;
    Ok(device.words(y).to_vec())
}

/// What one workgroup with subgroups of 32 writes to the first 64 words.
fn first(declarations: &str, body: &str) -> Result<Vec<u32>, Fault> {
    let x = (0..64).collect();
    launch(32, 1, (declarations, body), x, 64)
}

#[track_caller]
fn gives(declarations: &str, body: &str, wanted: impl Fn(u32) -> u32) {
    let found = first(declarations, body).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(found, (0..64).map(wanted).collect::<Vec<u32>>());
}

/// One invocation does what another did something to, with nothing between.
#[track_caller]
fn assert_races(fault: &Fault, second: &str, first: &str) {
    let Fault::Race { does, did, .. } = fault else {
        panic!("{fault}");
    };
    assert_eq!((*does, *did), (second, first), "{fault}");
}

#[test]
fn branches_and_loops() {
    // Loops that invocations leave at different times, in each way there is.
    gives(
        "fn steps(n: u32) -> u32 {
             var count = 0u;
             for (var i = 0u; i < 100u; i++) {
                 if i % 3u == 1u { continue; }
                 if i > n { break; }
                 if count == 15u { return 1000u + n; }
                 count++;
             }
             return count;
         }",
        "y[at] = steps(lane);",
        |n| match (0..=n).filter(|i| i % 3 != 1).count() as u32 {
            count if count > 15 => 1000 + n,
            count => count,
        },
    );
    gives(
        "",
        "switch lane % 5u {
             case 0u: { y[at] = 7u; }
             case 1u, 2u: { if lane > 30u { break; } y[at] = 8u; }
             default: { y[at] = 9u; }
         }",
        |n| match n % 5 {
            0 => 7,
            1 | 2 => u32::from(n <= 30) * 8,
            _ => 9,
        },
    );
}

#[test]
fn arrays_that_invocations_index_differently() {
    gives(
        "struct Pair { a: u32, b: vec2<u32> }",
        "var all: array<Pair, 4>;
         for (var i = 0u; i < 4u; i++) { all[i].b.y = 10u * i; }
         all[lane % 4u].b[1] += lane;
         var sum = 0u;
         for (var i = 0u; i < 4u; i++) { sum += all[i].b.y; }
         y[at] = sum;",
        |n| 60 + n,
    );
}

#[test]
fn subgroups() {
    gives("", "y[at] = subgroupAdd(lane);", |n| match n / 32 {
        0 => 496,
        _ => 496 + 32 * 32,
    });
    // Those that a branch leaves out are not counted.
    gives(
        "",
        "if lane % 2u == 0u { y[at] = subgroupMax(lane); }",
        |n| (1 - n % 2) * (30 + n / 32 * 32),
    );
    gives("", "y[at] = subgroupShuffleXor(lane, 5u);", |n| n ^ 5);
    gives("", "y[at] = subgroupBroadcast(lane, 3u);", |n| {
        n / 32 * 32 + 3
    });
    gives("", "y[at] = subgroupExclusiveAdd(1u);", |n| n % 32);
}

#[test]
fn halves() {
    let x = vec![u32::from(f16::from_f32(1.5).to_bits()) << 16; 1];
    let body = "let pair = unpack2x16float(x[0]);
         let sum = f16(pair.y) + 2048.0h;
         y[at] = bitcast<u32>(f32(sum)) + u32(pair.x) + pack2x16float(vec2<f32>(0.0)) ;";
    let found = launch(32, 1, ("", body), x, 64).unwrap();
    // To the even one of two neighbours that are as near.
    let sum = f16::from_f32(2048.0 + 1.5).to_f32();
    assert_eq!(sum, 2050.0);
    assert_eq!(found[0], sum.to_bits());
}

/// A product of matrices, one of them stored by columns.
#[test]
fn matrices() {
    let declarations = "
        var<workgroup> a: array<vec4<f16>, 64>;
        var<workgroup> b: array<vec4<f16>, 64>;
        var<workgroup> c: array<vec4<f32>, 64>;";
    let body = "
        // Row r of a is r + k, column n of b is n - k.
        let line = lane / 4u;
        let k = vec4<f32>(f32(lane % 4u * 4u)) + vec4<f32>(0.0, 1.0, 2.0, 3.0);
        a[lane] = vec4<f16>(f32(line) + k);
        b[lane] = vec4<f16>(f32(line) - k);
        workgroupBarrier();
        var sums: coop_mat16x16<f32, C>;
        let left = coopLoadT<coop_mat16x16<f16, A>>(&a[0], 4u);
        let right = coopLoad<coop_mat16x16<f16, B>>(&b[0], 4u);
        sums = coopMultiplyAdd(left, right, sums);
        sums = coopMultiplyAdd(left, right, sums);
        if lane < 32u { coopStoreT(sums, &c[0], 4u); }
        workgroupBarrier();
        for (var e = 0u; e < 4u; e++) { y[4u * at + e] = bitcast<u32>(c[lane][e]); }";
    let found = launch(32, 1, (declarations, body), vec![0], 256).unwrap();
    for (at, bits) in found.into_iter().enumerate() {
        let (row, column) = ((at / 16) as f32, (at % 16) as f32);
        let products = (0..16).map(|k| (row + k as f32) * (column - k as f32));
        assert_eq!(f32::from_bits(bits), 2.0 * products.sum::<f32>(), "{at}");
    }
    let apart = body.replace("sums = coopMultiplyAdd(left, right, sums);", "")
        + "if lane != 5u { coopStoreT(sums, &c[0], 4u); }";
    let fault = launch(32, 1, (declarations, &apart), vec![0], 256).unwrap_err();
    assert!(matches!(fault, Fault::Divergent { .. }), "{fault}");
}

#[test]
fn indices_beyond_the_end() {
    let fault = first("", "y[at] = x[at + 1u];").unwrap_err();
    assert!(
        matches!(&fault, Fault::OutOfBounds { name, index: 64, len: 64, .. } if name == "x"),
        "{fault}"
    );
    // Not by those who do not take part.
    gives("", "if lane < 63u { y[at] = x[at + 1u]; }", |n| {
        (n + 1) % 64
    });
    let inner = "var rows: array<array<u32, 2>, 2>; y[at] = rows[0][lane % 3u];";
    let fault = first("", inner).unwrap_err();
    assert!(
        matches!(
            fault,
            Fault::OutOfBounds {
                index: 2,
                len: 2,
                ..
            }
        ),
        "{fault}"
    );
}

const SHARED: &str = "var<workgroup> shared_words: array<u32, 64>;";

#[test]
fn workgroup_memory() {
    let exchange = "shared_words[lane] = lane; BARRIER y[at] = shared_words[63u - lane];";
    gives(
        SHARED,
        &exchange.replace("BARRIER", "workgroupBarrier();"),
        |n| 63 - n,
    );
    // A barrier for buffers orders no workgroup memory, one of a subgroup no other's.
    for barrier in ["", "storageBarrier();", "subgroupBarrier();"] {
        let fault = first(SHARED, &exchange.replace("BARRIER", barrier)).unwrap_err();
        assert_races(&fault, "reads", "wrote");
    }
    let over =
        "shared_words[lane] = lane; workgroupBarrier(); let other = shared_words[63u - lane];
         BARRIER shared_words[lane] = other; y[at] = other;";
    gives(
        SHARED,
        &over.replace("BARRIER", "workgroupBarrier();"),
        |n| 63 - n,
    );
    let fault = first(SHARED, &over.replace("BARRIER", "")).unwrap_err();
    assert_races(&fault, "writes", "read");
    let fault = first(SHARED, "shared_words[0] = lane;").unwrap_err();
    assert_races(&fault, "writes", "wrote");
    // All write the same.
    gives(SHARED, "shared_words[0] = 5u; y[at] = 0u;", |_| 0);
    let fault = first(SHARED, "y[at] = shared_words[lane];").unwrap_err();
    assert!(matches!(fault, Fault::Unwritten { word: 0, .. }), "{fault}");
}

#[test]
fn barriers_that_some_do_not_reach() {
    let fault = first("", "if lane < 60u { workgroupBarrier(); }").unwrap_err();
    assert!(
        matches!(fault, Fault::Divergent { missing, .. } if missing.index == 60),
        "{fault}"
    );
    gives(
        "",
        "if lane < 60u { y[at] = subgroupBroadcast(lane, 27u); }",
        |n| if n < 60 { n / 32 * 32 + 27 } else { 0 },
    );
    let fault = first(
        "",
        "if lane < 60u { y[at] = subgroupBroadcast(lane, 31u); }",
    );
    let fault = fault.unwrap_err();
    assert!(
        matches!(fault, Fault::Divergent { missing, .. } if missing.index == 63),
        "{fault}"
    );
}

/// Three workgroups, which store words and load each other's, by way of a counter; what
/// they have loaded.
fn across(coherent: &str, body: &str) -> Result<Vec<u32>, Fault> {
    let text = format!(
        "@group(0) @binding(1) {coherent} var<storage, read_write> y: array<u32>;
         @group(0) @binding(2) var<storage, read_write> counter: array<atomic<u32>>;
         @compute @workgroup_size(64)
         fn main(
             @builtin(local_invocation_index) lane: u32,
             @builtin(workgroup_id) workgroup: vec3<u32>,
         ) {{
             let at = workgroup.x * 64u + lane;
             y[at] = at + 1u;
             {body}
             y[at + 192u] = y[(at + 100u) % 192u];
         }}"
    );
    let kernel = Kernel::new(&text)?;
    let mut device = Device::new(32);
    let (y, counter) = (device.buffer(vec![0; 384]), device.buffer(vec![0; 1]));
    device.launch(&kernel, [3, 1, 1], &[], &[y, counter])?;
    Ok(device.words(y)[192..].to_vec())
}

const ARRIVE: &str = "if lane == 0u { atomicAdd(&counter[0], 1u); }";
const WAIT: &str = "if lane == 0u { while atomicLoad(&counter[0]) < 3u {} }";

#[test]
fn buffers_across_workgroups() {
    let (before, after) = ("storageBarrier();", "workgroupBarrier();");
    let proper = [before, ARRIVE, WAIT, after].concat();
    let wanted: Vec<u32> = (0..192).map(|at| (at + 100) % 192 + 1).collect();
    assert_eq!(across("@coherent", &proper).unwrap(), wanted);
    for order in [
        // What others of the workgroup stored is not known to be before the arrival,
        [ARRIVE, WAIT, after].concat(),
        ["workgroupBarrier();", ARRIVE, WAIT, after].concat(),
        // nor by the looks behind the barrier, which hand nothing on;
        [ARRIVE, before, WAIT, after].concat(),
        // nor that all have arrived before others of the workgroup load.
        [before, ARRIVE, WAIT].concat(),
    ] {
        let fault = across("@coherent", &order).unwrap_err();
        assert!(matches!(fault, Fault::Race { .. }), "{order}: {fault}");
    }
    // What was stored need not be seen by other workgroups at all.
    let fault = across("", &proper).unwrap_err();
    assert!(matches!(fault, Fault::Race { .. }), "{fault}");
    // Without an atomic nothing orders workgroups, whichever runs first.
    let body = (
        "",
        "y[at] = 1u; storageBarrier(); y[at + 192u] = y[(at + 100u) % 192u];",
    );
    let fault = launch(32, 3, body, vec![0], 384).unwrap_err();
    assert!(matches!(fault, Fault::Race { .. }), "{fault}");
}

#[test]
fn atomics_in_workgroup_memory() {
    let counter = "var<workgroup> counter: atomic<u32>;";
    gives(
        counter,
        "if lane == 0u { atomicStore(&counter, 7u); }
         workgroupBarrier();
         let own = atomicAdd(&counter, 2u);
         workgroupBarrier();
         y[at] = own + atomicLoad(&counter);",
        |n| 7 + 2 * n + 7 + 128,
    );
    let fault = first(counter, "atomicAdd(&counter, 1u);").unwrap_err();
    assert!(matches!(fault, Fault::Unwritten { .. }), "{fault}");
}

/// A word that one workgroup reads and another writes, whichever of them is first.
#[test]
fn words_read_by_several_workgroups() {
    let body = (
        "",
        "let first = y[0]; storageBarrier(); y[at + 1u] = first;
         if at == 128u { y[0] = 7u; }",
    );
    let fault = launch(32, 3, body, vec![0], 384).unwrap_err();
    assert_races(&fault, "writes", "read");
}

/// What two workgroups of 64 on a CPU leave in an image of 16 by 16 texels, whose words are
/// their numbers at first: `at` is an invocation's number, `own` its texel's place.
fn in_image(body: &str) -> Result<Vec<u32>, Fault> {
    in_image_on(Device::on_cpu(8), body)
}

fn in_image_on(mut device: Device, body: &str) -> Result<Vec<u32>, Fault> {
    let text = format!(
        "@group(0) @binding(1) var z: texture_storage_2d<rgba32uint, read_write>;
         @group(0) @binding(2) var<storage, read_write> ready: array<atomic<u32>>;
         @compute @workgroup_size(64)
         fn main(
             @builtin(local_invocation_index) lane: u32,
             @builtin(global_invocation_id) id: vec3<u32>,
         ) {{
             let at = id.x;
             let own = vec2<u32>(at % 16u, at / 16u);
             {body}
         }}"
    );
    let kernel = Kernel::new(&text)?;
    let z = device.image(16, (0..1024).collect());
    let ready = device.buffer(vec![0]);
    device.launch(&kernel, [2, 1, 1], &[], &[z, ready])?;
    Ok(device.words(z).to_vec())
}

#[test]
fn texels() {
    let doubled = in_image("textureStore(z, own, textureLoad(z, own) * 2u);").unwrap();
    assert_eq!(
        doubled[..512],
        (0..512).map(|n| 2 * n).collect::<Vec<u32>>()
    );

    // Places beyond the last in a row or the last row.
    for (place, index) in [
        ("own + vec2<u32>(1u, 0u)", 16),
        ("own + vec2<u32>(0u, 9u)", 16),
    ] {
        let fault = in_image(&format!("let texel = textureLoad(z, {place});")).unwrap_err();
        let Fault::OutOfBounds { index: found, .. } = fault else {
            panic!("{fault}");
        };
        assert_eq!(found, index);
    }

    // The texels of others, with something between or not.
    let body = |between: &str| {
        format!(
            "textureStore(z, own, vec4<u32>(at));
             {between}
             let other = (at + 64u) % 128u;
             let texel = textureLoad(z, vec2<u32>(other % 16u, other / 16u));
             textureStore(z, own + vec2<u32>(0u, 8u), texel);"
        )
    };
    let meet = "if lane == 0u {
            atomicAdd(&ready[0], 1u);
            while atomicAdd(&ready[0], 0u) < 2u {}
        }";
    let proper = body(&format!("textureBarrier(); {meet} workgroupBarrier();"));
    let found = in_image(&proper).unwrap();
    let wanted = (0..512).map(|word| (word / 4 + 64) % 128);
    assert_eq!(found[512..], wanted.collect::<Vec<u32>>());
    for between in [
        "textureBarrier();".to_owned(),
        // What is said of buffers says nothing of images.
        format!("storageBarrier(); {meet} workgroupBarrier();"),
        format!("textureBarrier(); {meet}"),
    ] {
        assert_races(&in_image(&body(&between)).unwrap_err(), "reads", "wrote");
    }
    // What was stored need not be seen at all, but on a CPU.
    let fault = in_image_on(Device::new(8), &proper).unwrap_err();
    assert_races(&fault, "reads", "wrote");
}

#[test]
fn loops_without_an_end() {
    let fault = first("", "var i = 0u; while i < 2u { i = lane % 2u; }").unwrap_err();
    assert!(matches!(fault, Fault::Endless { .. }), "{fault}");
}

#[test]
fn what_is_no_kernel() {
    let fault = Kernel::new("fn main() { return 1; }").unwrap_err();
    assert!(matches!(fault, Fault::Invalid(_)), "{fault}");
    let kernel = "@group(0) @binding(3) var<storage, read> z: array<u32>;
        @compute @workgroup_size(1) fn main() { let first = z[0]; }";
    let mut device = Device::new(32);
    let one = device.buffer(vec![0]);
    let fault = device.launch(&Kernel::new(kernel).unwrap(), [1, 1, 1], &[], &[one]);
    let fault = fault.unwrap_err();
    assert_eq!(
        fault.to_string(),
        "`z` is at binding 3, where no buffer is given"
    );
    let image = device.image(1, vec![0; 4]);
    let fault = device.launch(
        &Kernel::new(kernel).unwrap(),
        [1, 1, 1],
        &[],
        &[one, one, image],
    );
    assert!(matches!(fault, Err(Fault::Unbound { what: "buffer", .. })));
    let kernel = "@group(0) @binding(1) var z: texture_storage_2d<rgba32uint, read>;
        @compute @workgroup_size(1) fn main() { let first = textureLoad(z, vec2<u32>()); }";
    let fault = device.launch(&Kernel::new(kernel).unwrap(), [1, 1, 1], &[], &[one]);
    assert!(matches!(fault, Err(Fault::Unbound { what: "image", .. })));
}
