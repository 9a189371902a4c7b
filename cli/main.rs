//! `kiln`: compiles a transformer ahead of time and runs it on any GPU.

mod bench;
mod chat;
mod compile;
mod device;
mod devices;
mod failure;
mod forward;
mod generation;
mod html;
mod hub;
mod interpreter;
mod interrupt;
mod ir;
mod model;
mod out_file;
mod output;
mod printer;
mod progress;
mod run;
mod sampling;
mod stages;
mod stop_text;
mod table;
mod terminal;
mod units;
mod values;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use failure::{EXIT_CODES, Result};

const EXAMPLES: &str = "\
Examples:
  kiln run demo --prompt \"The borrow checker\"
  kiln compile path/to/gpt2 -o gpt2.kiln --dtype f16
  kiln run gpt2.kiln --prompt \"Once upon a time\" --temperature 0.8
  kiln devices";

/// Compiles a transformer ahead of time into a folder of WGSL kernels, packed
/// weights and a launch plan, and runs that folder on any GPU.
#[derive(Parser)]
#[command(name = "kiln", version, about, propagate_version = true)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compile(compile::Args),
    Run(run::Args),
    Chat(chat::Args),
    Forward(forward::Args),
    Ir(ir::Args),
    Bench(bench::Args),
    Devices(devices::Args),
}

fn main() -> ExitCode {
    let began = Instant::now();
    quiet_drivers();
    let cli = Cli::parse();
    interrupt::install();
    match dispatch(cli.command, began) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                output::note(format_args!("error: {message}"));
            }
            failure.code()
        }
    }
}

/// Mesa looks for a Wayland display whenever a Vulkan instance is made, and says
/// `error: XDG_RUNTIME_DIR is invalid` on standard error where there is no desktop.
fn quiet_drivers() {
    const VARIABLE: &str = "XDG_RUNTIME_DIR";
    if cfg!(target_os = "linux") && std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var(VARIABLE, std::env::temp_dir()) };
    }
}

fn dispatch(command: Command, began: Instant) -> Result {
    match command {
        Command::Compile(args) => compile::run(&args),
        Command::Run(args) => run::run(&args, began),
        Command::Chat(args) => chat::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Ir(args) => ir::run(&args),
        Command::Bench(args) => bench::run(&args, began),
        Command::Devices(args) => devices::run(&args),
    }
}
