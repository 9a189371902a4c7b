//! The built-in model. `demo/README.md` tells what it is and how it was trained.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// What the model is called.
pub const NAME: &str = "demo";

const CONFIG: &str = include_str!("demo/config.json");
const TOKENIZER: &str = include_str!("demo/tokenizer.json");
static WEIGHTS: &[u8] = include_bytes!("demo/model.safetensors");

/// The model's checkpoint, which is part of the program.
///
/// # Errors
///
/// None, unless the program was built from altered files.
pub fn checkpoint() -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_static(NAME, CONFIG, WEIGHTS)
}

/// The model's tokenizer: a byte-level BPE of 3,072 tokens.
///
/// # Errors
///
/// None, unless the program was built from altered files.
pub fn tokenizer() -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json("demo/tokenizer.json", TOKENIZER)
}
