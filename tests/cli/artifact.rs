//! Compiled folders that were altered.

use super::*;

/// Compiles a small model, does something to it, and tells how running it fails.
fn message_after(alter: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.kiln");
    let path = out.to_str().unwrap();
    kiln(["compile", Fixture::gpt2("base").path(), "-o", path]).ok();
    alter(&out);
    let message = kiln(["run", path, "--tokens", "1", "--device", "0"]).fails(1);
    message.replace(path, "OUT")
}

fn alter_plan(out: &Path, alter: impl FnOnce(&mut Value)) {
    let file = out.join("plan.json");
    let mut plan = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    alter(&mut plan);
    std::fs::write(file, plan.to_string()).unwrap();
}

#[test]
fn a_missing_file_is_named() {
    let message =
        message_after(|out| std::fs::remove_file(out.join("weights.safetensors")).unwrap());
    assert!(
        message.contains("`weights.safetensors` of the artifact `OUT` is missing"),
        "{message}"
    );
}

#[test]
fn an_altered_file_is_named() {
    let message = message_after(|out| {
        let kernels = std::fs::read_dir(out.join("kernels")).unwrap();
        let kernel = kernels.map(|e| e.unwrap().path()).min().unwrap();
        let text = std::fs::read_to_string(&kernel).unwrap();
        std::fs::write(kernel, text + " ").unwrap();
    });
    assert!(
        message.contains("`kernels/") && message.contains("of the artifact `OUT` is altered"),
        "{message}"
    );
}

#[test]
fn another_version_is_refused() {
    let message = message_after(|out| alter_plan(out, |plan| plan["version"] = 99.into()));
    assert!(
        message.contains("version 99") && message.contains("compile the model again"),
        "{message}"
    );
}

#[test]
fn a_limit_that_the_adapter_lacks_is_named() {
    let message = message_after(|out| {
        alter_plan(out, |plan| {
            for tier in plan["tiers"].as_array_mut().unwrap() {
                tier["requires"]["limits"]["max_compute_invocations_per_workgroup"] =
                    1_000_000.into();
            }
        });
    });
    for part in [
        "cannot run this artifact",
        "max_compute_invocations_per_workgroup",
        "needs 1000000",
    ] {
        assert!(message.contains(part), "{message}");
    }
}
