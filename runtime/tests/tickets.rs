//! Stages of a launch whose tiles are taken by tickets, as the code generator joins
//! kernels for CPU drivers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::*;
use kiln_ir::plan::{Access, Binding, Buffer, Entry, Kernel, Launch, Port, Variant};
use kiln_ir::{Bindings, DType, Dim, TensorType};
use kiln_runtime::{Artifact, Model, OutputData, RunOptions};

/// Tiles of the stages: the first adds 1 to its elements of `a`, a round of a loop for
/// each of ROUNDS; the second adds the sum of `a` to its elements of `b`, the last that
/// of `b` to `total`.
const TILES: [u32; 3] = [20, 6, 1];

const STAGES: &str = "
const STAGES: u32 = 3u;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;
@group(0) @binding(2) var<storage, read_write> grid_state: array<atomic<u32>>;

const A: u32 = 20u * 8u;
const B: u32 = 6u * 8u;

fn add_rounds(at: u32) {
    var rounds = 0u;
    // A number that no compiler knows.
    while rounds < ROUNDS + sym.block {
        rounds += 1u;
    }
    words[at] += rounds / ROUNDS;
}

fn add_sum(at: u32, first: u32, end: u32) {
    for (var i = first; i < end; i++) {
        words[at] += words[i];
    }
}

fn stages(lane: u32) {
    // As the code generator writes loops over tiles, and for its reason.
    var tile = grid_take(0u, lane);
    if tile < 20u {
        loop {
            add_rounds(tile * 8u + lane);
            grid_complete(0u, lane);
            tile = grid_take(0u, lane);
            if tile >= 20u {
                break;
            }
        }
    }
    if !grid_wait(0u, 20u, lane) {
        return;
    }
    tile = grid_take(1u, lane);
    if tile < 6u {
        loop {
            add_sum(A + tile * 8u + lane, 0u, A);
            grid_complete(1u, lane);
            tile = grid_take(1u, lane);
            if tile >= 6u {
                break;
            }
        }
    }
    if !grid_wait(1u, 6u, lane) {
        return;
    }
    tile = grid_take(2u, lane);
    if tile < 1u {
        loop {
            if lane == 0u {
                add_sum(A + B, A, A + B);
            }
            grid_complete(2u, lane);
            tile = grid_take(2u, lane);
            if tile >= 1u {
                break;
            }
        }
    }
}

@compute @workgroup_size(8)
fn main(
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    stages(lane);
    grid_leave(workgroups.x, 1u, lane);
}
";

const STATE: &str = "
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> copied: array<u32>;
@compute @workgroup_size(8)
fn main(@builtin(local_invocation_index) lane: u32) {
    copied[lane] = state[lane];
}
";

/// What two launches of so many workgroups leave in `words` and in the state.
fn run(workgroups: u64, patience: u32, rounds: u32) -> (Vec<i32>, Vec<i32>) {
    let mut plan = plan();
    plan.kernels.clear();
    let constants = format!("const PATIENCE: u32 = {patience}u;\nconst ROUNDS: u32 = {rounds}u;\n");
    let stages = [HEAD, &constants, kiln_shaders::TICKETS, STAGES].concat();
    let mut texts = BTreeMap::new();
    for (name, text, bindings) in [
        ("stages", stages, [Access::ReadWrite, Access::ReadWrite]),
        (
            "state",
            HEAD.to_owned() + STATE,
            [Access::Read, Access::ReadWrite],
        ),
    ] {
        let file = format!("kernels/{name}.wgsl");
        texts.insert(file.clone(), text);
        let kernel = Kernel {
            file,
            workgroup_size: [8, 1, 1],
            bindings: bindings.to_vec(),
        };
        plan.kernels.insert(name.to_owned(), kernel);
    }
    let launch = |kernel: &str, workgroups: u64, bindings: [Binding; 2]| Launch {
        label: kernel.to_owned(),
        kernel: kernel.to_owned(),
        workgroups: workgroups.into(),
        bindings: bindings.to_vec(),
        flops: 0.into(),
        bytes: 0.into(),
        alternatives: vec![],
    };
    let stages = launch(
        "stages",
        workgroups,
        [Binding::Buffer(0), Binding::Buffer(2)],
    );
    let state = launch("state", 1, [Binding::Buffer(2), Binding::Buffer(1)]);
    let words = 8 * (TILES[0] + TILES[1]) + 1;
    let sizes = [("words", words), ("copied", 8), ("state", 8)];
    let port = |buffer: usize| Port {
        name: sizes[buffer].0.to_owned(),
        ty: TensorType::new(DType::I32, [Dim::constant(sizes[buffer].1.into())]),
        buffer,
    };
    let buffers = sizes.map(|(name, words)| Buffer {
        name: name.to_owned(),
        bytes: vec![Dim::constant(4 * u64::from(words))],
        image: false,
        zeroed: name == "state",
    });
    let entry = Entry {
        symbols: vec![],
        inputs: vec![],
        outputs: vec![port(0), port(1)],
        buffers: buffers.into(),
        rows: None,
        slices: Vec::new(),
        variants: vec![Variant {
            grid: None,
            name: "all".to_owned(),
            bounds: vec![],
            launches: vec![stages.clone(), stages, state],
            streams: vec![],
        }],
    };
    plan.tiers.truncate(1);
    plan.tiers[0].requires = Default::default();
    plan.tiers[0].entries = [("stages".to_owned(), entry)].into();
    let weights = Box::new(weights());
    let artifact =
        Artifact::from_parts(plan, texts, BTreeMap::new(), BTreeMap::new(), weights).unwrap();
    let adapter = adapter("vulkan");
    let model = Model::open(&adapter, &artifact, &options(), &mut |_| {}).unwrap();
    let outputs = model.run_collect("stages", &[], &Bindings::new(), &RunOptions::default());
    let words = outputs
        .unwrap()
        .into_iter()
        .map(|output| match output.data {
            OutputData::I32(words) => words,
            other => panic!("not integers: {other:?}"),
        });
    let [words, state] = words.collect::<Vec<_>>().try_into().unwrap();
    (words, state)
}

/// `a`, `b` and `total` behind two launches.
fn expected() -> Vec<i32> {
    let [a, b, _] = TILES.map(|tiles| 8 * tiles as i32);
    let mut out = vec![2; a as usize];
    out.extend(vec![a + 2 * a; b as usize]);
    out.push(b * a + b * (a + 2 * a));
    out
}

#[test]
fn any_number_of_workgroups_does_all_tiles_once() {
    for workgroups in [1, 2, 3, 64] {
        // Without patience all but one leave where they would have to wait.
        for patience in [1 << 14, 0] {
            let (words, state) = run(workgroups, patience, 1);
            assert_eq!(words, expected(), "{workgroups}, {patience}");
            assert_eq!(state, [0; 8], "{workgroups}, {patience}");
        }
    }
}

/// A driver that ends loops early is found out.
#[test]
fn loops_that_end_early_are_seen() {
    let (words, state) = run(1, 1 << 14, 1000);
    assert_eq!((words, state[1]), (expected(), 0));
    let (words, state) = run(1, 1 << 14, 30_000);
    assert_eq!(state[1] != 0, words != expected(), "{words:?}");
    assert_eq!(state[0], 0);
}
