//! Each invariant with a plan that breaks it.

mod grids;
mod sample;
mod ways;

use super::*;
use crate::Symbol;
use crate::packing::Packing;
use crate::plan::*;
use crate::types::{DType, TensorType};
use Access::{Read, ReadWrite};
use Binding::{Buffer as B, State as S, Weight as W};
use sample::*;

#[test]
fn a_valid_plan_passes_and_round_trips() {
    let plan = plan();
    verify(&plan).unwrap();
    let text = serde_json::to_string_pretty(&plan).unwrap();
    let back: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(back, plan);
    assert_eq!(serde_json::to_string_pretty(&back).unwrap(), text);
}

#[test]
fn all_errors_are_collected() {
    let mut plan = plan();
    plan.version = 99;
    plan.weights[0].bytes += 2;
    decode_of(&mut plan).launches[0].kernel = "nothing".into();
    let message = verify(&plan).unwrap_err().to_string();
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(
        lines,
        [
            "the plan is not valid:",
            &format!("  version: expected {PLAN_VERSION}, found 99"),
            "  weight `wte.part0`: expected a positive multiple of 16 bytes, found 2050",
            "  tier `base`, entry `forward`: weight `wte.part0`: expected a multiple of 4 bytes at \
             the symbols' maxima, found 2050",
            "  tier `base`, entry `step`, variant `decode`, launch `append`: kernel: expected a \
             kernel of the plan, found `nothing`",
        ]
    );
}

#[test]
fn invariant_1_version() {
    let text = format!("version: expected {PLAN_VERSION}, found 99");
    breaks(1, &text, |p| p.version = 99);
}

#[test]
fn invariant_2_symbols() {
    let twice = "symbol `seq`: expected one declaration, found two";
    breaks(2, twice, |p| p.symbols.push(symbol("seq", 32)));
    let in_entry = format!("tier `base`, entry `step`: {twice}");
    breaks(2, &in_entry, |p| {
        entry(p, "step").symbols.push(symbol("seq", 16));
    });
    let zero = "symbol `extra`: expected a maximum from 1 to 2^31 - 1, found 0";
    breaks(2, zero, |p| p.symbols.push(symbol("extra", 0)));
    let large = "symbol `extra`: expected a maximum from 1 to 2^31 - 1, found 2147483648";
    breaks(2, large, |p| p.symbols.push(symbol("extra", 1 << 31)));
    for name in ["con-text", "ceil", "min", "context", "block", ""] {
        let text = format!(
            "symbol `{name}`: expected a name of letters, digits and `_` that is no word of the \
             text form, `context` or `block`, found `{name}`"
        );
        breaks(2, &text, |p| p.symbols.push(symbol(name, 4)));
    }
    let context = "the model's largest context: expected a maximum from 1 to 2^31 - 1, found \
                   4294967296";
    let errors = errors_of(|p| p.model.max_context = 1 << 32);
    assert_eq!(errors[0].to_string(), context);
}

#[test]
fn invariant_3_names() {
    let weight = "weight `vectors`: expected a name of its own, found another of this name";
    breaks(3, weight, |p| p.weights[0].name = "vectors".into());
    let state = "state ``: expected a name, found none";
    breaks(3, state, |p| p.states[0].name.clear());
    let tier = "tier `base`: expected a name of its own, found another of this name";
    breaks(3, tier, |p| p.tiers.push(p.tiers[0].clone()));
    let output = "tier `base`, entry `forward`: output `hidden`: expected a name of its own, \
                  found another of this name";
    breaks(3, output, |p| {
        entry(p, "forward").outputs[1].name = "hidden".into();
    });
    let input = "tier `base`, entry `step`: input ``: expected a name, found none";
    breaks(3, input, |p| entry(p, "step").inputs[0].name.clear());
}

#[test]
fn invariant_4_kernels() {
    for file in ["/etc/copy.wgsl", "../copy.wgsl", "kernels//a", "c:\\a", ""] {
        let text =
            format!("kernel `copy`: expected a relative path inside the artifact, found `{file}`");
        breaks(4, &text, |p| {
            p.kernels.get_mut("copy").unwrap().file = file.into();
        });
    }
    let text = "kernel `idle`: expected a binding that it writes, found none";
    breaks(4, text, |p| p.kernels.extend([kernel("idle", &[Read])]));
}

