// The view of the graph: passes, picture and details.

const viewport = new Viewport($('picture'), $('picture').appendChild(svg('g', {})));

$('picture').prepend(svg('defs', {},
  svg('marker', { id: 'arrow', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto' },
    svg('path', { d: 'M0 .8L7.5 4 0 7.2z' }))));

/** What the picture shows now. */
let shown = { root: undefined, shownIn: new Map(), nodes: new Map(), elements: new Map() };

const handlers = {
  select: (node) => update({ node: node.key === state.node ? undefined : node.key }),
  toggle(node) {
    const path = node.kind === 'stack' ? node.groups[0].path : node.group.path;
    setOpen(path, node.kind !== 'open');
    update({ open: state.open, node: node.kind === 'open' ? undefined : path }, { anchor: node });
  },
  hover(node) {
    $('picture').classList.toggle('hovering', node !== undefined);
    const touched = new Set(node ? [node.key] : []);
    for (const path of $('picture').querySelectorAll('.link')) {
      const { from, to } = path.dataset;
      const lit = node !== undefined && (from === node.key || to === node.key);
      path.classList.toggle('lit', lit);
      if (lit && to) touched.add(from).add(to);
    }
    for (const [key, element] of shown.elements) element.classList.toggle('lit', touched.has(key));
  },
};

function setOpen(path, open) {
  state.open.delete(path);
  state.closed.delete(path);
  (open ? state.open : state.closed).add(path);
}

function viewGraph(patch, hint) {
  if (state.tab !== 'graph') return;
  const whole = ['stage', 'entry', 'level', 'open', 'constants', 'tab'].some((key) => key in patch);
  if (whole) {
    drawTimeline();
    drawTools();
    drawGraph(hint.anchor);
  }
  markSelected();
  drawInspector();
}

VIEWS.push(viewGraph);

function drawTimeline() {
  const all = stages();
  const most = Math.max(...all.map((s) => s.inOrder.length));
  const items = all.map((s, i) => {
    const n = s.inOrder.length;
    const before = s.before?.inOrder.length ?? n;
    const change = n - before;
    const what = i === 0 ? 'as built' : s.rewrites === 0 ? 'no change' : plural(s.rewrites, 'rewrite');
    return el('button', {
      class: `stage${i > 0 && s.rewrites === 0 ? ' idle' : ''}`, role: 'radio', 'data-key': i,
      'aria-checked': String(i === state.stage), tabindex: i === state.stage ? 0 : -1,
      onclick: () => update({ stage: i, node: keptNode(i) }),
    },
    el('span', { class: 'name' }, s.pass),
    el('span', { class: 'what' }, what, change !== 0 && el('b', { class: change < 0 ? 'less' : 'more' },
      ` ${change < 0 ? '−' : '+'}${Math.abs(change)}`)),
    el('span', { class: 'bar' },
      el('i', { style: `width:${(100 * n) / most}%` }),
      el('i', { class: 'gone', style: `width:${(100 * Math.max(0, before - n)) / most}%` })),
    el('span', { class: 'n' }, count(n)));
  });
  const focused = $('passes').contains(document.activeElement);
  $('passes').replaceChildren(...items);
  $('passes').onkeydown = (event) => rove(event, $('passes'), '.stage');
  if (focused) items[state.stage].focus();
}

/** The selected node, if the other stage has it too. */
function keptNode(index) {
  const id = /^%(\d+)$/.exec(state.node ?? '')?.[1];
  return id === undefined || stages()[index].byId.has(Number(id)) ? state.node : undefined;
}

function drawTools() {
  segments($('levels'), LEVELS, state.level, (level) => {
    state.open.clear();
    state.closed.clear();
    update({ level });
  });
  $('constants').checked = state.constants;
}

/** `anchor` is what was clicked; it stays under the pointer. */
function drawGraph(anchor) {
  const now = stage();
  const focus = document.activeElement?.closest?.('[data-key]')?.dataset.key;
  const old = shown;
  const { root, shownIn } = fold(now, state.constants);
  layOut(root, shownIn, now, measureNode);
  const elements = drawPicture(viewport.layer, root, handlers);
  const nodes = new Map();
  const visit = (node) => {
    nodes.set(node.key, node);
    node.items?.forEach(visit);
  };
  visit(root);
  shown = { root, shownIn, nodes, elements };
  viewport.content = root;
  const moved = anchor && nodes.get(state.node ?? anchor.key);
  if (moved) {
    viewport.x += (anchor.x - moved.x) * viewport.scale;
    viewport.y += (anchor.y - moved.y) * viewport.scale;
    viewport.apply();
  } else {
    viewport.fit();
  }
  glide(old, elements, nodes);
  if (focus !== undefined) {
    viewport.layer.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
}

/** Moves nodes from where they were, so that the eye can follow. */
function glide(old, elements, nodes) {
  if (matchMedia('(prefers-reduced-motion: reduce)').matches || old.root === undefined) return;
  const timing = { duration: 280, easing: 'cubic-bezier(.2,.7,.2,1)' };
  for (const [key, element] of elements) {
    const [from, to] = [old.nodes.get(key), nodes.get(key)];
    if (!from || from.items || to.items) {
      element.animate([{ opacity: 0 }, { opacity: 1 }], timing);
    } else if (from.x !== to.x || from.y !== to.y) {
      element.animate([{ transform: `translate(${from.x}px, ${from.y}px)` }, { transform: `translate(${to.x}px, ${to.y}px)` }], timing);
    }
  }
  viewport.layer.querySelector('.links').animate([{ opacity: 0 }, { opacity: 0 }, { opacity: 1 }], timing);
}

function markSelected() {
  for (const [key, element] of shown.elements) element.classList.toggle('selected', key === state.node);
}

/** Opens what hides a value, selects it and brings it into view. */
function reveal(id) {
  const value = stage().byId.get(id);
  if (!value) return;
  let path = '';
  for (const name of placeOf(stage(), value)) {
    path = path === '' ? name : `${path}.${name}`;
    setOpen(path, true);
  }
  if (isConstant(value)) state.constants = true;
  update({ open: state.open, node: `%${id}` });
  const node = shown.nodes.get(`%${id}`);
  if (node) viewport.reveal(node);
}

// Details.

function drawInspector() {
  const pane = $('inspector');
  const node = shown.nodes.get(state.node);
  if (node?.kind === 'value') pane.replaceChildren(...valueDetails(node.value));
  else if (node && node.kind !== 'output') pane.replaceChildren(...groupDetails(node));
  else pane.replaceChildren(...stageDetails());
}

const fact = (term, ...content) => [el('dt', {}, term), el('dd', {}, ...content)];

/** Values in lists of those that differ only in the layer. */
function alike(values) {
  const lists = new Map();
  for (const value of values) {
    const layer = layerOf(value.source);
    const key = [value.op, attrsText(value), value.type, layer ? layer.rest : value.source, layer ? layer.stem : value.id].join('|');
    lists.set(key, [...(lists.get(key) ?? []), value]);
  }
  return [...lists.values()];
}

/** A button that shows a value, the first of so many that are alike. */
function valueLink(id, times = 1) {
  const value = stage().byId.get(id);
  if (!value) return el('span', {}, `%${id}`);
  const name = nameOf(value) ?? value.source;
  return el('button', { class: `value ${familyOf(value.op)}`, onclick: () => reveal(id) },
    times > 1 && el('span', { class: 'tag times' }, `×${times}`),
    el('b', {}, value.op), ` %${id} `, el('small', {}, name), el('code', {}, value.type));
}

function valueDetails(value) {
  const now = stage();
  const users = now.users.get(value.id);
  const outputs = now.outputs.filter(([, id]) => id === value.id).map(([name]) => name);
  const states = now.states.filter(([, id]) => id === value.id).map(([name]) => name);
  const replaced = replacedBy(now, value);
  const list = (ids) => (ids.length ? el('ul', { class: 'values' }, ids.map((id) => el('li', {}, valueLink(id)))) : 'none');
  return [
    el('h2', {}, el('span', { class: `dot ${familyOf(value.op)}` }), value.op,
      now.added.has(value.id) && el('span', { class: 'tag new' }, `new in ${now.pass}`)),
    el('dl', {},
      fact('value', el('code', {}, `%${value.id}`)),
      nameOf(value) !== undefined && fact('name', el('code', {}, nameOf(value))),
      fact('type', el('code', {}, value.type)),
      fact('for example', el('code', {}, evaluatedType(value.type, currentSizes()))),
      value.source !== '' && fact('source', el('code', {}, value.source)),
      value.attrs.filter(([key]) => key !== 'name').map(([key, text]) => fact(key, el('code', {}, text))),
      outputs.map((name) => fact('output', el('code', {}, name))),
      states.map((name) => fact('state after', el('code', {}, name)))),
    replaced.length > 0 && [
      el('h3', {}, `Stands for ${plural(replaced.length, 'value')}`),
      el('p', { class: 'ops' }, tally(replaced.map((v) => v.op)).map(([op, n]) =>
        el('span', { class: `op ${familyOf(op)}` }, op, n > 1 && el('b', {}, ` ×${n}`)))),
    ],
    el('h3', {}, 'Operands'), list(value.inputs),
    el('h3', {}, 'Used by'), list(users),
    el('h3', {}, 'Text form'), el('pre', { class: 'line' }, valueText(value)),
  ].flat().filter(Boolean);
}

const opCounts = (values) => el('table', { class: 'counts' }, tally(values.map((v) => v.op)).map(([op, n]) =>
  el('tr', {}, el('td', {}, el('span', { class: `dot ${familyOf(op)}` }), op), el('td', {}, count(n)))));

function groupDetails(node) {
  const open = node.kind === 'open';
  return [
    el('h2', {}, node.title),
    node.kind === 'stack' && el('p', {}, `${node.groups.length} blocks with the same ops, types and links.`),
    node.kind === 'stack' && el('p', { class: 'choices' }, 'Open ', node.groups.map((group) =>
      el('button', { onclick: () => { setOpen(group.path, true); update({ open: state.open, node: group.path }, { anchor: node }); } }, group.name))),
    node.kind !== 'stack' && el('p', {}, el('button', { onclick: () => handlers.toggle(node) }, open ? 'Close' : 'Open')),
    el('h3', {}, plural(node.values.length, 'value')), opCounts(node.values),
  ].filter(Boolean);
}

function stageDetails() {
  const now = stage();
  const { before } = now;
  const symbols = Object.entries(Object.fromEntries(graphEntry(state.entry).symbols));
  const out = [el('h2', {}, now.pass === 'input' ? 'As built' : now.pass)];
  if (before) {
    const delta = new Map();
    for (const v of now.inOrder) if (now.added.has(v.id)) delta.set(v.op, (delta.get(v.op) ?? 0) + 1);
    for (const v of now.removed) delta.set(v.op, (delta.get(v.op) ?? 0) - 1);
    const rows = [...delta].filter(([, n]) => n !== 0).sort((a, b) => (b[1] > 0) - (a[1] > 0) || Math.abs(b[1]) - Math.abs(a[1]));
    const most = Math.max(1, ...rows.map(([, n]) => Math.abs(n)));
    out.push(
      el('p', { class: 'lead' }, now.rewrites === 0 ? 'This pass found nothing to do here.'
        : `${plural(now.rewrites, 'rewrite')}: ${count(before.inOrder.length)} values became ${count(now.inOrder.length)}.`),
      rows.length > 0 && el('table', { class: 'delta' }, rows.map(([op, n]) => el('tr', {},
        el('td', {}, el('span', { class: `dot ${familyOf(op)}` }), op),
        el('td', { class: n > 0 ? 'more' : 'less' }, `${n > 0 ? '+' : '−'}${Math.abs(n)}`),
        el('td', {}, el('i', { class: n > 0 ? 'more' : 'less', style: `width:${(100 * Math.abs(n)) / most}%` }))))),
    );
    const added = now.inOrder.filter((v) => now.added.has(v.id));
    if (added.length) {
      out.push(el('h3', {}, plural(added.length, 'new value')),
        el('ul', { class: 'values' }, alike(added).map(([first, ...more]) => el('li', {}, valueLink(first.id, more.length + 1)))));
    }
  }
  out.push(
    el('h3', {}, `${plural(now.inOrder.length, 'value')} at this stage`), opCounts(now.inOrder),
    symbols.length > 0 && el('h3', {}, 'Symbols'),
    symbols.length > 0 && el('table', { class: 'counts' }, symbols.map(([name, max]) =>
      el('tr', {}, el('td', {}, el('code', {}, name)), el('td', {}, `up to ${count(max)}`)))),
  );
  return out.filter(Boolean);
}

function stepStage(by) {
  const to = Math.max(0, Math.min(stages().length - 1, state.stage + by));
  if (to !== state.stage) update({ stage: to, node: keptNode(to) });
}

function bindGraph() {
  $('constants').onchange = (event) => update({ constants: event.target.checked });
  $('zoom-in').onclick = () => viewport.zoom(1.3);
  $('zoom-out').onclick = () => viewport.zoom(1 / 1.3);
  $('zoom-fit').onclick = () => viewport.fit(0);
  addEventListener('keydown', (event) => {
    if (state.tab !== 'graph' || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches?.('input')) return;
    const keys = {
      '[': () => stepStage(-1), ']': () => stepStage(1), f: () => viewport.fit(0),
      '+': () => viewport.zoom(1.3), '-': () => viewport.zoom(1 / 1.3),
      Escape: () => update({ node: undefined }),
    };
    keys[event.key]?.();
  });
}
