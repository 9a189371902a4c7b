//! Linear layers: the kernels that read rows of a matrix.

use kiln_ir::plan::{Access, CONTEXT};
use kiln_ir::{Dim, Norm, Op, Packing, Step, ValueId};

use crate::attention::Split;
use crate::elementwise::activation;
use crate::error::CodegenError;
use crate::expr::{At, Source};
use crate::join::{AWAITS, GridSize};
use crate::kernel::{Draft, Element, Launch, Way, default_hooks};
use crate::lanes;
use crate::lower::{Lowered, Offer};
use crate::packed;
use crate::parts::{part_hooks, whole_hooks};
use crate::place::{Part, describe};
use crate::row_norm::word;
use crate::tier::Tier;
use crate::tile::{COOP, COOP_STEP, FEW, RowKernel, STREAM, Tile};
use crate::view::{Base, View};
use crate::weights::{Matrix, MatrixPart};
use crate::wgsl;

/// Rows of a result computed a block at a time; see [`kiln_ir::plan::Stream`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    pub rows_per_block: u64,
}

/// The hook of a body that has nothing to do once its outputs are stored.
pub(crate) const NOTHING_STORED: &str = "fn when_stored(lane: u32, count: vec3<u32>) {\n}\n";

/// A linear layer to lower.
pub(crate) struct Linear<'a> {
    pub source: Source<'a>,
    pub tier: Tier,
    pub id: ValueId,
    pub rows: RowKernel,
    /// The number of rows.
    pub count: Dim,
    /// The input, already normalised where the kernel does not do it.
    pub input: View,
    /// The norm that the kernel applies.
    pub norm: Option<Norm>,
    /// Whether the input's elements are f16, two in a word.
    pub halves: bool,
    /// Workgroups of the launch that it will be a part of.
    pub grid: Option<GridSize>,
    /// What it has alternatives for, if it has.
    pub offer: Option<&'a Offer>,
    /// The parts that the input is to be joined from, if attention left such.
    pub split: Option<Split>,
    pub blocked: Option<Blocked>,
}

