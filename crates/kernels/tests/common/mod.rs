//! What the tests of the kernels share: numbers, thread pools, the rounding of bf16.
#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

/// Numbers spread evenly over (-1, 1), the same for the same seed (SplitMix64).
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    (0..count).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Runs `job` on a pool of so many threads.
pub(crate) fn on_threads<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(job)
}

/// The bits of each number: equality of bits, not of values.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `value` as a kernel multiplies it, rounded to nearest even by the definition.
pub(crate) fn factor(value: f32, bf16: bool) -> f64 {
    f64::from(if bf16 { half::bf16::from_f32(value).to_f32() } else { value })
}

/// Asserts `|got - want| ≤ tolerance`, and that a NaN is never near anything.
#[track_caller]
pub(crate) fn near(got: f32, want: f64, tolerance: f64) {
    let error = (f64::from(got) - want).abs();
    assert!(error <= tolerance, "got {got}, want {want}: off by {error:e} > {tolerance:e}");
}