#[test]
fn invariant_5_uniforms() {
    let unknown =
        "uniform `depth`: expected a declared symbol, `context` or `block`, found neither";
    breaks(5, unknown, |p| p.uniforms.push("depth".into()));
    let twice = "uniform `seq`: expected one place, found two";
    breaks(5, twice, |p| p.uniforms.push("seq".into()));
    let past = "the uniform block: expected every symbol that sizes use, `past` too, found batch, \
                seq, context, block";
    breaks(5, past, |p| p.uniforms.retain(|u| u != "past"));
    let block = "the uniform block: expected every symbol that sizes use, `block` too, found \
                 batch, seq, past, context";
    breaks(5, block, |p| {
        p.uniforms.retain(|u| u != "block");
        forward_of(p).streams[0].launches[0].workgroups = dim("4");
    });
}

#[test]
fn invariant_6_weight_sizes() {
    let text = "weight `vectors`: expected a positive multiple of 16 bytes, found 72";
    breaks(6, text, |p| p.weights[2].bytes = 72);
    let text = "weight `none`: expected a positive multiple of 16 bytes, found 0";
    breaks(6, text, |p| p.weights.push(weight("none", 0, &[])));
}

#[test]
fn invariant_7_weight_parts() {
    let text = "weight `vectors`, part of `bias`: expected an offset that is a multiple of 16, \
                found 36";
    breaks(7, text, |p| p.weights[2].contents[1].offset = 36);
    let text = "weight `vectors`, part of `bias`: expected a range within 0..64, found 48..72";
    breaks(7, text, |p| p.weights[2].contents[1].offset = 48);
    let text = "weight `vectors`, part of `bias`: expected a range from 32 on, where the part \
                before ends, found 16..40";
    breaks(7, text, |p| p.weights[2].contents[1].offset = 16);
    let text = "weight `w`, part of `w`: expected elements, found none";
    breaks(7, text, |p| {
        p.weights
            .push(weight("w", 16, &[part("w", &[8, 0], 0..8, 0)]));
    });
    // The quantised packings and their scales have sizes of their own: three
    // rows of two groups take 3*2*32 bytes, and 3*2 scales of two bytes.
    let quantised = |data: u64, scales: u64| {
        let q8 = WeightPart {
            packing: Packing::Q8,
            ..part("w", &[3, 40], 0..3, 0)
        };
        let q8_scales = WeightPart {
            scales: true,
            ..q8.clone()
        };
        [
            weight("w", data, &[q8]),
            weight("w.scales", scales, &[q8_scales]),
        ]
    };
    assert_eq!(errors_of(|p| p.weights.extend(quantised(192, 16))), []);
    let text = "weight `w`, part of `w`: expected a range within 0..176, found 0..192";
    breaks(7, text, |p| p.weights.extend(quantised(176, 16)));
}

#[test]
fn invariant_8_weight_rows() {
    let text = "rows of `wte` as f32: expected rows from 32 on, of 50, found 31..49";
    breaks(8, text, |p| p.weights[1].contents[0].first_row = 31);
    let text = "rows of `wte` as f32: expected 50 rows, found 49";
    breaks(8, text, |p| p.weights[1].contents[0].rows = 17);
    let text = "rows of `wte` as f32: expected the shape [50, 8] in each part, found [51, 8]";
    breaks(8, text, |p| p.weights[1].contents[0].shape[0] = 51);
}

