//! Every rule: the type it gives, and what it says where there is none.

use super::*;
use crate::text::parse;

/// The type that is inferred for the last of these statements, or the error.
fn of(statements: &str) -> String {
    let leaves = "graph g {
        symbol b <= 3 symbol s <= 9 symbol p <= 9
        %0 = input \"x\" : f32[b, s, 8]
        %1 = input \"ids\" : i32[b, s]
        %2 = input \"mask\" : bool[s, 1]
        %3 = param \"w\" : f32[6, 8]
        %4 = param \"g\" : f32[8]
        %5 = param \"one\" : f32[]
        %6 = input \"kv\" : f32[b, p, 4]
        %7 = input \"start\" : i32[b]";
    match parse(&format!("{leaves}\n%8 = {statements} }}")) {
        Ok(graph) => graph.iter().next_back().unwrap().1.ty.to_string(),
        Err(e) => e.message,
    }
}

/// Each statement has this type, or this error.
#[track_caller]
fn table(rows: &[(&str, &str)]) {
    for (statement, expected) in rows {
        assert_eq!(of(statement), *expected, "{statement}");
    }
}

#[test]
fn leaves_and_elementwise_ops() {
    table(&[
        ("const {f32=1}", "f32[]"),
        ("const {i32=-1}", "i32[]"),
        ("const {bool=true}", "bool[]"),
        ("table {f32=[1, -0.5, 1e9]}", "f32[3]"),
        (
            "table {f32=[1, true]}",
            "attribute `f32` of `table` wants a list of numbers",
        ),
        ("arange {start=p, end=p + s}", "i32[s]"),
        ("tanh %0", "f32[b, s, 8]"),
        ("neg %1", "i32[b, s]"),
        ("abs %1", "i32[b, s]"),
        ("not %2", "bool[s, 1]"),
        (
            "exp %1",
            "exp: expected an operand of type f32, found i32[b, s]",
        ),
        (
            "not %0",
            "not: expected an operand of type bool, found f32[b, s, 8]",
        ),
        ("activate %0 {fn=silu}", "f32[b, s, 8]"),
        (
            "activate %1 {fn=silu}",
            "activate: expected an operand of type f32, found i32[b, s]",
        ),
        ("add %0, %4", "f32[b, s, 8]"),
        (
            "add %1, %7",
            "add: expected axes that broadcast to `s`, found `b`",
        ),
        (
            "mul %0, %1",
            "mul: expected two operands of type f32, found i32[b, s]",
        ),
        ("lt %1, %1", "bool[b, s]"),
        ("eq %2, %2", "bool[s, 1]"),
        (
            "lt %2, %2",
            "lt: expected operands that are numbers, found bool[s, 1]",
        ),
        (
            "and %0, %0",
            "and: expected operands of type bool, found f32[b, s, 8]",
        ),
        (
            "pow %1, %1",
            "pow: expected operands of type f32, found i32[b, s]",
        ),
        ("where %2, %0, %4", "f32[b, s, 8]"),
        (
            "where %0, %0, %4",
            "where: expected a condition of type bool, found f32[b, s, 8]",
        ),
        (
            "where %2, %1, %4",
            "where: expected an alternative of type i32, found f32[8]",
        ),
        ("cast %2 {to=f32}", "f32[s, 1]"),
        ("add %0", "add: expected 2 operands, found 1"),
    ]);
}

