//! Embeddings.

use kiln_ir::{GraphBuilder, ValueId};

use super::Built;

/// A table with a row for each id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedding {
    name: String,
    rows: usize,
    width: usize,
}

impl Embedding {
    /// A table `weight[rows, width]`.
    pub fn new(name: &str, rows: usize, width: usize) -> Self {
        Embedding {
            name: name.to_owned(),
            rows,
            width,
        }
    }

    /// The table itself, for heads that share it.
    ///
    /// # Errors
    /// When a parameter of this name has another shape.
    pub fn weight(&self, g: &mut GraphBuilder) -> Built {
        g.scope(&self.name, |g| g.param("weight", [self.rows, self.width]))
    }

    /// The rows of `ids[..]`, as `[.., width]`.
    ///
    /// # Errors
    /// When the ids are not `i32`.
    pub fn forward(&self, g: &mut GraphBuilder, ids: ValueId) -> Built {
        let weight = self.weight(g)?;
        g.scope(&self.name, |g| g.gather(weight, ids))
    }
}
