// The view of a variant's launches, and of the kernel of one.

/** Tier, sizes and the variant that they lead to; shared by two views. */
function drawSizes(place) {
  const max = maxima();
  const sizes = currentSizes();
  const entry = planEntry(state.tier, state.entry);
  const variant = currentVariant();
  const tiers = el('div', { class: 'segments', role: 'radiogroup', 'aria-label': 'Tier' });
  segments(tiers, plan.tiers.map((tier) => ({ key: tier.name, label: tier.name, title: needs(tier) })), state.tier,
    (tier) => update({ tier, launch: 0 }));
  const variants = el('div', { class: 'segments', role: 'radiogroup', 'aria-label': 'Variant' });
  segments(variants, entry.variants.map((v) => {
    const never = v !== variant && !sizesFor(v);
    return { key: v.name, label: v.name, disabled: never, title: never ? 'a variant before it takes all sizes that it is for' : boundsText(v) };
  }), variant.name, (name) => {
    Object.assign(state.sizes, sizesFor(entry.variants.find((v) => v.name === name)));
    update({ launch: 0 });
  });
  const field = (name) => el('label', { class: 'size' }, el('span', {}, name),
    el('input', {
      type: 'number', min: smallest(name), max: max[name], value: sizes[name], 'data-key': name,
      onchange: (event) => {
        const value = Math.round(Number(event.target.value));
        state.sizes[name] = Math.max(smallest(name), Math.min(max[name], value || 0));
        update({ launch: 0 });
      },
    }),
    el('small', {}, `of ${count(max[name])}`));
  const focus = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(
    el('div', { class: 'choice' }, el('span', {}, 'Tier'), tiers),
    el('div', { class: 'choice' }, el('span', {}, 'Variant'), variants),
    el('div', { class: 'choice' }, Object.keys(max).map(field)));
  if (focus !== undefined) place.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
}

function needs({ requires }) {
  const limits = Object.entries(requires.limits).map(([name, value]) => `${name} ${value}`);
  const all = [...requires.features, ...limits, ...(requires.cpu_only ? ['an adapter that is a CPU'] : [])];
  return all.length ? `needs ${all.join(', ')}` : 'runs everywhere';
}

const boundsText = (variant) => (variant.bounds.length
  ? `where ${variant.bounds.map(([size, max]) => `${plan.dims[size]} ≤ ${max}`).join(' and ')}`
  : 'any size');

/** Sizes for which a variant runs, as near as may be to those that are chosen. */
function sizesFor(variant) {
  const max = maxima();
  const entry = planEntry(state.tier, state.entry);
  const tries = (name, fallback) => (name in max
    ? [...new Set([currentSizes()[name], ...fallback.map((n) => Math.min(n, max[name]))])] : [undefined]);
  for (const seq of tries('seq', [1, 2, 4, 8, 128, 16, max.seq])) {
    for (const batch of tries('batch', [1, 2, 4, 8, max.batch])) {
      const sizes = { ...currentSizes(), ...(seq && { seq }), ...(batch && { batch }) };
      if (entry.rows && batch * seq > entry.rows) continue;
      if (entry.variants.find((v) => suits(v, sizes)) === variant) return { ...(seq && { seq }), ...(batch && { batch }) };
    }
  }
  return undefined;
}

/** Launches in a list where equal layers that follow each other are one item. */
function foldLaunches(launches) {
  const blocks = [];
  for (const launch of launches) {
    const layer = launch.stream ? null : layerOf(launch.label);
    const last = blocks.at(-1);
    const same = layer && last?.layer && last.layer.stem === layer.stem && last.layer.index === layer.index;
    if (same) last.launches.push(launch);
    else blocks.push({ layer, launches: [launch] });
  }
  const sign = ({ launches: all }) =>
    all.map((l) => [layerOf(l.label).rest, l.kernel.name, l.workgroups, l.flops, l.bytes].join(' ')).join('\n');
  const folded = [];
  for (const block of blocks) {
    const run = folded.at(-1);
    const follows = block.layer && run?.[0].layer && run.at(-1).layer.index + 1 === block.layer.index
      && sign(run[0]) === sign(block);
    if (follows) run.push(block);
    else folded.push([block]);
  }
  return folded;
}

const grid = (n) => (n > 65535 ? `65535 × ${Math.ceil(n / 65535)}` : count(n));

