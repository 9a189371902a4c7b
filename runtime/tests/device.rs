//! Adapters, tiers, limits and what the driver refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use kiln_runtime::{Adapter, Device, Error, LoadOptions, Model, RunOptions, Session};

fn open(
    change: impl Fn(&mut kiln_ir::plan::Plan),
    options: &LoadOptions,
) -> kiln_runtime::Result<Model> {
    let mut plan = plan();
    change(&mut plan);
    Model::open(&adapter("vulkan"), &artifact_of(plan), options, &mut |_| {})
}

#[test]
fn adapters_are_found_by_index_name_and_back_end() {
    let all = Adapter::list();
    for backend in BACKENDS {
        assert_eq!(adapter(backend).backend(), backend);
    }
    for (index, one) in all.iter().enumerate() {
        let found = Adapter::select(Some(&index.to_string())).unwrap();
        assert_eq!(found.to_string(), one.to_string());
        let exact = format!("{}:{}", one.backend(), one.name().to_uppercase());
        assert_eq!(Adapter::select(Some(&exact)).unwrap().name(), one.name());
        let shown = one.to_string();
        assert!(
            shown.contains(one.name()) && shown.contains(one.kind()),
            "{shown}"
        );
    }
    let vulkan = adapter("vulkan");
    assert!(vulkan.limit("max_buffer_size") > Some(1 << 20));
    assert_eq!(vulkan.limit("max_hope"), None);
    let cached = vulkan.features().contains(wgpu::Features::PIPELINE_CACHE);
    assert_eq!(
        vulkan.feature_names().contains(&"wgpu-pipeline-cache"),
        cached
    );
    let first = Adapter::select(None).unwrap();
    assert_eq!(first.to_string(), all[0].to_string());
    // GL comes behind everything of its kind.
    let gl = all.iter().position(|a| a.backend() == "gl").unwrap();
    let same = |a: &&Adapter| a.kind() == all[gl].kind() && a.backend() != "gl";
    assert!(all[gl..].iter().all(|a| !same(&a)));

    for selector in ["matrox", "99"] {
        let text = message(Adapter::select(Some(selector)));
        assert!(
            text.starts_with(&format!(
                "no adapter is called `{selector}`; there are: 0: "
            )),
            "{text}"
        );
    }
    assert!(Error::NoAdapter.to_string().contains("mesa-vulkan-drivers"));
}

#[test]
fn the_first_tier_that_fits_is_taken() {
    let model = open(|_| {}, &options()).unwrap();
    assert_eq!(model.tier(), "base");

    let mut named = options();
    named.tier = Some("turbo".into());
    assert_eq!(
        message(open(|_| {}, &named)),
        "the artifact has no tier `turbo`; it has: fancy, base"
    );
    named.tier = Some("fancy".into());
    let text = message(open(|_| {}, &named));
    let lacks =
        "cannot run the tier `fancy`: it lacks the feature `texture-compression-astc-sliced-3d`";
    assert!(text.ends_with(lacks), "{text}");

    let text = message(open(
        |plan| {
            let limits = &mut plan.tiers[1].requires.limits;
            limits.insert("max_compute_invocations_per_workgroup".into(), 1 << 20);
        },
        &options(),
    ));
    assert!(
        text.contains("cannot run this artifact: `fancy` lacks the feature"),
        "{text}"
    );
    let base =
        "`base` lacks the limit `max_compute_invocations_per_workgroup` (needs 1048576, offers ";
    assert!(text.contains(base), "{text}");
}

#[test]
fn a_tier_for_cpus_is_taken_on_cpus() {
    let model = open(|plan| plan.tiers[1].requires.cpu_only = true, &options());
    match adapter("vulkan").is_cpu() {
        true => assert_eq!(model.unwrap().tier(), "base"),
        false => assert!(message(model).contains("`base` lacks a CPU to run on")),
    }
    let mut named = options();
    named.tier = Some("base".into());
    let named = open(|plan| plan.tiers[1].requires.cpu_only = true, &named);
    match adapter("vulkan").is_cpu() {
        true => assert_eq!(named.unwrap().tier(), "base"),
        false => assert!(message(named).contains("lacks a CPU to run on")),
    }
}

