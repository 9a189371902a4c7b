//! An artifact's parameters, unpacked: what the interpreter runs on where there
//! is no adapter.

use std::borrow::Cow;

use kiln_ir::plan::WeightPart;
use kiln_ir::{ParamError, ParamSource};

use crate::artifact::Artifact;
use crate::error::{Error, Result};

impl ParamSource for Artifact {
    /// The parameter as it was packed: quantised ones come out rounded.
    fn param(&self, name: &str) -> std::result::Result<Cow<'_, [f32]>, ParamError> {
        Ok(Cow::Owned(unpack(self, name)?))
    }
}

fn unpack(artifact: &Artifact, name: &str) -> Result<Vec<f32>> {
    let bad = |reason: &str| Error::Weight {
        name: name.to_owned(),
        reason: reason.to_owned(),
    };
    let weights = &artifact.plan().weights;
    let parts = || {
        let parts = weights
            .iter()
            .flat_map(|w| w.contents.iter().map(move |p| (w, p)));
        parts.filter(|(_, p)| p.param == name)
    };
    let (_, first) = parts()
        .find(|(_, p)| !p.scales)
        .ok_or_else(|| bad("the artifact has no such parameter"))?;
    let packing = first.packing;
    let k = first.shape.last().copied().unwrap_or(1) as usize;
    let rows = first.shape.iter().product::<u64>() as usize / k.max(1);
    let mut data = vec![0; packing.data_bytes(rows, k)];
    let mut scales = vec![0; packing.scale_bytes(rows, k)];
    let mut covered = 0;
    for (weight, part) in parts() {
        if part.shape != first.shape || part.packing != packing {
            return Err(bad("its parts do not belong together"));
        }
        let row_bytes = match part.scales {
            true => packing.groups(k) * 2,
            false => packing.groups(k) * packing.group_bytes(),
        };
        let whole = if part.scales { &mut scales } else { &mut data };
        let at = part.first_row as usize * row_bytes;
        // Vectors are no matrices: they are not padded to whole groups.
        let bytes = match part.shape.len() {
            0 | 1 => k * 4,
            _ => part.rows as usize * row_bytes,
        };
        let place = whole.get_mut(at..at + bytes);
        let place = place.ok_or_else(|| bad("a part lies outside its rows"))?;
        copy_part(artifact, &weight.name, part, place)?;
        covered += if part.scales { 0 } else { part.rows as usize };
    }
    if covered != rows {
        return Err(bad(&format!("{covered} of its {rows} rows are there")));
    }
    Ok(packing.unpack(&data, &scales, rows, k))
}

/// Copies the bytes of `part` out of the weight `name`.
fn copy_part(artifact: &Artifact, name: &str, part: &WeightPart, to: &mut [u8]) -> Result<()> {
    let begin = part.offset as usize;
    let end = begin + to.len();
    let mut at = 0;
    artifact.weights().visit(name, &mut |bytes| {
        let (from, until) = (begin.max(at), end.min(at + bytes.len()));
        if from < until {
            let piece = &bytes[from - at..until - at];
            to[from - begin..until - begin].copy_from_slice(piece);
        }
        at += bytes.len();
        Ok(())
    })?;
    if at < end {
        return Err(Error::Weight {
            name: name.to_owned(),
            reason: format!("it ends before `{}`", part.param),
        });
    }
    Ok(())
}
