//! Graphs at random: recipes of what builders emit, in any composition.

use kiln_ir::{
    BinaryOp, DType, Dim, Graph, GraphBuilder, GraphError, MASK_VALUE, Op, UnaryOp, ValueId,
};

type Built = Result<ValueId, GraphError>;

/// The width of every value, so that any two may be combined.
const WIDTH: u64 = 8;

/// One step of a recipe: which idiom, on which of the values there are, in which
/// variant.
pub type Step = (u8, u8, u8, u8);

/// Follows a recipe. Whatever the steps say, the graph is valid.
pub fn graph(recipe: &[Step]) -> Graph {
    build(recipe).unwrap()
}

fn build(recipe: &[Step]) -> Result<Graph, GraphError> {
    let mut g = GraphBuilder::new("random");
    let batch = g.symbol("batch", 3)?;
    let seq = g.symbol("seq", 5)?;
    let past = g.symbol("past", 5)?;
    let shape = [batch.clone(), seq.clone(), WIDTH.into()];
    let pool = vec![
        g.input("x", DType::F32, shape.clone())?,
        g.input("y", DType::F32, shape)?,
    ];
    let start = g.input("start", DType::I32, [batch.clone()])?;
    let mut cook = Cook {
        g,
        batch,
        seq,
        past,
        start,
        pool,
        names: 0,
    };
    for step in recipe {
        cook.step(*step)?;
    }
    let last = cook.pick(u8::MAX);
    cook.output(last)?;
    Ok(cook.g.finish())
}

struct Cook {
    g: GraphBuilder,
    batch: Dim,
    seq: Dim,
    past: Dim,
    start: ValueId,
    /// Values `[batch, seq, WIDTH]` and `[batch, 1, WIDTH]`.
    pool: Vec<ValueId>,
    names: usize,
}

impl Cook {
    fn step(&mut self, (kind, a, b, variant): Step) -> Result<(), GraphError> {
        let (x, y) = (self.pick(a), self.pick(b));
        let made = match kind % 15 {
            0 => self.g.add(x, y)?,
            1 => self.with_vector(x, variant)?,
            2 => self.scaled(x, variant)?,
            3 | 4 => self.norm(x, variant)?,
            5 => self.gelu(x, y, variant)?,
            6 => self.activation(x, y, variant)?,
            7 | 8 => self.linear(x, WIDTH, variant % 2 == 0)?,
            9 => self.mlp(x, variant)?,
            10 | 11 => self.attention(x, y, variant)?,
            12 => self.movement(x, variant)?,
            13 => self.rotary(x, variant)?,
            _ => {
                self.output(x)?;
                return Ok(());
            }
        };
        self.pool.push(made);
        Ok(())
    }

    /// Recent values for large numbers, so that chains come about.
    fn pick(&self, which: u8) -> ValueId {
        let count = self.pool.len();
        let back = usize::from(u8::MAX - which) * count / 256;
        self.pool[count - 1 - back * back / count]
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("p{}", self.names)
    }

    fn output(&mut self, x: ValueId) -> Result<(), GraphError> {
        let name = self.name();
        self.g.output(&name, x)
    }

    fn vector(&mut self, n: u64) -> Built {
        let name = self.name();
        self.g.param(&name, [n])
    }

    fn with(&mut self, op: BinaryOp, x: ValueId, value: f64) -> Built {
        let value = self.g.f32(value)?;
        self.g.op(Op::Binary(op), &[x, value])
    }

    fn with_vector(&mut self, x: ValueId, variant: u8) -> Built {
        let vector = self.vector(WIDTH)?;
        match variant % 3 {
            0 => self.g.add(vector, x),
            1 => self.g.mul(x, vector),
            _ => self.g.sub(x, vector),
        }
    }