impl Linear<'_> {
    /// One launch for each part of the weight.
    pub fn lower(&self, out: &mut Lowered) -> Result<Vec<Launch>, CodegenError> {
        let source = self.source;
        let value = source.graph.value(self.id);
        let weight = value.inputs.get(1).map(|w| &source.graph.value(*w).op);
        let matrix = match weight {
            Some(Op::Param { name, .. }) => source.weights.matrix(name),
            _ => None,
        };
        let Some(matrix) = matrix else {
            return Err(source.unsupported(self.id, "its weight is not a parameter"));
        };
        let parts = matrix.parts.iter();
        parts.map(|part| self.part(matrix, part, out)).collect()
    }

    fn part(
        &self,
        matrix: &Matrix,
        part: &MatrixPart,
        out: &mut Lowered,
    ) -> Result<Launch, CodegenError> {
        let (k, n) = (matrix.k, part.rows);
        let usual = self.way(matrix, part, &self.tile(matrix, n), out)?;
        let mut others = Vec::new();
        if let Some(offer) = self.offer {
            let most = offer.most(&self.count)?;
            for tile in self.other_tiles(matrix, n, (most, offer)) {
                if tile.parts().is_none_or(|parts| parts.fit(offer.limit)) {
                    others.push(self.way(matrix, part, &tile, out)?);
                }
            }
        }
        let weight_bytes = matrix.packing.data_bytes(n as usize, k as usize)
            + matrix.packing.scale_bytes(n as usize, k as usize);
        let block = self.block();
        Ok(Launch {
            label: describe(self.source.graph, self.id),
            kernel: usual.kernel,
            workgroups: usual.workgroups,
            flops: &block * &Dim::constant(2 * k * n),
            bytes: &(&block * &Dim::constant(4 * k + self.output_bytes(matrix, part)?))
                + &Dim::constant(weight_bytes as u64),
            others,
        })
    }

    /// Rows of a launch.
    fn block(&self) -> Dim {
        self.blocked
            .map_or(self.count.clone(), |b| Dim::constant(b.rows_per_block))
    }

    /// The kernel for a tile, and how many workgroups of it there are.
    fn way(
        &self,
        matrix: &Matrix,
        part: &MatrixPart,
        tile: &Tile,
        out: &mut Lowered,
    ) -> Result<Way, CodegenError> {
        let (k, n) = (matrix.k, part.rows);
        let body = tile.body;
        let mut d = Draft::new(body, self.detail(matrix, part, tile), tile.workgroup);

        let wv = tile.wv;
        let groups =
            matrix.packing.groups(k as usize) as u64 * (matrix.packing.group() as u64 / 4) / wv;
        d.constant_u32("K", k);
        d.constant_u32("N", n);
        d.constant_u32("K4", k.div_ceil(4));
        d.constant_u32("WV", wv);
        d.constant_u32("GROUPS", groups);
        // Of the loop over K, and of the one that stores rows.
        d.rounds = (groups + tile.rows).into();
        d.constant_bool("SCALED", matrix.packing.has_scales());
        d.constant_bool("NORM", self.norm.is_some());
        d.constant_bool("CENTER", matches!(self.norm, Some(Norm::Layer { .. })));
        d.constant_f32("EPSILON", self.norm.map_or(0.0, Norm::eps));
        d.constant_bool("ROW_SLACK", false);
        for (name, size) in &tile.constants {
            d.constant_u32(name, size);
        }
        let rows = self.count.clone();
        let row = self.row_hooks(&rows, &mut d);
        if body == STREAM {
            for hook in AWAITS {
                d.hook(hook);
            }
            let context = wgsl::symbol(&kiln_ir::Symbol::new(CONTEXT));
            d.hook(format!(
                "fn zero() -> u32 {{\n    return u32({context} == 0u);\n}}\n"
            ));
        }
        if body == FEW {
            // f32 needs no unpacking: its loads follow each other closely as they are.
            d.constant_bool("AHEAD", matrix.packing != Packing::F32);
            d.hook(NOTHING_STORED);
        }
        if let Some(matrices) = tile.matrices {
            matrices.declare(&mut d);
            self.half_hooks(matrix, part, &row, &mut d);
            match tile.parts() {
                None => whole_hooks(&mut d),
                Some(parts) => part_hooks(parts, out, &mut d),
            }
        } else {
            let weights = weight_hooks(matrix, part, body, &mut d);
            if self.tier.is_cpu() {
                self.common_hooks(matrix, part, &weights, tile, &mut d);
            }
            let whole = k.is_multiple_of(matrix.packing.group() as u64);
            match self.split {
                Some(split) => split.load_x(whole, &mut d),
                None => load_x(&self.input, k, whole, &row, &mut d),
            }
            self.norm_hooks(k, &mut d)?;
        }
        self.stores(body, matrix, part, &row, &mut d)?;

        let tiles = &Dim::constant(n.div_ceil(tile.columns)) * &self.block().ceil_div(tile.rows);
        Ok(Way {
            kernel: d,
            workgroups: tile.workgroups(&tiles),
            memory: (tile.memory > self.tier.workgroup_memory()).then_some(tile.memory),
        })
    }

    /// The hooks that the software bodies alone have.
    fn common_hooks(
        &self,
        matrix: &Matrix,
        part: &MatrixPart,
        weights: &str,
        tile: &Tile,
        d: &mut Draft,
    ) {
        for block in default_hooks("software_linear") {
            if block.contains("fn w_scales(") {
                packed::hook(block, matrix, part, weights, str::to_owned, d);
            } else if block.contains("fn load_xs(") {
                let vectors = tile.constant("XV");
                let load = "load_x(tile_row(row + at / XV), k4 + at % XV)";
                let place = |at| format!("[{}][{}]", at / vectors, at % vectors);
                let shared = lanes::share(self.tier, block, tile.rows * vectors, load, place);
                d.hook(shared);
            } else {
                d.hook(block);
            }
        }
    }

    /// What the kernel's name says besides its archetype.
    fn detail(&self, matrix: &Matrix, part: &MatrixPart, tile: &Tile) -> String {
        let mut detail = format!("{}.{}x{}", matrix.packing.name(), matrix.k, part.rows);
        if let Some(norm) = self.norm {
            detail.push_str(&format!(".{}_norm", word(norm)));
        }
        if let Op::Linear { steps, .. } = &self.source.graph.value(self.id).op {
            for step in steps {
                detail.push('.');
                detail.push_str(match step {
                    Step::Add => "add",
                    Step::Mul => "mul",
                    Step::Act(a) => a.word(),
                });
            }
        }
        let rows = match self.rows {
            RowKernel::Matvec(_) => tile.rows,
            RowKernel::Tiled(rows) => rows,
        };
        if rows > 1 {
            detail.push_str(&format!(".rows{rows}"));
        }
        if self.halves {
            detail.push_str(".halves");
        }
        if self.split.is_some() {
            detail.push_str(".split");
        }
        if self.blocked.is_some() {
            detail.push_str(".blocked");
        }
        if lanes::share_loads(self.tier) {
            detail.push_str(".shared");
        }
        if let Some(matrices) = tile.matrices {
            detail.push_str(&matrices.mark());
        }
        if !tile.name.is_empty() {
            detail.push('.');
            detail.push_str(tile.name);
        }
        detail
    }

    /// Whether the kernel reads rows that are rounded to f16 already, if they are to
    /// be had.
    pub fn takes_halves(&self, packing: Packing, k: u64) -> bool {
        self.matrices(packing).is_some() && k.is_multiple_of(COOP_STEP)
    }

    /// The hooks `load_x8` and `load_w8`.
    fn half_hooks(&self, matrix: &Matrix, part: &MatrixPart, row: &str, d: &mut Draft) {
        let k = matrix.k;
        let x = match self.halves {
            true => {
                let x = d.read("x", self.input.base, Element::Half8);
                let address = wgsl::sum([self.input.row_address(row, 8), "k8".to_owned()]);
                format!("{x}[{address}]")
            }
            false => {
                load_x(&self.input, k, k.is_multiple_of(COOP_STEP), row, d);
                "Half8(half4(load_x(row, 2u * k8)), half4(load_x(row, 2u * k8 + 1u)))".to_owned()
            }
        };
        d.hook(format!(
            "fn load_x8(row: u32, k8: u32) -> Half8 {{\n    return {x};\n}}\n"
        ));
        let eights = matrix.packing.groups(k as usize) as u64 * matrix.packing.group() as u64 / 8;
        let at = match k.is_multiple_of(COOP_STEP) {
            true => "k8".to_owned(),
            false => format!("min(k8, {}u)", eights - 1),
        };
        let body = if matrix.packing == Packing::F16 {
            let weights = Base::Weight(part.data);
            let weights = d.bind("weights", weights, Element::Half8, Access::Read);
            format!("    return {weights}[n * {eights}u + {at}];\n")
        } else {
            weight_hooks(matrix, part, COOP, d);
            format!(
                "    let at = {at};\n    let scale = w_scale(n, at / (WV / 2u));\n    \
                 return Half8(half4(load_w4(n, 2u * at) * scale), half4(load_w4(n, 2u * at + 1u) * scale));\n"
            )
        };
        d.hook(format!(
            "fn load_w8(n: u32, k8: u32) -> Half8 {{\n{body}}}\n"
        ));
    }

    /// The hook `rows`; the result is how a hook's `row` is found in the whole
    /// tensor.
    fn row_hooks(&self, rows: &Dim, d: &mut Draft) -> String {
        let all = wgsl::dim(rows);
        match self.blocked {
            None => {
                d.hook(format!("fn rows() -> u32 {{\n    return {all};\n}}\n"));
                "row".to_owned()
            }
            Some(Blocked { rows_per_block }) => {
                let block = wgsl::symbol(&kiln_ir::Symbol::new(kiln_ir::plan::BLOCK));
                d.hook(format!(
                    "fn rows() -> u32 {{\n    return min({all} - {block}, {rows_per_block}u);\n}}\n"
                ));
                format!("({block} + row)")
            }
        }
    }

    /// The hooks `norm_gain` and `norm_bias`.
    fn norm_hooks(&self, k: u64, d: &mut Draft) -> Result<(), CodegenError> {
        let inputs = &self.source.graph.value(self.id).inputs;
        let mut operands = inputs
            .iter()
            .skip(2)
            .take(self.norm.map_or(0, Norm::operands));
        for (name, neutral) in [("norm_gain", "1.0"), ("norm_bias", "0.0")] {
            let value = match operands.next() {
                Some(x) => norm_vector(self.source, self.id, *x, k, d)?,
                None => format!("vec4<f32>({neutral})"),
            };
            d.hook(format!(
                "fn {name}(k4: u32) -> vec4<f32> {{\n    return {value};\n}}\n"
            ));
        }
        Ok(())
    }

    /// The hooks `store` and `store4`.
    fn stores(
        &self,
        body: &str,
        matrix: &Matrix,
        part: &MatrixPart,
        row: &str,
        d: &mut Draft,
    ) -> Result<(), CodegenError> {
        let source = self.source;
        let width = Dim::constant(matrix.rows);
        let outputs = self.outputs(matrix.rows)?;
        let value = source.graph.value(self.id);
        let (norm, steps) = match &value.op {
            Op::Linear { norm, steps } => (*norm, steps.as_slice()),
            _ => (None, &[][..]),
        };
        let operands = &value.inputs[2 + norm.map_or(0, Norm::operands)..];

        let whole_fours = part.rows.is_multiple_of(4)
            && part.first_row.is_multiple_of(4)
            && outputs.iter().all(Part::is_vectorised)
            && operands
                .iter()
                .all(|x| source.vector_of(self.id, *x).is_some() || source.is_vector(*x, &width));

        let column = wgsl::sum(["n".to_owned(), format!("{}u", part.first_row)]);
        if body == STREAM {
            return self.finish(&column, &outputs, steps, operands, row, d);
        }
        // The matvec bodies of the GPU tiers end in `store`, all others in
        // `store4`.
        let ends_in_one = matches!(self.rows, RowKernel::Matvec(_)) && !self.tier.is_cpu();
        if ends_in_one || !whole_fours {
            let epilogue = self.epilogue(steps, operands, row, false, None, d)?;
            let writes = d.write_parts(&outputs, 1);
            d.hook(format!(
                "fn store(row: u32, n: u32, acc: f32) {{\n    let column = {column};\n{epilogue}{writes}}}\n"
            ));
        }
        if ends_in_one {
            return Ok(());
        }
        if whole_fours {
            let epilogue = self.epilogue(steps, operands, row, true, None, d)?;
            let writes = d.write_parts(&outputs, 4);
            d.hook(format!(
                "fn store4(row: u32, n: u32, acc: vec4<f32>) {{\n    let column = {column};\n{epilogue}{writes}}}\n"
            ));
        } else {
            d.hook(
                "fn store4(row: u32, n: u32, acc: vec4<f32>) {\n    for (var i = 0u; i < 4u; i++) {\n        \
                 if n + i < N {\n            store(row, n + i, acc[i]);\n        }\n    }\n}\n",
            );
        }
        Ok(())
    }

    /// The hooks `operands` and `finish`.
    fn finish(
        &self,
        column: &str,
        outputs: &[Part],
        steps: &[Step],
        operands: &[ValueId],
        row: &str,
        d: &mut Draft,
    ) -> Result<(), CodegenError> {
        let mut read = Vec::new();
        let epilogue = self.epilogue(steps, operands, row, false, Some(&mut read), d)?;
        if read.is_empty() {
            // A struct has members.
            read.push("0.0".to_owned());
        }
        let members: Vec<String> = (0..read.len())
            .map(|i| format!("    x{i}: f32,\n"))
            .collect();
        let writes = d.write_parts(outputs, 1);
        d.hook(format!("struct Operands {{\n{}}}\n", members.concat()));
        d.hook(format!(
            "fn operands(row: u32, n: u32) -> Operands {{\n    let column = {column};\n    return Operands({});\n}}\n",
            read.join(", ")
        ));
        d.hook(format!(
            "fn finish(row: u32, n: u32, acc: f32, operands: Operands) {{\n    let column = {column};\n{epilogue}{writes}}}\n"
        ));
        Ok(())
    }

    /// Bytes that a row of the outputs of a part of the matrix takes.
    fn output_bytes(&self, matrix: &Matrix, part: &MatrixPart) -> Result<u64, CodegenError> {
        let (first, end) = (part.first_row, part.first_row + part.rows);
        let outputs = self.outputs(matrix.rows)?.into_iter();
        let bytes = outputs.map(|output| {
            let columns = output.end.min(end).saturating_sub(output.start.max(first));
            columns * self.tier.element_bytes(output.view.base)
        });
        Ok(bytes.sum())
    }

    /// Where columns are written.
    fn outputs(&self, columns: u64) -> Result<Vec<Part>, CodegenError> {
        let source = self.source;
        if let Some(parts) = source.placement.parts.get(&self.id) {
            return Ok(parts.clone());
        }
        let Some(view) = source.view(self.id) else {
            return Err(source.unsupported(self.id, "its result has no place"));
        };
        Ok(vec![Part {
            start: 0,
            end: columns,
            view: view.clone(),
        }])
    }

    /// Statements that turn `acc` into `v`. With `read`, expressions for what they
    /// read go there, and they find it in the members of `operands`.
    fn epilogue(
        &self,
        steps: &[Step],
        operands: &[ValueId],
        row: &str,
        four: bool,
        mut read: Option<&mut Vec<String>>,
        d: &mut Draft,
    ) -> Result<String, CodegenError> {
        let source = self.source;
        let mut out = "    var v = acc;\n".to_owned();
        let mut operands = operands.iter();
        let last = match four {
            true => "column / 4u",
            false => "column",
        };
        for step in steps {
            let line = match step {
                Step::Act(a) => format!("v = {}(v);", d.function(activation(*a, four))),
                Step::Add | Step::Mul => {
                    let Some(x) = operands.next() else {
                        return Err(source.unsupported(self.id, "a step has no operand"));
                    };
                    let whole = source.shape(self.id);
                    // One number for all columns is no vector of them.
                    let is_vector = whole.last() == source.shape(*x).last();
                    let vector = source.vector_of(self.id, *x).filter(|_| is_vector);
                    let operand = match vector {
                        Some((base, offset)) => vector_load(base, offset, last, four, d),
                        None => {
                            let at = source.broadcast(*x, &At::row(row, last, whole), whole);
                            match four {
                                true => source.vector4(*x, &at, d)?,
                                false => source.scalar(*x, &at, d)?,
                            }
                        }
                    };
                    let operand = match read.as_deref_mut() {
                        Some(read) => {
                            read.push(operand);
                            format!("operands.x{}", read.len() - 1)
                        }
                        None => operand,
                    };
                    let sign = if *step == Step::Add { "+" } else { "*" };
                    format!("v {sign}= {operand};")
                }
            };
            out.push_str(&format!("    {line}\n"));
        }
        Ok(out)
    }
}

