// Second half of sampling: one workgroup chooses a sequence's next token.
//
// All arithmetic after the first difference is on integers, so that the order of summation, and with
// it the workgroup's size, is of no consequence, and the runtime's host sampler gives the same token.
// A token's *distance* is how far its logit, divided by the temperature, lies below the best one's:
// an u32 in units of 2^-27. Its *weight* is e^-distance in units of 2^-31, so sums of weights take
// two words. Nothing is sorted: top-k, top-p and the draw itself are each one search, digit by digit,
// for the key at which a running sum passes a target. The key is the distance for the filters, with
// counts or weights to sum, and the token's id for the draw. The topmost digit of the first filter
// leaves few tokens as a rule: these are listed in workgroup memory, and the rest is done with them.
//
// Constants: WORKGROUP (a power of two), CHUNKS, GREEDY, ID_LEVELS (digits of 8 bits in an id);
//            EXCLUDED.
// Hooks: sampling, quads, scores, bests, sequences, choose of defaults/sample.wgsl; multiply_high of
// functions.wgsl.
// Grid: batch workgroups, not folded.
// Workgroup memory: 8 * WORKGROUP + 8 * LISTED + 2,180 bytes.

const COUNT: u32 = 0u;
const MASS: u32 = 1u;
const DRAW: u32 = 2u;

const INFINITELY_FAR: u32 = 0xffffffffu;

const BINS: u32 = 256u;
const BINS_OF_GROUP: u32 = 16u;

// Room in the list.
const LISTED: u32 = 1024u;

var<workgroup> best: array<Best, WORKGROUP>;
var<workgroup> low: array<atomic<u32>, BINS>;
var<workgroup> high: array<atomic<u32>, BINS>;
var<workgroup> group_sums: array<vec2<u32>, BINS / BINS_OF_GROUP>;

// Tokens with their distances, if they fit.
var<workgroup> listed: atomic<u32>;
var<workgroup> listed_id: array<u32, LISTED>;
var<workgroup> listed_far: array<u32, LISTED>;
var<private> has_list: bool;

// Sums of two words, the low one first.
fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low_word = a.x + b.x;
    return vec2<u32>(low_word, a.y + b.y + u32(low_word < a.x));
}

fn exceeds(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y > b.y || (a.y == b.y && a.x > b.x);
}

// total * share / 2^32.
fn share_of(total: vec2<u32>, share: u32) -> vec2<u32> {
    let product = vec2<u32>(total.y * share, multiply_high(total.y, share));
    return add(product, vec2<u32>(multiply_high(total.x, share), 0u));
}

fn distance_of(top: f32, x: f32) -> u32 {
    let difference = top - x;
    if difference >= sampling.limit {
        return INFINITELY_FAR;
    }
    return u32(min(difference * sampling.scale, 4294967040.0));
}

// 2^31 * e^-(distance / 2^27), rounded down: 2^-(n + f) by a polynomial of degree 6 in f, fitted at
// Chebyshev's points. Below 2^-31 it is 0.
fn weight(distance: u32) -> u32 {
    let exponent = multiply_high(distance, 0xb8aa3b2au);
    let n = exponent >> 26u;
    if n >= 32u {
        return 0u;
    }
    let f = exponent << 6u;
    var sum = 493577u;
    sum = 5547538u - multiply_high(sum, f);
    sum = 41218952u - multiply_high(sum, f);
    sum = 238367376u - multiply_high(sum, f);
    sum = 1031763206u - multiply_high(sum, f);
    sum = 2977044447u - multiply_high(sum, f);
    return (0x80000000u - (multiply_high(sum, f) >> 1u)) >> n;
}

