//! Prints what the kernels reach on the shapes of a small language model (SmolLM2-135M: width 576,
//! feed-forward width 1536, 9 heads of 64 on 3 key-value heads), at every level of instructions.
//!
//! `cargo run --release -p lapidary-kernels --example throughput [THREADS [NAME]]`: on THREADS
//! threads (all by default), only the measurements whose line contains NAME. The best of many
//! short runs is printed, which other work on the machine disturbs least.

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::bf16;
use lapidary_kernels::activation::Activation;
use lapidary_kernels::attention::{AttentionShape, attention_with};
use lapidary_kernels::convert;
use lapidary_kernels::gram::Gram;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::matrix::{PackedMatrix, Precision};
use lapidary_kernels::norm::rms_norm_with;
use lapidary_kernels::rope::{Pairing, Rotation};
use lapidary_kernels::softmax::Comparison;

const ROWS: usize = 4096;

struct Bench {
    filter: String,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().and_then(|threads| threads.parse().ok()).unwrap_or(0);
    let bench = Bench { filter: arguments.next().unwrap_or_default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build();
    match pool {
        Ok(pool) => pool.install(|| bench.all()),
        Err(error) => eprintln!("no thread pool: {error}"),
    }
}

impl Bench {
    fn all(&self) {
        println!("{} threads, best level {:?}", rayon::current_num_threads(), Isa::detect());
        let levels: Vec<Isa> = Isa::available().collect();
        for isa in levels.into_iter().rev() {
            for precision in [Precision::Bf16, Precision::F32] {
                self.matrices(isa, precision);
                self.grams(isa, precision);
                self.attention(isa, precision);
            }
            self.elementwise(isa);
        }
    }

    /// Prints one line: `work` in units of 1e9 per second.
    fn line(&self, name: &str, work: f64, unit: &str, mut job: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut best = Duration::MAX;
        let (begin, mut runs) = (Instant::now(), 0);
        while runs < 3 || begin.elapsed() < Duration::from_millis(500) {
            let start = Instant::now();
            job();
            best = best.min(start.elapsed());
            runs += 1;
        }
        let seconds = best.as_secs_f64();
        println!("{name:44} {:9.1} {unit}  ({:.3} ms)", work / seconds / 1e9, seconds * 1e3);
    }

    fn matrices(&self, isa: Isa, precision: Precision) {
        for (rows, out, inner) in [
            (ROWS, 576, 576),
            (ROWS, 1536, 576),
            (ROWS, 576, 1536),
            (512, 49_152, 576),
            (1, 576, 576),
        ] {
            if out > 2000 && isa < Isa::Avx512 {
                continue;
            }
            let name = format!("{isa:?} {precision:?} matrix {rows}x{out}x{inner}");
            if !name.contains(&self.filter) {
                continue;
            }
            let x = numbers(rows * inner);
            let matrix = PackedMatrix::new_with(isa, &numbers(out * inner), out, inner, precision);
            let mut y = vec![0.0; rows * out];
            let work = 2.0 * (rows * out * inner) as f64;
            self.line(&name, work, "GFLOP/s", || {
                matrix.multiply(&x, rows, None, black_box(&mut y))
            });
        }
    }

    fn grams(&self, isa: Isa, precision: Precision) {
        for n in [576, 1536] {
            let x = numbers(ROWS * n);
            let mut gram = Gram::new_with(isa, n, precision);
            // The symmetric half is what has to be computed.
            let work = (ROWS * n * (n + 1)) as f64;
            self.line(&format!("{isa:?} {precision:?} gram {ROWS}x{n}"), work, "GFLOP/s", || {
                gram.accumulate(black_box(&x), ROWS);
            });
        }
    }

    fn attention(&self, isa: Isa, precision: Precision) {
        let shape = AttentionShape {
            batch: 8,
            seq: 512,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            scale: 0.125,
            soft_cap: None,
            causal: true,
            window: None,
        };
        let (q, k, v) = (numbers(ROWS * 576), numbers(ROWS * 192), numbers(ROWS * 192));
        let mut out = vec![0.0; ROWS * 576];
        // The causal half of two products.
        let work = (shape.batch * shape.heads * shape.seq * shape.seq * 2 * 64) as f64;
        self.line(&format!("{isa:?} {precision:?} attention 8x512"), work, "GFLOP/s", || {
            attention_with(isa, &shape, precision, &q, &k, &v, black_box(&mut out));
        });
    }

    fn elementwise(&self, isa: Isa) {
        let (width, wide) = (576, 1536);
        let bytes = |slices: usize, width: usize| (slices * ROWS * width * 4) as f64;
        let (x, gain) = (numbers(ROWS * width), numbers(width));
        let mut y = vec![0.0; ROWS * width];
        self.line(&format!("{isa:?} rms_norm {ROWS}x{width}"), bytes(2, width), "GB/s", || {
            rms_norm_with(isa, &x, &gain, 1e-5, black_box(&mut y));
        });
        // Large gates are fixed points: repeated runs must not sink into subnormal numbers.
        let mut gate: Vec<f32> = numbers(ROWS * wide).iter().map(|x| x + 30.0).collect();
        let up = vec![1.0; ROWS * wide];
        for activation in [Activation::Silu, Activation::Gelu] {
            let name = format!("{isa:?} {activation:?} gate {ROWS}x{wide}");
            self.line(&name, bytes(3, wide), "GB/s", || {
                activation.gate_multiply_with(isa, black_box(&mut gate), &up);
            });
        }
        let angles = numbers(512 * 32);
        let rotation =
            Rotation { cos: &angles, sin: &angles, rotary: 64, pairing: Pairing::Halves };
        self.line(&format!("{isa:?} rotate {ROWS}x9x64"), bytes(2, width), "GB/s", || {
            rotation.apply_with(isa, black_box(&mut y), 512, 9, 64);
        });
        let logits = numbers(49_152);
        let work = 2.0 * 49_152.0 * 4.0;
        self.line(&format!("{isa:?} compare rows of 49152"), work, "GB/s", || {
            black_box(Comparison::of_with(isa, black_box(&logits), &logits));
        });
        if isa == Isa::detect() {
            let mut narrow = vec![bf16::ZERO; ROWS * width];
            self.line("f32 to bf16", bytes(1, width) * 1.5, "GB/s", || {
                convert::f32_to_bf16(black_box(&x), &mut narrow);
            });
            self.line("bf16 to f32", bytes(1, width) * 1.5, "GB/s", || {
                convert::bf16_to_f32(black_box(&narrow), &mut y);
            });
        }
    }
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0).collect()
}
