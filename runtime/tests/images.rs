//! Weights and buffers as images: what kernels load and store as texels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::*;
use kiln_ir::plan::{
    Access, Binding, Buffer, Entry, Kernel, Launch, Port, TEXEL_BYTES, TEXELS_IN_ROW, Variant,
};
use kiln_ir::{Bindings, DType, Dim, TensorType};
use kiln_runtime::{Artifact, Model, OutputData, Result, RunOptions, WeightSource};

/// Three rows of texels and a part of a fourth.
const TEXELS: u64 = 3 * TEXELS_IN_ROW + 25;

/// The weight's words, in pieces that end in the middle of texels and of rows.
struct Pieces;

fn word(i: u64) -> u32 {
    (i as u32).wrapping_mul(2_654_435_761)
}

impl WeightSource for Pieces {
    fn visit(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        assert_eq!(name, "gain");
        let words = (0..TEXELS * 4).flat_map(|i| word(i).to_le_bytes());
        let mut rest: Vec<u8> = words.collect();
        let row = (TEXEL_BYTES * TEXELS_IN_ROW) as usize;
        for length in [4, 12, row - 20, 4, row + 8, row - 4] {
            let piece: Vec<u8> = rest.drain(..length).collect();
            sink(&piece)?;
        }
        sink(&rest)
    }
}

const FROM_WEIGHT: &str = "
@group(0) @binding(1) var weights: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(2) var scratch: texture_storage_2d<rgba32uint, write>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let at = vec2<u32>(id.x % ROW, id.x / ROW);
    textureStore(scratch, at, textureLoad(weights, at) + 1u);
}
";

const TO_OUTPUT: &str = "
@group(0) @binding(1) var scratch: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(2) var<storage, read_write> words: array<vec4<u32>>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&words) {
        words[id.x] = textureLoad(scratch, vec2<u32>(id.x % ROW, id.x / ROW));
    }
}
";

#[test]
fn texels_are_the_bytes_in_order() {
    let mut plan = plan();
    let mut texts = BTreeMap::new();
    plan.kernels.clear();
    for (name, text, bindings) in [
        ("read", FROM_WEIGHT, [Access::Texels, Access::WriteTexels]),
        ("write", TO_OUTPUT, [Access::Texels, Access::ReadWrite]),
    ] {
        let file = format!("kernels/{name}.wgsl");
        let row = format!("const ROW: u32 = {TEXELS_IN_ROW}u;\n");
        texts.insert(file.clone(), row + text);
        let kernel = Kernel {
            file,
            workgroup_size: [64, 1, 1],
            bindings: bindings.to_vec(),
        };
        plan.kernels.insert(name.to_owned(), kernel);
    }
    let launch = |kernel: &str, bindings: [Binding; 2]| Launch {
        label: kernel.to_owned(),
        kernel: kernel.to_owned(),
        workgroups: Dim::constant(TEXELS.div_ceil(64)),
        bindings: bindings.to_vec(),
        flops: 0.into(),
        bytes: 0.into(),
    };
    let buffer = |name: &str, image: bool| Buffer {
        name: name.to_owned(),
        bytes: vec![Dim::constant(TEXELS * TEXEL_BYTES)],
        image,
    };
    let entry = Entry {
        symbols: vec![],
        inputs: vec![],
        outputs: vec![Port {
            name: "words".to_owned(),
            ty: TensorType::new(DType::I32, [Dim::constant(TEXELS * 4)]),
            buffer: 0,
        }],
        buffers: vec![buffer("words", false), buffer("scratch", true)],
        variants: vec![Variant {
            grid: None,
            name: "all".to_owned(),
            bounds: vec![],
            launches: vec![
                launch("read", [Binding::Weight(0), Binding::Buffer(1)]),
                launch("write", [Binding::Buffer(1), Binding::Buffer(0)]),
            ],
            streams: vec![],
        }],
    };
    plan.weights[0].bytes = TEXELS * TEXEL_BYTES;
    plan.tiers.truncate(1);
    plan.tiers[0].requires = Default::default();
    plan.tiers[0].entries = [("copy".to_owned(), entry)].into();

    let artifact =
        Artifact::from_parts(plan, texts, BTreeMap::new(), None, Box::new(Pieces)).unwrap();
    for backend in ["vulkan", "gl"] {
        let adapter = adapter(backend);
        let model = Model::open(&adapter, &artifact, &options(), &mut |_| {}).unwrap();
        assert_eq!(model.weight_bytes(), TEXELS * TEXEL_BYTES);
        let outputs = model.run_collect("copy", &[], &Bindings::new(), &RunOptions::default());
        let outputs = outputs.unwrap();
        let OutputData::I32(words) = &outputs[0].data else {
            panic!("{backend}: not integers");
        };
        let wanted = (0..TEXELS * 4).map(|i| word(i).wrapping_add(1) as i32);
        let wrong = words.iter().copied().zip(wanted).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{backend}");
        assert_eq!(words.len() as u64, TEXELS * 4);
    }
}
