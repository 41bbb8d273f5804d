//! Trellis-coded quantization: a sequence of values coded together, `bits` a value.
//!
//! A register of `state_bits` bits takes in the `bits` new ones of each value and forgets as many
//! old ones; the register's content, looked up in a table of pseudo-random Gaussian numbers, is the
//! value. Any value so has `2^bits` choices, which depend on the choices before it, and Viterbi's
//! algorithm finds the sequence of choices with the least squared error: near the rate-distortion
//! bound of a Gaussian source, where rounding one by one cannot come (Marcellin and Fischer, 1990;
//! Tseng et al., 2024, arXiv 2406.11235, the "bitshift trellis"). Decoding needs the last
//! `state_bits` bits and nothing else.

use crate::isa::Isa;
use crate::simd::vectorized;

/// Least and most bits of a register.
pub const STATE_BITS: std::ops::RangeInclusive<u32> = 12..=16;

/// Most bits of a value: of the smallest register four bits remain, a vector of states.
pub const MOST_BITS: u32 = 8;

/// States handled at once.
const LANES: usize = 16;

/// The table of a register's values, and the room that coding needs.
#[derive(Debug, Clone)]
pub struct Trellis {
    state_bits: u32,
    values: Vec<f32>,
}

impl Trellis {
    /// A trellis with a register of `state_bits` bits, clamped to [`STATE_BITS`].
    ///
    /// The table is the same on every machine: each value is a sum of twelve pseudo-random bytes,
    /// centred and divided by 256, of variance 1 to five digits.
    #[must_use]
    pub fn new(state_bits: u32) -> Self {
        let state_bits = state_bits.clamp(*STATE_BITS.start(), *STATE_BITS.end());
        let value = |state: u64| {
            let bytes = [hash(2 * state), hash(2 * state + 1)].map(u64::to_le_bytes);
            let sum: u32 = bytes.as_flattened()[..12].iter().map(|byte| u32::from(*byte)).sum();
            (sum as f32 - 1530.0) / 256.0
        };
        Self { state_bits, values: (0..1 << state_bits).map(value).collect() }
    }

    /// Bits of the register.
    #[must_use]
    pub fn state_bits(&self) -> u32 {
        self.state_bits
    }

    /// The register before the first value of sequence number `sequence`: another one for each, so
    /// that no place of all sequences has the same few choices.
    #[must_use]
    pub fn start(&self, sequence: u64) -> u32 {
        (hash(!sequence) >> 32) as u32 & self.mask()
    }

    /// The register after `code`, of `bits` bits, has come in.
    #[must_use]
    pub fn next(&self, state: u32, code: u8, bits: u32) -> u32 {
        ((state << bits) | u32::from(code)) & self.mask()
    }

    /// The value of a register's content.
    #[must_use]
    pub fn value(&self, state: u32) -> f32 {
        self.values[(state & self.mask()) as usize]
    }

    fn mask(&self) -> u32 {
        (1 << self.state_bits) - 1
    }

    /// Chooses the codes, of `bits` bits each (1 to [`MOST_BITS`]), whose values times `scales` have
    /// the least squared distance from `targets`, the register being `start` at first.
    ///
    /// # Panics
    /// When the slices differ in length or `bits` is out of range.
    pub fn encode(
        &self,
        targets: &[f32],
        scales: &[f32],
        bits: u32,
        start: u32,
        codes: &mut [u8],
        room: &mut Room,
    ) {
        assert!(targets.len() == codes.len() && targets.len() == scales.len());
        assert!((1..=MOST_BITS).contains(&bits), "{bits} bits a value");
        let isa = Isa::detect();
        let states = self.values.len();
        let kept = states >> bits;
        room.costs.clear();
        room.costs.resize(states, f32::INFINITY);
        room.costs[(start & self.mask()) as usize] = 0.0;
        room.best.resize(kept, 0.0);
        room.from.resize(kept * targets.len(), 0);
        for ((target, scale), from) in
            targets.iter().zip(scales).zip(room.from.chunks_exact_mut(kept))
        {
            merge(isa, &room.costs, &mut room.best, from);
            branch(isa, &room.best, &self.values, *target, *scale, &mut room.costs);
        }
        let least = |best: usize, state: usize| match room.costs[state] < room.costs[best] {
            true => state,
            false => best,
        };
        let mut state = (0..states).fold(0, least);
        for (step, code) in codes.iter_mut().enumerate().rev() {
            *code = (state & ((1 << bits) - 1)) as u8;
            let shared = state >> bits;
            let oldest = usize::from(room.from[step * kept + shared]);
            state = oldest * kept + shared;
        }
    }
}

