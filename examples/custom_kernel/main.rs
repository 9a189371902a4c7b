//! A kernel of one's own bound to an op: softmax as one writes it down, which reads
//! its rows three times. It is compiled, held against the reference interpreter, and
//! timed beside kiln's own, which reads them twice.
//!
//! A body computes by hooks (`load`, `store`) that the compiler writes for it, so
//! it needs to know neither the bindings nor the shapes; the README of `shaders/`
//! lists the hooks of each archetype. CPU adapters and GPUs have archetypes of
//! their own for softmax, so there are two bodies.
//!
//! ```sh
//! cargo run --example custom_kernel
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
use kiln_ir::{Bindings, DType, Graph, GraphBuilder, GraphError};
use kiln_runtime::{Adapter, Artifact, LoadOptions, Model, RunOptions};

const ROWS: usize = 50;
const COLUMNS: usize = 1000;

/// The relative distance that kiln promises of `f32`.
const PROMISED: f64 = 2e-5;

fn graph() -> Result<Graph, GraphError> {
    let mut g = GraphBuilder::new("softmax");
    let x = g.input("x", DType::F32, [ROWS, COLUMNS])?;
    let y = g.softmax(x, 1)?;
    g.output("y", y)?;
    Ok(g.finish())
}

/// The graph with these bodies in place of kiln's, on the adapter.
fn open(
    graph: &Graph,
    bodies: &[(&str, &str)],
    adapter: &Adapter,
    tier: Option<&str>,
) -> Result<Model, Box<dyn Error>> {
    let bodies = bodies.iter();
    let bodies = bodies.map(|(archetype, text)| ((*archetype).to_owned(), (*text).to_owned()));
    let options = CompileOptions {
        bodies: bodies.collect(),
        ..CompileOptions::default()
    };
    let (graphs, info) = (std::slice::from_ref(graph), ModelInfo::of("softmax"));
    let compiled = compile(graphs, info, &options, &mut |_, _, _, _| {})?;
    // A graph without parameters has no weights: nothing need be written.
    let weights = Box::new(BTreeMap::<String, Vec<u8>>::new());
    let (plan, kernels) = (compiled.plan, compiled.kernels);
    let artifact = Artifact::from_parts(plan, kernels, compiled.graphs, BTreeMap::new(), weights)?;
    let options = LoadOptions {
        tier: tier.map(str::to_owned),
        ..LoadOptions::default()
    };
    Ok(Model::open(adapter, &artifact, &options, &mut |_| {})?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let graph = graph()?;
    let own = [
        ("softmax", include_str!("softmax.wgsl")),
        ("softmax_workgroup", include_str!("softmax_workgroup.wgsl")),
    ];

    let x: Vec<f32> = (0..ROWS * COLUMNS)
        .map(|i| 8.0 * (i as f32 * 0.37).sin())
        .collect();
    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let inputs = BTreeMap::from([("x".to_owned(), HostTensor::f([ROWS, COLUMNS], wide))]);
    let no_params = BTreeMap::<String, Vec<f32>>::new();
    let reference = interp::run::<f64>(&graph, &no_params, &inputs, &mut BTreeMap::new())?;
    let reference = reference["y"].as_f().ok_or("`y` is not real")?;

    let adapter = Adapter::select(None)?;
    println!("softmax of {ROWS} rows of {COLUMNS} on {adapter}");
    // The tier that suits the adapter, and the one that runs everywhere.
    for (tier, bodies) in [
        (None, &[][..]),
        (None, &own[..]),
        (Some("base"), &[][..]),
        (Some("base"), &own[..]),
    ] {
        let model = open(&graph, bodies, &adapter, tier)?;
        let inputs = [("x", bytemuck::cast_slice(&x))];
        let sizes = Bindings::new();
        let outputs = model.run_collect("softmax", &inputs, &sizes, &RunOptions::default())?;
        let y = outputs[0].f32().ok_or("`y` is not real")?;
        let square = |sum: f64, v: f64| sum + v * v;
        let error = y.iter().zip(reference).map(|(y, r)| f64::from(*y) - r);
        let distance = error.fold(0.0, square) / reference.iter().copied().fold(0.0, square);
        let distance = distance.sqrt();

        // The first run has compiled the kernel, where drivers put that off.
        let profile = model.profile_entry("softmax", &inputs, &sizes)?;
        let launch = profile.launches.first().ok_or("nothing was launched")?;
        println!(
            "{:>8}, {:14} {:7.1} µs, {distance:.1e} from the interpreter",
            model.tier(),
            if bodies.is_empty() {
                "kiln's own"
            } else {
                "three readings"
            },
            launch.ns / 1e3,
        );
        if distance > PROMISED {
            return Err("the numbers are not the interpreter's".into());
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
