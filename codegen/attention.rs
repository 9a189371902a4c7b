//! Attention.

use kiln_ir::{AttentionSpec, Dim, Op, ValueId};

use crate::error::CodegenError;
use crate::expr::{Source, load};
use crate::join::{self, GridSize};
use crate::kernel::{Draft, Element, Launch, Way, default_hooks};
use crate::lanes;
use crate::linear::Blocked;
use crate::lower::{Lowered, Offer};
use crate::parts::{Parts, part_hooks, whole_hooks};
use crate::place::describe;
use crate::tier::{Matrices, Tier};
use crate::view::{Base, View};
use crate::wgsl;

/// The body for cooperative matrices.
pub(crate) const COOP: &str = "attention_coop";

/// Tiles of [`COOP`] a processor that are cut in parts: where there are more, no processor
/// waits long for others.
const TILES_A_PROCESSOR: u64 = 4;

/// The largest heads: four elements for each of the invocations that any device has.
const MOST_HEAD_DIM: u64 = 1024;

/// The body for many queries on a GPU without cooperative matrices.
const PREFILL: &str = "attention_prefill";

/// The body for many queries on a CPU driver.
const FOR_MANY: &str = "attention_software_prefill";

/// The body for wide heads on a CPU driver.
const WIDE: &str = "attention_software_wide";

/// The widest heads whose elements one invocation holds all of, on a CPU driver. lavapipe
/// writes out loops of up to 32 vec4s; of longer ones it compiles for very long. With heads of
/// 256, on two cores: a kernel for many queries took 25 s and takes 1 to 3 s, a joined launch with
/// one for a single query took 5 to 12 s and takes 2 s.
const MOST_HELD: u64 = 128;

/// The constants of [`COOP`] for heads of a size, if it takes them.
pub(crate) fn coop_tile(matrices: Matrices, head_dim: u64) -> Option<Vec<(&'static str, u64)>> {
    let side = matrices.side;
    let bytes = |subgroups| {
        let tile = side * subgroups;
        (64 + tile) * (2 * head_dim + 16) + tile * (96 + 16 * side)
    };
    let mut subgroups = [4, 2, 1].into_iter();
    let subgroups = subgroups.find(|s| bytes(*s) <= matrices.memory)?;
    let mut constants = matrices.constants();
    constants.push(("SUBGROUPS", subgroups));
    head_dim.is_multiple_of(side).then_some(constants)
}

/// Parts of a context that workgroups of their own attend to, for one query: in a
/// launch of its own, and as many as leave no workgroup of a grid without one.
pub(crate) fn splits(heads: u64, grid: Option<GridSize>) -> u64 {
    grid.map_or(8, |grid| (grid.workgroups / heads.max(1)).clamp(1, 16))
}

/// Bytes of workgroup memory that `attention_decode_subgroup` keeps sums in.
pub(crate) fn sums(head_dim: u64, workgroup: u64) -> u64 {
    workgroup / 8 * (16 * head_dim.div_ceil(4) + 8)
}

/// Where the parts of a split context lie: for each head and part the vec4s of the
/// sum, not divided, and one of (largest score, sum of exponentials, 0, 0).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    pub base: Base,
    pub heads: u64,
    pub head_dim: u64,
    pub splits: u64,
}

impl Split {
    /// vec4s of a part.
    fn part(self) -> u64 {
        self.head_dim / 4 + 1
    }

    /// Elements of the buffer.
    pub fn elements(self) -> u64 {
        4 * self.heads * self.splits * self.part()
    }

    /// The hook `load_x` of a linear layer over the result, which joins the parts.
    pub fn load_x(self, whole: bool, d: &mut Draft) {
        let (d4, part, splits) = (self.head_dim / 4, self.part(), self.splits);
        let parts = d.read("parts", self.base, Element::F32x4);
        let guard = match whole {
            true => String::new(),
            false => format!(
                "    if k4 >= {}u {{\n        return vec4<f32>(0.0);\n    }}\n",
                self.heads * d4
            ),
        };
        d.hook(format!(
            "fn load_x(row: u32, k4: u32) -> vec4<f32> {{\n{guard}    \
             let first = k4 / {d4}u * {}u;\n    var top = -1e30;\n    \
             for (var s = 0u; s < {splits}u; s++) {{\n        \
             top = max(top, {parts}[first + s * {part}u + {d4}u].x);\n    }}\n    \
             var sum = vec4<f32>(0.0);\n    var total = 0.0;\n    \
             for (var s = 0u; s < {splits}u; s++) {{\n        \
             let stats = {parts}[first + s * {part}u + {d4}u];\n        \
             let keep = exp(stats.x - top);\n        \
             sum += keep * {parts}[first + s * {part}u + k4 % {d4}u];\n        \
             total += keep * stats.y;\n    }}\n    \
             return sum / max(total, 1e-30);\n}}\n",
            splits * part
        ));
    }

