//! From stored tensors to a model's parameters.
//!
//! A model says which [`Parameter`]s it has; a checkpoint says which tensors
//! are stored. Between the two stands the model's *adapter*, a function from a
//! stored name to a [`Placement`]: every quirk of how that family of models is
//! stored (prefixes, transposed matrices, leftover buffers, tied heads) is in
//! that one function, and nothing else in kiln knows of it.
//!
//! [`Weights::map`] holds the two lists against each other completely, before
//! any data is read, and reports everything that does not fit in one error.
//!
//! ```
//! use kiln_models::adapter::{Layout, Parameter, Placement, Weights};
//! # use kiln_models::checkpoint::Checkpoint;
//! # let header = r#"{"model.up.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
//! # let mut file = (header.len() as u64).to_le_bytes().to_vec();
//! # file.extend(header.as_bytes());
//! # file.extend([1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()));
//! # let checkpoint = Checkpoint::from_bytes("example", "{}", file)?;
//! let wanted = vec![Parameter::new("up.weight", [1, 2])];
//! let adapter = |stored: &str| match stored.strip_prefix("model.") {
//!     Some(name) => Placement::Parameter { name: name.to_owned(), layout: Layout::Transposed },
//!     None => Placement::Unknown,
//! };
//! let weights = Weights::map(checkpoint, wanted, &adapter)?;
//! assert_eq!(&*weights.get("up.weight")?, &[1.0, 2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::mem::discriminant;

use kiln_ir::params::{ParamError, ParamSource};
use safetensors::Dtype;
use thiserror::Error;

use crate::checkpoint::{Checkpoint, StoredTensor, UnsupportedDtype, is_supported};
use crate::head::{HEAD_WEIGHT, TIE};

/// A parameter that a model has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its dotted name in the module tree, such as `h.3.attn.c_attn.weight`.
    pub name: String,
    /// Its shape as kiln computes with it, outermost dimension first; the
    /// weight of a linear layer is `[out, in]`.
    pub shape: Vec<usize>,
    /// The parts that checkpoints store it in, the rows of one below those of
    /// the other; empty where it is stored whole.
    pub parts: Vec<Part>,
}

/// Some rows of a parameter that are stored on their own, as the weights of
/// queries, keys and values are where one linear layer computes them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name, to which an adapter gives a stored tensor its place.
    pub name: String,
    /// How many rows it has.
    pub rows: usize,
}

impl Part {
    /// So many rows under this name.
    pub fn new(name: impl Into<String>, rows: usize) -> Self {
        Part {
            name: name.into(),
            rows,
        }
    }
}

impl Parameter {
    /// A parameter of this name and shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Parameter {
            name: name.into(),
            shape: shape.into(),
            parts: Vec::new(),
        }
    }

    /// The same parameter, stored in `parts`.
    #[must_use]
    pub fn stored_in(mut self, parts: impl Into<Vec<Part>>) -> Self {
        self.parts = parts.into();
        self
    }

    /// What is stored of it: each name with its shape.
    fn stored(&self) -> Vec<(&str, Vec<usize>)> {
        if self.parts.is_empty() {
            return vec![(&self.name, self.shape.clone())];
        }
        let parts = self.parts.iter().map(|part| {
            let mut shape = self.shape.clone();
            if let Some(rows) = shape.first_mut() {
                *rows = part.rows;
            }
            (part.name.as_str(), shape)
        });
        parts.collect()
    }

    /// The number of elements; saturates.
    pub fn len(&self) -> u64 {
        self.shape
            .iter()
            .fold(1u64, |n, dim| n.saturating_mul(*dim as u64))
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The elements of some parameters together; saturates.
pub fn count(parameters: &[Parameter]) -> u64 {
    parameters
        .iter()
        .fold(0u64, |n, parameter| n.saturating_add(parameter.len()))
}

/// Where a model's parameters come from, values and all: a checkpoint, or a
/// generator.
///
/// Values are made one parameter at a time, so that a model never has to be in
/// memory whole.
pub trait ModelParams: ParamSource + Send {
    /// All parameters, in the order of the module tree.
    fn parameters(&self) -> &[Parameter];
}

/// Why a parameter's values cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// The model has no parameter of this name.
    #[error("the model has no parameter `{name}`")]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// The stored type is none that weights come in.
    #[error(transparent)]
    Dtype(#[from] UnsupportedDtype),
}

/// How a stored tensor lies relative to its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As the parameter does.
    AsStored,
    /// A matrix with rows and columns exchanged.
    Transposed,
    /// Each element less one, as gains are that a model adds to one. The sum is
    /// rounded to f32, as transformers rounds it where it computes in f32; of
    /// elements stored in f16 or bf16 it is exact, but of those that are too
    /// small to matter beside one.
    LessOne,
}

