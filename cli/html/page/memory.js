// The view of memory: which buffer holds which value, launch by launch.

/**
 * The lives of the values in the buffers of a variant: from the launch that
 * writes a value to the last that reads it. Writes that follow each other with
 * no read between make one value. Inputs live from the start, outputs to the end.
 */
function livesOf(entry, launches) {
  const lives = [];
  const current = new Map();
  const begin = (buffer, at, name) => {
    const life = { buffer, from: at, to: at, name, read: false, reads: [], writes: [] };
    lives.push(life);
    current.set(buffer, life);
    return life;
  };
  for (const [name, , buffer] of entry.inputs) begin(buffer, 0, name).input = true;
  for (const launch of launches) {
    for (const { kind, index, writes } of launch.bindings) {
      if (kind !== 'buffer') continue;
      let life = current.get(index);
      if (writes && (!life || life.read || life.input)) life = begin(index, launch.index, launch.label);
      if (!life) continue;
      life.to = launch.index;
      (writes ? life.writes : life.reads).push(launch.index);
      if (!writes) life.read = true;
    }
  }
  for (const [name, , buffer] of entry.outputs) {
    const life = current.get(buffer);
    if (life) Object.assign(life, { to: launches.length - 1, output: name });
  }
  return lives;
}

/** A colour for what is computed, the same in every layer. */
function hueOf(name, names) {
  const kind = layerOf(name)?.rest ?? name;
  if (!names.has(kind)) names.set(kind, names.size);
  return names.get(kind) % 9;
}

/** The chart that is shown, for what moves in it. */
let chart;

function viewMemory(patch, hint) {
  if (state.tab !== 'memory') return;
  if (hint.moving) {
    drawMoment();
    return;
  }
  const variant = currentVariant();
  const launches = variant ? launchesOf(variant) : [];
  if (!launches.length) {
    nothingToShow($('memory'));
    return;
  }
  drawSizes($('view-memory').querySelector('.sizes'));
  const entry = planEntry(state.tier, state.entry);
  const lives = livesOf(entry, launches);
  const sizeAt = (dims, sizes) => Math.max(0, ...dims.map((d) => evaluate(plan.dims[d], sizes)));
  const all = entry.buffers.map(([name, dims], index) => ({
    name, index, most: sizeAt(dims, maximalSizes()), now: sizeAt(dims, currentSizes()),
    lives: lives.filter((life) => life.buffer === index),
    port: [...entry.inputs, ...entry.outputs].find(([, , buffer]) => buffer === index),
  }));
  // The others are there for alternatives.
  const usual = new Set(entry.variants.flatMap(launchesOf).flatMap((l) =>
    l.bindings.filter((b) => b.kind === 'buffer').map((b) => b.index)));
  const buffers = all.filter(({ index, port }) => port || usual.has(index));
  const used = new Set(launches.flatMap((l) => l.bindings.filter((b) => b.kind === 'state').map((b) => b.index)));
  const states = { count: used.size, most: 0 };
  for (const index of used) states.most += evaluate(plan.dims[planTier(state.tier).states[index]], maximalSizes());
  const inUse = launches.map((_, at) => buffers.reduce((sum, buffer) =>
    sum + (buffer.lives.some((life) => life.from <= at && at <= life.to) ? buffer.most : 0), 0));
  const allocated = buffers.reduce((sum, buffer) => sum + buffer.most, 0);
  $('memory').replaceChildren(
    el('div', { class: 'totals' },
      figure(bytes(allocated), `in ${plural(buffers.length, 'buffer')}`),
      figure(plural(lives.length, 'value'), 'take turns in them'),
      figure(bytes(Math.max(0, ...inUse)), 'in use at most'),
      states.count > 0 && figure(bytes(states.most), `in ${plural(states.count, 'state')}`)),
    el('p', { class: 'faint note' }, `${state.entry}, ${variant.name}, at the maxima: `,
      Object.entries(maxima()).map(([name, max]) => `${name} ${count(max)}`).join(', '), '. A bar is a value, from the launch that writes it to the last that reads it.'),
    drawChart(buffers, launches, inUse, allocated),
    el('div', { id: 'moment', class: 'moment' }));
  drawMoment();
}

VIEWS.push(viewMemory);

const CHART = { label: 190, right: 12, row: 30, area: 110, axis: 22, gap: 18 };

