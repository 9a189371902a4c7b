// Drawing of a laid-out graph, and moving about in it.

const FONT = {
  title: '600 13px Inter, system-ui, sans-serif',
  small: '11px Inter, system-ui, sans-serif',
  mono: '11px "JetBrains Mono", ui-monospace, monospace',
};

const ruler = document.createElement('canvas').getContext('2d');
const widths = new Map();

function textWidth(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    ruler.font = font;
    widths.set(key, ruler.measureText(text).width);
  }
  return widths.get(key);
}

const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** The kind of work an op does, by which it is coloured. */
const FAMILIES = {
  linear: ['linear', 'matmul'],
  attention: ['attention', 'attention_probs', 'softmax'],
  norm: ['layer_norm', 'rms_norm', 'reduce_sum', 'reduce_mean', 'reduce_max'],
  lookup: ['gather'],
  movement: ['reshape', 'transpose', 'broadcast', 'slice', 'concat', 'cast', 'arange'],
  edge: ['input', 'state', 'output', 'param', 'const'],
};

const familyOf = (op) => Object.keys(FAMILIES).find((family) => FAMILIES[family].includes(op)) ?? 'pointwise';

/** The lines of text in a closed node: text, font and class. */
function linesOf(node) {
  if (node.lines) return node.lines;
  const line = (text, look, size = 40) => ({ text: shorten(text, size), font: FONT[look], look });
  if (node.kind === 'value') {
    const { value } = node;
    const attrs = attrsText(value);
    node.lines = [line(value.op, 'title'), line(value.type, 'mono')];
    if (nameOf(value) !== undefined) node.lines.splice(1, 0, line(nameOf(value), 'small'));
    else if (attrs) node.lines.splice(1, 0, line(attrs, 'small'));
  } else if (node.kind === 'output') {
    node.lines = [line('output', 'title'), line(node.name, 'small')];
  } else {
    const values = node.kind === 'stack' ? node.groups[0].values : node.values;
    const ops = tally(values.map((value) => value.op)).map(([op, n]) => (n > 1 ? `${n} ${op}` : op));
    node.lines = [line(node.title, 'title')];
    if (node.kind !== 'open') node.lines.push(line(ops.join(', '), 'small', 36));
  }
  return node.lines;
}

/** The size of a node, or of an open group's title. */
function measureNode(node) {
  const lines = linesOf(node);
  const caption = node.caption ? textWidth(node.caption, FONT.small) + 16 : 0;
  const badge = node.kind === 'stack' ? 46 : node.kind === 'group' || node.kind === 'open' ? 26 : 0;
  const news = node.kind !== 'value' && node.added ? 38 : 0;
  const all = lines.map(({ text, font }, i) => textWidth(text, font) + (i === 0 ? caption + badge + news : 0));
  return { w: Math.ceil(Math.max(72, ...all)) + 24, h: 14 + 17 * lines.length };
}

/** Draws the nodes and links; returns the elements of nodes by key. */
function drawPicture(layer, root, handlers) {
  const frames = svg('g', {});
  const lines = svg('g', { class: 'links' });
  const boxes = svg('g', {});
  const heads = svg('g', {});
  const elements = new Map();
  const visit = (node, depth) => {
    if (node.items) {
      if (node.kind === 'open') {
        const frame = drawFrame(node, depth);
        elements.set(node.key, frame);
        frames.append(frame);
        heads.append(drawHead(node, handlers));
      }
      for (const l of node.links.values()) lines.append(drawLink(l));
      node.items.forEach((item) => visit(item, depth + 1));
      return;
    }
    const box = drawBox(node, handlers);
    elements.set(node.key, box);
    boxes.append(box);
  };
  visit(root, 0);
  layer.replaceChildren(frames, lines, heads, boxes);
  return elements;
}

function drawLink(l) {
  const [first, ...rest] = l.points;
  let path = `M${round(first.x)} ${round(first.y)}`;
  let from = first;
  for (const to of rest) {
    if (from.x === to.x && from.y === to.y) continue;
    const middle = round((from.y + to.y) / 2);
    path += from.x === to.x
      ? `V${round(to.y)}`
      : `C${round(from.x)} ${middle} ${round(to.x)} ${middle} ${round(to.x)} ${round(to.y)}`;
    from = to;
  }
  const source = l.from.port?.source ?? l.from.node.source ?? l.from.node;
  const arrow = l.to.node.kind !== 'port' && !l.to.port;
  return svg('path', {
    d: path, class: 'link', 'data-from': source.key, 'data-to': arrow ? l.to.node.key : '',
    'marker-end': arrow ? 'url(#arrow)' : undefined,
  });
}

