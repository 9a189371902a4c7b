//! What the device can do at best, by a copy and a matrix product of kiln's own, and a
//! copy of its driver's.

use std::collections::BTreeMap;

use kiln_codegen::{CompileOptions, compile};
use kiln_ir::plan::ModelInfo;
use kiln_ir::{Bindings, DType, Graph, GraphBuilder, Packing};
use kiln_runtime::{Adapter, Artifact, LoadOptions, Model, WeightFn};
use serde::Serialize;

use crate::failure::Result;

/// What launches are held against.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Bytes read and written.
    pub bytes_per_s: f64,
    /// Operations of a large matrix product.
    pub flops_per_s: f64,
}

impl Ceilings {
    /// How near a launch comes to the ceiling that is nearer.
    pub fn share(&self, bytes_per_s: f64, flops_per_s: f64) -> f64 {
        (bytes_per_s / self.bytes_per_s).max(flops_per_s / self.flops_per_s)
    }
}

/// The copy's elements, 32 MB, which is beyond most caches.
const COPY: usize = 8 << 20;
/// The matrix product's rows, columns and inner size.
const MATRIX: usize = 1024;
/// The best of so many runs counts.
const RUNS: usize = 5;

/// Measures both on an adapter, with the kernels of `tier` and weights in
/// `packing`.
pub fn measure(adapter: &Adapter, tier: &str, packing: Packing) -> Result<Ceilings> {
    let graphs = [copy()?, product()?];
    let info = ModelInfo::of("ceilings");
    let options = CompileOptions {
        packing,
        tiers: Some(vec![tier.to_owned()]),
        ..CompileOptions::default()
    };
    let compiled = compile(&graphs, info, &options, &mut |_, _, _, _| {})?;
    let weight: Vec<f32> = (0..MATRIX * MATRIX)
        .map(|i| (i % 17) as f32 / 17.0 - 0.5)
        .collect();
    let params = BTreeMap::from([("w".to_owned(), weight)]);
    let (plan, kernels) = (compiled.plan.clone(), compiled.kernels.clone());
    let weights = WeightFn(move |name: &str| Ok(compiled.weight(name, &params)?));
    let artifact = Artifact::from_parts(
        plan,
        kernels,
        BTreeMap::new(),
        BTreeMap::new(),
        Box::new(weights),
    )?;
    let options = LoadOptions {
        tier: Some(tier.to_owned()),
        ..LoadOptions::default()
    };
    let model = Model::open(adapter, &artifact, &options, &mut |_| {})?;
    // On a CPU a kernel that goes through buffers is far from what memory can do.
    let copied = best(&model, "copy", COPY, |l| l.bytes)?.max(model.device().copy_rate()?);
    let multiplied = best(&model, "product", MATRIX * MATRIX, |l| l.flops)?;
    Ok(Ceilings {
        bytes_per_s: copied,
        flops_per_s: multiplied,
    })
}

/// `y = x + 1`: a graph whose output is its input would be no launch at all.
fn copy() -> Result<Graph> {
    let mut g = GraphBuilder::new("copy");
    let x = g.input("x", DType::F32, [COPY as u64])?;
    let one = g.f32(1.0)?;
    let y = g.add(x, one)?;
    g.output("y", y)?;
    Ok(g.finish())
}

/// `(x + 1) w`: what a kernel hands on may be read faster than an input.
fn product() -> Result<Graph> {
    let size = MATRIX as u64;
    let mut g = GraphBuilder::new("product");
    let x = g.input("x", DType::F32, [size, size])?;
    let one = g.f32(1.0)?;
    let x = g.add(x, one)?;
    let w = g.param("w", [size, size])?;
    let w = g.transpose(w, &[1, 0])?;
    let y = g.matmul(x, w)?;
    g.output("y", y)?;
    Ok(g.finish())
}

/// The highest rate of a launch of an entry, by what `amount` counts.
fn best(
    model: &Model,
    entry: &str,
    elements: usize,
    amount: impl Fn(&kiln_runtime::LaunchTime) -> u64,
) -> Result<f64> {
    let input = vec![0u8; elements * 4];
    let mut best = 0.0f64;
    for _ in 0..RUNS {
        let profile = model.profile_entry(entry, &[("x", &input)], &Bindings::new())?;
        for launch in &profile.launches {
            best = best.max(amount(launch) as f64 / (launch.ns.max(1.0) * 1e-9));
        }
    }
    Ok(best)
}
