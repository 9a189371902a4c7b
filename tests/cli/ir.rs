//! `kiln ir`

use std::io::Write;

use super::*;

/// `kiln ir - ...` on a text.
fn ir_of(text: &str, args: &[&str]) -> Ran {
    let mut command = command(["ir", "-"].iter().chain(args));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn what_is_printed_is_read_and_printed_again() {
    for args in [
        "ir demo",
        "ir demo --entry forward",
        "ir demo --print-after all",
    ] {
        let printed = kiln_line(args).ok();
        let graphs: String = printed
            .split_inclusive('\n')
            .filter(|l| !l.starts_with("//") && *l != "\n")
            .collect();
        assert_eq!(ir_of(&printed, &[]).ok(), graphs, "{args}");
    }
}

#[test]
fn a_pass_runs_on_a_text() {
    let text = "graph f {\n  %0 = input \"x\" : f32[4]\n  %1 = const {f32=0.0} : f32[]\n  %2 = max %0, %1\n  \
                output \"y\" = %2\n}\n";
    let after = ir_of(text, &["--pass", "fuse_activation", "--pass", "dce"]).ok();
    assert!(after.contains("relu") && !after.contains("max"), "{after}");
}

#[test]
fn a_text_that_is_no_graph_is_told_where() {
    let message = ir_of("graph f {\n  %0 = frob\n}\n", &[]).fails(1);
    assert!(
        message.contains("standard input is not a graph"),
        "{message}"
    );
    assert!(
        message.contains("frob") && message.contains('2'),
        "{message}"
    );
    let wrong = "graph f {\n  %0 = input \"x\" : f32[4]\n  %1 = add %0, %0 : f32[5]\n  output \"y\" = %1\n}\n";
    let message = ir_of(wrong, &[]).fails(1);
    assert!(
        message.contains("standard input: graph `f` is not valid") && message.contains("f32[5]"),
        "{message}"
    );
}

#[test]
fn a_text_without_graphs_is_refused() {
    let message = ir_of("", &[]).fails(1);
    assert!(
        message.contains("standard input holds no graph"),
        "{message}"
    );
    // As after `/dev/null`, or a comment.
    let message = ir_of("// nothing\n", &["--pass", "dce"]).fails(1);
    assert!(message.contains("holds no graph"), "{message}");
}

/// As from a shell's `<(...)`.
#[test]
#[cfg(unix)]
fn a_pipe_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = pipe_in(folder.path());
    let mut command = command(["ir", pipe.to_str().unwrap()]);
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let printed = kiln_line("ir demo").ok();
    std::fs::write(&pipe, &printed).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), printed);
}

#[test]
fn stages_and_differences_show_the_passes_work() {
    let built = kiln_line("ir demo --after input").ok();
    assert_eq!(built, kiln_line("ir demo").ok());
    assert!(!built.contains("= attention "), "{built}");
    let all = kiln_line("ir demo --after all").ok();
    assert_eq!(all, kiln_line("ir demo --print-after all").ok());
    let fused = kiln_line("ir demo --after fuse_attention").ok();
    assert!(
        fused.starts_with("// step, after fuse_attention: 5 rewrites\n"),
        "{fused}"
    );
    assert_eq!(fused.matches("= attention ").count(), 5, "{fused}");
    let diff = kiln_line("ir demo --diff").ok();
    let (_, part) = diff.split_once("// step, after fuse_attention").unwrap();
    let (part, _) = part.split_once("\n// ").unwrap();
    assert!(
        part.lines()
            .any(|l| l.starts_with('-') && l.contains("= softmax ")),
        "{part}"
    );
    assert!(
        part.lines()
            .any(|l| l.starts_with('+') && l.contains("= attention ")),
        "{part}"
    );
}

#[test]
fn the_passes_are_listed_in_their_order() {
    let list = kiln_line("ir --list").ok();
    let names: Vec<&str> = list.lines().collect();
    let at = |name| names.iter().position(|n| *n == name).unwrap();
    assert!(
        at("fold_constants") < at("fuse_attention") && at("fuse_attention") < at("fuse_epilogue")
    );
}