/// A load from the buffer of a layer's vectors.
fn vector_load(base: Base, offset: u64, last: &str, four: bool, d: &mut Draft) -> String {
    let (element, offset) = match four {
        true => (Element::F32x4, offset / 4),
        false => (Element::F32, offset),
    };
    let name = d.read("vectors", base, element);
    format!(
        "{name}[{}]",
        wgsl::sum([format!("{offset}u"), last.to_owned()])
    )
}

/// The hooks with which `body` reads weights from the buffers of `part`: by units of 16
/// bytes, or by groups; the name of the weights.
fn weight_hooks(matrix: &Matrix, part: &MatrixPart, body: &str, d: &mut Draft) -> String {
    let packing = matrix.packing;
    let data = Base::Weight(part.data);
    let weights = d.bind("weights", data, Element::of(packing), Access::Read);
    if let Some(scales) = part.scales {
        d.bind("scales", Base::Weight(scales), Element::U32, Access::Read);
    }
    let others = match body == STREAM {
        true => [
            "alias Element",
            "first_w(",
            "load_w(",
            "load_w4(",
            "w_element(",
            "w_scale(",
            "w_unit(",
            "w_word(",
            "fn unpack_q",
        ]
        .as_slice(),
        false => &[" Unit", "unpack_bits(", "block_of(", "touch_unit("],
    };
    let is_hook = |b: &&str| ["fn ", "alias ", "struct "].iter().any(|w| b.contains(w));
    let own = packed::prelude(packing).filter(is_hook);
    let own = own.filter(|block| !others.iter().any(|name| block.contains(name)));
    for block in own {
        packed::hook(block, matrix, part, &weights, str::to_owned, d);
    }
    weights
}