/// What an adapter says of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It holds this parameter, or this part of one.
    Parameter {
        /// The parameter's or the part's name.
        name: String,
        /// How the tensor is laid out.
        layout: Layout,
    },
    /// It is a second copy of a parameter, as a stored tied head is. Its values
    /// must be the parameter's; it stands in where the parameter is not stored
    /// itself.
    Copy {
        /// The parameter's name.
        of: String,
        /// The setting in `config.json` that makes it a copy.
        setting: &'static str,
    },
    /// It is not needed.
    Ignored,
    /// It is no part of this model: an error.
    Unknown,
}

/// An adapter: what becomes of the tensor stored under a name.
pub type Adapter<'a> = &'a dyn Fn(&str) -> Placement;

/// A checkpoint whose every tensor has its place in a model.
#[derive(Debug)]
pub struct Weights {
    checkpoint: Checkpoint,
    parameters: Vec<Parameter>,
    /// The name of a parameter or a part to stored name and layout.
    places: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    stored: String,
    layout: Layout,
}

impl Weights {
    /// Gives every tensor of `checkpoint` its place among `parameters`.
    ///
    /// Names, shapes and types are all checked before any data is read. After
    /// that, copies are compared with what they are copies of.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that is missing,
    /// superfluous, misshapen, of an unsupported type, or there twice;
    /// [`AdapterError::CopyDiffers`] when a copy does not hold the same values.
    pub fn map(
        checkpoint: Checkpoint,
        parameters: Vec<Parameter>,
        adapter: Adapter<'_>,
    ) -> Result<Self, AdapterError> {
        let Placed { places, copies } = place_all(&checkpoint, &parameters, adapter)?;
        let weights = Weights {
            checkpoint,
            parameters,
            places,
        };
        weights.check_copies(&copies)?;
        Ok(weights)
    }

    /// The checkpoint behind the weights.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// All parameters, in the order of the module tree.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The values of one parameter, row-major; borrowed from the mapped file
    /// where they are stored just so.
    ///
    /// # Errors
    ///
    /// [`ParameterError::Unknown`], when the model has no such parameter.
    pub fn get(&self, name: &str) -> Result<Cow<'_, [f32]>, ParameterError> {
        let parameter = self.parameters.iter().find(|p| p.name == name);
        let parameter = parameter.ok_or_else(|| ParameterError::Unknown {
            name: name.to_owned(),
        })?;
        if parameter.parts.is_empty() {
            return self.values(name);
        }
        let mut rows = Vec::with_capacity(parameter.len() as usize);
        for part in &parameter.parts {
            rows.extend_from_slice(&self.values(&part.name)?);
        }
        Ok(Cow::Owned(rows))
    }

    /// The values stored under this name of a parameter or a part.
    fn values(&self, name: &str) -> Result<Cow<'_, [f32]>, ParameterError> {
        let (tensor, layout) = self.stored(name).ok_or_else(|| ParameterError::Unknown {
            name: name.to_owned(),
        })?;
        Ok(match layout {
            Layout::AsStored => tensor.to_f32()?,
            Layout::Transposed => tensor.to_f32_transposed()?,
            Layout::LessOne => tensor.to_f32()?.iter().map(|x| 1.0 + x).collect(),
        })
    }

    /// The type that a parameter, or a part of one, is stored in.
    pub fn stored_dtype(&self, name: &str) -> Option<Dtype> {
        self.stored(name).map(|(tensor, _)| tensor.dtype)
    }

    fn stored(&self, name: &str) -> Option<(StoredTensor<'_>, Layout)> {
        let place = self.places.get(name)?;
        Some((self.checkpoint.tensor(&place.stored)?, place.layout))
    }

    fn check_copies(&self, copies: &[Copied]) -> Result<(), AdapterError> {
        for Copied {
            stored,
            of,
            setting,
        } in copies
        {
            let (Some(copy), Some((original, _))) =
                (self.checkpoint.tensor(stored), self.stored(of))
            else {
                continue;
            };
            if copy.name == original.name
                || (copy.dtype == original.dtype && copy.bytes == original.bytes)
            {
                continue;
            }
            let (a, b) = (copy.to_f32()?, original.to_f32()?);
            if let Some(at) = a.iter().zip(b.iter()).position(|(a, b)| a != b) {
                return Err(AdapterError::CopyDiffers {
                    origin: self.checkpoint.origin().to_owned(),
                    copy: stored.clone(),
                    original: original.name.to_owned(),
                    setting,
                    at,
                    found: a[at],
                    wanted: b[at],
                });
            }
        }
        Ok(())
    }
}