#[test]
fn invariant_9_references() {
    let at = "tier `base`, entry `step`, variant `decode`, launch `attend`";
    let text = format!("{at}: binding 1: expected one of the 1 states, found 1");
    breaks(9, &text, |p| decode_of(p).launches[1].bindings[0] = S(1));
    let text = format!("{at}: binding 2: expected one of the 3 weights, found 3");
    breaks(9, &text, |p| decode_of(p).launches[1].bindings[1] = W(3));
    let text = format!("{at}: kernel: expected a kernel of the plan, found `fast`");
    let errors = errors_of(|p| decode_of(p).launches[1].kernel = "fast".into());
    assert_eq!(errors[0].to_string(), text);
    let errors = errors_of(|p| decode_of(p).launches[1].bindings[2] = B(2));
    let text = format!("{at}: binding 3: expected one of the 2 buffers, found 2");
    assert_eq!(errors[0].to_string(), text);
    let errors = errors_of(|p| entry(p, "step").outputs[0].buffer = 7);
    let text = "tier `base`, entry `step`: output `logits`: expected one of the 2 buffers, found 7";
    assert_eq!(errors[0].to_string(), text);
    let errors = errors_of(|p| forward_of(p).streams[0].output = 2);
    let text = "tier `base`, entry `forward`, variant `all`: stream 0: expected one of the 2 \
                outputs, found 2";
    assert_eq!(errors[0].to_string(), text);
}

#[test]
fn invariant_10_bindings_of_a_kernel() {
    let text = "tier `base`, entry `forward`, variant `all`, launch `embed`: bindings: expected 3, \
                as kernel `embed` has, found 4";
    breaks(10, text, |p| forward_of(p).launches[0].bindings.push(W(0)));
}

#[test]
fn invariant_11_symbols_in_scope() {
    let in_launch = "tier `base`, entry `forward`, variant `all`, launch `embed`: workgroups: \
                     expected symbols that have a value here (batch, past, seq, context), found \
                     `block` in `block*2`";
    breaks(11, in_launch, |p| {
        forward_of(p).launches[0].workgroups = dim("block*2");
    });
    let of_port = "tier `base`, entry `step`: output `logits`: expected symbols that have a value \
                   here (batch, past, seq), found `context` in `context`";
    breaks(11, of_port, |p| {
        entry(p, "step").outputs[0].ty.shape[0] = dim("context");
        entry(p, "step").buffers[1].bytes = vec![dim("context*200")];
    });
    let of_slice = "tier `base`, entry `step`: slice `last`: expected symbols that have a value \
                    here (batch, past, seq), found `context` in `context`";
    breaks(11, of_slice, |p| {
        entry(p, "step").slices.push(SliceRange {
            name: "last".into(),
            start: dim("seq - 4"),
            end: dim("seq"),
            size: dim("context"),
        });
    });
    let of_state = "state `kept`: expected symbols that have a value here (batch, past, seq, \
                    context), found `block` in `batch*block*4`";
    breaks(11, of_state, |p| p.states[0].bytes = dim("batch*block*4"));
    let errors = errors_of(|p| entry(p, "step").buffers[0].bytes.push(dim("depth*4")));
    assert!(errors.iter().any(|e| e.invariant == 11), "{errors:?}");
}

#[test]
fn invariant_12_sizes_have_values() {
    let at_least = "tier `base`, entry `step`, variant `decode`, launch `append`: workgroups: \
                    expected a value from 0 to 2^63 - 1 at the least sizes, found `past - 1` = -1";
    breaks(12, at_least, |p| {
        decode_of(p).launches[0].workgroups = dim("past - 1");
    });
    let at_most = "tier `base`, entry `forward`: buffer 3 (`normed`): expected a value from 0 to \
                   2^63 - 1 at the symbols' maxima, found `-batch*4 + 8` = -4";
    breaks(12, at_most, |p| {
        entry(p, "forward").buffers[3]
            .bytes
            .push(dim("8 - batch*4"));
    });
}

