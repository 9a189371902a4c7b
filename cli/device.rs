//! What a model runs on: an adapter, or the interpreter.

use clap::builder::NonEmptyStringValueParser;
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
    /// Device to run on: its number or a part of its name, as `kiln devices` lists
    /// them, or `cpu` for the reference interpreter, which needs no driver and is
    /// slow. Default: the most capable adapter
    #[arg(long, value_name = "N|NAME|cpu", value_parser = NonEmptyStringValueParser::new())]
    pub device: Option<String>,

    /// Set of kernels to use: `base` (any adapter), `subgroup` (subgroup operations);
    /// with weights in f16, q8 or q4 `coop`, `coop-wave64` or `coop-8x8` (the
    /// cooperative matrices of NVIDIA, AMD and Apple GPUs); on software drivers
    /// `software` or `software-subgroup`. Default: the best that the adapter can run
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub tier: Option<String>,

    /// Launch every kernel separately: running a layer in one launch is faster for
    /// single tokens but, on a GPU, relies on behaviour that drivers do not guarantee
    #[arg(long)]
    pub no_join: bool,

    /// Use the default kernels instead of timing the alternatives (done the first
    /// time a model is loaded on a device, then kept)
    #[arg(long)]
    pub no_tune: bool,

    /// Leave a software driver's threads to the system's scheduler instead of giving each
    /// a processor (Linux): for machines that do other work at the same time
    #[arg(long)]
    pub no_pin: bool,
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
        if self.names_interpreter() {
            return self.interpreter();
        }
        match self.find() {
            Ok(adapter) => Ok(Target::Adapter(Box::new(adapter))),
            Err(Error::NoAdapter) if self.device.is_none() => {
                warn(format_args!(
                    "{NO_ADAPTER}, so the slow reference interpreter runs; {GET_DRIVER}"
                ));
                self.interpreter()
            }
            Err(error) => Err(unless_there(error)),
        }
    }

    /// The adapter that the arguments name, for what the interpreter cannot do.
    pub fn adapter(&self, what: &str) -> Result<Adapter> {
        if self.names_interpreter() {
            return Err(Failure::failed(format!(
                "{what} an adapter, which the reference interpreter is not; `kiln devices` lists \
                 the adapters"
            )));
        }
        self.find().map_err(|error| match error {
            Error::NoAdapter => {
                Failure::failed(format!("{what} an adapter, and {NO_ADAPTER}; {GET_DRIVER}"))
            }
            error => unless_there(error),
        })
    }

    fn find(&self) -> std::result::Result<Adapter, Error> {
        Adapter::select(self.device.as_deref())
    }

    fn names_interpreter(&self) -> bool {
        let name = self.device.as_deref().map(str::trim);
        name.is_some_and(|name| name.eq_ignore_ascii_case(CPU))
    }

    fn interpreter(&self) -> Result<Target> {
        match &self.tier {
            None => Ok(Target::Interpreter),
            Some(tier) => Err(Failure::usage(format!(
                "`--tier {tier}` chooses kernels for an adapter, and the reference interpreter runs none"
            ))),
        }
    }

    /// How to load entries of an artifact.
    pub fn options(&self, entries: &[&str]) -> LoadOptions {
        let options = LoadOptions {
            tier: self.tier.clone(),
            join: !self.no_join,
            tune: !self.no_tune,
            pin: !self.no_pin,
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
            let (without, flags) = match joined {
                true => ("timing kernels", "`--no-tune` does"),
                false => (
                    "timing kernels or running several in one launch",
                    "`--no-tune --no-join` do",
                ),
            };
            warn(format_args!(
                "the device was lost ({reason}) while the model was being loaded, so it was loaded \
                 again without {without}, as {flags} from the start"
            ));
        }
        for (tier, reason) in model.refused() {
            warn(format_args!(
                "the kernels of the tier `{tier}` cannot be used here ({reason}), so those of `{}` are, \
                 which may be slower",
                model.tier()
            ));
        }
        let untuned: Vec<&str> = model.untuned().collect();
        if !untuned.is_empty() {
            warn(format_args!(
                "timing kernels failed or was interrupted too often, so the usual ones are used \
                 for some steps ({}); removing the `*.choices.json` files in kiln's cache folder \
                 makes kiln try again",
                untuned.join(", ")
            ));
        }
        Ok(model)
    }
}

/// Says so where a session gave up launches of several kernels.
pub fn warn_of_separate_launches(model: &Model, session: &Session<'_>) {
    if model.joins() && !session.joins() {
        warn(
            "a launch of several kernels failed, perhaps because of other work on the device, so \
             every kernel was launched separately from then on, as `--no-join` does from the start",
        );
    }
}

/// That an adapter is not among those there are, and that the interpreter always is.
fn unless_there(error: Error) -> Failure {
    match error {
        Error::NoSuchAdapter { .. } => {
            Failure::failed(format!("{error}; {CPU}: the reference interpreter"))
        }
        error => error.into(),
    }
}

/// What there is not.
pub const NO_ADAPTER: &str = "no graphics adapter was found";

/// How to get one.
pub const GET_DRIVER: &str = "install your GPU's Vulkan driver, or a software driver (on Debian \
    and Ubuntu: `apt-get install mesa-vulkan-drivers`)";
