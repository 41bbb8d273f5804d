//! Activations rounded to 8 bits or fewer and back: what a layer computes with whose inputs are
//! rounded when the model is run.
//!
//! Scales and rounding are those of `compressed-tensors` for symmetric numbers, to the last bit: the
//! scale is the largest magnitude over half the range (127.5 for `int8`, 448 for E4M3), a quotient is
//! clamped and then rounded to the nearest number, ties to the even one.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::math::nearest_integer;
use crate::simd::{LANES, reduce, rows_per_task, vectorized};

/// The numbers that are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Integers of this many bits, from 2 to 8, in two's complement.
    Integers(u8),
    /// Floats with four bits of exponent and three of fraction, up to 448.
    E4M3,
}

impl Numbers {
    /// The least and the largest.
    fn range(self) -> (f32, f32) {
        match self {
            Self::Integers(bits) => {
                let half = f32::from(1_u16 << (bits - 1));
                (-half, half - 1.0)
            }
            Self::E4M3 => (-448.0, 448.0),
        }
    }

    /// The scale under which these numbers just hold values up to `largest`.
    pub fn scale_of(self, largest: f32) -> f32 {
        let (least, most) = self.range();
        let scale = largest / ((most - least) / 2.0);
        if scale == 0.0 { f32::EPSILON } else { scale }
    }

    fn round_here(self, isa: Isa, x: &mut [f32], scale: f32) {
        let (least, most) = self.range();
        match self {
            Self::Integers(_) => to_integers(isa, x, scale, least, most),
            Self::E4M3 => to_e4m3(isa, x, scale, most),
        }
    }

    /// Rounds each run of `width` values under a scale of its own. A run at the end may be shorter.
    ///
    /// # Panics
    /// If `width` is 0.
    pub fn round_runs(self, x: &mut [f32], width: usize) {
        self.round_runs_with(Isa::detect(), x, width);
    }

    /// [`round_runs`](Self::round_runs) for a level of instructions, or the machine's own where that
    /// is lower.
    ///
    /// # Panics
    /// As there.
    pub fn round_runs_with(self, isa: Isa, x: &mut [f32], width: usize) {
        assert!(width > 0, "runs without values");
        x.par_chunks_mut(rows_per_task(width) * width).for_each(|x| {
            for run in x.chunks_mut(width) {
                let scale = self.scale_of(largest_magnitude(isa, run));
                self.round_here(isa, run, scale);
            }
        });
    }

    /// Rounds all values under one scale, which is above 0.
    pub fn round_scaled(self, x: &mut [f32], scale: f32) {
        let isa = Isa::detect();
        x.par_chunks_mut(rows_per_task(1)).for_each(|x| self.round_here(isa, x, scale));
    }
}

vectorized! {
    fn largest_magnitude(x: &[f32]) -> f32 {
        let mut lanes = [0.0_f32; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for values in whole {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane = lane.max(value.abs());
            }
        }
        rest.iter().fold(reduce(lanes, f32::max), |largest, value| largest.max(value.abs()))
    }
}

vectorized! {
    fn to_integers(x: &mut [f32], scale: f32, least: f32, most: f32) {
        for value in x {
            *value = nearest_integer((*value / scale).clamp(least, most)) * scale;
        }
    }
}

vectorized! {
    fn to_e4m3(x: &mut [f32], scale: f32, most: f32) {
        for value in x {
            let quotient = (*value / scale).clamp(-most, most);
            // The exponent of its number, at least that of the smallest normal one, 2^-6.
            let exponent = (quotient.to_bits() >> 23 & 0xff).max(127 - 6);
            // As in `nearest_integer`, for steps of 2^(exponent - 3).
            let to_step = f32::from_bits((exponent + 20) << 23 | 1 << 22);
            *value = (quotient + to_step - to_step) * scale;
        }
    }
}
