//! A small matcher: looks at a graph from one value upwards, and a driver that
//! rewrites where it matches.
//!
//! A pass is written as a function that *finds* an idiom whose last value is
//! given, and one that *builds* what replaces it. [`rewrite`] tries every value
//! in execution order and keeps the use counts exact between rewrites: what a
//! rewrite leaves without a use is removed at once.
//!
//! Use counts enter in one way only. A finder lists the *interior* of its idiom,
//! the values that the rewrite does away with, and asks [`Matcher::closed`]
//! whether anything outside uses one of them.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use kiln_ir::infer::TypeError;
use kiln_ir::{
    BinaryOp, Dim, Graph, GraphError, Op, ReduceOp, Scalar, TensorType, UnaryOp, ValueId,
};

use crate::Changed;
use crate::clean_up::remove_dead;

/// How far two constants may differ, relatively, to be the same constant: one
/// was typed, perhaps with seven digits, or went through `f32`.
pub const TOLERANCE: f64 = 1e-6;

/// How many movements in a row are looked through: a pass looks at every value, and would
/// take time quadratic in the length of a chain.
const MAX_MOVEMENTS: usize = 64;

/// Whether `a` is the constant `b` as a person may have typed it.
pub fn about(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * b.abs()
}

/// A graph with its uses counted.
pub struct Matcher<'g> {
    graph: &'g Graph,
    uses: Vec<usize>,
    /// Made when someone asks: the counts are all that most need, and [`rewrite`] makes a
    /// matcher for each rewrite.
    users: OnceCell<Vec<Vec<ValueId>>>,
}

impl<'g> Matcher<'g> {
    /// Counts the uses of every value of `graph`.
    pub fn new(graph: &'g Graph) -> Self {
        Matcher {
            graph,
            uses: graph.use_counts(),
            users: OnceCell::new(),
        }
    }

