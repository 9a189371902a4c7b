//! Every body with its default prelude: naga accepts it with just the
//! capabilities that its tier declares, and every back end can print it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kiln_shaders::{BODIES, DEFAULTS, body, default_prelude, function_names, functions};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// A body, the constants that the kernel adds, and its default preludes.
type Case = (&'static str, String, Vec<&'static str>);

fn constants(list: &[(&str, u32)]) -> String {
    let lines = list
        .iter()
        .map(|(name, value)| format!("const {name}: u32 = {value}u;\n"));
    lines.collect()
}

fn linear(list: &[(&str, u32)]) -> Vec<(String, Vec<&'static str>)> {
    ["weights_f32", "weights_f16", "weights_q8", "weights_q4"]
        .map(|weights| (constants(list), vec!["common", "linear", weights]))
        .into()
}

/// A kernel with cooperative matrices of so many rows, by scalars or not, whose tiles are
/// in so many parts.
fn with_matrices(
    tile: &[(&str, u32)],
    (side, split): (u32, u32),
    parts: u32,
    mut preludes: Vec<&'static str>,
) -> (String, Vec<&'static str>) {
    let enables = "enable f16;\nenable wgpu_cooperative_matrix;\n";
    let matrices = [("SIDE", side), ("SPLIT", split), ("PIECES", 64 / side)];
    let mut text = enables.to_owned() + &constants(tile) + &constants(&matrices);
    preludes.push(if side == 16 {
        "matrices16"
    } else {
        "matrices8"
    });
    preludes.push(if split == 1 { "fours" } else { "scalars" });
    if parts > 1 {
        text.push_str(kiln_shaders::PARTS);
    }
    preludes.push(if parts > 1 { "parts" } else { "whole" });
    (text, preludes)
}

