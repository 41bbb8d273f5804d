//! A codebook: a few levels, and the nearest of them to a number.

use lapidary_kernels::levels::nearest_levels;

/// Levels in rising order, and the middles between neighbours.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Codebook {
    bits: u8,
    /// `2^bits`, rising; where there are fewer levels, the last is repeated and its copies are unused.
    levels: Vec<f32>,
    /// `2^bits − 1`, rising; infinite where there is no level to the right.
    middles: Vec<f32>,
}

impl Codebook {
    /// The codebook of these levels, in any order and with repetitions, at least 1 and at most
    /// `2^bits` of them.
    pub(crate) fn new(bits: u8, mut levels: Vec<f32>) -> Self {
        // A negative zero is no level of its own.
        levels.iter_mut().for_each(|level| *level += 0.0);
        levels.sort_unstable_by(f32::total_cmp);
        levels.dedup();
        let size = 1 << bits;
        debug_assert!((1..=size).contains(&levels.len()));
        let mut middles: Vec<f32> =
            levels.windows(2).map(|pair| 0.5 * pair[0] + 0.5 * pair[1]).collect();
        middles.resize(size - 1, f32::INFINITY);
        let last = levels.last().copied().unwrap_or_default();
        levels.resize(size, last);
        Self { bits, levels, middles }
    }

    /// The levels from −1 to 1 that these, none of them negative, make with their mirror images.
    pub(crate) fn symmetric(bits: u8, positive: &[f64]) -> Self {
        let largest = positive.iter().copied().fold(0.0, f64::max);
        let scaled = positive.iter().map(|level| level / largest);
        Self::new(bits, scaled.flat_map(|level| [level as f32, -level as f32]).collect())
    }

    /// `2^bits` levels by code.
    pub(crate) fn levels(&self) -> &[f32] {
        &self.levels
    }

    /// Bits of a code.
    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    /// The nearest level, the lower one of two.
    #[inline]
    pub(crate) fn code(&self, value: f32) -> u8 {
        let (mut code, mut step) = (0, self.levels.len() / 2);
        while step > 0 {
            // Without a branch: the values are anything.
            code += step * usize::from(value > self.middles[code + step - 1]);
            step /= 2;
        }
        code as u8
    }

    /// [`code`](Self::code) of each value divided by `divisor`.
    pub(crate) fn codes(&self, values: &[f32], divisor: f32, codes: &mut [u8]) {
        nearest_levels(values, divisor, &self.middles, codes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_code_is_the_nearest_level(
            bits in 1_u8..=8, seed in prop::collection::vec(-1.0_f32..1.0, 1..256), value in -2.0_f32..2.0,
        ) {
            let levels: Vec<f32> = seed.into_iter().take(1 << bits).collect();
            let book = Codebook::new(bits, levels.clone());
            let found = (book.levels()[usize::from(book.code(value))] - value).abs();
            let least = levels.iter().map(|level| (level - value).abs()).fold(f32::INFINITY, f32::min);
            prop_assert!(found <= least + 1e-6, "{found} {least}");
        }
    }

    #[test]
    fn ties_go_down_and_zero_has_no_sign() {
        let book = Codebook::new(3, vec![-0.0, 1.0, 0.0, -1.0]);
        assert_eq!(
            book.levels()[..4].iter().map(|l| l.to_bits()).collect::<Vec<_>>(),
            [(-1.0_f32).to_bits(), 0, 1.0_f32.to_bits(), 1.0_f32.to_bits()]
        );
        assert_eq!(
            (book.code(0.5), book.code(-0.5), book.code(9.0), book.code(-9.0)),
            (1, 0, 2, 0)
        );
    }
}
