//! Models
#![deny(unsafe_code)]

pub mod adapter;
pub mod checkpoint;
pub mod config;
pub mod gpt2;
#[cfg(feature = "hub")]
pub mod hub;
pub mod tokenizer;