/// What the README's tables say of a body.
fn kernels_of(name: &str) -> Vec<(String, Vec<&'static str>)> {
    let workgroup = |size| constants(&[("WORKGROUP", size)]);
    match name {
        "grid_check" => {
            let sizes = [
                ("GRID", 128),
                ("PATIENCE", 1 << 18),
                ("WORKGROUP", 256),
                ("ROUNDS", 64),
            ];
            vec![(constants(&sizes) + kiln_shaders::GRID, vec!["grid_check"])]
        }
        "lanes_check" => vec![(String::new(), vec!["verdicts"])],
        "subgroups_check" => [(256, 32), (64, 64)]
            .map(|(workgroup, subgroup)| {
                let sizes = [("WORKGROUP", workgroup), ("SUBGROUP", subgroup)];
                (constants(&sizes), vec!["verdicts"])
            })
            .into(),
        "linear_software_matvec" => {
            let tile = [
                ("TILE_ROWS", 1),
                ("TILE_COLS", 8),
                ("XV", 8),
                ("WORKGROUP", 8),
            ];
            let ends = [("stored", ""), ("norm_last", kiln_shaders::NORM_LAST)];
            let mut out = Vec::new();
            for ((end, text), ahead) in ends.into_iter().zip([true, false]) {
                let ahead = format!("const AHEAD: bool = {ahead};\n");
                out.extend(linear(&tile).into_iter().map(|(constants, mut preludes)| {
                    preludes.extend(["software_linear", end]);
                    (constants + &ahead + text, preludes)
                }));
            }
            out
        }
        "linear_software_tile" => [(2, 8), (4, 8), (8, 8), (8, 16)]
            .into_iter()
            .flat_map(|(rows, columns)| {
                linear(&[
                    ("TILE_ROWS", rows),
                    ("TILE_COLS", columns),
                    ("XV", 1),
                    ("WORKGROUP", 8),
                ])
            })
            .map(|(constants, mut preludes)| {
                preludes.push("software_linear");
                (constants, preludes)
            })
            .collect(),
        "linear_matvec" => linear(&[
            ("LANES_K", 32),
            ("LANES_N", 2),
            ("TILE_ROWS", 1),
            ("TILE_COLS", 4),
        ]),
        "linear_matvec_subgroup" => {
            linear(&[("WORKGROUP", 64), ("TILE_ROWS", 1), ("TILE_COLS", 4)])
        }
        "linear_coop" => [
            ([2, 4, 4, 2, 1], [16, 32, 1]),
            ([2, 2, 2, 4, 1], [16, 64, 1]),
            ([2, 4, 4, 2, 3], [16, 32, 1]),
            ([2, 4, 4, 2, 1], [16, 32, 4]),
            ([2, 4, 4, 2, 1], [8, 32, 4]),
            ([2, 2, 2, 2, 3], [8, 8, 1]),
        ]
        .map(|([m, n, fragments, pad, parts], [side, subgroup, split])| {
            let tile = [
                ("SUBGROUP", subgroup),
                ("SUBGROUPS_M", m),
                ("SUBGROUPS_N", n),
                ("FRAGMENTS_M", fragments),
                ("PAD", pad),
                ("PARTS", parts),
                ("ROUND", 256),
                ("MOST", 128),
            ];
            with_matrices(&tile, (side, split), parts, vec!["common", "linear_coop"])
        })
        .into(),
        "linear_stream_subgroup" => [(1, 1, 4, 8, 0), (1, 2, 7, 48, 2), (4, 2, 2, 8, 0)]
            .into_iter()
            .flat_map(|(rows, columns, batch, all, touch)| {
                linear(&[
                    ("WORKGROUP", 256),
                    ("TILE_ROWS", rows),
                    ("TILE_COLS", columns),
                    ("BATCH", batch),
                    ("COLUMNS", all),
                    ("TOUCH", touch),
                ])
            })
            .collect(),
        "linear_tiled" => [[4, 4, 4], [8, 4, 4], [8, 8, 2], [2, 4, 4], [2, 8, 4]]
            .into_iter()
            .flat_map(|[m, n, depth]| {
                linear(&[
                    ("TILE_M", 16 * m),
                    ("TILE_N", 16 * n),
                    ("TILE_K4", depth),
                    ("THREAD_M", m),
                    ("THREAD_N", n),
                ])
            })
            .collect(),
        "attention_software_prefill" => [2, 4]
            .map(|tile| {
                let constants = constants(&[("TILE_QUERIES", tile), ("WORKGROUP", 8)]);
                (
                    constants,
                    vec!["common", "attention", "attention_software_prefill"],
                )
            })
            .into(),
        "attention_software_wide" => [1, 4]
            .map(|tile| {
                let constants = constants(&[("TILE_QUERIES", tile), ("WORKGROUP", 8)]);
                (
                    constants,
                    vec!["common", "attention", "attention_software_wide"],
                )
            })
            .into(),
        "attention_software_decode" => vec![(workgroup(8), vec!["common", "attention"])],
        "attention_prefill" => [[16, 16, 16], [8, 8, 16]]
            .map(|[queries, keys, team]| {
                let tile = [
                    ("TILE_QUERIES", queries),
                    ("TILE_KEYS", keys),
                    ("TEAM", team),
                ];
                (constants(&tile), vec!["common", "attention"])
            })
            .into(),
        "attention_coop" => [
            (1, [16, 32, 1]),
            (4, [16, 64, 1]),
            (1, [16, 64, 4]),
            (1, [8, 32, 4]),
            (2, [8, 8, 1]),
        ]
        .map(|(parts, [side, subgroup, split])| {
            let tile = [
                ("SUBGROUP", subgroup),
                ("SUBGROUPS", 4),
                ("PARTS", parts),
                ("MOST", 512),
            ];
            let preludes = vec!["common", "attention", "attention_coop"];
            with_matrices(&tile, (side, split), parts, preludes)
        })
        .into(),
        "attention_decode_subgroup" => [(256, 2), (64, 1)]
            .map(|(size, keys)| {
                let constants = constants(&[("WORKGROUP", size), ("KEYS", keys)]);
                (constants, vec!["common", "attention"])
            })
            .into(),
        "attention_decode" => vec![(workgroup(64), vec!["common", "attention"])],
        "attention_probs" => [64, 8]
            .map(|size| (workgroup(size), vec!["common", "attention"]))
            .into(),
        "row_norm" | "row_norm_subgroup" => vec![(workgroup(64), vec!["common", "row_norm"])],
        "row_norm_software" => vec![(workgroup(8), vec!["common", "row_norm"])],
        "softmax" | "softmax_workgroup" => vec![(workgroup(64), vec!["common", "softmax"])],
        "reduce" | "reduce_workgroup" => vec![(workgroup(64), vec!["common", "reduce"])],
        "pointwise" => vec![(workgroup(64), vec!["common", "pointwise"])],
        "matmul" => vec![(workgroup(64), vec!["common", "matmul"])],
        "sample_score" | "sample_choose" => [(8, false), (256, true), (256, false)]
            .map(|(size, greedy)| {
                let sizes = [("WORKGROUP", size), ("CHUNKS", 64), ("ID_LEVELS", 2)];
                let greedy = format!("const GREEDY: bool = {greedy};\n");
                let arithmetic = functions(&["multiply_high"]);
                (constants(&sizes) + &greedy + &arithmetic, vec!["sample"])
            })
            .into(),
        _ => panic!("`{name}` has no case: add it here and to the README"),
    }
}

