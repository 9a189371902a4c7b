//! Element types and tensor types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::dim::{Bindings, Dim, DimError};

/// The type of a tensor's elements, as the graph sees them.
///
/// How a parameter is *stored* (f16, quantised) is the plan's concern; in the
/// graph it is `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// A real number. 32-bit floats on a device; the interpreter can also
    /// compute it in 64 bits.
    F32,
    /// A signed 32-bit integer.
    I32,
    /// A truth value.
    Bool,
}

impl DType {
    /// The text form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::Bool => "bool",
        }
    }

    /// Bytes that an element takes in a device buffer. A truth value takes a
    /// whole word: WGSL's `bool` has no storage layout.
    pub fn device_bytes(self) -> u64 {
        4
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [DType::F32, DType::I32, DType::Bool]
            .into_iter()
            .find(|d| d.name() == text)
            .ok_or_else(|| format!("`{text}` is not an element type (f32, i32, bool)"))
    }
}

/// An element type and a shape, outermost axis first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// The sizes of the axes; empty for a scalar.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A tensor type from anything that converts to dimensions.
    pub fn new<D: Into<Dim>>(dtype: DType, shape: impl IntoIterator<Item = D>) -> Self {
        TensorType {
            dtype,
            shape: shape.into_iter().map(Into::into).collect(),
        }
    }

    /// A scalar type.
    pub fn scalar(dtype: DType) -> Self {
        TensorType {
            dtype,
            shape: Vec::new(),
        }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn elements(&self) -> Dim {
        Dim::product(&self.shape)
    }

    /// The size of the last axis; one for a scalar.
    pub fn last(&self) -> Dim {
        self.shape.last().cloned().unwrap_or_else(|| 1.into())
    }

    /// The shape under `bindings`.
    ///
    /// # Errors
    /// When a dimension has no value under them.
    pub fn eval_shape(&self, bindings: &Bindings) -> Result<Vec<usize>, DimError> {
        let dims = self.shape.iter();
        dims.map(|d| d.eval(bindings).map(|v| v as usize)).collect()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{dim}")?;
        }
        f.write_str("]")
    }
}