impl ParamSource for Weights {
    fn param(&self, name: &str) -> Result<Cow<'_, [f32]>, ParamError> {
        Ok(self.get(name)?)
    }
}

impl ModelParams for Weights {
    fn parameters(&self) -> &[Parameter] {
        self.parameters()
    }
}

/// Why a checkpoint is not one of this model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// Stored tensors and wanted parameters do not match.
    #[error(
        "the tensors in {origin} are not those that its config.json describes:{}",
        Listed(problems)
    )]
    Mismatch {
        /// The checkpoint.
        origin: String,
        /// Everything that does not fit; never empty.
        problems: Vec<Problem>,
    },
    /// A tensor that should be a copy is not.
    #[error(
        "tensor `{copy}` in {origin} should be a copy of `{original}`, since config.json sets `{setting}`, \
         but they differ (first at element {at}: {found} against {wanted}); \
         if it holds weights of its own, set `\"{setting}\": false` in config.json, else remove it"
    )]
    CopyDiffers {
        /// The checkpoint.
        origin: String,
        /// The stored name of the copy.
        copy: String,
        /// The stored name of what it should be a copy of.
        original: String,
        /// The setting in `config.json`.
        setting: &'static str,
        /// The index of the first element that differs, row-major.
        at: usize,
        /// The copy's value there.
        found: f32,
        /// The original's value there.
        wanted: f32,
    },
    /// The stored type is none that weights come in.
    #[error(transparent)]
    Dtype(#[from] UnsupportedDtype),
}

/// One thing that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A parameter is stored nowhere.
    Missing {
        /// The name it should be stored under.
        tensor: String,
        /// The shape it should be stored in.
        wanted: Vec<usize>,
    },
    /// A tensor belongs to nothing.
    Superfluous {
        /// The stored name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor has the wrong shape.
    Misshapen {
        /// The stored name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should be stored in.
        wanted: Vec<usize>,
    },
    /// A tensor has a type that weights do not come in.
    Dtype(UnsupportedDtype),
    /// Two tensors claim one parameter.
    Twice {
        /// The parameter.
        parameter: String,
        /// One stored name.
        first: String,
        /// The other.
        second: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing { tensor, wanted } => {
                write!(
                    f,
                    "tensor `{tensor}` is missing; its shape should be {wanted:?}"
                )?;
                match tensor == HEAD_WEIGHT {
                    true => write!(
                        f,
                        "; if the head shares the embedding's weights, set `\"{TIE}\": true` in config.json"
                    ),
                    false => Ok(()),
                }
            }
            Problem::Superfluous { tensor, found } => {
                // Without it the model may compute something else, so nobody is to remove it
                // unawares. Biases are what a missing setting leaves out.
                let settings = match tensor.ends_with(".bias") {
                    true => "its settings, such as `attention_bias`",
                    false => "its settings",
                };
                write!(
                    f,
                    "tensor `{tensor}` of shape {found:?} is no part of the model that config.json \
                     describes; check {settings}, or remove the tensor if nothing needs it"
                )
            }
            Problem::Misshapen {
                tensor,
                found,
                wanted,
            } => {
                write!(
                    f,
                    "tensor `{tensor}` has shape {found:?}; it should be {wanted:?}"
                )
            }
            Problem::Dtype(error) => error.fmt(f),
            Problem::Twice {
                parameter,
                first,
                second,
            } => {
                write!(
                    f,
                    "tensors `{first}` and `{second}` both hold `{parameter}`; remove one"
                )
            }
        }
    }
}

/// A list of problems that stays readable when there are hundreds: the first
/// few of each kind, since a flood of one may be explained by a single other.
struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_OF_A_KIND: usize = 4;
        let mut left_out = 0;
        for (at, problem) in self.0.iter().enumerate() {
            let same_kind = |other: &&Problem| discriminant(*other) == discriminant(problem);
            if self.0[..at].iter().filter(same_kind).count() < SHOWN_OF_A_KIND {
                write!(f, "\n  {problem}")?;
            } else {
                left_out += 1;
            }
        }
        match left_out {
            0 => Ok(()),
            1 => write!(f, "\n  and 1 more problem"),
            more => write!(f, "\n  and {more} more problems"),
        }
    }
}

