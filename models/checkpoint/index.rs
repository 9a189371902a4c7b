//! The index of a sharded checkpoint: which tensor is in which file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::error::{CheckpointError, IndexProblem};
use super::read_text;

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index: tensor name to shard file name.
pub(super) fn read(index: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    parse(&read_text(index)?).map_err(|problem| CheckpointError::Index {
        index: index.to_owned(),
        problem,
    })
}

/// Parses the text of an index.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, IndexProblem> {
    let IndexFile { weight_map } = serde_json::from_str(text).map_err(IndexProblem::NotJson)?;
    if weight_map.is_empty() {
        return Err(IndexProblem::Empty);
    }
    match weight_map.iter().find(|(_, shard)| !is_inner_path(shard)) {
        Some((tensor, shard)) => Err(IndexProblem::BadShardName {
            tensor: tensor.clone(),
            shard: shard.clone(),
        }),
        None => Ok(weight_map),
    }
}

/// The shards that an index names, each found in `folder`.
pub(super) fn check_shards(
    index: &Path,
    folder: &Path,
    weight_map: &BTreeMap<String, String>,
) -> Result<BTreeSet<String>, CheckpointError> {
    let shards: BTreeSet<String> = weight_map.values().cloned().collect();
    let Some(absent) = shards.iter().find(|shard| !folder.join(shard).is_file()) else {
        return Ok(shards);
    };
    let mut tensors = weight_map
        .iter()
        .filter(|(_, shard)| *shard == absent)
        .map(|(tensor, _)| tensor);
    let tensor = tensors.next().cloned().unwrap_or_default();
    Err(CheckpointError::Index {
        index: index.to_owned(),
        problem: IndexProblem::AbsentShard {
            shard: absent.clone(),
            tensor,
            count: 1 + tensors.count(),
        },
    })
}

/// An index comes from outside: it must not lead out of the folder.
fn is_inner_path(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}
