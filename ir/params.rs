//! Where parameters' values come from.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Supplies the values of a graph's parameters by dotted name.
///
/// A checkpoint's adapter, a compiled artifact and a random generator all
/// implement it, so the compiler and the interpreter need not know which.
pub trait ParamSource: Sync {
    /// The elements of the parameter `name`, row-major, as many as its type in
    /// the graph says.
    ///
    /// # Errors
    /// When there is no such parameter or it cannot be read; the error names it.
    fn param(&self, name: &str) -> Result<Cow<'_, [f32]>, ParamError>;
}

/// Why a parameter could not be had.
pub type ParamError = Box<dyn std::error::Error + Send + Sync>;

impl ParamSource for BTreeMap<String, Vec<f32>> {
    fn param(&self, name: &str) -> Result<Cow<'_, [f32]>, ParamError> {
        match self.get(name) {
            Some(values) => Ok(Cow::Borrowed(values)),
            None => Err(format!("there is no parameter `{name}`").into()),
        }
    }
}
