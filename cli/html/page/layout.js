// Layout of the folded graph: each open group is drawn in layers of its own and
// is one box in the group around it, with ports on its border where links cross.
//
// Within a group this is the method of Sugiyama, Tagawa and Toda (1981): ranks by
// longest path, links over several ranks through points of their own, an order
// within each rank that crosses few links, then positions. Positions are found by
// sweeps: a rank's nodes go as near as they can to where their neighbours would
// have them, in the least-squares sense, which is isotonic regression once the
// widths are subtracted (pool adjacent violators).

const GAP = { x: 22, y: 34, port: 26, pad: 16, head: 30 };

/** Sizes and places all nodes; `measure` gives a closed node its size. */
function layOut(root, shownIn, stage, measure) {
  link(root, shownIn, stage);
  placeInside(root, measure);
  settle(root, 0, 0);
}

/** Gives every group its `links`, cut where they cross the borders of groups. */
function link(root, shownIn, stage) {
  const visit = (node) => {
    if (!node.items) return;
    node.links = new Map();
    node.ports = new Map();
    node.items.forEach(visit);
  };
  visit(root);
  for (const value of stage.inOrder) {
    const to = shownIn.get(value.id);
    if (to) value.inputs.forEach((id) => connect(shownIn.get(id), to));
  }
  for (const item of root.items) {
    if (item.kind === 'output') connect(shownIn.get(item.id), item);
  }
}

/** The groups around a node, innermost first. */
function around(node) {
  const out = [];
  for (let group = node.parent; group; group = group.parent) out.push(group);
  return out;
}

function connect(from, to) {
  if (!from || from === to) return;
  const inward = around(to);
  const outward = around(from);
  const common = outward.find((group) => inward.includes(group));
  // The link leaves the groups around its source through a port of each ...
  let start = { node: from };
  for (const group of outward.slice(0, outward.indexOf(common))) {
    const port = portOf(group, 'out', from);
    addLink(group, start, { node: port });
    start = { node: group, port };
  }
  // ... and enters those around its target the same way, outermost first.
  let group = common;
  for (const inner of inward.slice(0, inward.indexOf(common)).reverse()) {
    const port = portOf(inner, 'in', from);
    addLink(group, start, { node: inner, port });
    start = { node: port };
    group = inner;
  }
  addLink(group, start, { node: to });
}

function portOf(group, side, source) {
  const key = `${side} ${source.key}`;
  if (!group.ports.has(key)) group.ports.set(key, { key, kind: 'port', side, source, w: 0, h: 0 });
  return group.ports.get(key);
}

function addLink(group, from, to) {
  const key = [from.node.key, from.port?.key, to.node.key, to.port?.key].join('|');
  if (!group.links.has(key)) group.links.set(key, { from, to, points: [] });
}

/** Sizes a node and places what is in it, relative to its own corner. */
function placeInside(node, measure) {
  if (!node.items) {
    Object.assign(node, measure(node));
    return;
  }
  node.items.forEach((item) => placeInside(item, measure));
  const ports = [...node.ports.values()];
  const nodes = [...ports.filter((p) => p.side === 'in'), ...node.items, ...ports.filter((p) => p.side === 'out')];
  const links = [...node.links.values()];
  rank(nodes, links);
  const { rows, width } = arrange(layers(nodes, links));
  const height = stackUp(node, rows);
  const label = node.kind === 'root' ? 0 : measure(node).w;
  node.w = Math.max(width + 2 * GAP.pad, label);
  node.h = height;
  const shift = (node.w - width) / 2;
  for (const row of rows) row.forEach((cell) => { cell.x += shift; });
  route(node, links);
}

/** Longest-path ranks; nodes without operands sink to where they are used. */
function rank(nodes, links) {
  const hasPorts = nodes.some((node) => node.side === 'in');
  for (const node of nodes) {
    Object.assign(node, { rank: hasPorts && node.side !== 'in' ? 1 : 0, ins: [], outs: [] });
  }
  for (const l of links) {
    // A folded group may use what it feeds; one of such links turns round.
    l.reversed = reaches(l.to.node, l.from.node);
    const [a, b] = l.reversed ? [l.to.node, l.from.node] : [l.from.node, l.to.node];
    a.outs.push(b);
    b.ins.push(a);
  }
  const waiting = new Map(nodes.map((node) => [node, node.ins.length]));
  const ready = nodes.filter((node) => node.ins.length === 0);
  const sorted = [];
  while (ready.length) {
    const node = ready.shift();
    sorted.push(node);
    for (const next of node.outs) {
      next.rank = Math.max(next.rank, node.rank + 1);
      waiting.set(next, waiting.get(next) - 1);
      if (waiting.get(next) === 0) ready.push(next);
    }
  }
  for (const node of sorted.reverse()) {
    const sinks = node.outs.length > node.ins.length && node.side !== 'in';
    if (sinks) node.rank = Math.min(...node.outs.map((next) => next.rank)) - 1;
  }
  const inner = nodes.filter((node) => node.side !== 'out');
  const last = Math.max(0, ...inner.map((node) => node.rank));
  nodes.filter((node) => node.side === 'out').forEach((node) => { node.rank = last + 1; });
}

