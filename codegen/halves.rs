//! States in f16, where a tier's kernels for prompts round what they read of them to that
//! anyway.

use kiln_ir::plan::Access;

use crate::kernel::{Bound, Draft, Element, Hook};
use crate::lower::Lowered;

/// A function that loads an element of `name` as f32, and its text.
fn load(name: &str, element: Element) -> (String, String) {
    let ty = element.wgsl();
    let function = format!("{name}_at");
    let text = format!("fn {function}(i: u32) -> {ty} {{\n    return {ty}({name}[i]);\n}}\n");
    (function, text)
}

/// A function that stores an element of `name`, `half`, rounded. Beyond its range a half
/// would be infinite.
fn store(name: &str, element: Element, half: Element) -> (String, String) {
    let (ty, half) = (element.wgsl(), half.wgsl());
    let function = format!("{name}_put");
    let text = format!(
        "fn {function}(i: u32, v: {ty}) {{\n    \
         {name}[i] = {half}(clamp(v, {ty}(-65504.0), {ty}(65504.0)));\n}}\n"
    );
    (function, text)
}

/// Binds a buffer as one of f16, with calls in place of the loads or stores in `hooks`.
pub(crate) fn bind_halves(bound: &mut Bound, hooks: &mut Vec<Hook>) {
    let half = match bound.element {
        Element::F32 => Element::F16,
        Element::F32x4 => Element::F16x4,
        _ => return,
    };
    let (function, text) = match bound.access {
        Access::ReadWrite => store(&bound.name, bound.element, half),
        _ => load(&bound.name, bound.element),
    };
    bound.call(hooks, &function, text);
    // Last: the other text loads halves as they are.
    bound.take_others(hooks);
    bound.element = half;
}

/// Has every kernel of an entry point's variants keep states in f16.
pub(crate) fn halve_states(variants: &mut [Lowered]) {
    for lowered in variants {
        let streamed = lowered.streams.iter_mut().flat_map(|(_, _, l)| l);
        for launch in lowered.launches.iter_mut().chain(streamed) {
            launch.kernels_mut().for_each(Draft::halve_states);
        }
    }
}
