//! The printer and the parser are each other's inverse, and errors say where.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::{cases, every_op, graphs};
use crate::verify::verify;

fn round_trip(graph: &Graph) -> Graph {
    let text = graph.to_string();
    let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(back.to_string(), text);
    back
}

/// A number for each variant of [`Op`]; the compiler sees to it that none is
/// forgotten.
fn variant(op: &Op) -> usize {
    match op {
        Op::Param { .. } => 0,
        Op::Input { .. } => 1,
        Op::State { .. } => 2,
        Op::Const(_) => 3,
        Op::Arange { .. } => 4,
        Op::Unary(_) => 5,
        Op::Binary(_) => 6,
        Op::Where => 7,
        Op::Cast(_) => 8,
        Op::Reshape { .. } => 9,
        Op::Transpose { .. } => 10,
        Op::Broadcast { .. } => 11,
        Op::Slice { .. } => 12,
        Op::Concat { .. } => 13,
        Op::Gather => 14,
        Op::MatMul => 15,
        Op::Reduce { .. } => 16,
        Op::Softmax { .. } => 17,
        Op::Normalize(_) => 18,
        Op::Activate(_) => 19,
        Op::Linear { .. } => 20,
        Op::Attention(_) => 21,
        Op::AttentionProbs(_) => 22,
        Op::Rotary => 23,
        Op::Table(_) => 24,
    }
}

#[test]
fn every_op_round_trips() {
    let graph = every_op();
    verify(&graph).unwrap();
    let variants: BTreeSet<usize> = graph.iter().map(|(_, v)| variant(&v.op)).collect();
    assert_eq!(variants, (0..25).collect());
    // Every id, name, type and attribute, down to the sign of zero.
    assert_eq!(round_trip(&graph), graph);
    let bits = |g: &Graph| {
        let constants = g.iter().filter_map(|(_, v)| match v.op {
            Op::Const(crate::Scalar::F32(v)) => Some(v.to_bits()),
            _ => None,
        });
        constants.collect::<Vec<u64>>()
    };
    assert_eq!(bits(&round_trip(&graph)), bits(&graph));
}

#[test]
fn the_form_is_as_documented() {
    let text = "\
graph mlp {
  symbol rows <= 8
  %0 = input \"x\" : f32[rows, 768]
  %1 = param \"mlp.weight\" : f32[3072, 768]
  %2 = param \"mlp.bias\" : f32[3072]
  %3 = linear %0, %1, %2 {then=[add, gelu_tanh]} : f32[rows, 3072] @mlp
  output \"y\" = %3
}
";
    let graph = parse(text).unwrap();
    verify(&graph).unwrap();
    assert_eq!(graph.to_string(), text);
    // Line breaks, comments, and types that can be inferred are the writer's
    // choice.
    let loose = "// an MLP
        graph mlp { symbol rows<=8 %0 = input \"x\" : f32[ rows,768 ] // rows of it
        %1=param \"mlp.weight\":f32[3072,768] %2=param \"mlp.bias\":f32[3072]
        %3 = linear %0 , %1,%2 { then = [ add , gelu_tanh ] } @ mlp output \"y\"=%3 }";
    assert_eq!(parse(loose).unwrap(), graph);
}

#[test]
fn ids_are_kept_and_holes_stay_holes() {
    let text = "\
graph g {
  %7 = const {f32=1.0} : f32[]
  %3 = neg %7 : f32[]
  output \"y\" = %3
}
";
    let graph = parse(text).unwrap();
    assert_eq!(graph.to_string(), text);
    assert_eq!(graph.arena_len(), 8);
    assert_eq!(graph.order().len(), 2);
    verify(&graph).unwrap();
}

#[test]
fn a_claimed_type_is_kept_for_the_verifier() {
    let text = "graph g {\n  %0 = const {i32=3} : f32[2]\n}\n";
    let graph = parse(text).unwrap();
    assert_eq!(graph.to_string(), text);
    let error = verify(&graph).unwrap_err().to_string();
    assert!(
        error.contains("%0 = const: expected type i32[], found f32[2]"),
        "{error}"
    );
}

#[test]
fn several_graphs_in_one_text() {
    let one = "graph a {\n}\n";
    let two = "graph \"b c\" {\n  %0 = const {bool=true} : bool[]\n}\n";
    let graphs = parse_all(&format!("{one}// and\n{two}")).unwrap();
    let texts: Vec<String> = graphs.iter().map(Graph::to_string).collect();
    assert_eq!(texts, [one, two]);
    assert_eq!(parse_all(" // nothing\n").unwrap(), []);
    let error = parse(&format!("{one}{two}")).unwrap_err().to_string();
    assert_eq!(
        error,
        "line 3, column 1: expected the end of the text after the graph"
    );
}

