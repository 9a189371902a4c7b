//! How tokens are chosen, on the command line.

use kiln_runtime::sampling::SamplingOptions;

use crate::failure::{Failure, Result};
use crate::output::warn;
use crate::values::{number, whole};

/// How tokens are chosen.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 chooses the most likely token; 1 draws with the model's probabilities; higher
    /// values make unlikely tokens more likely. Default: 0, or in `chat` the model's own
    #[arg(long, value_name = "F")]
    #[arg(value_parser = number, allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Draw only from the N most likely tokens; 0 draws from all. Default: 0,
    /// or in `chat` the model's own
    #[arg(long, value_name = "N")]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    top_k: Option<usize>,

    /// Draw only from the most likely tokens that together have this probability.
    /// Default: 1, or in `chat` the model's own
    #[arg(long, value_name = "F")]
    #[arg(value_parser = number, allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Draw only from tokens at least this fraction as likely as the most likely one.
    /// Default: 0, or in `chat` the model's own
    #[arg(long, value_name = "F")]
    #[arg(value_parser = number, allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Penalise tokens that have already occurred, by this factor; 1 changes nothing.
    /// Default: 1, or in `chat` the model's own
    #[arg(long, value_name = "F")]
    #[arg(value_parser = number, allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// Seed of the random number generator; the same seed gives the same text.
    /// Default: 0, or in `chat` another each time
    #[arg(long, value_name = "N")]
    #[arg(value_parser = whole::<u64>, allow_negative_numbers = true)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// What is given, and `usual` where nothing is. Says which options change nothing,
    /// where no token is drawn.
    pub fn over(&self, usual: SamplingOptions) -> Result<SamplingOptions> {
        let options = SamplingOptions {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            seed: self.seed.unwrap_or(usual.seed),
        };
        if let Err(error) = options.validate() {
            return Err(Failure::usage(error.to_string()));
        }
        if options.temperature == 0.0 {
            self.warn_of_unused();
        }
        Ok(options)
    }

    fn warn_of_unused(&self) {
        let given = [
            ("`--top-k`", self.top_k.is_some_and(|k| k != 0)),
            ("`--top-p`", self.top_p.is_some_and(|p| p != 1.0)),
            ("`--min-p`", self.min_p.is_some_and(|p| p != 0.0)),
            ("`--seed`", self.seed.is_some_and(|seed| seed != 0)),
        ];
        let given = given.into_iter().filter(|(_, is_given)| *is_given);
        let given: Vec<&str> = given.map(|(option, _)| option).collect();
        if !given.is_empty() {
            warn(format_args!(
                "without a `--temperature` above 0 the most likely token is always chosen, so this is \
                 ignored: {}",
                given.join(", ")
            ));
        }
    }
}
