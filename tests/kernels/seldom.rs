//! What graphs may be and those of models seldom are.

use std::collections::BTreeMap;

use kiln_codegen::{CodegenError, CompileOptions, lower};
use kiln_ir::plan::ModelInfo;
use kiln_ir::text::parse;
use kiln_ir::{Bindings, Graph, Packing};

use kiln_runtime::RunOptions;

use crate::common::{NATIVE, TIERS, in_memory, try_open};
use crate::suite::Suite;

/// A graph called `name` over the symbol `n`, by its lines.
fn graph(name: &str, lines: &str) -> Graph {
    parse(&format!("graph {name} {{\n  symbol n <= 9\n{lines}\n}}")).unwrap()
}

fn suite(packing: Packing, graphs: impl IntoIterator<Item = Graph>) -> Suite {
    let mut suite = Suite::new(packing);
    for graph in graphs {
        suite.add(graph, [1, 5, 9].map(|n| Bindings::new().with("n", n)));
    }
    suite
}

/// Where kernels for linear layers and norms take parameters as a rule.
const OPERANDS: [(&str, &str); 8] = [
    (
        "gain_that_is_computed",
        r#"%0 = input "x" : f32[n, 8]
        %1 = param "gain" : f32[8]
        %2 = const {f32=1.0}
        %3 = add %1, %2
        %4 = rms_norm %0, %3 {eps=1e-5}
        output "y" = %4"#,
    ),
    (
        "gain_that_is_given",
        r#"%0 = input "x" : f32[n, 7]
        %1 = input "gain" : f32[7]
        %2 = param "bias" : f32[7]
        %3 = layer_norm %0, %1, %2 {eps=1e-5}
        output "y" = %3"#,
    ),
    (
        "gain_of_a_linear_layers_norm",
        r#"%0 = input "x" : f32[n, 8]
        %1 = param "w" : f32[12, 8]
        %2 = param "gain" : f32[8]
        %3 = neg %2
        %4 = linear %0, %1, %3 {rms_norm=1e-5}
        output "y" = %4"#,
    ),
    (
        "rows_that_are_a_parameter",
        r#"%0 = param "queries" : f32[4, 8]
        %1 = param "v" : f32[12, 8]
        %2 = linear %0, %1
        %3 = input "x" : f32[n]
        output "x" = %3
        output "y" = %2"#,
    ),
    (
        "normalised_rows_of_a_parameter",
        r#"%0 = param "rows" : f32[4, 8]
        %1 = param "own" : f32[8]
        %2 = rms_norm %0, %1 {eps=1e-5}
        %3 = input "x" : f32[n]
        output "x" = %3
        output "y" = %2"#,
    ),
    (
        "one_factor_for_all_columns",
        r#"%0 = input "x" : f32[n, 8]
        %1 = param "u" : f32[12, 8]
        %2 = param "factor" : f32[1]
        %3 = linear %0, %1, %2 {then=[mul]}
        output "y" = %3"#,
    ),
    (
        "one_number_added_to_all",
        r#"%0 = input "x" : f32[n, 8]
        %1 = param "t" : f32[12, 8]
        %2 = param "offset" : f32[]
        %3 = linear %0, %1, %2 {then=[add]}
        output "y" = %3"#,
    ),
    (
        "a_parameter_given_out",
        r#"%0 = param "out" : f32[11]
        %1 = input "x" : f32[n]
        output "x" = %1
        output "y" = %0"#,
    ),
];

#[test]
fn operands_of_any_origin() {
    for packing in [Packing::F32, Packing::Q8] {
        suite(packing, OPERANDS.map(|(name, lines)| graph(name, lines))).run(&TIERS);
    }
}

#[test]
fn where_what_is_seen_begins_is_computed() {
    let lines = r#"%0 = input "q" : f32[n, 3, 8]
        %1 = input "k" : f32[n, 3, 8]
        %2 = input "len" : i32[n]
        %3 = const {i32=2}
        %4 = min %2, %3
        %5 = attention %0, %1, %1, %4 {heads=2, kv_heads=2, scale=0.3, causal=false}
        output "y" = %5"#;
    suite(Packing::F32, [graph("begins", lines)]).run(&TIERS);
}

