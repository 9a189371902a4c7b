//! How builders take the heads of queries, keys and values apart.

use kiln_ir::{BinaryOp, Dim, Op, ValueId};

use crate::matcher::Matcher;

/// `[b, heads, len, d]`, or its transpose, traced back to what the heads were
/// split from.
pub(crate) struct Heads {
    /// `[b, len, heads, d]`, or `[b, len, heads, 1, d]` where the heads were
    /// repeated: the heads of a position side by side, either way.
    pub apart: ValueId,
    /// `[b, len, heads*d]`
    pub merged: Vec<Dim>,
    /// How many heads there are before they are repeated.
    pub heads: usize,
    /// What the elements were scaled by on the way.
    pub scale: f64,
}

/// The heads' axes in `[b, heads, len, d]`, from `[b, len, heads, d]`.
pub(crate) const SPLIT: [usize; 4] = [0, 2, 1, 3];
/// The heads' axes in `[b, heads, d, len]`, from `[b, len, heads, d]`.
pub(crate) const SPLIT_TRANSPOSED: [usize; 4] = [0, 2, 3, 1];

impl Heads {
    /// The heads of queries, of which there are as many as attention has: where they are
    /// repeats, that is how they are computed.
    pub fn of_queries(m: &Matcher<'_>, id: ValueId) -> Option<Heads> {
        let mut scale = 1.0;
        let id = unscaled(m, id, &mut scale);
        let (base, found) = m.transposed(id)?;
        (found == SPLIT).then_some(())?;
        Heads::of(m, unscaled(m, base, &mut scale), scale)
    }

    /// The heads of keys or values, before they are repeated for groups of query heads.
    /// `id` has its axes in the order `perm`.
    pub fn find(m: &Matcher<'_>, id: ValueId, perm: [usize; 4]) -> Option<Heads> {
        let mut scale = 1.0;
        let id = unscaled(m, id, &mut scale);
        if let Some((base, found)) = m.transposed(id)
            && found == perm
        {
            let base = unscaled(m, base, &mut scale);
            // Repeated before the axes change places, or not at all.
            return match repeated(m, base, 3) {
                Some(once) => Heads::of(m, once, scale),
                None => Heads::of(m, base, scale),
            };
        }
        // Repeated after the axes have changed places.
        let repeats = if perm == SPLIT {
            id
        } else {
            let (base, last_two) = m.transposed(id)?;
            (last_two == [0, 1, 3, 2]).then_some(base)?
        };
        let once = repeated(m, repeats, 2)?;
        // [b, heads, 1, len, d] is [b, heads, len, d] with an axis more.
        let before = match (m.op(once), m.inputs(once)) {
            (Op::Reshape { .. }, [x]) => *x,
            _ => return None,
        };
        let mut expected = m.shape(once).to_vec();
        expected.remove(2);
        let (apart, found) = m.transposed(before)?;
        (m.shape(before) == expected && found == SPLIT).then_some(())?;
        Heads::of(m, unscaled(m, apart, &mut scale), scale)
    }

    /// `[b, len, heads, d]`, perhaps with an axis of size one before the last.
    fn of(m: &Matcher<'_>, apart: ValueId, scale: f64) -> Option<Heads> {
        let (b, len, heads, d) = match m.shape(apart) {
            [b, len, heads, d] => (b, len, heads, d),
            [b, len, heads, one, d] if one.is_one() => (b, len, heads, d),
            _ => return None,
        };
        Some(Heads {
            apart,
            merged: vec![b.clone(), len.clone(), heads * d],
            heads: usize::try_from(heads.as_const()?).ok()?,
            scale,
        })
    }
}

/// `x` of a chain of `x * c` and `x / c`, whose scales `scale` is multiplied by.
pub(crate) fn unscaled(m: &Matcher<'_>, id: ValueId, scale: &mut f64) -> ValueId {
    let mut id = id;
    while let Some((x, c)) = scaled(m, id) {
        *scale *= c;
        id = x;
    }
    id
}

/// One link of that chain.
pub(crate) fn scaled(m: &Matcher<'_>, id: ValueId) -> Option<(ValueId, f64)> {
    let is_product = matches!(m.op(id), Op::Binary(BinaryOp::Mul | BinaryOp::Div));
    m.scaled(id)
        .filter(|(x, _)| is_product && m.ty(*x) == m.ty(id))
}

/// `x[.., heads, 1, ..]` of `reshape(broadcast(x, [.., heads, times, ..]),
/// [.., heads*times, ..])`, where the axis of size one is `axis` of five.
fn repeated(m: &Matcher<'_>, id: ValueId, axis: usize) -> Option<ValueId> {
    let (Op::Reshape { shape }, [wide]) = (m.op(id), m.inputs(id)) else {
        return None;
    };
    let (Op::Broadcast { shape: times }, [once]) = (m.op(*wide), m.inputs(*wide)) else {
        return None;
    };
    let mut narrow = times.clone();
    *narrow.get_mut(axis)? = 1.into();
    let mut joined = times.clone();
    let count = joined.remove(axis);
    let heads = joined.get_mut(axis - 1)?;
    *heads = &*heads * &count;
    let fits = times.len() == 5 && m.shape(*once) == narrow && *shape == joined;
    fits.then_some(*once)
}