    /// The graph.
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// What computes `id`.
    pub fn op(&self, id: ValueId) -> &'g Op {
        &self.graph.value(id).op
    }

    /// The operands of `id`.
    pub fn inputs(&self, id: ValueId) -> &'g [ValueId] {
        &self.graph.value(id).inputs
    }

    /// The type of `id`.
    pub fn ty(&self, id: ValueId) -> &'g TensorType {
        self.graph.ty(id)
    }

    /// The shape of `id`.
    pub fn shape(&self, id: ValueId) -> &'g [Dim] {
        &self.graph.ty(id).shape
    }

    /// The values that take `id` as an operand, each once.
    pub fn users(&self, id: ValueId) -> &[ValueId] {
        let users = self.users.get_or_init(|| self.graph.users());
        users.get(id.index()).map_or(&[], Vec::as_slice)
    }

    /// How often `id` is used as an operand, an output or a state.
    pub fn use_count(&self, id: ValueId) -> usize {
        self.uses.get(id.index()).copied().unwrap_or(0)
    }

    /// Whether `id` is used once, as an operand, an output or a state.
    pub fn used_once(&self, id: ValueId) -> bool {
        self.use_count(id) == 1
    }

    /// Whether `id` is an output or what a state is set to.
    pub fn is_named(&self, id: ValueId) -> bool {
        let named = self.graph.outputs().iter().chain(self.graph.states());
        named.map(|(_, v)| *v).any(|v| v == id)
    }

    /// Whether every value of `interior` is used by `root` and `interior` only,
    /// so that it goes when `root` is replaced. Constants do not count: they
    /// cost nothing, and CSE shares them.
    pub fn closed(&self, root: ValueId, interior: &[ValueId]) -> bool {
        let inside: BTreeSet<ValueId> = interior.iter().copied().chain([root]).collect();
        let mut uses = BTreeMap::<ValueId, usize>::new();
        for operand in inside.iter().flat_map(|v| self.inputs(*v)) {
            *uses.entry(*operand).or_default() += 1;
        }
        inside.iter().filter(|v| **v != root).all(|v| {
            let inside = uses.get(v).copied().unwrap_or(0);
            matches!(self.op(*v), Op::Const(_)) || self.use_count(*v) == inside
        })
    }

    /// The operand of `f(x)`.
    pub fn unary(&self, id: ValueId, f: UnaryOp) -> Option<ValueId> {
        match (self.op(id), self.inputs(id)) {
            (Op::Unary(op), [x]) if *op == f => Some(*x),
            _ => None,
        }
    }

    /// The operands of `f(a, b)`, as they stand.
    pub fn binary(&self, id: ValueId, f: BinaryOp) -> Option<(ValueId, ValueId)> {
        match (self.op(id), self.inputs(id)) {
            (Op::Binary(op), [a, b]) if *op == f => Some((*a, *b)),
            _ => None,
        }
    }

    /// Both ways round of `f(a, b)` for a commutative `f`; one way for another.
    pub fn either(&self, id: ValueId, f: BinaryOp) -> impl Iterator<Item = (ValueId, ValueId)> {
        let found = self.binary(id, f);
        let swapped = found.filter(|_| f.is_commutative()).map(|(a, b)| (b, a));
        found.into_iter().chain(swapped)
    }

    /// The number that every element of `id` is: a constant, perhaps reshaped or
    /// broadcast, a few times.
    pub fn constant(&self, id: ValueId) -> Option<Scalar> {
        let mut id = id;
        for _ in 0..=MAX_MOVEMENTS {
            match (self.op(id), self.inputs(id)) {
                (Op::Const(scalar), _) => return Some(*scalar),
                (Op::Reshape { .. } | Op::Broadcast { .. }, [x]) => id = *x,
                _ => return None,
            }
        }
        None
    }

    /// [`Matcher::constant`], for real numbers.
    pub fn number(&self, id: ValueId) -> Option<f64> {
        match self.constant(id)? {
            Scalar::F32(v) => Some(v),
            Scalar::I32(_) | Scalar::Bool(_) => None,
        }
    }

    /// `x` and `c` of `f(x, c)`, or of `f(c, x)` where `f` is commutative.
    pub fn with_number(&self, id: ValueId, f: BinaryOp) -> Option<(ValueId, f64)> {
        self.either(id, f)
            .find_map(|(x, c)| self.number(c).map(|c| (x, c)))
    }

    /// `x` and `c` of `x * c`, `c * x` or `x / (1 / c)`.
    pub fn scaled(&self, id: ValueId) -> Option<(ValueId, f64)> {
        if let Some(found) = self.with_number(id, BinaryOp::Mul) {
            return Some(found);
        }
        let (x, c) = self.with_number(id, BinaryOp::Div)?;
        (c != 0.0).then(|| (x, 1.0 / c))
    }

    /// The operand of a reduction along the last axis.
    pub fn reduced_last(&self, id: ValueId, f: ReduceOp) -> Option<ValueId> {
        match (self.op(id), self.inputs(id)) {
            (Op::Reduce { op, axis }, [x]) if *op == f && *axis + 1 == self.ty(*x).rank() => {
                Some(*x)
            }
            _ => None,
        }
    }

    /// The operand and the order of the axes of a chain of transposes: output
    /// axis `i` is axis `perm[i]` of the operand. At least one transpose, and no more
    /// than a few.
    pub fn transposed(&self, id: ValueId) -> Option<(ValueId, Vec<usize>)> {
        let (Op::Transpose { perm }, [x]) = (self.op(id), self.inputs(id)) else {
            return None;
        };
        let (mut base, mut order) = (*x, perm.clone());
        for _ in 1..MAX_MOVEMENTS {
            let (Op::Transpose { perm }, [x]) = (self.op(base), self.inputs(base)) else {
                break;
            };
            let composed = order.iter().filter_map(|p| perm.get(*p).copied());
            order = composed.collect();
            base = *x;
        }
        Some((base, order))
    }
}

