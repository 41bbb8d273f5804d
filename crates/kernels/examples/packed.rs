//! Prints how fast packed matrices are multiplied: bytes of weights read per second with one token
//! and a few, against what the machine reads at all, and operations per second with many.
//!
//! `cargo run --release -p lapidary-kernels --example packed [THREADS [NAME [LEVEL]]]`: on THREADS
//! threads (2 by default), only the formats whose name contains NAME, at the levels of instructions
//! whose name contains LEVEL (the machine's own by default). With few tokens a set of matrices larger
//! than the caches goes by. Times are those that the busiest thread spent computing, so that other
//! work on the machine disturbs them less; the best of several runs counts.

use std::hint::black_box;

use cpu_time::ThreadTime;
use lapidary_kernels::ggml::BlockKind;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::packed::{Activations, Output, Packed, Precision, Source, Zeros};

const ROWS: usize = 4096;
const COLS: usize = 4096;
/// Bytes of all matrices that go by.
const SET: usize = 128 << 20;
const TOKENS: [usize; 3] = [1, 4, 8];
const MANY: usize = 512;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let filter = arguments.next().unwrap_or_default();
    let level = arguments.next().unwrap_or_else(|| format!("{:?}", Isa::detect()));
    let bandwidth = read_bandwidth(threads);
    println!("{threads} threads, {:?}; reading: {bandwidth:.1} GB/s", Isa::detect());
    let tokens = TOKENS.map(|tokens| format!("{tokens} tok GB/s")).join("  ");
    println!("{:24} {:>8}  {tokens}  {MANY} tok GOP/s", "format", "bits/w");
    let codes: Vec<u8> = (0..ROWS * COLS).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect();
    for name in NAMES {
        if name.contains(&filter) {
            measure(name, threads, &codes, bandwidth, &level);
        }
    }
}

const NAMES: [&str; 22] = [
    "affine 1 g64",
    "affine 2 g64",
    "affine 3 g64",
    "affine 4 g32",
    "affine 4 g64",
    "affine 4 g128",
    "affine 4 g128 zeros",
    "affine 5 g64",
    "affine 6 g64",
    "affine 8 g128",
    "affine 8 row",
    "lookup 4 g64",
    "block Q4_0",
    "block Q8_0",
    "block Q2_K",
    "block Q3_K",
    "block Q4_K",
    "block Q5_K",
    "block Q6_K",
    "block IQ4_XS",
    "block TQ2_0",
    "float",
];

fn measure(name: &str, threads: usize, codes: &[u8], bandwidth: f64, level: &str) {
    let pack = || packed(name, codes);
    let Some(first) = pack() else { return };
    let count = (SET / first.bytes()).max(1);
    let mut set = vec![first];
    set.extend((1..count).filter_map(|_| pack()));
    let bytes = set[0].bytes();
    let bits = 8.0 * bytes as f64 / (ROWS * COLS) as f64;
    for isa in Isa::available().filter(|isa| format!("{isa:?}").contains(level)) {
        let mut line = format!("{name:15} {:9} {bits:7.2} ", format!("{isa:?}"));
        for tokens in TOKENS {
            let seconds = best(3, || run(&set, isa, threads, tokens));
            let rate = (bytes * set.len()) as f64 / seconds / 1e9;
            line += &format!(" {rate:6.1} ({:3.0}%)", 100.0 * rate / bandwidth);
        }
        let seconds = best(3, || run(&set[..1], isa, threads, MANY));
        let operations = 2.0 * (ROWS * COLS * MANY) as f64 / seconds / 1e9;
        println!("{line}  {operations:8.0}");
    }
}

fn packed(name: &str, codes: &[u8]) -> Option<Packed> {
    let parts: Vec<&str> = name.split(' ').collect();
    let number = |text: &str| text.trim_start_matches('g').parse::<usize>().unwrap_or(COLS);
    let make = |source| Packed::new(ROWS, COLS, Precision::Int8, &[source]).ok();
    match parts[0] {
        "affine" | "lookup" => {
            let (bits, group) = (number(parts[1]) as u8, number(parts[2]));
            let scales = vec![0.01; ROWS * COLS.div_ceil(group)];
            let mask = ((1_u16 << bits) - 1) as u8;
            let codes: Vec<u8> = codes.iter().map(|code| code & mask).collect();
            let zero_codes: Vec<u8> = codes[..scales.len()].to_vec();
            let books: Vec<f32> = (0..1 << bits).map(|i| (i as f32 - 7.4).sinh()).collect();
            if parts[0] == "lookup" {
                let (scales, codes, books) = (Some(&scales[..]), &codes[..], &books[..]);
                return make(Source::Lookup { bits, codes, books, group, scales });
            }
            let zeros = match parts.get(3) {
                Some(_) => Zeros::Codes(&zero_codes),
                None => Zeros::Constant(1 << (bits - 1)),
            };
            make(Source::Affine { bits, codes: &codes, group, scales: &scales, zeros })
        }
        "block" => {
            let kind = BlockKind::ALL.iter().find(|kind| kind.name() == parts[1])?;
            // Bytes that are small halves wherever a scale may stand.
            let length = ROWS * COLS / kind.elements() * kind.bytes();
            let bytes: Vec<u8> = codes[..length].iter().map(|byte| byte & 0x1f).collect();
            make(Source::Blocks { kind: *kind, bytes: &bytes })
        }
        _ => {
            let row = |row: usize, out: &mut [f32]| {
                for (out, code) in out.iter_mut().zip(&codes[row * COLS..]) {
                    *out = f32::from(*code) / 256.0;
                }
            };
            make(Source::Rows(&row))
        }
    }
}

/// Seconds in which all threads multiply their strips of each matrix of the set.
fn run(set: &[Packed], isa: Isa, threads: usize, tokens: usize) -> f64 {
    let x: Vec<f32> = (0..tokens * COLS).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let mut activations = Activations::new();
    let preparing = activations.begin_with(isa, tokens, COLS, set[0].forms_with(isa, tokens));
    preparing.fill(0..preparing.units(), &x);
    let (activations, strips) = (&activations, set[0].strips());
    busiest(threads, move |thread| {
        let mut y = vec![0.0; tokens * ROWS];
        let own = thread * strips / threads..(thread + 1) * strips / threads;
        for packed in set {
            let out = Output::new(&mut y, tokens, ROWS);
            packed.multiply_with(isa, activations, &[], own.clone(), &out);
        }
        black_box(y);
    })
}

/// Seconds of computing of the thread that took longest.
fn busiest(threads: usize, job: impl Fn(usize) + Sync) -> f64 {
    std::thread::scope(|scope| {
        let job = &job;
        let timed = |thread| {
            scope.spawn(move || {
                let begin = ThreadTime::now();
                job(thread);
                begin.elapsed().as_secs_f64()
            })
        };
        let all: Vec<_> = (0..threads).map(timed).collect();
        all.into_iter().filter_map(|thread| thread.join().ok()).fold(0.0, f64::max)
    })
}

/// Bytes per second, in 1e9, that all threads read of a buffer larger than the caches.
fn read_bandwidth(threads: usize) -> f64 {
    let buffer = vec![1_u64; SET / 8];
    let each = buffer.len() / threads;
    let read = || {
        busiest(threads, |thread| {
            let mut sums = [0_u64; 64];
            for values in buffer[thread * each..][..each].as_chunks::<64>().0 {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum |= value);
            }
            black_box(sums);
        })
    };
    SET as f64 / best(5, read) / 1e9
}

fn best(times: usize, mut seconds: impl FnMut() -> f64) -> f64 {
    (0..times).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}
