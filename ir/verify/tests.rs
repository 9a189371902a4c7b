//! Each invariant with a graph that breaks it.

use super::*;
use crate::testing::every_op;
use crate::text::parse;

/// A graph from its text, changed.
fn errors_of(text: &str, change: impl FnOnce(&mut Graph)) -> Vec<VerifyError> {
    let mut graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    change(&mut graph);
    verify(&graph).map_or_else(|e| e.errors, |()| Vec::new())
}

/// Every error is of this invariant, and these are their texts.
#[track_caller]
fn expect(errors: &[VerifyError], invariant: u8, texts: &[&str]) {
    let found: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
    assert_eq!(found, texts);
    assert!(
        errors.iter().all(|e| e.invariant == invariant),
        "{errors:?}"
    );
}

/// A graph of these statements breaks one invariant.
#[track_caller]
fn breaks(invariant: u8, statements: &str, texts: &[&str]) {
    let text = format!("graph g {{ symbol seq <= 8 symbol past <= 7 {statements} }}");
    expect(&errors_of(&text, |_| ()), invariant, texts);
}

const SMALL: &str = "graph g {
    symbol seq <= 8
    %0 = input \"x\" : f32[seq]
    %1 = neg %0 : f32[seq] @h.0
    %2 = exp %1 : f32[seq] @h.1
    output \"y\" = %2
}";

#[test]
fn valid_graphs_pass() {
    assert_eq!(errors_of(SMALL, |_| ()), []);
    assert_eq!(verify(&every_op()), Ok(()));
}

#[test]
fn errors_are_collected_with_all_they_need() {
    let text = "graph broken {
        symbol seq <= 8
        %0 = input \"x\" : f32[seq]
        %1 = neg %0 : i32[seq] @h.0.mlp
        %2 = softmax %0 {axis=3} : f32[seq] @h.1
        output \"y\" = %2
    }";
    let errors = verify(&parse(text).unwrap()).unwrap_err();
    let id = ValueId::from_index;
    let all = [
        VerifyError {
            invariant: 4,
            value: Some(id(1)),
            subject: "neg".into(),
            source_name: "h.0.mlp".into(),
            expected: "type f32[seq]".into(),
            found: "i32[seq]".into(),
        },
        VerifyError {
            invariant: 4,
            value: Some(id(2)),
            subject: "softmax".into(),
            source_name: "h.1".into(),
            expected: "an axis below 1".into(),
            found: "3".into(),
        },
    ];
    assert_eq!(errors.errors, all);
    assert_eq!(
        errors.to_string(),
        "graph `broken` is not valid:\n  \
         %1 = neg in `h.0.mlp`: expected type f32[seq], found i32[seq]\n  \
         %2 = softmax in `h.1`: expected an axis below 1, found 3"
    );
}

#[test]
fn invariant_1_the_order_lists_values_once() {
    let twice = errors_of(SMALL, |g| {
        let order = g.parts_mut().0;
        order.push(order[2]);
    });
    expect(
        &twice,
        1,
        &["%2 = exp in `h.1`: expected one place in the order, found two"],
    );
    let out_of_range = errors_of(SMALL, |g| g.parts_mut().0.push(ValueId::from_index(9)));
    let text = "%9 = ?: expected a value of the graph, found an id out of range";
    expect(&out_of_range, 1, &[text]);
}

#[test]
fn invariant_2_operands_come_first() {
    let swapped = errors_of(SMALL, |g| g.parts_mut().0.swap(1, 2));
    let text = "%2 = exp in `h.1`: expected operands computed before, found %1, which comes later";
    expect(&swapped, 2, &[text]);
    let missing = errors_of(SMALL, |g| {
        g.parts_mut().0.remove(1);
    });
    let text =
        "%2 = exp in `h.1`: expected operands of the graph, found %1, which is not in the order";
    expect(&missing, 2, &[text]);
    let itself = errors_of(SMALL, |g| {
        let mut value = g.value(ValueId::from_index(2)).clone();
        value.inputs = vec![ValueId::from_index(3)];
        g.push_unchecked(value);
    });
    let text = "%3 = exp in `h.1`: expected operands computed before, found %3, which comes later";
    expect(&itself, 2, &[text]);
    let nowhere = errors_of(SMALL, |g| {
        let mut value = g.value(ValueId::from_index(2)).clone();
        value.inputs = vec![ValueId::from_index(77)];
        g.push_unchecked(value);
    });
    let text =
        "%3 = exp in `h.1`: expected operands of the graph, found %77, which is not in the order";
    expect(&nowhere, 2, &[text]);
}