function viewLaunches() {
  if (state.tab !== 'launches') return;
  const variant = currentVariant();
  const launches = variant ? launchesOf(variant) : [];
  if (!launches.length) {
    nothingToShow($('launches'));
    $('kernel').replaceChildren();
    return;
  }
  drawSizes($('view-launches').querySelector('.sizes'));
  const sizes = currentSizes();
  const worth = launches.map((l) => ({
    bytes: evaluate(l.bytes, sizes), flops: evaluate(l.flops, sizes), grid: evaluate(l.workgroups, sizes),
  }));
  const most = { bytes: Math.max(1, ...worth.map((w) => w.bytes)), flops: Math.max(1, ...worth.map((w) => w.flops)) };
  const chosen = launches[Math.min(state.launch, launches.length - 1)];
  const row = (launch) => {
    const w = worth[launch.index];
    return el('tr', {
      tabindex: 0, 'aria-selected': String(launch === chosen), 'data-key': launch.index,
      onclick: () => update({ launch: launch.index }), onkeydown: pressing(() => update({ launch: launch.index })),
    },
    el('td', { class: 'n' }, launch.index + 1),
    el('td', { class: 'label' }, launch.label, launch.stream && el('span', { class: 'tag' }, 'per block'),
      launch.others.length > 0 && el('span', { class: 'tag' }, `${launch.others.length + 1} ways`)),
    el('td', { class: 'kernelname' }, el('span', { class: `dot ${kernelFamily(launch.kernel)}` }), breakable(launch.kernel.name)),
    el('td', { class: 'n' }, grid(w.grid)),
    el('td', { class: 'n faint' }, `× ${launch.kernel.workgroup[0]}`),
    meter(w.bytes, most.bytes, bytes(w.bytes), 'b'),
    meter(w.flops, most.flops, operations(w.flops), 'f'));
  };
  const rows = [];
  for (const run of foldLaunches(launches)) {
    rows.push(...run[0].launches.map(row));
    const rest = run.slice(1);
    if (!rest.length) continue;
    const repeats = rest.flatMap((block) => block.launches);
    const sum = (key) => repeats.reduce((total, l) => total + worth[l.index][key], 0);
    const name = (block) => block.layer.stem + block.layer.index;
    const span = rest.length === 1 ? name(rest[0]) : `${name(rest[0])} … ${name(rest.at(-1))}`;
    const toggle = () => update({ unfolded: !state.unfolded });
    rows.push(el('tr', { class: 'fold', tabindex: 0, 'aria-expanded': String(state.unfolded), 'data-key': `fold ${span}`, onclick: toggle, onkeydown: pressing(toggle) },
      el('td', { class: 'n' }, state.unfolded ? '▾' : '▸'),
      el('td', { class: 'label' }, span, el('span', { class: 'tag' }, `×${rest.length}`)),
      el('td', { colspan: 3, class: 'faint' }, `the same ${plural(run[0].launches.length, 'launch', 'launches')} as ${name(run[0])}`),
      meter(0, 1, bytes(sum('bytes')), 'b'), meter(0, 1, operations(sum('flops')), 'f')));
    if (state.unfolded) rows.push(...repeats.map(row));
  }
  const kernels = new Set(launches.map((l) => l.kernel)).size;
  const total = (key) => worth.reduce((sum, w) => sum + w[key], 0);
  const focus = $('launches').contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scroll = $('launches').scrollTop;
  $('launches').replaceChildren(
    el('div', { class: 'totals' },
      figure(launches.length, launches.length === 1 ? 'launch' : 'launches'),
      figure(kernels, kernels === 1 ? 'kernel' : 'kernels'),
      figure(bytes(total('bytes')), 'to move'),
      figure(operations(total('flops')), 'operations'),
      figure((total('flops') / Math.max(1, total('bytes'))).toFixed(1), 'operations a byte')),
    el('p', { class: 'faint note' }, `${state.entry}, ${variant.name}: ${boundsText(variant)}. Bytes are the least that must move: operands read once, results written once.`),
    el('table', { class: 'launches' },
      el('thead', {}, el('tr', {}, ['#', 'launch', 'kernel', 'workgroups', '', 'bytes', 'operations'].map((h, i) =>
        el('th', { scope: 'col', class: i === 3 || i === 0 ? 'n' : i > 4 ? 'meter' : '' }, h)))),
      el('tbody', {}, rows)));
  $('launches').scrollTop = scroll;
  if (focus !== undefined) $('launches').querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  drawKernel(chosen, sizes);
}

VIEWS.push(viewLaunches);

/** A cell with a number and a bar. */
const meter = (value, max, text, look) => el('td', { class: 'meter' }, el('div', {},
  el('span', {}, text), el('i', { class: look, style: `--share:${value / max}` })));

/** A dotted name that may be broken at its dots. */
const breakable = (name) => el('span', {}, name.split(/(?<=\.)/).flatMap((part) => [part, el('wbr')]));

const figure = (value, label) => el('div', { class: 'figure' }, el('b', {}, String(value)), el('span', {}, label));

/** A kernel's colour, by the op in its name. */
function kernelFamily(kernel) {
  const [name] = kernel.name.split('.');
  const found = Object.keys(FAMILIES).find((family) => FAMILIES[family].some((op) => name.startsWith(op)));
  return found ?? (name.startsWith('row_norm') ? 'norm' : kernel.name.includes('gather') ? 'lookup' : 'pointwise');
}

