//! Kernels with cooperative matrices, on an emulated device: no software driver has such.
//! On adapters that have them, their own are checked when a model is loaded.

use kiln_ir::Packing;

use crate::common::{MATRICES, ROUNDED};
use crate::suite::Suite;
use crate::{attention, linear};

fn run(suite: Suite) {
    suite.within(ROUNDED).run(&[MATRICES]);
}

#[test]
fn linear_layers() {
    for packing in [Packing::F16, Packing::Q8, Packing::Q4] {
        run(linear::many_rows(packing));
    }
}

#[test]
fn heads() {
    run(attention::many_queries());
}
