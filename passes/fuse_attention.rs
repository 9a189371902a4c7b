//! Scaled dot-product attention.

use kiln_ir::infer::infer;
use kiln_ir::{AttentionSpec, DType, Graph, GraphError, Op, TensorType, ValueId};

use crate::attention_heads::{Heads, SPLIT, SPLIT_TRANSPOSED, scaled};
use crate::attention_mask::Mask;
use crate::matcher::{Matcher, rewrite};
use crate::simplify_movement::simplify;
use crate::{Changed, Pass, PassError, in_pass};

/// Recognises `transpose(softmax(mask(q . k^T * scale)) . v)`, where
///
/// - the heads of `q`, `k` and `v` are split off by a reshape and a transpose,
///   and those of `k` and `v` may be repeated for groups of query heads,
/// - the scale is any number of products with and quotients by constants, of
///   the scores, of `q` or of `k`,
/// - the mask, if there is one, is causality, with a sliding window or without, or
///   hides the keys before the first of each sequence, or both, by a `where` that
///   sets what is hidden to a hugely negative number,
///
/// and makes it one op between tensors with their heads side by side. Any other
/// mask leaves it as it stands.
///
/// Where the probabilities are an output too, they come to be an op of their
/// own: they cost what they cost before, and attention no longer waits for them.
pub struct FuseAttention;

/// A score as low as this is hidden: the exponential of its distance from any
/// score that is not is zero.
const HIDDEN: f64 = -1e9;

impl Pass for FuseAttention {
    fn name(&self) -> &'static str {
        "fuse_attention"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let changed = in_pass(self.name(), rewrite(graph, find, build))?;
        if changed.any() {
            // Heads are split and merged in turn.
            in_pass(self.name(), simplify(graph))?;
        }
        Ok(changed)
    }
}

struct Found {
    spec: AttentionSpec,
    q: Heads,
    k: Heads,
    v: Heads,
    start: Option<ValueId>,
    /// The probabilities, if they are an output.
    wanted: Option<ValueId>,
}

fn find(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    // The heads of the result go back to where they were.
    let (weighted, perm) = m.transposed(root)?;
    let (Op::MatMul, [probabilities, v]) = (m.op(weighted), m.inputs(weighted)) else {
        return None;
    };
    let scores = Scores::find(m, *probabilities)?;
    let q = Heads::of_queries(m, scores.q)?;
    let k = Heads::find(m, scores.k, SPLIT_TRANSPOSED)?;
    let v = Heads::find(m, *v, SPLIT)?;
    let spec = AttentionSpec {
        heads: q.heads,
        kv_heads: k.heads,
        scale: scores.scale * q.scale * k.scale,
        causal: scores.mask.causal,
        window: scores.mask.window,
    };
    // The products broadcast nothing, and nothing but the result is used.
    let kv_agree = k.merged == v.merged && k.heads == v.heads && v.scale == 1.0;
    let alone = m.closed(root, &[weighted]) && m.users(*probabilities) == [weighted];
    let fits = perm == SPLIT
        && kv_agree
        && m.shape(weighted) == m.shape(scores.q)
        && (spec.scale as f32).is_finite();
    // The op wants more than the idiom does, such as heads of a constant size.
    let merged = [&q, &k, &v].map(|heads| TensorType {
        dtype: DType::F32,
        shape: heads.merged.clone(),
    });
    let start = scores.mask.start.map(|start| m.ty(start));
    let types: Vec<&TensorType> = merged.iter().chain(start).collect();
    let typed = infer(&Op::Attention(spec), &types).is_ok();
    (fits && typed && alone).then(|| Found {
        spec,
        q,
        k,
        v,
        start: scores.mask.start,
        wanted: m.is_named(*probabilities).then_some(*probabilities),
    })
}

/// `softmax(mask(q . k^T * scale))`
struct Scores {
    q: ValueId,
    k: ValueId,
    scale: f64,
    mask: Mask,
}

impl Scores {
    fn find(m: &Matcher<'_>, probabilities: ValueId) -> Option<Scores> {
        let (Op::Softmax { axis: 3 }, [scores]) = (m.op(probabilities), m.inputs(probabilities))
        else {
            return None;
        };
        let mut id = *scores;
        let mut mask = Mask::default();
        let mut interior = Vec::new();
        let mut hidden_by = None;
        // One mask after another hides what either hides. The scale comes
        // first: a scaled mask value need not hide any more.
        while let (Op::Where, [condition, a, b]) = (m.op(id), m.inputs(id)) {
            let hidden = |v: ValueId| m.number(v).filter(|c| *c <= HIDDEN);
            let (inner, seen, by) = match (hidden(*a), hidden(*b)) {
                (None, Some(by)) => (*a, true, by),
                (Some(by), None) => (*b, false, by),
                _ => return None,
            };
            // A query that sees no key gives all of them the same probability. Of two
            // numbers, it would give it to those alone that the larger one hides.
            let another = hidden_by
                .replace(by)
                .is_some_and(|before| before as f32 != by as f32);
            if another || m.ty(inner) != m.ty(id) {
                return None;
            }
            mask = mask.with(m, inner, *condition, seen)?;
            interior.push(id);
            id = inner;
        }
        let mut scale = 1.0;
        while let Some((x, c)) = scaled(m, id) {
            scale *= c;
            interior.push(id);
            id = x;
        }
        interior.push(id);
        let (Op::MatMul, [q, k]) = (m.op(id), m.inputs(id)) else {
            return None;
        };
        m.closed(probabilities, &interior).then_some(Scores {
            q: *q,
            k: *k,
            scale,
            mask,
        })
    }
}

fn build(graph: &mut Graph, root: ValueId, found: Found) -> Result<ValueId, GraphError> {
    let source = graph.value(root).source.clone();
    let Found { spec, .. } = found;
    let mut operands = Vec::new();
    for heads in [found.q, found.k, found.v] {
        let shape = heads.merged;
        let merged = Op::Reshape { shape };
        operands.push(graph.insert_before(root, merged, &[heads.apart], &source)?);
    }
    operands.extend(found.start);
    if let Some(probabilities) = found.wanted {
        let of_keys: Vec<ValueId> = [0, 1, 3]
            .iter()
            .filter_map(|i| operands.get(*i).copied())
            .collect();
        let source = graph.value(probabilities).source.clone();
        let op = Op::AttentionProbs(spec);
        let alone = graph.insert_before(root, op, &of_keys, &source)?;
        graph.replace_uses(probabilities, alone);
    }
    let attention = graph.insert_before(root, Op::Attention(spec), &operands, &source)?;
    let shape = graph.ty(root).shape.clone();
    graph.insert_before(root, Op::Reshape { shape }, &[attention], &source)
}