#[test]
fn invariant_3_arity() {
    let x = "%0 = input \"x\" : f32[seq, 4]";
    breaks(
        3,
        &format!("{x} %1 = add %0 : f32[seq, 4] @h.0"),
        &["%1 = add in `h.0`: expected 2 operands, found 1"],
    );
    breaks(
        3,
        &format!("{x} %1 = concat {{axis=0}} : f32[seq]"),
        &["%1 = concat: expected at least 1 operands, found 0"],
    );
    breaks(
        3,
        &format!("{x} %1 = linear %0, %0 {{then=[add]}} : f32[seq, seq]"),
        &["%1 = linear: expected 3 operands, found 2"],
    );
    breaks(
        3,
        &format!(
            "{x} %1 = attention %0, %0 {{heads=1, kv_heads=1, scale=1.0, causal=true}} : f32[seq, 4]"
        ),
        &["%1 = attention: expected 3 to 4 operands, found 2"],
    );
}

#[test]
fn invariant_4_types_are_the_inferred_ones() {
    let x = "%0 = input \"x\" : f32[seq, 4]";
    breaks(
        4,
        &format!("{x} %1 = transpose %0 {{perm=[1, 0]}} : f32[seq, 4] @h.0"),
        &["%1 = transpose in `h.0`: expected type f32[4, seq], found f32[seq, 4]"],
    );
    breaks(
        4,
        &format!("{x} %1 = matmul %0, %0 : f32[seq, 4]"),
        &["%1 = matmul: expected a right operand with `4` rows, found f32[seq, 4]"],
    );
    breaks(
        4,
        &format!("{x} %1 = reshape %0 {{shape=[seq, 5]}} : f32[seq, 5]"),
        &["%1 = reshape: expected a shape of seq*4 elements, found seq*5"],
    );
}

#[test]
fn invariant_5_symbols_are_declared() {
    breaks(
        5,
        "%0 = input \"x\" : f32[depth, width]",
        &[
            "%0 = input: expected declared symbols, found `depth`",
            "%0 = input: expected declared symbols, found `width`",
        ],
    );
    // In an attribute whose symbol the type no longer shows, and in a quotient.
    breaks(
        5,
        "%0 = arange {start=depth, end=depth + 3} : i32[3]",
        &["%0 = arange: expected declared symbols, found `depth`"],
    );
    breaks(
        5,
        "%0 = input \"x\" : f32[ceil(depth / 2)]",
        &["%0 = input: expected declared symbols, found `depth`"],
    );
}

#[test]
fn invariant_6_declarations() {
    let declare = |name: &str, max: u64| {
        errors_of(SMALL, |g| {
            let name = Symbol::new(name);
            g.symbols.push(crate::SymbolDecl { name, max });
        })
    };
    let text = "symbol `seq`: expected one declaration, found 2";
    expect(&declare("seq", 8), 6, &[text]);
    for name in ["", "9", "a-b", "é", "ceil", "min", "true", "nan"] {
        let text = format!(
            "symbol `{name}`: expected a name of letters, digits and `_` that is no word of the \
             text form, found `{name}`"
        );
        expect(&declare(name, 8), 6, &[text.as_str()]);
    }
    for max in [0, 1 << 31] {
        let text = format!("symbol `n`: expected a maximum from 1 to 2^31 - 1, found {max}");
        expect(&declare("n", max), 6, &[text.as_str()]);
    }
    assert_eq!(declare("n", (1 << 31) - 1), []);
}

#[test]
fn invariant_7_sizes() {
    breaks(
        7,
        "%0 = input \"x\" : f32[past - seq]",
        &[
            "%0 = input: expected sizes from 0 to 2^63 - 1 at the symbols' maxima, found `past - \
             seq` evaluates to -1, outside 0..=2^63-1",
        ],
    );
    breaks(
        7,
        "%0 = input \"x\" : f32[seq*9223372036854775806]",
        &[
            "%0 = input: expected sizes from 0 to 2^63 - 1 at the symbols' maxima, found \
             `seq*9223372036854775806` evaluates to 73786976294838206448, outside 0..=2^63-1",
        ],
    );
}

#[test]
fn invariant_8_names_of_leaves() {
    let x = "%0 = input \"x\" : f32[seq]";
    breaks(
        8,
        &format!("{x} %1 = input \"x\" : f32[seq] @h"),
        &["%1 = input in `h`: expected a name of its own for the input, found `x`, as %0 has"],
    );
    breaks(
        8,
        "%0 = param \"\" : f32[4]",
        &["%0 = param: expected a name for the parameter, found none"],
    );
    breaks(
        8,
        "%0 = state \"s\" : f32[seq] %1 = state \"s\" : f32[seq]",
        &["%1 = state: expected a name of its own for the state, found `s`, as %0 has"],
    );
    // Of different kinds they may be equal.
    breaks(
        8,
        &format!("{x} %1 = param \"x\" : f32[4] %2 = state \"x\" : f32[4]"),
        &[],
    );
}

