//! Self-attention of groups of heads.

use kiln_ir::{GraphBuilder, GraphError, ValueId};

use super::{
    Angles, Attended, Built, Linear, RmsNorm, Rotary, Span, attention, heads_apart, merge_heads,
    repeat_heads, split_heads,
};

/// The heads of a [`GroupedAttention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key heads, and value heads; divides the query heads.
    pub keys: usize,
    /// The width of each.
    pub width: usize,
}

impl Heads {
    /// The width of all query heads together.
    pub fn query_width(self) -> usize {
        self.queries * self.width
    }

    /// The width of all key heads together, and of all value heads.
    pub fn key_width(self) -> usize {
        self.keys * self.width
    }
}

/// Causal self-attention with a rotary embedding, groups of query heads sharing
/// keys and values (Ainslie et al., <https://arxiv.org/abs/2305.13245>).
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedAttention {
    /// Queries, keys and values, side by side; checkpoints store three.
    qkv_proj: Linear,
    o_proj: Linear,
    /// Of the queries and of the keys of each head.
    head_norms: Option<[RmsNorm; 2]>,
    rotary: Rotary,
    heads: Heads,
    divisor: f64,
}

impl GroupedAttention {
    /// Attention, `self_attn`, of layers `qkv_proj` and `o_proj` without biases.
    /// Scores are divided by the root of a head's width.
    pub fn new(width: usize, heads: Heads, rotary: &Rotary) -> Self {
        let (queries, keys) = (heads.query_width(), heads.key_width());
        GroupedAttention {
            qkv_proj: Linear::new("qkv_proj", width, queries + 2 * keys).without_bias(),
            o_proj: Linear::new("o_proj", queries, width).without_bias(),
            head_norms: None,
            rotary: rotary.clone(),
            heads,
            divisor: (heads.width as f64).sqrt(),
        }
    }

    /// The same attention, with or without biases of queries, keys and values
    /// and of the output.
    #[must_use]
    pub fn with_bias(mut self, qkv: bool, output: bool) -> Self {
        self.qkv_proj = self.qkv_proj.with_bias(qkv);
        self.o_proj = self.o_proj.with_bias(output);
        self
    }

    /// The same attention with norms `q_norm` and `k_norm` of the queries and of
    /// the keys of each head, before they turn. `epsilon` is added to the mean
    /// square.
    #[must_use]
    pub fn with_head_norms(mut self, epsilon: f64) -> Self {
        let width = self.heads.width;
        let norms = ["q_norm", "k_norm"].map(|name| RmsNorm::new(name, width, epsilon));
        self.head_norms = Some(norms);
        self
    }

    /// The same attention, its scores divided by `divisor`.
    #[must_use]
    pub fn with_divisor(mut self, divisor: f64) -> Self {
        self.divisor = divisor;
        self
    }

    /// `x[batch, seq, width]` to the same, and the attention probabilities,
    /// `[batch, heads, seq, past + seq]`. `angles` are those of the rotary
    /// embedding at the span's positions, and `mask` says which keys a token
    /// sees, as [`Span::mask`] does.
    ///
    /// # Errors
    /// When ops do not fit together.
    pub fn forward(
        &self,
        g: &mut GraphBuilder,
        x: ValueId,
        angles: Angles,
        span: &Span,
        mask: ValueId,
    ) -> Result<(ValueId, ValueId), GraphError> {
        let Heads { queries, keys, .. } = self.heads;
        g.scope("self_attn", |g| {
            let qkv = self.qkv_proj.forward(g, x)?;
            let q_end = self.heads.query_width();
            let k_end = q_end + self.heads.key_width();
            let v_end = k_end + self.heads.key_width();
            let qk = g.slice(qkv, 2, 0, k_end)?;
            let v = g.slice(qkv, 2, k_end, v_end)?;
            let qk = match &self.head_norms {
                Some([q_norm, k_norm]) => {
                    let q = g.slice(qk, 2, 0, q_end)?;
                    let k = g.slice(qk, 2, q_end, k_end)?;
                    let q = for_each_head(g, q_norm, q, queries)?;
                    let k = for_each_head(g, k_norm, k, keys)?;
                    g.concat(&[q, k], 2)?
                }
                None => qk,
            };
            // Queries and keys turn together.
            let qk = g.scope("rotary_emb", |g| self.rotary.forward(g, qk, angles))?;
            let q = g.slice(qk, 2, 0, q_end)?;
            let k = g.slice(qk, 2, q_end, k_end)?;
            let k = span.cached(g, "k", k)?;
            let v = span.cached(g, "v", v)?;

            let group = queries / keys.max(1);
            let q = split_heads(g, q, queries)?;
            let k = split_heads(g, k, keys)?;
            let k = repeat_heads(g, k, group)?;
            let v = split_heads(g, v, keys)?;
            let v = repeat_heads(g, v, group)?;
            let Attended {
                output,
                probabilities,
            } = attention(g, q, k, v, mask, &[self.divisor])?;
            let merged = merge_heads(g, output)?;
            Ok((self.o_proj.forward(g, merged)?, probabilities))
        })
    }
}

/// `x[.., heads * d]`, each head normalised.
fn for_each_head(g: &mut GraphBuilder, norm: &RmsNorm, x: ValueId, heads: usize) -> Built {
    let whole = g.shape(x);
    let apart = heads_apart(g, x, heads)?;
    let normed = norm.forward(g, apart)?;
    g.reshape(normed, whole)
}
