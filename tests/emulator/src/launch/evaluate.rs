//! The values of expressions.

use std::rc::Rc;

use naga::{Expression, Handle, MathFunction, Scalar, TypeInner};

use super::{Launch, Pointer, Root, Value};
use crate::fault::Fault;
use crate::lanes::{Lanes, Mask};
use crate::scalar::{self, Kind};
use crate::types::{Pointee, scalar_of};

impl<'a> Launch<'a> {
    pub(super) fn value(&mut self, expression: Handle<Expression>) -> Result<Value, Fault> {
        if let Some(known) = &self.frame().values[expression.index()] {
            return Ok(known.clone());
        }
        // Not one that is emitted: it depends on no memory, and is the same throughout.
        let all = self.all.clone();
        let value = self.evaluate(expression, &all)?;
        self.frame().values[expression.index()] = Some(value.clone());
        Ok(value)
    }

    pub(super) fn data(&mut self, expression: Handle<Expression>) -> Result<Rc<[Lanes]>, Fault> {
        match self.value(expression)? {
            Value::Data(scalars) => Ok(scalars),
            Value::Pointer(_) => Err(Fault::Unsupported("a pointer as data".to_owned())),
        }
    }

    pub(super) fn scalar(&mut self, expression: Handle<Expression>) -> Result<Lanes, Fault> {
        let data = self.data(expression)?;
        let first = data.first().cloned();
        first.ok_or_else(|| Fault::Unsupported("an empty value".to_owned()))
    }

    pub(super) fn pointer(&mut self, expression: Handle<Expression>) -> Result<Pointer, Fault> {
        match self.value(expression)? {
            Value::Pointer(pointer) => Ok(pointer),
            Value::Data(_) => Err(Fault::Unsupported("data as a pointer".to_owned())),
        }
    }

