//! A launch as it runs.

mod access;
mod evaluate;
mod together;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use naga::valid::FunctionInfo;
use naga::{
    AddressSpace, Barrier, Binding, Block, BuiltIn, Expression, Function, GlobalVariable, Handle,
    LocalVariable, Statement, StorageAccess, SwitchValue, TypeInner,
};

use crate::device::{Buffer, Device, Kernel};
use crate::fault::{Fault, Invocation};
use crate::lanes::{Lanes, Mask};
use crate::memory::{By, Order, Uses};
use crate::types::{Field, Pointee, count, fields};

/// Rounds after which a loop is taken to have no end.
const MOST_ROUNDS: u64 = 1 << 22;

/// About as many invocations go through a kernel together as this, if their workgroups
/// do not wait for each other.
const TOGETHER: usize = 512;

/// The value of an expression.
#[derive(Clone, Debug)]
enum Value {
    /// Its scalars.
    Data(Rc<[Lanes]>),
    Pointer(Pointer),
}

#[derive(Clone, Debug)]
struct Pointer {
    root: Root,
    /// In bytes where the root is a buffer or uniforms, else in scalars.
    offset: Lanes,
    to: Pointee,
}

/// The variable that a pointer leads into.
#[derive(Clone, Copy, Debug)]
enum Root {
    /// Of a function, by its frame.
    Local(usize, Handle<LocalVariable>),
    Global(Handle<GlobalVariable>),
}

/// A function that is being called.
struct Frame<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    arguments: Vec<Value>,
    values: Vec<Option<Value>>,
    locals: Vec<Vec<Lanes>>,
    result: Option<Rc<[Lanes]>>,
}

/// Who leaves the blocks of a loop or a switch early.
struct Leaving {
    broke: Mask,
    continued: Mask,
}

impl Leaving {
    fn none(lanes: usize) -> Self {
        Leaving {
            broke: Mask::none(lanes),
            continued: Mask::none(lanes),
        }
    }
}

/// A variable in workgroup memory.
struct Shared {
    /// Scalars of it, for one workgroup.
    slots: usize,
    words: Vec<u32>,
    uses: Vec<Uses>,
}

pub(crate) struct Launch<'a> {
    device: &'a mut Device,
    kernel: &'a Kernel,
    subgroup: usize,
    /// Invocations in a workgroup, workgroups, and those along each axis.
    workgroup: usize,
    workgroups: usize,
    grid: [usize; 3],
    uniforms: &'a [u32],
    bindings: &'a [Buffer],
    order: Order,
    barriers: BTreeSet<usize>,
    /// Of the halves of the words of buffers and images that are written; of others there are
    /// none.
    uses: Vec<Vec<Uses>>,
    fields: BTreeMap<Handle<naga::Type>, Rc<[Field]>>,

    // Of the workgroups that run together:
    first: usize,
    lanes: usize,
    all: Mask,
    by: Vec<By>,
    /// By variables; none for those that lie elsewhere.
    shared: Vec<Option<Shared>>,
    private: BTreeMap<Handle<GlobalVariable>, Vec<Lanes>>,
    frames: Vec<Frame<'a>>,
}

impl<'a> Launch<'a> {
    pub fn new(
        device: &'a mut Device,
        kernel: &'a Kernel,
        grid: [usize; 3],
        uniforms: &'a [u32],
        bindings: &'a [Buffer],
    ) -> Self {
        let workgroup = kernel.workgroup();
        let workgroups = grid.iter().product();
        let mut uses = vec![Vec::new(); device.memory.len()];
        for (_, variable) in kernel.module.global_variables.iter() {
            if let (Some(place), Some(access)) = (&variable.binding, kernel.access(variable))
                && access.contains(StorageAccess::STORE)
            {
                let buffer = bindings[place.binding as usize - 1];
                uses[buffer.0] = vec![Uses::NONE; 2 * device.words(buffer).len()];
            }
        }
        Launch {
            subgroup: device.subgroup,
            device,
            kernel,
            workgroup,
            workgroups,
            grid,
            uniforms,
            bindings,
            order: Order::new(workgroups, workgroup),
            barriers: BTreeSet::new(),
            uses,
            fields: BTreeMap::new(),
            first: 0,
            lanes: 0,
            all: Mask::none(0),
            by: Vec::new(),
            shared: Vec::new(),
            private: BTreeMap::new(),
            frames: Vec::new(),
        }
    }

