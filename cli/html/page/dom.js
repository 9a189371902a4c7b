// Elements and numbers, as the views below need them.

const $ = (id) => document.getElementById(id);

const SVG = $('picture').namespaceURI;

/** Sets attributes and appends children; text goes in as text, never as markup. */
function furnish(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false));
  return element;
}

const el = (tag, attributes, ...children) => furnish(document.createElement(tag), attributes, children);

const svg = (tag, attributes, ...children) => furnish(document.createElementNS(SVG, tag), attributes, children);

/** `1234567` as `1,234,567`. */
const count = (n) => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ',');

/** A number in decimal units: `scaled(3.2e6, ['B', 'kB', 'MB'])` is `3.2 MB`. */
function scaled(value, units) {
  let unit = 0;
  while (value >= 999.5 && unit + 1 < units.length) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${units[unit]}`.trim();
}

const bytes = (n) => scaled(n, ['B', 'kB', 'MB', 'GB', 'TB']);

const operations = (n) => scaled(n, ['', 'k', 'M', 'G', 'T']);

/** `3 values`, `1 value`. */
const plural = (n, noun, many = `${noun}s`) => `${count(n)} ${n === 1 ? noun : many}`;

/** How often each item occurs, most frequent first. */
function tally(items) {
  const counts = new Map();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

/** Buttons of which one is pressed, as a radio group: arrow keys move along. */
function segments(group, items, chosen, choose) {
  const focused = group.contains(document.activeElement);
  group.replaceChildren(...items.map(({ key, label, title, disabled }) => el('button', {
    role: 'radio', 'aria-checked': String(key === chosen), tabindex: key === chosen ? 0 : -1,
    'data-key': key, title, disabled, onclick: () => choose(key),
  }, label)));
  group.onkeydown = (event) => rove(event, group, '[role=radio]');
  if (focused) group.querySelector('[aria-checked=true]')?.focus();
}

/** Arrow keys, Home and End within a group of buttons: focus and press. */
function rove(event, group, selector) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const buttons = [...group.querySelectorAll(selector)].filter((button) => !button.disabled);
  const at = buttons.indexOf(document.activeElement);
  const to = Math.max(0, Math.min(buttons.length - 1, at + step));
  const key = buttons[to].dataset.key;
  buttons[to].click();
  [...group.querySelectorAll(selector)].find((b) => b.dataset.key === key)?.focus();
}

/** Enter and Space press what is no button. */
const pressing = (press) => (event) => {
  if (event.key !== 'Enter' && event.key !== ' ') return;
  event.preventDefault();
  event.stopPropagation();
  press(event);
};