#[test]
fn invariant_9_parameters() {
    breaks(
        9,
        "%0 = param \"p\" : i32[4] @wte",
        &["%0 = param in `wte`: expected a parameter of type f32, found i32[4]"],
    );
    breaks(
        9,
        "%0 = param \"p\" : f32[seq, 4]",
        &["%0 = param: expected a parameter of constant shape, found f32[seq, 4]"],
    );
}

#[test]
fn invariant_10_outputs() {
    let add = |name: &str, id: usize| {
        errors_of(SMALL, |g| {
            let id = ValueId::from_index(id);
            g.parts_mut().1.push((name.to_owned(), id));
        })
    };
    expect(&add("", 2), 10, &["output ``: expected a name, found none"]);
    expect(
        &add("y", 1),
        10,
        &["output `y`: expected one value, found %2 and %1"],
    );
    let text = "output `z`: expected a value of the graph, found %5, which is not in the order";
    expect(&add("z", 5), 10, &[text]);
}

const STATEFUL: &str = "graph g {
    symbol seq <= 8
    symbol past <= 7
    %0 = input \"x\" : f32[seq, 4]
    %1 = state \"kept\" : f32[past, 4]
    %2 = concat %1, %0 {axis=0} : f32[past + seq, 4] @h.0
    state \"kept\" = %2
}";

#[test]
fn invariant_11_states() {
    assert_eq!(errors_of(STATEFUL, |_| ()), []);
    let add = |name: &str, id: usize| {
        errors_of(STATEFUL, |g| {
            let id = ValueId::from_index(id);
            g.parts_mut().2.push((name.to_owned(), id));
        })
    };
    let text = "state `other`: expected a `state` op that reads it, found none";
    expect(&add("other", 2), 11, &[text]);
    expect(
        &add("kept", 2),
        11,
        &["state `kept`: expected one value, found %2 and %2"],
    );
    let gone = errors_of(STATEFUL, |g| {
        g.parts_mut().0.remove(2);
    });
    let text = "state `kept`: expected a value of the graph, found %2, which is not in the order";
    expect(&gone, 11, &[text]);
}

#[test]
fn invariant_12_a_state_keeps_its_type() {
    let set_to = |id: usize| {
        errors_of(STATEFUL, |g| {
            let extra = [
                "cast %2 {to=i32} : i32[past + seq, 4] @h.0",
                "slice %2 {axis=1, start=0, end=2} : f32[past + seq, 2]",
                "reshape %2 {shape=[past*4 + seq*4]} : f32[past*4 + seq*4]",
                "slice %2 {axis=0, start=0, end=3} : f32[3, 4]",
            ];
            let mut text = STATEFUL.trim_end_matches('}').to_owned();
            for (i, statement) in extra.iter().enumerate() {
                text += &format!("%{} = {statement}\n", i + 3);
            }
            *g = parse(&(text + "}")).unwrap();
            g.parts_mut().2[0].1 = ValueId::from_index(id);
        })
    };
    let expected = "state `kept`: expected f32[past, 4], symbolic axes apart, found";
    for (id, found) in [
        (3, "i32[past + seq, 4] (%3)"),
        (4, "f32[past + seq, 2] (%4)"),
        (5, "f32[past*4 + seq*4] (%5)"),
    ] {
        expect(&set_to(id), 12, &[format!("{expected} {found}").as_str()]);
    }
    // An axis that is symbolic before may have any size after.
    assert_eq!(set_to(6), []);
}

