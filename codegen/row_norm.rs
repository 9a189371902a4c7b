//! Norms that are launches of their own.

use kiln_ir::{Dim, Norm, ValueId};

use crate::error::CodegenError;
use crate::expr::{At, Source};
use crate::join;
use crate::kernel::{Draft, Element, Launch};
use crate::linear::{NOTHING_STORED, load_x, norm_vector};
use crate::place::describe;
use crate::tier::Tier;
use crate::view::{Base, View};
use crate::wgsl;

/// A norm: `(x, gain[, bias])`, or the norm of a linear op whose kernel does not
/// apply it, written to `output`, perhaps with something added to it.
pub(crate) struct RowNorm<'a> {
    pub source: Source<'a>,
    pub tier: Tier,
    pub id: ValueId,
    pub norm: Norm,
    /// The operand of `id` that holds the gain.
    pub first_operand: usize,
    pub input: View,
    pub output: View,
    /// The value that is written, of the output's shape, if it is a sum of the norm and
    /// an operand: that one.
    pub added: Option<(ValueId, ValueId)>,
    /// Whether the output's elements are f16, two in a word.
    pub halves: bool,
    /// Whether it may become a part of a launch that is joined by barriers.
    pub is_joined: bool,
}

/// What kernels' names call a norm.
pub(crate) fn word(norm: Norm) -> &'static str {
    match norm {
        Norm::Layer { .. } => "layer",
        Norm::Rms { .. } => "rms",
    }
}