/// Tries every value of `graph`, in execution order, as the root of an idiom.
/// Where `find` finds one, `build` makes what stands for the root, with
/// [`Graph::insert_before`], and returns it; every user of the root then uses
/// that instead. What nobody needs is removed before the first, and counted.
///
/// # Errors
/// When `build` makes a value that has no type, or one of another type than the root.
pub fn rewrite<M>(
    graph: &mut Graph,
    find: impl Fn(&Matcher<'_>, ValueId) -> Option<M>,
    build: impl Fn(&mut Graph, ValueId, M) -> Result<ValueId, GraphError>,
) -> Result<Changed, GraphError> {
    // A use by what nobody needs is none.
    let mut changed = remove_dead(graph);
    let roots = graph.order().to_vec();
    let mut next = 0;
    while next < roots.len() {
        let matcher = Matcher::new(graph);
        let found = roots[next..].iter().enumerate().find_map(|(i, root)| {
            let wanted = matcher.use_count(*root) > 0;
            let found = wanted.then(|| find(&matcher, *root)).flatten()?;
            Some((i, *root, found))
        });
        let Some((skipped, root, found)) = found else {
            break;
        };
        next += skipped + 1;
        let replacement = build(graph, root, found)?;
        same_type(graph, root, replacement)?;
        graph.replace_uses(root, replacement);
        graph.remove_dead();
        changed.rewrites += 1;
    }
    Ok(changed)
}

/// Users of `root` were typed with its type, and are not typed anew.
fn same_type(graph: &Graph, root: ValueId, replacement: ValueId) -> Result<(), GraphError> {
    let (old, new) = (graph.value(root), graph.value(replacement));
    if old.ty == new.ty {
        return Ok(());
    }
    Err(GraphError::Type {
        op: old.op.name(),
        source_name: old.source.clone(),
        reason: TypeError {
            expected: format!("a replacement of type {}", old.ty),
            found: format!("{} ({})", new.ty, new.op.name()),
        },
    })
}

/// Repeats [`rewrite`] until nothing matches, for rules that feed each other.
///
/// # Errors
/// As those of [`rewrite`].
pub fn rewrite_all<M>(
    graph: &mut Graph,
    find: impl Fn(&Matcher<'_>, ValueId) -> Option<M>,
    build: impl Fn(&mut Graph, ValueId, M) -> Result<ValueId, GraphError>,
) -> Result<Changed, GraphError> {
    let mut changed = Changed::default();
    loop {
        let once = rewrite(graph, &find, &build)?;
        if !once.any() {
            return Ok(changed);
        }
        changed += once;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::text::parse;

    fn graph(body: &str) -> Graph {
        parse(&format!("graph g {{ {body} }}")).unwrap()
    }

    fn id(index: usize) -> ValueId {
        ValueId::from_index(index)
    }

    #[test]
    fn operands_of_either_way_round() {
        let g = graph(
            "%0 = input \"x\" : f32[4]
             %1 = const {f32=2.0}
             %2 = mul %1, %0
             %3 = sub %1, %0
             %4 = div %0, %1
             %5 = mul %0, %0",
        );
        let m = Matcher::new(&g);
        assert_eq!(m.binary(id(2), BinaryOp::Mul), Some((id(1), id(0))));
        assert_eq!(m.binary(id(2), BinaryOp::Add), None);
        assert_eq!(m.either(id(2), BinaryOp::Mul).count(), 2);
        assert_eq!(m.either(id(3), BinaryOp::Sub).count(), 1);
        assert_eq!(m.with_number(id(2), BinaryOp::Mul), Some((id(0), 2.0)));
        assert_eq!(m.with_number(id(3), BinaryOp::Sub), None);
        assert_eq!(m.scaled(id(4)), Some((id(0), 0.5)));
        assert_eq!(m.scaled(id(5)), None);
    }

    #[test]
    fn a_quotient_by_zero_is_no_scaling() {
        let g = graph(
            "%0 = input \"x\" : f32[4]
             %1 = const {f32=0.0}
             %2 = div %0, %1",
        );
        assert_eq!(Matcher::new(&g).scaled(id(2)), None);
    }

    #[test]
    fn constants_through_movements() {
        let g = graph(
            "%0 = const {f32=3.0}
             %1 = reshape %0 {shape=[1, 1]}
             %2 = broadcast %1 {shape=[4, 4]}
             %3 = const {i32=3}
             %4 = input \"x\" : f32[]",
        );
        let m = Matcher::new(&g);
        assert_eq!(m.number(id(2)), Some(3.0));
        assert_eq!(m.constant(id(3)), Some(Scalar::I32(3)));
        assert_eq!(m.number(id(3)), None);
        assert_eq!(m.constant(id(4)), None);
    }

    #[test]
    fn transposes_compose() {
        let g = graph(
            "%0 = input \"x\" : f32[2, 3, 4]
             %1 = transpose %0 {perm=[1, 2, 0]}
             %2 = transpose %1 {perm=[1, 2, 0]}",
        );
        let m = Matcher::new(&g);
        assert_eq!(m.transposed(id(2)), Some((id(0), vec![2, 0, 1])));
        // Said another way: the shape that the composed order gives.
        let shape: Vec<Dim> = [2, 0, 1].map(|p: usize| m.shape(id(0))[p].clone()).to_vec();
        assert_eq!(m.shape(id(2)), shape);
        assert_eq!(m.transposed(id(0)), None);
    }

    #[test]
    fn long_chains_of_movements() {
        let chain = |leaf: &str, links: usize, link: &str| {
            let links = (1..=links).map(|id| {
                let before = id - 1;
                format!(" %{id} = {}", link.replace('x', &format!("%{before}")))
            });
            graph(&format!("%0 = {leaf}{}", links.collect::<String>()))
        };
        let reshaped = |links| chain("const {f32=3.0}", links, "reshape x {shape=[1, 1]}");
        for (links, found) in [(MAX_MOVEMENTS, Some(3.0)), (40_000, None)] {
            let g = reshaped(links);
            assert_eq!(Matcher::new(&g).number(id(links)), found);
        }
        let g = chain(
            "input \"x\" : f32[2, 2]",
            40_001,
            "transpose x {perm=[1, 0]}",
        );
        let base = id(40_001 - MAX_MOVEMENTS);
        let found = Matcher::new(&g).transposed(id(40_001));
        assert_eq!(found, Some((base, vec![0, 1])));
    }

    #[test]
    fn reductions_along_the_last_axis() {
        let g = graph(
            "%0 = input \"x\" : f32[2, 3]
             %1 = reduce_mean %0 {axis=1}
             %2 = reduce_mean %0 {axis=0}",
        );
        let m = Matcher::new(&g);
        assert_eq!(m.reduced_last(id(1), ReduceOp::Mean), Some(id(0)));
        assert_eq!(m.reduced_last(id(1), ReduceOp::Sum), None);
        assert_eq!(m.reduced_last(id(2), ReduceOp::Mean), None);
    }

    #[test]
    fn closed_idioms() {
        let body = "%0 = input \"x\" : f32[4]
             %1 = const {f32=2.0}
             %2 = mul %0, %1
             %3 = exp %2
             %4 = add %2, %3
             %5 = mul %0, %1
             output \"y\" = %4
             output \"z\" = %5";
        let g = graph(body);
        let m = Matcher::new(&g);
        // The constant has another user, which does not count.
        assert!(m.closed(id(4), &[id(1), id(2), id(3)]));
        // %3 is left out, and uses %2.
        assert!(!m.closed(id(4), &[id(2)]));
        assert_eq!(m.use_count(id(2)), 2);
        assert!(m.used_once(id(3)) && !m.is_named(id(3)) && m.is_named(id(4)));

        let named = graph(&format!("{body} output \"inner\" = %3"));
        assert!(!Matcher::new(&named).closed(id(4), &[id(2), id(3)]));
    }

    #[test]
    fn numbers_that_a_person_typed() {
        assert!(about(0.797_884_6, (2.0 / std::f64::consts::PI).sqrt()));
        assert!(!about(0.797, (2.0 / std::f64::consts::PI).sqrt()));
        assert!(!about(1e-9, 0.0));
    }

    #[test]
    fn a_replacement_has_the_type_of_what_it_replaces() {
        let mut g = graph(
            "%0 = input \"x\" : f32[1]
             %1 = input \"y\" : f32[4]
             %2 = neg %0 : f32[1] @h.0
             %3 = add %2, %1
             output \"z\" = %3",
        );
        let find = |m: &Matcher<'_>, root: ValueId| m.unary(root, UnaryOp::Neg);
        let error = rewrite(&mut g, find, |_, _, _| Ok(id(1))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "neg in `h.0`: expected a replacement of type f32[1], found f32[4] (input)"
        );
    }

    /// A rewrite sees what the one before left: no value is taken twice.
    #[test]
    fn rewrites_keep_the_use_counts_exact() {
        let mut g = graph(
            "%0 = input \"x\" : f32[4]
             %1 = neg %0
             %2 = neg %1
             %3 = neg %2
             %4 = neg %3
             output \"y\" = %4",
        );
        let twice = |m: &Matcher<'_>, root: ValueId| {
            let inner = m.unary(root, UnaryOp::Neg)?;
            let x = m.unary(inner, UnaryOp::Neg)?;
            m.used_once(inner).then_some(x)
        };
        let changed = rewrite(&mut g, twice, |_, _, x| Ok(x)).unwrap();
        assert_eq!(changed.rewrites, 2);
        assert_eq!(g.outputs()[0].1, id(0));
        assert_eq!(g.order(), [id(0)]);
    }
}
