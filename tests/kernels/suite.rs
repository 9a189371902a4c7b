//! Small graphs, lowered as they are and run at many sizes, on every tier of an emulated
//! device and on tiers of the one at hand, against the interpreter in `f64`.

use std::collections::BTreeMap;

use kiln_codegen::{CompileOptions, Compiled, lower};
use kiln_emulator::{On, Program};
use kiln_ir::interp::{HostData, HostTensor, Interpreter, Tensors};
use kiln_ir::plan::ModelInfo;
use kiln_ir::{Bindings, DType, Graph, Packing};
use kiln_runtime::{Error, Model, Output, OutputData, RunOptions};

use crate::common::fixtures::distance;
use crate::common::{F32, NATIVE, everything, has_matrices, in_memory, try_open};

/// Ids that input `ids` holds: some lie outside a table of as many rows as this.
pub const IDS: i32 = 37;

/// How outputs are called whose values do not matter, if they are finite.
pub const UNUSED: &str = "unused_";

/// Graphs of different names, compiled together, and the sizes to run each at.
pub struct Suite {
    options: CompileOptions,
    graphs: Vec<(Graph, Vec<Bindings>)>,
    /// How far results may be from what is wanted, over all elements.
    tolerance: f64,
}

impl Suite {
    pub fn new(packing: Packing) -> Self {
        Suite {
            options: CompileOptions {
                packing,
                ..CompileOptions::default()
            },
            graphs: Vec::new(),
            tolerance: F32,
        }
    }