/// Slices whose ends sizes decide: as far as they lie within their axes, and where one
/// does not, the run is refused, since kernels would read what lies elsewhere.
#[test]
fn slices_within_their_axes() {
    let last = || {
        graph(
            "last",
            r#"%0 = input "x" : f32[n, 3]
            %1 = slice %0 {axis=0, start=n - 4, end=n} @of_last
            %2 = neg %1
            output "y" = %2"#,
        )
    };
    let mut suite = Suite::new(Packing::F32);
    suite.add(last(), [4, 5, 9].map(|n| Bindings::new().with("n", n)));
    suite.run(&TIERS);

    let artifact = in_memory(suite.compile(Some(&["base"])), &BTreeMap::new());
    let model = try_open(NATIVE, "base", &artifact).unwrap();
    let run = |n: usize| {
        let x = vec![0; n * 3 * 4];
        let sizes = Bindings::new().with("n", n as u64);
        model.run_collect("last", &[("x", &x)], &sizes, &RunOptions::default())
    };
    let message = run(3).unwrap_err().to_string();
    let wanted = "`of_last` takes n - 4..n of an axis, which is -1..3 of 3 elements";
    assert!(message.contains(wanted), "{message}");
    assert!(run(4).is_ok());
}

/// More values side by side than a kernel binds buffers.
#[test]
fn wide_concatenations() {
    let inputs = |axes: &str| {
        let input = |i| format!("%{i} = input \"x{i}\" : f32[{axes}]");
        (0..10).map(input).collect::<Vec<_>>().join("\n  ")
    };
    let all: Vec<String> = (0..10).map(|i| format!("%{i}")).collect();
    let concat = |axes: &str, axis: u32| {
        format!(
            "{}\n  %10 = concat {} {{axis={axis}}}\n  %11 = neg %10\n  output \"y\" = %10\n  \
             output \"z\" = %11",
            inputs(axes),
            all.join(", ")
        )
    };
    let graphs = [
        graph("rows", &concat("n, 4", 0)),
        graph("columns", &concat("n, 3", 1)),
    ];
    suite(Packing::F32, graphs).run(&TIERS);
}

/// An expression of any length, and one that stands in itself twice at every step.
#[test]
fn long_expressions() {
    let mut chain = r#"%0 = input "x" : f32[n, 4]"#.to_owned();
    let mut twice = r#"%0 = input "x" : f32[n, 4, 4]"#.to_owned();
    for at in 1..=300 {
        chain.push_str(&format!("\n  %{at} = sin %{}", at - 1));
    }
    for at in (1..=48).step_by(2) {
        let (before, next) = (at - 1, at + 1);
        twice.push_str(&format!(
            "\n  %{at} = transpose %{before} {{perm=[0, 2, 1]}}\n  %{next} = add %{at}, %{at}"
        ));
    }
    let graphs = [
        graph("chain", &format!("{chain}\n  output \"y\" = %300")),
        graph("twice", &format!("{twice}\n  output \"y\" = %48")),
    ];
    suite(Packing::F32, graphs).run(&["base"]);
}

