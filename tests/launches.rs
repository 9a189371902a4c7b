//! What the plans of the published models take: launches, and what they bind.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

use std::collections::BTreeSet;

use kiln_codegen::{CompileOptions, compile};
use kiln_ir::plan::{BLOCK, Binding, CONTEXT, Entry, Launch, PIECE_ROWS, Plan, Tier, Variant};
use kiln_ir::{Bindings, Packing, Symbol, text};
use kiln_models::registry::{EntryOptions, preset};

/// What WebGPU's default limits allow.
const BINDING_BYTES: u64 = 128 << 20;
const STORAGE_BUFFERS: usize = 8;
const STORAGE_TEXTURES: usize = 4;
const INVOCATIONS: u32 = 256;
const WORKGROUPS: u64 = 65_535;

const NAMES: [&str; 6] = [
    "gpt2",
    "gpt2-xl",
    "smollm2-135m",
    "qwen2-0.5b",
    "llama-3.2-1b",
    "gemma3-1b",
];

/// The plan of a published model, compiled as the command line does.
fn plan(name: &str, packing: Packing) -> Plan {
    let how = CompileOptions {
        packing,
        ..CompileOptions::default()
    };
    let entries = preset(name).unwrap().entries();
    plan_of(name, &entries, &how, &EntryOptions::default())
}

fn plan_of(name: &str, entries: &[&str], how: &CompileOptions, options: &EntryOptions) -> Plan {
    let model = preset(name).unwrap();
    let entries = entries.iter();
    let graphs = entries.map(|entry| model.graph(entry, options).unwrap());
    let graphs: Vec<_> = graphs.collect();
    let info = model.info(options);
    let compiled = compile(&graphs, info, how, &mut |_, _, _, _| {}).unwrap();
    for (path, source) in &compiled.graphs {
        let parsed = text::parse(source).unwrap();
        assert_eq!(parsed.to_string(), *source, "{name}: {path}");
    }
    compiled.plan
}

/// All launches of a variant, those of each output that comes in blocks once.
fn launches(variant: &Variant) -> Vec<&Launch> {
    let streamed = variant.streams.iter().flat_map(|s| &s.launches);
    variant.launches.iter().chain(streamed).collect()
}

/// Every variant with where it stands.
fn variants(plan: &Plan) -> impl Iterator<Item = (&Tier, &str, &Entry, &Variant)> {
    plan.tiers.iter().flat_map(|tier| {
        let entries = tier.entries.iter();
        entries.flat_map(move |(name, entry)| {
            let variants = entry.variants.iter();
            variants.map(move |variant| (tier, name.as_str(), entry, variant))
        })
    })
}

/// The largest sizes of an entry.
fn maxima(plan: &Plan, entry: &Entry) -> Bindings {
    let mut sizes = Bindings::at_max(&plan.symbols);
    for symbol in &entry.symbols {
        sizes.set(symbol.name.name(), symbol.max);
    }
    sizes.with(CONTEXT, plan.model.max_context).with(BLOCK, 0)
}

#[test]
fn a_layer_takes_few_launches() {
    // A layer takes so many launches in a decode step, and one more where norms are
    // launches of their own; what is around the layers so many. In `f32`
    // the head of GPT-2's largest is bound in three parts, each of which is a launch,
    // and that of the Llama in nine; that of the Gemma is in three in `f16`. A Llama has
    // angles, their cosines and sines, and a Gemma those of two kinds of layers.
    // Cooperative matrices take rows that a launch has normalised and rounded, and a
    // CPU driver's tiles rows that one has normalised.
    for (name, layers, packing, a_layer, others) in [
        ("gpt2", 12, Packing::F32, 5, 4),
        ("gpt2-xl", 48, Packing::F16, 5, 4),
        ("gpt2-xl", 48, Packing::F32, 5, 5),
        ("smollm2-135m", 30, Packing::F16, 7, 6),
        ("llama-3.2-1b", 16, Packing::F32, 7, 14),
        ("gemma3-270m", 18, Packing::F16, 11, 11),
    ] {
        let plan = plan(name, packing);
        let tiers: Vec<&str> = plan.tiers.iter().map(|t| t.name.as_str()).collect();
        for tier in ["software-subgroup", "software", "subgroup", "base"] {
            assert!(tiers.contains(&tier), "{tiers:?}");
        }
        for tier in ["coop", "coop-wave64", "coop-8x8"] {
            assert_eq!(tiers.contains(&tier), packing != Packing::F32);
        }
        let mut over = Vec::new();
        for (tier, entry, _, variant) in variants(&plan) {
            let most = match (entry, variant.name.as_str()) {
                // With barriers across the grid a layer is one launch. A CPU driver
                // gets up to three kernels in one.
                ("step", "joined") if tier.name.starts_with("software") => {
                    usize::div_ceil(a_layer, 3) * layers + others
                }
                ("step", "joined") => layers + others,
                ("step", "decode") => a_layer * layers + others,
                // Attention's probabilities are one more.
                ("forward_attentions", _) => (a_layer + 2) * layers + others + 2,
                _ => (a_layer + 1) * layers + others + 2,
            };
            let apart = match tier.name.as_str() {
                "software-subgroup" | "software" => true,
                "subgroup" | "base" => false,
                // Those for cooperative matrices.
                _ => ["short", "middle", "prefill"].contains(&&*variant.name),
            };
            let most = most + if apart { layers } else { 0 };
            let count = launches(variant).len();
            if count > most {
                let variant = &variant.name;
                over.push(format!(
                    "{entry}, {variant} of {}: {count} > {most}",
                    tier.name
                ));
            }
        }
        assert!(over.is_empty(), "{name}: {over:#?}");
    }
}

