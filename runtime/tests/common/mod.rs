//! A tiny model written by hand: enough to exercise every part of the runtime
//! without the compiler.
//!
//! `forward` gives `hidden[b, i] = (id * gain, id + 1)` and, as a stream in blocks
//! of three rows, `logits[b, i, v] = hidden[b, i, 0] * 100 + v`. `step` keeps the
//! ids as its state; its logits are the largest at the sum of all ids from `start`
//! on, modulo the vocabulary.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use kiln_ir::plan::*;
use kiln_ir::{DType, Dim, Symbol, SymbolDecl, TensorType};
use kiln_runtime::{Adapter, Artifact, LoadOptions, Model};

pub const VOCAB: u32 = 11;
pub const GAIN: f32 = 0.5;
pub const CONTEXT_MAX: u64 = 24;
pub const STEP_MAX: u64 = 4;

pub const HEAD: &str =
    "struct Symbols { batch: u32, seq: u32, past: u32, context: u32, block: u32 }
@group(0) @binding(0) var<uniform> sym: Symbols;
";

const HIDDEN: &str = "
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read_write> hidden: array<f32>;
@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + group.y * groups.x) * 8u + local;
    if (i >= sym.batch * sym.seq) { return; }
    let token = f32(ids[i]);
    hidden[i * 2u] = token * gain[0];
    hidden[i * 2u + 1u] = token + 1.0;
}
";

const LOGITS: &str = "
@group(0) @binding(1) var<storage, read> hidden: array<f32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / 11u + sym.block;
    if (id.x >= 33u || row >= sym.batch * sym.seq) { return; }
    logits[id.x] = hidden[row * 2u] * 100.0 + f32(id.x % 11u);
}
";

const STORE: &str = "
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read_write> kept: array<i32>;
@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= sym.batch * sym.seq) { return; }
    let b = id.x / sym.seq;
    kept[b * sym.context + sym.past + id.x % sym.seq] = ids[id.x];
}
";

pub const NEXT: &str = "
@group(0) @binding(1) var<storage, read> kept: array<i32>;
@group(0) @binding(2) var<storage, read> start: array<i32>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;
@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= sym.batch * 11u) { return; }
    let b = id.x / 11u;
    var sum = 0;
    for (var j = u32(start[b]); j < sym.past + sym.seq; j++) {
        sum += kept[b * sym.context + j];
    }
    let distance = abs(f32(id.x % 11u) - f32(sum % 11));
    logits[id.x] = 5.0 - distance;
}
";

fn dim(text: &str) -> Dim {
    text.parse().unwrap()
}

fn symbol(name: &str, max: u64) -> SymbolDecl {
    SymbolDecl {
        name: Symbol::new(name),
        max,
    }
}

fn port(name: &str, dtype: DType, shape: &[&str], buffer: usize) -> Port {
    Port {
        name: name.into(),
        ty: TensorType::new(dtype, shape.iter().map(|s| dim(s))),
        buffer,
    }
}

fn buffer(name: &str, bytes: &str) -> Buffer {
    Buffer {
        image: false,
        zeroed: false,
        name: name.into(),
        bytes: vec![dim(bytes)],
    }
}

fn launch(kernel: &str, workgroups: &str, bindings: &[Binding]) -> Launch {
    Launch {
        label: format!("tiny.{kernel}"),
        kernel: kernel.into(),
        workgroups: dim(workgroups),
        bindings: bindings.to_vec(),
        flops: dim("batch*seq*2"),
        bytes: dim("batch*seq*8"),
        alternatives: vec![],
    }
}

fn forward() -> Entry {
    use Binding::{Buffer as B, Weight};
    let rows = "ceil(batch*seq / 8)";
    Entry {
        symbols: vec![],
        inputs: vec![port("ids", DType::I32, &["batch", "seq"], 0)],
        outputs: vec![
            port("hidden", DType::F32, &["batch", "seq", "2"], 1),
            port("logits", DType::F32, &["batch", "seq", "11"], 2),
        ],
        buffers: vec![
            buffer("ids", "batch*seq*4"),
            buffer("hidden", "batch*seq*8"),
            buffer("logits", "132"),
        ],
        rows: None,
        slices: Vec::new(),
        variants: vec![Variant {
            grid: None,
            name: "all".into(),
            bounds: vec![],
            launches: vec![launch("hidden", rows, &[B(0), Weight(0), B(1)])],
            streams: vec![Stream {
                output: 1,
                rows: dim("batch*seq"),
                rows_per_block: 3,
                launches: vec![launch("logits", "5", &[B(1), B(2)])],
            }],
        }],
    }
}

