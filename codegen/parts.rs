//! Parts of sums that workgroups of their own compute (split-K, and split-KV of attention);
//! see shaders/parts.wgsl.

use crate::kernel::{Draft, Element, default_hooks};
use crate::lower::Lowered;
use crate::place::Role;

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

impl Parts {
    fn elements(self) -> u64 {
        self.tiles * self.count * self.size
    }

    /// Whether they fit a binding of so many bytes.
    pub fn fit(self, limit: u64) -> bool {
        4 * self.elements() <= limit
    }
}

/// The hooks of a kernel whose tiles are computed whole.
pub(crate) fn whole_hooks(d: &mut Draft) {
    default_hooks("whole").for_each(|hook| d.hook(hook));
}

/// The hooks of a kernel that computes parts of tiles. All launches of a variant keep them
/// in the same buffers, which nothing else uses: a runtime that takes none needs none.
pub(crate) fn part_hooks(parts: Parts, out: &mut Lowered, d: &mut Draft) {
    let sums = out.own("parts", parts.elements(), Role::Own);
    d.write_coherently("parts", sums, Element::F32x4);
    let arrived = out.own("arrived", parts.tiles, Role::Counter);
    d.write("arrived", arrived, Element::AtomicU32);
    d.hook(kiln_shaders::PARTS);
}