function reaches(from, to) {
  const seen = new Set([from]);
  for (const node of seen) {
    if (node === to) return true;
    node.outs.forEach((next) => seen.add(next));
  }
  return false;
}

/**
 * The cells of each rank: nodes, and a bend for each source whose links pass
 * through. Links of one source share their bends. Cells get `up` and `down`:
 * neighbours with the offset of the link's end from the middle of each.
 */
function layers(nodes, links) {
  const rows = [];
  const row = (rank) => (rows[rank] ??= []);
  const cells = new Map(nodes.map((node) => [node, { node, w: node.w, h: node.h, up: [], down: [], x: 0 }]));
  nodes.forEach((node) => row(node.rank).push(cells.get(node)));
  const offset = ({ node, port }) => (port ? port.x - node.w / 2 : 0);
  const bends = new Map();
  for (const l of links) {
    const [from, to] = l.reversed ? [l.to, l.from] : [l.from, l.to];
    let cell = cells.get(from.node);
    let out = offset(from);
    l.cells = [cell];
    for (let r = from.node.rank + 1; r < to.node.rank; r++) {
      const key = `${from.node.key}|${from.port?.key}|${r}`;
      if (!bends.has(key)) {
        const bend = { bend: true, w: 8, h: 0, up: [], down: [], x: 0 };
        bends.set(key, bend);
        row(r).push(bend);
        join(cell, out, bend, 0);
      }
      cell = bends.get(key);
      out = 0;
      l.cells.push(cell);
    }
    join(cell, out, cells.get(to.node), offset(to));
    l.cells.push(cells.get(to.node));
  }
  return Array.from(rows, (r) => r ?? []);
}

function join(above, out, below, into) {
  above.down.push({ cell: below, here: out, there: into });
  below.up.push({ cell: above, here: into, there: out });
}

/**
 * Orders and places the cells. A sweep cannot move a long link past what it runs
 * beside, so there are two starts, with such links on either side; that which
 * leads to the fewest crossings, and among equals to the shortest ways, is taken.
 */
function arrange(rows) {
  const bendsFirst = rows.map((row) => [...row.filter((cell) => cell.bend), ...row.filter((cell) => !cell.bend)]);
  const tried = [rows, bendsFirst].map((start) => {
    const ordered = order(start);
    spread(ordered.rows);
    const sideways = ordered.rows.flat().flatMap((cell) =>
      cell.down.map((l) => Math.abs(cell.x + l.here - l.cell.x - l.there)));
    return { ...ordered, sideways: sideways.reduce((a, b) => a + b, 0) };
  });
  const [best] = tried.sort((a, b) => a.crossings - b.crossings || a.sideways - b.sideways);
  return { rows: best.rows, width: spread(best.rows) };
}

/** Orders each rank by the mean places of neighbours; the best order seen. */
function order(start) {
  const number = (row) => row.forEach((cell, i) => { cell.place = i; });
  const now = start.map((row) => [...row]);
  now.forEach(number);
  let best = { crossings: Infinity };
  for (let sweep = 0; sweep < 12 && best.crossings > 0; sweep++) {
    const crossed = crossings(now);
    if (crossed < best.crossings) best = { crossings: crossed, rows: now.map((row) => [...row]) };
    const down = sweep % 2 === 0;
    for (const row of down ? now : [...now].reverse()) {
      for (const cell of row) {
        const links = down ? cell.up : cell.down;
        // A link's end to the right on a wide node counts as a place to the right.
        const places = links.map((l) => l.cell.place + 0.5 + l.there / (l.cell.w + 1));
        cell.wish = places.length ? places.reduce((a, b) => a + b) / places.length : cell.place + 0.5;
      }
      row.sort((a, b) => a.wish - b.wish || a.place - b.place);
      number(row);
    }
    for (let swaps = 0; swaps < 4 && now.filter(swapNeighbours).length; swaps++);
  }
  return best;
}