fn step() -> Entry {
    use Binding::{Buffer as B, State};
    let variant = |name: &str, max: u64| Variant {
        grid: None,
        name: name.into(),
        bounds: vec![Bound {
            size: dim("seq"),
            max,
        }],
        launches: vec![
            launch("store", "ceil(batch*seq / 8)", &[B(0), State(0)]),
            launch("next", "ceil(batch*11 / 8)", &[State(0), B(1), B(2)]),
        ],
        streams: vec![],
    };
    Entry {
        symbols: vec![symbol("seq", STEP_MAX)],
        inputs: vec![
            port("ids", DType::I32, &["batch", "seq"], 0),
            port("start", DType::I32, &["batch"], 1),
        ],
        outputs: vec![port("logits", DType::F32, &["batch", "11"], 2)],
        buffers: vec![
            buffer("ids", "batch*seq*4"),
            buffer("start", "batch*4"),
            buffer("logits", "batch*44"),
        ],
        rows: None,
        slices: Vec::new(),
        variants: vec![variant("decode", 1), variant("prefill", STEP_MAX)],
    }
}

pub fn kernels() -> BTreeMap<String, String> {
    let bodies = [
        ("hidden", HIDDEN),
        ("logits", LOGITS),
        ("next", NEXT),
        ("store", STORE),
    ];
    let texts =
        bodies.map(|(name, body)| (format!("kernels/{name}.wgsl"), format!("{HEAD}{body}")));
    texts.into()
}

pub fn plan() -> Plan {
    use Access::{Read as R, ReadWrite as W};
    let kernel = |name: &str, bindings: &[Access]| {
        let kernel = Kernel {
            file: format!("kernels/{name}.wgsl"),
            workgroup_size: [8, 1, 1],
            bindings: bindings.to_vec(),
        };
        (name.to_owned(), kernel)
    };
    let entries: BTreeMap<String, Entry> =
        [("forward".into(), forward()), ("step".into(), step())].into();
    let fancy = Requirements {
        features: vec!["texture-compression-astc-sliced-3d".into()],
        ..Requirements::default()
    };
    let tier = |name: &str, requires| Tier {
        checks: Vec::new(),
        name: name.into(),
        requires,
        half_states: false,
        entries: entries.clone(),
    };
    Plan {
        version: PLAN_VERSION,
        compiler: "by hand".into(),
        model: ModelInfo {
            family: "tiny".into(),
            config: "{}".into(),
            weight_dtype: "f32".into(),
            parameters: 1,
            vocab_size: VOCAB.into(),
            max_context: CONTEXT_MAX,
            eos_tokens: vec![0],
        },
        symbols: vec![
            symbol("batch", 3),
            symbol("seq", CONTEXT_MAX),
            symbol("past", CONTEXT_MAX - 1),
        ],
        uniforms: ["batch", "seq", "past", "context", "block"]
            .map(String::from)
            .into(),
        weights: vec![WeightBuffer {
            name: "gain".into(),
            bytes: 16,
            contents: vec![],
        }],
        states: vec![StateBuffer {
            name: "kept".into(),
            bytes: dim("batch*context*4"),
        }],
        kernels: [
            kernel("hidden", &[R, R, W]),
            kernel("logits", &[R, W]),
            kernel("store", &[R, W]),
            kernel("next", &[R, R, W]),
        ]
        .into(),
        tiers: vec![tier("fancy", fancy), tier("base", Requirements::default())],
        files: BTreeMap::new(),
    }
}

pub fn weights() -> BTreeMap<String, Vec<u8>> {
    let mut bytes = GAIN.to_le_bytes().to_vec();
    bytes.resize(16, 0);
    [("gain".to_owned(), bytes)].into()
}

pub fn artifact_of(plan: Plan) -> Artifact {
    let weights = Box::new(weights());
    Artifact::from_parts(plan, kernels(), BTreeMap::new(), BTreeMap::new(), weights).unwrap()
}

/// The back ends that every test of a device runs on.
pub const BACKENDS: [&str; 2] = ["vulkan", "gl"];

pub fn adapter(backend: &str) -> Adapter {
    Adapter::select(Some(backend)).unwrap_or_else(|e| {
        panic!(
            "this test needs an adapter on `{backend}` ({e}); on Debian and Ubuntu install \
             mesa-vulkan-drivers and libegl1"
        )
    })
}

pub fn options() -> LoadOptions {
    LoadOptions {
        cache_dir: None,
        ..LoadOptions::default()
    }
}

pub fn model(backend: &str) -> Model {
    let artifact = artifact_of(plan());
    Model::open(&adapter(backend), &artifact, &options(), &mut |_| {}).unwrap()
}

/// The message of an error.
pub fn message<T>(result: kiln_runtime::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(e) => e.to_string(),
    }
}
