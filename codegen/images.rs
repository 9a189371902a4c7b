//! Images in place of buffers, from which a CPU driver loads at twice the rate: the
//! weights of matrices, and what kernels hand on to each other.

use std::collections::BTreeMap;

use kiln_ir::Bindings;
use kiln_ir::plan::{Access, ImageSize, TEXELS_IN_ROW};

use crate::error::CodegenError;
use crate::kernel::{Bound, Element, Hook, Launch};
use crate::lower::Lowered;
use crate::memory::bytes;
use crate::place::{Local, Role};
use crate::view::Base;
use crate::weights::Weights;

/// How many images every WebGPU adapter lets a kernel bind.
pub(crate) const DEFAULT_IMAGES: usize = 4;

/// A function that loads an element of the image `name`, and its text. It takes a place
/// across and down if rows of texels begin with bands, see [`ImageSize`], or else a number.
fn load(name: &str, element: Element, of_bands: bool) -> (String, String) {
    let (ty, row) = (element.wgsl(), TEXELS_IN_ROW);
    let function = format!("{name}_at");
    let (index, at) = match of_bands {
        true => ("at: vec2<u32>", "at".to_owned()),
        false => ("i: u32", format!("vec2<u32>(i % {row}u, i / {row}u)")),
    };
    let text = format!(
        "fn {function}({index}) -> {ty} {{\n    \
         return bitcast<{ty}>(textureLoad({name}, {at}));\n}}\n"
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

/// Whether elements are of a texel's size.
fn are_texels(element: Element) -> bool {
    matches!(element, Element::F32x4 | Element::U32x4)
}

/// Binds an image of this size in place of a buffer, with calls in place of the loads or
/// stores in `hooks`.
pub(crate) fn bind_image(bound: &mut Bound, size: ImageSize, hooks: &mut Vec<Hook>) {
    let writes = bound.access.writes();
    let (function, text) = match writes {
        true => store(&bound.name, bound.element),
        false => load(&bound.name, bound.element, size.bands_across.is_some()),
    };
    // First: the other text has its loads from the image as calls too.
    bound.take_others(hooks);
    bound.call(hooks, &function, text);
    bound.access = match writes {
        true => Access::WriteTexels,
        false => Access::Texels,
    };
}

/// What may become an image: a weight or a state, in all variants of an entry point or
/// in none, or a local of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Weight(usize),
    State(usize),
    Local { variant: usize, local: usize },
}

/// Where and how something is bound.
#[derive(Default)]
struct Users {
    /// Launches, which are numbered through all variants.
    launches: Vec<usize>,
    /// Whether linear layers or attentions read it, which do so many times over.
    linear: bool,
    attention: bool,
    /// Whether it has to stay a buffer.
    unfit: bool,
}

/// Makes images of the matrices, states and scratch buffers of an entry point's
/// variants that linear layers and attentions read and whose elements all kernels take
/// 16 bytes at a time, as far as every adapter lets a kernel bind so many and have them
/// of so many rows. `states` has the states' bytes. A kernel that loaded what it stores
/// would not do: an image is bound for one of them.
pub(crate) fn make_images(
    variants: &mut [Lowered],
    weights: &Weights,
    states: &[u64],
    maxima: &Bindings,
) -> Result<(), CodegenError> {
    let mut sizes: BTreeMap<Place, ImageSize> = BTreeMap::new();
    let mut scales: BTreeMap<usize, usize> = BTreeMap::new();
    for part in weights.linear_parts() {
        let size = weights.buffers[part.data].image();
        sizes.insert(Place::Weight(part.data), size);
        scales.extend(part.scales.map(|s| (part.data, s)));
    }
    for (state, bytes) in states.iter().enumerate() {
        sizes.insert(Place::State(state), ImageSize::of_bytes(*bytes));
    }
    let mut launches: Vec<(usize, &mut Launch)> = Vec::new();
    let mut locals: Vec<&mut Vec<Local>> = Vec::new();
    for (variant, lowered) in variants.iter_mut().enumerate() {
        let scratch = lowered.locals.iter().enumerate();
        for (local, place) in scratch.filter(|(_, place)| place.role == Role::Scratch) {
            let bytes = bytes(place).eval(maxima)?;
            sizes.insert(Place::Local { variant, local }, ImageSize::of_bytes(bytes));
        }
        locals.push(&mut lowered.locals);
        let streamed = lowered.streams.iter_mut().flat_map(|(_, _, l)| l);
        let all = lowered.launches.iter_mut().chain(streamed);
        launches.extend(all.map(|launch| (variant, launch)));
    }

    // Weights first, and keys and values before queries, which an attention reads once.
    let mut users: Vec<(Place, Users)> = users_of(&launches).into_iter().collect();
    users.sort_by_key(|(place, users)| match place {
        Place::Weight(_) => 0,
        Place::State(_) => 1,
        Place::Local { .. } if users.linear => 2,
        Place::Local { .. } => 3,
    });
    for (place, users) in users {
        let size = sizes.get(&place).filter(|size| size.fits_everywhere());
        let mut kernels = users.launches.iter().map(|at| &launches[*at].1.kernel);
        let have_room = kernels.all(|kernel| kernel.images() < DEFAULT_IMAGES);
        let wanted = !users.unfit && (users.linear || users.attention) && have_room;
        let (Some(size), true) = (size, wanted) else {
            continue;
        };
        let (base, with) = match place {
            Place::Weight(weight) => {
                let scales = scales.get(&weight).copied();
                (Base::Weight(weight), scales.map(Base::Weight))
            }
            Place::State(state) => (Base::State(state), None),
            Place::Local { variant, local } => {
                locals[variant][local].image = true;
                (Base::Local(local), None)
            }
        };
        for at in users.launches {
            launches[at].1.kernel.make_image(base, *size, with);
        }
    }
    Ok(())
}

/// What kernels bind, for launches with the variants that they belong to.
fn users_of(launches: &[(usize, &mut Launch)]) -> BTreeMap<Place, Users> {
    let mut users: BTreeMap<Place, Users> = BTreeMap::new();
    for (at, (variant, launch)) in launches.iter().enumerate() {
        let is = |body: &str| launch.kernel.body.starts_with(body);
        for bound in launch.kernel.bindings() {
            let place = match bound.base {
                Base::Weight(weight) => Place::Weight(weight),
                Base::State(state) => Place::State(state),
                Base::Local(local) => Place::Local {
                    variant: *variant,
                    local,
                },
            };
            let users = users.entry(place).or_default();
            users.unfit |= users.launches.contains(&at);
            users.unfit |= bound.reloaded || !are_texels(bound.element);
            // Its weights and its input, but no other operand.
            let often = !matches!(bound.base, Base::Local(_)) || bound.name == "x";
            users.linear |= often && !bound.access.writes() && is("linear");
            users.attention |= !bound.access.writes() && is("attention");
            users.launches.push(at);
        }
    }
    users
}
