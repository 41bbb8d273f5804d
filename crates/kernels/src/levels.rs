//! The nearest of a few levels, for many values.

use crate::isa::Isa;
use crate::simd::{LANES, vectorized};

/// Middles that are all compared with; of more, as many as there are bits.
const FEW: usize = 31;

/// Writes for each value, divided by `divisor`, how many of `middles` it lies above: the index of the
/// nearest level where these are the middles between neighbours, the lower one of two. `middles` are
/// `2^bits − 1` numbers in rising order, of 1 to 8 bits.
///
/// # Panics
/// When the lengths differ or there are other than so many middles.
pub fn nearest_levels(values: &[f32], divisor: f32, middles: &[f32], codes: &mut [u8]) {
    assert_eq!(values.len(), codes.len(), "a code a value");
    assert!((middles.len() + 1).is_power_of_two(), "middles of 2^bits levels");
    assert!((1..256).contains(&middles.len()), "levels of 1 to 8 bits");
    let compare = if middles.len() <= FEW { count_below } else { bisect };
    compare(Isa::detect(), values, divisor, middles, codes);
}

vectorized! {
    fn count_below(values: &[f32], divisor: f32, middles: &[f32], codes: &mut [u8]) {
        let (values, values_rest) = values.as_chunks::<LANES>();
        let (codes, codes_rest) = codes.as_chunks_mut::<LANES>();
        for (values, codes) in values.iter().zip(codes) {
            let scaled = values.map(|value| value / divisor);
            let mut below = [0_u32; LANES];
            for middle in middles {
                for lane in 0..LANES {
                    below[lane] += u32::from(scaled[lane] > *middle);
                }
            }
            *codes = below.map(|below| below as u8);
        }
        for (value, code) in values_rest.iter().zip(codes_rest) {
            let scaled = value / divisor;
            *code = middles.iter().map(|middle| u8::from(scaled > *middle)).sum();
        }
    }
}

vectorized! {
    fn bisect(values: &[f32], divisor: f32, middles: &[f32], codes: &mut [u8]) {
        for (value, slot) in values.iter().zip(codes) {
            let scaled = value / divisor;
            let (mut code, mut step) = (0, middles.len().div_ceil(2));
            while step > 0 {
                // Without a branch: the values are anything.
                code += step * usize::from(scaled > middles[code + step - 1]);
                step /= 2;
            }
            *slot = code as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_count_the_middles_below(
            bits in 1_u32..=8, values in prop::collection::vec(-2.0_f32..2.0, 0..70),
            divisor in 0.3_f32..3.0, seed: u32,
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 22) as f32 - 2.0
            };
            let mut middles: Vec<f32> = (1..1 << bits).map(|_| next()).collect();
            // Some equal, some that nothing reaches, as in a book with fewer levels.
            if let [.., a, b] = middles.as_mut_slice() {
                (*a, *b) = (f32::INFINITY, f32::INFINITY);
            }
            middles.sort_by(f32::total_cmp);
            let count = |value: &f32| middles.iter().filter(|m| value / divisor > **m).count();
            let want: Vec<usize> = values.iter().map(count).collect();
            for isa in Isa::available() {
                for compare in [count_below, bisect] {
                    let mut codes = vec![0; values.len()];
                    compare(isa, &values, divisor, &middles, &mut codes);
                    prop_assert_eq!(codes.iter().map(|c| usize::from(*c)).collect::<Vec<_>>(), want.clone());
                }
            }
            let mut codes = vec![0; values.len()];
            nearest_levels(&values, divisor, &middles, &mut codes);
            prop_assert_eq!(codes.iter().map(|c| usize::from(*c)).collect::<Vec<_>>(), want);
        }
    }
}
