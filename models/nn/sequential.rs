//! Modules one after the other.

use kiln_ir::{GraphBuilder, ValueId};

use super::Built;

/// Modules of one kind, each fed with what the one before gives. They are named
/// by number: `h.0`, `h.1`, ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequential<M> {
    name: String,
    modules: Vec<M>,
}

impl<M> Sequential<M> {
    /// `modules` in order, under a common name.
    pub fn new(name: &str, modules: impl IntoIterator<Item = M>) -> Self {
        Sequential {
            name: name.to_owned(),
            modules: modules.into_iter().collect(),
        }
    }

    /// The modules, in order.
    pub fn modules(&self) -> &[M] {
        &self.modules
    }

    /// Sends `x` through all modules. `forward` sends it through one; it is a
    /// closure so that a module may take, or give, more than one value.
    ///
    /// # Errors
    /// Those of `forward`.
    pub fn forward(
        &self,
        g: &mut GraphBuilder,
        x: ValueId,
        mut forward: impl FnMut(&M, &mut GraphBuilder, ValueId) -> Built,
    ) -> Built {
        g.scope(&self.name, |g| {
            let mut modules = self.modules.iter().enumerate();
            modules.try_fold(x, |x, (number, module)| {
                g.scope(&number.to_string(), |g| forward(module, g, x))
            })
        })
    }
}