#[test]
fn movement() {
    table(&[
        ("reshape %0 {shape=[s*b, 2, 4]}", "f32[b*s, 2, 4]"),
        (
            "reshape %0 {shape=[b, s]}",
            "reshape: expected a shape of b*s*8 elements, found b*s",
        ),
        (
            "broadcast %5 {shape=[4611686018427387904, 4]} %9 = reshape %8 \
             {shape=[4611686018427387904, 3]}",
            "reshape: expected a shape whose elements can be counted in 63 bits, found \
             f32[4611686018427387904, 4]",
        ),
        (
            "reshape %0 {shape=[b*4611686018427387904, s*8]}",
            "reshape: expected a shape whose elements can be counted in 63 bits, found \
             f32[b*4611686018427387904, s*8]",
        ),
        ("transpose %0 {perm=[2, 0, 1]}", "f32[8, b, s]"),
        (
            "transpose %0 {perm=[0, 1]}",
            "transpose: expected a permutation of the 3 axes, found [0, 1]",
        ),
        (
            "transpose %0 {perm=[0, 1, 1]}",
            "transpose: expected a permutation of the 3 axes, found [0, 1, 1]",
        ),
        ("broadcast %4 {shape=[b, 8]}", "f32[b, 8]"),
        (
            "broadcast %4 {shape=[8, 1]}",
            "broadcast: expected a shape that the operand broadcasts to, found f32[8]",
        ),
        ("slice %0 {axis=1, start=s - 1, end=s}", "f32[b, 1, 8]"),
        ("slice %0 {axis=2, start=2, end=8}", "f32[b, s, 6]"),
        (
            "slice %0 {axis=2, start=2, end=9}",
            "slice: expected a range within 0..8, found 2..9",
        ),
        (
            "slice %0 {axis=2, start=3, end=2}",
            "slice: expected a range within 0..8, found 3..2",
        ),
        ("slice %0 {axis=1, start=0, end=p}", "f32[b, p, 8]"),
        (
            "slice %0 {axis=1, start=0, end=s + 1}",
            "slice: expected a range within 0..s, found 0..s + 1",
        ),
        (
            "slice %0 {axis=2, start=-1, end=2}",
            "slice: expected a range within 0..8, found -1..2",
        ),
        (
            "slice %0 {axis=1, start=s, end=s - 1}",
            "slice: expected a range within 0..s, found s..s - 1",
        ),
        (
            "slice %0 {axis=3, start=0, end=1}",
            "slice: expected an axis below 3, found 3",
        ),
        ("concat %0, %0 {axis=1}", "f32[b, s*2, 8]"),
        (
            "concat %0, %0 {axis=3}",
            "concat: expected an axis below 3, found 3",
        ),
        (
            "concat %1, %2 {axis=1}",
            "concat: expected operands of type i32, found bool[s, 1]",
        ),
        (
            "concat %0, %6 {axis=1}",
            "concat: expected operands that differ in one axis of shape f32[b, p, 8], found \
             f32[b, p, 4]",
        ),
        (
            "concat %4, %3 {axis=0}",
            "concat: expected operands that differ in one axis of shape f32[6], found f32[6, 8]",
        ),
        ("gather %3, %1", "f32[b, s, 8]"),
        ("gather %4, %7", "f32[b]"),
        (
            "gather %3, %0",
            "gather: expected ids of type i32, found f32[b, s, 8]",
        ),
        (
            "gather %5, %1",
            "gather: expected a table of at least one axis, found f32[]",
        ),
    ]);
}

#[test]
fn contractions_and_reductions() {
    table(&[
        (
            "transpose %3 {perm=[1, 0]} %9 = matmul %0, %8",
            "f32[b, s, 6]",
        ),
        (
            "matmul %0, %3",
            "matmul: expected a right operand with `8` rows, found f32[6, 8]",
        ),
        (
            "matmul %0, %4",
            "matmul: expected operands of at least two axes, found f32[b, s, 8] and f32[8]",
        ),
        (
            "matmul %1, %3",
            "matmul: expected a left operand of type f32, found i32[b, s]",
        ),
        (
            "matmul %3, %1",
            "matmul: expected a right operand of type f32, found i32[b, s]",
        ),
        ("reduce_mean %0 {axis=2}", "f32[b, s, 1]"),
        (
            "reduce_sum %1 {axis=0}",
            "reduce_sum: expected an operand of type f32, found i32[b, s]",
        ),
        (
            "reduce_max %4 {axis=1}",
            "reduce_max: expected an axis below 1, found 1",
        ),
        ("softmax %0 {axis=1}", "f32[b, s, 8]"),
        (
            "softmax %5 {axis=0}",
            "softmax: expected an axis below 0, found 0",
        ),
    ]);
}