#[test]
fn everything_bound_fits_webgpus_default_limits() {
    for name in NAMES {
        for packing in [Packing::F32, Packing::Q4] {
            let plan = plan(name, packing);
            // A variant with a grid asks for what it needs besides, and may be left out.
            let all = variants(&plan).filter(|(_, _, _, variant)| variant.grid.is_none());
            for (tier, entry_name, entry, variant) in all {
                let at = format!("{name}, {entry_name}, {} of {}", variant.name, tier.name);
                let max = maxima(&plan, entry);
                for launch in launches(variant) {
                    let kernel = &plan.kernels[&launch.kernel];
                    let images = kernel.bindings.iter().filter(|b| b.is_image()).count();
                    let buffers = kernel.bindings.len() - images;
                    assert!(
                        buffers <= STORAGE_BUFFERS && images <= STORAGE_TEXTURES,
                        "{at}: {}",
                        launch.kernel
                    );
                    let invocations: u32 = kernel.workgroup_size.iter().product();
                    assert!(invocations <= INVOCATIONS, "{at}: {}", launch.kernel);
                    let workgroups = launch.workgroups.eval(&max).unwrap();
                    assert!(
                        workgroups <= WORKGROUPS * WORKGROUPS,
                        "{at}: {}",
                        launch.label
                    );
                    for binding in &launch.bindings {
                        let bytes = bytes_at(&plan, entry, *binding, &max);
                        assert!(
                            bytes <= BINDING_BYTES,
                            "{at}: {} binds {bytes}",
                            launch.label
                        );
                    }
                }
            }
        }
    }
}

/// The bytes of a binding at the largest sizes.
fn bytes_at(plan: &Plan, entry: &Entry, binding: Binding, max: &Bindings) -> u64 {
    match binding {
        Binding::Weight(i) => plan.weights[i].bytes,
        Binding::State(i) => plan.states[i].bytes.eval(max).unwrap(),
        Binding::Buffer(i) => {
            let sizes = entry.buffers[i].bytes.iter();
            sizes.map(|b| b.eval(max).unwrap()).max().unwrap()
        }
    }
}

/// The whole of every parameter is held, once, in pieces that a binding takes.
#[test]
fn large_weights_are_split() {
    for (name, parameters) in [("gpt2", 124_439_808), ("gpt2-xl", 1_557_611_200)] {
        let plan = plan(name, Packing::F32);
        let mut held = 0;
        let mut split = BTreeSet::new();
        for weight in &plan.weights {
            for part in &weight.contents {
                let all = part.shape.iter().product::<u64>();
                let width = part.shape.last().copied().unwrap_or(1);
                held += part.rows * width;
                if part.rows * width < all {
                    split.insert(part.param.as_str());
                }
            }
        }
        assert_eq!(held, parameters, "{name}");
        assert_eq!(split, BTreeSet::from(["wte.weight"]), "{name}");
    }
}

/// A prompt of one sequence goes in pieces as long as there are, though the same pieces of as
/// many sequences as decode together would exceed a binding: those are not run.
#[test]
fn pieces_have_as_many_rows_as_a_session_runs() {
    for name in NAMES {
        let plan = plan(name, Packing::F16);
        let step = &plan.tiers[0].entries["step"];
        let sizes = maxima(&plan, step);
        let most = |symbol: &str| sizes.get(&Symbol::new(symbol)).unwrap();
        let found = (most("batch"), most("seq"), step.rows);
        assert_eq!(found, (8, PIECE_ROWS, Some(PIECE_ROWS)), "{name}");
    }
}