/** Swaps neighbours in a rank where that undoes crossings; says whether it did. */
function swapNeighbours(row) {
  const end = (l) => l.cell.place + l.there / (l.cell.w + 1);
  const crossed = (a, b) => ['up', 'down'].reduce((sum, side) =>
    sum + a[side].reduce((n, l) => n + b[side].filter((m) => end(l) > end(m)).length, 0), 0);
  let swapped = false;
  for (let i = 0; i + 1 < row.length; i++) {
    const [a, b] = [row[i], row[i + 1]];
    if (crossed(a, b) <= crossed(b, a)) continue;
    [row[i], row[i + 1]] = [b, a];
    [a.place, b.place] = [b.place, a.place];
    swapped = true;
  }
  return swapped;
}

function crossings(rows) {
  let total = 0;
  for (const row of rows) {
    const links = row.flatMap((cell) =>
      cell.down.map((l) => [cell.place + l.here / (cell.w + 1), l.cell.place + l.there / (l.cell.w + 1)]));
    for (let i = 0; i < links.length; i++) {
      for (let j = 0; j < i; j++) {
        if ((links[i][0] - links[j][0]) * (links[i][1] - links[j][1]) < 0) total += 1;
      }
    }
  }
  return total;
}

/** Gives every cell its `x` (its middle); returns the width of all. */
function spread(rows) {
  for (const row of rows) {
    let x = 0;
    for (const [i, cell] of row.entries()) {
      if (i > 0) x += apart(row[i - 1], cell);
      cell.x = x;
    }
  }
  const sides = { down: ['up'], up: ['down'], both: ['up', 'down'] };
  const sweeps = ['down', 'up', 'down', 'up', ...Array(16).fill('both')];
  for (const sweep of sweeps) {
    for (const row of sweep === 'up' ? [...rows].reverse() : rows) {
      const wishes = row.map((cell) => {
        let [sum, weight] = [0, 0];
        for (const side of sides[sweep]) {
          for (const l of cell[side]) {
            // Long links are to be straight before all, and blocks to stand
            // under each other rather than slant with their links.
            const frames = cell.node?.items && l.cell.node?.items;
            const w = frames || (cell.bend && l.cell.bend) ? 24 : cell.bend || l.cell.bend ? 2 : 1;
            sum += w * (frames ? l.cell.x : l.cell.x + l.there - l.here);
            weight += w;
          }
        }
        return weight ? [sum / weight, weight] : [cell.x, 0.1];
      });
      settleRow(row, wishes);
    }
  }
  straighten(rows);
  const cells = rows.flat();
  const left = Math.min(...cells.map((cell) => cell.x - cell.w / 2));
  cells.forEach((cell) => { cell.x -= left; });
  return Math.max(0, ...cells.map((cell) => cell.x + cell.w / 2));
}

/** Puts the bends of a long link under each other, as far as their ranks have room. */
function straighten(rows) {
  const next = (bend) => bend.down.map((l) => l.cell).find((cell) => cell.bend);
  const room = (cell, row) => {
    const at = row.indexOf(cell);
    return [
      at > 0 ? row[at - 1].x + apart(row[at - 1], cell) : -Infinity,
      at + 1 < row.length ? row[at + 1].x - apart(cell, row[at + 1]) : Infinity,
    ];
  };
  const settle = (run, [low, high]) => {
    const mean = run.reduce((sum, cell) => sum + cell.x, 0) / run.length;
    run.forEach((cell) => { cell.x = Math.max(low, Math.min(high, mean)); });
  };
  rows.forEach((row, r) => {
    for (const first of row) {
      if (!first.bend || first.up[0].cell.bend) continue;
      let run = [];
      let span = [-Infinity, Infinity];
      for (let [cell, at] = [first, r]; cell; [cell, at] = [next(cell), at + 1]) {
        const [low, high] = room(cell, rows[at]);
        const both = [Math.max(span[0], low), Math.min(span[1], high)];
        if (both[0] > both[1]) {
          settle(run, span);
          [run, span] = [[cell], [low, high]];
        } else {
          [run, span] = [[...run, cell], both];
        }
      }
      settle(run, span);
    }
  });
}