const round = (n) => Math.round(n * 10) / 10;

const at = (node) => `translate(${round(node.x)} ${round(node.y)})`;

/** What a person hears of a node. */
function spoken(node) {
  const news = node.added ? `, ${node.added} new` : '';
  switch (node.kind) {
    case 'value': return `${node.value.op} ${node.value.type} ${node.value.source}${news}`;
    case 'output': return `output ${node.name}`;
    case 'stack': return `${node.title}, ${node.groups.length} equal blocks${news}; opens the first`;
    case 'open': return `${node.title}, open; closes`;
    default: return `${node.title}, ${plural(node.values.length, 'value')}${news}; opens`;
  }
}

const drawFrame = (node, depth) => svg('g', { class: `frame depth${depth % 2}`, transform: at(node) },
  svg('rect', { width: node.w, height: node.h, rx: 10, class: 'ground' }));

/** The title of an open group, above the links that come in there. */
function drawHead(node, handlers) {
  const toggle = () => handlers.toggle(node);
  return svg('g', {
    class: 'head', transform: at(node), 'data-key': node.key, tabindex: 0, role: 'button', 'aria-expanded': 'true',
    'aria-label': spoken(node), onclick: toggle, onkeydown: pressing(toggle),
  },
  svg('rect', { class: 'hit', width: node.w, height: GAP.head, rx: 10 }),
  svg('path', { class: 'chevron', d: 'M14 13l4 4 4-4' }),
  svg('text', { x: 28, y: 20, class: 'title' }, node.title));
}

function drawBox(node, handlers) {
  const folded = node.kind === 'group' || node.kind === 'stack';
  const family = node.kind === 'value' ? familyOf(node.value.op) : node.kind === 'output' ? 'edge' : 'module';
  const press = () => (folded ? handlers.toggle(node) : handlers.select(node));
  const box = svg('g', {
    class: `node ${node.kind} ${family}${node.added ? ' new' : ''}`, transform: at(node), 'data-key': node.key,
    tabindex: 0, role: 'button', 'aria-label': spoken(node), 'aria-expanded': folded ? 'false' : undefined,
    onclick: press, onkeydown: pressing(press),
    onmouseenter: () => handlers.hover(node), onmouseleave: () => handlers.hover(undefined),
    onfocus: (event) => event.target.matches(':focus-visible') && handlers.hover(node), onblur: () => handlers.hover(undefined),
  });
  if (node.kind === 'stack') {
    for (const d of [8, 4]) box.append(svg('rect', { class: 'card behind', x: d, y: d, width: node.w, height: node.h, rx: 8 }));
  }
  box.append(svg('rect', { class: 'card', width: node.w, height: node.h, rx: node.kind === 'output' || family === 'edge' ? node.h / 2.4 : 8 }));
  if (!folded && family !== 'edge') {
    box.append(svg('path', { class: 'stripe', d: `M5 0a8 8 0 0 0-5 8v${node.h - 16}a8 8 0 0 0 5 8z` }));
  }
  const centred = family === 'edge';
  linesOf(node).forEach(({ text, look }, i) => {
    box.append(svg('text', {
      class: look, x: centred ? node.w / 2 : folded ? 28 - (i && 16) : 14, y: 20 + 17 * i,
      'text-anchor': centred ? 'middle' : undefined,
    }, text));
  });
  if (folded) box.append(svg('path', { class: 'chevron', d: 'M13 11l4 4-4 4' }));
  if (node.caption) box.append(svg('text', { class: 'caption', x: node.w - 10, y: 20, 'text-anchor': 'end' }, node.caption));
  if (node.kind === 'stack') box.append(badge(`×${node.groups.length}`, node.w - 10, 'times'));
  if (folded && node.added) {
    box.append(badge(`+${node.added}`, node.w - (node.kind === 'stack' ? 50 : 10), 'more'));
  }
  return box;
}

function badge(text, right, look) {
  const width = textWidth(text, FONT.small) + 14;
  return svg('g', { class: `badge ${look}`, transform: `translate(${round(right - width)} 7)` },
    svg('rect', { width, height: 17, rx: 8.5 }),
    svg('text', { x: width / 2, y: 12.5, 'text-anchor': 'middle' }, text));
}

