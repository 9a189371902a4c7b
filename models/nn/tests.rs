//! What does not fit is told with the name of the module; the values are held
//! against transformers in `tests/gpt2_reference.rs`.

use kiln_ir::{DType, Dim, GraphBuilder, GraphError, Op};

use super::*;

fn builder() -> (GraphBuilder, ValueId) {
    let mut g = GraphBuilder::new("test");
    let n = g.symbol("n", 4).unwrap();
    let x = g
        .input("x", DType::F32, [Dim::from(2), n, 6.into()])
        .unwrap();
    (g, x)
}

fn message(result: Result<ValueId, GraphError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_module_that_does_not_fit_is_named() {
    let (mut g, x) = builder();
    let linear = Linear::new("up", 5, 7);
    let error = g.scope("mlp", |g| linear.forward(g, x));
    assert_eq!(
        message(error),
        "matmul in `mlp.up`: expected a right operand with `6` rows, found f32[5, 7]"
    );
    let error = message(LayerNorm::new("ln", 5, 1e-5).forward(&mut g, x));
    assert!(error.starts_with("mul in `ln`: "), "{error}");
    let error = message(Embedding::new("wte", 9, 6).forward(&mut g, x));
    assert!(
        error.starts_with("gather in `wte`: expected ids of type i32"),
        "{error}"
    );
}

#[test]
fn heads_must_divide_the_width() {
    let (mut g, x) = builder();
    let split = split_heads(&mut g, x, 3).unwrap();
    assert_eq!(g.ty(split).to_string(), "f32[2, 3, n, 2]");
    let merged = merge_heads(&mut g, split).unwrap();
    assert_eq!(g.ty(merged), g.ty(x));
    for heads in [0, 4] {
        let error = message(split_heads(&mut g, x, heads));
        assert!(
            error.starts_with("reshape: expected a shape of n*12 elements"),
            "{error}"
        );
    }
    let error = message(merge_heads(&mut g, x));
    assert!(error.starts_with("transpose: "), "{error}");
}

#[test]
fn sequential_numbers_its_modules() {
    let (mut g, x) = builder();
    let layers = (0..2).map(|_| Linear::new("fc", 6, 6).without_bias());
    let stack = Sequential::new("h", layers);
    stack.forward(&mut g, x, Linear::forward).unwrap();
    let names: Vec<&str> = g.graph().params().map(|(name, _)| name).collect();
    assert_eq!(names, ["h.0.fc.weight", "h.1.fc.weight"]);
}

#[test]
fn tied_weights_are_one_parameter() {
    let (mut g, x) = builder();
    let ids = g.input("ids", DType::I32, [3]).unwrap();
    let embedding = Embedding::new("wte", 9, 6);
    embedding.forward(&mut g, ids).unwrap();
    let weight = embedding.weight(&mut g).unwrap();
    let logits = linear(&mut g, x, weight).unwrap();
    assert_eq!(g.ty(logits).to_string(), "f32[2, n, 9]");
    assert_eq!(g.graph().params().count(), 1);
}

#[test]
fn only_a_continued_span_keeps_states() {
    let limits = SpanLimits {
        batch: 2,
        seq: 3,
        context: 8,
    };
    let mut g = GraphBuilder::new("whole");
    let span = Span::whole(&mut g, limits).unwrap();
    let new = g.param("new", [2, 3, 4]).unwrap();
    assert_eq!(span.cached(&mut g, "k", new), Ok(new));
    assert_eq!(g.ty(span.positions).to_string(), "i32[seq]");
    assert_eq!(g.ty(span.mask).to_string(), "bool[1, 1, seq, seq]");

    let mut g = GraphBuilder::new("continued");
    let span = Span::continued(&mut g, limits).unwrap();
    let shape = [span.batch.clone(), span.seq.clone(), 4.into()];
    let new = g.input("new", DType::F32, shape).unwrap();
    let all = span.cached(&mut g, "k", new).unwrap();
    assert_eq!(g.ty(all).to_string(), "f32[batch, past + seq, 4]");
    assert_eq!(g.ty(span.positions).to_string(), "i32[batch, seq]");
    assert_eq!(
        g.ty(span.mask).to_string(),
        "bool[batch, 1, seq, past + seq]"
    );
    let last = span.last(&mut g, new).unwrap();
    assert_eq!(g.ty(last).to_string(), "f32[batch, 4]");
    let graph = g.finish();
    assert_eq!(graph.states(), [("k".to_owned(), all)]);
    let past = graph.symbols.iter().find(|s| s.name.name() == "past");
    assert_eq!(past.map(|s| s.max), Some(7));
    assert!(graph.iter().any(|(_, v)| matches!(v.op, Op::State { .. })));
}
