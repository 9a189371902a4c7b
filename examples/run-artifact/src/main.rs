//! Continues a prompt with a compiled artifact: no compiler, no checkpoint, and
//! no crate but kiln's runtime. Tokens go in and come out as ids.
//!
//! ```sh
//! cargo run --bin kiln -- compile demo -o demo.kiln
//! cargo run -p run-artifact -- demo.kiln 54 104 101
//! ```
#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::ops::ControlFlow;
use std::path::Path;

use kiln_runtime::generate::{GenerateOptions, generate};
use kiln_runtime::{Adapter, Artifact, LoadOptions, Model, Session};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args
        .next()
        .ok_or("usage: run-artifact ARTIFACT.kiln ID...")?;
    let prompt = args.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;

    let artifact = Artifact::open(Path::new(&path))?;
    let adapter = Adapter::select(None)?;
    let options = LoadOptions::default().entries(&["step"]);
    let model = Model::open(&adapter, &artifact, &options, &mut |_| {})?;
    let mut session = Session::new(&model, 1, artifact.plan().model.max_context)?;
    let options = GenerateOptions {
        max_new_tokens: 16,
        ..GenerateOptions::default()
    };
    generate(&mut session, &[prompt], &options, &mut |token| {
        println!("{}", token.id);
        ControlFlow::Continue(())
    })?;
    Ok(())
}
