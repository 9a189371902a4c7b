//! Rows of a packed matrix, read where they are used: embedding tables.

use std::collections::BTreeMap;

use crate::error::CodegenError;
use crate::kernel::{Draft, Element};
use crate::packed;
use crate::view::Base;
use crate::weights::{Matrix, MatrixPart};
use crate::wgsl;

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
        let names = BTreeMap::from([
            ("load_w4", load.clone()),
            ("w_scale", scale.clone()),
            ("w_element", format!("element_{table}")),
            ("w_word", format!("word_{table}")),
            ("weights", table.clone()),
            ("scales", scales),
            ("GROUPS", groups.clone()),
            ("WV", format!("{wide}u")),
        ]);
        for block in packed::prelude(packing) {
            let read = [
                "fn load_w4(",
                "fn unpack_q",
                "fn w_element(",
                "fn w_unit(",
                "fn w_word(",
            ];
            let used = read.iter().any(|f| block.contains(f))
                || (packing.has_scales() && block.contains("fn w_scale("));
            if used {
                packed::hook(
                    block,
                    matrix,
                    part,
                    &table,
                    |text| wgsl::rename(text, &names),
                    k,
                );
            }
        }
        let row = match part.first_row {
            0 => "row".to_owned(),
            first => format!("row - {first}u"),
        };
        let mut value = format!("{load}({row}, k4)");
        if packing.has_scales() {
            value = format!("{value} * {scale}({row}, k4 / {wide}u)");
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