    /// The hook `store_split`.
    fn store(self, d: &mut Draft) {
        let (d4, part) = (self.head_dim / 4, self.part());
        let parts = d.write("parts", self.base, Element::F32x4);
        d.hook(format!(
            "fn store_split(b: u32, i: u32, h: u32, split: u32, d4: u32, v: vec4<f32>, top: f32, total: f32) {{\n    \
             let first = (h * SPLITS + split) * {part}u;\n    {parts}[first + d4] = v;\n    \
             if d4 == 0u {{\n        {parts}[first + {d4}u] = vec4<f32>(top, total, 0.0, 0.0);\n    }}\n}}\n"
        ));
    }
}

/// An attention op, or its probabilities, to lower.
pub(crate) struct Attention<'a> {
    pub source: Source<'a>,
    pub tier: Tier,
    pub id: ValueId,
    pub spec: AttentionSpec,
    /// Whether there are few queries a sequence.
    pub few_queries: bool,
    /// Where the parts of the context go, if it is split: there is one query then.
    pub split: Option<Split>,
    /// Workgroups of the launch that it will be a part of.
    pub grid: Option<GridSize>,
    /// What it has alternatives for, if it has.
    pub offer: Option<&'a Offer>,
    pub blocked: Option<Blocked>,
}

/// A body with what it is told.
struct Body {
    name: &'static str,
    constants: Vec<(&'static str, u64)>,
    /// The cooperative matrices that [`COOP`] multiplies.
    matrices: Option<Matrices>,
    /// What tells it from others for the same; part of the kernel's name.
    mark: &'static str,
}

impl Body {
    /// [`COOP`] for heads of a size, if it takes them.
    fn of_matrices(matrices: Matrices, head_dim: u64, mark: &'static str) -> Option<Self> {
        Some(Body {
            name: COOP,
            constants: coop_tile(matrices, head_dim)?,
            matrices: Some(matrices),
            mark,
        })
    }

    /// One of the constants; 1 if there is no such.
    fn constant(&self, name: &str) -> u64 {
        let found = self.constants.iter().find(|(n, _)| *n == name);
        found.map_or(1, |(_, size)| *size)
    }

    /// Invocations of a workgroup.
    fn workgroup(&self) -> u64 {
        match self.name {
            PREFILL => self.constant("TILE_QUERIES") * self.constant("TEAM"),
            COOP => self.constant("SUBGROUP") * self.constant("SUBGROUPS"),
            _ => self.constant("WORKGROUP"),
        }
    }
}

/// What an op attends to, and with what.
struct On {
    /// Whether it gives probabilities alone.
    probabilities: bool,
    width: u64,
    head_dim: u64,
    batch: Dim,
    queries: Dim,
    keys: Dim,
    q: View,
    k: View,
    v: Option<View>,
    /// The first keys that are visible, if not all are.
    start: Option<ValueId>,
}

impl On {
    /// Parts of so many tiles of [`COOP`]: of each lane its sums, and how they are scaled.
    fn parts(&self, body: &Body, count: u64, tiles: u64) -> Parts {
        let side = body.constant("SIDE");
        let vectors =
            side * side / body.constant("SUBGROUP") * self.head_dim.div_ceil(4 * side) + 1;
        Parts {
            count,
            tiles,
            size: 4 * vectors * body.workgroup(),
        }
    }
}

impl Attention<'_> {
    pub fn lower(&self, out: &mut Lowered) -> Result<Launch, CodegenError> {
        let source = self.source;
        let on = self.operands()?;
        if on.head_dim > MOST_HEAD_DIM {
            let reason = format!("heads have at most {MOST_HEAD_DIM} elements");
            return Err(source.unsupported(self.id, &reason));
        }
        let body = self.kernel(&on);
        let usual = self.way(&on, &body, None, out)?;
        let mut others = Vec::new();
        if let (Some(matrices), Some(offer)) = (body.matrices, self.offer) {
            let tiles = usual.workgroups.eval(&offer.largest)?;
            for count in [2, 4] {
                let most = tiles.min(offer.processors * TILES_A_PROCESSOR);
                let parts = on.parts(&body, count, most);
                if parts.fit(offer.limit) {
                    others.push(self.way(&on, &body, Some(parts), out)?);
                }
            }
            let scalars = matrices.by_scalars();
            let scalars = scalars.and_then(|m| Body::of_matrices(m, on.head_dim, "scalars"));
            if let Some(body) = scalars {
                others.push(self.way(&on, &body, None, out)?);
            }
        }

        // As if every query saw every key that it may: of those in its window, if it has one,
        // what causality keeps from the first queries is not taken off.
        let tokens = &on.batch * &on.queries;
        let (seen, read) = match self.spec.window {
            None => (on.keys.clone(), on.keys.clone()),
            Some(window) => {
                // The last keys are the queries' own.
                let (window, before) = (window as u64, &on.keys - &on.queries);
                let read = &on.queries + &before.at_most(window.saturating_sub(1));
                (on.keys.at_most(window), read)
            }
        };
        let pairs = &tokens * &seen;
        let (products, of_keys) = if on.probabilities { (2, 1) } else { (4, 2) };
        let element = self.tier.element_bytes(on.k.base);
        let kv_bytes = &(&on.batch * &read)
            * &Dim::constant(element * on.head_dim * self.spec.kv_heads as u64 * of_keys);
        let out_bytes = match on.probabilities {
            true => &(&tokens * &on.keys) * &Dim::constant(4 * self.spec.heads as u64),
            false => &tokens * &Dim::constant(4 * on.width),
        };
        Ok(Launch {
            label: describe(source.graph, self.id),
            workgroups: usual.workgroups,
            kernel: usual.kernel,
            flops: &pairs * &Dim::constant(products * on.width),
            bytes: &(&(&tokens * &Dim::constant(4 * on.width)) + &kv_bytes) + &out_bytes,
            others,
        })
    }