fn cases() -> Vec<Case> {
    let all = BODIES.iter().flat_map(|(name, _)| {
        let kernels = kernels_of(name).into_iter();
        kernels.map(|(constants, preludes)| (*name, constants, preludes))
    });
    all.collect()
}

/// What a tier declares, and no more: subgroups by the body's name, unpacking of
/// halves by the type of its weights.
fn capabilities(case: &Case) -> Capabilities {
    let (name, _, preludes) = case;
    let mut out = Capabilities::empty();
    if name.ends_with("_subgroup")
        || ["attention_coop", "lanes_check", "subgroups_check"].contains(name)
    {
        out |= Capabilities::SUBGROUP;
    }
    if is_coop(case) {
        out |= Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    }
    if *name == "grid_check" || preludes.contains(&"parts") {
        out |= Capabilities::MEMORY_DECORATION_COHERENT;
    }
    let halves = ["weights_f16", "weights_q8", "weights_q4"];
    if preludes.iter().any(|p| halves.contains(p)) {
        out |= Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    }
    out
}

/// Whether a body is of the tier that asks for more than the default limits.
fn is_coop((name, _, _): &Case) -> bool {
    name.ends_with("_coop")
}

fn text((name, constants, preludes): &Case) -> String {
    let mut out = constants.clone();
    for prelude in preludes {
        out += default_prelude(prelude).unwrap();
    }
    out + body(name).unwrap()
}

fn validate(source: &str, allowed: Capabilities) -> Result<(naga::Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), allowed)
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    Ok((module, info))
}

fn validated(case: &Case) -> (naga::Module, ModuleInfo) {
    let valid = validate(&text(case), capabilities(case));
    valid.unwrap_or_else(|e| panic!("{} with {:?}: {e}", case.0, case.2))
}

#[test]
fn bodies_need_no_more_than_their_tier_declares() {
    for case in cases() {
        validated(&case);
        // Nor less: what is declared is in use.
        for declared in capabilities(&case).iter() {
            let without = capabilities(&case) - declared;
            let refused = validate(&text(&case), without);
            assert!(refused.is_err(), "{} does not use {declared:?}", case.0);
        }
    }
}

#[test]
fn bodies_fit_the_default_limits() {
    for case in cases() {
        let (module, _) = validated(&case);
        let storage = module.global_variables.iter();
        let storage =
            storage.filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. }));
        assert!(storage.count() <= 8, "{}", case.0);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let workgroup = module.global_variables.iter();
        let bytes: u32 = workgroup
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| layouter[v.ty].size)
            .sum();
        let most = match (is_coop(&case), case.2.contains(&"matrices16")) {
            (false, _) => 16 << 10,
            (true, true) => 48 << 10,
            (true, false) => 32 << 10,
        };
        assert!(bytes <= most, "{}: {bytes} bytes", case.0);
        let [entry] = module.entry_points.as_slice() else {
            panic!("{} has not one entry point", case.0);
        };
        assert_eq!(entry.name, "main");
        let [x, y, z] = entry.workgroup_size;
        assert!(x <= 256 && (y, z) == (1, 1), "{}", case.0);
    }
}

#[test]
fn bodies_translate_to_spirv_msl_and_hlsl() {
    for case in cases() {
        let (module, info) = validated(&case);
        let words = spv::write_vec(&module, &info, &spv::Options::default(), None);
        assert_eq!(words.unwrap()[0], 0x0723_0203, "{}", case.0);

        // HLSL has no matrices, and of Metal's, which are of 8x8, naga takes pointers to
        // scalars alone.
        let for_metal = ["matrices8", "scalars"].iter().all(|p| case.2.contains(p));
        if is_coop(&case) && !for_metal {
            continue;
        }
        let options = msl::Options {
            lang_version: (2, 4),
            ..msl::Options::default()
        };
        let pipeline = msl::PipelineOptions::default();
        let (metal, _) = msl::write_string(&module, &info, &options, &pipeline)
            .unwrap_or_else(|e| panic!("{}: {e}", case.0));
        assert!(metal.contains("kernel void main_("), "{}", case.0);
        if is_coop(&case) {
            let loads = "NagaCooperativeLoad(const threadgroup half* ptr";
            assert!(metal.contains(loads), "{}", case.0);
            continue;
        }

        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V6_0,
            ..hlsl::Options::default()
        };
        let (mut text, pipeline) = (String::new(), hlsl::PipelineOptions::default());
        let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
        let written = writer.write(&module, &info, None);
        written.unwrap_or_else(|e| panic!("{}: {e}", case.0));
        assert!(text.contains("[numthreads("), "{}", case.0);
    }
}

