//! States: buffers that outlive a run, as all graphs of an artifact have them.

use std::collections::BTreeMap;

use kiln_ir::plan::{CONTEXT, PAST};
use kiln_ir::{DType, Dim, Graph, Op, Symbol, TensorType, ValueId};

use crate::error::CodegenError;
use crate::tier::Tier;

/// A buffer that outlives a run, of all graphs that have it.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub name: String,
    /// Its type before a run.
    pub ty: TensorType,
    /// The panels that its rows are kept in, if they are; see [`Panels`](crate::view::Panels).
    pub panels: Option<u64>,
}

/// What each op that reads a state makes of its rows: heads of a width, each walked through
/// by itself, or none. `users` are those of the graph's values.
fn heads_of_state(
    graph: &Graph,
    users: &[Vec<ValueId>],
    (id, state): (ValueId, &str),
) -> Vec<Option<u64>> {
    let set = graph.states().iter().find(|(name, _)| name == state);
    let value = set.map_or(id, |(_, after)| *after);
    let shape = &graph.ty(value).shape;
    let width = |user: &ValueId| {
        let (Op::Attention(spec) | Op::AttentionProbs(spec)) = &graph.value(*user).op else {
            return None;
        };
        let [_, _, row] = shape.as_slice() else {
            return None;
        };
        Some(row.as_const()? / spec.kv_heads as u64)
    };
    users[value.index()].iter().map(width).collect()
}

/// The shape of a state's buffer: growing axes have the capacity.
pub(crate) fn capacity_shape(shape: &[Dim]) -> Vec<Dim> {
    let past = Symbol::new(PAST);
    let context = Dim::symbol(CONTEXT);
    shape
        .iter()
        .map(|d| d.substitute(&past, &context))
        .collect()
}

/// The states of all graphs.
pub(crate) fn states(graphs: &[Graph]) -> Result<Vec<State>, CodegenError> {
    let mut out: Vec<State> = Vec::new();
    let mut heads: BTreeMap<&str, Vec<Option<u64>>> = BTreeMap::new();
    for graph in graphs {
        let users = graph.users();
        for (id, value) in graph.iter() {
            let Op::State { name, ty } = &value.op else {
                continue;
            };
            let own = heads_of_state(graph, &users, (id, name));
            heads.entry(name).or_default().extend(own);
            match out.iter().find(|s| s.name == *name) {
                None => out.push(State {
                    name: name.clone(),
                    ty: ty.clone(),
                    panels: None,
                }),
                Some(known) if known.ty != *ty => {
                    return Err(CodegenError::Conflict {
                        what: "state",
                        name: name.clone(),
                        found: ty.to_string(),
                        other: known.ty.to_string(),
                    });
                }
                Some(_) => {}
            }
        }
    }
    // It lies in one way for all that read it. What can't be loaded by fours in panels can
    // be in rows.
    for state in &mut out {
        let row = state.ty.last().as_const();
        if let Some([first, others @ ..]) = heads.get(state.name.as_str()).map(Vec::as_slice)
            && others.iter().all(|head| head == first)
        {
            state.panels = first.filter(|head| head.is_multiple_of(4) && row != Some(*head));
        }
    }
    Ok(out)
}

/// Whether states, which have to be reals for that, are kept in f16.
pub(crate) fn keeps_halves(tier: Tier, states: &[State]) -> bool {
    let are_reals = states.iter().all(|s| s.ty.dtype == DType::F32);
    tier.halves_states() && are_reals && !states.is_empty()
}

/// A state's bytes at a session's capacity, with elements as they are in the graph.
pub(crate) fn bytes_of_state(ty: &TensorType) -> Dim {
    &Dim::product(&capacity_shape(&ty.shape)) * &Dim::constant(ty.dtype.device_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state of two heads that attention reads, and `other` besides.
    fn graph(name: &str, kv_heads: u64, other: &str) -> Graph {
        let text = format!(
            "graph {name} {{\n  symbol batch <= 2\n  symbol seq <= 4\n  symbol past <= 3\n  \
             %0 = input \"q\" : f32[batch, seq, 8]\n  %1 = input \"k\" : f32[batch, seq, 8]\n  \
             %2 = state \"keys\" : f32[batch, past, 8]\n  \
             %3 = concat %2, %1 {{axis=1}} : f32[batch, past + seq, 8]\n  \
             %4 = attention %0, %3, %3 {{heads={kv_heads}, kv_heads={kv_heads}, scale=0.5, causal=true}} : f32[batch, seq, 8]\n\
             {other}  output \"y\" = %4\n  state \"keys\" = %3\n}}\n"
        );
        kiln_ir::text::parse(&text).unwrap()
    }

    #[test]
    fn a_state_is_in_panels_where_attention_alone_reads_it_in_every_graph() {
        let panels = |graphs: &[Graph]| {
            let states = states(graphs).unwrap();
            assert_eq!(states.len(), 1);
            states[0].panels
        };
        let [plain, again] = ["a", "b"].map(|name| graph(name, 2, ""));
        assert_eq!(panels(&[plain.clone(), again]), Some(4));
        let by_others = "  %5 = exp %3 : f32[batch, past + seq, 8]\n  output \"z\" = %5\n";
        let read = graph("c", 2, by_others);
        assert_eq!(panels(std::slice::from_ref(&read)), None);
        assert_eq!(panels(&[plain.clone(), read.clone()]), None);
        assert_eq!(panels(&[read, plain.clone()]), None);
        // Other heads, those that are not read by fours, and one that is the whole row.
        assert_eq!(panels(&[plain.clone(), graph("d", 1, "")]), None);
        assert_eq!(panels(&[graph("e", 4, "")]), None);
        assert_eq!(panels(&[graph("f", 1, "")]), None);
        // Who appends alone does not mind.
        let text = plain
            .to_string()
            .replace("attention %0, %3, %3", "attention %0, %1, %1");
        let appends = kiln_ir::text::parse(&text.replace("graph a", "graph g")).unwrap();
        assert_eq!(panels(&[appends, plain]), Some(4));
    }
}