/// Where a step's buffers would exceed a binding, prompts go in shorter pieces, and no
/// fewer sequences decode together.
#[test]
fn large_steps_take_shorter_pieces() {
    let options = EntryOptions {
        max_batch: 2,
        ..EntryOptions::default()
    };
    // Keys of two sequences are 13 MB, and what 1,024 rows have in an MLP 26 MB.
    for (binding_limit, rows) in [(1 << 27, 1024), (16 << 20, 512)] {
        let how = CompileOptions {
            packing: Packing::F16,
            binding_limit,
            ..CompileOptions::default()
        };
        let plan = plan_of("gpt2-xl", &["step"], &how, &options);
        let step = &plan.tiers[0].entries["step"];
        let sizes = maxima(&plan, step);
        let most = |symbol: &str| sizes.get(&Symbol::new(symbol)).unwrap();
        let found = (most("batch"), most("seq"), step.rows);
        assert_eq!(found, (2, rows, Some(rows)), "{binding_limit}");
    }
}

/// What launches say that they compute and move is what people reckon for GPT-2: profiles
/// hold it against a device's ceilings, and submissions are cut by it.
#[test]
fn launches_say_what_a_step_computes_and_moves() {
    const WIDTH: u64 = 768;
    const LAYERS: u64 = 12;
    let weights = 12 * LAYERS * WIDTH * WIDTH;
    let head = WIDTH * 50257;
    let plan = plan("gpt2", Packing::F16);
    for (seq, past) in [(1, 15), (1, 1000), (512, 0)] {
        let sizes = Bindings::new()
            .with("batch", 1)
            .with("seq", seq)
            .with("past", past)
            .with(CONTEXT, plan.model.max_context)
            .with(BLOCK, 0);
        // Scores and sums of values, for all keys, seen or not.
        let attention = LAYERS * 4 * WIDTH * seq * (past + seq);
        let flops = 2 * (weights * seq + head) + attention;
        // Weights are read once, and so are keys and values, at least in f16.
        let bytes = 2 * (weights + head) + LAYERS * 2 * WIDTH * (past + seq) * 2;
        let steps = variants(&plan).filter(|(_, entry, _, _)| *entry == "step");
        for (tier, _, _, variant) in steps.filter(|(.., v)| v.takes(&sizes).unwrap()) {
            let at = format!("{seq} behind {past}, {} of {}", variant.name, tier.name);
            let sum = |of: fn(&Launch) -> &kiln_ir::Dim| -> f64 {
                let launches = launches(variant).into_iter();
                let each = launches.map(|l| of(l).eval(&sizes).unwrap());
                each.sum::<u64>() as f64
            };
            // Of a prompt's last layer most rows are wanted by nobody.
            let least = if seq == 1 { 1.0 } else { 0.9 };
            let found = sum(|l| &l.flops) / flops as f64;
            assert!(
                (least..1.02).contains(&found),
                "{at}: {found} of the operations"
            );
            // Rows go from launch to launch, and keys and values may be of f32.
            let most = if seq == 1 { 1.3 } else { 4.0 };
            let found = sum(|l| &l.bytes) / bytes as f64;
            assert!((1.0..most).contains(&found), "{at}: {found} of the bytes");
        }
    }
}

/// Of layers with windows only the keys within them count, however many there are.
#[test]
fn launches_of_windows_say_what_is_within_them() {
    // Every sixth layer sees all keys, the last among them, in which one query is left of a
    // prompt. Four heads share one of keys and values.
    const GLOBAL: u64 = 3;
    const LOCAL: u64 = 15;
    let plan = plan("gemma3-270m", Packing::F16);
    let at = |seq: u64, past: u64| {
        let sizes = Bindings::new().with("batch", 1).with("seq", seq);
        let sizes = sizes.with("past", past).with(BLOCK, 0);
        sizes.with(CONTEXT, plan.model.max_context)
    };
    let steps = variants(&plan).filter(|(_, entry, _, _)| *entry == "step");
    for (tier, _, _, variant) in steps {
        let seq = if variant.takes(&at(64, 0)).unwrap() {
            64
        } else {
            1
        };
        let element = if tier.half_states { 2 } else { 4 };
        let sum = |past: u64, of: fn(&Launch) -> &kiln_ir::Dim| -> u64 {
            let launches = launches(variant).into_iter();
            let each = launches.map(|l| of(l).eval(&at(seq, past)).unwrap());
            each.sum()
        };
        // Nothing else depends on what was before.
        for past in [100, 511, 512, 4000] {
            let at = format!("{seq} behind {past}, {} of {}", variant.name, tier.name);
            let keys = past + seq;
            let seen = ((GLOBAL - 1) * seq + 1) * past + LOCAL * seq * (keys.min(512) - seq);
            let flops = 4 * 4 * 256 * seen;
            assert_eq!(
                sum(past, |l| &l.flops) - sum(0, |l| &l.flops),
                flops,
                "{at}"
            );
            let bytes = element * 2 * 256 * (GLOBAL * past + LOCAL * past.min(511));
            assert_eq!(
                sum(past, |l| &l.bytes) - sum(0, |l| &l.bytes),
                bytes,
                "{at}"
            );
        }
    }
}
