//! How fast this machine reads memory: what products with one token are measured against.

use std::hint::black_box;
use std::time::Instant;

use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::vectorized;

/// Numbers that a thread reads at a time.
const STRETCH: usize = 1 << 17;

/// Bytes a second that the threads of a pool read of `bytes` bytes together, the best of `passes`
/// passes. Memory smaller than the caches is read from these, as weights of that size would be.
pub fn read_bandwidth(pool: &mut Pool, bytes: usize, passes: usize) -> f64 {
    // Not zeros, which the system might keep as one page.
    let memory: Vec<u64> = (0..(bytes / 8).max(1) as u64).collect();
    let isa = Isa::detect();
    let mut best = f64::INFINITY;
    for _ in 0..passes.max(1) {
        let begin = Instant::now();
        pool.run(memory.len().div_ceil(STRETCH), |unit| {
            let end = memory.len().min((unit + 1) * STRETCH);
            black_box(sum(isa, &memory[unit * STRETCH..end]));
        });
        best = best.min(begin.elapsed().as_secs_f64());
    }
    size_of_val(memory.as_slice()) as f64 / best
}

vectorized! {
    fn sum(numbers: &[u64]) -> u64 {
        let mut sums = [0_u64; 64];
        for numbers in numbers.as_chunks::<64>().0 {
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum = sum.wrapping_add(*number);
            }
        }
        sums.iter().fold(0, |a, b| a.wrapping_add(*b))
    }
}