    /// Has results be only so near to what is wanted.
    pub fn within(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Has bindings hold so many bytes.
    pub fn with_bindings_of(mut self, bytes: u64) -> Self {
        self.options.binding_limit = bytes;
        self
    }

    pub fn add(&mut self, graph: Graph, sizes: impl IntoIterator<Item = Bindings>) {
        self.graphs.push((graph, sizes.into_iter().collect()));
    }

    /// Compiled for `tiers`, or for those that devices are known to want.
    pub fn compile(&self, tiers: Option<&[&str]>) -> Compiled {
        let graphs: Vec<Graph> = self.graphs.iter().map(|(graph, _)| graph.clone()).collect();
        let info = ModelInfo {
            max_context: 1 << 20,
            ..ModelInfo::of("test")
        };
        let tiers = tiers.map(|tiers| tiers.iter().map(|t| (*t).to_owned()).collect());
        let options = CompileOptions {
            tiers,
            ..self.options.clone()
        };
        lower(&graphs, &graphs, info, &options).unwrap()
    }

    /// The tier of the native device, one of so many, that each of many graphs is dealt to: as
    /// many to each, drawn anew for every packing. None are dealt if they are few, if all are
    /// to run everywhere, or if the device has none of the tiers.
    fn dealt(&self, tiers: usize) -> BTreeMap<String, usize> {
        if self.graphs.len() <= FEW || everything() {
            return BTreeMap::new();
        }
        let packing = self.options.packing.name();
        let names = self.graphs.iter().map(|(graph, _)| graph.name.clone());
        let mut drawn: Vec<(f32, String)> = names
            .map(|name| (noise(&format!("{name} in {packing}"), 1)[0], name))
            .collect();
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
        let names = drawn.into_iter().map(|(_, name)| name);
        names.zip((0..tiers).cycle()).collect()
    }

    /// Runs every graph at every size: on an emulated device on each of `tiers`, and on the
    /// native back end's on those of them that it has, of which many graphs take one each.
    pub fn run(&self, tiers: &[&str]) {
        let mut params = BTreeMap::new();
        for (name, ty) in self.graphs.iter().flat_map(|(graph, _)| graph.params()) {
            let elements = ty.elements().as_const().unwrap() as usize;
            params.insert(name.to_owned(), noise(name, elements));
        }
        let compiled = self.compile(Some(tiers));
        let artifact = in_memory(compiled.clone(), &params);

        // What every tier has to give, of the weights as they were rounded.
        let mut wanted = Vec::new();
        for (graph, sizes) in &self.graphs {
            let interpreter = Interpreter::<f64>::new(graph, &artifact).unwrap();
            for sizes in sizes {
                let inputs = inputs(graph, sizes);
                let wide = inputs
                    .iter()
                    .map(|(name, x)| (name.clone(), widen(x)))
                    .collect();
                let outputs = interpreter.run_with(&wide, &mut Tensors::new(), sizes);
                wanted.push((graph, sizes, inputs, outputs.unwrap()));
            }
        }
        let mut wrong = Vec::new();
        let mut runs: Vec<(String, Run<'_>)> = Vec::new();
        for tier in tiers {
            let model = match try_open(NATIVE, tier, &artifact) {
                Err(Error::TierUnsupported { .. }) if has_matrices(tier) => continue,
                model => model.unwrap_or_else(|error| panic!("tier `{tier}`: {error}")),
            };
            let run = move |graph: &Graph, sizes: &Bindings, inputs: &Tensors<f32>| {
                run(&model, &graph.name, sizes, inputs)
            };
            runs.push(((*tier).to_owned(), Box::new(run)));
        }
        let on_device = runs.len();
        let dealt = self.dealt(on_device);
        for tier in tiers {
            let weight = |name: &str| compiled.weight(name, &params).unwrap();
            let on = On {
                tier,
                join: false,
                subgroup: 32,
                across: 5,
            };
            let program = Program::new(&compiled.plan, &compiled.kernels, on, weight);
            let mut program = program.unwrap();
            let run = move |graph: &Graph, sizes: &Bindings, inputs: &Tensors<f32>| {
                emulate(&mut program, graph, sizes, inputs)
            };
            runs.push((format!("{tier}, emulated"), Box::new(run)));
        }
        for (at, (tier, mut run)) in runs.into_iter().enumerate() {
            for (graph, sizes, inputs, wanted) in &wanted {
                if at < on_device && dealt.get(&graph.name).is_some_and(|tier| *tier != at) {
                    continue;
                }
                let found = run(graph, sizes, inputs);
                assert_eq!(found.len(), wanted.len(), "{}", graph.name);
                for output in found {
                    if let Some(how) = differs(&output, &wanted[&output.name], self.tolerance) {
                        let sizes: Vec<String> =
                            sizes.iter().map(|(s, n)| format!("{s}={n}")).collect();
                        let (name, sizes) = (&output.name, sizes.join(" "));
                        wrong.push(format!("{tier}: {} `{name}` at {sizes}: {how}", graph.name));
                    }
                }
            }
        }
        let count = wrong.len();
        wrong.truncate(20);
        assert!(
            count == 0,
            "{count} results are wrong:\n{}",
            wrong.join("\n")
        );
    }
}

/// The most graphs of a suite that run on every tier of a device.
const FEW: usize = 3;

/// The elements of inputs as a device holds them.
fn words(inputs: &Tensors<f32>) -> impl Iterator<Item = (&str, &[u32])> {
    inputs.iter().map(|(name, tensor)| {
        let words: &[u32] = match &tensor.data {
            HostData::F(values) => bytemuck::cast_slice(values),
            HostData::I32(values) => bytemuck::cast_slice(values),
            HostData::Bool(_) => panic!("no truth values are taken in"),
        };
        (name.as_str(), words)
    })
}

/// Runs a graph at some sizes.
type Run<'a> = Box<dyn FnMut(&Graph, &Bindings, &Tensors<f32>) -> Vec<Output> + 'a>;

fn emulate(
    program: &mut Program<'_>,
    graph: &Graph,
    sizes: &Bindings,
    inputs: &Tensors<f32>,
) -> Vec<Output> {
    let words: Vec<(&str, &[u32])> = words(inputs).collect();
    let session = program.session(&graph.name, sizes, 0).unwrap();
    let found = program.run(&session, &words, sizes);
    let mut found = found.unwrap_or_else(|error| panic!("{} at {sizes:?}: {error}", graph.name));
    let outputs = graph.outputs().iter().map(|(name, id)| {
        let words = found.remove(name).unwrap();
        let ty = graph.ty(*id);
        Output {
            name: name.clone(),
            shape: ty.eval_shape(sizes).unwrap(),
            data: match ty.dtype {
                DType::F32 => OutputData::F32(bytemuck::cast_vec(words)),
                DType::I32 | DType::Bool => OutputData::I32(bytemuck::cast_vec(words)),
            },
        }
    });
    outputs.collect()
}

fn run(model: &Model, entry: &str, sizes: &Bindings, inputs: &Tensors<f32>) -> Vec<Output> {
    let bytes = words(inputs).map(|(name, words)| (name, bytemuck::cast_slice(words)));
    let bytes: Vec<(&str, &[u8])> = bytes.collect();
    let outputs = model.run_collect(entry, &bytes, sizes, &RunOptions::default());
    outputs.unwrap_or_else(|error| panic!("{entry} at {sizes:?}: {error}"))
}

/// How an output differs from what it should be, if it does.
fn differs(found: &Output, wanted: &HostTensor<f64>, tolerance: f64) -> Option<String> {
    if found.shape != wanted.shape {
        return Some(format!(
            "the shape is {:?}, not {:?}",
            found.shape, wanted.shape
        ));
    }
    match (&found.data, &wanted.data) {
        (OutputData::F32(values), _) if found.name.starts_with(UNUSED) => {
            let finite = values.iter().all(|x| x.is_finite());
            (!finite).then(|| "it is not finite".to_owned())
        }
        (OutputData::F32(found), HostData::F(wanted)) => {
            if wanted.iter().all(|x| *x == 0.0) {
                let zero = found.iter().all(|x| *x == 0.0);
                return (!zero).then(|| "it is not zero".to_owned());
            }
            let apart = distance(found, wanted);
            // A NaN is not below anything.
            let close = apart <= tolerance;
            (!close).then(|| format!("{apart:.2e} apart"))
        }
        (OutputData::I32(found), HostData::I32(wanted)) => {
            (found != wanted).then(|| format!("{found:?}, not {wanted:?}"))
        }
        (OutputData::I32(found), HostData::Bool(wanted)) => {
            let same = found
                .iter()
                .copied()
                .eq(wanted.iter().map(|b| i32::from(*b)));
            (!same).then(|| format!("{found:?}, not {wanted:?}"))
        }
        _ => Some("it has another element type".to_owned()),
    }
}

/// Numbers between -1 and 1 that look random: the same for the same
/// name.
pub fn noise(name: &str, count: usize) -> Vec<f32> {
    // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
    let mut state = name.bytes().fold(count as u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut real = || (next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..count).map(|_| real()).collect()
}

fn inputs(graph: &Graph, sizes: &Bindings) -> Tensors<f32> {
    let tensors = graph.inputs().map(|(name, ty)| {
        let shape = ty.eval_shape(sizes).unwrap();
        let values = noise(name, shape.iter().product());
        let tensor = match ty.dtype {
            DType::F32 => HostTensor::f(shape, values),
            DType::I32 => {
                let most = match name {
                    // Fewer than the keys there are, so that each query sees one.
                    "start" => keys(graph, sizes) - 1,
                    _ => IDS + 2,
                };
                let least = if name == "start" { 0 } else { -2 };
                let span = (most - least) as f32;
                let values = values
                    .iter()
                    .map(|x| least + ((x + 1.0) / 2.0 * span).round() as i32);
                HostTensor::i32(shape, values.collect::<Vec<i32>>())
            }
            DType::Bool => panic!("no truth values are taken in"),
        };
        (name.to_owned(), tensor)
    });
    tensors.collect()
}

fn keys(graph: &Graph, sizes: &Bindings) -> i32 {
    let (_, k) = graph.inputs().find(|(name, _)| *name == "k").unwrap();
    k.eval_shape(sizes).unwrap()[1] as i32
}

fn widen(tensor: &HostTensor<f32>) -> HostTensor<f64> {
    let data = match &tensor.data {
        HostData::F(values) => HostData::F(values.iter().map(|x| f64::from(*x)).collect()),
        HostData::I32(values) => HostData::I32(values.clone()),
        HostData::Bool(values) => HostData::Bool(values.clone()),
    };
    HostTensor {
        shape: tensor.shape.clone(),
        data,
    }
}
