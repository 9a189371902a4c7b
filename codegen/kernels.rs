//! The kernels of a plan: every text once, under a name of its own.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use kiln_ir::plan::verify::default_limit;
use kiln_ir::plan::{Access, Alternative, Binding, Kernel, Launch, Requirements};
use kiln_ir::{Bindings, Dim};

use crate::error::CodegenError;
use crate::join::{self, Meeting, Stage};
use crate::kernel::{self, Draft, Way};
use crate::tile::{STREAM, TOUCH};
use crate::validate;
use crate::view::Base;
use crate::wgsl;

/// Kernels by their text, each under one name.
pub(crate) struct Kernels<'o> {
    /// The members of the uniform block.
    pub symbols: Vec<String>,
    /// Bodies in place of kiln's own.
    bodies: &'o BTreeMap<String, String>,
    /// Names by text.
    names: HashMap<String, String>,
    /// The plan's kernels by name.
    pub plan: BTreeMap<String, Kernel>,
    /// Texts by file.
    pub texts: BTreeMap<String, String>,
    /// Bodies with loops written out, by their names and constants: layers share them.
    unrolled: HashMap<(&'static str, String), Rc<str>>,
}

/// The buffers that a kernel binds.
fn buffers(kernel: &Draft, assigned: &BTreeMap<usize, usize>) -> Vec<Binding> {
    let bases = kernel.bases().into_iter();
    let buffers = bases.map(|(base, _)| match base {
        Base::Weight(i) => Binding::Weight(i),
        Base::State(i) => Binding::State(i),
        Base::Local(i) => Binding::Buffer(assigned.get(&i).copied().unwrap_or(usize::MAX)),
    });
    buffers.collect()
}

impl<'o> Kernels<'o> {
    pub fn new(symbols: Vec<String>, bodies: &'o BTreeMap<String, String>) -> Self {
        Kernels {
            symbols,
            bodies,
            names: HashMap::new(),
            plan: BTreeMap::new(),
            texts: BTreeMap::new(),
            unrolled: HashMap::new(),
        }
    }

    /// A launch, whose locals lie in the buffers `assigned`.
    pub fn launch(&mut self, launch: &kernel::Launch, assigned: &BTreeMap<usize, usize>) -> Launch {
        // A body of somebody's own may not be made for other sizes.
        let (others, bodies) = (launch.others.iter(), self.bodies);
        let others = others.filter(|way| !bodies.contains_key(way.kernel.body));
        let alternatives = others.map(|way| self.alternative(way, assigned)).collect();
        Launch {
            label: launch.label.clone(),
            kernel: self.launched(&launch.kernel),
            workgroups: launch.workgroups.clone(),
            bindings: buffers(&launch.kernel, assigned),
            flops: launch.flops.clone(),
            bytes: launch.bytes.clone(),
            alternatives,
        }
    }

    /// A way to do what a launch does, whose locals lie in the buffers `assigned`.
    fn alternative(&mut self, way: &Way, assigned: &BTreeMap<usize, usize>) -> Alternative {
        let kernel = self.launched(&way.kernel);
        let mut limits = BTreeMap::new();
        if let Some(memory) = way.memory {
            limits.insert(join::MEMORY_LIMIT.to_owned(), memory);
        }
        let bound = way.kernel.bases().len() as u64;
        if Some(bound) > default_limit(join::BUFFERS_LIMIT) {
            limits.insert(join::BUFFERS_LIMIT.to_owned(), bound);
        }
        let shares = way.kernel.shares();
        let features = shares.then(|| join::COHERENT_FEATURE.to_owned());
        let requires = Requirements {
            features: features.into_iter().collect(),
            limits,
            ..Requirements::default()
        };
        Alternative {
            kernel,
            workgroups: way.workgroups.clone(),
            bindings: buffers(&way.kernel, assigned),
            requires,
            shares,
        }
    }

    /// The name of a draft's kernel, which binds what the draft does.
    fn launched(&mut self, draft: &Draft) -> String {
        let accesses = draft.bases().into_iter().map(|(_, access)| access);
        self.kernel(draft, accesses.collect())
    }