/// Exponentials of tanh's kind overflow on some drivers: only the guarded
/// functions may call it.
#[test]
fn tanh_is_called_with_a_clamped_argument_only() {
    let all = BODIES.iter().chain(DEFAULTS).map(|(_, text)| *text);
    let shared = functions(&function_names());
    for text in all.chain([shared.as_str()]) {
        for (at, _) in text.match_indices("tanh(") {
            let (before, after) = (&text[..at], &text[at..]);
            let named = before.ends_with("safe_") || before.ends_with("gelu_");
            assert!(
                named || after.starts_with("tanh(clamp("),
                "{}",
                &after[..40]
            );
        }
    }
}

#[test]
fn functions_come_with_their_callees_and_nothing_else() {
    for name in function_names() {
        let text = functions(&[name]);
        assert!(text.contains(&format!("fn {name}(")));
        validate(&text, Capabilities::empty()).unwrap_or_else(|e| panic!("`{name}`: {e}"));
    }
    let names = |wanted: &[&str]| -> Vec<String> {
        let text = functions(wanted);
        let heads = text.lines().filter_map(|line| line.strip_prefix("fn "));
        heads
            .map(|l| l.split('(').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&["gelu_erf"]), ["erf4", "erf", "gelu_erf"]);
    assert_eq!(names(&["gelu_tanh4"]), ["gelu_tanh4"]);
    assert_eq!(names(&["relu", "safe_tanh"]), ["safe_tanh", "relu"]);
    assert_eq!(names(&["no_such_function"]), [""; 0]);
    let all = validate(&functions(&function_names()), Capabilities::empty());
    assert!(all.is_ok());
}

#[test]
fn tickets_want_nothing_but_a_state() {
    let kernel = "
        const STAGES: u32 = 1u;
        const PATIENCE: u32 = 8u;
        @group(0) @binding(0) var<storage, read_write> grid_state: array<atomic<u32>>;

        @compute @workgroup_size(8)
        fn main(
            @builtin(num_workgroups) workgroups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32,
        ) {
            while grid_take(0u, lane) < 4u {
                grid_complete(0u, lane);
            }
            if grid_wait(0u, 4u, lane) {
                grid_leave(workgroups.x, 4u, lane);
            }
        }";
    let text = kiln_shaders::TICKETS.to_owned() + kernel;
    validate(&text, Capabilities::empty()).unwrap();
}

fn stems(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let shaders = files.filter(|p| p.extension().is_some_and(|e| e == "wgsl"));
    shaders
        .map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn names(files: &[(&str, &str)]) -> BTreeSet<String> {
    files.iter().map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn every_file_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut bodies = stems(folder);
    for no_body in ["functions", "grid", "norm_last", "parts", "tickets"] {
        assert!(bodies.remove(no_body));
    }
    assert_eq!(names(BODIES), bodies);
    assert_eq!(names(DEFAULTS), stems(&folder.join("defaults")));
    assert_eq!(body("no_such_body"), None);
    assert_eq!(default_prelude("no_such_prelude"), None);
}

#[test]
fn the_readme_has_a_row_for_every_body() {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for (name, _) in BODIES {
        assert!(
            readme.contains(&format!("`{name}`")),
            "`{name}` is not in the README"
        );
    }
}

/// A kernel's text in `shaders/` names its constants and hooks in its head, and
/// the README refers to them there.
#[test]
fn bodies_say_what_they_want() {
    for (name, text) in BODIES {
        let head: String = text.lines().take_while(|l| l.starts_with("//")).collect();
        for part in ["Constants:", "Hooks:", "Grid:"] {
            assert!(head.contains(part), "`{name}` has no line `{part}`");
        }
    }
}
