// Appended to the page's script by the test in `html.rs`: presses everything
// there is to press and puts what went wrong into the title.

{
  const faults = [];
  const fault = (text) => faults.push(text);
  addEventListener('error', (event) => fault(`error: ${event.message}`));
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const click = (element) => element.dispatchEvent(new MouseEvent('click', { bubbles: true }));
  const press = (element, key) => element.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
  const keys = (selector, within) => all(selector, within).map((element) => element.dataset.key);
  const soon = () => new Promise((done) => { setTimeout(done); });

  const looksRight = (what) => {
    const drawn = all('#picture [transform], #picture path[d]');
    const numbers = drawn.map((e) => `${e.getAttribute('transform') ?? ''}${e.getAttribute('d') ?? ''}`).join(' ');
    if (/NaN|undefined|Infinity/.test(numbers)) fault(`${what}: a place that is no number`);
    const boxes = all('#picture .node > .card:not(.behind)').map((card) => card.getBoundingClientRect());
    if (boxes.length < 3) fault(`${what}: ${boxes.length} nodes`);
    const over = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    if (boxes.some((a, i) => boxes.slice(0, i).some((b) => over(a, b)))) fault(`${what}: nodes overlap`);
  };

  const graphs = async (entry) => {
    click($('tab-graph'));
    for (const level of keys('#levels button')) {
      click(document.querySelector(`#levels [data-key=${level}]`));
      for (const stage of keys('#passes .stage')) {
        click(document.querySelector(`#passes [data-key="${stage}"]`));
        looksRight(`${entry}, ${level}, stage ${stage}`);
      }
    }
    $('constants').click();
    looksRight(`${entry}, with parameters`);
    $('constants').click();
    // By keyboard: open whatever is closed, then look at a value and its operands.
    click(document.querySelector('#levels [data-key=folded]'));
    const closed = () => document.querySelector('#picture .node.group, #picture .node.stack');
    for (let n = 0; n < 200 && closed(); n++) press(closed(), 'Enter');
    if (closed()) fault(`${entry}: blocks do not open`);
    looksRight(`${entry}, opened by keyboard`);
    press(all('#picture .node.value').at(-1), ' ');
    if (!document.querySelector('#inspector pre')) fault(`${entry}: no details`);
    document.querySelector('#inspector button.value').click();
    if (!document.querySelector('#picture .selected')) fault(`${entry}: an operand is not shown`);
    for (const key of ['[', ']', '+', '-', 'f', 'Escape']) press(document.body, key);
    await soon();
  };

  const launches = (entry) => {
    for (const tab of ['launches', 'memory']) {
      click($(`tab-${tab}`));
      const group = (n) => all(`#view-${tab} .sizes [role=radiogroup]`)[n];
      for (const tier of keys('button', group(0))) {
        click(group(0).querySelector(`[data-key=${tier}]`));
        for (const variant of keys('button:not(:disabled)', group(1))) {
          click(group(1).querySelector(`[data-key=${variant}]`));
          const what = `${entry}, ${tab}, ${tier}, ${variant}`;
          if (group(1).querySelector('[aria-checked=true]').dataset.key !== variant) fault(`${what}: not chosen`);
          if (/NaN|undefined/.test($(`view-${tab}`).outerHTML)) fault(`${what}: not a number`);
          for (const row of keys('.launches tbody tr[aria-selected]')) {
            if (tab === 'launches') click(document.querySelector(`.launches tr[data-key="${row}"]`));
          }
          if (tab === 'launches' && !document.querySelector('#kernel .wgsl code')) fault(`${what}: no kernel`);
        }
      }
    }
    click($('tab-weights'));
    if (!document.querySelector('#weights tbody tr')) fault('no weights');
  };

  (async () => {
    // The address changes with every press, which a browser slows down.
    history.replaceState = () => {};
    if (evaluate('min(past + seq | 4)*2 + ceil(seq / 2)', { past: 3, seq: 2 }) !== 9) fault('sizes');
    for (const entry of keys('#entries button')) {
      click(document.querySelector(`#entries [data-key=${entry}]`));
      await graphs(entry);
      launches(entry);
    }
    document.title = faults.length ? `faults: ${[...new Set(faults)].join('; ')}` : 'no faults';
  })().catch((error) => { document.title = `faults: ${error.stack}`; });
}