    fn scaled(&mut self, x: ValueId, variant: u8) -> Built {
        let half = self.with(BinaryOp::Mul, x, 0.5)?;
        match variant % 6 {
            0 => Ok(half),
            1 => self.with(BinaryOp::Div, half, 1.5),
            2 => self.with(BinaryOp::Mul, x, 1.0),
            3 => self.with(BinaryOp::Add, half, 0.0),
            4 => {
                let negative = self.g.neg(half)?;
                self.g.neg(negative)
            }
            // The first scaling has another use.
            _ => {
                let quarter = self.with(BinaryOp::Div, half, 2.0)?;
                self.g.add(quarter, half)
            }
        }
    }

    fn norm(&mut self, x: ValueId, variant: u8) -> Built {
        let centred = if variant & 1 == 0 {
            let mean = self.g.mean(x, 2)?;
            self.g.sub(x, mean)?
        } else {
            x
        };
        let square = match variant & 2 {
            0 => self.g.mul(centred, centred)?,
            _ => self.with(BinaryOp::Pow, centred, 2.0)?,
        };
        // Along another axis it is no norm.
        let axis = if variant & 0x3c == 0x3c { 1 } else { 2 };
        let variance = self.g.mean(square, axis)?;
        let guarded = self.with(BinaryOp::Add, variance, 1e-2)?;
        let normed = match variant & 4 {
            0 => {
                let root = self.g.rsqrt(guarded)?;
                self.g.mul(centred, root)?
            }
            _ => {
                let root = self.g.sqrt(guarded)?;
                self.g.div(centred, root)?
            }
        };
        let gain = self.vector(WIDTH)?;
        let scaled = self.g.mul(normed, gain)?;
        if variant & 0x18 == 0x18 {
            self.output(normed)?;
        }
        if variant & 0x20 != 0 {
            return Ok(scaled);
        }
        let bias = self.vector(WIDTH)?;
        self.g.add(scaled, bias)
    }

    fn gelu(&mut self, x: ValueId, y: ValueId, variant: u8) -> Built {
        let curve = if variant & 1 == 0 {
            let cube = self.with(BinaryOp::Pow, x, 3.0)?;
            let cube = self.with(BinaryOp::Mul, cube, 0.044_715)?;
            let sum = self.g.add(x, cube)?;
            let inner = self.with(BinaryOp::Mul, sum, (2.0 / std::f64::consts::PI).sqrt())?;
            self.g.tanh(inner)?
        } else {
            let inner = self.with(BinaryOp::Div, x, std::f64::consts::SQRT_2)?;
            self.g.erf(inner)?
        };
        let gate = self.with(BinaryOp::Add, curve, 1.0)?;
        if variant & 0x0c == 0x0c {
            self.output(gate)?;
        }
        // A gate on another value is no GELU; nor is one without the half.
        let gated = if variant & 0x70 == 0x70 { y } else { x };
        let product = self.g.mul(gated, gate)?;
        if variant & 0x82 == 0x82 {
            return Ok(product);
        }
        self.with(BinaryOp::Mul, product, 0.5)
    }

    fn activation(&mut self, x: ValueId, y: ValueId, variant: u8) -> Built {
        match variant % 6 {
            0 => self.with(BinaryOp::Max, x, 0.0),
            1 => self.g.tanh(x),
            2 => self.g.op(Op::Unary(UnaryOp::Sin), &[x]),
            3 => {
                let curve = self.g.tanh(y)?;
                self.g.mul(x, curve)
            }
            other => {
                let negative = self.g.neg(x)?;
                let exp = self.g.exp(negative)?;
                let one = self.g.f32(1.0)?;
                let denominator = self.g.add(one, exp)?;
                if other == 4 {
                    return self.g.div(x, denominator);
                }
                let sigmoid = self.g.div(one, denominator)?;
                self.g.mul(y, sigmoid)
            }
        }
    }