#[test]
fn invariant_13_binding_sizes() {
    let odd = "tier `base`, entry `forward`: buffer 3 (`normed`): expected a multiple of 4 bytes \
               at the symbols' maxima, found 3073";
    breaks(13, odd, |p| {
        entry(p, "forward").buffers[3]
            .bytes
            .push(dim("batch*seq*32 + 1"));
    });
    let large = "tier `base`, entry `forward`: buffer 3 (`normed`): expected at most 134217728 \
                 bytes (`max_storage_buffer_binding_size`) at the symbols' maxima, found 134217732";
    let grow = |p: &mut Plan| {
        entry(p, "forward").buffers[3].bytes.push(dim("134217732"));
    };
    breaks(13, large, grow);
    let higher = ("max_storage_buffer_binding_size".to_owned(), 1 << 30);
    let with_limit = |p: &mut Plan| {
        grow(p);
        p.tiers[0].requires.limits.extend([higher]);
    };
    assert_eq!(errors_of(with_limit), []);
    let weight = "tier `base`, entry `step`: weight `vectors`: expected at most 134217728 bytes \
                  (`max_storage_buffer_binding_size`) at the symbols' maxima, found 134217744";
    breaks(13, weight, |p| p.weights[2].bytes = (128 << 20) + 16);
    // As texels it may have more.
    let with_texels = |p: &mut Plan, bytes| {
        texels_of(p, "embed", 1);
        p.weights[2].bytes = bytes;
    };
    assert_eq!(errors_of(|p| with_texels(p, 512 << 20)), []);
    let texels = "tier `base`, entry `step`: weight `vectors`: expected at most 8192 texels \
                  across and down (`max_texture_dimension_2d`), found 4096 and 8193";
    breaks(13, texels, |p| with_texels(p, (512 << 20) + 16));
    let state = "tier `base`, entry `step`: state `kept`: expected at most 134217728 bytes \
                 (`max_storage_buffer_binding_size`) at the symbols' maxima, found 201326592";
    breaks(13, state, |p| {
        p.states[0].bytes = dim("batch*context*2097152")
    });
    // A state that nothing binds is never allocated.
    let unbound = |p: &mut Plan| {
        p.states.push(StateBuffer {
            name: "large".into(),
            bytes: dim("batch*context*2097152"),
        });
    };
    assert_eq!(errors_of(unbound), []);
}

#[test]
fn invariant_14_ports_fit() {
    let whole = "tier `base`, entry `forward`, variant `all`: output `hidden`: expected a buffer \
                 of 3072 bytes at the symbols' maxima, found 3068 in buffer 1 (`hidden`)";
    breaks(14, whole, |p| {
        entry(p, "forward").buffers[1].bytes = vec![dim("3068")];
    });
    let block = "tier `base`, entry `forward`, variant `all`: output `logits`: expected a buffer \
                 of 800 bytes at the symbols' maxima, found 796 in buffer 2 (`logits`)";
    breaks(14, block, |p| {
        entry(p, "forward").buffers[2].bytes = vec![dim("796")];
    });
    // The buffer is the size of the session, not of the maxima.
    let least = "tier `base`, entry `step`, variant `decode`: input `ids`: expected a buffer of 4 \
                 bytes at the least sizes, found 0 in buffer 0 (`ids`)";
    breaks(14, least, |p| {
        entry(p, "step").buffers[0].bytes = vec![dim("batch*seq*8 - 8")];
    });
}

#[test]
fn invariant_15_grids() {
    let text = "tier `base`, entry `forward`, variant `all`, launch `embed`: workgroups: expected \
                at most 65535 times 65535 (`max_compute_workgroups_per_dimension`), found \
                4294967296 at the symbols' maxima";
    breaks(15, text, |p| {
        forward_of(p).launches[0].workgroups = dim("seq*134217728");
    });
    // Within a variant, a bound on a symbol is its maximum.
    let bounded = |p: &mut Plan| decode_of(p).launches[0].workgroups = dim("seq*4294836225");
    assert_eq!(errors_of(bounded), []);
    let of_product = |p: &mut Plan| {
        decode_of(p).bounds[0] = Bound {
            size: dim("batch*seq*2"),
            max: 2,
        };
        decode_of(p).launches[0].workgroups = dim("batch*4294836225");
    };
    assert_eq!(errors_of(of_product), []);
}

