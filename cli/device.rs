//! What a model runs on: an adapter, or the interpreter.

use kiln_runtime::{Adapter, Artifact, Error, LoadOptions, Loss, Model, Session};

use crate::failure::{Failure, Result};
use crate::output::warn;
use crate::progress::LoadBars;

/// What `--device` calls the interpreter.
pub const CPU: &str = "cpu";

/// Where to run.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// Adapter to run on: its number or a part of its name as `kiln devices`
    /// lists them, or `cpu` for the reference interpreter, which needs no driver
    /// and is slow. Default: the most capable adapter
    #[arg(long, value_name = "N|NAME|cpu")]
    pub device: Option<String>,

    /// Set of kernels to use: `coop`, `coop-wave64` or `coop-8x8`, by the cooperative
    /// matrices of the adapter, `subgroup`, `base`, and for adapters that are a CPU
    /// `software-subgroup` or `software`. Default: the best that the adapter can run
    #[arg(long, value_name = "NAME")]
    pub tier: Option<String>,

    /// Never run several kernels of a layer in one launch, which is faster for single
    /// tokens but, on a GPU, more than drivers promise
    #[arg(long)]
    pub no_join: bool,

    /// Do not measure which of several kernels for the same is the fastest, as is done the
    /// first time that a model is loaded on a device and kept for later; take the usual one
    #[arg(long)]
    pub no_tune: bool,
}

/// What to run on.
pub enum Target {
    /// A graphics adapter.
    Adapter(Box<Adapter>),
    /// The reference interpreter.
    Interpreter,
}

impl DeviceArgs {
    /// The target that the arguments name. Without any adapter and any wish it is
    /// the interpreter, with a warning.
    pub fn select(&self) -> Result<Target> {
        if self.device.as_deref() == Some(CPU) {
            return self.interpreter();
        }
        match Adapter::select(self.device.as_deref()) {
            Ok(adapter) => Ok(Target::Adapter(Box::new(adapter))),
            Err(Error::NoAdapter) if self.device.is_none() => {
                warn(NO_DRIVER);
                self.interpreter()
            }
            Err(error) => Err(error.into()),
        }
    }

    fn interpreter(&self) -> Result<Target> {
        match &self.tier {
            None => Ok(Target::Interpreter),
            Some(tier) => Err(Failure::usage(format!(
                "`--tier {tier}` chooses an adapter's kernels; the interpreter, which runs here, has none"
            ))),
        }
    }

    /// How to load entries of an artifact.
    pub fn options(&self, entries: &[&str]) -> LoadOptions {
        let options = LoadOptions {
            tier: self.tier.clone(),
            join: !self.no_join,
            tune: !self.no_tune,
            ..LoadOptions::default()
        };
        options.entries(entries)
    }

    /// Loads an artifact on an adapter.
    pub fn load(
        &self,
        adapter: &Adapter,
        artifact: &Artifact,
        options: &LoadOptions,
    ) -> Result<Model> {
        let bars = LoadBars::new();
        let model = Model::open(adapter, artifact, options, &mut |p| bars.set(p))?;
        drop(bars);
        if let Some(Loss { reason, joined }) = model.loss() {
            let (less, flags) = match joined {
                true => ("measuring", "`--no-tune` begins"),
                false => (
                    "measuring or launches of several kernels",
                    "`--no-tune --no-join` begin",
                ),
            };
            warn(format!(
                "the device was lost ({reason}) when the model was loaded, so that was repeated \
                 without {less}; {flags} with that"
            ));
        }
        Ok(model)
    }
}

/// Says so where a session gave up launches of several kernels.
pub fn warn_of_separate_launches(model: &Model, session: &Session<'_>) {
    if model.joins() && !session.joins() {
        warn(
            "a launch of several kernels failed, so each kernel became a launch; `--no-join` \
             begins with that, and other work on the device may be the reason",
        );
    }
}

/// How to get a driver, in one line.
pub const NO_DRIVER: &str = "no graphics adapter was found, so the slow reference interpreter runs; \
    for a driver, install your GPU's Vulkan driver, or the software one (on Debian and Ubuntu: \
    `apt-get install mesa-vulkan-drivers`)";
