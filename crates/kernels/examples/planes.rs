//! Prints how fast planes of signs are multiplied with one token by products of bytes, through tables
//! and bit by bit, where the weights are in a cache and where they come from memory.
//!
//! `cargo run --release -p lapidary-kernels --example planes`: one thread, the machine's best level.

use cpu_time::ThreadTime;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::packed::planes::{Prepared, SignPlanes, Way};
use lapidary_kernels::packed::{Activations, Output, Packed, Precision, Source, Zeros};
use std::hint::black_box;

const GROUP: usize = 128;
const RUNS: usize = 5;

fn main() {
    let isa = Isa::detect();
    println!("Gweight/s, one thread, {isa:?}; activations in 8 bits, groups of {GROUP}");
    println!("{:>11} {:>6} {:>10} {:>8} {:>8}", "matrix", "planes", "bytes", "tables", "serial");
    for (rows, cols) in [(512, 1024), (1024, 4096), (16384, 4096)] {
        for planes in 1..=4 {
            let signs: Vec<u8> =
                (0..rows * cols).map(|i| ((i * 2_654_435_761) >> 13) as u8 & 15).collect();
            let alphas = vec![0.01; planes * rows * cols / GROUP];
            let bytes = byte_products(isa, (rows, cols), planes, &signs);
            let ways = [Way::Table, Way::Serial].map(|way| {
                let packed = SignPlanes::new(way, (rows, cols), planes, GROUP, &signs, &alphas);
                let (mut x, mut y) = (Prepared::default(), vec![0.0; rows]);
                let activations = activations(cols);
                rate(rows * cols, || {
                    // The tables are part of the price.
                    x.prepare(way, &activations);
                    packed.multiply(isa, &x, black_box(&mut y));
                })
            });
            let shape = format!("{rows}x{cols}");
            println!("{shape:>11} {planes:>6} {bytes:>10.1} {:>8.1} {:>8.1}", ways[0], ways[1]);
        }
    }
}

/// Each plane as codes of one bit.
fn byte_products(isa: Isa, (rows, cols): (usize, usize), planes: usize, signs: &[u8]) -> f64 {
    let scales = vec![0.02; rows * cols / GROUP];
    let minima = vec![0.01; rows * cols / GROUP];
    let of: Vec<Vec<u8>> =
        (0..planes).map(|plane| signs.iter().map(|s| s >> plane & 1).collect()).collect();
    let source = |codes| Source::Affine {
        bits: 1,
        codes,
        group: GROUP,
        scales: &scales,
        zeros: Zeros::Minima(&minima),
    };
    let sources: Vec<_> = of.iter().map(|codes| source(codes)).collect();
    let Ok(packed) = Packed::new(rows, cols, Precision::Int8, &sources) else { return 0.0 };
    let (activations, mut y) = (activations(cols), vec![0.0; rows]);
    rate(rows * cols, || {
        let out = Output::new(&mut y, 1, rows);
        packed.multiply_with(isa, &activations, &[], 0..packed.strips(), &out);
    })
}

fn activations(cols: usize) -> Activations {
    let x: Vec<f32> = (0..cols).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let mut activations = Activations::new();
    let forms = lapidary_kernels::packed::Forms { int8: true, ..Default::default() };
    activations.prepare(&x, 1, cols, forms);
    activations
}

/// Weights per second, in 1e9, of the best of several runs of some milliseconds.
fn rate(weights: usize, mut job: impl FnMut()) -> f64 {
    let times = (50_000_000 / weights).max(1);
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let begin = ThreadTime::now();
        (0..times).for_each(|_| job());
        best = best.min(begin.elapsed().as_secs_f64() / times as f64);
    }
    weights as f64 / best / 1e9
}
