//! The kernels of each tier against the interpreter, at odd sizes: of one, of
//! primes, one under and over a tile.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod generic;
mod linear;
mod matrices;
mod seldom;
mod suite;
mod widths;
