//! Choosing the next token from logits.
//!
//! The order of the filters is that of transformers: repetition penalty,
//! temperature, top-k, top-p, min-p. Among what is left a token is drawn by its
//! probability, with a random number that depends on the seed, the sequence and
//! the position alone.
//!
//! # The same tokens everywhere
//!
//! A [`Session`](crate::Session) samples on its device where it can; the
//! [`Sampler`] here is the reference and serves every other decoder. So that both
//! give the same tokens from the same logits, whatever the device's exponential
//! and whatever the order of summation, only the first step is in floating point,
//! one correctly rounded operation at a time:
//!
//! - A token's *distance* is how far its logit lies below the best one's, divided
//!   by the temperature, as a `u32` in units of 2^-27. From 32 on (where a token
//!   is e^-32 times as likely as the best) it counts as infinite.
//! - Its *weight* is e^-distance in units of 2^-31, computed in integers; below
//!   that it is 0, and the token is never drawn. Sums of weights are exact.
//! - top-k, top-p and min-p each are a largest distance. So tokens of the same
//!   logit are kept or dropped together.
//! - The draw takes the first token, by id, at which the running sum of weights
//!   exceeds a random share of their total.

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
    /// probability, and those as likely as the last of them; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one's
    /// probability; 0 drops none.
    pub min_p: f32,
    /// Divides positive logits of tokens that occurred by this, and multiplies
    /// negative ones; 1 changes nothing. Those occurred that stand in the prompt, or were
    /// generated behind it; of what a continued session had before, those that stand in
    /// [`GenerateOptions::history`](crate::generate::GenerateOptions::history).
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

/// A distance that stands for infinity.
const INFINITELY_FAR: u32 = u32::MAX;

/// A score below that of every token: that of a logit that is no finite number.
const EXCLUDED: f32 = -1e37;

/// What [`SamplingOptions`] come to: the numbers that the device's sampler and
/// this one work with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rule {
    pub greedy: bool,
    /// 0 keeps all.
    pub top_k: u32,
    /// The share times 2^32; 0 keeps all.
    pub top_p: u32,
    /// Tokens at a larger distance are dropped.
    pub farthest: u32,
    /// A distance is a difference of scores times this, below `limit`.
    pub scale: f32,
    pub limit: f32,
    pub penalty: f32,
    pub inverse_penalty: f32,
    pub seed: [u32; 2],
}

impl Rule {
    /// Options in range stay what they are but for extremes, of temperature
    /// outside 1e-20 to 1e6 and of penalty outside 1e-6 to 1e6, beyond which
    /// nothing changes any more but the risk of overflow.
    fn new(options: &SamplingOptions) -> Self {
        let temperature = options.temperature.clamp(1e-20, 1e6);
        let penalty = options.repetition_penalty.clamp(1e-6, 1e6);
        let share = (f64::from(options.top_p) * 4_294_967_296.0) as u32;
        let least = -f64::from(options.min_p).ln() * 134_217_728.0;
        Rule {
            greedy: options.temperature == 0.0,
            top_k: u32::try_from(options.top_k).unwrap_or(u32::MAX),
            top_p: if options.top_p < 1.0 { share.max(1) } else { 0 },
            // A conversion to u32 saturates, and min_p = 0 gives infinity.
            farthest: least as u32,
            scale: 134_217_728.0 / temperature,
            limit: 32.0 * temperature,
            penalty,
            inverse_penalty: 1.0 / penalty,
            seed: [options.seed as u32, (options.seed >> 32) as u32],
        }
    }

    fn distance(&self, top: f32, score: f32) -> u32 {
        let difference = top - score;
        if difference >= self.limit {
            return INFINITELY_FAR;
        }
        (difference * self.scale).min(4_294_967_040.0) as u32
    }

    /// The random number of a draw, as a share of 2^32.
    fn random(&self, sequence: u32, position: u64) -> u32 {
        let counter = [position as u32, (position >> 32) as u32, sequence, 0];
        philox(counter, self.seed)[0]
    }
}

/// 2^31 times e^-d, rounded down, for a distance d in units of 2^-27: as
/// 2^-(n + f), by a polynomial of degree 6 in f (fitted at Chebyshev's points;
/// relative error 1e-8).
fn weight(distance: u32) -> u32 {
    const LOG2_E: u32 = 0xb8aa_3b2a;
    const SERIES: [u32; 6] = [
        2_977_044_447,
        1_031_763_206,
        238_367_376,
        41_218_952,
        5_547_538,
        493_577,
    ];
    let high = |a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32;
    let exponent = high(distance, LOG2_E);
    let (n, f) = (exponent >> 26, exponent << 6);
    let [.., last] = SERIES;
    let rest = SERIES.iter().rev().skip(1);
    let sum = rest.fold(last, |sum, c| c - high(sum, f));
    let significand = (1u32 << 31) - (high(sum, f) >> 1);
    significand.checked_shr(n).unwrap_or(0)
}

/// `total * share / 2^32`.
fn share_of(total: u64, share: u32) -> u64 {
    ((u128::from(total) * u128::from(share)) >> 32) as u64
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its probability relative to the most likely token's, times 2^31 and
    /// rounded down.
    pub weight: u32,
}