// The first word of philox4x32-10.
fn random(position: u32, sequence: u32) -> u32 {
    var c = vec4<u32>(position, 0u, sequence, 0u);
    var key = vec2<u32>(sampling.seed_low, sampling.seed_high);
    for (var round = 0u; round < 10u; round++) {
        c = vec4<u32>(
            multiply_high(0xcd9e8d57u, c.z) ^ c.y ^ key.x,
            0xcd9e8d57u * c.z,
            multiply_high(0xd2511f53u, c.x) ^ c.w ^ key.y,
            0xd2511f53u * c.x,
        );
        key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c.x;
}

// A digit of the keys that are searched: which keys, and where in them it is.
struct Digit {
    kind: u32,
    // Whether it is the topmost; if not, keys begin with `prefix`.
    first: bool,
    prefix: u32,
    shift: u32,
    // Tokens at a larger distance are out.
    cut: u32,
}

fn tally_token(digit: Digit, far: u32, id: u32) {
    let key = select(far, id, digit.kind == DRAW);
    // A shift by 32 is none: `first` stands for it.
    let among = digit.first || (key >> ((digit.shift + 8u) & 31u)) == digit.prefix;
    if far > digit.cut || far == INFINITELY_FAR || !among {
        return;
    }
    let amount = select(weight(far), 1u, digit.kind == COUNT);
    let bin = (key >> digit.shift) & 0xffu;
    let before = atomicAdd(&low[bin], amount);
    if before + amount < before {
        atomicAdd(&high[bin], 1u);
    }
}

// Fills the bins of a digit. The four tokens of a quad are written out: llvmpipe ends a shader's
// loops, silently, after 65,535 iterations of all of them together.
fn tally(digit: Digit, b: u32, top: f32, lane: u32) {
    for (var i = lane; i < BINS; i += WORKGROUP) {
        atomicStore(&low[i], 0u);
        atomicStore(&high[i], 0u);
    }
    workgroupBarrier();
    var begin = 0u;
    var end = quads();
    if has_list {
        end = 0u;
        for (var i = lane; i < atomicLoad(&listed); i += WORKGROUP) {
            tally_token(digit, listed_far[i], listed_id[i]);
        }
    } else if digit.kind == DRAW && !digit.first {
        begin = (digit.prefix << (digit.shift + 8u)) / 4u;
        end = min(end, begin + (64u << digit.shift));
    }
    for (var q = begin + lane; q < end; q += WORKGROUP) {
        let quad = scores[b * quads() + q];
        tally_token(digit, distance_of(top, quad.x), q * 4u);
        tally_token(digit, distance_of(top, quad.y), q * 4u + 1u);
        tally_token(digit, distance_of(top, quad.z), q * 4u + 2u);
        tally_token(digit, distance_of(top, quad.w), q * 4u + 3u);
    }
    workgroupBarrier();
}

fn list_token(far: u32, id: u32, cut: u32) {
    if far > cut || far == INFINITELY_FAR {
        return;
    }
    let place = atomicAdd(&listed, 1u);
    if place < LISTED {
        listed_id[place] = id;
        listed_far[place] = far;
    }
}

// Lists the tokens up to a distance, unless a list is there already or they do not fit.
fn list(b: u32, top: f32, cut: u32, lane: u32) {
    if !has_list && lane == 0u {
        atomicStore(&listed, 0u);
    }
    workgroupBarrier();
    let end = select(quads(), 0u, has_list);
    for (var q = lane; q < end; q += WORKGROUP) {
        let quad = scores[b * quads() + q];
        list_token(distance_of(top, quad.x), q * 4u, cut);
        list_token(distance_of(top, quad.y), q * 4u + 1u, cut);
        list_token(distance_of(top, quad.z), q * 4u + 2u, cut);
        list_token(distance_of(top, quad.w), q * 4u + 3u, cut);
    }
    workgroupBarrier();
    has_list = atomicLoad(&listed) <= LISTED;
}

// The smallest key such that the sum over all keys up to it exceeds the target: `amount` - 1 tokens,
// just less than the share `amount` of all weight, or the share itself. All bits set if there is none.
fn find(kind: u32, b: u32, top: f32, cut: u32, amount: u32, lane: u32) -> u32 {
    let levels = select(4u, ID_LEVELS, kind == DRAW);
    var prefix = 0u;
    var below = vec2<u32>(0u);
    var aim = vec2<u32>(amount - 1u, 0u);
    for (var level = 0u; level < levels; level++) {
        let shift = (levels - 1u - level) * 8u;
        tally(Digit(kind, level == 0u, prefix, shift, cut), b, top, lane);
        for (var group = lane; group < BINS / BINS_OF_GROUP; group += WORKGROUP) {
            var sum = vec2<u32>(0u);
            for (var i = 0u; i < BINS_OF_GROUP; i++) {
                let bin = group * BINS_OF_GROUP + i;
                sum = add(sum, vec2<u32>(atomicLoad(&low[bin]), atomicLoad(&high[bin])));
            }
            group_sums[group] = sum;
        }
        workgroupBarrier();
        if level == 0u && kind != COUNT {
            var total = vec2<u32>(0u);
            for (var group = 0u; group < BINS / BINS_OF_GROUP; group++) {
                total = add(total, group_sums[group]);
            }
            aim = share_of(total, amount);
            if kind == MASS && (aim.x | aim.y) != 0u {
                aim = add(aim, vec2<u32>(0xffffffffu, 0xffffffffu));
            }
        }
        var group = 0u;
        for (; group < BINS / BINS_OF_GROUP - 1u; group++) {
            let next = add(below, group_sums[group]);
            if exceeds(next, aim) {
                break;
            }
            below = next;
        }
        var digit = group * BINS_OF_GROUP;
        for (; digit < (group + 1u) * BINS_OF_GROUP - 1u; digit++) {
            let next = add(below, vec2<u32>(atomicLoad(&low[digit]), atomicLoad(&high[digit])));
            if exceeds(next, aim) {
                break;
            }
            below = next;
        }
        prefix = (prefix << 8u) | digit;
        workgroupBarrier();
        if level == 0u && kind != DRAW {
            list(b, top, min(cut, (prefix << 24u) | 0xffffffu), lane);
        }
    }
    return prefix;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let b = workgroup_id.x;
    var top = Best(EXCLUDED, 0xffffffffu);
    for (var chunk = lane; chunk < CHUNKS; chunk += WORKGROUP) {
        let other = bests[b * CHUNKS + chunk];
        if other.score > top.score {
            top = other;
        }
    }
    best[lane] = top;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            let other = best[lane + half];
            let equal = other.score == best[lane].score && other.id < best[lane].id;
            if other.score > best[lane].score || equal {
                best[lane] = other;
            }
        }
        workgroupBarrier();
    }
    top = best[0];
    var id = top.id;
    if !GREEDY {
        var cut = INFINITELY_FAR;
        for (var kind = COUNT; kind <= DRAW; kind++) {
            if (kind == COUNT && sampling.top_k == 0u) || (kind == MASS && sampling.top_p == 0u) {
                continue;
            }
            var amount = select(sampling.top_p, sampling.top_k, kind == COUNT);
            if kind == DRAW {
                amount = random(sequences[b].position, b);
                cut = min(cut, sampling.farthest);
            }
            let key = find(kind, b, top.score, cut, amount, lane);
            if kind == DRAW {
                id = key;
            } else {
                cut = min(cut, key);
            }
        }
        // All have read the sequence, which is changed now.
        storageBarrier();
    }
    if lane == 0u {
        choose(b, id, top.score > EXCLUDED);
    }
}
