// Has Tint, the WGSL compiler of Chromium, check the kernels of compiled
// artifacts and of the runtime's sampler. Needs no GPU: Dawn's null back end
// validates and runs nothing.
//
//     node check.mjs ARTIFACT.kiln...
//
// naga, which checks kernels when they are compiled, lets barriers and subgroup
// operations stand in control flow that is not uniform; browsers do not. Each
// kernel also becomes a pipeline on a device that has its tier's features and
// limits, WebGPU's defaults where it asks for no others, so that those are checked
// as well.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { create } from 'webgpu';

const SHADERS = new URL('../../shaders/', import.meta.url);

// What no browser has. Kernels that need it are not checked, but for the last, see
// `withDirectives`.
const OF_WGPU = /^wgpu-|^texture-adapter-specific-format-features$/;

// What a tier requires, and one of its variants beside, without what no browser has.
function inBrowsers(all) {
    const features = all.flatMap(({ features }) => features);
    const limits = Object.assign({}, ...all.map(({ limits }) => limits));
    return { features: features.filter((feature) => !OF_WGPU.test(feature)), limits };
}

// Whether a kernel is in the language of browsers, or in wgpu's extension of it.
const isWebGpu = (text) => !text.includes('enable wgpu_cooperative_matrix;') && !text.includes('@coherent ');

// The kernels of an artifact: file, text, and the tier that launches them. Of
// several tiers it is the one with the fewest features.
function kernelsOf(folder) {
    const plan = JSON.parse(readFileSync(join(folder, 'plan.json'), 'utf8'));
    const found = new Map();
    const tiers = [...plan.tiers].sort((a, b) => a.requires.features.length - b.requires.features.length);
    for (const tier of tiers) {
        const entries = JSON.parse(readFileSync(join(folder, 'tiers', `${tier.name}.json`), 'utf8'));
        const take = (kernel, requires) => {
            if (!found.has(kernel)) {
                const file = join(folder, plan.kernels[kernel].file);
                const text = readFileSync(file, 'utf8');
                found.set(kernel, { file, text, requires: inBrowsers(requires) });
            }
        };
        const variants = Object.values(entries).flatMap((entry) => entry.variants);
        // Variants with a grid last: they may require more.
        variants.sort((a, b) => (a.grid ? 1 : 0) - (b.grid ? 1 : 0));
        for (const check of tier.checks ?? []) {
            take(check.kernel, [tier.requires]);
        }
        for (const { launches, streams, grid } of variants) {
            const requires = [tier.requires, ...(grid ? [grid.requires] : [])];
            const all = [...launches, ...streams.flatMap((s) => s.launches), ...(grid?.check ? [grid.check] : [])];
            all.forEach(({ kernel }) => take(kernel, requires));
            // Alternatives last: they may require more, too.
            for (const { alternatives = [] } of all) {
                alternatives.forEach((way) => take(way.kernel, [...requires, way.requires]));
            }
        }
    }
    const idle = Object.keys(plan.kernels).filter((name) => !found.has(name));
    if (idle.length > 0) {
        throw new Error(`${folder}: no tier launches ${idle.join(', ')}`);
    }
    return [...found.values()];
}

// The sampler's kernels, put together the way runtime/sampler.rs does it, for a
// GPU and for an adapter on a CPU, but with all functions, used or not.
function samplerKernels() {
    const read = (path) => readFileSync(new URL(path, SHADERS), 'utf8');
    const prelude = read('defaults/sample.wgsl') + read('functions.wgsl');
    const kernels = [];
    for (const body of ['sample_score', 'sample_choose']) {
        for (const [workgroup, chunks] of [[256, 64], [8, 8]]) {
            for (const greedy of [true, false]) {
                const constants = `const WORKGROUP: u32 = ${workgroup}u; const CHUNKS: u32 = ${chunks}u;`
                    + ` const ID_LEVELS: u32 = 2u; const GREEDY: bool = ${greedy};\n`;
                kernels.push({
                    file: `shaders/${body}.wgsl (WORKGROUP ${workgroup}, GREEDY ${greedy})`,
                    text: constants + prelude + read(`${body}.wgsl`),
                    requires: { features: [], limits: {} },
                });
            }
        }
    }
    return kernels;
}

