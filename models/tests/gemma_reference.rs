//! Gemma's graphs as built, evaluated by the reference interpreter, against
//! what transformers computes in float64 from the same checkpoints.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

mod common;

against_transformers!("gemma");
