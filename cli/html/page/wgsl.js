// Colours for WGSL, a line at a time.

const WGSL = new RegExp([
  String.raw`(?<comment>//.*)`,
  String.raw`(?<attribute>@\w+)`,
  String.raw`(?<number>\b(?:0[xX][\da-fA-F]+|\d+\.?\d*(?:[eE][-+]?\d+)?)[iufh]?\b|\B\.\d+f?)`,
  String.raw`(?<word>\b(?:alias|break|case|const|const_assert|continue|continuing|default|diagnostic|discard|else|enable|fn|for|if|let|loop|override|requires|return|struct|switch|var|while|true|false)\b)`,
  String.raw`(?<type>\b(?:bool|i32|u32|f32|f16|vec[234][iufh]?|mat[234]x[234][fh]?|array|atomic|ptr|storage|uniform|workgroup|private|function|read|write|read_write)\b)`,
  String.raw`(?<call>\b[a-zA-Z_]\w*(?=\s*\())`,
].join('|'), 'g');

function colouredLine(line) {
  const out = [];
  let from = 0;
  for (const match of line.matchAll(WGSL)) {
    out.push(line.slice(from, match.index));
    const kind = Object.keys(match.groups).find((key) => match.groups[key] !== undefined);
    out.push(el('span', { class: kind }, match[0]));
    from = match.index + match[0].length;
  }
  out.push(line.slice(from));
  return el('code', {}, out, '\n');
}

/** The text of a kernel, its lines numbered by the style sheet. */
const colouredKernel = (kernel) => el('pre', { class: 'wgsl', tabindex: 0 }, kernelText(kernel).map(colouredLine));

/** What the kernel's text calls its bindings, in order; the first is the uniform block's. */
function bindingNames(kernel) {
  const names = [];
  for (const line of kernelText(kernel)) {
    const match = /@binding\((\d+)\)\s*var(?:<[^>]*>)?\s*(\w+)\s*:\s*(.*);/.exec(line);
    if (match) names[Number(match[1])] = { name: match[2], type: match[3] };
  }
  return names;
}