    /// What it attends to, and with what.
    fn operands(&self) -> Result<On, CodegenError> {
        let source = self.source;
        let value = source.graph.value(self.id);
        let probabilities = matches!(value.op, Op::AttentionProbs(_));
        let plain = if probabilities { 2 } else { 3 };
        let view = |at: usize, name: &str| {
            let view = value.inputs.get(at).and_then(|x| source.view(*x));
            let no_buffer =
                || source.unsupported(self.id, &format!("its {name} lies in no buffer"));
            view.cloned().ok_or_else(no_buffer)
        };
        let (q, k) = (view(0, "q")?, view(1, "k")?);
        let v = match probabilities {
            true => None,
            false => Some(view(2, "v")?),
        };
        let width = q.shape.last().and_then(Dim::as_const).unwrap_or(0);
        Ok(On {
            probabilities,
            width,
            head_dim: width / (self.spec.heads as u64).max(1),
            batch: q.shape[0].clone(),
            queries: q.shape[1].clone(),
            keys: k.shape[1].clone(),
            q,
            k,
            v,
            start: value.inputs.get(plain).copied(),
        })
    }

    /// The kernel with a body, and how many workgroups of it there are.
    fn way(
        &self,
        on: &On,
        body: &Body,
        parts: Option<Parts>,
        out: &mut Lowered,
    ) -> Result<Way, CodegenError> {
        let workgroup = body.workgroup();
        let (heads, head_dim) = (self.spec.heads as u64, on.head_dim);
        let mut detail = format!("{heads}x{head_dim}");
        if self.spec.kv_heads != self.spec.heads {
            detail = format!("{heads}by{}x{head_dim}", self.spec.kv_heads);
        }
        if !self.spec.causal {
            detail.push_str(".full");
        }
        if let Some(window) = self.spec.window {
            detail.push_str(&format!(".window{window}"));
        }
        if on.start.is_some() {
            detail.push_str(".padded");
        }
        if self.split.is_some() {
            detail.push_str(".split");
        }
        if matches!(body.name, FOR_MANY | WIDE) && lanes::share_loads(self.tier) {
            detail.push_str(".shared");
        }
        if let Some(matrices) = body.matrices {
            detail.push_str(&matrices.mark());
        }
        if !body.mark.is_empty() {
            detail.push('.');
            detail.push_str(body.mark);
        }
        if let Some(parts) = parts {
            detail.push_str(&format!(".parts{}", parts.count));
        }
        let mut d = Draft::new(body.name, detail, workgroup as u32);
        d.rounds = match body.name {
            WIDE => on.keys.clone(),
            _ => on.keys.ceil_div(workgroup),
        };
        d.constant_u32("HEADS", heads);
        d.constant_u32("KV_HEADS", self.spec.kv_heads);
        d.constant_u32("HEAD_DIM", head_dim);
        d.constant_f32("SCALE", self.spec.scale);
        d.constant_bool("CAUSAL", self.spec.causal);
        if matches!(body.name, COOP | FOR_MANY | PREFILL | WIDE) {
            d.constant_bool("SLIDES", self.spec.window.is_some());
        }
        for (name, size) in &body.constants {
            d.constant_u32(name, size);
        }
        size_hook("batch", &on.batch, &mut d);
        size_hook("queries", &on.queries, &mut d);
        size_hook("kv_len", &on.keys, &mut d);
        // Only a causal kernel asks: query i stands at position past + i.
        let past = match self.spec.causal {
            true => &on.keys - &on.queries,
            false => Dim::default(),
        };
        size_hook("past", &past, &mut d);
        self.visible_from(on.start, &mut d)?;
        load_hook("q", &on.q, ["i", "h"], head_dim, &mut d);
        let of_keys = [("k", Some(&on.k)), ("v", on.v.as_ref())];
        for (name, view) in of_keys {
            if let Some(view) = view {
                load_hook(name, view, ["j", "kvh"], head_dim, &mut d);
            }
        }
        let own = matches!(body.name, COOP | FOR_MANY).then(|| default_hooks(body.name));
        for block in own.into_iter().flatten() {
            let is_key = block.contains("fn half_k(") || block.contains("fn load_key(");
            let (name, view) = match &on.v {
                Some(v) if !is_key => ("v", v),
                _ => ("k", &on.k),
            };
            if body.name == COOP {
                half_hook(name, view, block, head_dim, &mut d);
            } else {
                let load = format!("load_{name}(b, j, kvh, at)");
                let place = |at| format!("[{at}]");
                let count = head_dim.div_ceil(4);
                d.hook(lanes::share(self.tier, block, count, &load, place));
            }
        }
        if body.name == WIDE {
            for block in default_hooks(WIDE) {
                d.hook(lanes::add_up(self.tier, block));
            }
        }
        if let Some(matrices) = body.matrices {
            matrices.declare(&mut d);
            d.constant_u32("PARTS", parts.map_or(1, |p| p.count));
            d.constant_u32("MOST", parts.map_or(0, |p| p.tiles));
            match parts {
                None => whole_hooks(&mut d),
                Some(parts) => part_hooks(parts, out, &mut d),
            }
        }
        if on.probabilities {
            self.store_prob(&on.keys, &mut d)?;
        } else if let Some(split) = self.split {
            split.store(&mut d);
        } else {
            self.store_out(head_dim, &mut d)?;
        }
        let tiles = self.workgroups(body, &on.batch, &on.queries);
        Ok(Way {
            kernel: d,
            workgroups: &tiles * &Dim::constant(parts.map_or(1, |p| p.count)),
            memory: None,
        })
    }

