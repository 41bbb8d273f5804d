//! Rounding of activations against the definition of the numbers, with the same bits at every level.

mod common;

use common::{bits, numbers, on_threads};
use lapidary_kernels::isa::Isa;
use lapidary_kernels::rounding::Numbers;
use proptest::prelude::*;

/// All numbers, and half their range.
fn all(numbers: Numbers) -> (Vec<f64>, f64) {
    match numbers {
        Numbers::Integers(bits) => {
            let half = 1_i32 << (bits - 1);
            ((-half..half).map(f64::from).collect(), f64::from(2 * half - 1) / 2.0)
        }
        Numbers::E4M3 => {
            let magnitude = |code: i32| match (code >> 3, f64::from(code & 7)) {
                (0, fraction) => fraction * 2.0_f64.powi(-9),
                (exponent, fraction) => (8.0 + fraction) * 2.0_f64.powi(exponent - 10),
            };
            // The last code is no number.
            let magnitudes = (0..0x7f).map(magnitude);
            let negative = magnitudes.clone().skip(1).map(|value| -value);
            (negative.chain(magnitudes).collect(), 448.0)
        }
    }
}

/// Each run by trying every number; of two as near, either.
fn check(kind: Numbers, x: &[f32], width: usize, rounded: &[f32]) -> Result<(), TestCaseError> {
    let (numbers, half) = all(kind);
    for (x, rounded) in x.chunks(width).zip(rounded.chunks(width)) {
        let largest = x.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = largest / half as f32;
        for (x, rounded) in x.iter().zip(rounded) {
            if scale == 0.0 {
                prop_assert_eq!(*rounded, 0.0);
                continue;
            }
            // As the quotient is computed; what is beyond the numbers becomes the last of them.
            let quotient = f64::from(x / scale);
            let least = numbers.iter().map(|n| (n - quotient).abs()).fold(f64::MAX, f64::min);
            let is_it = |number: &&f64| f64::from(scale * **number as f32) == f64::from(*rounded);
            let number = numbers.iter().find(is_it);
            let number = number.ok_or_else(|| TestCaseError::fail(format!("{x} to {rounded}")))?;
            prop_assert_eq!((number - quotient).abs(), least, "{} to {} of {}", x, rounded, scale);
        }
    }
    Ok(())
}

fn kind(bits: u8) -> Numbers {
    if bits == 9 { Numbers::E4M3 } else { Numbers::Integers(bits) }
}

proptest! {
    #[test]
    fn every_run_is_rounded_to_the_nearest(
        width in 1_usize..70, runs in 1_usize..6, bits in 2_u8..=9, seed: u64, exponent in -30_i32..30,
    ) {
        let mut x = numbers(width * runs, seed as usize as u64);
        x.iter_mut().enumerate().for_each(|(i, x)| {
            *x *= (exponent as f32).exp2();
            if i % 11 == 3 { *x = 0.0 }
        });
        let mut rounded = x.clone();
        kind(bits).round_runs(&mut rounded, width);
        check(kind(bits), &x, width, &rounded)?;
    }

    /// Ties go to the even number: multiples of half a step under a scale of one.
    #[test]
    fn ties_go_to_the_even_number(halves in -255_i32..=253) {
        let value = halves as f32 / 2.0;
        let mut x = [value];
        Numbers::Integers(8).round_scaled(&mut x, 1.0);
        prop_assert_eq!(x[0], value.round_ties_even());
        prop_assert_eq!(x[0].rem_euclid(2.0), if halves % 2 == 0 { (halves / 2).rem_euclid(2) as f32 } else { 0.0 });
    }
}

#[test]
fn every_level_and_number_of_threads_gives_the_same_bits() {
    let x = numbers(37 * 517, 5);
    for bits_of in 2..=9 {
        let job = |isa: Isa| {
            let mut rounded = x.clone();
            kind(bits_of).round_runs_with(isa, &mut rounded, 517);
            bits(&rounded)
        };
        let portable = job(Isa::Portable);
        for isa in Isa::available() {
            assert_eq!(portable, job(isa), "{isa:?}");
        }
        assert_eq!(portable, on_threads(3, || job(Isa::detect())));
    }
}

#[test]
fn what_is_beyond_a_fixed_scale_is_the_last_number() {
    let mut x = [1e30, -1e30, 0.0, 300.0];
    Numbers::Integers(8).round_scaled(&mut x, 2.0);
    assert_eq!(x, [254.0, -256.0, 0.0, 254.0]);
    let mut x = [1e30, -1e30, 465.0 * 2.0, 0.0019];
    Numbers::E4M3.round_scaled(&mut x, 2.0);
    assert_eq!(x, [896.0, -896.0, 896.0, 0.0]);
}
