//! Kernels with cooperative matrices, on an emulated device, and on adapters that have them:
//! of software drivers Mesa's since Mesa 26. Their own are checked when a model is loaded.

use std::iter;

use kiln_ir::Packing;

use crate::common::{MATRICES, OTHER_MATRICES, ROUNDED};
use crate::suite::Suite;
use crate::{attention, linear};

fn run(suite: Suite) {
    let tiers: Vec<&str> = iter::once(MATRICES).chain(OTHER_MATRICES).collect();
    suite.within(ROUNDED).run(&tiers);
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