    /// The body and its tile's constants.
    fn kernel(&self, on: &On) -> Body {
        let head_dim = on.head_dim;
        let workgroup = u64::from(self.tier.pointwise_workgroup());
        let (name, constants) = match (self.tier, self.few_queries) {
            _ if on.probabilities => ("attention_probs", vec![("WORKGROUP", workgroup)]),
            (tier, few) if tier.is_cpu() && head_dim > MOST_HELD => {
                // As many sums an invocation as it has vec4s of heads of MOST_HELD.
                let own = head_dim.div_ceil(4 * workgroup);
                let queries = match few {
                    true => 1,
                    false => (MOST_HELD / 4 / own).max(1),
                };
                (
                    WIDE,
                    vec![("WORKGROUP", workgroup), ("TILE_QUERIES", queries)],
                )
            }
            (tier, true) if tier.is_cpu() => {
                ("attention_software_decode", vec![("WORKGROUP", workgroup)])
            }
            (tier, false) if tier.is_cpu() => (
                FOR_MANY,
                vec![("WORKGROUP", workgroup), ("TILE_QUERIES", 2)],
            ),
            (Tier::Coop(_) | Tier::Subgroup, true) => {
                let parts = head_dim.div_ceil(16).max(1);
                // As many invocations as their sums leave room for.
                let alone = self.tier.workgroup_memory();
                let memory = self.grid.map_or(alone, |_| join::MEMORY);
                let mut workgroups = [256, 128, 64, 32].into_iter();
                let workgroup = workgroups.find(|w| sums(head_dim, *w) <= memory);
                let workgroup = workgroup.unwrap_or(8);
                let constants = vec![
                    ("WORKGROUP", workgroup),
                    ("SPLITS", self.split.map_or(1, |s| s.splits)),
                    ("KEYS", (8 / parts).clamp(1, 4)),
                ];
                ("attention_decode_subgroup", constants)
            }
            (_, true) => {
                // As many invocations as a head has vec4s at the least.
                let least = head_dim.div_ceil(4).next_power_of_two();
                let constants = vec![("WORKGROUP", least.max(128))];
                ("attention_decode", constants)
            }
            (Tier::Coop(matrices), false)
                if let Some(body) = Body::of_matrices(matrices, head_dim, "") =>
            {
                return body;
            }
            (_, false) => {
                // The largest tile that workgroup memory holds.
                let row = 16 * (head_dim.div_ceil(4) + 1);
                let bytes = |t: u64| 3 * t * row + 4 * t * (t + 1);
                let tiles = [16, 8, 4, 2];
                let tile = tiles
                    .into_iter()
                    .find(|t| bytes(*t) <= self.tier.workgroup_memory())
                    .unwrap_or(1);
                let constants = vec![("TILE_QUERIES", tile), ("TILE_KEYS", tile), ("TEAM", 16)];
                (PREFILL, constants)
            }
        };
        Body {
            name,
            constants,
            matrices: None,
            mark: "",
        }
    }