#[test]
fn norms_and_linear() {
    table(&[
        ("layer_norm %0, %4, %4 {eps=1e-5}", "f32[b, s, 8]"),
        ("rms_norm %4, %4 {eps=1e-5}", "f32[8]"),
        (
            "layer_norm %6, %4, %4 {eps=1e-5}",
            "layer_norm: expected a gain of shape f32[4], found f32[8]",
        ),
        (
            "layer_norm %0, %4, %5 {eps=1e-5}",
            "layer_norm: expected a bias of shape f32[8], found f32[]",
        ),
        (
            "rms_norm %5, %4 {eps=1e-5}",
            "rms_norm: expected an operand with an axis to normalise, found f32[]",
        ),
        ("linear %0, %3", "f32[b, s, 6]"),
        ("linear %4, %3", "f32[6]"),
        (
            "linear %0, %3, %5, %5 {then=[add, relu, mul]}",
            "f32[b, s, 6]",
        ),
        ("linear %0, %3, %4 {rms_norm=1e-6}", "f32[b, s, 6]"),
        (
            "linear %0, %3, %4, %4, %4 {layer_norm=1e-6, rms_norm=1e-6}",
            "`linear` takes one norm, `layer_norm` or `rms_norm`",
        ),
        (
            "linear %5, %3",
            "linear: expected an operand [.., 8], found f32[]",
        ),
        (
            "linear %6, %3",
            "linear: expected an operand [.., 8], found f32[b, p, 4]",
        ),
        (
            "linear %0, %4",
            "linear: expected a weight [out, in], found f32[8]",
        ),
        (
            "linear %0, %3, %5 {rms_norm=1e-6}",
            "linear: expected a gain of shape f32[8], found f32[]",
        ),
        (
            "linear %0, %3, %4 {then=[add]}",
            "linear: expected axes that broadcast to `8`, found `6`",
        ),
        (
            "linear %4, %3, %8 {then=[add]}",
            "%8 is not defined before this use",
        ),
        (
            "broadcast %5 {shape=[2, b, s, 6]} %9 = linear %0, %3, %8 {then=[add]}",
            "linear: expected an epilogue operand that broadcasts to f32[b, s, 6], found f32[2, b, \
             s, 6]",
        ),
    ]);
}

#[test]
fn attention() {
    let spec = |heads: usize, kv_heads: usize| {
        format!("{{heads={heads}, kv_heads={kv_heads}, scale=0.5, causal=true}}")
    };
    for (operands, heads, kv_heads, expected) in [
        ("%0, %6, %6", 4, 2, "f32[b, s, 8]"),
        ("%0, %6, %6, %7", 2, 1, "f32[b, s, 8]"),
        (
            "%0, %6, %6",
            4,
            3,
            "attention: expected a number of heads that the key heads divide, found 4 and 3",
        ),
        (
            "%0, %6, %6",
            0,
            1,
            "attention: expected a number of heads that the key heads divide, found 0 and 1",
        ),
        (
            "%0, %6, %6",
            3,
            1,
            "attention: expected queries whose width 3 heads divide, found f32[b, s, 8]",
        ),
        (
            "%0, %6, %6",
            4,
            4,
            "attention: expected keys [b, m, 8], found f32[b, p, 4]",
        ),
        (
            "%3, %6, %6",
            4,
            2,
            "attention: expected queries [batch, n, heads*d], found f32[6, 8]",
        ),
        (
            "%0, %3, %6",
            4,
            2,
            "attention: expected keys [batch, m, kv_heads*d], found f32[6, 8]",
        ),
        (
            "%0, %6, %0",
            4,
            2,
            "attention: expected values shaped like the keys of shape f32[b, p, 4], found f32[b, \
             s, 8]",
        ),
        (
            "%0, %6, %6, %1",
            4,
            2,
            "attention: expected first visible keys of shape i32[b], found i32[b, s]",
        ),
        (
            "%0, %6, %6, %4",
            4,
            2,
            "attention: expected first visible keys of type i32, found f32[8]",
        ),
    ] {
        let statement = format!("attention {operands} {}", spec(heads, kv_heads));
        assert_eq!(of(&statement), expected, "{statement}");
    }
    for (mask, expected) in [
        ("causal=true, window=1", "f32[b, s, 8]"),
        (
            "causal=true, window=0",
            "attention: expected a window of 1 to 2147483647 keys, found 0",
        ),
        (
            "causal=false, window=3",
            "attention: expected a causal mask, where there is a window, found none",
        ),
    ] {
        let spec = format!("{{heads=4, kv_heads=2, scale=0.5, {mask}}}");
        let statement = format!("attention %0, %6, %6 {spec}");
        assert_eq!(of(&statement), expected, "{statement}");
    }
    let probs = format!("attention_probs %0, %6, %7 {}", spec(4, 2));
    assert_eq!(of(&probs), "f32[b, 4, s, p]");
}

