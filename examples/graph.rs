//! A graph built by hand: exclusive or, as two linear layers. It is compiled,
//! written as an artifact, run on an adapter, and held against the reference
//! interpreter.
//!
//! ```sh
//! cargo run --example graph
//! ```
#![allow(
    clippy::print_stdout,
    reason = "an example prints what it has computed"
)]

use std::collections::BTreeMap;
use std::error::Error;

use kiln_codegen::{CompileOptions, compile};
use kiln_ir::interp::{self, HostTensor};
use kiln_ir::plan::ModelInfo;
use kiln_ir::{Bindings, DType, Graph, GraphBuilder, GraphError, ValueId};
use kiln_runtime::{Adapter, Artifact, LoadOptions, Model, RunOptions};

/// `relu(x W1^T + b) W2^T`, for up to 64 rows at a time.
fn network() -> Result<Graph, GraphError> {
    let mut g = GraphBuilder::new("xor");
    let rows = g.symbol("rows", 64)?;
    let x = g.input("x", DType::F32, [rows, 2.into()])?;
    let bias = g.param("hidden.bias", [2u64])?;
    let hidden = linear(&mut g, "hidden", x, [2, 2])?;
    let hidden = g.add(hidden, bias)?;
    let zero = g.f32(0.0)?;
    let hidden = g.max(hidden, zero)?;
    let y = linear(&mut g, "output", hidden, [1, 2])?;
    g.output("y", y)?;
    Ok(g.finish())
}

/// `x W^T`, where `W` is `[out, in]`, the way checkpoints store it.
fn linear(
    g: &mut GraphBuilder,
    name: &str,
    x: ValueId,
    shape: [u64; 2],
) -> Result<ValueId, GraphError> {
    g.scope(name, |g| {
        let weight = g.param("weight", shape)?;
        let weight = g.transpose(weight, &[1, 0])?;
        g.matmul(x, weight)
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let graph = network()?;
    print!("{graph}");

    // a xor b = relu(a + b) - 2 relu(a + b - 1)
    let params = BTreeMap::from([
        ("hidden.weight".to_owned(), vec![1.0, 1.0, 1.0, 1.0]),
        ("hidden.bias".to_owned(), vec![0.0, -1.0]),
        ("output.weight".to_owned(), vec![1.0, -2.0]),
    ]);

    // Compiling needs no adapter.
    let compiled = compile(
        std::slice::from_ref(&graph),
        ModelInfo::of("xor"),
        &CompileOptions::default(),
        &mut |_entry, pass, _graph, changed| {
            if changed.any() {
                println!("rewrites by {pass}: {}", changed.rewrites);
            }
        },
    )?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("xor.kiln");
    compiled.write(&path, &params, &BTreeMap::new(), &mut |_, _| {})?;

    // From here on, another machine could go on with the folder.
    let artifact = Artifact::open(&path)?;
    let adapter = Adapter::select(None)?;
    let model = Model::open(&adapter, &artifact, &LoadOptions::default(), &mut |_| {})?;
    println!("on {adapter}, tier {}", model.tier());

    let x: [f32; 8] = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0];
    let outputs = model.run_collect(
        "xor",
        &[("x", bytemuck::cast_slice(&x))],
        &Bindings::new().with("rows", 4),
        &RunOptions::default(),
    )?;
    let y = outputs[0].f32().ok_or("`y` is not real")?;

    // What every op means is defined by the interpreter, here in f64.
    let inputs = BTreeMap::from([("x".to_owned(), HostTensor::f([4, 2], x.map(f64::from)))]);
    let reference = interp::run::<f64>(&graph, &params, &inputs, &mut BTreeMap::new())?;
    let reference = reference["y"].as_f().ok_or("`y` is not real")?;

    for ((x, y), reference) in x.chunks(2).zip(y).zip(reference) {
        println!("{} xor {} = {y}", x[0], x[1]);
        if (f64::from(*y) - reference).abs() > 1e-6 {
            return Err(format!("the interpreter says {reference}").into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs() -> Result<(), Box<dyn std::error::Error>> {
        super::main()
    }
}
