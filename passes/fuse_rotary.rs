//! Rotary position embedding.

use kiln_ir::infer::infer;
use kiln_ir::{BinaryOp, Dim, Graph, GraphError, Op, UnaryOp, ValueId};

use crate::clean_up::share;
use crate::matcher::{Matcher, rewrite};
use crate::simplify_movement::simplify;
use crate::{Changed, Pass, PassError, in_pass};

/// Recognises the turning of the halves `a` and `b` of the last axis, written as
///
/// - `concat(a * cos - b * sin, b * cos + a * sin)`, or
/// - `x * cos + concat(-b, a) * sin`, where cosines and sines repeat for the
///   second half,
///
/// and makes it one op. Where the same angle turns every head of a position, it
/// is an op on the heads side by side, as linear layers give them and attention
/// takes them. Angles, cosines and sines stay as they are: all layers share them.
pub struct FuseRotary;

impl Pass for FuseRotary {
    fn name(&self) -> &'static str {
        "fuse_rotary"
    }

    fn run(&self, graph: &mut Graph) -> Result<Changed, PassError> {
        let changed = in_pass(self.name(), rewrite(graph, find, build))?;
        if changed.any() {
            // Heads are split and merged in turn, and every layer asks for the
            // same part of the cosines.
            in_pass(self.name(), simplify(graph))?;
            share(graph);
        }
        Ok(changed)
    }
}

struct Found {
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    /// `d/2`
    half: u64,
}

fn find(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let found = in_halves(m, root).or_else(|| as_a_whole(m, root))?;
    // The op wants more than the idiom does, such as cosines and sines of one shape.
    let angle = |id: ValueId| {
        let mut ty = m.ty(id).clone();
        *ty.shape.last_mut()? = Dim::constant(found.half);
        Some(ty)
    };
    let types = [m.ty(found.x), &angle(found.cos)?, &angle(found.sin)?];
    infer(&Op::Rotary, &types).is_ok().then_some(found)
}

/// `concat(a * cos - b * sin, b * cos + a * sin)`
fn in_halves(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    let [first, second] = concatenated(m, root)?;
    let (a_cos, b_sin) = m.binary(first, BinaryOp::Sub)?;
    m.either(a_cos, BinaryOp::Mul).find_map(|(a, cos)| {
        let (b, sin) = m
            .either(b_sin, BinaryOp::Mul)
            .find(|(b, _)| halves(m, a, *b).is_some())?;
        let (x, half) = halves(m, a, b)?;
        let is_product = |id: ValueId, x: ValueId, y: ValueId| {
            m.either(id, BinaryOp::Mul).any(|pair| pair == (x, y))
        };
        let (b_cos, a_sin) = m
            .either(second, BinaryOp::Add)
            .find(|(p, q)| is_product(*p, b, cos) && is_product(*q, a, sin))?;
        let interior = [first, second, a, b, a_cos, b_sin, b_cos, a_sin];
        let broadcasts_nothing = m.ty(first) == m.ty(a) && m.ty(second) == m.ty(a);
        let fits = broadcasts_nothing && turns(m, x, cos, half) && turns(m, x, sin, half);
        (fits && m.closed(root, &interior)).then_some(Found { x, cos, sin, half })
    })
}

/// `x * cos + concat(-b, a) * sin`
fn as_a_whole(m: &Matcher<'_>, root: ValueId) -> Option<Found> {
    m.either(root, BinaryOp::Add)
        .find_map(|(straight, across)| {
            m.either(across, BinaryOp::Mul).find_map(|(swapped, sin)| {
                let [negated, a] = concatenated(m, swapped)?;
                let b = m.unary(negated, UnaryOp::Neg)?;
                let (x, half) = halves(m, a, b)?;
                let (_, cos) = m.either(straight, BinaryOp::Mul).find(|pair| pair.0 == x)?;
                let interior = [straight, across, swapped, negated, a, b];
                let broadcasts_nothing = m.ty(straight) == m.ty(x) && m.ty(across) == m.ty(x);
                let fits = broadcasts_nothing
                    && [cos, sin].iter().all(|angle| {
                        let width = m.ty(*angle).last();
                        width.as_const() == Some(2 * half) && repeats(m, *angle)
                    });
                (fits && m.closed(root, &interior)).then_some(Found { x, cos, sin, half })
            })
        })
}

