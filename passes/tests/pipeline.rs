//! The driver: what it checks, what it tells, what it says of a pass that fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use kiln_ir::text::parse;
use kiln_ir::{Graph, Op, TensorType, Value};
use kiln_passes::{Changed, Pass, PassError, optimize, optimize_with, pipeline};

fn relu() -> Graph {
    let text = "graph g {
        symbol n <= 4
        %0 = input \"x\" : f32[n]
        %7 = const {f32=0.0}
        %9 = max %0, %7
        output \"y\" = %9
    }";
    parse(text).unwrap()
}

/// Claims that the first output has another type than it has.
struct Liar;

impl Pass for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let (_, output) = graph.outputs()[0].clone();
        for axes in [["m"], ["k"]] {
            let lie = Value {
                ty: TensorType::new(graph.ty(output).dtype, axes),
                ..graph.value(output).clone()
            };
            let lie = graph.push_unchecked(lie);
            graph.add_output(axes[0], lie).unwrap();
        }
        Ok(Changed { rewrites: 2 })
    }
}

/// Wants what it cannot have.
struct Broken;

impl Pass for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let x = graph.order()[0];
        let built = graph.push(Op::MatMul, &[x, x], "h.0.mlp");
        let failed = |error| PassError::Build {
            pass: self.name(),
            error,
        };
        built.map_err(failed).map(|_| Changed::default())
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = pipeline().iter().map(|p| p.name()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn the_observer_hears_of_every_pass_in_order() {
    let mut graph = relu();
    let mut heard = Vec::new();
    optimize(&mut graph, &mut |pass, graph, changed| {
        heard.push((pass, graph.order().len(), changed.rewrites));
    })
    .unwrap();
    let names: Vec<_> = heard.iter().map(|(name, ..)| *name).collect();
    let listed: Vec<_> = pipeline().iter().map(|p| p.name()).collect();
    assert_eq!(names, listed);
    let fused = heard.iter().find(|(name, ..)| *name == "fuse_activation");
    assert_eq!(fused, Some(&("fuse_activation", 2, 1)));
    assert_eq!(heard.iter().map(|(.., n)| n).sum::<usize>(), 1);
}

#[test]
fn values_are_numbered_anew() {
    let mut graph = relu();
    optimize(&mut graph, &mut |_, _, _| {}).unwrap();
    let indices: Vec<_> = graph.order().iter().map(|id| id.index()).collect();
    assert_eq!(indices, [0, 1]);
}

#[test]
fn a_graph_that_is_not_valid_is_refused() {
    let mut graph = relu();
    Liar.run(&mut graph).unwrap();
    let error = optimize(&mut graph, &mut |pass, _, _| panic!("{pass} ran")).unwrap_err();
    assert!(matches!(error, PassError::Input(_)));
    let text = error.to_string();
    assert!(
        text.starts_with("before the first pass: graph `g` is not valid:"),
        "{text}"
    );
}

#[test]
fn a_pass_that_breaks_the_graph_is_named_with_all_that_is_wrong() {
    let passes: Vec<Box<dyn Pass>> = vec![Box::new(Liar)];
    let error = optimize_with(&passes, &mut relu(), &mut |_, _, _| {}).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("after pass `liar`: graph `g` is not valid:"),
        "{text}"
    );
    for wrong in [
        "expected declared symbols, found `m`",
        "found `k`",
        "expected type f32[n]",
    ] {
        assert!(text.contains(wrong), "{wrong}\n{text}");
    }
}

/// Makes the first output another value of another type, or names one more.
struct Renamer(Option<&'static str>);

impl Pass for Renamer {
    fn name(&self) -> &'static str {
        "renamer"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let (x, y) = (graph.order()[0], graph.outputs()[0].1);
        match self.0 {
            Some(name) => graph.add_output(name, x).unwrap(),
            None => {
                let op = Op::Reshape {
                    shape: vec![1.into(), "n".into()],
                };
                let reshaped = graph.push(op, &[x], "").unwrap();
                graph.replace_uses(y, reshaped);
            }
        }
        Ok(Changed { rewrites: 1 })
    }
}

#[test]
fn a_pass_keeps_the_signature() {
    for (pass, wrong) in [
        (
            Renamer(None),
            "output `y`: expected f32[n], found f32[1, n]",
        ),
        (
            Renamer(Some("z")),
            "output `z`: expected none, found f32[n]",
        ),
    ] {
        let passes: Vec<Box<dyn Pass>> = vec![Box::new(pass)];
        let error = optimize_with(&passes, &mut relu(), &mut |_, _, _| {}).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "after pass `renamer`: {wrong}; a pass keeps the names and types of inputs, \
                 outputs and states"
            )
        );
    }
}

#[test]
fn a_pass_that_fails_is_named() {
    let passes: Vec<Box<dyn Pass>> = vec![Box::new(Broken)];
    let error = optimize_with(&passes, &mut relu(), &mut |_, _, _| {}).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("pass `broken`: matmul in `h.0.mlp`: "),
        "{text}"
    );
}