#[test]
fn errors_say_where_and_what() {
    // `|` marks the place that the error has to name.
    for (text, message) in [
        ("|grph g {}", "expected `graph`, found `grph`"),
        ("graph |{}", "expected a name, found `{}`"),
        ("graph g |%0", "expected `{`, found `%0`"),
        (
            "graph g {\n  |foo\n}",
            "expected a value (`%0 = ...`), `symbol`, `output`, `state` or `}`, found `foo`",
        ),
        (
            "graph g {\n|",
            "expected a value (`%0 = ...`), `symbol`, `output`, `state` or `}`, found the end of \
             the text",
        ),
        (
            "graph g { symbol |9 <= 3 }",
            "expected the name of a symbol",
        ),
        (
            "graph g { symbol |true <= 3 }",
            "expected the name of a symbol",
        ),
        ("graph g { symbol n |< 3 }", "expected `<=`, found `<`"),
        (
            "graph g { symbol n <= |x }",
            "expected a maximum, found `x`",
        ),
        (
            "graph g { symbol n <= |99999999999999999999 }",
            "a maximum is too large",
        ),
        (
            "graph g {\n symbol n <= 3\n symbol |n <= 4 }",
            "symbol `n` is declared already",
        ),
        (
            "graph g { %|x = neg }",
            "expected a value's number, found `x`",
        ),
        ("graph g { |%1048576 = neg }", "ids go up to %1048575"),
        ("graph g { %0 |neg }", "expected `=`, found `neg`"),
        ("graph g { %0 = |: f32[] }", "expected an op, found `:`"),
        ("graph g { %0 = |frob }", "there is no op `frob`"),
        (
            "graph g { %0 = |const }",
            "`const` wants an attribute `i32`",
        ),
        (
            "graph g { %0 = neg |%1 }",
            "%1 is not defined before this use",
        ),
        (
            "graph g { %0 = const {f32=1} |%0 = neg %0 }",
            "%0 is defined already",
        ),
        (
            "graph g { %0 = const {f32=1} %1 = add %0, |3 }",
            "expected `%`, found `3`",
        ),
        (
            "graph g { %0 = const {f32=1} %1 = |add %0 }",
            "add: expected 2 operands, found 1",
        ),
        (
            "graph g { %0 = const {f32=1} %1 = |not %0 }",
            "not: expected an operand of type bool, found f32[]",
        ),
        (
            "graph g { %0 = const {|=1} }",
            "expected an attribute, found `=1}`",
        ),
        (
            "graph g { %0 = const {f32 |1} }",
            "expected `=`, found `1}`",
        ),
        (
            "graph g { %0 = const {f32=1, |f32=2} }",
            "attribute `f32` is given twice",
        ),
        (
            "graph g { %0 = const {f32=1|",
            "expected `}`, found the end of the text",
        ),
        (
            "graph g { %0 = const {f32=|} }",
            "expected an attribute's value, found `}`",
        ),
        (
            "graph g { %0 = const {f32=|1e999} }",
            "this number is too large",
        ),
        (
            "graph g { %0 = const {f32=|99999999999999999999} }",
            "this number is too large",
        ),
        (
            "graph g { %0 = |const {f32=1, axis=2} }",
            "`const` has no attribute `axis`",
        ),
        (
            "graph g { %0 = |const {f32=one} }",
            "attribute `f32` of `const` wants a number",
        ),
        (
            "graph g { %0 = |const {i32=3000000000} }",
            "attribute `i32` of `const` wants a 32-bit integer",
        ),
        (
            "graph g { %0 = const {i32=1} %1 = |softmax %0 {axis=-1} }",
            "attribute `axis` of `softmax` wants a whole number",
        ),
        (
            "graph g { %0 = const {f32=1} %1 = |activate %0 {fn=swish} }",
            "attribute `fn` of `activate` wants an activation",
        ),
        (
            "graph g { %0 = const {f32=1} %1 = |reshape %0 {shape=[1, \"a\"]} }",
            "attribute `shape` of `reshape` wants a list of dimensions",
        ),
        (
            "graph g { %0 = arange {start=0, end=|n +} }",
            "`n +` is not a dimension: expected a number or a symbol at byte 3",
        ),
        (
            "graph g { %0 = input |x }",
            "expected a quoted name, found `x`",
        ),
        (
            "graph g { %0 = input |\"x\n\" : f32[] }",
            "this quoted name does not end on its line",
        ),
        (
            "graph g { %0 = input \"x|\\y\" }",
            "there is no such escape",
        ),
        (
            "graph g { %0 = input \"x|\\u{d800}\" }",
            "expected a character code, as in `\\u{7f}`",
        ),
        (
            "graph g { %0 = input \"x\" |}",
            "expected `:` and the type of this input, found `}`",
        ),
        (
            "graph g { %0 = input \"x\" : |f16[] }",
            "`f16` is not an element type (f32, i32, bool)",
        ),
        (
            "graph g { %0 = input \"x\" : f32 |}",
            "expected `[`, found `}`",
        ),
        (
            "graph g { %0 = input \"x\" : f32[2, |] }",
            "`` is not a dimension: expected a number or a symbol at byte 0",
        ),
        (
            "graph g { %0 = const {f32=1} output |y = %0 }",
            "expected a quoted name, found `y`",
        ),
        (
            "graph g { %0 = const {f32=1}\n  output \"y\" = %0\n  |output \"y\" = %0 }",
            "there are two outputs called `y`",
        ),
        (
            "graph g { %0 = const {f32=1} |state \"s\" = %0 }",
            "state `s` is set, but no `state` op reads it",
        ),
        ("graph |é { }", "expected a name, found `é`"),
        (
            "graph \"é\" { // ü\n  %0 = input \"ü\" : f32[] @ \"ö\" |x }",
            "expected a value (`%0 = ...`), `symbol`, `output`, `state` or `}`, found `x`",
        ),
    ] {
        let at = text.find('|').unwrap();
        let text = text.replacen('|', "", 1);
        let error = parse(&text).unwrap_err();
        assert_eq!(error.message, message, "{text}");
        let line = text[..at].matches('\n').count() + 1;
        let column = text[..at].rsplit('\n').next().unwrap().chars().count() + 1;
        assert_eq!(
            (error.line, error.column),
            (line, column),
            "{text}: {message}"
        );
        assert!(
            error
                .to_string()
                .starts_with(&format!("line {line}, column {column}: "))
        );
    }
}

