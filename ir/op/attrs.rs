//! An op's attributes by name, as the text form writes and reads them.

use super::{Activation, AttentionSpec, BinaryOp, Norm, Op, ReduceOp, Scalar, Step, UnaryOp};
use crate::dim::Dim;
use crate::types::TensorType;

/// An attribute's value, for the text form.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// A whole number.
    Int(usize),
    /// A real number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A word, such as `gelu_tanh`.
    Word(String),
    /// A quoted string.
    Text(String),
    /// A dimension.
    Dim(Dim),
    /// A list.
    List(Vec<Attr>),
    /// A tensor type.
    Type(TensorType),
}

impl Op {
    /// The attributes in the order of the text form.
    pub fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let dims = |shape: &[Dim]| Attr::List(shape.iter().cloned().map(Attr::Dim).collect());
        let word = |w: &str| Attr::Word(w.to_owned());
        match self {
            Op::Param { name, ty } | Op::Input { name, ty } | Op::State { name, ty } => vec![
                ("name", Attr::Text(name.clone())),
                ("type", Attr::Type(ty.clone())),
            ],
            Op::Const(scalar) => vec![match *scalar {
                Scalar::F32(v) => ("f32", Attr::Float(v)),
                // Integers may be negative, which `Int` is not.
                Scalar::I32(v) => ("i32", Attr::Word(v.to_string())),
                Scalar::Bool(v) => ("bool", Attr::Bool(v)),
            }],
            Op::Table(values) => {
                let values = values.iter().map(|v| Attr::Float(*v));
                vec![("f32", Attr::List(values.collect()))]
            }
            Op::Arange { start, end } => vec![
                ("start", Attr::Dim(start.clone())),
                ("end", Attr::Dim(end.clone())),
            ],
            Op::Unary(_) | Op::Binary(_) | Op::Where | Op::Gather | Op::MatMul | Op::Rotary => {
                vec![]
            }
            Op::Cast(dtype) => vec![("to", word(dtype.name()))],
            Op::Reshape { shape } | Op::Broadcast { shape } => vec![("shape", dims(shape))],
            Op::Transpose { perm } => vec![(
                "perm",
                Attr::List(perm.iter().map(|p| Attr::Int(*p)).collect()),
            )],
            Op::Slice { axis, start, end } => vec![
                ("axis", Attr::Int(*axis)),
                ("start", Attr::Dim(start.clone())),
                ("end", Attr::Dim(end.clone())),
            ],
            Op::Concat { axis } | Op::Reduce { axis, .. } | Op::Softmax { axis } => {
                vec![("axis", Attr::Int(*axis))]
            }
            Op::Normalize(norm) => vec![("eps", Attr::Float(norm.eps()))],
            Op::Activate(a) => vec![("fn", word(a.word()))],
            Op::Linear { norm, steps } => {
                let mut attrs = Vec::new();
                match norm {
                    Some(Norm::Layer { eps }) => attrs.push(("layer_norm", Attr::Float(*eps))),
                    Some(Norm::Rms { eps }) => attrs.push(("rms_norm", Attr::Float(*eps))),
                    None => {}
                }
                if !steps.is_empty() {
                    let words = steps.iter().map(|s| match s {
                        Step::Add => word("add"),
                        Step::Mul => word("mul"),
                        Step::Act(a) => word(a.word()),
                    });
                    attrs.push(("then", Attr::List(words.collect())));
                }
                attrs
            }
            Op::Attention(spec) | Op::AttentionProbs(spec) => {
                let mut attrs = vec![
                    ("heads", Attr::Int(spec.heads)),
                    ("kv_heads", Attr::Int(spec.kv_heads)),
                    ("scale", Attr::Float(spec.scale)),
                    ("causal", Attr::Bool(spec.causal)),
                ];
                attrs.extend(spec.window.map(|window| ("window", Attr::Int(window))));
                attrs
            }
        }
    }

    /// The op of this name with these attributes; the inverse of
    /// [`Op::name`] and [`Op::attrs`].
    ///
    /// # Errors
    /// A sentence that says which attribute is missing, superfluous or of the
    /// wrong kind, or that no op has this name.
    pub fn from_parts(name: &str, attrs: Vec<(String, Attr)>) -> Result<Op, String> {
        let mut attrs = AttrReader { op: name, attrs };
        let op = match name {
            "param" => {
                let (name, ty) = attrs.named_type()?;
                Op::Param { name, ty }
            }
            "input" => {
                let (name, ty) = attrs.named_type()?;
                Op::Input { name, ty }
            }
            "state" => {
                let (name, ty) = attrs.named_type()?;
                Op::State { name, ty }
            }
            "const" => Op::Const(attrs.scalar()?),
            "table" => Op::Table(attrs.floats("f32")?),
            "arange" => Op::Arange {
                start: attrs.dim("start")?,
                end: attrs.dim("end")?,
            },
            "where" => Op::Where,
            "gather" => Op::Gather,
            "matmul" => Op::MatMul,
            "cast" => Op::Cast(attrs.word("to")?.parse()?),
            "reshape" => Op::Reshape {
                shape: attrs.dims("shape")?,
            },
            "broadcast" => Op::Broadcast {
                shape: attrs.dims("shape")?,
            },
            "transpose" => Op::Transpose {
                perm: attrs.ints("perm")?,
            },
            "slice" => Op::Slice {
                axis: attrs.int("axis")?,
                start: attrs.dim("start")?,
                end: attrs.dim("end")?,
            },
            "concat" => Op::Concat {
                axis: attrs.int("axis")?,
            },
            "softmax" => Op::Softmax {
                axis: attrs.int("axis")?,
            },
            "layer_norm" => Op::Normalize(Norm::Layer {
                eps: attrs.float("eps")?,
            }),
            "rms_norm" => Op::Normalize(Norm::Rms {
                eps: attrs.float("eps")?,
            }),
            "activate" => Op::Activate(attrs.activation("fn")?),
            "linear" => {
                if attrs.has("layer_norm") && attrs.has("rms_norm") {
                    return Err("`linear` takes one norm, `layer_norm` or `rms_norm`".to_owned());
                }
                let norm = if attrs.has("layer_norm") {
                    let eps = attrs.float("layer_norm")?;
                    Some(Norm::Layer { eps })
                } else if attrs.has("rms_norm") {
                    let eps = attrs.float("rms_norm")?;
                    Some(Norm::Rms { eps })
                } else {
                    None
                };
                let steps = if attrs.has("then") {
                    attrs.steps("then")?
                } else {
                    Vec::new()
                };
                Op::Linear { norm, steps }
            }
            "rotary" => Op::Rotary,
            "attention" => Op::Attention(attrs.attention()?),
            "attention_probs" => Op::AttentionProbs(attrs.attention()?),
            other => {
                if let Some(op) = UnaryOp::from_word(other) {
                    Op::Unary(op)
                } else if let Some(op) = BinaryOp::from_word(other) {
                    Op::Binary(op)
                } else if let Some(op) = ReduceOp::from_word(other) {
                    Op::Reduce {
                        op,
                        axis: attrs.int("axis")?,
                    }
                } else {
                    return Err(format!("there is no op `{other}`"));
                }
            }
        };
        attrs.finish()?;
        Ok(op)
    }
}

