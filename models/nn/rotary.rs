//! Rotary position embedding.

use kiln_ir::{DType, Dim, GraphBuilder, GraphError, ValueId};

use super::Built;

/// Rotary position embedding (Su et al., <https://arxiv.org/abs/2104.09864>):
/// pairs of elements of a head turn by an angle that grows with the position, so
/// that the product of a query and a key depends on how far apart they are.
///
/// Element `i` is paired with `i + d/2` of a head of `d`, as in GPT-NeoX and
/// Llama, and turns by `position * frequencies[i]` radians.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    frequencies: Vec<f64>,
}

/// What all heads of a position turn by: `f32[.., d/2]` for positions `[..]`.
#[derive(Clone, Copy, Debug)]
pub struct Angles {
    /// The angles' cosines.
    pub cos: ValueId,
    /// The angles' sines.
    pub sin: ValueId,
}

impl Rotary {
    /// An embedding of heads twice as wide as there are frequencies, in radians
    /// a position.
    pub fn new(frequencies: impl Into<Vec<f64>>) -> Self {
        Rotary {
            frequencies: frequencies.into(),
        }
    }

    /// The angles at `positions`, `i32[..]`.
    ///
    /// # Errors
    /// None for integers.
    pub fn angles(&self, g: &mut GraphBuilder, positions: ValueId) -> Result<Angles, GraphError> {
        let frequencies = g.table(&*self.frequencies)?;
        let positions = g.cast(positions, DType::F32)?;
        let mut shape = g.shape(positions);
        shape.push(1.into());
        let positions = g.reshape(positions, shape)?;
        let angles = g.mul(positions, frequencies)?;
        Ok(Angles {
            cos: g.cos(angles)?,
            sin: g.sin(angles)?,
        })
    }

    /// `x[.., heads * d]`, each head turned by the angles of its position.
    ///
    /// # Errors
    /// When the last axis of `x` is not a number of heads wide.
    pub fn forward(&self, g: &mut GraphBuilder, x: ValueId, angles: Angles) -> Built {
        let half = self.frequencies.len();
        let whole = g.shape(x);
        let mut apart = whole.clone();
        // A width that is not known, or not divisible, fails in `reshape`.
        let width = apart.pop().and_then(|w| w.as_const()).unwrap_or(0);
        let heads = width / (2 * half.max(1)) as u64;
        apart.extend([Dim::constant(heads), Dim::from(2 * half)]);
        let axis = apart.len() - 1;
        let apart = g.reshape(x, apart)?;
        let [cos, sin] = [angles.cos, angles.sin].map(|x| for_all_heads(g, x));
        let (cos, sin) = (cos?, sin?);

        let first = g.slice(apart, axis, 0, half)?;
        let second = g.slice(apart, axis, half, 2 * half)?;
        let (a, b) = (g.mul(first, cos)?, g.mul(second, sin)?);
        let turned_first = g.sub(a, b)?;
        let (a, b) = (g.mul(second, cos)?, g.mul(first, sin)?);
        let turned_second = g.add(a, b)?;
        let turned = g.concat(&[turned_first, turned_second], axis)?;
        g.reshape(turned, whole)
    }
}

/// `[.., d/2]` as `[.., 1, d/2]`.
fn for_all_heads(g: &mut GraphBuilder, x: ValueId) -> Built {
    let mut shape = g.shape(x);
    shape.insert(shape.len().saturating_sub(1), 1.into());
    g.reshape(x, shape)
}