impl RowNorm<'_> {
    /// A launch that does nothing else.
    pub fn lower(&self) -> Result<Launch, CodegenError> {
        let k = self.width()?;
        let (body, workgroup, per_workgroup) = match self.tier {
            Tier::SoftwareSubgroup | Tier::Software => ("row_norm_software", 8, 8),
            Tier::Coop(_) | Tier::Subgroup => ("row_norm_subgroup", self.lanes(k), 1),
            Tier::Base => ("row_norm", 64, 1),
        };
        let halves = if self.halves { ".halves" } else { "" };
        let detail = format!("{}.{k}{}{halves}", word(self.norm), self.then());
        let mut d = Draft::new(body, detail, workgroup);
        d.constant_u32("K", k);
        d.constant_f32("EPSILON", self.norm.eps());
        d.constant_bool("CENTER", self.is_centered());
        d.constant_u32("WORKGROUP", workgroup);
        let rows = self.input.rows();
        d.hook(format!(
            "fn rows() -> u32 {{\n    return {};\n}}\n",
            wgsl::dim(&rows)
        ));
        load_x(&self.input, k, k.is_multiple_of(4), "row", &mut d);
        self.store(k, &mut d)?;
        let label = describe(self.source.graph, self.id);
        let apart = self.first_operand > 1;
        Ok(Launch {
            label: if apart {
                format!("{label}.norm")
            } else {
                label
            },
            kernel: d,
            workgroups: rows.ceil_div(per_workgroup),
            flops: self.flops(k),
            bytes: &rows * &Dim::constant(if self.added.is_some() { 12 } else { 8 } * k),
            others: Vec::new(),
        })
    }

    /// Invocations for a row: no more than it has vec4s, as in norms of heads, but where launches
    /// are joined, which all have as many.
    fn lanes(&self, k: u64) -> u32 {
        match self.is_joined {
            true => join::WORKGROUP as u32,
            false => (k.div_ceil(4) as u32).next_power_of_two().clamp(64, 256),
        }
    }

    /// Makes it the end of the launch that writes its input, a body for few rows on a
    /// CPU driver, whose workgroups count themselves in `done`.
    pub fn end(&self, launch: &mut Launch, done: Base) -> Result<(), CodegenError> {
        let k = self.width()?;
        let d = &mut launch.kernel;
        let then = format!(".then_{}_norm{}", word(self.norm), self.then());
        d.detail.push_str(&then);
        d.constant_u32("NORM_K", k);
        d.constant_f32("NORM_EPSILON", self.norm.eps());
        d.constant_bool("NORM_CENTER", self.is_centered());
        let y = d.reload("y", self.input.base, Element::F32x4);
        let address = wgsl::sum([self.input.row_address("row", 4), "k4".to_owned()]);
        d.hook(format!(
            "fn load_stored(row: u32, k4: u32) -> vec4<f32> {{\n    return {y}[{address}];\n}}\n"
        ));
        self.store(k, d)?;
        d.write("done", done, Element::AtomicU32);
        d.hook(kiln_shaders::NORM_LAST);
        let then = NOTHING_STORED.replace("{\n", "{\n    norm_last(lane, count);\n");
        if !d.replace(NOTHING_STORED, &then) {
            let reason = "the launch before it has another end";
            return Err(self.source.unsupported(self.id, reason));
        }
        // The last workgroup of all goes through the rows three times.
        let rounds = (3 * k.div_ceil(4)).div_ceil(u64::from(d.workgroup));
        d.rounds = &d.rounds + &Dim::constant(rounds);
        launch.flops = &launch.flops + &self.flops(k);
        Ok(())
    }

    /// What kernels' names call what is done to the norm.
    fn then(&self) -> &'static str {
        self.added.map_or("", |_| ".add")
    }

    /// The operand that is added, at `last` of `row`: four elements, or one.
    fn addend(&self, last: &str, four: bool, d: &mut Draft) -> Result<String, CodegenError> {
        let Some((sum, x)) = self.added else {
            return Ok(String::new());
        };
        let whole = self.source.shape(sum);
        let at = self
            .source
            .broadcast(x, &At::row("row", last, whole), whole);
        let value = match four {
            true => self.source.vector4(x, &at, d)?,
            false => self.source.scalar(x, &at, d)?,
        };
        Ok(format!(" + {value}"))
    }

    /// Whether four elements of the result are written at a time.
    fn stores_four(&self, k: u64) -> bool {
        let addend = self
            .added
            .is_none_or(|(_, x)| self.source.is_vector(x, &Dim::constant(k)));
        k.is_multiple_of(4) && self.output.is_vectorised() && addend
    }

    /// The hook `store_norm4`.
    fn store(&self, k: u64, d: &mut Draft) -> Result<(), CodegenError> {
        let operands = &self.source.graph.value(self.id).inputs;
        let operands = &operands[self.first_operand..self.first_operand + self.norm.operands()];
        let mut value = "v".to_owned();
        for (x, sign) in operands.iter().zip(["*", "+"]) {
            let vector = norm_vector(self.source, self.id, *x, k, d)?;
            value = format!("{value} {sign} {vector}");
        }
        let store = if self.halves {
            let y = d.write("y", self.output.base, Element::U32x2);
            let address = wgsl::sum([self.output.row_address("row", 4), "k4".to_owned()]);
            format!(
                "    let value = clamp({value}, vec4<f32>(-65504.0), vec4<f32>(65504.0));\n    \
                 {y}[{address}] = vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw));\n"
            )
        } else if self.stores_four(k) {
            let addend = self.addend("k4", true, d)?;
            let y = d.write("y", self.output.base, Element::F32x4);
            let address = wgsl::sum([self.output.row_address("row", 4), "k4".to_owned()]);
            format!("    {y}[{address}] = {value}{addend};\n")
        } else {
            let addend = self.addend("(k4 * 4u + i)", false, d)?;
            let y = d.write("y", self.output.base, Element::F32);
            let address = wgsl::sum([self.output.row_address("row", 1), "k4 * 4u + i".to_owned()]);
            format!(
                "    let value = {value};\n    for (var i = 0u; i < 4u; i++) {{\n        \
                 if k4 * 4u + i < {k}u {{\n            {y}[{address}] = value[i]{addend};\n        }}\n    }}\n"
            )
        };
        d.hook(format!(
            "fn store_norm4(row: u32, k4: u32, v: vec4<f32>) {{\n{store}}}\n"
        ));
        Ok(())
    }

    /// How long the rows are.
    fn width(&self) -> Result<u64, CodegenError> {
        let k = self.input.shape.last().and_then(Dim::as_const);
        k.ok_or_else(|| {
            let reason = "the normalised axis must have a constant size";
            self.source.unsupported(self.id, reason)
        })
    }

    fn is_centered(&self) -> bool {
        matches!(self.norm, Norm::Layer { .. })
    }

    fn flops(&self, k: u64) -> Dim {
        &self.input.rows() * &Dim::constant(8 * k)
    }
}