    /// Two heads, turned by the position, in either way of writing it.
    fn rotary(&mut self, x: ValueId, variant: u8) -> Built {
        const HEADS: u64 = 2;
        const HALF: u64 = WIDTH / HEADS / 2;
        let shape = self.g.shape(x);
        let len = shape[1].clone();
        let positions = self.g.arange(0, &len)?;
        let positions = self.g.cast(positions, DType::F32)?;
        let positions = self.g.reshape(positions, [len, 1.into(), 1.into()])?;
        let frequencies = self.vector(HALF)?;
        let mut angle = self.g.mul(positions, frequencies)?;
        let is_whole = variant & 1 == 1;
        if is_whole {
            angle = self.g.concat(&[angle, angle], 2)?;
        }
        let (cos, sin) = (self.g.cos(angle)?, self.g.sin(angle)?);
        let mut apart = shape.clone();
        apart[2] = HEADS.into();
        apart.push((2 * HALF).into());
        let x = self.g.reshape(x, apart)?;
        let a = self.g.slice(x, 3, 0, HALF)?;
        let b = self.g.slice(x, 3, HALF, 2 * HALF)?;
        // Halves that were not exchanged are no turn.
        let (first, second) = if variant & 6 == 6 { (b, a) } else { (a, b) };
        let turned = if is_whole {
            let negative = self.g.neg(second)?;
            let swapped = self.g.concat(&[negative, first], 3)?;
            let (straight, across) = (self.g.mul(x, cos)?, self.g.mul(swapped, sin)?);
            self.g.add(straight, across)?
        } else {
            let (a_cos, b_sin) = (self.g.mul(a, cos)?, self.g.mul(second, sin)?);
            let (b_cos, a_sin) = (self.g.mul(b, cos)?, self.g.mul(first, sin)?);
            let parts = [self.g.sub(a_cos, b_sin)?, self.g.add(b_cos, a_sin)?];
            self.g.concat(&parts, 3)?
        };
        if variant & 0x18 == 0x18 {
            self.output(turned)?;
        }
        self.g.reshape(turned, shape)
    }

    fn product(&mut self, x: ValueId, inner: u64, outer: u64) -> Built {
        let name = self.name();
        let w = self.g.param(&name, [outer, inner])?;
        let w = self.g.transpose(w, &[1, 0])?;
        self.g.matmul(x, w)
    }

    fn linear(&mut self, x: ValueId, outer: u64, has_bias: bool) -> Built {
        let product = self.product(x, WIDTH, outer)?;
        if !has_bias {
            return Ok(product);
        }
        let bias = self.vector(outer)?;
        self.g.add(product, bias)
    }

    /// Up, a nonlinearity or a gate, down, and often the residual.
    fn mlp(&mut self, x: ValueId, variant: u8) -> Built {
        let inner = 2 * WIDTH;
        let up = self.linear(x, inner, variant & 1 == 0)?;
        let mut act = self.activation(up, up, variant >> 4)?;
        if variant & 2 == 0 {
            let gate = self.linear(x, inner, false)?;
            act = self.g.mul(act, gate)?;
        }
        let down = self.product(act, inner, WIDTH)?;
        if variant & 0x0c == 0x0c {
            return Ok(down);
        }
        self.g.add(x, down)
    }

    /// From moving elements to and fro, to slicing the last position.
    fn movement(&mut self, x: ValueId, variant: u8) -> Built {
        let shape = self.g.shape(x);
        match variant % 4 {
            0 => {
                let moved = self.g.transpose(x, &[1, 2, 0])?;
                self.g.transpose(moved, &[2, 0, 1])
            }
            1 => {
                let apart = [shape[0].clone(), shape[1].clone(), 2.into(), 4.into()];
                let apart = self.g.reshape(x, apart)?;
                self.g.reshape(apart, shape)
            }
            2 => {
                let half = Dim::constant(WIDTH / 2);
                let first = self.g.slice(x, 2, 0, &half)?;
                let second = self.g.slice(x, 2, half, WIDTH)?;
                self.g.concat(&[second, first], 2)
            }
            _ => self.g.slice(x, 1, &shape[1] - &1.into(), &shape[1]),
        }
    }

