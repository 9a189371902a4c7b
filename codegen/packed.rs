//! How kernels read packed matrices: row by row from a buffer, or in bands from an
//! image (see [`kiln_ir::packing`]).

use kiln_ir::Packing;
use kiln_ir::packing::BAND_ROWS;
use kiln_ir::plan::{ImageSize, TEXEL_BYTES};

use crate::kernel::{Draft, Element};
use crate::tile::unit;
use crate::weights::{Matrix, MatrixPart};

/// The prelude that unpacks a packing's weights, as its declarations.
pub(crate) fn prelude(packing: Packing) -> impl Iterator<Item = &'static str> {
    let text = kiln_shaders::default_prelude(&format!("weights_{}", packing.name()));
    text.unwrap_or_default().split("\n\n")
}

/// Adds a hook that reads from `part` of `matrix`, bound as `weights`, under the names that
/// `rename` gives what it declares and uses. With the form that it takes where an image
/// is bound, if that is another.
pub(crate) fn hook(
    block: &str,
    matrix: &Matrix,
    part: &MatrixPart,
    weights: &str,
    rename: impl Fn(&str) -> String,
    d: &mut Draft,
) {
    match in_bands(block, matrix, part) {
        Some(image) => d.hook_of(weights, rename(block), rename(&image)),
        None => d.hook(rename(block)),
    }
}

/// What a hook becomes that finds its way by rows.
fn in_bands(block: &str, matrix: &Matrix, part: &MatrixPart) -> Option<String> {
    let packing = matrix.packing;
    let texels = |bytes: usize| bytes as u64 / TEXEL_BYTES;
    let own = texels(packing.group_bytes());
    let step = texels(packing.band_group_bytes());
    let band = packing.band_texels(matrix.k);
    let rows = BAND_ROWS;
    // A texel of row n's band.
    let texel = |within: String| {
        let size = ImageSize::of_matrix(packing, part.rows, matrix.k);
        match size.bands_across {
            Some(1) => format!("weights[vec2<u32>({within}, n / {rows}u)]"),
            Some(across) => format!(
                "weights[vec2<u32>(n / {rows}u % {across}u * {band}u + {within}, n / {}u)]",
                rows as u64 * across
            ),
            None => format!("weights[n / {rows}u * {band}u + {within}]"),
        }
    };
    if block.contains("fn w_element(") {
        let element = Element::of(packing).wgsl();
        let within = match own {
            1 => format!("t * {step}u"),
            _ => format!("t / {own}u * {step}u + t % {own}u"),
        };
        return Some(format!(
            "fn w_element(n: u32, t: u32) -> {element} {{\n    \
             return {};\n}}\n",
            texel(format!("n % {rows}u * {own}u + {within}"))
        ));
    }
    if block.contains("fn w_word(") {
        let vectors = unit(packing);
        let word = match vectors / 4 {
            1 => "k4".to_owned(),
            of_word => format!("k4 / {of_word}u"),
        };
        return Some(format!(
            "fn w_word(n: u32, k4: u32) -> u32 {{\n    \
             return w_element(n, k4 / {vectors}u)[{word} % 4u];\n}}\n"
        ));
    }
    let halves = format!(
        "let halves = {};",
        texel(format!("g * {step}u + {}u", rows as u64 * own))
    );
    if packing.has_scales() && block.contains("fn w_scale(") {
        return Some(format!(
            "fn w_scale(n: u32, g: u32) -> f32 {{\n    {halves}\n    \
             let word = halves[n % {rows}u / 2u];\n    \
             return w_unit(unpack2x16float(word >> (16u * (n % 2u)))).x;\n}}\n"
        ));
    }
    if packing.has_scales() && block.contains("fn w_scales(") {
        let pair = |component| format!("w_unit(unpack2x16float(halves.{component}))");
        let [x, y, z, w] = ["x", "y", "z", "w"].map(pair);
        return Some(format!(
            "fn w_scales(n: u32, g: u32) -> array<vec4<f32>, 2> {{\n    {halves}\n    \
             return array<vec4<f32>, 2>(\n        vec4<f32>({x}, {y}),\n        \
             vec4<f32>({z}, {w}),\n    );\n}}\n"
        ));
    }
    None
}