/// An edit of a text: where, how many characters go, and what comes instead.
type Edit = (prop::sample::Index, usize, String);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let words = prop::sample::select(vec![
        "%",
        "%0",
        "=",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "@",
        "\"",
        "\\",
        "\\u{",
        "//",
        "\n",
        "-",
        "ceil(",
        "/",
        "*",
        "seq",
        "9",
        "-1",
        "1e9",
        "9223372036854775807",
        "true",
        "inf",
        "é",
        "graph",
        "symbol",
        "output",
        "state",
        "f32[",
        "<=",
        "\u{0}",
        "18446744073709551616",
    ]);
    let insert = prop_oneof![
        3 => words.prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        2 => Just(String::new()),
    ];
    vec((any::<prop::sample::Index>(), 0..12_usize, insert), 1..4)
}

fn edit(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, remove, insert) in edits {
        let at = at.index(chars.len() + 1);
        let end = (at + remove).min(chars.len());
        chars.splice(at..end, insert.chars());
    }
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn random_graphs_round_trip(graph in graphs()) {
        prop_assert!(verify(&graph).is_ok(), "{}", verify(&graph).unwrap_err());
        let back = round_trip(&graph);
        // The printed graph and no more: values outside the order are gone.
        prop_assert_eq!(back.iter().collect::<Vec<_>>(), graph.iter().collect::<Vec<_>>());
        prop_assert_eq!(back.outputs(), graph.outputs());
        prop_assert_eq!(&back.symbols, &graph.symbols);
    }

    #[test]
    fn a_damaged_text_is_an_error_or_a_graph(edits in edits()) {
        let text = edit(&every_op().to_string(), &edits);
        match parse(&text) {
            // Whatever was understood has a text of its own, and the verifier
            // has an opinion of it.
            Ok(graph) => {
                round_trip(&graph);
                let _ = verify(&graph);
            }
            Err(e) => {
                let lines = text.split('\n').count();
                prop_assert!(e.line >= 1 && e.line <= lines, "{e}");
                let line = text.split('\n').nth(e.line - 1).unwrap();
                prop_assert!(e.column >= 1 && e.column <= line.chars().count() + 1, "{e}");
            }
        }
    }

    #[test]
    fn any_text_is_an_error_or_a_graph(text in ".{0,80}") {
        let _ = parse(&text);
        let _ = parse_all(&format!("graph g {{ %0 = {text}"));
        let _ = parse(&format!("graph g {{ %0 = input \"x\" : f32[{text}] }}"));
    }
}

#[test]
fn a_dimension_stands_on_one_line() {
    let of = |shape: &str| parse(&format!("graph g {{ %0 = input \"x\" : f32[{shape}] }}"));
    assert!(of("n,\n4\n").is_ok());
    assert!(of("n // rows\n, 4").is_err());
    assert!(of("n +\n4").is_err());
}