    /// Attention of `x` to `y`, with some of: a cache, groups, causality (also
    /// off by one), a window, padding, the probabilities as an output.
    fn attention(&mut self, x: ValueId, y: ValueId, variant: u8) -> Built {
        let has = |bit: u8| variant >> bit & 1 == 1;
        let (heads, kv_heads) = if has(0) { (4, 2) } else { (2, 2) };
        let head_dim = WIDTH / heads;
        let kv_width = kv_heads * head_dim;
        let q = self.linear(x, WIDTH, true)?;
        let mut k = self.linear(y, kv_width, false)?;
        let mut v = self.linear(y, kv_width, true)?;
        let (n, mut m) = (self.g.shape(q)[1].clone(), self.g.shape(k)[1].clone());
        if has(1) {
            for new in [&mut k, &mut v] {
                let name = self.name();
                let shape = [self.batch.clone(), self.past.clone(), kv_width.into()];
                let cached = self.g.state(&name, DType::F32, shape)?;
                *new = self.g.concat(&[cached, *new], 1)?;
                self.g.set_state(&name, *new)?;
            }
            m = &m + &self.past;
        }
        let q = self.split(q, heads, heads)?;
        let k = self.split(k, kv_heads, heads)?;
        let v = self.split(v, kv_heads, heads)?;
        let k = self.g.transpose(k, &[0, 1, 3, 2])?;
        let scores = self.g.matmul(q, k)?;
        let mut scores = self.with(BinaryOp::Div, scores, (head_dim as f64).sqrt())?;
        let keys = self.positions(&0.into(), &m, 3)?;
        let mut seen = None;
        if has(2) {
            // Queries stand at the end of the keys; off by one they do not.
            let mut first = if m == n || has(1) && m == &n + &self.past {
                &m - &n
            } else {
                Dim::default()
            };
            if has(4) && has(5) {
                first = &first + &1.into();
            }
            let queries = self.positions(&first, &n, 2)?;
            let mut causal = self.g.le(keys, queries)?;
            if has(6) && !has(7) {
                let back = self.g.sub(queries, keys)?;
                let window = self.g.i32(2)?;
                let near = self.g.lt(back, window)?;
                causal = self.g.and(near, causal)?;
            }
            seen = Some(causal);
        }
        if has(3) {
            let one = Dim::constant(1);
            let shape = [self.batch.clone(), one.clone(), one.clone(), one];
            let start = self.g.reshape(self.start, shape)?;
            let late = self.g.ge(keys, start)?;
            seen = Some(match seen {
                Some(seen) => self.g.and(seen, late)?,
                None => late,
            });
        }
        if let Some(seen) = seen {
            let hidden = self.g.f32(MASK_VALUE)?;
            scores = self.g.select(seen, scores, hidden)?;
        }
        let probabilities = self.g.softmax(scores, 3)?;
        if has(6) && has(7) {
            self.output(probabilities)?;
        }
        let out = self.g.matmul(probabilities, v)?;
        let out = self.g.transpose(out, &[0, 2, 1, 3])?;
        let shape = [self.batch.clone(), n, WIDTH.into()];
        self.g.reshape(out, shape)
    }

    fn positions(&mut self, start: &Dim, count: &Dim, axis: usize) -> Built {
        let range = self.g.arange(start, start + count)?;
        let mut shape = vec![Dim::constant(1); 4];
        shape[axis] = count.clone();
        self.g.reshape(range, shape)
    }

    fn split(&mut self, x: ValueId, heads: u64, repeated_to: u64) -> Built {
        let shape = self.g.shape(x);
        let len = shape[1].clone();
        let width = shape[2].as_const().unwrap();
        let head_dim = Dim::constant(width / heads);
        let batch = self.batch.clone();
        let apart = [batch.clone(), len.clone(), heads.into(), head_dim.clone()];
        let apart = self.g.reshape(x, apart)?;
        let split = self.g.transpose(apart, &[0, 2, 1, 3])?;
        if heads == repeated_to {
            return Ok(split);
        }
        let times = repeated_to / heads;
        let once = [&batch, &heads.into(), &1.into(), &len, &head_dim].map(Dim::clone);
        let many = [&batch, &heads.into(), &times.into(), &len, &head_dim].map(Dim::clone);
        let once = self.g.reshape(split, once)?;
        let many = self.g.broadcast(once, many)?;
        self.g
            .reshape(many, [batch, repeated_to.into(), len, head_dim])
    }
}