    /// `launches` in one for where the symbols `ones` are 1, whose workgroups share the
    /// buffer `state`. On a GPU it has alternatives that bring weights nearer while they
    /// wait.
    pub fn joined(
        &mut self,
        launches: &[kernel::Launch],
        (meeting, state): (Meeting, usize),
        ones: &Bindings,
        assigned: &BTreeMap<usize, usize>,
    ) -> Result<Launch, CodegenError> {
        let mut joined = self.joined_once(launches, (meeting, state, ""), ones, assigned)?;
        let touches: &[(u64, &str)] = match meeting {
            Meeting::Barriers(_) if !self.bodies.contains_key(STREAM) => {
                &[(1, ".touch1"), (2, ".touch2")]
            }
            Meeting::Barriers(_) | Meeting::Tickets => &[],
        };
        for (steps, name) in touches {
            let mut others = launches.to_vec();
            let mut touches = false;
            for launch in &mut others {
                if let Some(other) = launch.kernel.with_constant(TOUCH, *steps) {
                    launch.kernel = other;
                    touches = true;
                }
            }
            if touches {
                let other = self.joined_once(&others, (meeting, state, name), ones, assigned)?;
                joined.alternatives.push(Alternative {
                    kernel: other.kernel,
                    workgroups: other.workgroups,
                    bindings: other.bindings,
                    requires: Requirements::default(),
                    shares: false,
                });
            }
        }
        Ok(joined)
    }

    fn joined_once(
        &mut self,
        launches: &[kernel::Launch],
        (meeting, state, name): (Meeting, usize, &str),
        ones: &Bindings,
        assigned: &BTreeMap<usize, usize>,
    ) -> Result<Launch, CodegenError> {
        let mut stages = Vec::new();
        for launch in launches {
            stages.push(Stage {
                launch,
                body: self.body(&launch.kernel),
                buffers: buffers(&launch.kernel, assigned),
                tiles: launch.workgroups.at(ones),
            });
        }
        let joined = join::join(&stages, (meeting, state), &self.symbols)
            .map_err(|body| CodegenError::Join { body })?;
        let sum = |of: fn(&kernel::Launch) -> &Dim| {
            launches.iter().fold(Dim::default(), |sum, l| &sum + of(l))
        };
        let (bindings, accesses) = joined.bindings.into_iter().unzip();
        let label = launches.first().and_then(|l| join::layer(&l.label));
        Ok(Launch {
            label: label.unwrap_or_default().to_owned(),
            kernel: self.named(
                &format!("{}{name}", joined.name),
                joined.text,
                joined.workgroup,
                accesses,
            ),
            workgroups: Dim::constant(meeting.workgroups().into()),
            bindings,
            flops: sum(|l| &l.flops),
            bytes: sum(|l| &l.bytes),
            alternatives: Vec::new(),
        })
    }

    /// Bytes that a workgroup of a kernel shares.
    pub fn workgroup_memory(&self, kernel: &str) -> u64 {
        let file = self.plan.get(kernel).map(|k| &k.file);
        let text = file.and_then(|file| self.texts.get(file));
        text.and_then(|t| validate::workgroup_memory(t))
            .unwrap_or(0)
    }

    /// The text of a draft's body, with loops written out.
    fn body(&mut self, draft: &Draft) -> Rc<str> {
        let key = (draft.body, draft.constants().to_owned());
        let bodies = self.bodies;
        let unrolled = self.unrolled.entry(key).or_insert_with(|| {
            let own = || kiln_shaders::body(draft.body).unwrap_or_default();
            let text = bodies.get(draft.body).map_or_else(own, String::as_str);
            wgsl::unroll(text, draft.constants()).into()
        });
        Rc::clone(unrolled)
    }

    /// The name of a draft's kernel.
    pub fn kernel(&mut self, draft: &Draft, bindings: Vec<Access>) -> String {
        let body = self.body(draft);
        let text = draft.text(&self.symbols, &body);
        self.named(&draft.name(), text, draft.workgroup, bindings)
    }

    /// The name of the kernel with this text, `plain` if it is new and that is free.
    fn named(
        &mut self,
        plain: &str,
        text: String,
        workgroup: u32,
        bindings: Vec<Access>,
    ) -> String {
        if let Some(name) = self.names.get(&text) {
            return name.clone();
        }
        let mut name = plain.to_owned();
        let mut count = 1;
        while self.plan.contains_key(&name) {
            count += 1;
            name = format!("{plain}.{count}");
        }
        let file = format!("kernels/{name}.wgsl");
        self.texts
            .insert(file.clone(), format!("// {name}\n\n{text}"));
        self.plan.insert(
            name.clone(),
            Kernel {
                file,
                workgroup_size: [workgroup, 1, 1],
                bindings,
            },
        );
        self.names.insert(text, name.clone());
        name
    }
}
