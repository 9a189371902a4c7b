// The frame around the views.

const TAB_NAMES = { graph: 'Graph', launches: 'Launches', memory: 'Memory', weights: 'Weights' };

function viewFrame() {
  segments($('entries'), entryNames.map((name) => ({ key: name, label: name })), state.entry, (entry) => {
    const { pass } = stage();
    state.entry = entry;
    const same = stages().findIndex((s) => s.pass === pass);
    update({ entry, stage: same >= 0 ? same : lastChange(), node: undefined, launch: 0 });
  });
  const tabs = $('tabs');
  tabs.replaceChildren(...TABS.map((key) => el('button', {
    id: `tab-${key}`, role: 'tab', 'data-key': key, 'aria-selected': String(key === state.tab),
    'aria-controls': `view-${key}`, tabindex: key === state.tab ? 0 : -1, onclick: () => update({ tab: key }),
  }, TAB_NAMES[key])));
  tabs.onkeydown = (event) => rove(event, tabs, '[role=tab]');
  for (const key of TABS) $(`view-${key}`).hidden = key !== state.tab;
}

// Before the others: they measure what it shows.
VIEWS.unshift((patch) => {
  if ('tab' in patch || 'entry' in patch) viewFrame();
});

function drawFacts() {
  const facts = [];
  if (data.family) facts.push(data.family);
  if (data.parameters) facts.push(`${count(data.parameters)} parameters`);
  if (plan) facts.push(data.weight_dtype, `context ${count(data.max_context)}`, plan.compiler);
  $('facts').replaceChildren(...facts.map((text) => el('span', {}, text)));
}

readAddress();
drawFacts();
bindGraph();
draw({ tab: state.tab, entry: state.entry });
addEventListener('hashchange', () => {
  readAddress();
  draw({ tab: state.tab, entry: state.entry });
});
addEventListener('resize', () => {
  if (state.tab === 'memory') viewMemory({}, {});
});
