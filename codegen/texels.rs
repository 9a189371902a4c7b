//! The weights of a matrix as a kernel binds them: a buffer, or texels of an image,
//! from which a CPU driver loads at twice the rate.

use kiln_ir::Packing;
use kiln_ir::plan::{Access, TEXELS_IN_ROW};

use crate::kernel::{Draft, Element};
use crate::view::Base;
use crate::wgsl;

/// Bound weights of a matrix, 16 bytes an element.
pub(crate) struct Data {
    pub name: String,
    /// The function that loads one of them, if they are texels.
    load: Option<String>,
}

impl Data {
    /// Binds the buffer `weights` in the plan, as `role` if that is free.
    pub fn bind(role: &str, weights: usize, packing: Packing, texels: bool, d: &mut Draft) -> Self {
        let element = match packing {
            Packing::F32 => Element::F32x4,
            Packing::F16 | Packing::Q8 | Packing::Q4 => Element::U32x4,
        };
        let access = match texels {
            true => Access::Texels,
            false => Access::Read,
        };
        let name = d.bind(role, Base::Weight(weights), element, access);
        let load = texels.then(|| {
            let load = format!("{name}_at");
            let ty = element.wgsl();
            let row = TEXELS_IN_ROW;
            let texel = format!("textureLoad({name}, vec2<u32>(i % {row}u, i / {row}u))");
            d.hook(format!(
                "fn {load}(i: u32) -> {ty} {{\n    return bitcast<{ty}>({texel});\n}}\n"
            ));
            load
        });
        Data { name, load }
    }

    /// `text`, which indexes a buffer of this name, for what is bound.
    pub fn loads(&self, text: &str) -> String {
        match &self.load {
            Some(load) => wgsl::call_in_place_of_index(text, &self.name, load),
            None => text.to_owned(),
        }
    }
}
