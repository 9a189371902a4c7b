//! Norms that are launches of their own.

use kiln_ir::{Dim, Norm, ValueId};

use crate::error::CodegenError;
use crate::expr::Source;
use crate::kernel::{Draft, Element, Launch};
use crate::linear::{load_x, norm_vector};
use crate::place::describe;
use crate::tier::Tier;
use crate::view::View;
use crate::wgsl;

/// A norm: `(x, gain[, bias])`, or the norm of a linear op whose kernel does not
/// apply it, written to `output`.
pub(crate) struct RowNorm<'a> {
    pub source: Source<'a>,
    pub tier: Tier,
    pub id: ValueId,
    pub norm: Norm,
    /// The operand of `id` that holds the gain.
    pub first_operand: usize,
    pub input: View,
    pub output: View,
    /// Whether the output's elements are f16, two in a word.
    pub halves: bool,
}

impl RowNorm<'_> {
    pub fn lower(&self) -> Result<Launch, CodegenError> {
        let k = self.input.shape.last().and_then(Dim::as_const);
        let Some(k) = k else {
            return Err(self
                .source
                .unsupported(self.id, "the normalised axis must have a constant size"));
        };
        let center = matches!(self.norm, Norm::Layer { .. });
        let (body, workgroup, per_workgroup) = match self.tier {
            Tier::Software => ("row_norm_software", 8, 8),
            Tier::Coop | Tier::Subgroup => ("row_norm_subgroup", 256, 1),
            Tier::Base => ("row_norm", 64, 1),
        };
        let kind = if center { "layer" } else { "rms" };
        let halves = if self.halves { ".halves" } else { "" };
        let mut d = Draft::new(body, format!("{kind}.{k}{halves}"), workgroup);
        d.constant_u32("K", k);
        d.constant_f32("EPSILON", self.norm.eps());
        d.constant_bool("CENTER", center);
        d.constant_u32("WORKGROUP", workgroup);
        let rows = self.input.rows();
        d.hook(format!(
            "fn rows() -> u32 {{\n    return {};\n}}\n",
            wgsl::dim(&rows)
        ));
        load_x(&self.input, k, k.is_multiple_of(4), "row", &mut d);
        let operands = &self.source.graph.value(self.id).inputs;
        let operands = &operands[self.first_operand..self.first_operand + self.norm.operands()];
        let mut value = "v".to_owned();
        for (x, sign) in operands.iter().zip(["*", "+"]) {
            let vector = norm_vector(self.source, self.id, *x, k, &mut d)?;
            value = format!("{value} {sign} {vector}");
        }
        let store = if self.halves {
            let y = d.write("y", self.output.base, Element::U32x2);
            let address = wgsl::sum([self.output.row_address("row", 4), "k4".to_owned()]);
            format!(
                "    let value = clamp({value}, vec4<f32>(-65504.0), vec4<f32>(65504.0));\n    \
                 {y}[{address}] = vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw));\n"
            )
        } else if k.is_multiple_of(4) && self.output.is_vectorised() {
            let y = d.write("y", self.output.base, Element::F32x4);
            let address = wgsl::sum([self.output.row_address("row", 4), "k4".to_owned()]);
            format!("    {y}[{address}] = {value};\n")
        } else {
            let y = d.write("y", self.output.base, Element::F32);
            let address = wgsl::sum([self.output.row_address("row", 1), "k4 * 4u + i".to_owned()]);
            format!(
                "    let value = {value};\n    for (var i = 0u; i < 4u; i++) {{\n        \
                 if k4 * 4u + i < {k}u {{\n            {y}[{address}] = value[i];\n        }}\n    }}\n"
            )
        };
        d.hook(format!(
            "fn store_norm4(row: u32, k4: u32, v: vec4<f32>) {{\n{store}}}\n"
        ));
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
            flops: &rows * &Dim::constant(8 * k),
            bytes: &rows * &Dim::constant(8 * k),
        })
    }
}