function nothingToShow(place) {
  const why = data.not_lowered ? `These graphs could not be compiled: ${data.not_lowered}` : 'There is nothing to launch.';
  place.replaceChildren(el('p', { class: 'empty' }, why));
}

/** What a kernel's name says that another's does not. */
function difference(kernel, other) {
  const known = other.name.split('.');
  return kernel.name.split('.').filter((part) => !known.includes(part)).join('.') || kernel.name;
}

/** A choice of the ways to do a launch, of which a runtime takes the fastest. */
function waysOf(launch) {
  const group = el('div', { class: 'segments', role: 'radiogroup', 'aria-label': 'Ways to do the launch' });
  const items = [launch, ...launch.others].map((way, key) =>
    ({ key, label: key ? difference(way.kernel, launch.kernel) : 'usual', title: way.kernel.name }));
  segments(group, items, state.way, (way) => update({ way }));
  return group;
}

function drawKernel(usual, sizes) {
  if (state.way > usual.others.length) state.way = 0;
  const launch = [usual, ...usual.others][state.way];
  const { kernel } = launch;
  const names = bindingNames(kernel);
  const uses = new Map();
  for (const tier of plan.tiers) {
    for (const variant of Object.values(tier.entries).flatMap((e) => e.variants)) {
      for (const l of launchesOf(variant).flatMap((l) => [l, ...l.others])) if (l.kernel === kernel) uses.set(tier.name, (uses.get(tier.name) ?? new Set()).add(variant.name));
    }
  }
  const n = evaluate(launch.workgroups, sizes);
  const bindings = launch.bindings.map((binding, i) => {
    const bound = boundTo(binding, sizes);
    return el('tr', {},
      el('td', { class: 'n' }, i + 1),
      el('td', {}, el('code', {}, names[i + 1]?.name ?? '')),
      el('td', {}, el('span', { class: `tag ${binding.writes ? 'write' : ''}` }, binding.writes ? 'read, write' : 'read')),
      el('td', {}, bound.name, el('small', {}, bound.what)),
      el('td', { class: 'n' }, bytes(bound.bytes)));
  });
  const roves = document.activeElement?.closest('#kernel .segments');
  $('kernel').replaceChildren(
    el('h2', {}, el('span', { class: `dot ${kernelFamily(kernel)}` }), launch.label),
    el('dl', {},
      usual.others.length > 0 && fact('ways', waysOf(usual)),
      fact('kernel', el('code', {}, kernel.name)),
      fact('grid', el('code', {}, launch.workgroups), ` = ${grid(n)} ${n === 1 ? 'workgroup' : 'workgroups'} of ${kernel.workgroup.filter((s, i) => i === 0 || s > 1).join(' × ')}`),
      fact('bytes', el('code', {}, launch.bytes), ` = ${bytes(evaluate(launch.bytes, sizes))}`),
      fact('operations', el('code', {}, launch.flops), ` = ${operations(evaluate(launch.flops, sizes))}`),
      usual.stream && fact('runs', `for each block of ${count(usual.stream.rows_per_block)} rows, of `, el('code', {}, plan.dims[usual.stream.rows])),
      fact('used in', [...uses].map(([tier, variants]) => `${tier}: ${[...variants].join(', ')}`).join('; '))),
    el('h3', {}, 'Bindings'),
    el('table', { class: 'bindings' }, bindings),
    el('h3', {}, `WGSL, ${plural(kernelText(kernel).length, 'line')}`,
      el('button', { class: 'copy', onclick: (event) => copy(kernelText(kernel).join('\n'), event.target) }, 'copy')),
    colouredKernel(kernel));
  if (roves) $('kernel').querySelector('.segments [aria-checked=true]')?.focus();
}

function copy(text, button) {
  const tell = (word) => {
    button.textContent = word;
    setTimeout(() => { button.textContent = 'copy'; }, 1200);
  };
  navigator.clipboard?.writeText(text).then(() => tell('copied'), () => tell('not allowed'));
}

/** What a launch binds: its name, what that is, and its bytes. */
function boundTo({ kind, index }, sizes) {
  if (kind === 'weight') {
    const weight = plan.weights[index];
    const [part, ...more] = weight.parts;
    const what = more.length ? `${weight.parts.length} parameters, ${part.packing}` : `[${part.shape.join(', ')}] ${part.scales ? 'scales' : part.packing}`;
    return { name: weight.name, what, bytes: weight.bytes };
  }
  if (kind === 'state') {
    const [name, size] = [plan.states[index], planTier(state.tier).states[index]];
    return { name, what: `state, ${plan.dims[size]} bytes`, bytes: evaluate(plan.dims[size], sizes) };
  }
  const entry = planEntry(state.tier, state.entry);
  const [name, dims] = entry.buffers[index];
  const port = [...entry.inputs, ...entry.outputs].find(([, , buffer]) => buffer === index);
  return { name, what: port ? port[1] : 'scratch', bytes: Math.max(...dims.map((d) => evaluate(plan.dims[d], sizes))) };
}
