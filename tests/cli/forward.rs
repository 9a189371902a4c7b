//! `kiln forward`

use super::*;

/// All outputs of every batch are the reference's, as near as f32 allows.
fn check(fixture: &str, device: &str) {
    let fixture = Fixture::gpt2(fixture);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    for case in ["case0", "case1", "case2"] {
        let rows: Vec<String> = fixture
            .i32(&format!("{case}.ids"))
            .iter()
            .map(|row| join(row))
            .collect();
        let rows = rows.join(";");
        let args = [
            "forward",
            fixture.path(),
            "--tokens",
            &rows,
            "--attentions",
            "--device",
            device,
            "-o",
        ];
        let args = args.into_iter().chain([out.to_str().unwrap()]);
        assert_eq!(kiln(args).ok(), "");
        let found = std::fs::read(&out).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&fixture.expected).unwrap();
        let prefix = format!("{case}.");
        let names = expected.names();
        let names = names.iter().filter_map(|name| name.strip_prefix(&prefix));
        let mut compared = 0;
        for name in names.filter(|name| *name != "ids") {
            let (shape, wanted) = fixture.f32(&format!("{case}.{name}"));
            let (found_shape, found) = f32_tensor(&found, name);
            assert_eq!(found_shape, shape, "{case} {name}");
            let distance = distance(&found, &wanted);
            assert!(distance <= 2e-5, "{case} {name} on {device}: {distance:e}");
            compared += 1;
        }
        assert!(compared > 0);
    }
}

#[test]
fn outputs_are_the_references_on_an_adapter() {
    check("base", "0");
    check("body", "0");
}

#[test]
fn outputs_are_the_references_on_the_interpreter() {
    check("base", "cpu");
    check("body", "cpu");
}

#[test]
fn attentions_are_left_out_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let base = Fixture::gpt2("base");
    kiln([
        "forward",
        base.path(),
        "--tokens",
        "1,2",
        "--device",
        "cpu",
        "-o",
        out.to_str().unwrap(),
    ])
    .ok();
    let file = std::fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut names = file.names();
    names.sort();
    assert_eq!(names, ["hidden", "logits"]);
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let base = Fixture::gpt2("base");
    let out = "/nonexistent/out.safetensors";
    let message = kiln([
        "forward",
        base.path(),
        "--tokens",
        "1",
        "--device",
        "cpu",
        "-o",
        out,
    ])
    .fails(1);
    assert!(
        message.contains("cannot write `/nonexistent/out.safetensors`"),
        "{message}"
    );
    assert!(message.contains("because: "), "{message}");
}
