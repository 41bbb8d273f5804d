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

#[cfg(test)]
mod tests {
    use super::*;

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