#[test]
fn invariant_16_limits_of_kernels() {
    let entry = "tier `base`, entry `forward`: kernel `linear`";
    let bindings = format!(
        "{entry}: expected at most 3 storage bindings (`max_storage_buffers_per_shader_stage`), \
         found 4"
    );
    let fewer = ("max_storage_buffers_per_shader_stage".to_owned(), 3);
    breaks(16, &bindings, |p| {
        p.tiers[0].requires.limits.extend([fewer])
    });
    let textures = format!(
        "{entry}: expected at most 1 storage textures \
         (`max_storage_textures_per_shader_stage`), found 2"
    );
    breaks(16, &textures, |p| {
        let fewer = ("max_storage_textures_per_shader_stage".to_owned(), 1);
        p.tiers[0].requires.limits.extend([fewer]);
        texels_of(p, "linear", 1);
        texels_of(p, "linear", 2);
    });
    let size = |p: &mut Plan, size| p.kernels.get_mut("linear").unwrap().workgroup_size = size;
    let invocations = format!(
        "{entry}: expected at most 256 invocations (`max_compute_invocations_per_workgroup`), \
         found 257"
    );
    breaks(16, &invocations, |p| size(p, [1, 257, 1]));
    let along_z = format!(
        "{entry}: expected at most 64 invocations along z (`max_compute_workgroup_size_z`), found \
         65"
    );
    breaks(16, &along_z, |p| size(p, [1, 1, 65]));
    let none = format!("{entry}: expected invocations along each axis, found [8, 0, 1]");
    breaks(16, &none, |p| size(p, [8, 0, 1]));
    // A kernel that this tier does not launch may want more.
    let idle = |p: &mut Plan| p.kernels.extend([kernel("idle", &[ReadWrite; 9])]);
    assert_eq!(errors_of(idle), []);
}

#[test]
fn invariant_17_variants() {
    let none =
        "tier `base`, entry `step`: variants: expected at least one without a grid, found none";
    breaks(17, none, |p| entry(p, "step").variants.clear());
    let most = "tier `base`, entry `step`: variants: expected one that takes the symbols' maxima, \
                found `decode` for seq <= 1; `prefill` for seq <= 15";
    breaks(17, most, |p| {
        entry(p, "step").variants[1].bounds[0].max = 15
    });
    let least = "tier `base`, entry `step`: variants: expected one that takes the least sizes, \
                 found `decode` for -seq + 16 <= 0";
    breaks(17, least, |p| {
        let variants = &mut entry(p, "step").variants;
        variants.truncate(1);
        variants[0].bounds[0] = Bound {
            size: dim("16 - seq"),
            max: 0,
        };
    });
}

#[test]
fn invariant_18_written_once_bound_once() {
    let at = "tier `base`, entry `forward`, variant `all`, launch `embed`";
    let text = format!(
        "{at}: buffer 1 (`hidden`): expected to be bound once, as it is written, found another \
         binding of it"
    );
    breaks(18, &text, |p| {
        // Written by an earlier launch, so that reading it is no error.
        let launches = &mut forward_of(p).launches;
        launches.push(launches[0].clone());
        launches[1].bindings[0] = B(1);
    });
    let text = format!(
        "{at}: weight `wte.part1`: expected to be read only, found a kernel that writes it"
    );
    let errors = errors_of(|p| forward_of(p).launches[0].bindings[2] = W(1));
    assert_eq!(errors[0].to_string(), text);
    // Read twice is fine.
    assert_eq!(
        errors_of(|p| forward_of(p).launches[0].bindings[1] = B(0)),
        []
    );
    let state = "tier `base`, entry `step`, variant `decode`, launch `append`: state `kept`: \
                 expected to be bound once, as it is written, found another binding of it";
    breaks(18, state, |p| decode_of(p).launches[0].bindings[0] = S(0));
}

#[test]
fn invariant_19_nothing_is_read_before_it_is_written() {
    let text = "tier `base`, entry `forward`, variant `all`, launch `embed`: buffer 3 (`normed`): \
                expected to be written before it is read, found no earlier launch that does";
    breaks(19, text, |p| forward_of(p).launches[0].bindings[1] = B(3));
    // What a stream writes is there for its own later launches only.
    let text = "tier `base`, entry `forward`, variant `all`, launch `head`: buffer 3 (`normed`): \
                expected to be written before it is read, found no earlier launch that does";
    let errors = errors_of(|p| forward_of(p).streams[0].launches.swap(0, 1));
    assert_eq!(errors[0].to_string(), text);
}

