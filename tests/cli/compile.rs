//! `kiln compile`

use std::collections::BTreeMap;

use super::*;

/// Compiles into a new folder.
fn compiled(args: &[&str]) -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.kiln");
    let mut all = vec!["compile"];
    all.extend(args);
    all.extend(["-o", out.to_str().unwrap()]);
    let text = kiln(all).ok();
    (folder, out, text)
}

/// All files of a folder by path.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    files.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
    }
    files
}

#[test]
fn a_compiled_model_runs_by_itself_wherever_it_is() {
    let (folder, out, _) = compiled(&["demo"]);
    let moved = folder.path().join("elsewhere");
    std::fs::rename(&out, &moved).unwrap();
    let moved = moved.to_str().unwrap();
    let of = |model: &str, device: &str| {
        kiln([
            "run",
            model,
            "--prompt",
            "A trait is",
            "-n",
            "16",
            "--device",
            device,
        ])
        .ok()
    };
    let wanted = of("demo", "cpu");
    assert_eq!(of(moved, "0"), wanted);
    assert_eq!(of(moved, "cpu"), wanted);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let fixture = Fixture::gpt2("base");
    let (_first, a, _) = compiled(&[fixture.path(), "--dtype", "q8"]);
    let (_second, b, _) = compiled(&[fixture.path(), "--dtype", "q8"]);
    let (a, b) = (files(&a), files(&b));
    assert!(a.contains_key(Path::new("plan.json")) && a.len() > 5);
    assert!(a.keys().eq(b.keys()));
    for (name, bytes) in &a {
        assert!(b[name] == *bytes, "{} differs", name.display());
        let text = String::from_utf8_lossy(bytes);
        assert!(
            !text.contains(fixture.path()),
            "{} holds a path",
            name.display()
        );
    }
}

#[test]
fn the_summary_tells_what_was_made() {
    let (_folder, out, text) = compiled(&["demo", "--dtype", "f16", "--max-context", "64"]);
    let first = text.lines().next().unwrap();
    assert!(first.starts_with(out.to_str().unwrap()), "{text}");
    assert!(first.ends_with("parameters in f16, context 64"), "{text}");
    for part in [
        "launches",
        "step: decode",
        "kernels",
        "weights",
        "activations",
        "a token",
        "passes",
    ] {
        assert!(text.contains(part), "`{part}`: {text}");
    }
}

#[test]
fn a_dtype_that_is_not_the_artifacts_is_refused() {
    let (_folder, out, _) = compiled(&[Fixture::gpt2("base").path(), "--dtype", "f16"]);
    let out = out.to_str().unwrap();
    let run = |dtype| {
        kiln([
            "run", out, "--tokens", "1", "-n", "4", "--device", "0", "--dtype", dtype,
        ])
    };
    let message = run("q8").fails(1);
    assert!(
        message.contains("compiled with --dtype f16 and cannot run as q8"),
        "{message}"
    );
    run("f16").ok();
}

#[test]
fn a_compiled_model_is_not_compiled_again() {
    let (folder, out, _) = compiled(&[Fixture::gpt2("base").path()]);
    let again = folder.path().join("again.kiln");
    let message = kiln([
        "compile",
        out.to_str().unwrap(),
        "-o",
        again.to_str().unwrap(),
    ])
    .fails(1);
    assert!(message.contains("is already compiled"), "{message}");
}

#[test]
fn what_is_no_compiled_model_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    let message = kiln(["compile", "demo", "-o", folder.path().to_str().unwrap()]).fails(1);
    assert!(
        message.contains("exists and is not a compiled model"),
        "{message}"
    );
    let below = folder.path().join("letter.txt/out.kiln");
    let message = kiln(["compile", "demo", "-o", below.to_str().unwrap()]).fails(1);
    assert!(message.contains("cannot write "), "{message}");
    assert!(message.contains("letter.txt"), "{message}");
    assert_eq!(files(folder.path()).len(), 1);
}

