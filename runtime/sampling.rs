//! Choosing the next token from logits.
//!
//! The order of the filters is that of transformers: repetition penalty,
//! temperature, top-k, top-p, min-p. Among what is left a token is drawn with the
//! Gumbel trick: the largest of `logit / temperature + g`, where `g` depends on
//! the seed, the sequence, the position and the token alone. Unlike a search in
//! a cumulative sum this needs no order of summation, so a seed gives the same
//! tokens on the host and on any device, as far as the logits agree.

/// Why options or logits cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// An option is outside its range.
    #[error("{option} = {value} is out of range: {range}")]
    Range {
        /// The option as on the command line.
        option: &'static str,
        /// What was given.
        value: f32,
        /// What is allowed.
        range: &'static str,
    },
    /// No logit is a number above minus infinity.
    #[error("sequence {sequence} has no finite logit at position {position}")]
    NoFiniteLogit {
        /// The sequence.
        sequence: u32,
        /// The position.
        position: u64,
    },
}

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 takes the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens, and those as likely as the last of
    /// them; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of most likely tokens that holds this share of the
    /// probability; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one's
    /// probability; 0 drops none.
    pub min_p: f32,
    /// Divides positive logits of tokens that occurred by this, and multiplies
    /// negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Selects the random numbers.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// The most likely token.
    fn default() -> Self {
        SamplingOptions {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingOptions {
    /// Whether every option is within its range.
    ///
    /// # Errors
    /// [`SamplingError::Range`] for the first that is not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let rows = [
            (
                "--temperature",
                self.temperature,
                self.temperature.is_finite() && self.temperature >= 0.0,
                "0 or more, and finite",
            ),
            (
                "--top-p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0, at most 1",
            ),
            (
                "--min-p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "0 to 1",
            ),
            (
                "--repetition-penalty",
                self.repetition_penalty,
                self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
                "above 0, and finite",
            ),
        ];
        match rows.into_iter().find(|(_, _, valid, _)| !valid) {
            None => Ok(()),
            Some((option, value, _, range)) => Err(SamplingError::Range {
                option,
                value,
                range,
            }),
        }
    }
}

/// Chooses tokens by validated [`SamplingOptions`].
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    /// Kept between calls to spare allocations.
    candidates: Vec<(u32, f32)>,
    seen: Vec<u32>,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(options: SamplingOptions) -> Result<Self, SamplingError> {
        options.validate()?;
        Ok(Sampler {
            options,
            candidates: Vec::new(),
            seen: Vec::new(),
        })
    }

    /// The options in use.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// The token that follows `history` (the prompt and what was generated),
    /// given the logits of all tokens. `sequence` and `position` select the random
    /// numbers; no two draws of a run share both.
    ///
    /// # Errors
    /// When no logit is finite.
    pub fn sample(
        &mut self,
        logits: &[f32],
        history: &[u32],
        sequence: u32,
        position: u64,
    ) -> Result<u32, SamplingError> {
        self.candidates(logits, history);
        let candidates = self.candidates.iter().copied();
        let chosen = if self.options.temperature == 0.0 {
            best(candidates)
        } else {
            let mut noise = Gumbel::new(self.options.seed, sequence, position);
            let mut most = f32::NEG_INFINITY;
            best(candidates.filter_map(|(id, x)| {
                // Most cannot win whatever their noise: that spares its cost.
                if x + Gumbel::MOST < most {
                    return None;
                }
                let noisy = x + noise.of(id);
                most = most.max(noisy);
                Some((id, noisy))
            }))
        };
        chosen.ok_or(SamplingError::NoFiniteLogit { sequence, position })
    }

    /// The tokens that may be chosen, with their logits after penalty and
    /// temperature. Only finite logits take part.
    pub fn candidates(&mut self, logits: &[f32], history: &[u32]) -> &[(u32, f32)] {
        let options = &self.options;
        let kept = &mut self.candidates;
        kept.clear();
        kept.extend((0u32..).zip(logits.iter().copied()));
        if options.repetition_penalty != 1.0 {
            self.seen.clear();
            self.seen.extend_from_slice(history);
            self.seen.sort_unstable();
            self.seen.dedup();
            for id in &self.seen {
                if let Some((_, x)) = kept.get_mut(*id as usize) {
                    *x = match *x > 0.0 {
                        true => *x / options.repetition_penalty,
                        false => *x * options.repetition_penalty,
                    };
                }
            }
        }
        // An infinite logit is as broken as NaN is; a masked one is minus infinity.
        kept.retain(|(_, x)| x.is_finite());
        if options.temperature == 0.0 {
            return kept;
        }
        for (_, x) in kept.iter_mut() {
            *x /= options.temperature;
        }
        kept.retain(|(_, x)| x.is_finite());
        if options.top_k > 0 {
            top_k(kept, options.top_k);
        }
        if options.top_p < 1.0 {
            top_p(kept, options.top_p);
        }
        if options.min_p > 0.0 {
            let most = kept.iter().map(|(_, x)| *x).fold(f32::MIN, f32::max);
            let least = most + options.min_p.ln();
            kept.retain(|(_, x)| *x >= least);
        }
        kept
    }
}

