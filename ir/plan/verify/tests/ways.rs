//! Launches that can be done in several ways: every invariant holds in each.

use super::*;

/// Gives the second launch of single tokens another way, which `change` spoils, with a
/// kernel of its own.
fn with_way(plan: &mut Plan, change: impl FnOnce(&mut Alternative)) {
    plan.kernels
        .extend([kernel("tiled", &[Read, Read, ReadWrite])]);
    let launch = &mut decode_of(plan).launches[1];
    let mut way = Alternative {
        kernel: "tiled".into(),
        workgroups: dim("batch*seq"),
        bindings: launch.bindings.clone(),
        requires: Requirements::default(),
        shares: false,
    };
    change(&mut way);
    launch.alternatives.push(way);
}

#[test]
fn a_way_is_checked_as_the_launch_is() {
    assert_eq!(errors_of(|p| with_way(p, |_| {})), []);
    let at = "tier `base`, entry `step`, variant `decode`, launch `attend`";
    let spoilt = |change: fn(&mut Alternative)| move |p: &mut Plan| with_way(p, change);
    let text = format!("{at}: kernel: expected a kernel of the plan, found `nothing`");
    let errors = errors_of(spoilt(|way| way.kernel = "nothing".into()));
    assert_eq!(errors[0].to_string(), text);
    let text = format!("{at}: bindings: expected 3, as kernel `tiled` has, found 4");
    breaks(10, &text, spoilt(|way| way.bindings.push(W(0))));
    let text = format!(
        "{at}: workgroups: expected symbols that have a value here (batch, past, seq, context), \
         found `block` in `block`"
    );
    breaks(11, &text, spoilt(|way| way.workgroups = dim("block")));
    // What is read must have been written, and what is written may be waited for.
    let text = format!(
        "{at}: alternative `other`: expected what the launch binds, read and written as it is \
         there, found State(0), which is not"
    );
    let errors = errors_of(|p| {
        with_way(p, |way| way.kernel = "other".into());
        p.kernels
            .extend([kernel("other", &[ReadWrite, Read, Read])]);
    });
    assert_eq!((errors[0].invariant, errors[0].to_string()), (27, text));
    // A buffer that nothing else binds it may have besides.
    let own = |p: &mut Plan| {
        entry(p, "step").buffers.push(buffer("own", &["64"]));
        let own = B(entry(p, "step").buffers.len() - 1);
        with_way(p, |way| way.bindings.push(own));
        let kernel = kernel("tiled", &[Read, Read, ReadWrite, ReadWrite]);
        p.kernels.extend([kernel]);
    };
    assert_eq!(errors_of(own), []);
}

#[test]
fn a_way_may_ask_for_more_than_the_tier_has() {
    let name = "max_compute_invocations_per_workgroup".to_owned();
    let large = |p: &mut Plan, offered: u64| {
        with_way(p, |way| {
            way.requires.limits.insert(name.clone(), offered);
        });
        p.kernels.get_mut("tiled").unwrap().workgroup_size = [256, 2, 1];
    };
    assert_eq!(errors_of(|p| large(p, 512)), []);
    let text = format!(
        "tier `base`, entry `step`: kernel `tiled`: expected at most 511 invocations (`{name}`), \
         found 512"
    );
    breaks(16, &text, |p| large(p, 511));
    // Not where the launch as it stands has that kernel elsewhere.
    let text = text.replace("511", "256");
    breaks(16, &text, |p| {
        large(p, 512);
        let other = &mut entry(p, "step").variants[1].launches[1];
        other.kernel = "tiled".into();
    });
}

/// What is wrong with a variant in all of its ways is said once.
#[test]
fn an_error_is_told_once() {
    let errors = errors_of(|p| {
        with_way(p, |_| {});
        decode_of(p).launches[0].kernel = "nothing".into();
    });
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn a_launch_is_taken_in_one_way() {
    let mut plan = plan();
    with_way(&mut plan, |_| {});
    let variant = decode_of(&mut plan).clone();
    let kernels = |variant: &Variant| -> Vec<String> {
        let launches = variant.launches.iter();
        launches.map(|l| l.kernel.clone()).collect()
    };
    assert_eq!(variant.ways(), 2);
    let ways: Vec<Variant> = variant.each_way().collect();
    let usual = kernels(&variant);
    assert_eq!(kernels(&ways[0]), usual);
    assert_eq!(kernels(&ways[1]), [usual[0].as_str(), "tiled"]);
    assert_eq!(kernels(&variant.way(2)), usual);
    assert!(ways.iter().all(|way| way.ways() == 1));
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}
