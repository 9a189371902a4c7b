//! Typing rules: the result type of an op from its operands' types.
//!
//! A rule either gives the one type that is right or says, as
//! `expected .., found ..`, why there is none. Dimensions are compared as
//! canonical expressions, so `seq + past` and `past + seq` agree, while two
//! different symbols never do.

#[cfg(test)]
mod tests;

use crate::dim::Dim;
use crate::op::{AttentionSpec, BinaryOp, Norm, Op, Step, UnaryOp};
use crate::types::{DType, TensorType};

/// Why an op cannot have these operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct TypeError {
    /// What the rule wants.
    pub expected: String,
    /// What is there.
    pub found: String,
}

fn fail<T>(expected: impl Into<String>, found: impl ToString) -> Result<T, TypeError> {
    Err(TypeError {
        expected: expected.into(),
        found: found.to_string(),
    })
}

fn want_dtype(what: &str, ty: &TensorType, dtype: DType) -> Result<(), TypeError> {
    if ty.dtype == dtype {
        Ok(())
    } else {
        fail(format!("{what} of type {dtype}"), ty)
    }
}

fn want_shape(what: &str, ty: &TensorType, shape: &[Dim]) -> Result<(), TypeError> {
    if ty.shape == shape {
        return Ok(());
    }
    let wanted = TensorType {
        dtype: ty.dtype,
        shape: shape.to_vec(),
    };
    fail(format!("{what} of shape {wanted}"), ty)
}

fn want_axis(axis: usize, ty: &TensorType) -> Result<(), TypeError> {
    if axis < ty.rank() {
        Ok(())
    } else {
        fail(format!("an axis below {}", ty.rank()), axis)
    }
}

/// The shape that two shapes broadcast to, as in NumPy.
///
/// # Errors
/// When two axes differ and neither is the constant one.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, TypeError> {
    let rank = a.len().max(b.len());
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        let pick = |s: &[Dim]| {
            (i + s.len())
                .checked_sub(rank)
                .and_then(|j| s.get(j))
                .cloned()
        };
        out.push(match (pick(a), pick(b)) {
            (Some(x), Some(y)) if x == y => x,
            (Some(x), Some(y)) if x.is_one() => y,
            (Some(x), Some(y)) if y.is_one() => x,
            (Some(x), None) | (None, Some(x)) => x,
            (Some(x), Some(y)) => {
                return fail(format!("axes that broadcast to `{x}`"), format!("`{y}`"));
            }
            (None, None) => 1.into(),
        });
    }
    Ok(out)
}