/** Moving and zooming of what is in `layer` within `frame`. */
class Viewport {
  constructor(frame, layer) {
    Object.assign(this, { frame, layer, x: 0, y: 0, scale: 1, content: { w: 1, h: 1 } });
    frame.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
    frame.addEventListener('pointerdown', (event) => this.grab(event));
    new ResizeObserver(() => this.resized()).observe(frame);
  }

  size() {
    return { w: this.frame.clientWidth, h: this.frame.clientHeight };
  }

  resized() {
    const { w } = this.size();
    // Hidden or not laid out yet: what was asked for waits.
    if (w > 0 && this.waiting) this.fit();
  }

  apply() {
    this.layer.setAttribute('transform', `translate(${round(this.x)} ${round(this.y)}) scale(${this.scale})`);
  }

  /** Shows all, or the upper part where all would be too small to read. */
  fit(least = 0.62) {
    const { w, h } = this.size();
    this.waiting = w === 0;
    if (this.waiting) return;
    const margin = 28;
    const across = (w - 2 * margin) / this.content.w;
    const down = (h - 2 * margin) / this.content.h;
    const whole = Math.min(across, down, 1.15);
    this.scale = whole >= least ? whole : Math.min(1, Math.max(least, Math.min(across, 0.9)));
    this.x = (w - this.content.w * this.scale) / 2;
    if (this.x < 0 && this.content.items) {
      // Too wide: what comes first is in the middle.
      const top = Math.min(...this.content.items.map((item) => item.y));
      const first = this.content.items.filter((item) => item.y === top);
      this.x = w / 2 - (this.scale * first.reduce((sum, item) => sum + item.x + item.w / 2, 0)) / first.length;
    }
    const free = h - this.content.h * this.scale;
    this.y = free > 0 ? Math.max(margin, free / 2) : margin;
    this.apply();
  }

  zoom(factor, cx = this.size().w / 2, cy = this.size().h / 2) {
    const scale = Math.min(3, Math.max(0.05, this.scale * factor));
    this.x = cx - ((cx - this.x) * scale) / this.scale;
    this.y = cy - ((cy - this.y) * scale) / this.scale;
    this.scale = scale;
    this.apply();
  }

  wheel(event) {
    event.preventDefault();
    const box = this.frame.getBoundingClientRect();
    const unit = event.deltaMode === 1 ? 16 : 1;
    if (event.ctrlKey || event.metaKey) {
      this.zoom(Math.exp(-event.deltaY * unit * 0.004), event.clientX - box.left, event.clientY - box.top);
      return;
    }
    const sideways = event.shiftKey && !event.deltaX;
    this.x -= (sideways ? event.deltaY : event.deltaX) * unit;
    this.y -= (sideways ? 0 : event.deltaY) * unit;
    this.apply();
  }

  grab(event) {
    if (event.button !== 0) return;
    const start = { px: event.clientX, py: event.clientY, x: this.x, y: this.y };
    let moved = false;
    const move = (e) => {
      const [dx, dy] = [e.clientX - start.px, e.clientY - start.py];
      moved ||= Math.hypot(dx, dy) > 4;
      if (!moved) return;
      this.frame.classList.add('grabbed');
      this.x = start.x + dx;
      this.y = start.y + dy;
      this.apply();
    };
    const release = () => {
      removeEventListener('pointermove', move);
      removeEventListener('pointerup', release);
      removeEventListener('pointercancel', release);
      this.frame.classList.remove('grabbed');
      // The click that ends a drag presses nothing.
      const swallow = (e) => e.stopPropagation();
      if (moved) {
        this.frame.addEventListener('click', swallow, { capture: true, once: true });
        setTimeout(() => this.frame.removeEventListener('click', swallow, { capture: true }));
      }
    };
    addEventListener('pointermove', move);
    addEventListener('pointerup', release);
    addEventListener('pointercancel', release);
  }

  /** Brings a node into view, if it is not. */
  reveal(node) {
    const { w, h } = this.size();
    const left = this.x + node.x * this.scale;
    const top = this.y + node.y * this.scale;
    const [nw, nh] = [node.w * this.scale, node.h * this.scale];
    if (left < 0 || left + nw > w) this.x += w / 2 - left - nw / 2;
    if (top < 0 || top + nh > h) this.y += h / 2 - top - nh / 2;
    this.apply();
  }
}
