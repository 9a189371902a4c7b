//! `kiln forward`

mod safetensors;

use std::path::PathBuf;

use kiln_ir::plan::{ModelInfo, Port};
use kiln_ir::{Bindings, DType};
use kiln_runtime::{Artifact, Error, Model, Piece, RunOptions};

use crate::device::{DeviceArgs, Target};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs};
use crate::out_file::{OutFile, parse_path};
use crate::output::remark;
use crate::progress::Bar;
use crate::run::{Ids, encode, no_tokenizer, parse_ids};
use crate::units::bytes;
use safetensors::{Tensor, Writer};

/// Write logits and hidden states to a safetensors file
///
/// Runs the model once over whole sequences, without a cache. The file holds, as f32:
/// `logits [batch, seq, vocab]`, `hidden [batch, seq, embed]` (after the final norm),
/// and with `--attentions` the attention probabilities of each layer, as
/// `attentions.0 [batch, heads, seq, seq]` and so on. Shorter sequences are padded at
/// their end; the values at padded positions have no meaning.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kiln forward gpt2.kiln --tokens 464,3290,318 -o out.safetensors
  kiln forward path/to/gpt2 --tokens \"1,2,3;4,5,6\" --attentions -o out.safetensors")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The token ids: `1,2,3`, or several sequences as `1,2,3;4,5,6`
    #[arg(long, value_name = "IDS", value_parser = parse_ids)]
    #[arg(required_unless_present = "prompt", conflicts_with = "prompt")]
    #[arg(value_delimiter = ';', allow_hyphen_values = true)]
    tokens: Vec<Ids>,

    /// A text instead of token ids; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,

    /// The file to write
    #[arg(short, long, value_name = "FILE", value_parser = parse_path)]
    output: PathBuf,

    /// Also write each layer's attention probabilities
    #[arg(long)]
    attentions: bool,

    #[command(flatten)]
    dtype: DtypeArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result {
    // What cannot be written is told before the work is done.
    OutFile::check(&args.output)?;
    let target = args.device.select()?;
    let opened = args.model.open()?;
    let ids = match args.tokens.is_empty() {
        false => args.tokens.clone(),
        true => {
            let name = args.model.name();
            let tokenizer = opened.tokenizer()?;
            let tokenizer = tokenizer.ok_or_else(|| no_tokenizer(name, "--prompt"))?;
            encode(&tokenizer, &args.prompt)?
        }
    };
    check_ids(&ids, &opened.info())?;
    let entry = match args.attentions {
        true => "forward_attentions",
        false => "forward",
    };
    let (name, batch, dtype) = (args.model.name(), ids.len(), args.dtype.dtype);
    let written = match target {
        Target::Adapter(adapter) => {
            opened.check_tier(name, dtype, args.device.tier.as_deref())?;
            let artifact = opened.into_artifact(name, &[entry], batch, dtype)?;
            let options = args.device.options(&[entry]);
            let model = args.device.load(&adapter, &artifact, &options)?;
            on_adapter(args, entry, &artifact, &model, &ids)?
        }
        Target::Interpreter => {
            let model = opened.into_interpretable(name, &[entry], batch, dtype)?;
            let outputs = model.forward(entry, &ids)?;
            interpreted(args, outputs)?
        }
    };
    let file = args.output.display();
    remark(format_args!("wrote `{file}`: {}", bytes(written)));
    Ok(())
}

/// Holds that sequences are no longer than a model's context, and of its vocabulary.
fn check_ids(ids: &[Ids], model: &ModelInfo) -> Result {
    let (max, vocab) = (model.max_context, model.vocab_size);
    for (sequence, row) in ids.iter().enumerate() {
        if row.len() as u64 > max {
            return Err(Failure::failed(format!(
                "sequence {sequence} has {} tokens, but the model takes {max} at most; if it was \
                 made for more, compile it with a larger --max-context",
                row.len()
            )));
        }
        if let Some(position) = row.iter().position(|id| u64::from(*id) >= vocab) {
            let id = row[position];
            let error = Error::Token {
                sequence,
                position,
                id,
                vocab,
            };
            return Err(error.into());
        }
    }
    Ok(())
}

/// Streams the outputs into the file as they come.
fn on_adapter(
    args: &Args,
    entry: &str,
    artifact: &Artifact,
    model: &Model,
    ids: &[Ids],
) -> Result<u64> {
    let (flat, bindings) = padded(ids);
    let tier = artifact.tier(model.tier())?;
    let ports = tier.entries.get(entry).map(|e| &e.outputs);
    let mut tensors = Vec::new();
    for port in ports.into_iter().flatten() {
        tensors.push(tensor(port, &bindings)?);
    }
    let graceful = interrupt::Graceful::begin();
    let mut writer = Writer::create(&args.output, tensors)?;
    let bar = Bar::bytes("outputs", writer.total());
    let mut failure = None;
    let mut done = 0;
    let mut sink = |piece: Piece<'_>| {
        let outcome =
            interrupt::check().and_then(|()| writer.write(piece.name, piece.offset, piece.bytes));
        done += piece.bytes.len() as u64;
        bar.set(done, done.max(1));
        outcome.map_err(|error| {
            failure.get_or_insert(error);
            Error::other("the file could not be written")
        })
    };
    let inputs: [(&str, &[u8]); 1] = [("ids", &flat)];
    let outcome = model.run_entry(entry, &inputs, &bindings, &RunOptions::default(), &mut sink);
    drop(graceful);
    if let Some(failure) = failure {
        return Err(failure);
    }
    outcome?;
    writer.finish()
}

fn tensor(port: &Port, bindings: &Bindings) -> Result<Tensor> {
    if port.dtype() != DType::F32 {
        return Err(Failure::failed(format!(
            "the output `{}` is not f32, which is all that the file may hold",
            port.name
        )));
    }
    Ok(Tensor {
        name: port.name.clone(),
        shape: port.ty.eval_shape(bindings)?,
    })
}

/// The ids in little-endian bytes, padded at their end to the longest.
fn padded(ids: &[Ids]) -> (Vec<u8>, Bindings) {
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    let mut flat = Vec::with_capacity(ids.len() * longest * 4);
    for (sequence, row) in ids.iter().enumerate() {
        flat.extend(row.iter().flat_map(|id| id.to_le_bytes()));
        flat.resize((sequence + 1) * longest * 4, 0);
    }
    let bindings = Bindings::new();
    let bindings = bindings.with("batch", ids.len() as u64);
    (flat, bindings.with("seq", longest as u64))
}

fn interpreted(args: &Args, outputs: kiln_ir::interp::Tensors<f32>) -> Result<u64> {
    let tensors = outputs.iter().map(|(name, tensor)| Tensor {
        name: name.clone(),
        shape: tensor.shape.clone(),
    });
    let mut writer = Writer::create(&args.output, tensors.collect())?;
    for (name, tensor) in &outputs {
        let values = tensor.as_f().unwrap_or_default();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.write(name, 0, &bytes)?;
    }
    writer.finish()
}
