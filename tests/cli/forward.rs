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

/// `kiln forward` of two tokens on the interpreter, into a file.
fn forward_into(out: &Path) -> Ran {
    finish(&mut forward_command(out))
}

fn forward_command(out: &Path) -> Command {
    let base = Fixture::gpt2("base");
    let args = ["forward", base.path(), "--tokens", "1,2", "--device", "cpu"];
    command(args.into_iter().chain(["-o", out.to_str().unwrap()]))
}

fn is_safetensors(bytes: &[u8]) -> bool {
    safetensors::SafeTensors::deserialize(bytes).is_ok()
}

#[test]
fn standard_output_goes_by_no_dash() {
    let message = forward_into(Path::new("-")).fails(2);
    assert!(message.contains("standard output"), "{message}");
}

#[test]
#[cfg(unix)]
fn a_file_has_the_usual_mode_or_that_of_the_one_before() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let [out, usual] = ["out", "usual"].map(|name| folder.path().join(name));
    std::fs::write(&usual, "").unwrap();
    forward_into(&out).ok();
    assert_eq!(mode(&out), mode(&usual));
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o640)).unwrap();
    forward_into(&out).ok();
    assert_eq!(mode(&out), 0o640);
}

#[test]
#[cfg(unix)]
fn a_link_is_followed() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let [link, middle, out] = ["link", "middle", "out"].map(|name| folder.path().join(name));
    symlink("middle", &link).unwrap();
    symlink(&out, &middle).unwrap();
    // The first time the links lead to nothing.
    for _ in 0..2 {
        forward_into(&link).ok();
        assert!(link.is_symlink() && middle.is_symlink() && !out.is_symlink());
        assert!(is_safetensors(&std::fs::read(&out).unwrap()));
    }
    let looped = folder.path().join("looped");
    symlink("looped", &looped).unwrap();
    let message = forward_into(&looped).fails(1);
    assert!(message.contains("cannot write"), "{message}");
}

#[test]
fn a_file_that_is_to_be_kept_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::write(&out, "kept").unwrap();
    let mut readonly = std::fs::metadata(&out).unwrap().permissions();
    readonly.set_readonly(true);
    std::fs::set_permissions(&out, readonly).unwrap();
    let message = forward_into(&out).fails(1);
    assert!(message.contains("cannot write"), "{message}");
    assert_eq!(std::fs::read(&out).unwrap(), b"kept");
    let message = forward_into(&folder.path().join("none/")).fails(1);
    assert!(message.contains("the name of a folder"), "{message}");
}

/// As by `(echo header; kiln forward .. -o /dev/stdout) > FILE`.
#[test]
#[cfg(target_os = "linux")]
fn what_output_is_redirected_to_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "header").unwrap();
    let redirected = std::fs::OpenOptions::new().append(true).open(&file);
    let mut command = forward_command(Path::new("/dev/stdout"));
    let status = command.stdout(redirected.unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(std::fs::read(&file).unwrap(), b"header");
}

#[test]
#[cfg(unix)]
fn a_pipe_is_written_to() {
    use std::os::unix::fs::FileTypeExt;
    let folder = tempfile::tempdir().unwrap();
    let pipe = pipe_in(folder.path());
    let mut child = forward_command(&pipe).spawn().unwrap();
    let bytes = std::fs::read(&pipe).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(is_safetensors(&bytes));
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
}

/// On an adapter the pieces come as they are read back.
#[test]
#[cfg(target_os = "linux")]
fn standard_output_can_be_the_file() {
    let base = Fixture::gpt2("base");
    for device in ["cpu", "0"] {
        let args = [
            "forward",
            base.path(),
            "--tokens",
            "1,2;3,4",
            "--attentions",
        ];
        let args = args
            .into_iter()
            .chain(["-o", "/dev/stdout", "--device", device]);
        let output = command(args).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        assert!(is_safetensors(&output.stdout), "{device}");
    }
}