struct Placed {
    places: BTreeMap<String, Place>,
    copies: Vec<Copied>,
}

struct Copied {
    stored: String,
    of: String,
    setting: &'static str,
}

fn place_all(
    checkpoint: &Checkpoint,
    parameters: &[Parameter],
    adapter: Adapter<'_>,
) -> Result<Placed, AdapterError> {
    let in_order: Vec<(&str, Vec<usize>)> = parameters.iter().flat_map(Parameter::stored).collect();
    let wanted: BTreeMap<&str, &[usize]> = in_order.iter().map(|(n, s)| (*n, &**s)).collect();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    let mut copies = Vec::new();
    let mut problems = Vec::new();
    for stored in checkpoint.names() {
        let Some(tensor) = checkpoint.tensor(stored) else {
            continue;
        };
        let superfluous = || Problem::Superfluous {
            tensor: stored.to_owned(),
            found: tensor.shape.to_vec(),
        };
        match adapter(stored) {
            Placement::Ignored => {}
            Placement::Unknown => problems.push(superfluous()),
            Placement::Parameter { name, layout } => match wanted.get(name.as_str()) {
                None => problems.push(superfluous()),
                Some(shape) => {
                    problems.extend(misfit(&tensor, shape, layout));
                    let place = Place {
                        stored: stored.to_owned(),
                        layout,
                    };
                    if let Some(first) = places.insert(name.clone(), place) {
                        problems.push(Problem::Twice {
                            parameter: name,
                            first: first.stored,
                            second: stored.to_owned(),
                        });
                    }
                }
            },
            Placement::Copy { of, setting } => match wanted.get(of.as_str()) {
                None => problems.push(superfluous()),
                Some(shape) => {
                    problems.extend(misfit(&tensor, shape, Layout::AsStored));
                    copies.push(Copied {
                        stored: stored.to_owned(),
                        of,
                        setting,
                    });
                }
            },
        }
    }
    for copy in &copies {
        places.entry(copy.of.clone()).or_insert_with(|| Place {
            stored: copy.stored.clone(),
            layout: Layout::AsStored,
        });
    }
    let prefix = usual_prefix(&places);
    let missing = in_order.iter().filter(|(n, _)| !places.contains_key(*n));
    problems.splice(
        0..0,
        missing.map(|(name, shape)| {
            let (stored, layout) = name_in_file(adapter, name, prefix);
            Problem::Missing {
                tensor: stored,
                wanted: stored_shape(shape, layout),
            }
        }),
    );
    if problems.is_empty() {
        Ok(Placed { places, copies })
    } else {
        Err(AdapterError::Mismatch {
            origin: checkpoint.origin().to_owned(),
            problems,
        })
    }
}

/// What most of the stored names begin with that the parameters' do not, such
/// as `model.`.
fn usual_prefix(places: &BTreeMap<String, Place>) -> &str {
    let mut counts = BTreeMap::<&str, usize>::new();
    for (name, place) in places {
        if let Some(prefix) = place.stored.strip_suffix(name.as_str()) {
            *counts.entry(prefix).or_default() += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or("", |(prefix, _)| prefix)
}

/// The name and layout that a missing parameter would have in the file: with
/// `prefix`, if that is a name of it, or else under its own.
fn name_in_file(adapter: Adapter<'_>, name: &str, prefix: &str) -> (String, Layout) {
    let layout_of = |stored: &str| match adapter(stored) {
        Placement::Parameter { name: of, layout } if of == name => Some(layout),
        _ => None,
    };
    let prefixed = format!("{prefix}{name}");
    match layout_of(&prefixed) {
        Some(layout) => (prefixed, layout),
        None => (name.to_owned(), layout_of(name).unwrap_or(Layout::AsStored)),
    }
}

fn stored_shape(shape: &[usize], layout: Layout) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if layout == Layout::Transposed {
        shape.reverse();
    }
    shape
}

fn misfit(tensor: &StoredTensor<'_>, shape: &[usize], layout: Layout) -> Vec<Problem> {
    let mut problems = Vec::new();
    let wanted = stored_shape(shape, layout);
    if tensor.shape != wanted {
        problems.push(Problem::Misshapen {
            tensor: tensor.name.to_owned(),
            found: tensor.shape.to_vec(),
            wanted,
        });
    }
    if !is_supported(tensor.dtype) {
        problems.push(Problem::Dtype(UnsupportedDtype {
            tensor: tensor.name.to_owned(),
            file: tensor.file.to_owned(),
            dtype: tensor.dtype,
        }));
    }
    problems
}

#[cfg(test)]
mod tests;
