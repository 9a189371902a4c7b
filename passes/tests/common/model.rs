//! Models through the whole pipeline.

use super::numbers::compare;
use kiln_ir::Graph;
use kiln_models::registry::{EntryOptions, from_config};
use kiln_passes::optimize;

/// An entry of the model that a `config.json` describes, through the pipeline,
/// which leaves its numbers as they are.
pub fn optimised(config: &str, entry: &str) -> Graph {
    let model = from_config(config).unwrap();
    let before = model.graph(entry, &EntryOptions::default()).unwrap();
    let mut after = before.clone();
    optimize(&mut after, &mut |_, _, _| {}).unwrap();
    for seed in 0..2 {
        if let Err(difference) = compare(&before, &after, seed) {
            panic!("{difference}\n{after}");
        }
    }
    after
}

/// Leaves and movements.
pub const FREE: [&str; 9] = [
    "param", "input", "state", "const", "table", "arange", "reshape", "slice", "concat",
];

/// The ops of all layers, whose names begin with `layers`, that are neither
/// leaves nor movements, with the attributes that tell the fusions apart.
pub fn work(graph: &Graph, layers: &str) -> Vec<String> {
    let values = graph.iter().map(|(_, v)| v);
    let values = values.filter(|v| v.source.starts_with(layers) && !FREE.contains(&v.op.name()));
    values
        .map(|v| {
            let wanted = ["layer_norm", "rms_norm", "then", "causal", "window"];
            let attrs = v.op.attrs().into_iter().filter(|(k, _)| wanted.contains(k));
            let attrs: Vec<String> = attrs.map(|(k, a)| format!(" {k}={a}")).collect();
            format!("{} = {}{}", v.source, v.op.name(), attrs.concat())
        })
        .collect()
}

/// The ops of the first layer, and then those of the second.
pub fn two_layers(ops: &[&str], [first, second]: [&str; 2]) -> Vec<String> {
    let again = ops.iter().map(|op| op.replace(first, second));
    ops.iter().map(|op| (*op).to_owned()).chain(again).collect()
}