#[test]
fn invariant_20_outputs_are_written() {
    let text = "tier `base`, entry `step`, variant `decode`: output `logits`: expected buffer 1 \
                (`logits`) to be written by the launches, found no launch that does";
    breaks(20, text, |p| decode_of(p).launches.truncate(1));
    let text = "tier `base`, entry `forward`, variant `all`: output `logits`: expected buffer 2 \
                (`logits`) to be written by its stream, found no launch that does";
    breaks(20, text, |p| forward_of(p).streams[0].launches.truncate(1));
}

#[test]
fn invariant_21_outputs_lie_apart() {
    let shared = "tier `base`, entry `forward`: output `again`: expected a buffer of its own, \
                  found buffer 1 (`hidden`), which is that of `hidden`";
    breaks(21, shared, |p| {
        let again = port("again", DType::F32, &["batch", "seq", "8"], 1);
        entry(p, "forward").outputs.push(again);
    });
    let at = "tier `base`, entry `forward`, variant `all`";
    let over_output = format!(
        "{at}: output `hidden`: expected buffer 1 (`hidden`) to itself, found stream 0, which \
         writes it"
    );
    let errors = errors_of(|p| forward_of(p).streams[0].launches[0].bindings[1] = B(1));
    assert!(
        errors.iter().any(|e| e.to_string() == over_output),
        "{errors:?}"
    );
    let next_block = format!(
        "{at}: stream 0: expected buffer 3 (`normed`) unchanged between blocks, found stream 0, \
         which writes it"
    );
    breaks(21, &next_block, |p| {
        let variant = forward_of(p);
        variant
            .launches
            .push(launch("norm", "copy", "1", &[B(1), B(3)]));
        variant.streams[0].launches.swap(0, 1);
    });
}

#[test]
fn invariant_22_streams() {
    let at = "tier `base`, entry `forward`, variant `all`: stream 0";
    let text = format!("{at}: expected rows in a block, found 0");
    breaks(22, &text, |p| forward_of(p).streams[0].rows_per_block = 0);
    let text = format!("{at}: expected the batch*seq rows of `logits`, found seq");
    breaks(22, &text, |p| forward_of(p).streams[0].rows = dim("seq"));
    let text = "tier `base`, entry `forward`, variant `all`: stream 1: expected an output of its \
                own, found another stream of output 1";
    let errors = errors_of(|p| {
        let streams = &mut forward_of(p).streams;
        streams.push(streams[0].clone());
    });
    assert_eq!(errors[0].to_string(), text);
}

#[test]
fn invariant_23_checks() {
    let check = |kernel: &str| Check {
        kernel: kernel.into(),
        workgroups: 4,
        words: 64,
    };
    let missing = "tier `base`: check `trial`: expected a kernel of the plan, found none";
    breaks(23, missing, |p| p.tiers[0].checks.push(check("trial")));
    // One that binds the words twice will do.
    assert_eq!(errors_of(|p| p.tiers[0].checks.push(check("copy"))), []);
    let with = |p: &mut Plan, workgroups, words| {
        p.kernels.extend([kernel("trial", &[ReadWrite])]);
        p.tiers[0].checks.push(Check {
            kernel: "trial".into(),
            workgroups,
            words,
        });
    };
    assert_eq!(errors_of(|p| with(p, 1, 1)), []);
    for workgroups in [0, 65_536] {
        let text = format!(
            "tier `base`: check `trial`: expected from 1 to 65535 workgroups, found {workgroups}"
        );
        breaks(23, &text, |p| with(p, workgroups, 1));
    }
    let none = "tier `base`: check `trial`: expected at least one word, found 0";
    breaks(23, none, |p| with(p, 1, 0));
    let sized = |p: &mut Plan| p.tiers[0].requires.subgroup_size = Some(32);
    let unchecked = "tier `base`: its requirements: expected a check that subgroups have 32 \
                     invocations, found none";
    breaks(23, unchecked, sized);
    let errors = errors_of(|p| {
        sized(p);
        p.tiers[0].checks.push(check("copy"));
    });
    assert_eq!(errors, []);
}

