//! GPT-2 from Burn's modules, with a KV cache that is allocated once.

use burn::module::Initializer;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig, LinearLayout};
use burn::prelude::*;
use burn::tensor::Distribution;
use burn::tensor::activation::gelu_approximate;
use burn::tensor::module::{attention, embedding, linear};
use burn::tensor::ops::AttentionModuleOptions;

pub const VOCAB: usize = 50257;
pub const CONTEXT: usize = 1024;

/// What every adapter can bind; some bind no more.
const BINDING: usize = 128 << 20;

#[derive(Clone, Copy)]
pub struct Size {
    pub layers: usize,
    pub heads: usize,
    pub width: usize,
}

/// The token embeddings, by rows in as few tensors as a binding's limit takes.
struct Table(Vec<Tensor<2>>);

impl Table {
    fn new(width: usize, bytes: usize, device: &Device) -> Self {
        let most = BINDING / (width * bytes);
        let rows = VOCAB.div_ceil(VOCAB.div_ceil(most));
        let part = |first| {
            let shape = [rows.min(VOCAB - first), width];
            Tensor::random(shape, spread(width), device)
        };
        Table((0..VOCAB).step_by(rows).map(part).collect())
    }

    /// `[batch, seq]` to `[batch, seq, width]`.
    fn rows(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let mut first = 0;
        let mut sum: Option<Tensor<3>> = None;
        for part in &self.0 {
            let [rows, width] = part.dims();
            let local = ids.clone() - first as i64;
            let outside = local
                .clone()
                .lower_elem(0)
                .bool_or(local.clone().greater_equal_elem(rows as i64));
            let found = embedding(part.clone(), local.clamp(0, rows as i64 - 1));
            let outside = outside.unsqueeze_dim::<3>(2).repeat_dim(2, width);
            let found = match self.0.len() {
                1 => found,
                _ => found.mask_fill(outside, 0),
            };
            sum = Some(match sum {
                Some(sum) => sum + found,
                None => found,
            });
            first += rows;
        }
        sum.expect("a table has a part")
    }

    /// `[batch, width]` to `[batch, vocab]`.
    fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        let part = |part: &Tensor<2>| linear(x.clone(), part.clone().transpose(), None);
        Tensor::cat(self.0.iter().map(part).collect(), 1)
    }
}

#[derive(Module, Debug)]
struct Block {
    ln_1: LayerNorm,
    c_attn: Linear,
    attn_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    mlp_proj: Linear,
}

impl Block {
    fn new(width: usize, layout: LinearLayout, device: &Device) -> Self {
        let linear = |inputs: usize, outputs| {
            let std = (inputs as f64).sqrt().recip();
            let initializer = Initializer::Normal { mean: 0.0, std };
            let config = LinearConfig::new(inputs, outputs).with_layout(layout);
            config.with_initializer(initializer).init(device)
        };
        Block {
            ln_1: LayerNormConfig::new(width).init(device),
            c_attn: linear(width, 3 * width),
            attn_proj: linear(width, width),
            ln_2: LayerNormConfig::new(width).init(device),
            c_fc: linear(width, 4 * width),
            mlp_proj: linear(4 * width, width),
        }
    }

    fn forward(&self, x: Tensor<3>, cache: &mut Layer, past: usize, heads: usize) -> Tensor<3> {
        let [batch, seq, width] = x.dims();
        let split = |t: Tensor<3>| {
            t.reshape([batch, seq, heads, width / heads])
                .swap_dims(1, 2)
        };
        let qkv = self
            .c_attn
            .forward(self.ln_1.forward(x.clone()))
            .chunk(3, 2);
        let [q, k, v] = qkv.try_into().expect("three chunks");
        let keys = cache.keys.append(split(k), past);
        let values = cache.values.append(split(v), past);
        // A later step sees one query and no future.
        let options = AttentionModuleOptions {
            is_causal: seq > 1,
            ..Default::default()
        };
        let y = attention(split(q), keys, values, None, None, options);
        let y = y.swap_dims(1, 2).reshape([batch, seq, width]);
        let x = x + self.attn_proj.forward(y);
        let hidden = gelu_approximate(self.c_fc.forward(self.ln_2.forward(x.clone())));
        x + self.mlp_proj.forward(hidden)
    }
}

/// `[batch, heads, capacity, depth]`; `None` while it is written.
struct Half(Option<Tensor<4>>);

impl Half {
    /// Writes behind `past` positions, in place; the result is all positions so far.
    fn append(&mut self, new: Tensor<4>, past: usize) -> Tensor<4> {
        let [batch, heads, seq, depth] = new.dims();
        let whole = self.0.take().expect("a cache that is not being written");
        let whole = whole.slice_assign([0..batch, 0..heads, past..past + seq, 0..depth], new);
        self.0 = Some(whole.clone());
        whole.slice([0..batch, 0..heads, 0..past + seq, 0..depth])
    }
}

struct Layer {
    keys: Half,
    values: Half,
}

/// The KV cache of a batch.
pub struct Cache {
    layers: Vec<Layer>,
    /// The positions taken; setting it back forgets the rest.
    pub past: usize,
}

pub struct Gpt2 {
    size: Size,
    device: Device,
    wte: Table,
    wpe: Tensor<2>,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
}

/// Of a matrix with so many inputs.
fn spread(inputs: usize) -> Distribution {
    Distribution::Normal(0.0, (inputs as f64).sqrt().recip())
}

impl Gpt2 {
    /// Random weights of `bytes` bytes each, in the device's default type.
    pub fn new(size: Size, layout: LinearLayout, bytes: usize, device: &Device) -> Self {
        let block = |_| Block::new(size.width, layout, device);
        Gpt2 {
            size,
            device: device.clone(),
            wte: Table::new(size.width, bytes, device),
            wpe: Tensor::random([CONTEXT, size.width], spread(size.width), device),
            blocks: (0..size.layers).map(block).collect(),
            ln_f: LayerNormConfig::new(size.width).init(device),
        }
    }

    pub fn cache(&self, batch: usize, capacity: usize) -> Cache {
        let Size { heads, width, .. } = self.size;
        let half = || {
            let shape = [batch, heads, capacity, width / heads];
            Half(Some(Tensor::zeros(shape, &self.device)))
        };
        let layer = |_| Layer {
            keys: half(),
            values: half(),
        };
        Cache {
            layers: (0..self.size.layers).map(layer).collect(),
            past: 0,
        }
    }

    /// Appends `ids`, `[batch, seq]`, to the cache; the logits, `[batch, vocab]`, are
    /// those of the last position.
    pub fn step(&self, ids: Tensor<2, Int>, cache: &mut Cache) -> Tensor<2> {
        let [batch, seq] = ids.dims();
        let (past, width) = (cache.past, self.size.width);
        let positions = self.wpe.clone().slice([past..past + seq, 0..width]);
        let mut x = self.wte.rows(ids) + positions.unsqueeze();
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.forward(x, layer, past, self.size.heads);
        }
        cache.past += seq;
        let last = x.slice([0..batch, seq - 1..seq, 0..width]);
        self.wte
            .logits(self.ln_f.forward(last.reshape([batch, width])))
    }
}