/// The type of `op` applied to operands of types `inputs`.
///
/// # Errors
/// When the number of operands or one of their types is not what the op takes.
pub fn infer(op: &Op, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
    if !op.arity().accepts(inputs.len()) {
        return fail(format!("{} operands", op.arity()), inputs.len());
    }
    let with_shape = |ty: &TensorType, shape: Vec<Dim>| TensorType {
        dtype: ty.dtype,
        shape,
    };
    match (op, inputs) {
        (Op::Param { ty, .. } | Op::Input { ty, .. } | Op::State { ty, .. }, _) => Ok(ty.clone()),
        (Op::Const(scalar), _) => Ok(TensorType::scalar(scalar.dtype())),
        (Op::Table(values), _) => Ok(TensorType::new(DType::F32, [values.len()])),
        (Op::Arange { start, end }, _) => Ok(TensorType::new(DType::I32, [end - start])),

        (Op::Unary(UnaryOp::Not), [x]) => {
            want_dtype("an operand", x, DType::Bool)?;
            Ok((*x).clone())
        }
        (Op::Unary(UnaryOp::Neg | UnaryOp::Abs), [x]) if x.dtype == DType::I32 => Ok((*x).clone()),
        (Op::Unary(_) | Op::Activate(_), [x]) => {
            want_dtype("an operand", x, DType::F32)?;
            Ok((*x).clone())
        }
        (Op::Binary(op), [a, b]) => {
            if a.dtype != b.dtype {
                return fail(format!("two operands of type {}", a.dtype), b);
            }
            match op {
                BinaryOp::And | BinaryOp::Or => want_dtype("operands", a, DType::Bool)?,
                BinaryOp::Pow => want_dtype("operands", a, DType::F32)?,
                BinaryOp::Eq => {}
                _ if a.dtype == DType::Bool => return fail("operands that are numbers", a),
                _ => {}
            }
            let dtype = if op.is_comparison() {
                DType::Bool
            } else {
                a.dtype
            };
            let shape = broadcast(&a.shape, &b.shape)?;
            Ok(TensorType { dtype, shape })
        }
        (Op::Where, [c, a, b]) => {
            want_dtype("a condition", c, DType::Bool)?;
            want_dtype("an alternative", b, a.dtype)?;
            let shape = broadcast(&c.shape, &broadcast(&a.shape, &b.shape)?)?;
            Ok(with_shape(a, shape))
        }
        (Op::Cast(dtype), [x]) => Ok(TensorType {
            dtype: *dtype,
            shape: x.shape.clone(),
        }),

        (Op::Reshape { shape }, [x]) => {
            let reshaped = with_shape(x, shape.clone());
            // The products of long sums have many terms.
            if reshaped == **x {
                return Ok(reshaped);
            }
            let (before, after) = (x.elements(), reshaped.elements());
            // Two products that are both too large are equal without being so.
            for (ty, elements) in [(*x, &before), (&reshaped, &after)] {
                if elements.is_saturated() {
                    return fail("a shape whose elements can be counted in 63 bits", ty);
                }
            }
            if before != after {
                return fail(format!("a shape of {before} elements"), after);
            }
            Ok(reshaped)
        }
        (Op::Transpose { perm }, [x]) => {
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if !sorted.iter().copied().eq(0..x.rank()) {
                return fail(
                    format!("a permutation of the {} axes", x.rank()),
                    format!("{perm:?}"),
                );
            }
            let axes = perm.iter().filter_map(|p| x.shape.get(*p).cloned());
            Ok(with_shape(x, axes.collect()))
        }
        (Op::Broadcast { shape }, [x]) => {
            if broadcast(&x.shape, shape)? != *shape {
                return fail("a shape that the operand broadcasts to", x);
            }
            Ok(with_shape(x, shape.clone()))
        }
        (Op::Slice { axis, start, end }, [x]) => {
            want_axis(*axis, x)?;
            let size = &x.shape[*axis];
            let length = end - start;
            // What depends on symbols is the verifier's to judge.
            let certainly_outside = [start, &length, &(size - end)]
                .iter()
                .any(|distance| distance.is_negative_const());
            if certainly_outside {
                return fail(
                    format!("a range within 0..{size}"),
                    format!("{start}..{end}"),
                );
            }
            let mut shape = x.shape.clone();
            shape[*axis] = length;
            Ok(with_shape(x, shape))
        }
        (Op::Concat { axis }, [first, rest @ ..]) => {
            want_axis(*axis, first)?;
            let mut shape = first.shape.clone();
            for ty in rest {
                want_dtype("operands", ty, first.dtype)?;
                let mut wanted = first.shape.clone();
                if let (Some(w), Some(found)) = (wanted.get_mut(*axis), ty.shape.get(*axis)) {
                    *w = found.clone();
                }
                want_shape("operands that differ in one axis", ty, &wanted)?;
                shape[*axis] = &shape[*axis] + &ty.shape[*axis];
            }
            Ok(with_shape(first, shape))
        }
        (Op::Gather, [table, ids]) => {
            want_dtype("ids", ids, DType::I32)?;
            if table.rank() == 0 {
                return fail("a table of at least one axis", table);
            }
            let shape = ids.shape.iter().chain(&table.shape[1..]).cloned();
            Ok(with_shape(table, shape.collect()))
        }

        (Op::MatMul, [a, b]) => {
            want_dtype("a left operand", a, DType::F32)?;
            want_dtype("a right operand", b, DType::F32)?;
            let ([batch_a @ .., m, k], [batch_b @ .., kb, n]) =
                (a.shape.as_slice(), b.shape.as_slice())
            else {
                return fail("operands of at least two axes", format!("{a} and {b}"));
            };
            if k != kb {
                return fail(format!("a right operand with `{k}` rows"), b);
            }
            let mut shape = broadcast(batch_a, batch_b)?;
            shape.extend([m.clone(), n.clone()]);
            Ok(with_shape(a, shape))
        }
        (Op::Reduce { axis, .. }, [x]) => {
            want_dtype("an operand", x, DType::F32)?;
            want_axis(*axis, x)?;
            let mut shape = x.shape.clone();
            shape[*axis] = 1.into();
            Ok(with_shape(x, shape))
        }
        (Op::Softmax { axis }, [x]) => {
            want_dtype("an operand", x, DType::F32)?;
            want_axis(*axis, x)?;
            Ok((*x).clone())
        }

        (Op::Normalize(norm), [x, operands @ ..]) => {
            norm_operands(*norm, x, operands)?;
            Ok((*x).clone())
        }
        (Op::Linear { norm, steps }, [x, w, operands @ ..]) => linear(*norm, steps, x, w, operands),
        (Op::Rotary, [x, cos, sin]) => rotary(x, cos, sin),
        (Op::Attention(spec), [q, k, v, start @ ..]) => {
            attention_operands(spec, q, k, start)?;
            want_shape("values shaped like the keys", v, &k.shape)?;
            Ok((*q).clone())
        }
        (Op::AttentionProbs(spec), [q, k, start @ ..]) => {
            attention_operands(spec, q, k, start)?;
            let shape = vec![
                q.shape[0].clone(),
                spec.heads.into(),
                q.shape[1].clone(),
                k.shape[1].clone(),
            ];
            Ok(with_shape(q, shape))
        }
        // Every op was matched with as many operands as its arity allows.
        _ => fail(format!("{} operands", op.arity()), inputs.len()),
    }
}