#[test]
fn invariant_13_numbers_are_finite() {
    let set = |text: &str, op: Op| {
        let text = format!("graph g {{ %0 = input \"x\" : f32[1, 2, 4] {text} }}");
        let graph = parse(&text).unwrap();
        errors_of("graph g { }", |g| {
            *g = graph;
            let (id, value) = g.iter().next_back().unwrap();
            let mut value = value.clone();
            value.op = op;
            g.parts_mut().0.pop();
            g.place_unchecked(id, value);
        })
    };
    let infinite = set(
        "%1 = const {f32=1.0}",
        Op::Const(Scalar::F32(f64::INFINITY)),
    );
    expect(
        &infinite,
        13,
        &["%1 = const: expected a number that is finite as f32, found inf"],
    );
    breaks(
        13,
        "%0 = const {f32=1e39}",
        &["%0 = const: expected a number that is finite as f32, found 1e39"],
    );
    breaks(13, "%0 = const {f32=-3.4028234663852886e38}", &[]);
    let norm = "%1 = param \"g\" : f32[4] %2 = rms_norm %0, %1 {eps=0.0} @ln_f";
    for eps in [-1e-5, f64::NAN, f64::INFINITY, 1e39] {
        let op = Op::Normalize(crate::Norm::Rms { eps });
        let text = format!(
            "%2 = rms_norm in `ln_f`: expected an epsilon that is finite as f32, not negative, \
             found {eps:?}"
        );
        expect(&set(norm, op), 13, &[text.as_str()]);
    }
    let linear = "%1 = param \"g\" : f32[4] %2 = param \"w\" : f32[3, 4]
                  %3 = linear %0, %2, %1 {rms_norm=0.0}";
    let norm = Some(crate::Norm::Rms { eps: -1.0 });
    let op = Op::Linear {
        norm,
        steps: vec![],
    };
    let text = "%3 = linear: expected an epsilon that is finite as f32, not negative, found -1.0";
    expect(&set(linear, op), 13, &[text]);
    let spec = crate::AttentionSpec {
        heads: 2,
        kv_heads: 2,
        scale: f64::NAN,
        causal: true,
        window: None,
    };
    let table = set("%1 = table {f32=[1, 0.5]}", Op::Table(vec![1.0, f64::NAN]));
    let text = "%1 = table: expected a number that is finite as f32, found NaN";
    expect(&table, 13, &[text]);
    let probs = "%1 = attention_probs %0, %0 {heads=2, kv_heads=2, scale=1.0, causal=true}";
    let text = "%1 = attention_probs: expected a number that is finite as f32, found NaN";
    expect(&set(probs, Op::AttentionProbs(spec)), 13, &[text]);
}

#[test]
fn invariant_14_slices_within_their_axes() {
    let x = "%0 = input \"x\" : f32[seq, 4]";
    breaks(
        14,
        &format!("{x} %1 = slice %0 {{axis=0, start=past - 8, end=1}} @h.0"),
        &[
            "%1 = slice in `h.0`: expected a range within 0..seq at the symbols' maxima, found \
             past - 8..1, where `past - 8` evaluates to -1, outside 0..=2^63-1",
        ],
    );
    breaks(
        14,
        &format!("{x} %1 = slice %0 {{axis=1, start=0, end=past}}"),
        &[
            "%1 = slice: expected a range within 0..4 at the symbols' maxima, found 0..past, where \
             `-past + 4` evaluates to -3, outside 0..=2^63-1",
        ],
    );
    breaks(
        7,
        &format!("{x} %1 = slice %0 {{axis=0, start=seq, end=past}}"),
        &[
            "%1 = slice: expected sizes from 0 to 2^63 - 1 at the symbols' maxima, found `past - \
             seq` evaluates to -1, outside 0..=2^63-1",
        ],
    );
    breaks(
        14,
        &format!("{x} %1 = slice %0 {{axis=0, start=0, end=past}}"),
        &[],
    );
}

#[test]
fn invariant_15_elements() {
    breaks(
        15,
        "%0 = const {f32=1.0}
         %1 = broadcast %0 {shape=[4611686018427387904, 4]} @h.0",
        &[
            "%1 = broadcast in `h.0`: expected fewer than 2^48 elements at the symbols' maxima, \
             found f32[4611686018427387904, 4]",
        ],
    );
    // 8 * 7 * 2^43 is more, 8 * 2^45 - 8 is not. None of many are many for strides.
    breaks(
        15,
        "%0 = input \"x\" : f32[seq, past, 8796093022208]
         %1 = input \"y\" : f32[seq, 35184372088831]
         %2 = input \"z\" : f32[0, 281474976710656]",
        &[
            "%0 = input: expected fewer than 2^48 elements at the symbols' maxima, found f32[seq, \
             past, 8796093022208]",
            "%2 = input: expected fewer than 2^48 elements at the symbols' maxima, found f32[0, \
             281474976710656]",
        ],
    );
}

#[test]
fn invariant_16_ranges_of_integers() {
    breaks(
        16,
        "%0 = arange {start=seq*300000000, end=seq*300000000 + 1} @h.0",
        &[
            "%0 = arange in `h.0`: expected ends of type i32 at the symbols' maxima, found \
             `seq*300000000`, which is 2400000000",
            "%0 = arange in `h.0`: expected ends of type i32 at the symbols' maxima, found \
             `seq*300000000 + 1`, which is 2400000001",
        ],
    );
    breaks(16, "%0 = arange {start=-2, end=seq - 2}", &[]);
    breaks(16, "%0 = arange {start=0, end=2147483647}", &[]);
}