// naga takes subgroup operations without a word and refuses the directive; the
// language wants the directive. On the first line, it leaves the lines their
// numbers. Of the formats of images that are read and written it has those of one
// word, from which texels have the same type.
function withDirectives(kernel) {
    const text = kernel.replaceAll('<rgba32uint, read_write>', '<r32uint, read_write>');
    const subgroups = /\bsubgroup_(size|invocation_id|id)\b|\b(subgroup|quad)[A-Z]\w*\s*\(/.test(text);
    return subgroups ? `enable subgroups; ${text}` : text;
}

// Limits by the names that the API gives them: `max_storage_buffer_binding_size`
// in a plan is `maxStorageBufferBindingSize`.
function limitsOf({ limits }) {
    const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
    return Object.fromEntries(Object.entries(limits).map(([name, value]) => [camel(name), value]));
}

// What Dawn says of a limit that is exceeded, by its name.
const OVER = {
    max_compute_workgroup_storage_size: /^The total use of workgroup storage \((\d+) bytes\)/,
    max_storage_buffers_per_shader_stage: /^The number of storage buffers \((\d+)\)/,
    max_storage_textures_per_shader_stage: /^The number of storage textures \((\d+)\)/,
};

// Whether Dawn complains of nothing but a limit that the tier asks for: the null back
// end offers no more than the default.
function isGranted(complaint, { limits }) {
    return Object.entries(OVER).some(([name, text]) => {
        const used = text.exec(complaint);
        return used !== null && Number(used[1]) <= (limits[name] ?? 0);
    });
}

// What Tint and Dawn have against a kernel; nothing, if all is well.
async function complaints({ text, requires }) {
    const device = await deviceFor(requires);
    device.pushErrorScope('validation');
    const module = device.createShaderModule({ code: withDirectives(text) });
    const { messages } = await module.getCompilationInfo();
    const error = await device.popErrorScope();
    const found = messages
        .filter((m) => m.type !== 'info')
        .map((m) => `${m.lineNum}:${m.linePos}: ${m.type}: ${m.message}`);
    if (error !== null) {
        return found.length > 0 ? found : [error.message.trim()];
    }
    const pipeline = { layout: 'auto', compute: { module, entryPoint: 'main' } };
    await device.createComputePipelineAsync(pipeline).catch((e) => found.push(e.message.trim()));
    return found.filter((complaint) => !isGranted(complaint, requires));
}

const folders = process.argv.slice(2);
if (folders.length === 0) {
    console.error('usage: node check.mjs ARTIFACT.kiln...');
    process.exit(2);
}

// Artifacts share many kernels; each is checked once.
const kernels = new Map();
for (const kernel of [...folders.flatMap(kernelsOf), ...samplerKernels()]) {
    const key = JSON.stringify([kernel.requires, kernel.text]);
    if (!kernels.has(key)) {
        kernels.set(key, kernel);
    }
}

const gpu = create(['backend=null']);
const devices = new Map();
async function deviceFor(requires) {
    const key = JSON.stringify(requires);
    if (!devices.has(key)) {
        // An adapter makes one device.
        const adapter = await gpu.requestAdapter();
        const limits = Object.entries(limitsOf(requires));
        const offered = limits.filter(([name, value]) => value <= adapter.limits[name]);
        const wanted = { requiredFeatures: requires.features, requiredLimits: Object.fromEntries(offered) };
        devices.set(key, await adapter.requestDevice(wanted));
    }
    return devices.get(key);
}

// A check that finds nothing must be one that would find something.
const unsound = `
    @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) lane: u32) {
        if lane > 3u { workgroupBarrier(); }
    }`;
const plain = { features: [], limits: {} };
if ((await complaints({ text: unsound, requires: plain })).length === 0) {
    throw new Error('Tint lets a barrier in non-uniform control flow pass');
}
// 20,000 bytes, which the default limit and one of 19,999 do not grant.
const large = `
    var<workgroup> all: array<u32, 5000>;
    @compute @workgroup_size(1) fn main() { all[0] = 1u; }`;
for (const [memory, granted] of [[16384, false], [19999, false], [20000, true]]) {
    const requires = { features: [], limits: { max_compute_workgroup_storage_size: memory } };
    if (((await complaints({ text: large, requires })).length === 0) !== granted) {
        throw new Error(`${memory} bytes of workgroup memory are ${granted ? 'not enough' : 'enough'} for 20,000`);
    }
}

let failed = 0;
const checked = [...kernels.values()].filter(({ text }) => isWebGpu(text));
for (const kernel of checked) {
    const found = await complaints(kernel);
    if (found.length > 0) {
        failed += 1;
        console.log(`${kernel.file}:\n  ${found.join('\n  ').replaceAll('\n', '\n  ')}`);
    }
}
console.log(`${checked.length} kernels, ${failed} failed; not checked, for Tint has no such matrices: ${kernels.size - checked.length}`);
// Dawn's threads would keep the process alive.
process.exit(failed > 0 ? 1 : 0);