function drawChart(buffers, launches, inUse, allocated) {
  const { label, right, row, area, axis, gap } = CHART;
  const room = Math.max(320, $('memory').clientWidth - 48 - label - right);
  const step = Math.max(9, room / launches.length);
  const width = label + step * launches.length + right;
  const top = axis + area + gap;
  const height = top + row * buffers.length + axis;
  const x = (launch) => label + launch * step;
  const names = new Map();
  const parts = [];
  // Layers, as bands behind all.
  let band = 0;
  for (const run of foldLaunches(launches)) {
    for (const block of run) {
      const [first, last] = [block.launches[0].index, block.launches.at(-1).index];
      if (!block.layer) continue;
      band += 1;
      parts.push(svg('rect', { class: `band b${band % 2}`, x: x(first), y: axis, width: step * (last - first + 1), height: height - 2 * axis }));
      const name = `${block.layer.stem}${block.layer.index}`;
      if (step * (last - first + 1) > textWidth(name, FONT.small) + 4) {
        parts.push(svg('text', { class: 'axis', x: x((first + last + 1) / 2), y: 14, 'text-anchor': 'middle' }, name));
      }
    }
  }
  const streamed = launches.findIndex((l) => l.stream);
  if (streamed >= 0) {
    parts.push(svg('rect', { class: 'band stream', x: x(streamed), y: axis, width: step * (launches.length - streamed), height: height - 2 * axis },
      svg('title', {}, 'once for each block of rows')));
  }
  // Bytes of the buffers that hold a value.
  const level = (n) => axis + area - (area * n) / Math.max(1, allocated);
  let outline = `M${x(0)} ${axis + area}`;
  inUse.forEach((n, i) => { outline += `V${round(level(n))}H${round(x(i + 1))}`; });
  parts.push(
    svg('path', { class: 'area', d: `${outline}V${axis + area}Z` }),
    svg('path', { class: 'line', d: `M${label} ${axis}H${width - right}` }),
    svg('text', { class: 'rowname', x: label - 12, y: axis + 9, 'text-anchor': 'end' }, `${bytes(allocated)} allocated`),
    svg('text', { class: 'rowname faint', x: label - 12, y: axis + area, 'text-anchor': 'end' }, 'bytes in use'));
  // Buffers and the values in them.
  buffers.forEach((buffer, i) => {
    const y = top + row * i;
    parts.push(
      svg('text', { class: 'rowname', x: label - 12, y: y + 13, 'text-anchor': 'end' }, shorten(buffer.name, 24)),
      svg('text', { class: 'rowname faint', x: label - 12, y: y + 25, 'text-anchor': 'end' },
        `${bytes(buffer.most)}${buffer.port ? ` · ${buffer.port[1]}` : ''}`),
      svg('path', { class: 'rule', d: `M${label} ${y + row - 1}H${width - right}` }));
    for (const life of buffer.lives) {
      const barWidth = step * (life.to - life.from + 1) - 2;
      // The bands say which layer it is; the rest, as much of it as fits.
      const rest = layerOf(life.name)?.rest ?? life.name;
      const text = [rest, rest.slice(rest.lastIndexOf('.') + 1)].find((t) => barWidth > textWidth(t, FONT.small) + 10);
      parts.push(svg('g', { class: `life h${hueOf(life.name, names)}`, onclick: () => moveTo(life.from) },
        svg('title', {}, `${life.name}\nlaunches ${life.from + 1} to ${life.to + 1}${life.output ? `, output ${life.output}` : ''}`),
        svg('rect', { x: x(life.from) + 1, y: y + 3, width: barWidth, height: row - 7, rx: 4 }),
        text && svg('text', { x: x(life.from) + 7, y: y + 18 }, text)));
    }
  });
  const cursor = svg('rect', { class: 'cursor', y: axis - 4, width: step, height: height - 2 * axis + 8, rx: 3 });
  const slider = el('input', {
    type: 'range', min: 0, max: launches.length - 1, 'aria-label': 'Launch',
    style: `margin-left:${label}px;width:${step * launches.length}px`,
    oninput: (event) => moveTo(Number(event.target.value)),
  });
  parts.push(cursor);
  chart = { buffers, launches, cursor, slider, x };
  return el('div', { class: 'scroll' }, svg('svg', { class: 'chart', width, height, role: 'img', 'aria-label': 'Buffers over launches' }, parts), slider);
}

const moveTo = (launch) => update({ launch }, { moving: true });

/** What the chosen launch does to memory. */
function drawMoment() {
  const { buffers, launches, cursor, slider, x } = chart;
  const launch = launches[Math.min(state.launch, launches.length - 1)];
  cursor.setAttribute('x', x(launch.index));
  slider.value = launch.index;
  const sizes = maximalSizes();
  const list = (writes) => launch.bindings.filter((b) => b.writes === writes).map((binding) => {
    const life = binding.kind === 'buffer'
      && buffers.find(({ index }) => index === binding.index).lives.find((l) => l.from <= launch.index && launch.index <= l.to && (!writes || l.writes.includes(launch.index)));
    const bound = boundTo(binding, sizes);
    return el('li', {}, el('code', {}, bound.name), life && life.name !== bound.name && ` holding ${life.name}`, el('small', {}, bytes(bound.bytes)));
  });
  $('moment').replaceChildren(
    el('h3', {}, `Launch ${launch.index + 1} of ${launches.length}: ${launch.label}`),
    el('div', { class: 'columns' },
      el('div', {}, el('h4', {}, 'reads'), el('ul', {}, list(false))),
      el('div', {}, el('h4', {}, 'writes'), el('ul', {}, list(true)))));
}