/// The hook `load_x`: four elements of a row of `view`, which is `k` long.
/// `whole` says that the body never asks for more than the row has.
pub(crate) fn load_x(view: &View, k: u64, whole: bool, row: &str, d: &mut Draft) {
    let body = if k.is_multiple_of(4) && view.is_vectorised() {
        let name = d.read("x", view.base, Element::F32x4);
        let address = wgsl::sum([view.row_address(row, 4), "k4".to_owned()]);
        if whole {
            format!("    return {name}[{address}];\n")
        } else {
            format!(
                "    if k4 >= {}u {{\n        return vec4<f32>(0.0);\n    }}\n    return {name}[{address}];\n",
                k / 4
            )
        }
    } else {
        let name = d.read("x", view.base, Element::F32);
        let stride = view.strides.last().cloned().unwrap_or_else(|| 1.into());
        let last = wgsl::times("(k4 * 4u + i)", &wgsl::dim(&stride));
        let address = wgsl::sum([view.row_address(row, 1), last]);
        format!(
            "    var v = vec4<f32>(0.0);\n    for (var i = 0u; i < 4u; i++) {{\n        \
             if k4 * 4u + i < {k}u {{\n            v[i] = {name}[{address}];\n        }}\n    }}\n    return v;\n"
        )
    };
    d.hook(format!(
        "fn load_x(row: u32, k4: u32) -> vec4<f32> {{\n{body}}}\n"
    ));
}

/// An expression for four elements, at `k4`, of a norm's gain or bias.
pub(crate) fn norm_vector(
    source: Source<'_>,
    id: ValueId,
    x: ValueId,
    k: u64,
    d: &mut Draft,
) -> Result<String, CodegenError> {
    if k == 0 {
        return Err(source.unsupported(id, "the normalised axis has no elements"));
    }
    if let Some((base, offset)) = source.vector_of(id, x) {
        // Vectors are padded to whole fours, not to whole groups.
        let last = format!("min(k4, {}u)", k.div_ceil(4) - 1);
        return Ok(vector_load(base, offset, &last, true, d));
    }
    let Some(view) = source.view(x) else {
        return Err(source.unsupported(id, "a norm's gain or bias lies in no buffer"));
    };
    // Computed by the graph: of any length, in a buffer of any order.
    let name = d.read("vector", view.base, Element::F32);
    let element = |i: u32| {
        let last = format!("min(k4 * 4u + {i}u, {}u)", k - 1);
        format!("{name}[{}]", view.address(&[last], 1))
    };
    let elements: Vec<String> = (0..4).map(element).collect();
    Ok(format!("vec4<f32>({})", elements.join(", ")))
}