#[test]
fn invariant_26_images() {
    let texels = "tier `base`, entry `forward`, variant `all`, launch `embed`: binding 1: expected \
                  a weight, a state or an image, for its texels, found Buffer(0)";
    breaks(26, texels, |p| texels_of(p, "embed", 0));
    assert_eq!(errors_of(|p| texels_of(p, "embed", 1)), []);

    let scales = "tier `base`, entry `forward`: weight `wte.part0`: expected its scales among the \
                  weights, for an image of both, found none";
    let quantise = |p: &mut Plan| {
        for weight in &mut p.weights[..2] {
            weight.contents[0].packing = Packing::Q8;
        }
    };
    assert_eq!(errors_of(quantise), []);
    breaks(26, scales, |p| {
        quantise(p);
        texels_of(p, "embed", 1);
    });

    // A launch that appends to the state and one that reads it.
    let images = |p: &mut Plan, appends: bool, reads: bool| {
        let mut launch = |of: &str, at: usize, access, bindings: &[Access]| {
            let name = format!("{of}_image");
            let (_, mut own) = kernel(&name, bindings);
            own.bindings[at] = access;
            p.kernels.insert(name.clone(), own);
            for variant in &mut entry(p, "step").variants {
                let mut all = variant.launches.iter_mut();
                if let Some(launch) = all.find(|l| l.kernel == of) {
                    launch.kernel.clone_from(&name);
                }
            }
        };
        if appends {
            launch("copy", 1, Access::WriteTexels, &[Read, ReadWrite]);
        }
        if reads {
            launch("embed", 0, Access::Texels, &[Read, Read, ReadWrite]);
        }
    };
    assert_eq!(errors_of(|p| images(p, true, true)), []);
    let state = "tier `base`, entry `step`, variant `decode`, launch `append`: binding 2: expected \
                 no image, or one that is bound as texels, found State(0)";
    breaks(26, state, |p| images(p, false, true));
    let of_halves = "tier `base`, entry `step`, variant `decode`, launch `append`: binding 2: \
                     expected a buffer, as states of f16 are, found an image";
    breaks(26, of_halves, |p| {
        images(p, true, true);
        p.tiers[0].half_states = true;
    });

    // Written by one launch of the stream and read by another.
    let normed = |p: &mut Plan| {
        entry(p, "forward").buffers[3].image = true;
        texels_of(p, "linear", 0);
        let (name, mut kernel) = kernel("norm", &[Read, Access::WriteTexels]);
        kernel.file = "kernels/norm.wgsl".into();
        p.kernels.insert(name, kernel);
        forward_of(p).streams[0].launches[0].kernel = "norm".into();
    };
    assert_eq!(errors_of(normed), []);
    let as_buffer = "tier `base`, entry `forward`, variant `all`, launch `norm`: binding 2: \
                     expected no image, or one that is bound as texels, found Buffer(3)";
    breaks(26, as_buffer, |p| {
        normed(p);
        forward_of(p).streams[0].launches[0].kernel = "copy".into();
    });
    let both = "tier `base`, entry `forward`: kernel `norm`: expected variants with a grid alone to \
                launch it, found an image that it reads and writes";
    breaks(26, both, |p| {
        normed(p);
        let norm = p.kernels.get_mut("norm").unwrap();
        norm.bindings[1] = Access::ReadWriteTexels;
    });
    let port = "tier `base`, entry `forward`: output `hidden`: expected a buffer that is no image, \
                found `hidden`";
    breaks(26, port, |p| entry(p, "forward").buffers[1].image = true);
}

#[test]
fn invariant_28_rows() {
    let few = "tier `base`, entry `step`: rows: expected 16 at the least, for `batch` and `seq`, \
               found 15";
    breaks(28, few, |p| entry(p, "step").rows = Some(15));
    assert_eq!(errors_of(|p| entry(p, "step").rows = Some(16)), []);
}