#[test]
fn rotary_wants_an_angle_for_half_a_head() {
    for (angles, operands, expected) in [
        // Two heads, and one of all eight.
        ("input \"a\" : f32[b, s, 2]", "%0, %8, %8", "f32[b, s, 8]"),
        ("input \"a\" : f32[s, 4]", "%0, %8, %8", "f32[b, s, 8]"),
        ("input \"a\" : f32[b, 1, 1]", "%0, %8, %8", "f32[b, s, 8]"),
        (
            "input \"a\" : f32[s, 3]",
            "%0, %8, %8",
            "rotary: expected heads of twice `3` side by side in the last axis, found f32[b, s, 8]",
        ),
        (
            "input \"a\" : f32[s, p]",
            "%0, %8, %8",
            "rotary: expected heads of twice `p` side by side in the last axis, found f32[b, s, 8]",
        ),
        (
            "input \"a\" : f32[p, 2]",
            "%0, %8, %8",
            "rotary: expected axes that broadcast to `p`, found `s`",
        ),
        (
            "input \"a\" : f32[3, b, s, 2]",
            "%0, %8, %8",
            "rotary: expected cosines whose leading axes broadcast to those of f32[b, s, 8], found \
             f32[3, b, s, 2]",
        ),
        (
            "input \"a\" : f32[2]",
            "%0, %8, %4",
            "rotary: expected sines shaped like the cosines of shape f32[2], found f32[8]",
        ),
        (
            "input \"a\" : i32[2]",
            "%0, %8, %8",
            "rotary: expected cosines of type f32, found i32[2]",
        ),
    ] {
        let statements = format!("{angles}\n%9 = rotary {operands}");
        assert_eq!(of(&statements), expected, "{statements}");
    }
}

#[test]
fn shapes_broadcast_both_ways() {
    let dims = crate::testing::dims;
    let both = |a: &[&str], b: &[&str]| {
        let (a, b) = (dims(a), dims(b));
        assert_eq!(broadcast(&a, &b).is_ok(), broadcast(&b, &a).is_ok());
        broadcast(&a, &b).ok()
    };
    assert_eq!(
        both(&["b", "1", "4"], &["s", "1"]),
        Some(dims(&["b", "s", "4"]))
    );
    assert_eq!(both(&[], &["s"]), Some(dims(&["s"])));
    assert_eq!(
        both(&["past + s"], &["s + past"]),
        Some(dims(&["past + s"]))
    );
    assert_eq!(both(&["s"], &["past"]), None);
    assert_eq!(both(&["2"], &["3"]), None);
}

/// To the same shape no product is made: this one would have a million terms.
#[test]
fn a_reshape_to_the_same_shape_is_quick() {
    let sum = (0..30).fold(Dim::default(), |sum, i| sum + format!("s{i}").as_str());
    let x = TensorType::new(DType::F32, vec![sum; 16]);
    let shape = x.shape.clone();
    assert_eq!(infer(&Op::Reshape { shape }, &[&x]), Ok(x.clone()));
}