/// Words that mean something in WGSL, and powers that are no numbers.
#[test]
fn names_and_numbers() {
    let words = ["new", "target", "loop", "_"].map(|word| {
        let text = format!(
            "graph of_{word} {{\n  symbol {word} <= 9\n  %0 = input \"x\" : f32[{word}]\n  \
             %1 = neg %0\n  output \"y\" = %1\n}}"
        );
        (parse(&text).unwrap(), word)
    });
    let mut all = Suite::new(Packing::F32);
    for (graph, word) in words {
        all.add(graph, [Bindings::new().with(word, 5)]);
    }
    let powers = r#"%0 = input "x" : f32[n, 4]
        %1 = const {f32=0.0}
        %2 = pow %0, %1
        %3 = mul %0, %1
        %4 = pow %3, %3
        %5 = const {f32=3.0}
        %6 = pow %0, %5
        %7 = const {f32=0.5}
        %8 = pow %0, %7
        %9 = ge %8, %1
        output "is_a_root" = %9
        output "one" = %2
        output "one_of_zero" = %4
        output "cubes" = %6"#;
    all.add(graph("powers", powers), [Bindings::new().with("n", 9)]);
    all.run(&TIERS);
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let error = |graphs: &[Graph]| -> CodegenError {
        let options = CompileOptions::default();
        lower(graphs, graphs, ModelInfo::of("test"), &options).unwrap_err()
    };
    let plain = || graph("twins", "%0 = input \"x\" : f32[n]\n  output \"y\" = %0");
    assert_eq!(
        error(&[plain(), plain()]).to_string(),
        "graph `twins` cannot be compiled: another one has this name; each is an entry point"
    );
    let mut outside = plain();
    outside.name = "../g".to_owned();
    assert_eq!(
        error(&[outside]).to_string(),
        "graph `../g` cannot be compiled: names of entry points have letters, digits, `_`, `-` \
         and, but for the first, `.`"
    );
    let context = "graph g {\n  symbol context <= 9\n  %0 = input \"x\" : f32[context]\n  \
                   output \"y\" = %0\n}";
    assert_eq!(
        error(&[parse(context).unwrap()]).to_string(),
        "symbol `context` cannot be compiled: kiln has a size of its own by that name; take \
         another one"
    );
    let scales = r#"%0 = input "x" : f32[n, 8]
        %1 = param "w" : f32[8, 8]
        %2 = param "w.scales" : f32[8]
        %3 = linear %0, %1, %2 {then=[add]}
        output "y" = %3"#;
    assert_eq!(
        error(&[graph("g", scales)]).to_string(),
        "parameter `w.scales` cannot be compiled: that is what a part or the scales of another \
         parameter are called"
    );
    let factors = r#"%0 = input "x" : f32[n, 4]
        %1 = param "w" : f32[4, 4]
        %2 = input "a" : f32[n, 4]
        %3 = input "b" : f32[n, 4]
        %4 = mul %2, %3
        %5 = input "c" : f32[n, 4]
        %6 = input "d" : f32[n, 4]
        %7 = mul %5, %6
        %8 = input "e" : f32[n, 4]
        %9 = input "f" : f32[n, 4]
        %10 = mul %8, %9
        %11 = linear %0, %1, %4, %7, %10 {then=[add, add, add]}
        output "y" = %11"#;
    assert_eq!(
        error(&[graph("g", factors)]).to_string(),
        "`y` of entry `g` binds 9 buffers in one launch, but devices need only support 8; make some \
         of the values that it reads outputs, so that they are computed beforehand"
    );
    let heads = r#"%0 = input "q" : f32[n, 2, 2048]
        %1 = attention %0, %0, %0 {heads=1, kv_heads=1, scale=0.3, causal=false}
        output "y" = %1"#;
    let error = error(&[graph("g", heads)]).to_string();
    assert!(
        error.ends_with("heads have at most 1024 elements"),
        "{error}"
    );
}

/// Weights that f16, or integers with a scale in f16, cannot be.
#[test]
fn weights_out_of_range_are_named() {
    let lines = r#"%0 = input "x" : f32[n, 8]
        %1 = param "w" : f32[8, 8]
        %2 = linear %0, %1
        output "y" = %2"#;
    let graphs = [graph("g", lines)];
    for (packing, value, most) in [
        (Packing::F16, 1e5, "65504"),
        (Packing::Q8, 1e7, "8319008"),
        (Packing::Q4, -1e6, "524032"),
    ] {
        let options = CompileOptions {
            packing,
            ..CompileOptions::default()
        };
        let compiled = lower(&graphs, &graphs, ModelInfo::of("test"), &options).unwrap();
        let weights = |last: f32| {
            let mut weights = vec![0.5f32; 64];
            weights[63] = last;
            BTreeMap::from([("w".to_owned(), weights)])
        };
        let fill = |last| compiled.weight(&compiled.plan.weights[0].name, &weights(last));
        assert!(fill(0.25).is_ok());
        let name = packing.name();
        assert_eq!(
            fill(value).unwrap_err().to_string(),
            format!(
                "parameter `w` has the weight {value}, but {name} holds numbers up to {most}; \
                 compile with --dtype f32"
            )
        );
        assert_eq!(
            fill(f32::NAN).unwrap_err().to_string(),
            "parameter `w` has a weight that is not a finite number (NaN); the checkpoint may be \
             damaged"
        );
    }
}