#[test]
fn a_compiled_model_may_be_compiled_over() {
    let fixture = Fixture::gpt2("base");
    let (folder, out, _) = compiled(&[fixture.path()]);
    let out = out.to_str().unwrap();
    kiln(["compile", fixture.path(), "-o", out, "--dtype", "f16"]).ok();
    let plan = std::fs::read_to_string(Path::new(out).join("plan.json")).unwrap();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["model"]["weight_dtype"], "f16");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing else is left"
    );
}

/// A folder survives being the output of a compilation as it is, which names `part`.
fn is_left_alone(out: &Path, part: &str) {
    let before = files(out);
    let fixture = Fixture::gpt2("base");
    let message = kiln(["compile", fixture.path(), "-o", out.to_str().unwrap()]).fails(1);
    assert!(message.contains(part), "`{part}`: {message}");
    assert!(message.contains("it is not replaced"), "{message}");
    assert_eq!(files(out), before);
}

#[test]
fn another_programs_plan_is_not_compiled_over() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plan.json"), "{\"files\": {}}").unwrap();
    std::fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    is_left_alone(folder.path(), "is not a compiled model");
}

#[test]
fn what_was_added_to_a_compiled_model_is_not_compiled_over() {
    let (_folder, out, _) = compiled(&[Fixture::gpt2("base").path()]);
    std::fs::write(out.join("kernels/own.wgsl"), "fn f() {}").unwrap();
    is_left_alone(&out, "also holds `kernels/own.wgsl`");
    std::fs::write(out.join("notes.txt"), "dear").unwrap();
    is_left_alone(&out, "also holds `kernels/own.wgsl` and 1 more");
}

#[test]
#[cfg(unix)]
fn a_link_to_a_compiled_model_stays_a_link() {
    let fixture = Fixture::gpt2("base");
    let (folder, out, _) = compiled(&[fixture.path()]);
    let link = folder.path().join("link.kiln");
    std::os::unix::fs::symlink(&out, &link).unwrap();
    let args = ["compile", fixture.path(), "--dtype", "f16", "-o"];
    let args = args.into_iter().chain([link.to_str().unwrap()]);
    kiln(args).ok();
    assert!(link.is_symlink());
    let plan = std::fs::read_to_string(out.join("plan.json")).unwrap();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["model"]["weight_dtype"], "f16");
}

/// The weights' file, and the folder, are for whoever may read what is beside them.
#[test]
#[cfg(unix)]
fn what_is_compiled_has_the_usual_modes() {
    let (folder, out, _) = compiled(&[Fixture::gpt2("base").path()]);
    let usual = folder.path().join("usual");
    std::fs::create_dir(&usual).unwrap();
    assert_eq!(mode(&out), mode(&usual));
    std::fs::write(usual.join("file"), "").unwrap();
    for file in ["weights.safetensors", "plan.json", "tiers/base.json"] {
        assert_eq!(mode(&out.join(file)), mode(&usual.join("file")), "{file}");
    }
}

#[test]
fn a_context_beyond_the_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.kiln");
    let message = kiln([
        "compile",
        "demo",
        "-o",
        out.to_str().unwrap(),
        "--max-context",
        "300",
    ])
    .fails(2);
    assert!(
        message.contains("`--max-context 300`: this model takes 1 to 256"),
        "{message}"
    );
    assert!(files(folder.path()).is_empty());
}

