// What is being looked at. It is kept in the address, so that a view can be
// linked to and the browser's history works.

const state = {
  tab: 'graph', entry: entryNames[0], stage: 0, level: 'ops', constants: false,
  /** Paths of the groups that are open, on top of what the level says. */
  open: new Set(), closed: new Set(),
  /** The key of the node that is selected. */
  node: undefined,
  tier: tierNames.includes('subgroup') ? 'subgroup' : tierNames[0],
  /** The launch that is selected, and the way to do it that is shown: 0 is the usual one. */
  launch: 0, way: 0, unfolded: false,
  /** The symbols' values, by name. */
  sizes: {},
};

const TABS = ['graph', 'launches', 'memory', 'weights'];

const stages = () => stagesOf(state.entry);

const stage = () => stages()[state.stage];

/** The symbols of the current entry point with their maxima. */
function maxima() {
  const out = Object.fromEntries(graphEntry(state.entry).symbols);
  for (const [name, max] of planEntry(state.tier, state.entry)?.symbols ?? []) out[name] = max;
  return out;
}

/** The last stage that is not what the one before was. */
const lastChange = () => Math.max(0, stages().findLastIndex((s) => s.rewrites > 0));

/** Values for all symbols of the current entry point, and the plan's own. */
function currentSizes() {
  const out = { context: data.max_context, block: 0 };
  for (const [name, max] of Object.entries(maxima())) {
    out[name] = Math.max(smallest(name), Math.min(max, state.sizes[name] ?? initial(name, max)));
  }
  return withRoom(out);
}

/** As many sequences, of no more tokens together than the entry point has room for. */
function withRoom(sizes) {
  const rows = planEntry(state.tier, state.entry)?.rows;
  return rows && sizes.batch * sizes.seq > rows ? { ...sizes, seq: Math.floor(rows / sizes.batch) } : sizes;
}

const maximalSizes = () => withRoom({ context: data.max_context, block: 0, ...maxima() });

const smallest = (name) => (name === 'past' ? 0 : 1);

/** In the middle of generating one text. */
function initial(name, max) {
  if (name === 'past') return Math.floor(max / 2);
  if (name === 'seq' && !('past' in maxima())) return Math.min(max, 128);
  return 1;
}

/** The variant that runs for the current sizes: the first whose bounds hold. */
function currentVariant() {
  const sizes = currentSizes();
  return planEntry(state.tier, state.entry)?.variants.find((variant) => suits(variant, sizes));
}

const suits = (variant, sizes) => variant.bounds.every(([size, max]) => evaluate(plan.dims[size], sizes) <= max);

const VIEWS = [];

/** Changes the state and draws again what shows it; views look for hints on how. */
function update(patch, hint = {}) {
  Object.assign(state, 'launch' in patch ? { way: 0 } : {}, patch);
  history.replaceState(null, '', address());
  draw(patch, hint);
}

function draw(patch, hint = {}) {
  for (const view of VIEWS) view(patch, hint);
}

function address() {
  const parts = { tab: state.tab, entry: state.entry };
  if (state.tab === 'graph') {
    Object.assign(parts, { stage: stage().pass, level: state.level });
    if (state.constants) parts.parameters = 1;
    if (state.node !== undefined) parts.node = state.node;
    if (state.open.size) parts.open = [...state.open].join(' ');
    if (state.closed.size) parts.closed = [...state.closed].join(' ');
  }
  if (state.tab === 'launches' || state.tab === 'memory') {
    Object.assign(parts, { tier: state.tier, launch: state.launch, way: state.way }, state.sizes);
  }
  return `#${new URLSearchParams(parts)}`;
}

/** Takes the state from the address; what makes no sense there is passed over. */
function readAddress() {
  const parts = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const known = (value, values) => (values.includes(value) ? value : undefined);
  state.tab = known(parts.tab, TABS) ?? 'graph';
  state.entry = known(parts.entry, entryNames) ?? (entryNames.includes('step') ? 'step' : entryNames[0]);
  const named = stages().findIndex((s) => s.pass === parts.stage);
  state.stage = named >= 0 ? named : lastChange();
  state.level = known(parts.level, LEVELS.map((l) => l.key)) ?? 'ops';
  state.constants = parts.parameters === '1';
  state.node = parts.node;
  state.open = new Set(parts.open?.split(' '));
  state.closed = new Set(parts.closed?.split(' '));
  state.tier = known(parts.tier, tierNames) ?? state.tier;
  state.launch = Number(parts.launch) || 0;
  state.way = Number(parts.way) || 0;
  for (const name of Object.keys(maxima())) {
    const value = Number(parts[name]);
    if (parts[name] !== undefined && Number.isInteger(value) && value >= 0) state.sizes[name] = value;
  }
}