/** How far the middles of neighbours in a rank must be apart. */
function apart(a, b) {
  const gap = a.bend && b.bend ? 10 : a.node?.kind === 'port' && b.node?.kind === 'port' ? GAP.port : GAP.x;
  return (a.w + b.w) / 2 + gap;
}

/** The places nearest to the wishes that keep order and distance. */
function settleRow(row, wishes) {
  const offsets = [0];
  for (let i = 1; i < row.length; i++) offsets[i] = offsets[i - 1] + apart(row[i - 1], row[i]);
  const blocks = [];
  wishes.forEach(([wish, weight], i) => {
    let block = { sum: (wish - offsets[i]) * weight, weight, size: 1 };
    while (blocks.length && blocks.at(-1).sum / blocks.at(-1).weight > block.sum / block.weight) {
      const before = blocks.pop();
      block = { sum: before.sum + block.sum, weight: before.weight + block.weight, size: before.size + block.size };
    }
    blocks.push(block);
  });
  let i = 0;
  for (const { sum, weight, size } of blocks) {
    for (let n = 0; n < size; n++, i++) row[i].x = sum / weight + offsets[i];
  }
}

/** Gives every cell its `y` (its top); returns the height of all. */
function stackUp(node, rows) {
  let y = node.kind === 'root' ? 0 : GAP.head;
  rows.forEach((row, i) => {
    const height = Math.max(0, ...row.map((cell) => cell.h));
    const isPort = row.every((cell) => cell.h === 0);
    const side = row.some((cell) => cell.node?.side === 'in') ? 'in' : 'out';
    if (i === 0 && isPort && side === 'in') {
      row.forEach((cell) => Object.assign(cell, { y: 0, top: 0, bottom: 0 }));
      return;
    }
    const top = i === 0 ? y : y + GAP.y * (isPort ? 0.6 : 1);
    row.forEach((cell) => {
      // Beside an open block, a node stands near what it hangs together with.
      const slack = height - cell.h;
      cell.y = top + (slack < 120 ? slack / 2 : cell.up.length ? 0 : slack);
      cell.top = top;
      cell.bottom = top + height;
    });
    y = top + height;
  });
  const outs = rows.at(-1)?.some((cell) => cell.node?.side === 'out');
  const height = node.kind === 'root' ? y : y + (outs ? 0 : GAP.pad);
  if (outs) rows.at(-1).forEach((cell) => Object.assign(cell, { y: height, top: height, bottom: height }));
  for (const cell of rows.flat()) {
    if (cell.node) Object.assign(cell.node, { cell });
  }
  return height;
}

/** The points that each link goes through, relative to the group's corner. */
function route(node, links) {
  for (const item of [...node.items, ...node.ports.values()]) {
    Object.assign(item, { x: item.cell.x - item.w / 2, y: item.cell.y });
  }
  // Where several links enter a node, they do so side by side.
  const arriving = new Map();
  for (const l of links) {
    const end = l.cells.at(-1);
    const port = (l.reversed ? l.from : l.to).port;
    if (!port && end.w > 0) arriving.set(end, [...(arriving.get(end) ?? []), l]);
  }
  for (const [end, list] of arriving) {
    list.sort((a, b) => a.cells.at(-2).x - b.cells.at(-2).x);
    const step = Math.min(22, (end.w * 0.7) / list.length);
    list.forEach((l, i) => { l.into = (i - (list.length - 1) / 2) * step; });
  }
  for (const l of links) {
    const [from, to] = l.reversed ? [l.to, l.from] : [l.from, l.to];
    const start = l.cells[0];
    const end = l.cells.at(-1);
    const x = ({ node: n, port }, cell) => (port ? n.x + port.x : cell.x);
    // Links move sideways only between ranks, where nothing is in their way.
    const [out, into] = [x(from, start), x(to, end) + (l.into ?? 0)];
    l.points = [{ x: out, y: start.y + start.h }, { x: out, y: start.bottom }];
    for (const bend of l.cells.slice(1, -1)) {
      l.points.push({ x: bend.x, y: bend.top }, { x: bend.x, y: bend.bottom });
    }
    l.points.push({ x: into, y: end.top }, { x: into, y: end.y });
  }
}

/** Turns places relative to groups into places in the picture. */
function settle(node, x, y) {
  node.x = (node.x ?? 0) + x;
  node.y = (node.y ?? 0) + y;
  if (!node.items) return;
  for (const l of node.links.values()) l.points = l.points.map((p) => ({ x: p.x + node.x, y: p.y + node.y }));
  node.items.forEach((item) => settle(item, node.x, node.y));
}