#[test]
fn what_exceeds_a_limit_is_refused_before_it_is_allocated() {
    let text = message(open(|plan| plan.weights[0].bytes = 1 << 50, &options()));
    assert!(
        text.starts_with("`gain` needs max_buffer_size = 1125899906842624, the adapter offers "),
        "{text}"
    );
    assert!(text.ends_with("; choose a smaller --dtype, or compile with smaller bindings"));

    let model = open(
        |plan| plan.states[0].bytes = "batch*context*1000000000000".parse().unwrap(),
        &options(),
    );
    let text = message(Session::new(&model.unwrap(), 1, 8));
    assert!(
        text.starts_with("`kept` needs max_buffer_size = 8000000000000, the adapter offers "),
        "{text}"
    );
    assert!(text.ends_with("; use a smaller batch, fewer tokens or a smaller --max-context"));

    let storage = adapter("vulkan").limits().max_storage_buffer_binding_size;
    if storage < adapter("vulkan").limits().max_buffer_size {
        let wanted = (storage + 1).next_multiple_of(16);
        let model = open(|plan| plan.states[0].bytes = wanted.into(), &options());
        let text = message(Session::new(&model.unwrap(), 1, 8));
        let expected = format!("`kept` needs max_storage_buffer_binding_size = {wanted}");
        assert!(text.starts_with(&expected), "{text}");
    }
    let text = message(open(
        |plan| plan.kernels.get_mut("next").unwrap().workgroup_size = [1 << 14, 1, 1],
        &options(),
    ));
    let expected =
        "kernel `next` needs max_compute_invocations_per_workgroup = 16384, the adapter offers ";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_kernel_that_is_refused_is_named() {
    for backend in BACKENDS {
        let mut texts = kernels();
        texts.insert("kernels/next.wgsl".into(), "fn main( {".into());
        let weights = Box::new(weights());
        let artifact = kiln_runtime::Artifact::from_parts(
            plan(),
            texts,
            Default::default(),
            Default::default(),
            weights,
        );
        let text = message(Model::open(
            &adapter(backend),
            &artifact.unwrap(),
            &options(),
            &mut |_| {},
        ));
        assert!(text.starts_with("kernel `next` was refused: "), "{text}");
    }
}

#[test]
fn only_what_an_entry_needs_is_loaded() {
    let artifact = artifact_of(plan());
    let device = || Device::open(&adapter("vulkan"), wgpu::Features::empty()).unwrap();
    let load = |names: &[&str]| {
        let mut last = Default::default();
        let options = options().entries(names);
        Model::load(device(), &artifact, &options, &mut |p| last = p).map(|m| (m, last))
    };
    let (model, progress) = load(&["step"]).unwrap();
    assert_eq!(
        (progress.kernels_total, progress.weight_bytes_total),
        (2 + 4, 0)
    );
    assert_eq!(model.weight_bytes(), 0);
    let forward = model.forward_collect(&[vec![1]], &RunOptions::default());
    assert_eq!(
        message(forward),
        "the entry `forward` was not loaded with the model"
    );
    let (model, progress) = load(&["forward"]).unwrap();
    assert_eq!((progress.kernels_total, model.weight_bytes()), (2, 16));
    assert!(message(load(&["sideways"])).contains("no entry `sideways`"));
}

#[test]
fn checked_kernels_give_the_same() {
    for backend in BACKENDS {
        let artifact = artifact_of(plan());
        let mut checked = options();
        checked.checked = true;
        let checked = Model::open(&adapter(backend), &artifact, &checked, &mut |_| {}).unwrap();
        let run = |m: &Model| {
            m.forward_collect(&[vec![5, 6]], &RunOptions::default())
                .unwrap()
        };
        assert_eq!(run(&checked), run(&model(backend)));
    }
}

/// Run by the next test in a process that has no driver.
#[test]
#[ignore = "only means something without a driver"]
fn without_a_driver() {
    for selector in [None, Some("0"), Some("gl")] {
        let text = message(Adapter::select(selector));
        assert!(
            text.starts_with("no graphics adapter was found. Install a driver"),
            "{text}"
        );
    }
    assert!(Adapter::list().is_empty());
}

#[test]
fn a_machine_without_a_driver_is_told_what_to_install() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "without_a_driver", "--ignored"]);
    for loader in [
        "VK_DRIVER_FILES",
        "VK_ICD_FILENAMES",
        "__EGL_VENDOR_LIBRARY_FILENAMES",
    ] {
        child.env(loader, "/nonexistent.json");
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
