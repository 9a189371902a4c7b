//! Whether two graphs compute the same, by the reference interpreter in `f64`.

use std::collections::BTreeMap;

use kiln_ir::interp::{HostData, HostTensor, Interpreter, Tensors};
use kiln_ir::{Bindings, DType, Graph, Op, TensorType};

/// The largest difference between two results, relative to the largest element.
const TOLERANCE: f64 = 1e-9;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From -1 to 1, and exactly an `f32`.
    fn real(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, ty: &TensorType, sizes: &Bindings) -> HostTensor<f64> {
        let shape = ty.eval_shape(sizes).unwrap();
        let range = 0..shape.iter().product();
        match ty.dtype {
            DType::F32 => {
                HostTensor::f(shape, range.map(|_| self.real().into()).collect::<Vec<_>>())
            }
            DType::I32 => HostTensor::i32(
                shape,
                range.map(|_| self.below(5) as i32).collect::<Vec<_>>(),
            ),
            DType::Bool => {
                HostTensor::bool(shape, range.map(|_| self.below(2) == 1).collect::<Vec<_>>())
            }
        }
    }
}

/// Says how `after` differs from `before` on random parameters, inputs, states
/// and sizes.
pub fn compare(before: &Graph, after: &Graph, seed: u64) -> Result<(), String> {
    let mut random = Random(seed);
    let mut params = BTreeMap::<String, Vec<f32>>::new();
    for (name, ty) in before.params() {
        let elements = ty.elements().as_const().unwrap();
        // Weights of a size that keeps activations near one.
        params.insert(
            name.to_owned(),
            (0..elements).map(|_| random.real() / 2.0).collect(),
        );
    }
    let run = |graph: &Graph, inputs: &Tensors<f64>, states: &Tensors<f64>, sizes: &Bindings| {
        let interpreter = Interpreter::new(graph, &params).map_err(|e| e.to_string())?;
        let mut states = states.clone();
        let outputs = interpreter
            .run_with(inputs, &mut states, sizes)
            .map_err(|e| e.to_string())?;
        Ok::<_, String>((outputs, states))
    };
    for _ in 0..3 {
        let mut sizes = Bindings::new();
        for symbol in &before.symbols {
            // There may be no past; everything else has at least one element.
            let least = u64::from(symbol.name.name() != "past");
            let size = least + random.below(symbol.max.min(6) + 1 - least);
            sizes.set(symbol.name.name(), size);
        }
        let (mut inputs, mut states) = (Tensors::new(), Tensors::new());
        for (_, value) in before.iter() {
            match &value.op {
                Op::Input { name, ty } => {
                    inputs.insert(name.clone(), random.tensor(ty, &sizes));
                }
                Op::State { name, ty } => {
                    states.insert(name.clone(), random.tensor(ty, &sizes));
                }
                _ => {}
            }
        }
        let wanted = run(before, &inputs, &states, &sizes)?;
        let found = run(after, &inputs, &states, &sizes)?;
        for (wanted, found) in [(wanted.0, found.0), (wanted.1, found.1)] {
            if wanted.len() != found.len() {
                return Err("other outputs or states".to_owned());
            }
            for (name, wanted) in &wanted {
                let found = found
                    .get(name)
                    .ok_or_else(|| format!("`{name}` is missing"))?;
                same(wanted, found).map_err(|e| format!("`{name}` at {sizes:?}: {e}"))?;
            }
        }
    }
    Ok(())
}

fn same(wanted: &HostTensor<f64>, found: &HostTensor<f64>) -> Result<(), String> {
    if wanted.shape != found.shape {
        return Err(format!("shape {:?}, not {:?}", found.shape, wanted.shape));
    }
    let (HostData::F(wanted), HostData::F(found)) = (&wanted.data, &found.data) else {
        return if wanted == found {
            Ok(())
        } else {
            Err(format!("{found:?}, not {wanted:?}"))
        };
    };
    let largest = wanted.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    for (i, (wanted, found)) in wanted.iter().zip(found).enumerate() {
        let equal = wanted.to_bits() == found.to_bits();
        let close = (wanted - found).abs() <= TOLERANCE * largest;
        if !(equal || close && wanted.is_finite()) {
            return Err(format!("element {i} is {found}, not {wanted}"));
        }
    }
    Ok(())
}