    pub(super) fn type_of(&mut self, expression: Handle<Expression>) -> &'a TypeInner {
        let (info, kernel) = (self.frame().info, self.kernel);
        info[expression].ty.inner_with(&kernel.module.types)
    }

    pub(super) fn scalar_type(&mut self, expression: Handle<Expression>) -> Result<Scalar, Fault> {
        let inner = self.type_of(expression);
        scalar_of(inner).ok_or_else(|| Fault::Unsupported(format!("{inner:?} as scalars")))
    }

    pub(super) fn kind(&mut self, expression: Handle<Expression>) -> Result<Kind, Fault> {
        Kind::of(self.scalar_type(expression)?)
    }

    /// The value of an expression that is constant in the whole module.
    pub(super) fn constant(&self, expression: Handle<Expression>) -> Result<Rc<[Lanes]>, Fault> {
        let module = &self.kernel.module;
        match &module.global_expressions[expression] {
            Expression::Literal(literal) => Ok([Lanes::Same(scalar::literal(*literal)?)].into()),
            Expression::Constant(constant) => self.constant(module.constants[*constant].init),
            Expression::ZeroValue(ty) => {
                let count = self.count(&module.types[*ty].inner);
                Ok(vec![Lanes::Same(0); count].into())
            }
            Expression::Compose { components, .. } => {
                let mut out = Vec::new();
                for component in components {
                    out.extend(self.constant(*component)?.iter().cloned());
                }
                Ok(out.into())
            }
            Expression::Splat { size, value } => {
                let value = self.constant(*value)?;
                Ok((0..*size as usize)
                    .flat_map(|_| value.iter().cloned())
                    .collect())
            }
            other => Err(Fault::Unsupported(format!("the constant {other:?}"))),
        }
    }

    pub(super) fn evaluate(
        &mut self,
        handle: Handle<Expression>,
        mask: &Mask,
    ) -> Result<Value, Fault> {
        let kernel = self.kernel;
        let module = &kernel.module;
        let function = self.frame().function;
        let scalars: Vec<Lanes> = match &function.expressions[handle] {
            Expression::Literal(literal) => vec![Lanes::Same(scalar::literal(*literal)?)],
            Expression::Constant(constant) => {
                return Ok(Value::Data(
                    self.constant(module.constants[*constant].init)?,
                ));
            }
            Expression::ZeroValue(ty) => {
                vec![Lanes::Same(0); self.count(&module.types[*ty].inner)]
            }
            Expression::Compose { components, .. } => {
                let mut out = Vec::new();
                for component in components {
                    out.extend(self.data(*component)?.iter().cloned());
                }
                out
            }
            Expression::Splat { size, value } => {
                vec![self.scalar(*value)?; *size as usize]
            }
            Expression::Swizzle {
                size,
                vector,
                pattern,
            } => {
                let vector = self.data(*vector)?;
                let pattern = pattern.iter().take(*size as usize);
                pattern.map(|c| vector[*c as usize].clone()).collect()
            }
            Expression::FunctionArgument(index) => {
                return Ok(self.frame().arguments[*index as usize].clone());
            }
            Expression::GlobalVariable(variable) => {
                return Ok(Value::Pointer(Pointer {
                    root: Root::Global(*variable),
                    offset: Lanes::Same(0),
                    to: Pointee::Type(kernel.global(*variable).ty),
                }));
            }
            Expression::LocalVariable(variable) => {
                return Ok(Value::Pointer(Pointer {
                    root: Root::Local(self.frames.len() - 1, *variable),
                    offset: Lanes::Same(0),
                    to: Pointee::Type(function.local_variables[*variable].ty),
                }));
            }
            Expression::Access { base, index } => {
                let index_value = self.scalar(*index)?;
                return match self.value(*base)? {
                    Value::Pointer(pointer) => {
                        let place = self.element(&pointer, &index_value, mask)?;
                        Ok(Value::Pointer(place))
                    }
                    Value::Data(scalars) => {
                        let inner = self.type_of(*base);
                        self.part(inner, &scalars, &index_value, mask)
                    }
                };
            }
            Expression::AccessIndex { base, index } => {
                return match self.value(*base)? {
                    Value::Pointer(pointer) => {
                        let place = self.member(&pointer, *index, mask)?;
                        Ok(Value::Pointer(place))
                    }
                    Value::Data(scalars) => {
                        let inner = self.type_of(*base);
                        if let TypeInner::Struct { members, .. } = inner {
                            let size =
                                |m: &naga::StructMember| self.count(&module.types[m.ty].inner);
                            let at = *index as usize;
                            let start: usize = members[..at].iter().map(size).sum();
                            let end = start + size(&members[at]);
                            return Ok(Value::Data(scalars[start..end].into()));
                        }
                        self.part(inner, &scalars, &Lanes::Same(*index), mask)
                    }
                };
            }
            Expression::Load { pointer } => {
                let pointer = self.pointer(*pointer)?;
                return Ok(Value::Data(self.load(&pointer, mask)?));
            }
            Expression::Unary { op, expr } => {
                let kind = self.kind(*expr)?;
                let x = self.data(*expr)?;
                let all = x.iter().map(|x| scalar::unary(*op, kind, x));
                all.collect::<Result<_, _>>()?
            }
            Expression::Binary { op, left, right } => {
                let kind = self.kind(*left)?;
                let (a, b) = (self.data(*left)?, self.data(*right)?);
                // A scalar goes with each component of a vector.
                let all = (0..a.len().max(b.len())).map(|i| {
                    let (a, b) = (&a[i.min(a.len() - 1)], &b[i.min(b.len() - 1)]);
                    scalar::binary(*op, kind, a, b)
                });
                all.collect::<Result<_, _>>()?
            }
            Expression::Select {
                condition,
                accept,
                reject,
            } => {
                let condition = self.data(*condition)?;
                let (accept, reject) = (self.data(*accept)?, self.data(*reject)?);
                let all = accept.iter().zip(reject.iter()).enumerate();
                all.map(|(i, (yes, no))| {
                    let condition = &condition[i.min(condition.len() - 1)];
                    match condition {
                        Lanes::Same(0) => no.clone(),
                        Lanes::Same(_) => yes.clone(),
                        Lanes::Each(_) => {
                            condition.zip3(
                                yes,
                                no,
                                self.lanes,
                                |c, yes, no| {
                                    if c != 0 { yes } else { no }
                                },
                            )
                        }
                    }
                })
                .collect()
            }
            Expression::Relational { fun, argument } => {
                let argument_kind = self.kind(*argument)?;
                let x = self.data(*argument)?;
                use naga::RelationalFunction as R;
                match fun {
                    R::All | R::Any => {
                        let all = *fun == R::All;
                        let join =
                            |a: &Lanes, b: &Lanes| a.zip(b, |a, b| if all { a & b } else { a | b });
                        let mut rest = x.iter().cloned();
                        let first = rest.next().unwrap_or(Lanes::Same(u32::from(all)));
                        vec![rest.fold(first, |a, b| join(&a, &b))]
                    }
                    R::IsNan => {
                        let test = |x| u32::from(argument_kind.real(x).is_nan());
                        x.iter().map(|x| x.map(test)).collect()
                    }
                    R::IsInf => {
                        let test = |x| u32::from(argument_kind.real(x).is_infinite());
                        x.iter().map(|x| x.map(test)).collect()
                    }
                }
            }
            Expression::Math {
                fun,
                arg,
                arg1,
                arg2,
                ..
            } => {
                let kind = self.kind(*arg)?;
                let mut args = vec![self.data(*arg)?];
                for other in [arg1, arg2].into_iter().flatten() {
                    args.push(self.data(*other)?);
                }
                self.math(*fun, kind, &args)?
            }
            Expression::As {
                expr,
                kind,
                convert,
            } => {
                let from = self.scalar_type(*expr)?;
                let x = self.data(*expr)?;
                match convert {
                    // The bits stay.
                    None if from.width == 4 => return Ok(Value::Data(x)),
                    None => return Err(Fault::Unsupported("a bitcast of halves".to_owned())),
                    Some(width) => {
                        let to = Scalar {
                            kind: *kind,
                            width: *width,
                        };
                        let (from, to) = (Kind::of(from)?, Kind::of(to)?);
                        x.iter().map(|x| scalar::convert(from, to, x)).collect()
                    }
                }
            }
            Expression::ArrayLength(base) => {
                let pointer = self.pointer(*base)?;
                vec![Lanes::Same(self.length(&pointer)? as u32)]
            }
            Expression::ImageLoad {
                image,
                coordinate,
                array_index: None,
                sample: None,
                level: None,
            } => self.load_texel(*image, *coordinate, mask)?,
            Expression::CooperativeLoad {
                columns,
                rows,
                data,
                ..
            } if columns == rows => self.load_matrix(data, *columns as usize, mask)?,
            Expression::CooperativeMultiplyAdd { a, b, c } => {
                self.multiply_add(*a, *b, *c, mask)?
            }
            other => return Err(Fault::Unsupported(format!("the expression {other:?}"))),
        };
        Ok(Value::Data(scalars.into()))
    }

    pub(super) fn math(
        &mut self,
        function: MathFunction,
        kind: Kind,
        args: &[Rc<[Lanes]>],
    ) -> Result<Vec<Lanes>, Fault> {
        use half::f16;
        let x = &args[0];
        match function {
            MathFunction::Dot => {
                let mut sum: Option<Lanes> = None;
                for (a, b) in x.iter().zip(args[1].iter()) {
                    let product = scalar::binary(naga::BinaryOperator::Multiply, kind, a, b)?;
                    sum = Some(match sum {
                        None => product,
                        Some(sum) => {
                            scalar::binary(naga::BinaryOperator::Add, kind, &sum, &product)?
                        }
                    });
                }
                Ok(sum.into_iter().collect())
            }
            MathFunction::Unpack2x16float => {
                let half = |bits: u32| f16::from_bits(bits as u16).to_f32().to_bits();
                Ok(vec![x[0].map(half), x[0].map(|x| half(x >> 16))])
            }
            MathFunction::Pack2x16float => {
                let half = |bits: u32| u32::from(f16::from_f32(f32::from_bits(bits)).to_bits());
                Ok(vec![x[0].zip(&x[1], |a, b| half(a) | half(b) << 16)])
            }
            _ => {
                let all = (0..x.len()).map(|i| {
                    let args: Vec<&Lanes> = args.iter().map(|a| &a[i.min(a.len() - 1)]).collect();
                    scalar::math(function, kind, &args, self.lanes)
                });
                all.collect()
            }
        }
    }

    /// An element of a vector or array that is a value.
    pub(super) fn part(
        &mut self,
        inner: &TypeInner,
        scalars: &Rc<[Lanes]>,
        index: &Lanes,
        mask: &Mask,
    ) -> Result<Value, Fault> {
        let size = match *inner {
            TypeInner::Vector { .. } => 1,
            TypeInner::Array { base, .. } => self.count(&self.kernel.module.types[base].inner),
            ref other => return Err(Fault::Unsupported(format!("an element of {other:?}"))),
        };
        let len = scalars.len() / size.max(1);
        self.check_index("a value", index, len, mask)?;
        let part = match index {
            Lanes::Same(index) => {
                let start = *index as usize * size;
                scalars[start..start + size].into()
            }
            Lanes::Each(all) => (0..size)
                .map(|i| {
                    let lanes = all.iter().enumerate();
                    let at = |(lane, at): (usize, &u32)| {
                        let at = (*at as usize).min(len - 1);
                        scalars[at * size + i].at(lane)
                    };
                    lanes.map(at).collect()
                })
                .collect(),
        };
        Ok(Value::Data(part))
    }
}
