//! The fixtures: checkpoints and what transformers computes from them. Their
//! layout is told in `tests/fixtures/reference.py`.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub mod reference;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_ir::interp::{HostTensor, Interpreter, Real, Tensors, zero_states};
use kiln_ir::{Bindings, Graph};
use kiln_models::random::RandomWeights;
use kiln_models::registry::{EntryOptions, from_config};
use kiln_models::source::{Loaded, open_folder};
use safetensors::{Dtype, SafeTensors};

/// All checkpoints of a family.
pub fn fixtures(family: &str) -> Vec<PathBuf> {
    // The package at the root of the repository includes this file too.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut roots = package.ancestors().map(|dir| dir.join("tests/fixtures"));
    let root = roots.find(|dir| dir.is_dir()).unwrap();
    let mut folders: Vec<PathBuf> = fs::read_dir(root.join(family))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    let least = match family {
        "gpt2" | "llama" => 20,
        _ => 10,
    };
    assert!(folders.len() >= least, "{family}: {folders:?}");
    folders
}

/// One checkpoint of GPT-2's family.
pub fn fixture(name: &str) -> PathBuf {
    fixture_of("gpt2", name)
}

/// One checkpoint of a family.
pub fn fixture_of(family: &str, name: &str) -> PathBuf {
    let mut all = fixtures(family).into_iter();
    all.find(|path| path.ends_with(name)).unwrap()
}

/// A checkpoint, opened, with the tensors that are expected of it.
pub struct Fixture {
    pub name: String,
    pub loaded: Loaded,
    reals: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    ids: BTreeMap<String, (Vec<usize>, Vec<i32>)>,
}

/// Whole sequences and what comes of them.
#[derive(Clone)]
pub struct Case {
    pub label: String,
    pub ids: HostTensor<f32>,
    pub hidden: Vec<f32>,
    pub logits: Option<Vec<f32>>,
    /// Of each layer; empty where none are kept.
    pub attentions: Vec<Vec<f32>>,
}

impl Fixture {
    pub fn open(folder: &Path) -> Self {
        let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut reals, mut ids) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in file.tensors() {
            let words = tensor.data().chunks_exact(4).map(|w| w.try_into().unwrap());
            let shape = tensor.shape().to_vec();
            match tensor.dtype() {
                Dtype::F32 => {
                    reals.insert(name, (shape, words.map(f32::from_le_bytes).collect()));
                }
                Dtype::I32 => {
                    ids.insert(name, (shape, words.map(i32::from_le_bytes).collect()));
                }
                other => panic!("{name} is {other}"),
            }
        }
        Fixture {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            loaded: open_folder(folder).unwrap(),
            reals,
            ids,
        }
    }

    /// A model of random weights, of which nothing is expected.
    pub fn random(config: &str) -> Self {
        let model = from_config(config).unwrap();
        let name = model.family().to_owned();
        Fixture {
            loaded: Loaded {
                origin: name.clone(),
                params: Box::new(RandomWeights::new(model.parameters(), 0)),
                model,
                tokenizer: None,
                chat: Ok(None),
                end_tokens: Vec::new(),
            },
            name,
            reals: BTreeMap::new(),
            ids: BTreeMap::new(),
        }
    }

    /// The graph of an entry, with the maxima that a command would take.
    pub fn graph(&self, entry: &str) -> Graph {
        self.loaded
            .model
            .graph(entry, &EntryOptions::default())
            .unwrap()
    }

    pub fn interpreter<T: Real>(&self, entry: &str) -> Interpreter<'_, T> {
        Interpreter::new(self.graph(entry), &*self.loaded.params).unwrap()
    }

    pub fn cases(&self) -> Vec<Case> {
        let real = |name: String| self.reals.get(&name).map(|(_, values)| values.clone());
        let cases = (0..).map_while(|i| {
            let (shape, ids) = self.ids.get(&format!("case{i}.ids"))?;
            Some(Case {
                label: format!("{} case{i}", self.name),
                ids: HostTensor::i32(shape.clone(), ids.clone()),
                hidden: real(format!("case{i}.hidden")).unwrap(),
                logits: real(format!("case{i}.logits")),
                attentions: (0..)
                    .map_while(|layer| real(format!("case{i}.attentions.{layer}")))
                    .collect(),
            })
        });
        let cases: Vec<Case> = cases.collect();
        assert!(cases.len() >= 2, "{}", self.name);
        cases
    }

    /// Integers of this name, where the fixture has them.
    pub fn integers(&self, name: &str) -> Option<&[i32]> {
        self.ids.get(name).map(|(_, ids)| ids.as_slice())
    }
}