    /// Runs the launch; gives the barriers that were reached, by their places in the text.
    pub fn run(mut self) -> Result<BTreeSet<usize>, Fault> {
        let together = match self.kernel.has_atomics {
            true => self.workgroups.max(1),
            false => (TOGETHER / self.workgroup).max(1),
        };
        for first in (0..self.workgroups).step_by(together) {
            let end = self.workgroups.min(first + together);
            self.run_some(first, end)?;
        }
        Ok(self.barriers)
    }

    fn run_some(&mut self, first: usize, end: usize) -> Result<(), Fault> {
        let workgroups = end - first;
        let kernel = self.kernel;
        self.first = first;
        self.lanes = workgroups * self.workgroup;
        self.all = Mask::full(self.lanes);
        let invocations = first * self.workgroup..end * self.workgroup;
        self.by = invocations.map(|i| self.order.by(i as u32)).collect();
        self.shared.clear();
        let variables = kernel.module.global_variables.len();
        self.shared.resize_with(variables, || None);
        self.private.clear();
        self.frames.clear();
        for (handle, variable) in kernel.module.global_variables.iter() {
            let slots = self.count(&kernel.module.types[variable.ty].inner);
            match variable.space {
                AddressSpace::WorkGroup => {
                    let shared = Shared {
                        slots,
                        words: vec![0; slots * workgroups],
                        uses: vec![Uses::NONE; slots * workgroups],
                    };
                    self.shared[handle.index()] = Some(shared);
                }
                AddressSpace::Private => {
                    let initial = match variable.init {
                        Some(init) => self.constant(init)?.to_vec(),
                        None => vec![Lanes::Same(0); slots],
                    };
                    self.private.insert(handle, initial);
                }
                _ => {}
            }
        }
        let Some(entry) = kernel.module.entry_points.first() else {
            return Ok(());
        };
        let mut arguments = Vec::new();
        for argument in &entry.function.arguments {
            arguments.push(match argument.binding {
                Some(Binding::BuiltIn(builtin)) => self.builtin(builtin)?,
                _ => {
                    return Err(Fault::Unsupported(
                        "an argument that is no builtin".to_owned(),
                    ));
                }
            });
        }
        let info = kernel.info.get_entry_point(0);
        self.call(&entry.function, info, arguments, &self.all.clone())?;
        Ok(())
    }

    fn each(&self, f: impl Fn(usize) -> usize) -> Lanes {
        (0..self.lanes).map(|lane| f(lane) as u32).collect()
    }

    fn builtin(&self, builtin: BuiltIn) -> Result<Value, Fault> {
        let own = self.workgroup;
        let sizes = self.kernel.module.entry_points.iter();
        let size = sizes.map(|e| e.workgroup_size).next().unwrap_or([1; 3]);
        let size = size.map(|n| n as usize);
        let along = |at: usize, [x, y, _]: [usize; 3], axis: usize| match axis {
            0 => at % x,
            1 => at / x % y,
            _ => at / (x * y),
        };
        let workgroup = |i: usize, axis| along(self.first + i / own, self.grid, axis);
        let local = |i: usize, axis| along(i % own, size, axis);
        let axes = |f: &dyn Fn(usize, usize) -> usize| -> Vec<Lanes> {
            (0..3).map(|axis| self.each(|i| f(i, axis))).collect()
        };
        let scalars = match builtin {
            BuiltIn::LocalInvocationIndex => vec![self.each(|i| i % own)],
            BuiltIn::LocalInvocationId => axes(&local),
            BuiltIn::WorkGroupId => axes(&workgroup),
            BuiltIn::GlobalInvocationId => {
                axes(&|i, axis| workgroup(i, axis) * size[axis] + local(i, axis))
            }
            BuiltIn::NumWorkGroups => self.grid.map(|n| Lanes::Same(n as u32)).into(),
            BuiltIn::SubgroupSize => vec![Lanes::Same(self.subgroup as u32)],
            BuiltIn::SubgroupInvocationId => vec![self.each(|i| i % own % self.subgroup)],
            BuiltIn::SubgroupId => vec![self.each(|i| i % own / self.subgroup)],
            BuiltIn::NumSubgroups => vec![Lanes::Same(own.div_ceil(self.subgroup) as u32)],
            other => return Err(Fault::Unsupported(format!("the builtin {other:?}"))),
        };
        Ok(Value::Data(scalars.into()))
    }

    fn who(&self, lane: usize) -> Invocation {
        self.order.invocation(self.by[lane].invocation)
    }

    fn count(&self, inner: &TypeInner) -> usize {
        let matrix = |elements: u32| (elements as usize).div_ceil(self.subgroup);
        count(&self.kernel.module, inner, &matrix)
    }

