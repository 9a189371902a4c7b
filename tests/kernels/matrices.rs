//! Kernels with cooperative matrices, which no software driver has: here the
//! operations on matrices are written out, so that all else of a kernel, tiles, edges,
//! masks and epilogues, is held against the interpreter on any adapter. On adapters
//! that have matrices their own are checked when a model is loaded.

use std::collections::BTreeSet;

use kiln_codegen::Compiled;
use kiln_ir::Packing;

use crate::suite::Suite;
use crate::{attention, linear};

/// What rounding activations to f16 takes away, over all elements.
const ROUNDED: f64 = 2e-3;

/// An invocation holds eight elements of each accumulator, half a row; operands
/// are where they lie in workgroup memory, halves packed two in a word.
const WRITTEN_OUT: &str = "
alias Matrix = array<f32, 8>;

struct Operand {
    tile: u32,
    first: u32,
    pitch: u32,
    // Whether elements along K lie together.
    along_k: bool,
}

var<private> own_lane: u32;

fn packed(v: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}

// Elements 4 * k4 and on along K of a line of the other axis.
fn four_of(o: Operand, line: u32, k4: u32) -> vec4<f32> {
    if o.along_k {
        return element4(o.tile, o.first + line * o.pitch + k4);
    }
    var v: vec4<f32>;
    for (var e = 0u; e < 4u; e++) {
        v[e] = element4(o.tile, o.first + (k4 * 4u + e) * o.pitch + line / 4u)[line % 4u];
    }
    return v;
}

fn multiply_add(a: Operand, b: Operand, c: Matrix) -> Matrix {
    var sums = c;
    for (var e = 0u; e < 8u; e++) {
        for (var k4 = 0u; k4 < 4u; k4++) {
            sums[e] += dot(four_of(a, own_lane / 2u, k4), four_of(b, own_lane % 2u * 8u + e, k4));
        }
    }
    return sums;
}

fn store_matrix(matrix: Matrix, first: u32, pitch: u32) {
    var m = matrix;
    let place = first + own_lane / 2u * pitch + own_lane % 2u * 2u;
    results[place] = vec4<f32>(m[0], m[1], m[2], m[3]);
    results[place + 1u] = vec4<f32>(m[4], m[5], m[6], m[7]);
}
";

/// Where a bracket that opens at the start of `text` closes.
fn closing(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '<' => depth += 1,
            ')' | ']' | '>' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    panic!("a bracket is not closed: {text}");
}

/// Replaces each `before(&tile[index], pitch)` by what `with` makes of the text between
/// `before` and the tile, the tile, the index and the pitch.
fn replace_calls(
    text: &str,
    before: &str,
    mut with: impl FnMut(&str, &str, &str, &str) -> String,
) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(before) {
        out += &rest[..at];
        let call = &rest[at + before.len()..];
        let (head, reference) = call.split_once('&').unwrap();
        let (tile, _) = reference.split_once('[').unwrap();
        let index = &reference[tile.len()..];
        let end = closing(index);
        let (pitch, after) = index[end + 1..].split_once(')').unwrap();
        out += &with(head, tile, &index[1..end], pitch.trim_start_matches(", "));
        rest = after;
    }
    out + rest
}

/// A kernel without matrices that computes the same.
fn written_out(text: &str) -> String {
    let mut tiles = BTreeSet::new();
    let mut out = text
        .replace("enable f16;\nenable wgpu_cooperative_matrix;\n", "")
        .replace("coop_mat16x16<f32, C>", "Matrix")
        .replace("coopMultiplyAdd(", "multiply_add(")
        .replace("vec4<f16>(", "packed(")
        .replace("vec4<f16>", "vec2<u32>");
    out = replace_calls(&out, "coopStoreT(", |matrix, tile, index, pitch| {
        assert_eq!(tile, "results");
        format!("store_matrix({matrix}{index}, {pitch})")
    });
    let numbered = |tile: &str| format!("{tile}_number");
    out = replace_calls(&out, "coopLoad", |head, tile, index, pitch| {
        tiles.insert(tile.to_owned());
        // `T` says that rows lie together: K is along the rows of A, across those of B.
        let along_k = head.starts_with('T') == head.contains(", A>");
        format!("Operand({}, {index}, {pitch}, {along_k})", numbered(tile))
    });
    out += WRITTEN_OUT;
    let mut cases = String::new();
    for (number, tile) in tiles.iter().enumerate() {
        out += &format!("const {}: u32 = {number}u;\n", numbered(tile));
        cases += &format!("case {number}u: {{ v = {tile}[i]; }}\n");
    }
    out += &format!(
        "fn element4(tile: u32, i: u32) -> vec4<f32> {{\n    var v: vec2<u32>;\n    \
         switch tile {{\n{cases}default: {{}}\n}}\n    \
         return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));\n}}\n"
    );
    let lane = "@builtin(local_invocation_index) lane: u32,\n) {\n";
    assert_eq!(out.matches(lane).count(), 1, "{text}");
    out.replace(lane, &format!("{lane}    own_lane = lane % SUBGROUP;\n"))
}

/// The tier for cooperative matrices, for adapters without them.
fn without_matrices(compiled: &mut Compiled) {
    let plan = &mut compiled.plan;
    let tier = plan.tiers.iter_mut().find(|t| t.name == "coop").unwrap();
    tier.checks.clear();
    tier.requires = Default::default();
    tier.requires.features = vec!["subgroups".to_owned()];
    let mut found = BTreeSet::new();
    for (name, kernel) in &plan.kernels {
        let text = compiled.kernels.get_mut(&kernel.file).unwrap();
        if text.contains("wgpu_cooperative_matrix") && !name.contains(".check.") {
            *text = written_out(text);
            found.insert(name.split('.').next().unwrap().to_owned());
        }
    }
    assert!(!found.is_empty(), "no kernel has matrices");
}

fn run(suite: Suite) {
    let suite = suite.within(ROUNDED).changed(without_matrices);
    suite.run(&["coop"]);
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