#[test]
fn kernels_are_translated() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (spirv, msl, hlsl) = (at("spirv"), at("msl"), at("hlsl"));
    let (_kiln, out, _) = compiled(&[
        Fixture::gpt2("base").path(),
        "--emit",
        "spirv",
        &spirv,
        "--emit",
        "msl",
        &msl,
        "--emit",
        "hlsl",
        &hlsl,
    ]);
    let kernels = files(&out.join("kernels"));
    let spirv = files(Path::new(&spirv));
    assert_eq!(spirv.len(), kernels.len());
    // Barriers across a grid, and images that are read and written, are for Vulkan alone.
    let of_joined = ["@coherent ", "<rgba32uint, read_write>"];
    let joined = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        of_joined.iter().any(|word| text.contains(word))
    };
    let portable = kernels.iter().filter(|(_, text)| !joined(text)).count();
    assert!(portable < kernels.len());
    for (name, bytes) in spirv {
        assert_eq!(
            bytes[..4],
            0x0723_0203u32.to_le_bytes(),
            "{}",
            name.display()
        );
    }
    for (folder, word) in [(msl, "kernel void"), (hlsl, "numthreads")] {
        let files = files(Path::new(&folder));
        assert_eq!(files.len(), portable);
        for (name, bytes) in files {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(word), "{}", name.display());
        }
    }
}

/// The number of workgroups stands for that of processors too, among which tiles of
/// matrices are dealt out: also where there are no joined launches, and where there are many.
#[test]
fn any_grid_has_matrices() {
    for grid in ["0", "1", "1024"] {
        let (_folder, _out, text) = compiled(&["demo", "--dtype", "f16", "--grid", grid]);
        assert!(text.contains("coop"), "{text}");
    }
}

/// Of a grid of one workgroup, since a software driver has but few threads.
#[test]
fn grids_are_as_asked_for() {
    let run = |grid: &str, more: &[&str]| {
        let (_folder, out, text) = compiled(&["demo", "--grid", grid]);
        let plan = std::fs::read_to_string(out.join("tiers/subgroup.json")).unwrap();
        let out = out.to_str().unwrap();
        let mut all = vec!["run", out, "--prompt", "A trait is", "-n", "6"];
        all.extend(["--tier", "subgroup"]);
        all.extend(more);
        (text, plan.contains("\"grid\""), kiln(all).ok())
    };
    let (text, has_grid, wanted) = run("0", &[]);
    assert!(!has_grid && !text.contains("step: joined"), "{text}");
    let (text, has_grid, found) = run("1", &[]);
    assert!(has_grid && text.contains("step: joined"), "{text}");
    assert_eq!(found, wanted);
    let (_, _, found) = run("1", &["--no-join"]);
    assert_eq!(found, wanted);
}

#[test]
fn stages_are_printed_as_graphs() {
    let (_folder, _, text) = compiled(&[
        Fixture::gpt2("base").path(),
        "--print-after",
        "fuse_attention",
    ]);
    let graphs = text.matches("graph ").count();
    assert_eq!(
        text.matches("// step, after fuse_attention").count(),
        1,
        "{text}"
    );
    assert_eq!(graphs, 3, "one for each entry: {text}");
}

/// As with `| head`.
#[test]
fn a_reader_that_leaves_does_not_keep_the_model_from_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.kiln");
    let fixture = Fixture::gpt2("base");
    let args = ["compile", fixture.path(), "--print-after", "all", "-o"];
    let told = unread(command(args.into_iter().chain([out.to_str().unwrap()])));
    // Of the checkpoint there is something to say, of the reader nothing.
    let mut lines = told.lines();
    let is_of_tokenizer = |line: &str| line.starts_with("warning: ") && line.contains("tokenizer");
    assert!(lines.next().is_some_and(is_of_tokenizer), "{told}");
    assert_eq!(lines.next(), None);
    assert!(out.join("plan.json").exists());
}

#[test]
fn a_tier_that_a_compiled_model_cannot_have_is_told() {
    let (_folder, out, _) = compiled(&[Fixture::gpt2("base").path()]);
    let run = ["run", out.to_str().unwrap(), "--tokens", "1"];
    let run = run.into_iter().chain(["--device", "0", "--tier", "coop"]);
    let message = kiln(run).fails(1);
    assert!(
        message.contains("compiled with --dtype f32") && message.contains("--dtype f16, q8 or q4"),
        "{message}"
    );
}
