//! kiln's models: building blocks, GPT-2, Llama, Gemma, checkpoints and tokenizers.
//!
//! - [`source`] opens a model, with its weights and its tokenizer, from wherever
//!   it is.
//! - [`registry`] knows the families of models, [`gpt2`], [`llama`] and [`gemma`];
//!   each is made of [`nn`] blocks and builds graphs of primitive ops through
//!   [`decoder`].
//! - [`checkpoint`] reads safetensors, [`adapter`] gives each stored tensor its
//!   place in a model, [`config`] reads `config.json`, [`tokenizer`] turns text
//!   into ids and back, [`chat`] writes a conversation as the text that a model
//!   answers, and [`hub`] fetches all of it.
//!
//! Nothing here needs a GPU, or knows of one. What a graph means can be tried on
//! the spot with the interpreter of [`kiln_ir`]:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use kiln_ir::interp::{HostTensor, run};
//! use kiln_models::registry::EntryOptions;
//! use kiln_models::source::open_demo;
//!
//! let demo = open_demo()?;
//! let tokenizer = demo.tokenizer()?;
//! let ids: Vec<i32> = tokenizer.encode("Returns the number of")?.iter().map(|id| *id as i32).collect();
//!
//! let forward = demo.model.graph("forward", &EntryOptions::default())?;
//! let inputs = BTreeMap::from([("ids".to_owned(), HostTensor::i32([1, ids.len()], ids))]);
//! let outputs = run::<f32>(&forward, &*demo.params, &inputs, &mut BTreeMap::new())?;
//!
//! let logits = outputs["logits"].as_f().expect("real numbers");
//! let last = logits.chunks(3072).last().expect("a row for each token");
//! let best = (0..3072u32).max_by(|a, b| last[*a as usize].total_cmp(&last[*b as usize]));
//! assert_eq!(tokenizer.decode(&[best.expect("a token")])?, " bytes");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Errors
//!
//! Every error's message is whole: it names the file and the tensor or setting,
//! says what was expected, and what to do. Where it has a cause, its `source`,
//! the message includes what that one says; so print the message alone, not the
//! chain.
#![deny(unsafe_code)]

pub mod adapter;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod demo;
pub mod gemma;
pub mod gpt2;
pub mod head;
#[cfg(feature = "hub")]
pub mod hub;
pub mod llama;
pub mod nn;
pub mod random;
pub mod registry;
pub mod rope;
pub mod source;
mod stored;
pub mod tokenizer;
pub mod window;
