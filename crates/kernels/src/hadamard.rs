//! The fast Walsh–Hadamard transform, and orthogonal matrices of any width made from it.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::random::nth;
use crate::simd::{LANES, rows_per_task, vectorized};

/// `x ← x H` for each run of `width` elements, `H` the Hadamard matrix of Sylvester over `√width`:
/// `H[i, j] = (−1)^popcount(i & j) / √width`, symmetric, orthogonal, its own inverse.
///
/// # Panics
/// If `width` is no power of two, or `x` does not have whole runs of it.
pub fn hadamard(x: &mut [f32], width: usize) {
    hadamard_with(Isa::detect(), x, width);
}

/// [`hadamard`] for a level of instructions, or the machine's own where that is lower.
///
/// # Panics
/// As [`hadamard`].
pub fn hadamard_with(isa: Isa, x: &mut [f32], width: usize) {
    assert!(width.is_power_of_two(), "{width} is no power of two");
    assert!(x.len().is_multiple_of(width), "x does not have whole runs of {width}");
    let chunk = rows_per_task(width) * width;
    x.par_chunks_mut(chunk).for_each(|x| hadamard_runs(isa, x, width));
}

vectorized! {
    fn hadamard_runs(x: &mut [f32], width: usize) {
        let scale = 1.0 / (width as f32).sqrt();
        for run in x.chunks_exact_mut(width) {
            let mut half = 1;
            // Steps within a register have loops of known length.
            if width >= LANES {
                for lanes in run.as_chunks_mut::<LANES>().0 {
                    butterflies(lanes);
                }
                half = LANES;
            }
            while half < width {
                for pair in run.chunks_exact_mut(2 * half) {
                    let (left, right) = pair.split_at_mut(half);
                    for (a, b) in left.iter_mut().zip(right) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                half *= 2;
            }
            run.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// The transform of [`LANES`] elements, without its scale.
#[inline(always)]
fn butterflies(x: &mut [f32; LANES]) {
    let mut half = 1;
    while half < LANES {
        let before = *x;
        for (index, x) in x.iter_mut().enumerate() {
            let other = before[index ^ half];
            *x = if index & half == 0 { before[index] + other } else { other - before[index] };
        }
        half *= 2;
    }
}

/// A random orthogonal matrix `Q` of any width that spreads every channel over all others: signs,
/// then a Hadamard matrix of the largest power of two that divides the width, times (Kronecker) the
/// discrete Hartley matrix of the odd rest. Its elements are at most `√(2 / width)`.
///
/// `H ⊗ cas(2π a c / m) / √m` is orthogonal for every odd `m`, where Hadamard matrices are known
/// for some widths only.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// ±1 for each channel.
    signs: Vec<f32>,
    /// Side of the Hartley matrix.
    odd: usize,
    /// Row-major `[odd, odd]`, symmetric.
    hartley: Vec<f32>,
}

impl Rotation {
    /// The rotation of this width for a key; width 0 rotates nothing.
    pub fn new(width: usize, key: u64) -> Self {
        let odd = width >> width.trailing_zeros().min(usize::BITS - 1);
        let angle = |at: usize| {
            let turn = (at / odd) * (at % odd) % odd;
            std::f64::consts::TAU * turn as f64 / odd as f64
        };
        let hartley = |at: usize| {
            let (sine, cosine) = angle(at).sin_cos();
            ((sine + cosine) / (odd as f64).sqrt()) as f32
        };
        Self { signs: signs(width, key), odd, hartley: (0..odd * odd).map(hartley).collect() }
    }

    /// Channels.
    pub fn width(&self) -> usize {
        self.signs.len()
    }

    /// `x ← x Q` for each run of `width` elements.
    ///
    /// # Panics
    /// If `x` does not have whole runs.
    pub fn apply(&self, x: &mut [f32]) {
        self.each(x, |run, spare| {
            run.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
            self.mix(run, spare);
        });
    }

    /// `x ← x Qᵀ` for each run of `width` elements: undoes [`apply`](Self::apply).
    ///
    /// # Panics
    /// If `x` does not have whole runs.
    pub fn undo(&self, x: &mut [f32]) {
        self.each(x, |run, spare| {
            self.mix(run, spare);
            run.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        });
    }

    fn each(&self, x: &mut [f32], work: impl Fn(&mut [f32], &mut Vec<f32>) + Sync) {
        let width = self.width();
        if width == 0 {
            return;
        }
        assert!(x.len().is_multiple_of(width), "x does not have whole runs of {width}");
        x.par_chunks_mut(rows_per_task(width) * width).for_each(|runs| {
            let mut spare = vec![];
            runs.chunks_exact_mut(width).for_each(|run| work(run, &mut spare));
        });
    }

    /// The symmetric part of `Q`, all but the signs.
    fn mix(&self, run: &mut [f32], spare: &mut Vec<f32>) {
        let power = run.len() / self.odd;
        let isa = Isa::detect();
        hadamard_runs(isa, run, power);
        if self.odd > 1 {
            spare.clear();
            spare.extend_from_slice(run);
            mix_odd(isa, spare, &self.hartley, power, run);
        }
    }
}

vectorized! {
    /// `out[c, ·] = Σ_a hartley[a, c] · x[a, ·]`, rows of `power` elements.
    fn mix_odd(x: &[f32], hartley: &[f32], power: usize, out: &mut [f32]) {
        let odd = x.len() / power;
        out.fill(0.0);
        for (c, out) in out.chunks_exact_mut(power).enumerate() {
            for (a, x) in x.chunks_exact(power).enumerate() {
                let factor = hartley[a * odd + c];
                for (out, x) in out.iter_mut().zip(x) {
                    *out += factor * x;
                }
            }
        }
    }
}

/// Random signs for a key (`SplitMix64`), the same on every machine.
fn signs(count: usize, key: u64) -> Vec<f32> {
    (0..count as u64).map(|index| if nth(key, index) >> 63 == 0 { 1.0 } else { -1.0 }).collect()
}