/// Two operands, one after the other along the last axis.
fn concatenated(m: &Matcher<'_>, id: ValueId) -> Option<[ValueId; 2]> {
    match (m.op(id), m.inputs(id)) {
        (Op::Concat { axis }, [a, b]) if *axis + 1 == m.ty(id).rank() => Some([*a, *b]),
        _ => None,
    }
}

/// `x` and half its last axis, if `a` is the first half of it and `b` the second.
fn halves(m: &Matcher<'_>, a: ValueId, b: ValueId) -> Option<(ValueId, u64)> {
    let part = |id: ValueId| match (m.op(id), m.inputs(id)) {
        (Op::Slice { axis, start, end }, [x]) if *axis + 1 == m.ty(*x).rank() => {
            Some((*x, start.as_const()?, end.as_const()?))
        }
        _ => None,
    };
    let ((x, zero, half), second) = (part(a)?, part(b)?);
    let width = m.ty(x).last().as_const()?;
    let fits = zero == 0 && width == 2 * half && second == (x, half, width);
    fits.then_some((x, half))
}

/// Whether the cosines or sines are of half a head of `x`.
fn turns(m: &Matcher<'_>, x: ValueId, angle: ValueId, half: u64) -> bool {
    m.ty(angle).last().as_const() == Some(half) && m.ty(angle).rank() <= m.ty(x).rank()
}

/// How many ops there may be between an angle and its repetition.
const MAX_DEPTH: usize = 16;

/// Whether the second half of the last axis is certainly the first once more:
/// `f(concat(y, y))`.
fn repeats(m: &Matcher<'_>, id: ValueId) -> bool {
    let mut id = id;
    for _ in 0..MAX_DEPTH {
        id = match (m.op(id), m.inputs(id)) {
            (Op::Unary(_), [x]) => *x,
            (Op::Reshape { .. }, [x]) if m.ty(*x).last() == m.ty(id).last() => *x,
            // A factor for all, such as that of attention scaled with the context.
            (Op::Binary(BinaryOp::Mul), _) => match m.with_number(id, BinaryOp::Mul) {
                Some((x, _)) if m.ty(x) == m.ty(id) => x,
                _ => return false,
            },
            _ => return concatenated(m, id).is_some_and(|[a, b]| a == b),
        };
    }
    false
}

fn build(graph: &mut Graph, root: ValueId, found: Found) -> Result<ValueId, GraphError> {
    let source = graph.value(root).source.clone();
    let whole = graph.ty(found.x).shape.clone();
    let [mut cos, mut sin] = [found.cos, found.sin];
    // What repeats is needed once.
    for angle in [&mut cos, &mut sin] {
        if graph.ty(*angle).last().as_const() != Some(found.half) {
            let op = Op::Slice {
                axis: graph.ty(*angle).rank() - 1,
                start: 0.into(),
                end: Dim::constant(found.half),
            };
            *angle = graph.insert_before(root, op, &[*angle], &source)?;
        }
    }
    let angles = graph.ty(cos).shape.clone();
    let Some(merged) = merged(&whole, &angles) else {
        return graph.insert_before(root, Op::Rotary, &[found.x, cos, sin], &source);
    };
    let mut of_position = angles;
    if of_position.len() > 1 {
        of_position.remove(of_position.len() - 2);
    }
    let mut reshape = |id: ValueId, shape: Vec<Dim>| {
        graph.insert_before(root, Op::Reshape { shape }, &[id], &source)
    };
    let x = reshape(found.x, merged)?;
    let cos = reshape(cos, of_position.clone())?;
    let sin = reshape(sin, of_position)?;
    let rotary = graph.insert_before(root, Op::Rotary, &[x, cos, sin], &source)?;
    graph.insert_before(root, Op::Reshape { shape: whole }, &[rotary], &source)
}

/// `[.., heads * d]` of `[.., heads, d]`, if angles of this shape turn all heads
/// of a position alike.
fn merged(shape: &[Dim], angles: &[Dim]) -> Option<Vec<Dim>> {
    let [leading @ .., heads, d] = shape else {
        return None;
    };
    heads.as_const()?;
    let alike = match angles {
        [.., of_heads, _] => of_heads.is_one(),
        _ => true,
    };
    let mut merged = leading.to_vec();
    merged.push(heads * d);
    alike.then_some(merged)
}
