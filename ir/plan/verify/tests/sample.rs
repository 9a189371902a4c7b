//! A valid plan, and ways to spoil it.

use super::*;

pub fn dim(text: &str) -> Dim {
    text.parse().unwrap()
}

pub fn symbol(name: &str, max: u64) -> SymbolDecl {
    let name = Symbol::new(name);
    SymbolDecl { name, max }
}

pub fn port(name: &str, dtype: DType, shape: &[&str], buffer: usize) -> Port {
    Port {
        name: name.into(),
        ty: TensorType::new(dtype, shape.iter().map(|s| dim(s))),
        buffer,
    }
}

pub fn buffer(name: &str, bytes: &[&str]) -> Buffer {
    Buffer {
        image: false,
        zeroed: false,
        name: name.into(),
        bytes: bytes.iter().map(|b| dim(b)).collect(),
    }
}

pub fn launch(label: &str, kernel: &str, workgroups: &str, bindings: &[Binding]) -> Launch {
    Launch {
        label: label.into(),
        kernel: kernel.into(),
        workgroups: dim(workgroups),
        bindings: bindings.to_vec(),
        flops: dim("batch*seq*100"),
        bytes: dim("batch*seq*50"),
        alternatives: vec![],
    }
}

pub fn kernel(name: &str, bindings: &[Access]) -> (String, Kernel) {
    let kernel = Kernel {
        file: format!("kernels/{name}.wgsl"),
        workgroup_size: [64, 1, 1],
        bindings: bindings.to_vec(),
    };
    (name.to_owned(), kernel)
}

pub fn part(param: &str, shape: &[u64], rows: std::ops::Range<u64>, offset: u64) -> WeightPart {
    WeightPart {
        param: param.into(),
        shape: shape.to_vec(),
        packing: Packing::F32,
        scales: false,
        first_row: rows.start,
        rows: rows.end - rows.start,
        offset,
    }
}

pub fn weight(name: &str, bytes: u64, contents: &[WeightPart]) -> WeightBuffer {
    WeightBuffer {
        name: name.into(),
        bytes,
        contents: contents.to_vec(),
    }
}

/// `hidden` whole and `logits` in blocks of four rows.
pub fn forward() -> Entry {
    let rows = "ceil(batch*seq / 64)";
    let logits = Stream {
        output: 1,
        rows: dim("batch*seq"),
        rows_per_block: 4,
        launches: vec![
            launch("norm", "copy", "batch*seq - block", &[B(1), B(3)]),
            launch("head", "linear", "16", &[B(3), W(0), W(1), B(2)]),
        ],
    };
    Entry {
        symbols: vec![],
        inputs: vec![port("ids", DType::I32, &["batch", "seq"], 0)],
        outputs: vec![
            port("hidden", DType::F32, &["batch", "seq", "8"], 1),
            port("logits", DType::F32, &["batch", "seq", "50"], 2),
        ],
        buffers: vec![
            buffer("ids", &["batch*seq*4"]),
            buffer("hidden", &["batch*seq*32"]),
            buffer("logits", &["800"]),
            buffer("normed", &["batch*seq*16", "batch*seq*32"]),
        ],
        rows: None,
        slices: Vec::new(),
        variants: vec![Variant {
            grid: None,
            name: "all".into(),
            bounds: vec![],
            launches: vec![launch("embed", "embed", rows, &[B(0), W(0), B(1)])],
            streams: vec![logits],
        }],
    }
}

/// Appends to a state; one variant for single tokens and one for more.
pub fn step() -> Entry {
    let variant = |name: &str, max: u64| Variant {
        grid: None,
        name: name.into(),
        bounds: vec![Bound {
            size: dim("seq"),
            max,
        }],
        launches: vec![
            launch("append", "copy", "batch*seq", &[B(0), S(0)]),
            launch(
                "attend",
                "embed",
                "batch*ceil(past + seq / 64)",
                &[S(0), W(2), B(1)],
            ),
        ],
        streams: vec![],
    };
    Entry {
        symbols: vec![symbol("seq", 16)],
        inputs: vec![port("ids", DType::I32, &["batch", "seq"], 0)],
        outputs: vec![port("logits", DType::F32, &["batch", "50"], 1)],
        buffers: vec![
            buffer("ids", &["batch*seq*4"]),
            buffer("logits", &["batch*200"]),
        ],
        rows: None,
        slices: Vec::new(),
        variants: vec![variant("decode", 1), variant("prefill", 16)],
    }
}

pub fn plan() -> Plan {
    let entries = [
        ("forward".to_owned(), forward()),
        ("step".to_owned(), step()),
    ];
    Plan {
        version: PLAN_VERSION,
        compiler: "by hand".into(),
        model: ModelInfo {
            family: "tiny".into(),
            config: "{}".into(),
            weight_dtype: "f32".into(),
            parameters: 450,
            vocab_size: 50,
            max_context: 32,
            eos_tokens: vec![],
        },
        symbols: vec![symbol("batch", 3), symbol("seq", 32), symbol("past", 31)],
        uniforms: ["batch", "seq", "past", "context", "block"]
            .map(String::from)
            .into(),
        weights: vec![
            weight("wte.part0", 32 * 64, &[part("wte", &[50, 8], 0..32, 0)]),
            weight("wte.part1", 18 * 64, &[part("wte", &[50, 8], 32..50, 0)]),
            weight(
                "vectors",
                64,
                &[part("gain", &[8], 0..1, 0), part("bias", &[6], 0..1, 32)],
            ),
        ],
        states: vec![StateBuffer {
            name: "kept".into(),
            bytes: dim("batch*context*4"),
        }],
        kernels: BTreeMap::from([
            kernel("copy", &[Read, ReadWrite]),
            kernel("embed", &[Read, Read, ReadWrite]),
            kernel("linear", &[Read, Read, Read, ReadWrite]),
        ]),
        tiers: vec![Tier {
            checks: Vec::new(),
            name: "base".into(),
            requires: Requirements::default(),
            half_states: false,
            entries: entries.into(),
        }],
        files: BTreeMap::new(),
    }
}

pub fn errors_of(change: impl FnOnce(&mut Plan)) -> Vec<PlanError> {
    let mut plan = plan();
    change(&mut plan);
    verify(&plan).map_or_else(|e| e.errors, |()| Vec::new())
}

/// Makes one change to a valid plan: every error is then of this invariant, and
/// one of them has this text.
#[track_caller]
pub fn breaks(invariant: u8, text: &str, change: impl FnOnce(&mut Plan)) {
    let errors = errors_of(change);
    assert!(!errors.is_empty(), "nothing is wrong");
    let texts: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
    let only = errors.iter().all(|e| e.invariant == invariant);
    assert!(only, "expected only {invariant}:\n{}", texts.join("\n"));
    assert!(texts.iter().any(|t| t == text), "{}", texts.join("\n"));
}

pub fn entry<'p>(plan: &'p mut Plan, name: &str) -> &'p mut Entry {
    plan.tiers[0].entries.get_mut(name).unwrap()
}

pub fn forward_of(plan: &mut Plan) -> &mut Variant {
    &mut entry(plan, "forward").variants[0]
}

pub fn decode_of(plan: &mut Plan) -> &mut Variant {
    &mut entry(plan, "step").variants[0]
}

/// Has a kernel read a binding, the first of which is 0, as texels.
pub fn texels_of(plan: &mut Plan, kernel: &str, binding: usize) {
    plan.kernels.get_mut(kernel).unwrap().bindings[binding] = Access::Texels;
}