/// Sequences that grow step by step, with their keys and values.
pub struct Session<'i, 'p, T: Real> {
    step: &'i Interpreter<'p, T>,
    start: Vec<i32>,
    states: Tensors<T>,
}

impl<'i, 'p, T: Real> Session<'i, 'p, T> {
    /// Sequences whose first `start` tokens will be padding.
    pub fn new(step: &'i Interpreter<'p, T>, start: Vec<i32>) -> Self {
        let nothing = Bindings::new()
            .with("batch", start.len() as u64)
            .with("past", 0);
        let states = zero_states(step.graph(), &nothing).unwrap();
        assert!(!states.is_empty(), "keys and values are kept");
        Session {
            step,
            start,
            states,
        }
    }

    /// Appends tokens, as many to each sequence; gives the output of the last.
    pub fn append(&mut self, output: &str, tokens: &[Vec<i32>]) -> Vec<Vec<T>> {
        let batch = self.start.len();
        assert_eq!(tokens.len(), batch);
        let inputs = Tensors::from([
            (
                "ids".to_owned(),
                HostTensor::i32([batch, tokens[0].len()], tokens.concat()),
            ),
            (
                "start".to_owned(),
                HostTensor::i32([batch], self.start.clone()),
            ),
        ]);
        let outputs = self.step.run(&inputs, &mut self.states).unwrap();
        assert_eq!(outputs.len(), 1);
        rows(&outputs[output]).map(<[T]>::to_vec).collect()
    }

    /// Appends a prompt and goes on with the likeliest token, `count` times.
    pub fn greedy(&mut self, prompt: &[Vec<i32>], count: usize) -> Vec<Vec<i32>> {
        let mut next = prompt.to_vec();
        let mut tokens = vec![Vec::new(); prompt.len()];
        for _ in 0..count {
            let logits = self.append("logits", &next);
            next = logits.iter().map(|row| vec![argmax(row)]).collect();
            for (tokens, next) in tokens.iter_mut().zip(&next) {
                tokens.extend(next);
            }
        }
        tokens
    }
}

/// Runs whole sequences.
pub fn forward<T: Real>(interpreter: &Interpreter<'_, T>, ids: &HostTensor<f32>) -> Tensors<T> {
    let ids = HostTensor::i32(ids.shape.clone(), ids.as_i32().unwrap());
    let inputs = Tensors::from([("ids".to_owned(), ids)]);
    interpreter.run(&inputs, &mut Tensors::new()).unwrap()
}

/// The rows of a tensor along its last axis.
pub fn rows<T>(tensor: &HostTensor<T>) -> impl Iterator<Item = &[T]> {
    let width = *tensor.shape.last().unwrap();
    tensor.as_f().unwrap().chunks_exact(width)
}

pub fn argmax<T: Real>(row: &[T]) -> i32 {
    let best = (0..row.len()).max_by(|a, b| row[*a].wide().total_cmp(&row[*b].wide()));
    best.unwrap() as i32
}

/// `|found - wanted| / |wanted|` over all elements.
pub fn distance<A: Real, B: Real>(found: &[A], wanted: &[B]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let pairs = found.iter().zip(wanted);
    let (difference, size) = pairs.fold((0.0, 0.0), |(difference, size), (a, b)| {
        let (a, b) = (a.wide(), b.wide());
        (difference + (a - b).powi(2), size + b * b)
    });
    (difference / size).sqrt()
}

/// Fails unless `found` is `wanted` up to a relative distance.
#[track_caller]
pub fn assert_close<A: Real, B: Real>(label: &str, found: &[A], wanted: &[B], tolerance: f64) {
    let distance = distance(found, wanted);
    // A NaN is not below anything.
    assert!(
        distance <= tolerance,
        "{label}: {distance:.2e} apart, {tolerance:.0e} allowed"
    );
}
