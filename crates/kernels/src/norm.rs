//! Normalisation of the rows of a matrix. The width of a row is the length of the gain, so that the
//! same functions normalise a hidden state or each of its heads.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::simd::{LANES, add_lanes, rows_per_task, vectorized};

/// `out = x / √(mean(x²) + eps) · gain` for each row (Zhang and Sennrich 2019).
///
/// # Panics
/// If `x` and `out` differ in length, or it is no multiple of `gain.len()`.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_with(Isa::detect(), x, gain, eps, out);
}

/// [`rms_norm`] for a level of instructions, or the machine's own where that is lower.
pub fn rms_norm_with(isa: Isa, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    check(x, gain, out);
    let chunk = rows_per_task(gain.len()) * gain.len().max(1);
    out.par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk))
        .for_each(|(out, x)| rms_norm_rows(isa, x, gain, eps, out));
}

/// [`rms_norm`] of `x` in place.
///
/// # Panics
/// If the length of `x` is no multiple of `gain.len()`.
pub fn rms_norm_in_place(x: &mut [f32], gain: &[f32], eps: f32) {
    rms_norm_in_place_with(Isa::detect(), x, gain, eps);
}

/// [`rms_norm_in_place`] for a level of instructions, or the machine's own where that is lower.
pub fn rms_norm_in_place_with(isa: Isa, x: &mut [f32], gain: &[f32], eps: f32) {
    check(x, gain, x);
    let chunk = rows_per_task(gain.len()) * gain.len().max(1);
    x.par_chunks_mut(chunk).for_each(|x| rms_norm_rows_in_place(isa, x, gain, eps));
}

/// [`rms_norm`] on this thread alone.
///
/// # Panics
/// As there.
pub fn rms_norm_here(isa: Isa, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    check(x, gain, out);
    rms_norm_rows(isa, x, gain, eps, out);
}

/// [`rms_norm_in_place`] on this thread alone.
///
/// # Panics
/// As there.
pub fn rms_norm_in_place_here(isa: Isa, x: &mut [f32], gain: &[f32], eps: f32) {
    check(x, gain, x);
    rms_norm_rows_in_place(isa, x, gain, eps);
}

/// [`layer_norm`] on this thread alone.
///
/// # Panics
/// As there.
pub fn layer_norm_here(
    isa: Isa,
    x: &[f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    check(x, gain, out);
    assert!(bias.is_none_or(|bias| bias.len() == gain.len()), "bias and gain differ in length");
    layer_norm_rows(isa, x, gain, bias, eps, out);
}

/// `out = (x - mean) / √(variance + eps) · gain + bias` for each row (Ba et al. 2016).
///
/// # Panics
/// If `x` and `out` differ in length, or it is no multiple of `gain.len()`, or `bias` has another
/// length than `gain`.
pub fn layer_norm(x: &[f32], gain: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    layer_norm_with(Isa::detect(), x, gain, bias, eps, out);
}

/// [`layer_norm`] for a level of instructions, or the machine's own where that is lower.
pub fn layer_norm_with(
    isa: Isa,
    x: &[f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    check(x, gain, out);
    assert!(bias.is_none_or(|bias| bias.len() == gain.len()), "bias and gain differ in length");
    let chunk = rows_per_task(gain.len()) * gain.len().max(1);
    out.par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk))
        .for_each(|(out, x)| layer_norm_rows(isa, x, gain, bias, eps, out));
}

fn check(x: &[f32], gain: &[f32], out: &[f32]) {
    assert_eq!(x.len(), out.len(), "the slices differ in length");
    assert!(x.is_empty() || x.len().is_multiple_of(gain.len()), "x does not have whole rows");
}

vectorized! {
    fn rms_norm_rows(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(gain.len()).zip(out.chunks_exact_mut(gain.len())) {
            let scale = inverse_root_mean_square(x, eps);
            for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                *out = x * scale * gain;
            }
        }
    }
}

vectorized! {
    fn rms_norm_rows_in_place(x: &mut [f32], gain: &[f32], eps: f32) {
        for x in x.chunks_exact_mut(gain.len()) {
            let scale = inverse_root_mean_square(x, eps);
            for (x, gain) in x.iter_mut().zip(gain) {
                *x = *x * scale * gain;
            }
        }
    }
}

vectorized! {
    fn layer_norm_rows(
        x: &[f32],
        gain: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        out: &mut [f32],
    ) {
        for (x, out) in x.chunks_exact(gain.len()).zip(out.chunks_exact_mut(gain.len())) {
            let count = gain.len() as f32;
            let mean = sum(x, |x| x) / count;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
            let scale = 1.0 / (variance + eps).sqrt();
            for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                *out = (x - mean) * scale * gain;
            }
            if let Some(bias) = bias {
                for (out, bias) in out.iter_mut().zip(bias) {
                    *out += bias;
                }
            }
        }
    }
}

#[inline(always)]
fn inverse_root_mean_square(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += term(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += term(*x);
    }
    add_lanes(sums)
}