fn norm_operands(norm: Norm, x: &TensorType, operands: &[&TensorType]) -> Result<(), TypeError> {
    want_dtype("an operand", x, DType::F32)?;
    if x.rank() == 0 {
        return fail("an operand with an axis to normalise", x);
    }
    let features = [x.last()];
    for (ty, what) in operands
        .iter()
        .zip(["a gain", "a bias"])
        .take(norm.operands())
    {
        want_dtype(what, ty, DType::F32)?;
        want_shape(what, ty, &features)?;
    }
    Ok(())
}

fn linear(
    norm: Option<Norm>,
    steps: &[Step],
    x: &TensorType,
    w: &TensorType,
    operands: &[&TensorType],
) -> Result<TensorType, TypeError> {
    want_dtype("an operand", x, DType::F32)?;
    want_dtype("a weight", w, DType::F32)?;
    let [out, features] = w.shape.as_slice() else {
        return fail("a weight [out, in]", w);
    };
    let Some((last, leading)) = x.shape.split_last() else {
        return fail(format!("an operand [.., {features}]"), x);
    };
    if last != features {
        return fail(format!("an operand [.., {features}]"), x);
    }
    let split = norm.map_or(0, Norm::operands);
    if let Some(norm) = norm {
        norm_operands(norm, x, &operands[..split])?;
    }
    let mut shape = leading.to_vec();
    shape.push(out.clone());
    for ty in &operands[split..] {
        want_dtype("an epilogue operand", ty, DType::F32)?;
        if broadcast(&ty.shape, &shape)? != shape {
            let wanted = TensorType {
                dtype: DType::F32,
                shape,
            };
            return fail(
                format!("an epilogue operand that broadcasts to {wanted}"),
                ty,
            );
        }
    }
    debug_assert_eq!(
        steps.iter().filter(|s| s.has_operand()).count(),
        operands.len() - split
    );
    Ok(TensorType {
        dtype: DType::F32,
        shape,
    })
}

fn rotary(x: &TensorType, cos: &TensorType, sin: &TensorType) -> Result<TensorType, TypeError> {
    want_dtype("an operand", x, DType::F32)?;
    want_dtype("cosines", cos, DType::F32)?;
    want_dtype("sines", sin, DType::F32)?;
    let (Some((width, leading)), Some((half, of_cos))) =
        (x.shape.split_last(), cos.shape.split_last())
    else {
        return fail("operands of at least one axis", format!("{x} and {cos}"));
    };
    let divides = match (width.as_const(), half.as_const()) {
        (Some(width), Some(half)) => half > 0 && width.is_multiple_of(2 * half),
        _ => false,
    };
    if !divides {
        return fail(
            format!("heads of twice `{half}` side by side in the last axis"),
            x,
        );
    }
    if broadcast(of_cos, leading)? != leading {
        return fail(
            format!("cosines whose leading axes broadcast to those of {x}"),
            cos,
        );
    }
    want_shape("sines shaped like the cosines", sin, &cos.shape)?;
    Ok(x.clone())
}

fn attention_operands(
    spec: &AttentionSpec,
    q: &TensorType,
    k: &TensorType,
    start: &[&TensorType],
) -> Result<(), TypeError> {
    want_dtype("queries", q, DType::F32)?;
    want_dtype("keys", k, DType::F32)?;
    if spec.heads == 0 || spec.kv_heads == 0 || !spec.heads.is_multiple_of(spec.kv_heads) {
        return fail(
            "a number of heads that the key heads divide",
            format!("{} and {}", spec.heads, spec.kv_heads),
        );
    }
    if let Some(window) = spec.window {
        if !spec.causal {
            return fail("a causal mask, where there is a window", "none");
        }
        if !(1..=i32::MAX as usize).contains(&window) {
            return fail(format!("a window of 1 to {} keys", i32::MAX), window);
        }
    }
    let [batch, _, width] = q.shape.as_slice() else {
        return fail("queries [batch, n, heads*d]", q);
    };
    let [key_batch, _, key_width] = k.shape.as_slice() else {
        return fail("keys [batch, m, kv_heads*d]", k);
    };
    let per_head = |w: &Dim, heads: usize| {
        let w = w.as_const()?;
        (w > 0 && w % heads as u64 == 0).then_some(w / heads as u64)
    };
    let Some(head_dim) = per_head(width, spec.heads) else {
        return fail(
            format!("queries whose width {} heads divide", spec.heads),
            q,
        );
    };
    if per_head(key_width, spec.kv_heads) != Some(head_dim) || batch != key_batch {
        let wanted = spec.kv_heads as u64 * head_dim;
        return fail(format!("keys [{batch}, m, {wanted}]"), k);
    }
    for ty in start {
        want_dtype("first visible keys", ty, DType::I32)?;
        want_shape("first visible keys", ty, std::slice::from_ref(batch))?;
    }
    Ok(())
}
