//! Weights and buffers as images: what kernels load and store as texels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::*;
use kiln_ir::plan::{
    Access, Binding, Buffer, Entry, ImageSize, Kernel, Launch, MOST_TEXELS, Plan, Port,
    TEXEL_BYTES, TEXELS_IN_ROW, Variant, WeightBuffer, WeightPart,
};
use kiln_ir::{Bindings, DType, Dim, Packing, TensorType};
use kiln_runtime::{Artifact, Model, OutputData, Result, RunOptions, WeightSource};

/// Weights by name, in pieces that end in the middle of texels, of rows of texels and
/// of bands.
struct Pieces(BTreeMap<&'static str, Vec<u8>>);

impl WeightSource for Pieces {
    fn visit(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut rest = self.0[name].as_slice();
        let row = (TEXEL_BYTES * TEXELS_IN_ROW) as usize;
        for length in [4, 12, row - 20, 4, row + 8, row - 4] {
            let (piece, others) = rest.split_at(length.min(rest.len()));
            sink(piece)?;
            rest = others;
        }
        sink(rest)
    }
}

/// Bytes that differ from their neighbours.
fn bytes(count: u64) -> Vec<u8> {
    let words = (0..count as u32 / 4).map(|i| i.wrapping_mul(2_654_435_761));
    words.flat_map(u32::to_le_bytes).collect()
}

const FROM_WEIGHT: &str = "
@group(0) @binding(1) var weights: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(2) var scratch: texture_storage_2d<rgba32uint, write>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let texel = textureLoad(weights, vec2<u32>(id.x % ACROSS, id.x / ACROSS));
    textureStore(scratch, vec2<u32>(id.x % ROW, id.x / ROW), texel + 1u);
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

/// Runs `plan` with an entry that copies the texels of its first weight, each word plus
/// one, row by row, and checks that they are those of `image`.
fn check(mut plan: Plan, weights: BTreeMap<&'static str, Vec<u8>>, image: &[u8]) {
    let texels = image.len() as u64 / TEXEL_BYTES;
    let size = plan.weights[0].image();
    assert!(texels <= size.across * size.down && texels > size.across * (size.down - 1));
    let mut texts = BTreeMap::new();
    plan.kernels.clear();
    for (name, text, bindings) in [
        ("read", FROM_WEIGHT, [Access::Texels, Access::WriteTexels]),
        ("write", TO_OUTPUT, [Access::Texels, Access::ReadWrite]),
    ] {
        let file = format!("kernels/{name}.wgsl");
        let rows = format!(
            "const ROW: u32 = {TEXELS_IN_ROW}u;\nconst ACROSS: u32 = {}u;\n",
            size.across
        );
        texts.insert(file.clone(), rows + text);
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
        workgroups: Dim::constant(texels.div_ceil(64)),
        bindings: bindings.to_vec(),
        flops: 0.into(),
        bytes: 0.into(),
        alternatives: vec![],
    };
    let buffer = |name: &str, image: bool| Buffer {
        name: name.to_owned(),
        bytes: vec![Dim::constant(texels * TEXEL_BYTES)],
        image,
        zeroed: false,
    };
    let entry = Entry {
        symbols: vec![],
        inputs: vec![],
        outputs: vec![Port {
            name: "words".to_owned(),
            ty: TensorType::new(DType::I32, [Dim::constant(texels * 4)]),
            buffer: 0,
        }],
        buffers: vec![buffer("words", false), buffer("scratch", true)],
        rows: None,
        slices: Vec::new(),
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
    plan.tiers.truncate(1);
    plan.tiers[0].requires = Default::default();
    plan.tiers[0].entries = [("copy".to_owned(), entry)].into();

    let source = Box::new(Pieces(weights));
    let artifact =
        Artifact::from_parts(plan, texts, BTreeMap::new(), BTreeMap::new(), source).unwrap();
    let words: &[u32] = bytemuck::cast_slice(image);
    for backend in ["vulkan", "gl"] {
        let adapter = adapter(backend);
        let model = Model::open(&adapter, &artifact, &options(), &mut |_| {}).unwrap();
        assert_eq!(model.weight_bytes(), size.bytes());
        let outputs = model.run_collect("copy", &[], &Bindings::new(), &RunOptions::default());
        let outputs = outputs.unwrap();
        let OutputData::I32(copied) = &outputs[0].data else {
            panic!("{backend}: not integers");
        };
        let wanted = words.iter().map(|word| word.wrapping_add(1) as i32);
        let wrong = copied.iter().copied().zip(wanted).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{backend}");
        assert_eq!(copied.len(), words.len());
    }
}

#[test]
fn texels_are_the_bytes_in_order() {
    // Three rows of texels and a part of a fourth.
    let image = bytes((3 * TEXELS_IN_ROW + 25) * TEXEL_BYTES);
    let mut plan = plan();
    plan.weights[0].bytes = image.len() as u64;
    let weights = [("gain", image.clone())].into();
    check(plan, weights, &image);
}

#[test]
fn matrices_lie_in_bands() {
    // A band is a row of texels, two are, or bands are too long for that.
    let sizes = [
        (2003, 100, Some(1)),
        (8 * MOST_TEXELS + 3, 32, Some(2)),
        (100, 33_000, None),
    ];
    let all = Packing::ALL.into_iter();
    for (packing, (rows, k, bands_across)) in all.flat_map(|p| sizes.map(|s| (p, s))) {
        let size = ImageSize::of_matrix(packing, rows, k as u64);
        assert_eq!(size.bands_across, bands_across);
        // Rows of zeros make the last band whole.
        let stored = (rows as usize).next_multiple_of(8);
        let data = bytes(packing.data_bytes(stored, k) as u64);
        let scales = bytes(packing.scale_bytes(stored, k) as u64);
        let part = |scales: bool| WeightPart {
            param: "w".to_owned(),
            shape: vec![rows, k as u64],
            packing,
            scales,
            first_row: 0,
            rows,
            offset: 0,
        };
        let weight = |name: &str, bytes: &[u8], scales: bool| WeightBuffer {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            contents: vec![part(scales)],
        };
        let mut plan = plan();
        plan.weights = vec![weight("w", &data, false)];
        if packing.has_scales() {
            plan.weights.push(weight("w.scales", &scales, true));
        }
        let mut image = Vec::new();
        packing.bands(&data, &scales, k, &mut image);
        check(plan, [("w", data), ("w.scales", scales)].into(), &image);
    }
}
