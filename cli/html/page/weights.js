// The view of the weights: what there is, how it is stored, where the bytes are.

/** Parts of weight buffers, those that differ only in the layer together. */
function weightRows() {
  const rows = new Map();
  for (const weight of plan.weights) {
    for (const part of weight.parts) {
      const layer = layerOf(part.param);
      const name = layer ? `${layer.stem}*.${layer.rest}` : part.param;
      const what = part.scales ? 'scales' : part.packing;
      const key = [name, part.shape, what].join(' ');
      if (!rows.has(key)) rows.set(key, { name, layer, shape: part.shape, what, params: new Set(), bytes: 0, buffers: new Set() });
      const row = rows.get(key);
      row.params.add(part.param);
      row.buffers.add(weight.name);
      row.bytes += part.bytes;
    }
  }
  return [...rows.values()];
}

function viewWeights() {
  if (state.tab !== 'weights') return;
  if (!plan) {
    noPlan($('weights'));
    return;
  }
  const rows = weightRows().sort((a, b) => b.bytes - a.bytes);
  const total = rows.reduce((sum, row) => sum + row.bytes, 0);
  const most = rows[0]?.bytes ?? 1;
  const names = new Map();
  rows.forEach((row) => { row.hue = hueOf(row.name.replace(/^.*\*\./, ''), names); });
  const split = plan.weights.filter((w) => w.parts.some((p) => p.rows[1] - p.rows[0] < p.shape.slice(0, -1).reduce((a, b) => a * b, 1))).length;
  $('weights').replaceChildren(
    el('div', { class: 'totals' },
      figure(count(data.parameters), 'parameters'),
      figure(bytes(total), `stored, linear layers as ${data.weight_dtype}`),
      figure(plan.weights.length, 'buffers'),
      split > 0 && figure(split, 'of them pieces of a parameter')),
    el('div', { class: 'share', role: 'img', 'aria-label': 'Bytes by parameter' }, rows.filter((row) => row.bytes > total / 400).map((row) =>
      el('span', { class: `h${row.hue}`, style: `flex-grow:${row.bytes}`, title: `${row.name}: ${bytes(row.bytes)}` },
        row.bytes > total / 14 && row.name))),
    el('table', { class: 'weights' },
      el('thead', {}, el('tr', {}, ['parameter', '', 'shape', 'stored as', 'buffers', 'bytes', 'share'].map((h, i) =>
        el('th', { scope: 'col', class: i === 5 ? 'meter' : i > 3 ? 'n' : '' }, h)))),
      el('tbody', {}, rows.map((row) => el('tr', {},
        el('td', { class: 'label' }, el('span', { class: `dot h${row.hue}` }), row.name),
        el('td', {}, row.params.size > 1 && el('span', { class: 'tag' }, `×${row.params.size}`)),
        el('td', {}, el('code', {}, `[${row.shape.join(', ')}]`)),
        el('td', {}, el('code', {}, row.what)),
        el('td', { class: 'n faint' }, count(row.buffers.size)),
        meter(row.bytes, most, bytes(row.bytes), 'b'),
        el('td', { class: 'n faint' }, `${((100 * row.bytes) / total).toFixed(1)}%`))))));
}

VIEWS.push(viewWeights);
