//! GPT-2.

mod config;

pub use config::{Gpt2Config, Head, MODEL_TYPE};
