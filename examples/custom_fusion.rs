//! A fusion of one's own in the pipeline: a SiLU that is written with `tanh`,
//! as some exporters do, becomes the activation that kiln has, and so goes into
//! the epilogue of the linear layer before it.
//!
//! ```sh
//! cargo run --example custom_fusion
//! ```
#![allow(
    clippy::print_stdout,
    reason = "an example prints what it has computed"
)]

use std::collections::BTreeMap;
use std::error::Error;

use kiln_codegen::{CompileOptions, Compiled, lower};
use kiln_ir::interp::{self, HostTensor};
use kiln_ir::plan::ModelInfo;
use kiln_ir::{
    Activation, BinaryOp, Bindings, DType, Graph, GraphBuilder, GraphError, Op, UnaryOp, ValueId,
};
use kiln_passes::matcher::{Matcher, rewrite};
use kiln_passes::{Changed, Pass, PassError, optimize_with, pipeline};
use kiln_runtime::{Adapter, Artifact, LoadOptions, Model, RunOptions};

/// `x * ((1 + tanh(x/2)) / 2)` is `x / (1 + e^-x)`, because
/// `(1 + tanh(x/2)) / 2` is the logistic function.
struct FuseTanhSilu;

impl Pass for FuseTanhSilu {
    fn name(&self) -> &'static str {
        "fuse_tanh_silu"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let fused = rewrite(graph, tanh_silu, |graph, root, x| {
            // The new value goes by the name of the one that it stands for.
            let source = graph.value(root).source.clone();
            graph.insert_before(root, Op::Activate(Activation::Silu), &[x], &source)
        });
        fused.map_err(|error| PassError::Build {
            pass: self.name(),
            error,
        })
    }
}

/// The `x` of a SiLU that ends in `root`. The matcher takes commutative operands
/// either way round; a value that others use as well keeps the idiom as it is.
fn tanh_silu(m: &Matcher<'_>, root: ValueId) -> Option<ValueId> {
    m.either(root, BinaryOp::Mul).find_map(|(x, logistic)| {
        let (sum, half) = m.scaled(logistic)?;
        let (tanh, one) = m.with_number(sum, BinaryOp::Add)?;
        let argument = m.unary(tanh, UnaryOp::Tanh)?;
        let (scaled, slope) = m.scaled(argument)?;
        let fits = half == 0.5 && one == 1.0 && slope == 0.5 && scaled == x;
        let closed = || m.closed(root, &[logistic, sum, tanh, argument]);
        (fits && m.ty(x) == m.ty(root) && closed()).then_some(x)
    })
}

const IN: usize = 24;
const OUT: usize = 40;

/// A linear layer and the activation.
fn layer() -> Result<Graph, GraphError> {
    let mut g = GraphBuilder::new("layer");
    let rows = g.symbol("rows", 16)?;
    let x = g.input("x", DType::F32, [rows, IN.into()])?;
    let weight = g.param("weight", [OUT, IN])?;
    let bias = g.param("bias", [OUT])?;
    let weight = g.transpose(weight, &[1, 0])?;
    let h = g.matmul(x, weight)?;
    let h = g.add(h, bias)?;

    let (half, one) = (g.f32(0.5)?, g.f32(1.0)?);
    let argument = g.mul(h, half)?;
    let tanh = g.tanh(argument)?;
    let sum = g.add(tanh, one)?;
    let logistic = g.mul(half, sum)?;
    let y = g.mul(h, logistic)?;
    g.output("y", y)?;
    Ok(g.finish())
}

fn compile(graph: &Graph, passes: &[Box<dyn Pass>]) -> Result<Compiled, Box<dyn Error>> {
    let mut optimised = graph.clone();
    optimize_with(passes, &mut optimised, &mut |pass, _graph, changed| {
        if changed.any() {
            println!("  rewrites by {pass}: {}", changed.rewrites);
        }
    })?;
    let (info, options) = (ModelInfo::of("example"), CompileOptions::default());
    let sources = std::slice::from_ref(graph);
    Ok(lower(sources, &[optimised], info, &options)?)
}

/// The kernels that a tier launches for one row.
fn launches<'c>(compiled: &'c Compiled, tier: &str) -> Vec<&'c str> {
    let tier = compiled.plan.tiers.iter().find(|t| t.name == tier);
    let variant = tier.and_then(|t| t.entries["layer"].variants.first());
    let launches = variant.into_iter().flat_map(|v| &v.launches);
    launches.map(|launch| launch.kernel.as_str()).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let graph = layer()?;
    println!("kiln's pipeline:");
    let plain = compile(&graph, &pipeline())?;

    // Before kiln's own activations, of which the tanh would be one.
    println!("with {}:", FuseTanhSilu.name());
    let mut passes = pipeline();
    let place = passes.iter().position(|p| p.name() == "fuse_activation");
    passes.insert(place.unwrap_or(0), Box::new(FuseTanhSilu));
    let fused = compile(&graph, &passes)?;

    let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
    let params = BTreeMap::from([
        ("weight".to_owned(), wave(OUT * IN, 0.7)),
        ("bias".to_owned(), wave(OUT, 0.3)),
    ]);
    let x = wave(3 * IN, 1.1);
    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let inputs = BTreeMap::from([("x".to_owned(), HostTensor::f([3, IN], wide))]);
    let reference = interp::run::<f64>(&graph, &params, &inputs, &mut BTreeMap::new())?;
    let reference = reference["y"].as_f().ok_or("`y` is not real")?;

    let adapter = Adapter::select(None)?;
    let folder = tempfile::tempdir()?;
    for (name, compiled) in [("plain", &plain), ("fused", &fused)] {
        let path = folder.path().join(name);
        compiled.write(&path, &params, &BTreeMap::new(), &mut |_, _| {})?;
        let artifact = Artifact::open(&path)?;
        let model = Model::open(&adapter, &artifact, &LoadOptions::default(), &mut |_| {})?;
        let outputs = model.run_collect(
            "layer",
            &[("x", bytemuck::cast_slice(&x))],
            &Bindings::new().with("rows", 3),
            &RunOptions::default(),
        )?;
        let y = outputs[0].f32().ok_or("`y` is not real")?;
        let error = y.iter().zip(reference).map(|(y, r)| f64::from(*y) - r);
        let error = error.fold(0.0, |worst: f64, e| worst.max(e.abs()));
        let kernels = launches(compiled, model.tier());
        println!("{name}: off by {error:.1e}, launches: {}", kernels.len());
        println!("  {}", kernels.join("\n  "));
        if error > 1e-5 {
            return Err("the numbers are not the interpreter's".into());
        }
        if name == "fused" && kernels.len() != 1 {
            return Err("the activation is not in the linear layer's epilogue".into());
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
