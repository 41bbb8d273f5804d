//! Prints how fast weights are rounded onto grids and codebooks, beside what the same threads read of
//! memory, and how many operations on registers a cycle the searches do.
//!
//! `cargo run --release -p lapidary-kernels --example grids [GHz]`: all threads, groups of 64, 4 bits.
//! With the clock of the processor, operations a cycle and thread are printed too.

use lapidary_kernels::bandwidth::read_bandwidth;
use lapidary_kernels::grid::{Levels, Search};
use lapidary_kernels::half_quadratic::{RealGrid, step};
use lapidary_kernels::levels::nearest_levels;
use lapidary_kernels::pool::Pool;
use rayon::prelude::*;
use std::cell::Cell;
use std::time::Instant;

const GROUP: usize = 64;
const WEIGHTS: usize = 1 << 24;
const RUNS: usize = 5;
/// Weights that a thread takes at once.
const STRETCH: usize = 1 << 14;
/// Operations on sixteen numbers that a search does for a weight and sixteen candidates: multiply,
/// greater, smaller, add, subtract, multiply, subtract, multiply, add.
const SEARCHED: f64 = 9.0;

fn main() -> std::io::Result<()> {
    let clock = std::env::args().nth(1).and_then(|clock| clock.parse::<f64>().ok());
    let threads = rayon::current_num_threads();
    let bandwidth = read_bandwidth(&mut Pool::new(threads)?, 4 * WEIGHTS, RUNS) / 1e9;
    println!("{threads} threads, which read {bandwidth:.1} GB/s of memory");
    let weights: Vec<f32> = (0..WEIGHTS).map(bell).collect();
    let mut codes = vec![0; WEIGHTS];
    let levels = Levels { bits: 4, symmetric: true, restricted: false };
    let mut time = |name: &str, operations: f64, encode: &(dyn Fn(&[f32], &mut [u8]) + Sync)| {
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            let begin = Instant::now();
            let stretches = weights.par_chunks(STRETCH).zip(codes.par_chunks_mut(STRETCH));
            stretches.for_each(|(weights, codes)| {
                let groups = weights.chunks_exact(GROUP).zip(codes.chunks_exact_mut(GROUP));
                groups.for_each(|(weights, codes)| encode(weights, codes));
            });
            best = best.min(begin.elapsed().as_secs_f64());
        }
        let each = best / WEIGHTS as f64;
        let traffic = 5.0 / each / 1e9;
        print!("{name:>18}: {:.2} ns a weight, {traffic:.1} GB/s", 1e9 * each);
        print!(" ({:.0} % of what is read)", 100.0 * traffic / bandwidth);
        if let (Some(clock), true) = (clock, operations > 0.0) {
            print!(
                ", {:.2} operations a cycle",
                operations / (each * 1e9 * clock * threads as f64)
            );
        }
        println!();
    };
    time("round to nearest", 0.0, &|weights, codes| {
        levels.fit_range(weights, |scale| scale).codes(weights, codes);
    });
    let middles: Vec<f32> = (1..16).map(|code| (code as f32 - 8.0) / 8.0).collect();
    time("codebook", 0.0, &|weights, codes| {
        let largest = weights.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
        nearest_levels(weights, largest, &middles, codes);
    });
    let search = Search { steps: 500, floor: 0.0 };
    let tried = candidates(&weights[..1000 * GROUP], levels, search);
    println!("OMSE tries {tried:.0} of {} candidates", search.steps);
    time("OMSE", SEARCHED * tried / 16.0, &|weights, codes| {
        levels.fit_search(weights, None, search, |scale| scale).codes(weights, codes);
    });
    time("a step of HQQ", 0.0, &|weights, codes| {
        let start = levels.fit_range(weights, |scale| scale);
        let grid = RealGrid { scale: start.scale, zero: 8.0, highest: 15 };
        let (_, zero) = step(weights, grid, -0.3, 10.0);
        RealGrid { zero, ..grid }.codes(weights, codes);
    });
    Ok(())
}

/// Candidates that a group has on average: each has a scale that is stored.
fn candidates(weights: &[f32], levels: Levels, search: Search) -> f64 {
    let stored = Cell::new(0.0);
    let store = |scale| {
        stored.set(stored.get() + 1.0);
        scale
    };
    for group in weights.chunks_exact(GROUP) {
        levels.fit_search(group, None, search, store);
    }
    stored.get() / (weights.len() / GROUP) as f64
}

/// Numbers like weights: sums of four that lie evenly.
fn bell(index: usize) -> f32 {
    let part = |place: usize| {
        let mixed = (4 * index + place).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        mixed as f32 / (1 << 24) as f32 - 0.5
    };
    (0..4).map(part).sum()
}
