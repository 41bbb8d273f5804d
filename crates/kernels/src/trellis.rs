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
use crate::random::nth;
use crate::simd::vectorized;

/// Least and most bits of a register.
pub const STATE_BITS: std::ops::RangeInclusive<u32> = 12..=16;

/// Most bits of a value: of the smallest register four bits remain, a vector of states.
pub const MOST_BITS: u32 = 8;

/// States handled at once.
const LANES: usize = 1 << LANE_BITS;
const LANE_BITS: u32 = 4;

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
            let bytes = [nth(0, 2 * state), nth(0, 2 * state + 1)].map(u64::to_le_bytes);
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
        (nth(0, !sequence) >> 32) as u32 & self.mask()
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
        self.encode_with(Isa::detect(), (targets, scales), bits, start, codes, room);
    }

    /// [`encode`](Self::encode) at a level of instructions; all levels choose the same codes.
    ///
    /// # Panics
    /// As [`encode`](Self::encode).
    pub fn encode_with(
        &self,
        isa: Isa,
        (targets, scales): (&[f32], &[f32]),
        bits: u32,
        start: u32,
        codes: &mut [u8],
        room: &mut Room,
    ) {
        assert!(targets.len() == codes.len() && targets.len() == scales.len());
        assert!((1..=MOST_BITS).contains(&bits), "{bits} bits a value");
        let kept = self.values.len() >> bits;
        room.begin(self, bits, targets.len());
        room.best[start as usize % kept] = 0.0;
        let Room { values, best, next, from } = room;
        for ((target, scale), from) in targets.iter().zip(scales).zip(from.chunks_exact_mut(kept)) {
            advance(isa, values, best, (*target, *scale), next, from);
            std::mem::swap(best, next);
        }
        let least =
            |least: usize, state: usize| if best[state] < best[least] { state } else { least };
        let mut shared = (0..kept).fold(0, least);
        for (code, from) in codes.iter_mut().zip(from.chunks_exact(kept)).rev() {
            let state = usize::from(from[shared]) * kept + shared;
            *code = (state & ((1 << bits) - 1)) as u8;
            shared = state >> bits;
        }
    }
}

/// Memory that coding works in, to be used again for the next sequence.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// The table in the order of reading: by lanes of the states that forgetting leaves, then by
    /// the bits that are forgotten.
    values: Vec<f32>,
    /// The least error of a sequence that ends in any of the states which are one once their oldest
    /// bits are forgotten.
    best: Vec<f32>,
    /// The same, one value later.
    next: Vec<f32>,
    /// The oldest bits of the state with that error, for each step.
    from: Vec<u8>,
}

impl Room {
    /// Makes room for `length` values of `bits` bits, with no way into any state yet.
    fn begin(&mut self, trellis: &Trellis, bits: u32, length: usize) {
        let states = trellis.values.len();
        let kept = states >> bits;
        self.values.clear();
        for first in (0..kept).step_by(LANES) {
            for forgotten in trellis.values.chunks_exact(kept) {
                self.values.extend_from_slice(&forgotten[first..first + LANES]);
            }
        }
        self.best.clear();
        self.best.resize(kept, f32::INFINITY);
        self.next.resize(kept, 0.0);
        self.from.resize(kept * length, 0);
    }
}

vectorized! {
    /// One value more: a state's error is the `best` of those that it may have come from, and its
    /// own value's error for the `coded` target and scale. Of the states that are one once their
    /// oldest bits are forgotten the `next` error is the least, and `from` has those bits.
    fn advance(
        values: &[f32],
        best: &[f32],
        coded: (f32, f32),
        next: &mut [f32],
        from: &mut [u8],
    ) {
        match values.len() / best.len() {
            2 => advance_by::<8>(values, best, coded, next, from),
            4 => advance_by::<4>(values, best, coded, next, from),
            8 => advance_by::<2>(values, best, coded, next, from),
            _ => advance_by::<1>(values, best, coded, next, from),
        }
    }
}

/// [`advance`] where the states of a vector come from `ORIGINS` different ones.
#[inline(always)]
fn advance_by<const ORIGINS: usize>(
    values: &[f32],
    best: &[f32],
    (target, scale): (f32, f32),
    next: &mut [f32],
    from: &mut [u8],
) {
    let (kept, branches) = (next.len(), values.len() / next.len());
    let new_bits = branches.ilog2();
    let (values, _) = values.as_chunks::<LANES>();
    let (next, _) = next.as_chunks_mut::<LANES>();
    let (from, _) = from.as_chunks_mut::<LANES>();
    let chunks = next.iter_mut().zip(from).zip(values.chunks_exact(branches));
    for (chunk, ((next, from), values)) in chunks.enumerate() {
        let mut least = [f32::INFINITY; LANES];
        let mut oldest = [0_u32; LANES];
        for (bits, values) in values.iter().enumerate() {
            let first = (bits * kept + chunk * LANES) >> new_bits;
            let origins = &best[first..first + ORIGINS];
            let before: [f32; LANES] = std::array::from_fn(|lane| origins[lane * ORIGINS / LANES]);
            for lane in 0..LANES {
                let error = (-scale).mul_add(values[lane], target);
                let cost = error.mul_add(error, before[lane]);
                let less = cost < least[lane];
                least[lane] = if less { cost } else { least[lane] };
                oldest[lane] = if less { bits as u32 } else { oldest[lane] };
            }
        }
        *next = least;
        for lane in 0..LANES {
            from[lane] = oldest[lane] as u8;
        }
    }
}
