//! Prints from which share of zeros on a matrix is multiplied faster without them: one token, several,
//! and many, against floats of 16 bits for all elements of the same matrix.
//!
//! `cargo run --release -p lapidary-kernels --example sparse [ROWS COLUMNS]` (4096 × 4096 by default),
//! on one thread, sets of matrices larger than the caches. The times of both are taken in turns and
//! are those that the thread spent computing; the best of several counts.

use std::hint::black_box;

use cpu_time::ThreadTime;
use half::f16;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::packed::{Activations, Output, Packed, Precision, Source};

/// Bytes of all matrices that go by.
const SET: usize = 128 << 20;
const TURNS: usize = 5;
const TOKENS: [usize; 4] = [1, 4, 12, 64];

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let (rows, cols) = (arguments.next().unwrap_or(4096), arguments.next().unwrap_or(4096));
    println!("{rows} x {cols}, {:?}; time without zeros over time with them", Isa::detect());
    let tokens = TOKENS.map(|tokens| format!("{tokens:>4} tok")).join(" ");
    println!("{:>8} {:>8} {tokens}", "values", "bits/w");
    let random =
        |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 16_777_216.0;
    let value = |i: usize| f16::from_f32(random(3 * i + 1) - 0.5).to_f32();
    let all = |row: usize, out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(j, out)| *out += value(row * cols + j));
    };
    let dense = set(rows, cols, Source::Rows(&all));
    for share in [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75] {
        let (mut row_starts, mut columns, mut values) = (vec![0], vec![], vec![]);
        for index in 0..rows * cols {
            if random(index) < share {
                columns.push((index % cols) as u32);
                values.push(value(index));
            }
            if (index + 1) % cols == 0 {
                row_starts.push(columns.len() as u32);
            }
        }
        let (row_starts, columns, values) = (&row_starts[..], &columns[..], &values[..]);
        let source = Source::Sparse { row_starts, columns, values };
        let sparse = set(rows, cols, source);
        let bits = 8.0 * sparse.first().map_or(0, Packed::bytes) as f64 / (rows * cols) as f64;
        let ratios = TOKENS.map(|tokens| {
            let (mut with, mut without) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..TURNS {
                without = without.min(seconds(&sparse, tokens));
                with = with.min(seconds(&dense, tokens));
            }
            format!("{:8.2}", without / with)
        });
        println!("{share:8.2} {bits:8.2} {}", ratios.join(" "));
    }
}

/// A matrix as often as it takes to leave the caches, at most 32 times.
fn set(rows: usize, cols: usize, source: Source<'_>) -> Vec<Packed> {
    let pack = || Packed::new(rows, cols, Precision::Int8, &[source]).ok();
    let mut set: Vec<Packed> = pack().into_iter().collect();
    let count = (SET / set.first().map_or(SET, Packed::bytes)).clamp(1, 32);
    set.extend((1..count).filter_map(|_| pack()));
    set
}

/// Seconds for the product with one matrix of a set.
fn seconds(set: &[Packed], tokens: usize) -> f64 {
    let Some(packed) = set.first() else { return f64::NAN };
    let (rows, cols) = (packed.rows(), packed.cols());
    let set = if tokens > 12 { &set[..1] } else { set };
    let x: Vec<f32> = (0..tokens * cols).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let mut activations = Activations::new();
    activations.prepare(&x, tokens, cols, packed.forms(tokens));
    let mut y = vec![0.0; tokens * rows];
    let begin = ThreadTime::now();
    for packed in set {
        let out = Output::new(&mut y, tokens, rows);
        packed.multiply(&activations, &[], 0..packed.strips(), &out);
        black_box(&mut y);
    }
    begin.elapsed().as_secs_f64() / set.len() as f64
}
