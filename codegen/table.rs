//! Rows of a packed matrix, read where they are used: embedding tables.

use crate::error::CodegenError;
use crate::kernel::{Draft, Element};
use crate::view::Base;
use crate::weights::{Matrix, MatrixPart};

/// Adds a function `(row, k4) -> vec4<f32>` that reads parts of a packed matrix,
/// scales and all, and returns its name.
pub(crate) fn load_rows(
    matrix: &Matrix,
    parts: &[MatrixPart],
    k: &mut Draft,
) -> Result<String, CodegenError> {
    let packing = matrix.packing;
    let wide = packing.group() as u64 / 4;
    let groups = packing.groups(matrix.k as usize).to_string() + "u";
    let prelude = format!("weights_{}", packing.name());
    let text = kiln_shaders::default_prelude(&prelude).unwrap_or_default();
    let blocks: Vec<&str> = text.split("\n\n").collect();
    let mut branches = String::new();
    let mut name = String::new();
    for (i, part) in parts.iter().enumerate() {
        let table = k.read("table", Base::Weight(part.data), Element::of(packing));
        if i == 0 {
            name = format!("rows_of_{table}");
        }
        let scales = match part.scales {
            Some(s) => k.read("table_scales", Base::Weight(s), Element::U32),
            None => String::new(),
        };
        let (load, scale) = (format!("load_{table}"), format!("scale_{table}"));
        let wide = format!("{wide}u");
        let names = [
            ("load_w4", load.as_str()),
            ("w_scale", scale.as_str()),
            ("weights", table.as_str()),
            ("scales", scales.as_str()),
            ("GROUPS", groups.as_str()),
            ("WV", wide.as_str()),
        ];
        for block in &blocks {
            let used = ["fn load_w4(", "fn unpack_"]
                .iter()
                .any(|f| block.contains(f))
                || (packing.has_scales() && block.contains("fn w_scale("));
            if used {
                k.hook(rename(block, &names));
            }
        }
        let row = match part.first_row {
            0 => "row".to_owned(),
            first => format!("row - {first}u"),
        };
        let mut value = format!("{load}({row}, k4)");
        if packing.has_scales() {
            value = format!("{value} * {scale}({row}, k4 / {wide})");
        }
        let end = part.first_row + part.rows;
        branches.push_str(&if i + 1 == parts.len() {
            format!("    return {value};\n")
        } else {
            format!("    if row < {end}u {{\n        return {value};\n    }}\n")
        });
    }
    k.hook(format!(
        "fn {name}(row: u32, k4: u32) -> vec4<f32> {{\n{branches}}}\n"
    ));
    Ok(name)
}

/// `text` with whole words exchanged.
fn rename(text: &str, names: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let flush = |word: &mut String, out: &mut String| {
        let new = names.iter().find(|(old, _)| old == word);
        out.push_str(new.map_or(word.as_str(), |(_, new)| new));
        word.clear();
    };
    for c in text.chars() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
        } else {
            flush(&mut word, &mut out);
            out.push(c);
        }
    }
    flush(&mut word, &mut out);
    out
}
