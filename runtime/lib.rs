//! Runs a compiled kiln artifact on a wgpu device.
//!
//! The runtime executes a [`Plan`](kiln_ir::plan::Plan) and knows nothing of the
//! model behind it, nor of the compiler that made it:
//!
//! 1. [`Artifact`] opens the folder and checks every file's hash (or wraps parts
//!    that are in memory).
//! 2. [`Adapter`] lists and selects what can run it; [`tier`] finds the most
//!    capable set of launches that the adapter's features and limits allow.
//! 3. [`Model::load`] uploads the weights and creates the pipelines, side by side; where a
//!    plan leaves open which kernel is the fastest, it measures that once, and keeps it.
//! 4. [`Model::run_entry`] and [`Model::forward`] run an entry once;
//!    [`Session`] keeps the states (the KV cache) between calls.
//! 5. [`generate`](generate::generate) drives any [`Decoder`]. A session chooses
//!    tokens on its device, several steps to a submission; other decoders use a
//!    [`Sampler`](sampling::Sampler), which chooses the same.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use kiln_runtime::generate::{GenerateOptions, generate};
//! use kiln_runtime::{Adapter, Artifact, LoadOptions, Model, Session};
//!
//! # fn main() -> kiln_runtime::Result<()> {
//! let artifact = Artifact::open(Path::new("gpt2.kiln"))?;
//! let adapter = Adapter::select(None)?;
//! let options = LoadOptions::default().entries(&["step"]);
//! let model = Model::open(&adapter, &artifact, &options, &mut |_progress| {})?;
//! let mut session = Session::new(&model, 1, 256)?;
//! let prompt = vec![464, 3290];
//! let (texts, timings) = generate(
//!     &mut session,
//!     &[prompt],
//!     &GenerateOptions::default(),
//!     &mut |_token| ControlFlow::Continue(()),
//! )?;
//! # let _ = (texts, timings);
//! # Ok(())
//! # }
//! ```
//!
//! Every failure is an [`Error`], and nothing in this crate prints or panics. wgpu does when
//! a device is lost while it is waited for: what that unwinds is caught, and becomes
//! [`Error::DeviceLost`], but the hook for panics has seen it by then, and a program built
//! with `panic = "abort"` ends. It panics too when threads share a device of OpenGL, which has
//! one context, and one of them waits for seconds: use such a device from one thread.
//!
//! Metal tells nobody of work that failed, as when memory runs out while it is done, so wgpu
//! does not know either: results are then zeros, or what was there before.

mod adapter;
mod ahead;
mod artifact;
mod check;
mod choice;
mod decode;
mod device;
mod dims;
mod error;
mod exec;
pub mod generate;
mod load;
mod model;
mod params;
mod pipelines;
mod profile;
mod readback;
mod resident;
mod run;
mod sampler;
pub mod sampling;
mod session;
mod sizes;
mod threads;
pub mod tier;
mod trial;
mod trust;
mod weights;

pub use adapter::Adapter;
pub use artifact::Artifact;
pub use device::Device;
pub use error::{Altered, BoxError, Error, Result};
pub use generate::{Decoder, Generation};
pub use model::{LoadOptions, LoadProgress, Loss, Model};
pub use profile::{Clock, LaunchTime, Profile};
pub use run::{Output, OutputData, Piece, RunOptions};
pub use session::Session;
pub use sizes::SessionSize;
pub use weights::{WeightFn, WeightSource};

/// The graphics API, some of whose types this crate's own contain.
pub use wgpu;