    fn workgroups(&self, body: &Body, batch: &Dim, queries: &Dim) -> Dim {
        let heads = Dim::constant(self.spec.heads as u64);
        let tiles = match body.name {
            "attention_probs" => {
                let rows = match self.blocked {
                    Some(b) => Dim::constant(b.rows_per_block),
                    None => &(batch * queries) * &heads,
                };
                return rows.ceil_div(body.constant("WORKGROUP"));
            }
            FOR_MANY => {
                queries.ceil_div(body.constant("WORKGROUP") * body.constant("TILE_QUERIES"))
            }
            PREFILL | WIDE => queries.ceil_div(body.constant("TILE_QUERIES")),
            COOP => {
                let subgroups = body.constant("SUBGROUPS");
                queries.ceil_div(body.constant("SIDE") * subgroups)
            }
            _ => queries * &Dim::constant(body.constant("SPLITS")),
        };
        &(batch * &tiles) * &heads
    }

    fn visible_from(&self, start: Option<ValueId>, d: &mut Draft) -> Result<(), CodegenError> {
        let mut text = match start {
            None => "0u".to_owned(),
            Some(start) => {
                let Some(view) = self.source.view(start) else {
                    let reason = "the first visible keys lie in no buffer";
                    return Err(self.source.unsupported(self.id, reason));
                };
                let address = view.address(&["b".to_owned()], 1);
                let value = load(view.base, self.source.graph.ty(start).dtype, &address, d);
                format!("min(u32(max({value}, 0i)), kv_len())")
            }
        };
        if let Some(window) = self.spec.window {
            let near = format!("max(past() + i + 1u, {window}u) - {window}u");
            text = match start {
                None => near,
                Some(_) => format!("max({text}, {near})"),
            };
        }
        d.hook(format!(
            "fn visible_from(b: u32, i: u32) -> u32 {{\n    return {text};\n}}\n"
        ));
        Ok(())
    }

    fn store_out(&self, head_dim: u64, d: &mut Draft) -> Result<(), CodegenError> {
        let Some(out) = self.source.view(self.id) else {
            return Err(self.source.unsupported(self.id, "its result has no place"));
        };
        let body = if head_dim.is_multiple_of(4) && out.is_vectorised() {
            let y = d.write("y", out.base, Element::F32x4);
            let address = head_address(out, "i", "h", head_dim / 4, "d4", 4);
            format!("    {y}[{address}] = v;\n")
        } else {
            let y = d.write("y", out.base, Element::F32);
            let address = head_address(out, "i", "h", head_dim, "(d4 * 4u + e)", 1);
            // No index of what is named as a binding may be.
            format!(
                "    let four = v;\n    for (var e = 0u; e < 4u; e++) {{\n        \
                 if d4 * 4u + e < HEAD_DIM {{\n            {y}[{address}] = four[e];\n        }}\n    }}\n"
            )
        };
        d.hook(format!(
            "fn store_out(b: u32, i: u32, h: u32, d4: u32, v: vec4<f32>) {{\n{body}}}\n"
        ));
        // The body that can split a context hands its sums over undivided.
        if !self.few_queries || !matches!(self.tier, Tier::Coop(_) | Tier::Subgroup) {
            return Ok(());
        }
        d.hook(
            "fn store_split(b: u32, i: u32, h: u32, split: u32, d4: u32, v: vec4<f32>, top: f32, total: f32) {\n    \
             store_out(b, i, h, d4, v / max(total, 1e-30));\n}\n",
        );
        Ok(())
    }

