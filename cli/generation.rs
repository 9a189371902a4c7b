//! Generating on the device that was asked for, and showing it as it comes.

use std::ops::ControlFlow;
use std::time::Duration;

use kiln_runtime::generate::{GenerateOptions, Generated, NewToken, Timings, generate_while};
use kiln_runtime::{Artifact, Decoder, LoadOptions, Session};

use crate::device::{DeviceArgs, Target, warn_of_separate_launches};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::model::{DtypeArgs, ModelArgs, Opened};
use crate::printer::{Printer, Text};
use crate::run::Ids;

/// What a decoder is wanted for.
pub struct Needs {
    /// Sequences.
    pub batch: usize,
    /// Positions of each.
    pub context: u64,
    /// Tokens of the longest prompt.
    pub longest: u64,
    /// Whether tokens are drawn, and not the most likely ones taken.
    pub draw: bool,
}

/// What a decoder runs on.
pub struct On<'a> {
    /// What people call it.
    pub device: String,
    /// Its kernels, if it has some.
    pub tier: Option<&'a str>,
}

/// Makes a decoder of a model on a target, and gives it to `run`.
pub fn with_decoder(
    target: Target,
    opened: Opened,
    (model, dtype, device): (&ModelArgs, &DtypeArgs, &DeviceArgs),
    needs: &Needs,
    run: impl FnOnce(&mut dyn Decoder, &On<'_>) -> Result,
) -> Result {
    let (name, dtype, entries) = (model.name(), dtype.dtype, ["step"]);
    let (batch, context) = (needs.batch, needs.context);
    match target {
        Target::Adapter(adapter) => {
            opened.check_tier(name, dtype, device.tier.as_deref())?;
            let artifact = opened.into_artifact(name, &entries, batch, dtype)?;
            refuse_headless(name, has_logits(&artifact)?)?;
            let load = LoadOptions {
                draw: needs.draw,
                ..device.options(&entries)
            };
            let load = load.session(batch as u64, needs.longest);
            let model = device.load(&adapter, &artifact, &load)?;
            // The session needs no more than the model has on the device.
            drop(artifact);
            let mut session = Session::new(&model, batch, context)?;
            let on = On {
                device: adapter.to_string(),
                tier: Some(model.tier()),
            };
            run(&mut session, &on)?;
            warn_of_separate_launches(&model, &session);
            Ok(())
        }
        Target::Interpreter => {
            let model = opened.into_interpretable(name, &entries, batch, dtype)?;
            let outputs = model.graphs.values().flat_map(|g| g.outputs());
            refuse_headless(name, outputs.into_iter().any(|(name, _)| name == "logits"))?;
            let mut session = model.session(batch, context)?;
            let on = On {
                device: "the reference interpreter".to_owned(),
                tier: None,
            };
            run(&mut session, &on)
        }
    }
}

/// Whether steps give logits, which is the same on every tier.
fn has_logits(artifact: &Artifact) -> Result<bool> {
    let Some(any) = artifact.plan().tiers.first() else {
        return Ok(false);
    };
    let tier = artifact.tier(&any.name)?;
    let step = tier.entries.get("step").into_iter();
    let mut outputs = step.flat_map(|e| &e.outputs);
    Ok(outputs.any(|o| o.name == "logits"))
}

fn refuse_headless(name: &str, has_logits: bool) -> Result {
    match has_logits {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "`{name}` has no language-model head, so it cannot continue a text; `kiln forward` writes \
             its hidden states"
        ))),
    }
}

/// What was generated and shown.
pub struct Shown {
    /// What each sequence got.
    pub generated: Vec<Generated>,
    /// The same as texts.
    pub texts: Vec<Text>,
    /// Where the time went.
    pub timings: Timings,
}

/// Continues prompts, and shows what comes. Ctrl-C ends all of them, also while a long prompt is
/// read; [`interrupt::requested`] tells.
pub fn generate_shown(
    decoder: &mut dyn Decoder,
    prompts: &[Ids],
    options: &GenerateOptions,
    mut printer: Printer<'_>,
) -> Result<Shown> {
    let mut failure = None;
    let graceful = interrupt::Graceful::begin();
    let mut on_token = |token: NewToken| {
        if interrupt::requested() {
            return ControlFlow::Break(());
        }
        printer.push(token).unwrap_or_else(|error| {
            failure.get_or_insert(error);
            ControlFlow::Break(())
        })
    };
    let wanted = || !interrupt::requested();
    let outcome = generate_while(decoder, prompts, options, &wanted, &mut on_token);
    drop(graceful);
    if let Some(failure) = failure {
        return Err(failure);
    }
    let (generated, timings) = outcome?;
    Ok(Shown {
        generated,
        texts: printer.finish()?,
        timings,
    })
}

/// How fast prompts were read, and tokens made. The first token of each sequence comes
/// with its prompt, and one that has ended gets no more.
pub fn speeds(timings: &Timings, generated: &[Generated]) -> String {
    let per_second = |n: usize, time: Duration| match time.as_secs_f64() {
        s if s > 0.0 => n as f64 / s,
        _ => 0.0,
    };
    let later = generated.iter().map(|g| g.tokens.len().saturating_sub(1));
    let later: usize = later.sum();
    let mut text = format!(
        "{} prompt tokens, {:.1} tokens/s",
        timings.prompt_tokens,
        per_second(timings.prompt_tokens, timings.prefill)
    );
    if timings.decode_steps > 0 {
        let rate = per_second(later, timings.decode);
        text += &format!(
            "; {later} tokens in {} steps, {rate:.1} tokens/s",
            timings.decode_steps
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use kiln_runtime::generate::Finish;

    use super::*;

    #[test]
    fn a_sequence_that_ended_early_makes_no_tokens() {
        let generated = |n: usize| Generated {
            tokens: vec![0; n],
            finish: Finish::Stop,
        };
        let timings = Timings {
            prefill: Duration::from_secs(2),
            decode: Duration::from_secs(3),
            prompt_tokens: 12,
            decode_steps: 9,
        };
        // Ten tokens and four, of which the first came with the prompts.
        assert_eq!(
            speeds(&timings, &[generated(10), generated(4), generated(0)]),
            "12 prompt tokens, 6.0 tokens/s; 12 tokens in 9 steps, 4.0 tokens/s"
        );
        let prompt = Timings {
            decode_steps: 0,
            ..timings
        };
        assert_eq!(
            speeds(&prompt, &[generated(1)]),
            "12 prompt tokens, 6.0 tokens/s"
        );
    }
}
