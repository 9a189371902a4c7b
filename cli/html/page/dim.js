// Sizes: sums of products of numbers, symbols, `ceil(SUM / n)` and `min(SUM | n)`.

const makes = {
  ceil: (value, divisor) => Math.ceil(value / divisor),
  min: Math.min,
};

const parsed = new Map();

/** The function of the symbols' values that a size's text describes. */
function sizeOf(text) {
  if (!parsed.has(text)) parsed.set(text, parseSize(text));
  return parsed.get(text);
}

function parseSize(text) {
  const tokens = text.match(/\w+|[-+*/|()]/g) ?? [];
  let at = 0;
  const eat = (token) => tokens[at] === token && ++at > 0;
  const factor = () => {
    const token = tokens[at++];
    if (/^\d/.test(token)) {
      const value = Number(token);
      return () => value;
    }
    if (!Object.hasOwn(makes, token) || !eat('(')) return (symbols) => symbols[token] ?? 0;
    const inner = sum();
    eat('/') || eat('|');
    const constant = Number(tokens[at++]);
    eat(')');
    return (symbols) => makes[token](inner(symbols), constant);
  };
  const product = () => {
    const factors = [factor()];
    while (eat('*')) factors.push(factor());
    return (symbols) => factors.reduce((value, f) => value * f(symbols), 1);
  };
  const sum = () => {
    const terms = [[eat('-') ? -1 : 1, product()]];
    while (tokens[at] === '+' || tokens[at] === '-') {
      terms.push([tokens[at++] === '-' ? -1 : 1, product()]);
    }
    return (symbols) => terms.reduce((value, [sign, term]) => value + sign * term(symbols), 0);
  };
  return sum();
}

const evaluate = (text, symbols) => sizeOf(text)(symbols);

/** A tensor type with its symbols' values put in: `f32[1, 768]`. */
const evaluatedType = (type, symbols) =>
  type.replace(/\[(.*)\]/, (_, shape) =>
    `[${shape === '' ? '' : shape.split(',').map((dim) => evaluate(dim, symbols)).join(', ')}]`);
