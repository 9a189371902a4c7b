// The embedded data, opened up.

const data = JSON.parse($('data').textContent);

/** The numbers of a list of runs: `[4, 3, 9, 1]` is 4, 5, 6, 9. */
function unrun(runs) {
  const out = [];
  for (let i = 0; i < runs.length; i += 2) {
    for (let n = 0; n < runs[i + 1]; n++) out.push(runs[i] + n);
  }
  return out;
}

const entryNames = data.graphs.entries.map((entry) => entry.name);

const graphEntry = (name) => data.graphs.entries.find((entry) => entry.name === name);

const openedStages = new Map();

/** The stages of an entry point, opened when they are asked for. */
function stagesOf(name) {
  if (!openedStages.has(name)) openedStages.set(name, openStages(graphEntry(name)));
  return openedStages.get(name);
}

function openStages(entry) {
  const { ops, types, sources } = data.graphs;
  const values = entry.values.map(([id, op, type, source, ...inputs]) => ({
    id, op: ops[op][0], attrs: ops[op][1], type: types[type], source: sources[source], inputs,
  }));
  const stages = [];
  for (const { pass, rewrites, order, outputs, states } of entry.stages) {
    const inOrder = unrun(order).map((number) => values[number]);
    const byId = new Map(inOrder.map((value) => [value.id, value]));
    const before = stages.at(-1);
    const users = new Map(inOrder.map((value) => [value.id, []]));
    for (const value of inOrder) {
      for (const input of new Set(value.inputs)) users.get(input)?.push(value.id);
    }
    const stage = { pass, rewrites, inOrder, byId, outputs, states, users, before, index: stages.length };
    stage.added = new Set(before ? inOrder.filter((v) => !before.byId.has(v.id)).map((v) => v.id) : []);
    stage.removed = before ? before.inOrder.filter((v) => !byId.has(v.id)) : [];
    stages.push(stage);
  }
  return stages;
}

const isConstant = (value) => value.op === 'param' || value.op === 'const';

/** The name that a parameter, input or state has. */
const nameOf = (value) => value.attrs.find(([key]) => key === 'name')?.[1];

/** Attributes as in the text form, but for a name. */
const attrsText = (value) =>
  value.attrs.filter(([key]) => key !== 'name').map(([key, text]) => `${key}=${text}`).join(', ');

/** A value as the text form has it. */
function valueText(value) {
  const name = nameOf(value);
  const operands = name === undefined ? value.inputs.map((id) => `%${id}`).join(', ') : `"${name}"`;
  const attrs = attrsText(value);
  return `%${value.id} = ${value.op} ${operands}${attrs && ` {${attrs}}`} : ${value.type}`
    + (value.source && ` @${value.source}`);
}

/**
 * The values that a new value stands for: from the value whose place it took, up
 * through all that the pass removed. Where its users are new themselves, the
 * place is not known, and the list is empty.
 */
function replacedBy(stage, value) {
  const { before } = stage;
  if (!stage.added.has(value.id) || !before) return [];
  const placeIn = (now, then) => {
    const place = now.indexOf(value.id);
    return place >= 0 && then.length === now.length ? then[place] : undefined;
  };
  const users = stage.users.get(value.id).filter((id) => before.byId.has(id));
  const places = users.map((id) => placeIn(stage.byId.get(id).inputs, before.byId.get(id).inputs));
  for (const kind of ['outputs', 'states']) {
    const ids = (of) => of[kind].map(([, id]) => id);
    places.push(placeIn(ids(stage), ids(before)));
  }
  const removed = new Map(stage.removed.map((v) => [v.id, v]));
  const found = new Set();
  const visit = (id) => {
    if (!removed.has(id) || found.has(id)) return;
    found.add(id);
    removed.get(id).inputs.forEach(visit);
  };
  places.filter((id) => id !== undefined).forEach(visit);
  return stage.removed.filter((v) => found.has(v.id));
}

// The plan.

const plan = data.lowered;

const tierNames = plan ? plan.tiers.map((tier) => tier.name) : [];

const planTier = (tier) => plan?.tiers.find((t) => t.name === tier);

const planEntry = (tier, entry) => planTier(tier)?.entries[entry];

/** A launch of the plan, opened up. */
function openLaunch([label, kernel, workgroups, flops, byteCount, ...bindings]) {
  return {
    label: plan.labels[label], kernel: plan.kernels[kernel],
    workgroups: plan.dims[workgroups], flops: plan.dims[flops], bytes: plan.dims[byteCount],
    bindings: bindings.map((n, i) => ({
      kind: ['weight', 'state', 'buffer'][n % 3], index: Math.floor(n / 3),
      writes: plan.kernels[kernel].access[i] === 'w',
    })),
  };
}

const openedVariants = new Map();

/** A variant's launches, those of its streams last; `stream` says of which one, `others` in which
 * other ways each can be done. */
function launchesOf(variant) {
  if (!openedVariants.has(variant)) {
    const launches = variant.launches.map(openLaunch);
    for (const stream of variant.streams) {
      launches.push(...stream.launches.map((l) => ({ ...openLaunch(l), stream })));
    }
    launches.forEach((launch, index) => Object.assign(launch, { index, others: [] }));
    for (const [index, other] of variant.others) launches[index].others.push(openLaunch(other));
    openedVariants.set(variant, launches);
  }
  return openedVariants.get(variant);
}

const kernelText = (kernel) => unrun(kernel.text).map((number) => plan.lines[number]);

/** The layer that a name belongs to: `h.3.attn` is of `h.`, 3, and `attn` in it. */
function layerOf(name) {
  const match = /^((?:[^.]*[^.\d][^.]*\.)+)(\d+)(?:\.(.*))?$/.exec(name);
  return match && { stem: match[1], index: Number(match[2]), rest: match[3] ?? '' };
}
