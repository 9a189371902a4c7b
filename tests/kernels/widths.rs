//! Subgroups of other sizes. Mesa's software driver takes theirs from a variable
//! that it reads once, so each size is a process of its own.

use std::process::Command;

use crate::common::{NATIVE, adapter};
use crate::{attention, generic, linear};

/// Bits of a vector register; a subgroup has a lane for each 32 of them.
const WIDTH: &str = "LP_NATIVE_VECTOR_WIDTH";

#[test]
fn subgroups_of_4() {
    at_width(128);
}

#[test]
fn subgroups_of_8() {
    at_width(256);
}

#[test]
fn subgroups_of_16() {
    at_width(512);
}

/// Runs [`at_this_width`] in a process whose driver has registers of `bits`.
fn at_width(bits: u32) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        "widths::at_this_width",
        "--ignored",
        "--nocapture",
    ]);
    child.env(WIDTH, bits.to_string());
    // Mesa's cache of compiled shaders does not tell widths apart.
    child.env("MESA_SHADER_CACHE_DISABLE", "true");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{bits} bits:\n{text}");
    assert!(text.contains("1 passed"), "{bits} bits:\n{text}");
}

#[test]
#[ignore = "run by the others of this file, with the driver set up"]
fn at_this_width() {
    let bits: u32 = std::env::var(WIDTH).unwrap().parse().unwrap();
    let adapter = adapter(NATIVE);
    let info = adapter.info();
    // A GPU has its own size, at which the other tests ran.
    if adapter.is_cpu() {
        let lanes = bits / 32;
        assert_eq!(
            (info.subgroup_min_size, info.subgroup_max_size),
            (lanes, lanes)
        );
    }
    for suite in [
        linear::across_lanes(),
        attention::across_lanes(),
        generic::across_lanes(),
    ] {
        suite.run(&["subgroup"]);
    }
}
