// Folding: the values of a stage in groups by the dotted names of the modules
// that built them, and runs of equal layers in one stack.

const LEVELS = [
  { key: 'folded', label: 'Folded', title: 'Every module closed' },
  { key: 'block', label: 'One block', title: 'The first of the repeated blocks open, its modules closed' },
  { key: 'ops', label: 'Ops', title: 'One of everything open, down to single ops' },
  { key: 'all', label: 'Everything', title: 'All blocks and modules open' },
];

/** `h.0.attn.c_attn` as `h.0`, `attn`, `c_attn`: a number stays with its name. */
const components = (source) => (source === '' ? [] : source.split(/\.(?!\d+(?:\.|$))/));

/** How many components two paths share from their start. */
function shared(a, b) {
  let n = 0;
  while (n < a.length && a[n] === b[n]) n += 1;
  return n;
}

/**
 * The module that a value is shown in: the one that built it or, where it takes
 * from and only gives to a module within that, the inner one. A pass may put
 * what stood outside a module in its midst; left outside, it would tie the
 * folded module to itself.
 */
function placeOf(stage, value) {
  const own = components(value.source);
  const path = (id) => components(stage.byId.get(id)?.source ?? '');
  const users = stage.users.get(value.id).map(path);
  const named = [...stage.outputs, ...stage.states].some(([, id]) => id === value.id);
  if (named || users.length === 0) return own;
  const common = users.reduce((a, b) => a.slice(0, shared(a, b)));
  const inner = Math.max(0, ...value.inputs.map((id) => shared(common, path(id))));
  return inner > own.length && shared(common, own) === own.length ? common.slice(0, inner) : own;
}

/** The tree of modules of the values that are shown. */
function moduleTree(stage, constants) {
  const root = { path: '', name: '', groups: new Map(), items: [], values: [] };
  for (const value of stage.inOrder) {
    if (!constants && isConstant(value)) continue;
    let group = root;
    for (const name of placeOf(stage, value)) {
      group.values.push(value);
      if (!group.groups.has(name)) {
        const path = group.path === '' ? name : `${group.path}.${name}`;
        const child = { path, name, groups: new Map(), items: [], values: [] };
        group.groups.set(name, child);
        group.items.push(child);
      }
      group = group.groups.get(name);
    }
    group.values.push(value);
    group.items.push(value);
  }
  return root;
}

/** What makes two groups equal: ops, types and the way they hang together. */
function signature(stage, group) {
  if (group.signature === undefined) {
    const shown = group.values.filter((value) => !isConstant(value));
    const place = new Map(shown.map((value, i) => [value.id, i]));
    const lines = shown.map((value) => {
      const inputs = value.inputs.map((id) => {
        const input = stage.byId.get(id);
        return place.get(id) ?? (input && isConstant(input) ? input.type : 'outside');
      });
      return [value.op, attrsText(value), value.type, value.source.slice(group.path.length), ...inputs].join(' ');
    });
    group.signature = lines.join('\n');
  }
  return group.signature;
}

/** Which of the groups are open, by the level and what was clicked. */
function isOpen(group, repeated) {
  if (state.closed.has(group.path)) return false;
  if (state.open.has(group.path)) return true;
  switch (state.level) {
    case 'all': return true;
    case 'ops': return repeated !== 'again';
    case 'block': return repeated === 'first';
    default: return false;
  }
}

/**
 * The nodes of a group's inside: values, closed groups, open groups with nodes
 * of their own, and stacks of equal layers. `again` is set within a layer that
 * repeats an earlier one.
 */
function foldItems(stage, group, again = false) {
  const role = new Map();
  const seen = new Set();
  for (const item of group.items) {
    const layer = item.groups && layerOf(item.name);
    if (!layer) continue;
    const kind = layer.stem + signature(stage, item);
    role.set(item, { ...layer, kind, repeated: seen.has(kind) ? 'again' : 'first' });
    seen.add(kind);
  }
  const nodes = [];
  let run = [];
  const flush = () => {
    if (run.length > 1) nodes.push(stackNode(stage, run));
    else if (run.length === 1) nodes.push(groupNode(stage, run[0], false));
    run = [];
  };
  // A layer's first value may come before the last one of the layer before it,
  // and other values between: layers are gathered first, by their numbers.
  const layers = [...role.keys()].sort((a, b) => role.get(a).index - role.get(b).index);
  for (const layer of layers) {
    const { kind, index, repeated } = role.get(layer);
    const open = isOpen(layer, again ? 'again' : repeated);
    const last = run.at(-1) && role.get(run.at(-1));
    if (open || (last && (last.kind !== kind || last.index + 1 !== index))) flush();
    if (open) nodes.push(openNode(stage, layer, again || repeated === 'again'));
    else run.push(layer);
  }
  flush();
  for (const item of group.items) {
    if (role.has(item)) continue;
    if (!item.groups) nodes.push(valueNode(stage, item, ''));
    else if (item.values.length === 1) {
      const [value] = item.values;
      const start = group.path === '' ? 0 : group.path.length + 1;
      nodes.push(valueNode(stage, value, value.source.slice(start)));
    } else if (isOpen(item, again ? 'again' : undefined)) nodes.push(openNode(stage, item, again));
    else nodes.push(groupNode(stage, item));
  }
  const position = new Map(stage.inOrder.map((value, i) => [value.id, i]));
  nodes.forEach((node) => { node.position = position.get(node.values[0].id); });
  return nodes.sort((a, b) => a.position - b.position);
}

const valueNode = (stage, value, caption) => ({
  key: `%${value.id}`, kind: 'value', value, caption, values: [value], added: stage.added.has(value.id) ? 1 : 0,
});

const addedIn = (stage, values) => values.filter((value) => stage.added.has(value.id)).length;

const groupNode = (stage, group) => ({
  key: group.path, kind: 'group', group, title: group.name, values: group.values, added: addedIn(stage, group.values),
});

function stackNode(stage, groups) {
  const values = groups.flatMap((group) => group.values);
  return {
    key: `${groups[0].path}…`, kind: 'stack', groups, values, added: addedIn(stage, values),
    title: `${groups[0].name} … ${groups.at(-1).name}`,
  };
}

const openNode = (stage, group, again) => ({
  key: group.path, kind: 'open', group, title: group.name, values: group.values, added: addedIn(stage, group.values),
  items: foldItems(stage, group, again),
});

/**
 * The whole picture as a tree of nodes: the root's inside, and outputs. Sets
 * `parent` everywhere and returns where each value is to be seen.
 */
function fold(stage, constants) {
  const root = { key: '', kind: 'root', items: foldItems(stage, moduleTree(stage, constants)), values: [] };
  for (const [name, id] of stage.outputs) {
    root.items.push({ key: `output ${name}`, kind: 'output', name, id, values: [], added: 0, caption: '' });
  }
  const shownIn = new Map();
  const visit = (node, parent) => {
    node.parent = parent;
    if (node.items) node.items.forEach((item) => visit(item, node));
    else node.values.forEach((value) => shownIn.set(value.id, node));
  };
  visit(root, undefined);
  return { root, shownIn };
}