/// Chooses tokens by validated [`SamplingOptions`].
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    rule: Rule,
    /// Kept between calls to spare allocations.
    scores: Vec<f32>,
    distances: Vec<u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(options: SamplingOptions) -> Result<Self, SamplingError> {
        options.validate()?;
        Ok(Sampler {
            rule: Rule::new(&options),
            options,
            scores: Vec::new(),
            distances: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// The options in use.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    pub(crate) fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The token that follows `history` (the prompt and what was generated),
    /// given the logits of all tokens. `sequence` and `position` select the random
    /// number; no two draws of a run share both.
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
        let total: u64 = self.candidates.iter().map(|c| u64::from(c.weight)).sum();
        let aim = share_of(total, self.rule.random(sequence, position));
        let mut sum = 0;
        let drawn = self.candidates.iter().find(|candidate| {
            sum += u64::from(candidate.weight);
            sum > aim
        });
        drawn
            .map(|candidate| candidate.id)
            .ok_or(SamplingError::NoFiniteLogit { sequence, position })
    }

    /// The tokens that may be chosen, by id; only finite logits take part. At
    /// temperature 0 it is one, the lowest of those with the largest logit.
    pub fn candidates(&mut self, logits: &[f32], history: &[u32]) -> &[Candidate] {
        self.candidates.clear();
        self.score(logits, history);
        let Some((best, top)) = best(&self.scores) else {
            return &self.candidates;
        };
        let rule = &self.rule;
        if rule.greedy {
            self.candidates.push(Candidate {
                id: best,
                weight: weight(0),
            });
            return &self.candidates;
        }
        let kept = (0u32..).zip(self.scores.iter().map(|x| rule.distance(top, *x)));
        let kept = kept.filter(|(_, distance)| *distance != INFINITELY_FAR);
        self.distances.clear();
        self.distances
            .extend(kept.clone().map(|(_, distance)| distance));
        let cut = top_k(&mut self.distances, rule.top_k);
        let cut = top_p(&mut self.distances, cut, rule.top_p).min(rule.farthest);
        let kept = kept.filter(|(_, distance)| *distance <= cut);
        let candidates = kept.map(|(id, distance)| Candidate {
            id,
            weight: weight(distance),
        });
        self.candidates.extend(candidates.filter(|c| c.weight > 0));
        &self.candidates
    }

    /// The logits after the repetition penalty. An infinite one is as broken as
    /// NaN is; a masked one is minus infinity.
    fn score(&mut self, logits: &[f32], history: &[u32]) {
        let finite = |x: &f32| match x.is_finite() {
            true => x.clamp(-1e30, 1e30),
            false => EXCLUDED,
        };
        self.scores.clear();
        self.scores.extend(logits.iter().map(finite));
        if self.options.repetition_penalty == 1.0 {
            return;
        }
        let mut seen = history.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let score = self.scores.get_mut(id as usize);
            let Some(score) = score.filter(|x| **x > EXCLUDED) else {
                continue;
            };
            *score *= match *score > 0.0 {
                true => self.rule.inverse_penalty,
                false => self.rule.penalty,
            };
        }
    }
}

/// The largest score and its token, the lowest of equals.
fn best(scores: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    let mut top = EXCLUDED;
    for (id, score) in (0u32..).zip(scores.iter().copied()) {
        if score > top {
            top = score;
            best = Some((id, score));
        }
    }
    best
}

/// The k-th smallest distance; the order of `distances` changes.
fn top_k(distances: &mut [u32], k: u32) -> u32 {
    match k as usize {
        0 => INFINITELY_FAR,
        k if k > distances.len() => INFINITELY_FAR,
        k => *distances.select_nth_unstable(k - 1).1,
    }
}

/// The least distance up to which the weights, among those up to `cut`, hold the
/// share.
fn top_p(distances: &mut Vec<u32>, cut: u32, share: u32) -> u32 {
    if share == 0 {
        return cut;
    }
    distances.retain(|distance| *distance <= cut);
    distances.sort_unstable();
    let weights = || distances.iter().map(|d| (*d, u64::from(weight(*d))));
    let total: u64 = weights().map(|(_, weight)| weight).sum();
    let wanted = share_of(total, share);
    let mut sum = 0;
    let last = weights().find(|(_, weight)| {
        sum += weight;
        sum >= wanted.max(1)
    });
    last.map_or(cut, |(distance, _)| distance)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials() {
        assert_eq!(weight(0), 1 << 31);
        assert_eq!(weight(INFINITELY_FAR), 0);
        for step in 0..=100_000u32 {
            let distance = step * 30_000;
            let exact = (-f64::from(distance) / 134_217_728.0).exp() * 2_147_483_648.0;
            let error = f64::from(weight(distance)) - exact;
            assert!(error.abs() <= 1.0 + exact * 2e-8, "{distance}: {error}");
        }
    }

    #[test]
    fn extreme_options_stay_finite() {
        for (temperature, penalty) in [(1e-38, f32::MIN_POSITIVE), (f32::MAX, f32::MAX)] {
            let rule = Rule::new(&SamplingOptions {
                temperature,
                repetition_penalty: penalty,
                ..SamplingOptions::default()
            });
            assert!(rule.scale.is_finite() && rule.limit.is_finite());
            assert_eq!(rule.distance(3.0, 3.0), 0);
            assert_eq!(rule.distance(-1e30, EXCLUDED), INFINITELY_FAR);
            assert!((1e30 * rule.penalty).is_finite());
            assert!(-1e30 * rule.penalty > EXCLUDED);
        }
    }
}