/// Takes attributes out of a list by name and kind.
struct AttrReader<'a> {
    op: &'a str,
    attrs: Vec<(String, Attr)>,
}

impl AttrReader<'_> {
    fn has(&self, key: &str) -> bool {
        self.attrs.iter().any(|(k, _)| k == key)
    }

    fn take(&mut self, key: &str) -> Result<Attr, String> {
        let found = self.attrs.iter().position(|(k, _)| k == key);
        match found {
            Some(i) => Ok(self.attrs.remove(i).1),
            None => Err(format!("`{}` wants an attribute `{key}`", self.op)),
        }
    }

    fn wrong<T>(&self, key: &str, wanted: &str) -> Result<T, String> {
        Err(format!("attribute `{key}` of `{}` wants {wanted}", self.op))
    }

    fn int(&mut self, key: &str) -> Result<usize, String> {
        match self.take(key)? {
            Attr::Int(v) => Ok(v),
            _ => self.wrong(key, "a whole number"),
        }
    }

    fn float(&mut self, key: &str) -> Result<f64, String> {
        match self.take(key)? {
            Attr::Float(v) => Ok(v),
            Attr::Int(v) => Ok(v as f64),
            _ => self.wrong(key, "a number"),
        }
    }

    fn floats(&mut self, key: &str) -> Result<Vec<f64>, String> {
        let items = self.list(key)?.into_iter();
        let floats: Option<Vec<f64>> = items
            .map(|a| match a {
                Attr::Float(v) => Some(v),
                Attr::Int(v) => Some(v as f64),
                _ => None,
            })
            .collect();
        floats.map_or_else(|| self.wrong(key, "a list of numbers"), Ok)
    }

    fn word(&mut self, key: &str) -> Result<String, String> {
        match self.take(key)? {
            Attr::Word(w) => Ok(w),
            Attr::Dim(d) if d.as_symbol().is_some() => Ok(d.to_string()),
            _ => self.wrong(key, "a word"),
        }
    }

    fn dim(&mut self, key: &str) -> Result<Dim, String> {
        let attr = self.take(key)?;
        as_dim(attr).map_or_else(|| self.wrong(key, "a dimension"), Ok)
    }

    fn list(&mut self, key: &str) -> Result<Vec<Attr>, String> {
        match self.take(key)? {
            Attr::List(items) => Ok(items),
            _ => self.wrong(key, "a list"),
        }
    }

    fn dims(&mut self, key: &str) -> Result<Vec<Dim>, String> {
        let items = self.list(key)?;
        let dims: Option<Vec<Dim>> = items.into_iter().map(as_dim).collect();
        dims.map_or_else(|| self.wrong(key, "a list of dimensions"), Ok)
    }

    fn ints(&mut self, key: &str) -> Result<Vec<usize>, String> {
        let items = self.list(key)?.into_iter();
        let ints: Option<Vec<usize>> = items
            .map(|a| match a {
                Attr::Int(v) => Some(v),
                _ => None,
            })
            .collect();
        ints.map_or_else(|| self.wrong(key, "a list of whole numbers"), Ok)
    }

    fn activation(&mut self, key: &str) -> Result<Activation, String> {
        let word = self.word(key)?;
        Activation::from_word(&word).map_or_else(|| self.wrong(key, "an activation"), Ok)
    }

    fn steps(&mut self, key: &str) -> Result<Vec<Step>, String> {
        let items = self.list(key)?.into_iter();
        let steps: Option<Vec<Step>> = items
            .map(|a| match as_word(a)?.as_str() {
                "add" => Some(Step::Add),
                "mul" => Some(Step::Mul),
                other => Activation::from_word(other).map(Step::Act),
            })
            .collect();
        steps.map_or_else(|| self.wrong(key, "a list of epilogue steps"), Ok)
    }

    fn named_type(&mut self) -> Result<(String, TensorType), String> {
        let name = match self.take("name")? {
            Attr::Text(t) => t,
            _ => return self.wrong("name", "a quoted string"),
        };
        match self.take("type")? {
            Attr::Type(ty) => Ok((name, ty)),
            _ => self.wrong("type", "a tensor type"),
        }
    }

    fn scalar(&mut self) -> Result<Scalar, String> {
        if self.has("f32") {
            return self.float("f32").map(Scalar::F32);
        }
        if self.has("bool") {
            return match self.take("bool")? {
                Attr::Bool(b) => Ok(Scalar::Bool(b)),
                _ => self.wrong("bool", "true or false"),
            };
        }
        let value = match self.take("i32")? {
            Attr::Int(v) => i32::try_from(v).ok(),
            Attr::Float(v) if v.fract() == 0.0 => i32::try_from(v as i64).ok(),
            Attr::Word(w) => w.parse().ok(),
            _ => None,
        };
        value.map_or_else(
            || self.wrong("i32", "a 32-bit integer"),
            |v| Ok(Scalar::I32(v)),
        )
    }

    fn attention(&mut self) -> Result<AttentionSpec, String> {
        let heads = self.int("heads")?;
        let kv_heads = self.int("kv_heads")?;
        let scale = self.float("scale")?;
        let causal = match self.take("causal")? {
            Attr::Bool(causal) => causal,
            _ => return self.wrong("causal", "true or false"),
        };
        let window = match self.has("window") {
            true => Some(self.int("window")?),
            false => None,
        };
        Ok(AttentionSpec {
            heads,
            kv_heads,
            scale,
            causal,
            window,
        })
    }

    fn finish(self) -> Result<(), String> {
        match self.attrs.first() {
            Some((key, _)) => Err(format!("`{}` has no attribute `{key}`", self.op)),
            None => Ok(()),
        }
    }
}

fn as_dim(attr: Attr) -> Option<Dim> {
    match attr {
        Attr::Dim(d) => Some(d),
        Attr::Int(v) => Some(v.into()),
        // How a negative constant reads.
        Attr::Float(v) if v.fract() == 0.0 && (-2147483648.0..0.0).contains(&v) => {
            Some(Dim::from(v as i32))
        }
        _ => None,
    }
}

fn as_word(attr: Attr) -> Option<String> {
    match attr {
        Attr::Word(w) => Some(w),
        Attr::Dim(d) if d.as_symbol().is_some() => Some(d.to_string()),
        _ => None,
    }
}