/// Memory that coding works in, to be used again for the next sequence.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// The least error of a sequence that ends in each state.
    costs: Vec<f32>,
    /// The least of those that differ only in the bits that are forgotten next.
    best: Vec<f32>,
    /// Those bits, for each step.
    from: Vec<u8>,
}

/// Pseudo-random bits of a number (the finalizer of SplitMix64).
fn hash(number: u64) -> u64 {
    let mut x = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

vectorized! {
    /// The cheapest of the states that are one once their oldest bits are forgotten, and those bits.
    fn merge(costs: &[f32], best: &mut [f32], from: &mut [u8]) {
        let kept = best.len();
        let (best, _) = best.as_chunks_mut::<LANES>();
        let (from, _) = from.as_chunks_mut::<LANES>();
        for (chunk, (best, from)) in best.iter_mut().zip(from).enumerate() {
            let mut least = [f32::INFINITY; LANES];
            let mut oldest = [0_u32; LANES];
            for (bits, costs) in costs.chunks_exact(kept).enumerate() {
                let costs = &costs.as_chunks::<LANES>().0[chunk];
                for lane in 0..LANES {
                    let less = costs[lane] < least[lane];
                    least[lane] = if less { costs[lane] } else { least[lane] };
                    oldest[lane] = if less { bits as u32 } else { oldest[lane] };
                }
            }
            *best = least;
            for lane in 0..LANES {
                from[lane] = oldest[lane] as u8;
            }
        }
    }
}

/// The costs of all states that follow: new bits come in below the kept ones. In two passes, since
/// the compiler makes vectors of each.
fn branch(isa: Isa, best: &[f32], values: &[f32], target: f32, scale: f32, costs: &mut [f32]) {
    repeat(isa, best, costs);
    add_errors(isa, values, target, scale, costs);
}

vectorized! {
    /// Each of `best` as often as `costs` are more.
    fn repeat(best: &[f32], costs: &mut [f32]) {
        match costs.len() / best.len() {
            2 => repeat_by::<2>(best, costs),
            4 => repeat_by::<4>(best, costs),
            8 => repeat_by::<8>(best, costs),
            16 => repeat_by::<16>(best, costs),
            32 => repeat_by::<32>(best, costs),
            64 => repeat_by::<64>(best, costs),
            128 => repeat_by::<128>(best, costs),
            branches => {
                let costs = costs.chunks_exact_mut(branches);
                costs.zip(best).for_each(|(costs, best)| costs.fill(*best));
            }
        }
    }
}

#[inline(always)]
fn repeat_by<const TIMES: usize>(best: &[f32], costs: &mut [f32]) {
    let (costs, _) = costs.as_chunks_mut::<TIMES>();
    for (costs, best) in costs.iter_mut().zip(best) {
        *costs = [*best; TIMES];
    }
}

vectorized! {
    /// `costs += (target − scale · values)²`.
    fn add_errors(values: &[f32], target: f32, scale: f32, costs: &mut [f32]) {
        for (cost, value) in costs.iter_mut().zip(values) {
            let error = target - scale * value;
            *cost += error * error;
        }
    }
}