    fn store_prob(&self, keys: &Dim, d: &mut Draft) -> Result<(), CodegenError> {
        let Some(out) = self.source.view(self.id) else {
            return Err(self.source.unsupported(self.id, "its result has no place"));
        };
        let y = d.write("y", out.base, Element::F32);
        let keys = wgsl::dim(keys);
        let row = "(b * HEADS + h) * queries() + i";
        let block = wgsl::symbol(&kiln_ir::Symbol::new(kiln_ir::plan::BLOCK));
        let (row, guard) = match self.blocked {
            Some(blocked) => {
                // A block is a multiple of the workgroup, so it starts with one. A folded grid
                // has workgroups beyond its end, which is not the end of all.
                d.first_workgroup(format!("{block} / WORKGROUP"));
                let row = format!("({row} - {block})");
                let most = blocked.rows_per_block;
                let guard = format!("    if {row} >= {most}u {{\n        return;\n    }}\n");
                (row, guard)
            }
            None => (format!("({row})"), String::new()),
        };
        d.hook(format!(
            "fn store_prob(b: u32, h: u32, i: u32, j: u32, p: f32) {{\n{guard}    \
             {y}[{row} * {keys} + j] = p;\n}}\n"
        ));
        Ok(())
    }
}

fn size_hook(name: &str, size: &Dim, d: &mut Draft) {
    d.hook(format!(
        "fn {name}() -> u32 {{\n    return {};\n}}\n",
        wgsl::dim(size)
    ));
}

/// The address of an element of a head in `[batch, row, heads * head_dim]`.
fn head_address(
    view: &View,
    row: &str,
    head: &str,
    head_size: u64,
    element: &str,
    unit: u64,
) -> String {
    if let Some(panels) = view.panels.as_ref().filter(|p| p.width == head_size * unit) {
        let row = view.address(&["b".to_owned(), row.to_owned()], unit);
        return wgsl::sum([row, panels.address(head, unit), element.to_owned()]);
    }
    let last = wgsl::sum([
        wgsl::times(head, &format!("{head_size}u")),
        element.to_owned(),
    ]);
    let index = ["b".to_owned(), row.to_owned(), format!("({last})")];
    view.address(&index, unit)
}

/// A hook `load_q`, `load_k` or `load_v`.
fn load_hook(name: &str, view: &View, [row, head]: [&str; 2], head_dim: u64, d: &mut Draft) {
    let body = if head_dim.is_multiple_of(4) && view.is_vectorised() {
        let x = d.read(name, view.base, Element::F32x4);
        let address = head_address(view, row, head, head_dim / 4, "d4", 4);
        format!("    return {x}[{address}];\n")
    } else {
        let x = d.read(name, view.base, Element::F32);
        let address = head_address(view, row, head, head_dim, "(d4 * 4u + e)", 1);
        // No name that a binding has: this would hide it.
        format!(
            "    var four = vec4<f32>(0.0);\n    for (var e = 0u; e < 4u; e++) {{\n        \
             if d4 * 4u + e < HEAD_DIM {{\n            four[e] = {x}[{address}];\n        }}\n    }}\n    return four;\n"
        )
    };
    d.hook(format!(
        "fn load_{name}(b: u32, {row}: u32, {head}: u32, d4: u32) -> vec4<f32> {{\n{body}}}\n"
    ));
}

/// The hook `rounded`, which is `half_k` or `half_v`, or what it is where the elements
/// are of f16.
fn half_hook(name: &str, view: &View, rounded: &str, head_dim: u64, d: &mut Draft) {
    if !view.is_vectorised() {
        return d.hook(rounded);
    }
    let bound = d.read(name, view.base, Element::F32x4);
    let address = head_address(view, "j", "kvh", head_dim / 4, "d4", 4);
    let head = format!("fn half_{name}(b: u32, j: u32, kvh: u32, d4: u32) -> vec4<f16>");
    let halves = format!("{head} {{\n    return {bound}[{address}];\n}}\n");
    d.hook_of(&bound, rounded.to_owned(), halves);
}
