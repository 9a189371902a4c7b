//! Images in place of buffers, from which a CPU driver loads at twice the rate: the
//! weights of matrices, and what kernels hand on to each other.

use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::plan::{Access, TEXELS_IN_ROW, texel_rows};
use kiln_ir::{Bindings, Packing};

use crate::error::CodegenError;
use crate::kernel::{Bound, Draft, Element, Launch};
use crate::lower::Lowered;
use crate::memory::bytes;
use crate::place::Role;
use crate::view::Base;
use crate::wgsl;

/// How many images every WebGPU adapter lets a kernel bind, and their rows.
pub(crate) const DEFAULT_IMAGES: u64 = 4;
pub(crate) const DEFAULT_ROWS: u64 = 8192;

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
            let (load, text) = load(&name, element);
            d.hook(text);
            load
        });
        Data { name, load }
    }

    /// `text`, which indexes a buffer of this name, for what is bound.
    pub fn loads(&self, text: &str) -> String {
        match &self.load {
            Some(load) => wgsl::call_for_load(text, &self.name, load),
            None => text.to_owned(),
        }
    }
}

/// A function that loads an element of the image `name`, and its text.
fn load(name: &str, element: Element) -> (String, String) {
    let (ty, row) = (element.wgsl(), TEXELS_IN_ROW);
    let function = format!("{name}_at");
    let text = format!(
        "fn {function}(i: u32) -> {ty} {{\n    \
         return bitcast<{ty}>(textureLoad({name}, vec2<u32>(i % {row}u, i / {row}u)));\n}}\n"
    );
    (function, text)
}

/// A function that stores an element of the image `name`, and its text.
fn store(name: &str, element: Element) -> (String, String) {
    let (ty, row) = (element.wgsl(), TEXELS_IN_ROW);
    let function = format!("{name}_put");
    let text = format!(
        "fn {function}(i: u32, v: {ty}) {{\n    \
         textureStore({name}, vec2<u32>(i % {row}u, i / {row}u), bitcast<vec4<u32>>(v));\n}}\n"
    );
    (function, text)
}

/// How a kernel binds what was a buffer as an image; None if its elements are no
/// texels.
pub(crate) struct AsImage {
    pub access: Access,
    /// The function in place of loads or stores.
    function: String,
    /// Its text.
    pub text: String,
}

impl AsImage {
    pub fn of(bound: &Bound) -> Option<AsImage> {
        if !matches!(bound.element, Element::F32x4 | Element::U32x4) {
            return None;
        }
        let (access, (function, text)) = match bound.access {
            Access::Read => (Access::Texels, load(&bound.name, bound.element)),
            Access::ReadWrite => (Access::WriteTexels, store(&bound.name, bound.element)),
            Access::Texels | Access::WriteTexels => return None,
        };
        Some(AsImage {
            access,
            function,
            text,
        })
    }

    /// `text`, which loads or stores elements of the buffer `name`, for the image.
    pub fn calls(&self, text: &str, name: &str) -> String {
        match self.access.writes() {
            true => wgsl::call_for_store(text, name, &self.function),
            false => wgsl::call_for_load(text, name, &self.function),
        }
    }
}

/// Makes images of the scratch buffers that linear layers read and whose elements all
/// kernels take four at a time, as far as every adapter lets a kernel bind so many. A
/// kernel that loaded what it stores would not do: an image is bound for one of them.
pub(crate) fn make_images(lowered: &mut Lowered, maxima: &Bindings) -> Result<(), CodegenError> {
    let streams = lowered.streams.iter_mut().flat_map(|(_, _, l)| l);
    let mut launches: Vec<&mut Launch> = lowered.launches.iter_mut().chain(streams).collect();
    let mut users: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut wanted = BTreeSet::new();
    let mut unfit = BTreeSet::new();
    for (at, launch) in launches.iter().enumerate() {
        let is_linear = launch.kernel.body.starts_with("linear");
        for bound in launch.kernel.bindings() {
            let Base::Local(local) = bound.base else {
                continue;
            };
            let users = users.entry(local).or_default();
            if users.contains(&at) || AsImage::of(bound).is_none() {
                unfit.insert(local);
            }
            users.push(at);
            if is_linear && !bound.access.writes() {
                wanted.insert(local);
            }
        }
    }
    for local in wanted.difference(&unfit) {
        let place = &mut lowered.locals[*local];
        let rows = texel_rows(bytes(place).eval(maxima)?);
        let users = &users[local];
        let has_room = |at: &usize| launches[*at].kernel.images() < DEFAULT_IMAGES;
        if place.role == Role::Scratch && rows <= DEFAULT_ROWS && users.iter().all(has_room) {
            place.image = true;
            for at in users {
                launches[*at].kernel.make_image(Base::Local(*local));
            }
        }
    }
    Ok(())
}
