//! Invariants 24 and 25, and what a grid changes of others.

use super::*;

/// The state of a grid, of so many bytes.
fn state_buffer(bytes: &str) -> Buffer {
    Buffer {
        zeroed: true,
        ..buffer("grid", &[bytes])
    }
}

/// Puts a variant with a grid before the others of `step`, which `change`s.
fn with_grid(plan: &mut Plan, change: impl FnOnce(&mut Entry)) {
    plan.kernels.extend([
        kernel("trial", &[ReadWrite]),
        kernel("joined", &[ReadWrite, ReadWrite, ReadWrite, Read]),
    ]);
    let step = entry(plan, "step");
    let state = step.buffers.len();
    step.buffers.push(state_buffer("8"));
    let grid = Grid {
        requires: Requirements::default(),
        check: Some(Check {
            kernel: "trial".into(),
            workgroups: 4,
            words: 64,
        }),
        state,
    };
    let mut variant = step.variants[0].clone();
    variant.grid = Some(grid);
    // The state as both of two types.
    variant.launches[0] = launch("h.0", "joined", "4", &[B(state), S(0), S(0), B(0)]);
    step.variants.insert(0, variant);
    change(step);
}

#[test]
fn a_grid_has_limits_of_its_own_and_may_be_left_out() {
    assert_eq!(errors_of(|p| with_grid(p, |_| {})), []);
    let unchecked = |p: &mut Plan| {
        with_grid(p, |step| {
            step.variants[0].grid.as_mut().unwrap().check = None;
        });
    };
    assert_eq!(errors_of(unchecked), []);
    let many = |p: &mut Plan, limit: u64| {
        with_grid(p, |step| {
            let grid = step.variants[0].grid.as_mut().unwrap();
            let name = "max_compute_invocations_per_workgroup".to_owned();
            grid.requires.limits.insert(name, limit);
        });
        p.kernels.get_mut("joined").unwrap().workgroup_size = [512, 1, 1];
        let wide = "max_compute_workgroup_size_x".to_owned();
        let grid = entry(p, "step").variants[0].grid.as_mut().unwrap();
        grid.requires.limits.insert(wide, 512);
    };
    assert_eq!(errors_of(|p| many(p, 512)), []);
    let over = "tier `base`, entry `step`: kernel `joined`: expected at most 511 invocations \
                (`max_compute_invocations_per_workgroup`), found 512";
    breaks(16, over, |p| many(p, 511));
    let none = "tier `base`, entry `step`: variants: expected at least one without a grid, found \
                none";
    breaks(17, none, |p| with_grid(p, |step| step.variants.truncate(1)));
    let read = "tier `base`, entry `step`, variant `decode`, launch `h.0`: state `kept`: expected \
                to be bound once, as it is written, found another binding of it";
    breaks(18, read, |p| {
        with_grid(p, |step| step.variants[0].launches[0].bindings[3] = S(0));
    });
    let check = "tier `base`, entry `step`, variant `decode`: check `nothing`: expected a kernel \
                 of the plan, found none";
    breaks(23, check, |p| {
        with_grid(p, |step| {
            let grid = step.variants[0].grid.as_mut().unwrap();
            grid.check.as_mut().unwrap().kernel = "nothing".into();
        });
    });
}

#[test]
fn invariant_24_states_of_grids() {
    let at = "tier `base`, entry `step`, variant `decode`: grid state";
    let state = |p: &mut Plan, state: usize| {
        with_grid(p, |step| {
            step.variants[0].grid.as_mut().unwrap().state = state;
        });
    };
    let text = format!("{at} 9: expected one of the 3 buffers, found none");
    breaks(24, &text, |p| state(p, 9));
    let text = format!("{at} 0: expected a buffer of its own, found that of `ids`");
    let errors = errors_of(|p| state(p, 0));
    assert!(errors.iter().any(|e| e.to_string() == text), "{errors:?}");
    let text = format!("{at} 2: expected at least 8 bytes, found 4");
    breaks(24, &text, |p| {
        with_grid(p, |step| step.buffers[2] = state_buffer("4"));
    });
    let own = "tier `base`, entry `step`: buffer 0 (`ids`): expected no image and a buffer of its \
               own, as it is zeroed, found that of `ids`";
    breaks(24, own, |p| entry(p, "step").buffers[0].zeroed = true);
    let text = format!("{at} 2: expected a zeroed buffer, found one of any words");
    breaks(24, &text, |p| {
        with_grid(p, |step| step.buffers[2].zeroed = false);
    });
    let text = format!(
        "{at} 2: expected launches with this grid, found a launch of variant `prefill`, which has \
         none"
    );
    breaks(24, &text, |p| {
        with_grid(p, |step| {
            let last = step.variants.len() - 1;
            let joined = step.variants[0].launches[0].clone();
            step.variants[last].launches[0].kernel = "copy".into();
            step.variants[last].launches[0].bindings = vec![B(0), joined.bindings[0]];
        });
    });
}

#[test]
fn invariant_25_workgroups_of_a_grid() {
    for workgroups in ["3", "batch*4", "0"] {
        let text = format!(
            "tier `base`, entry `step`, variant `decode`, launch `h.0`: workgroups: expected a \
             constant power of two, found {workgroups}"
        );
        breaks(25, &text, |p| {
            with_grid(p, |step| {
                step.variants[0].launches[0].workgroups = dim(workgroups);
            });
        });
    }
}
