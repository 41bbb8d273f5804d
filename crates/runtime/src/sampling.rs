//! Choosing the next token: greedily, or at random from the likely ones.
//!
//! A row of logits goes through penalties, temperature, top-k, top-p and min-p, in this order, which
//! is that of transformers; each of the last three sees only what the one before it has left. The
//! n-th random number is keyed by the seed and n, so that a sequence is the same whatever else is
//! generated beside it.

use crate::RuntimeError;
use lapidary_kernels::random;
use lapidary_kernels::softmax::Summary;
use std::cmp::Ordering;
use std::collections::HashMap;

/// How many of the most likely tokens are sorted at first; four times as many while they do not
/// suffice.
const FIRST_RANKED: usize = 64;

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f32,
    /// Only the `k` most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that have this probability together; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this many times as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Logits of tokens in the prompt or the answer are divided by it where positive, multiplied
    /// where negative (CTRL, Keskar et al. 2019); 1 for none.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit for each time that it is in the answer.
    pub frequency_penalty: f32,
    /// Subtracted from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Added to the logits of tokens.
    pub bias: Vec<(u32, f32)>,
    /// Key of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            bias: vec![],
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// The first that is out of it.
    pub fn check(&self) -> Result<(), RuntimeError> {
        let within = |name: &'static str, value: f32, lowest: f32, highest: f32| {
            if (lowest..=highest).contains(&value) {
                return Ok(());
            }
            let range = match lowest {
                f32::MIN_POSITIVE => format!("above 0 and at most {highest}"),
                _ => format!("from {lowest} to {highest}"),
            };
            let problem = format!("must be {range}, not {value}");
            Err(RuntimeError::Parameter { name, problem })
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        self.bias.iter().try_for_each(|(_, bias)| within("logit_bias", *bias, -100.0, 100.0))
    }

    /// Whether logits are taken as the model gives them.
    fn is_plain(&self) -> bool {
        self.repetition_penalty == 1.0
            && self.frequency_penalty == 0.0
            && self.presence_penalty == 0.0
            && self.bias.is_empty()
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// How often each token of the prompt and the answer stands in the answer.
    seen: HashMap<u32, u32>,
    /// Random numbers drawn.
    drawn: u64,
    room: Room,
}

/// Buffers that are used again for every token.
#[derive(Debug, Default)]
struct Room {
    logits: Vec<f32>,
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler for a sequence that begins with these tokens.
    ///
    /// # Errors
    /// When a parameter is out of range.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Result<Self, RuntimeError> {
        sampling.check()?;
        let seen = match sampling.is_plain() {
            true => HashMap::new(),
            false => prompt.iter().map(|token| (*token, 0)).collect(),
        };
        Ok(Self { sampling, seen, drawn: 0, room: Room::default() })
    }

    /// The next token, which counts as part of the answer from now on.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, RuntimeError> {
        let plain = self.sampling.is_plain();
        let greedy = self.sampling.temperature == 0.0;
        let mut room = std::mem::take(&mut self.room);
        let chosen = if plain && greedy {
            likeliest(logits)
        } else {
            room.logits.clear();
            room.logits.extend_from_slice(logits);
            self.penalize(&mut room.logits);
            if greedy { likeliest(&room.logits) } else { self.draw(&mut room) }
        };
        self.room = room;
        let chosen = chosen?;
        if !plain {
            *self.seen.entry(chosen).or_default() += 1;
        }
        Ok(chosen)
    }

    fn penalize(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } =
            self.sampling;
        for (token, bias) in &self.sampling.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, count) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = match *logit > 0.0 {
                true => *logit / repetition_penalty,
                false => *logit * repetition_penalty,
            };
            if *count > 0 {
                *logit -= frequency_penalty * *count as f32 + presence_penalty;
            }
        }
    }

    /// A token at random.
    fn draw(&mut self, room: &mut Room) -> Result<u32, RuntimeError> {
        let Sampling { temperature, top_k, top_p, min_p, seed, .. } = self.sampling;
        let top = room.logits[likeliest(&room.logits)? as usize];
        // The largest becomes 0 first, so that a small temperature does not make infinities.
        room.logits.iter_mut().for_each(|logit| *logit = (*logit - top) / temperature);
        let mut ranking = Ranking::new(&room.logits, &mut room.order);
        let count = match top_k {
            0 => room.logits.len(),
            k => k.min(room.logits.len()),
        };
        let whole: f64 = match top_k {
            0 => Summary::of(&room.logits).log_sum_exp.exp(),
            _ => (0..count).map(|rank| ranking.weight(rank)).sum(),
        };
        let key = random::mix(seed).wrapping_add(self.drawn);
        self.drawn += 1;
        let share = random::unit(key);
        if top_p >= 1.0 && min_p == 0.0 {
            return Ok(ranking.at(share * whole, count));
        }
        // The tokens that are left are the first of the ranking; the first is always among them.
        let (mut kept, mut mass) = (0, 0.0);
        while kept < count && (kept == 0 || mass < f64::from(top_p) * whole) {
            let weight = ranking.weight(kept);
            if kept > 0 && weight < f64::from(min_p) {
                break;
            }
            mass += weight;
            kept += 1;
        }
        Ok(ranking.at(share * mass, kept))
    }
}

/// The largest logit, the first of equals.
fn likeliest(logits: &[f32]) -> Result<u32, RuntimeError> {
    let Summary { argmax, log_sum_exp } = Summary::of(logits);
    match logits.get(argmax) {
        Some(_) if log_sum_exp.is_finite() => Ok(argmax as u32),
        _ => Err(RuntimeError::NotFinite),
    }
}

/// Tokens by falling probability, equals by rising id; sorted only as far as they are asked for.
pub(crate) struct Ranking<'a> {
    logits: &'a [f32],
    order: &'a mut Vec<u32>,
    sorted: usize,
}

impl<'a> Ranking<'a> {
    pub(crate) fn new(logits: &'a [f32], order: &'a mut Vec<u32>) -> Self {
        order.clear();
        order.extend(0..logits.len() as u32);
        Self { logits, order, sorted: 0 }
    }

    /// The token of this rank, which must be less than their number.
    pub(crate) fn token(&mut self, rank: usize) -> u32 {
        while rank >= self.sorted {
            let sorted = self.sorted;
            let wanted = (4 * sorted).max(FIRST_RANKED).min(self.order.len());
            let logits = self.logits;
            let falling = |a: &u32, b: &u32| -> Ordering {
                logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
            };
            let rest = &mut self.order[sorted..];
            if wanted - sorted < rest.len() {
                rest.select_nth_unstable_by(wanted - sorted, falling);
            }
            rest[..wanted - sorted].sort_unstable_by(falling);
            self.sorted = wanted;
        }
        self.order[rank]
    }

    /// `exp` of the logit of this rank.
    fn weight(&mut self, rank: usize) -> f64 {
        let token = self.token(rank);
        f64::from(self.logits[token as usize]).exp()
    }

    /// The first of `count` tokens by which `mass` is used up; the last, where rounding leaves some.
    fn at(&mut self, mut mass: f64, count: usize) -> u32 {
        for rank in 0..count.saturating_sub(1) {
            mass -= self.weight(rank);
            if mass < 0.0 {
                return self.token(rank);
            }
        }
        self.token(count.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests;