    fn inner(&self, to: Pointee) -> Cow<'a, TypeInner> {
        match to {
            Pointee::Type(ty) => Cow::Borrowed(&self.kernel.module.types[ty].inner),
            Pointee::Component(scalar) => Cow::Owned(TypeInner::Scalar(scalar)),
        }
    }

    /// The scalars of what a pointer points to.
    fn fields(&mut self, to: Pointee) -> Result<Rc<[Field]>, Fault> {
        match to {
            Pointee::Component(scalar) => Ok(Rc::new([Field { offset: 0, scalar }])),
            Pointee::Type(ty) => {
                if let Some(known) = self.fields.get(&ty) {
                    return Ok(Rc::clone(known));
                }
                let mut out = Vec::new();
                let module = &self.kernel.module;
                fields(module, &module.types[ty].inner, 0, &mut out)?;
                let out: Rc<[Field]> = out.into();
                self.fields.insert(ty, Rc::clone(&out));
                Ok(out)
            }
        }
    }

    // Functions and statements

    fn call(
        &mut self,
        function: &'a Function,
        info: &'a FunctionInfo,
        arguments: Vec<Value>,
        mask: &Mask,
    ) -> Result<Option<Rc<[Lanes]>>, Fault> {
        self.frames.push(Frame {
            function,
            info,
            arguments,
            values: vec![None; function.expressions.len()],
            locals: Vec::new(),
            result: None,
        });
        for (_, variable) in function.local_variables.iter() {
            let slots = match variable.init {
                Some(init) => self.data(init)?.to_vec(),
                None => {
                    let slots = self.count(&self.kernel.module.types[variable.ty].inner);
                    vec![Lanes::Same(0); slots]
                }
            };
            self.frame().locals.push(slots);
        }
        let mut leaving = Leaving::none(self.lanes);
        self.block(&function.body, mask.clone(), &mut leaving)?;
        let frame = self.frames.pop();
        Ok(frame.and_then(|f| f.result))
    }

    fn frame(&mut self) -> &mut Frame<'a> {
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    /// Those of `mask` that go on behind the block.
    fn block(
        &mut self,
        block: &'a Block,
        mut mask: Mask,
        leaving: &mut Leaving,
    ) -> Result<Mask, Fault> {
        for (statement, span) in block.span_iter() {
            if mask.is_empty() {
                break;
            }
            if let (Statement::ControlBarrier(_), Some(place)) = (statement, span.to_range()) {
                self.barriers.insert(place.start);
            }
            mask = self.statement(statement, mask, leaving)?;
        }
        Ok(mask)
    }

    fn statement(
        &mut self,
        statement: &'a Statement,
        mask: Mask,
        leaving: &mut Leaving,
    ) -> Result<Mask, Fault> {
        match statement {
            Statement::Emit(range) => {
                for expression in range.clone() {
                    let value = self.evaluate(expression, &mask)?;
                    self.frame().values[expression.index()] = Some(value);
                }
            }
            Statement::Block(block) => return self.block(block, mask, leaving),
            Statement::If {
                condition,
                accept,
                reject,
            } => {
                let condition = self.scalar(*condition)?;
                let (yes, no) = mask.split(&condition);
                let yes = self.block(accept, yes, leaving)?;
                let no = self.block(reject, no, leaving)?;
                return Ok(yes.or(&no));
            }
            Statement::Switch { selector, cases } => {
                let selector = self.scalar(*selector)?;
                let mut rest = mask.clone();
                let mut entered = Vec::new();
                for case in cases {
                    let value = match case.value {
                        SwitchValue::U32(value) => value,
                        SwitchValue::I32(value) => value as u32,
                        SwitchValue::Default => {
                            entered.push(Mask::none(self.lanes));
                            continue;
                        }
                    };
                    let (yes, no) = rest.split(&selector.map(|s| u32::from(s == value)));
                    entered.push(yes);
                    rest = no;
                }
                let default = cases
                    .iter()
                    .position(|c| matches!(c.value, SwitchValue::Default));
                if let Some(default) = default {
                    entered[default] = rest.clone();
                }
                let mut inner = Leaving::none(self.lanes);
                let mut through = Mask::none(self.lanes);
                let mut after = Mask::none(self.lanes);
                for (case, entered) in cases.iter().zip(entered) {
                    let left = self.block(&case.body, entered.or(&through), &mut inner)?;
                    through = Mask::none(self.lanes);
                    match case.fall_through {
                        true => through = left,
                        false => after = after.or(&left),
                    }
                }
                leaving.continued = leaving.continued.or(&inner.continued);
                return Ok(after.or(&through).or(&inner.broke));
            }
            Statement::Loop {
                body,
                continuing,
                break_if,
            } => return self.repeat(body, continuing, *break_if, mask),
            Statement::Break => {
                leaving.broke = leaving.broke.or(&mask);
                return Ok(Mask::none(self.lanes));
            }
            Statement::Continue => {
                leaving.continued = leaving.continued.or(&mask);
                return Ok(Mask::none(self.lanes));
            }
            Statement::Return { value } => {
                if let Some(value) = value {
                    let value = self.data(*value)?;
                    let frame = self.frame();
                    frame.result = Some(match &frame.result {
                        Some(before) => over(&value, before, &mask),
                        None => value,
                    });
                }
                return Ok(Mask::none(self.lanes));
            }
            Statement::ControlBarrier(flags) => self.barrier(*flags, &mask)?,
            Statement::Store { pointer, value } => {
                let value = self.data(*value)?;
                let pointer = self.pointer(*pointer)?;
                self.store(&pointer, &value, &mask)?;
            }
            Statement::Atomic {
                pointer,
                fun,
                value,
                result,
            } => {
                let before = self.atomic(*pointer, fun, *value, &mask)?;
                if let Some(result) = result {
                    self.set(*result, vec![before]);
                }
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                self.barrier(Barrier::WORK_GROUP, &mask)?;
                let pointer = self.pointer(*pointer)?;
                let value = self.load(&pointer, &mask)?;
                self.barrier(Barrier::WORK_GROUP, &mask)?;
                self.set(*result, value.to_vec());
            }
            Statement::Call {
                function,
                arguments,
                result,
            } => {
                let mut given = Vec::new();
                for argument in arguments {
                    given.push(self.value(*argument)?);
                }
                let kernel = self.kernel;
                let (callee, info) = (&kernel.module.functions[*function], &kernel.info[*function]);
                let returned = self.call(callee, info, given, &mask)?;
                if let (Some(result), Some(returned)) = (result, returned) {
                    self.set(*result, returned.to_vec());
                }
            }
            Statement::SubgroupGather {
                mode,
                argument,
                result,
            } => {
                let gathered = self.gather(mode, *argument, &mask)?;
                self.set(*result, gathered);
            }
            Statement::SubgroupCollectiveOperation {
                op,
                collective_op,
                argument,
                result,
            } => {
                let kind = self.kind(*argument)?;
                let mut out = Vec::new();
                for scalar in self.data(*argument)?.iter() {
                    out.push(self.collect(*op, *collective_op, kind, scalar, &mask)?);
                }
                self.set(*result, out);
            }
            Statement::ImageStore {
                image,
                coordinate,
                array_index: None,
                value,
            } => {
                let value = self.data(*value)?;
                self.store_texel(*image, *coordinate, &value, &mask)?;
            }
            Statement::CooperativeStore { target, data } => {
                self.store_matrix(*target, data, &mask)?
            }
            other => return Err(Fault::Unsupported(format!("the statement {other:?}"))),
        }
        Ok(mask)
    }

    fn repeat(
        &mut self,
        body: &'a Block,
        continuing: &'a Block,
        break_if: Option<Handle<Expression>>,
        mut mask: Mask,
    ) -> Result<Mask, Fault> {
        let mut broke = Mask::none(self.lanes);
        for _ in 0..MOST_ROUNDS {
            let mut leaving = Leaving::none(self.lanes);
            let after = self.block(body, mask, &mut leaving)?;
            let after = after.or(&leaving.continued);
            mask = self.block(continuing, after, &mut leaving)?;
            broke = broke.or(&leaving.broke);
            if let (Some(condition), false) = (break_if, mask.is_empty()) {
                let condition = self.scalar(condition)?;
                let (yes, no) = mask.split(&condition);
                broke = broke.or(&yes);
                mask = no;
            }
            if mask.is_empty() {
                return Ok(broke);
            }
        }
        Err(Fault::Endless {
            function: self.frame().function.name.clone().unwrap_or_default(),
            rounds: MOST_ROUNDS,
        })
    }

    fn set(&mut self, expression: Handle<Expression>, scalars: Vec<Lanes>) {
        self.frame().values[expression.index()] = Some(Value::Data(scalars.into()));
    }
}

fn over(value: &[Lanes], before: &[Lanes], mask: &Mask) -> Rc<[Lanes]> {
    let both = value.iter().zip(before);
    both.map(|(value, before)| value.over(before, mask))
        .collect()
}