/// The largest; of equals the lowest id, which comes first.
fn best(candidates: impl Iterator<Item = (u32, f32)>) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, x) in candidates {
        if best.is_none_or(|(lowest, most)| x > most || (x == most && id < lowest)) {
            best = Some((id, x));
        }
    }
    best.map(|(id, _)| id)
}

fn top_k(kept: &mut Vec<(u32, f32)>, k: usize) {
    if k >= kept.len() {
        return;
    }
    let mut values: Vec<f32> = kept.iter().map(|(_, x)| *x).collect();
    let (_, least, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let least = *least;
    kept.retain(|(_, x)| *x >= least);
}

fn top_p(kept: &mut Vec<(u32, f32)>, p: f32) {
    kept.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    let Some((_, most)) = kept.first().copied() else {
        return;
    };
    let weight = |x: f32| f64::from(x - most).exp();
    let total: f64 = kept.iter().map(|(_, x)| weight(*x)).sum();
    let wanted = f64::from(p) * total;
    let mut sum = 0.0;
    let mut count = 0;
    for (_, x) in kept.iter() {
        sum += weight(*x);
        count += 1;
        if sum >= wanted {
            break;
        }
    }
    kept.truncate(count);
}

/// Gumbel noise for each token of one draw. Token `id` takes word `id % 4` of
/// `philox([id / 4, position, position >> 32, sequence], seed)`.
struct Gumbel {
    key: [u32; 2],
    sequence: u32,
    position: [u32; 2],
    /// The block of four tokens computed last, with its words.
    block: Option<(u32, [u32; 4])>,
}

impl Gumbel {
    /// No noise is larger: that of the smallest `v` is 22.87.
    const MOST: f32 = 23.0;

    fn new(seed: u64, sequence: u32, position: u64) -> Self {
        Gumbel {
            key: [seed as u32, (seed >> 32) as u32],
            sequence,
            position: [position as u32, (position >> 32) as u32],
            block: None,
        }
    }

    /// `-ln(-ln(1 - v))` for `v` uniform in (0, 1): small `v`, of which floats
    /// have many, make large noise.
    fn of(&mut self, id: u32) -> f32 {
        let words = match self.block {
            Some((block, words)) if block == id / 4 => words,
            _ => {
                let [low, high] = self.position;
                let words = philox([id / 4, low, high, self.sequence], self.key);
                self.block = Some((id / 4, words));
                words
            }
        };
        let v = (f64::from(words[id as usize % 4]) + 0.5) / 4_294_967_296.0;
        -(-(-v).ln_1p()).ln() as f32
    }
}

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
/// 2011): four random words for a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for round in 0..10 {
        if round > 0 {
            k0 = k0.wrapping_add(WEYL[0]);
            k1 = k1.wrapping_add(WEYL[1]);
        }
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        let (next0, next2) = ((p1 >> 32) as u32 ^ c1 ^ k0, (p0 >> 32) as u32 ^ c3 ^ k1);
        (c0, c1, c2, c3) = (next0, p1 as u32, next2, p0 as u32);
    }
    [c0, c1, c2, c3]
}
