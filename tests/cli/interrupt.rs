//! Ctrl-C.
#![cfg(unix)]

use std::io::Read;
use std::process::Child;

use super::*;

fn press_ctrl_c(child: &Child) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn ctrl_c_ends_a_text_cleanly() {
    let args = "run demo --tokens 5 -n 250 --ignore-eos --json --device cpu";
    let mut command = command(args.split(' '));
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0];
    out.read_exact(&mut first).unwrap();
    press_ctrl_c(&child);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: interrupted\n"
    );
    // The line is ended, and there is no JSON behind it.
    assert!(rest.ends_with('\n') && !rest.contains('{'), "{rest}");
}
