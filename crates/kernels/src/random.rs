//! Random numbers keyed by what they are for, not drawn in sequence.

/// What SplitMix64 adds from one number to the next.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer: bits that look random, the same for the same key on every machine.
pub fn mix(key: u64) -> u64 {
    let mut x = key.wrapping_add(STEP);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Number `index` of the sequence that SplitMix64 makes of a seed.
pub fn nth(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(index.wrapping_mul(STEP)))
}

/// A number from 0 to 1, 1 not among them.
pub fn unit(key: u64) -> f64 {
    (mix(key) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A number of the normal distribution of mean 0 and variance 1 (Box and Muller, 1958).
pub fn gaussian(key: u64) -> f64 {
    // 1 − u is above 0, whose logarithm is finite.
    let radius = (-2.0 * (1.0 - unit(nth(key, 0))).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(nth(key, 1))).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of the normal distribution: 0, 1, 0, 3, each within five deviations of its estimate.
    #[test]
    fn gaussian_numbers_have_the_moments_of_the_normal_distribution() {
        let n = 100_000;
        let moment =
            |power| (0..n).map(|i| gaussian(nth(7, i)).powi(power)).sum::<f64>() / n as f64;
        let variances = [1.0, 2.0, 15.0, 96.0];
        for (power, (want, variance)) in (1..).zip([0.0, 1.0, 0.0, 3.0].iter().zip(variances)) {
            let have = moment(power);
            let deviation = (variance / n as f64).sqrt();
            assert!((have - want).abs() < 5.0 * deviation, "{power}: {have}");
        }
    }

    /// The first numbers of the reference program (Vigna's `splitmix64.c`): tables of formats are
    /// made of them.
    #[test]
    fn the_sequence_is_that_of_the_reference() {
        let first = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        assert_eq!([0, 1, 2].map(|index| nth(0, index)), first);
        assert_eq!(
            [0, 1].map(|index| nth(1_234_567, index)),
            [6457827717110365317, 3203168211198807973]
        );
    }
}
