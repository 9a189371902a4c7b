//! Parts of sums that workgroups of their own compute; see shaders/parts.wgsl.

use kiln_ir::Dim;

use crate::kernel::{Draft, Element, default_hooks};
use crate::lower::Lowered;

/// Into what a kernel cuts tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Parts of a tile.
    pub count: u64,
    /// The most tiles that are cut.
    pub tiles: u64,
    /// Reals of a part.
    pub size: u64,
}

/// Workgroups of a grid that is not folded: of one that is, there may be some beyond the
/// last tile, which do its work again.
pub(crate) const MOST_FLAT: u64 = 65_535;

/// The hooks of a kernel whose tiles are computed whole.
pub(crate) fn whole_hooks(d: &mut Draft) {
    default_hooks("whole").for_each(|hook| d.hook(hook));
}

/// The hooks of a kernel that computes parts of tiles, and the buffers for them, of which
/// one is called `name`.
pub(crate) fn part_hooks(parts: Parts, name: String, out: &mut Lowered, d: &mut Draft) {
    let elements = parts.tiles * parts.count * parts.size;
    let sums = out.scratch(name, Dim::constant(elements));
    d.write_coherently("parts", sums, Element::F32x4);
    let arrived = out.counters("arrived", parts.tiles);
    d.write("arrived", arrived, Element::AtomicU32);
    d.hook(kiln_shaders::PARTS);
}
