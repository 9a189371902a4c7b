//! The scalars that values of a type consist of.

use naga::{ArraySize, Handle, Module, Scalar, Type, TypeInner};

use crate::fault::Fault;

/// A scalar of a value, in the order in which they are numbered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Where it lies in a buffer, in bytes.
    pub offset: u32,
    pub scalar: Scalar,
}

/// Adds the scalars of a type that starts `at` so many bytes to `out`. Matrices of
/// cooperative operations have none of their own: they lie in no memory.
pub(crate) fn fields(
    module: &Module,
    inner: &TypeInner,
    at: u32,
    out: &mut Vec<Field>,
) -> Result<(), Fault> {
    match *inner {
        TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => {
            out.push(Field { offset: at, scalar });
        }
        TypeInner::Vector { size, scalar } => {
            let width = u32::from(scalar.width);
            let all = (0..size as u32).map(|i| Field {
                offset: at + i * width,
                scalar,
            });
            out.extend(all);
        }
        TypeInner::Array { base, size, stride } => {
            let ArraySize::Constant(size) = size else {
                return Err(Fault::Unsupported(
                    "an array of no fixed size as a value".to_owned(),
                ));
            };
            for i in 0..size.get() {
                fields(module, &module.types[base].inner, at + i * stride, out)?;
            }
        }
        TypeInner::Struct { ref members, .. } => {
            for member in members {
                fields(
                    module,
                    &module.types[member.ty].inner,
                    at + member.offset,
                    out,
                )?;
            }
        }
        ref other => return Err(Fault::Unsupported(format!("a value of the type {other:?}"))),
    }
    Ok(())
}

/// What a pointer points to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pointee {
    Type(Handle<Type>),
    Component(Scalar),
}

/// The number of scalars of a type. `matrix` has those of a cooperative matrix of so
/// many elements.
pub(crate) fn count(module: &Module, inner: &TypeInner, matrix: &dyn Fn(u32) -> usize) -> usize {
    match *inner {
        TypeInner::Scalar(_) | TypeInner::Atomic(_) => 1,
        TypeInner::Vector { size, .. } => size as usize,
        TypeInner::CooperativeMatrix { columns, rows, .. } => matrix(columns as u32 * rows as u32),
        TypeInner::Array {
            base,
            size: ArraySize::Constant(size),
            ..
        } => size.get() as usize * count(module, &module.types[base].inner, matrix),
        TypeInner::Struct { ref members, .. } => {
            let members = members.iter();
            members
                .map(|m| count(module, &module.types[m.ty].inner, matrix))
                .sum()
        }
        _ => 0,
    }
}

/// The scalar of scalars, vectors and matrices.
pub(crate) fn scalar_of(inner: &TypeInner) -> Option<Scalar> {
    match *inner {
        TypeInner::Scalar(scalar)
        | TypeInner::Atomic(scalar)
        | TypeInner::Vector { scalar, .. }
        | TypeInner::CooperativeMatrix { scalar, .. } => Some(scalar),
        _ => None,
    }
}
