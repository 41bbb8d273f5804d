//! The attention against its definition in f64, at every level of instructions.

mod common;

use common::{bits, factor, near, numbers, on_threads};
use lapidary_kernels::attention::{AttentionShape, attention_with};
use lapidary_kernels::isa::Isa;
use lapidary_kernels::matrix::Precision;
use proptest::prelude::*;

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn inputs(shape: &AttentionShape, size: f32) -> Inputs {
    let rows = shape.batch * shape.seq;
    let scaled = |count: usize, seed: u64| -> Vec<f32> {
        numbers(count, seed).into_iter().map(|x| x * size).collect()
    };
    Inputs {
        q: scaled(rows * shape.heads * shape.head_dim, 10),
        k: scaled(rows * shape.kv_heads * shape.head_dim, 11),
        v: numbers(rows * shape.kv_heads * shape.head_dim, 12),
    }
}

fn run(isa: Isa, precision: Precision, shape: &AttentionShape, inputs: &Inputs) -> Vec<f32> {
    let mut out = vec![f32::NAN; inputs.q.len()];
    attention_with(isa, shape, precision, &inputs.q, &inputs.k, &inputs.v, &mut out);
    out
}

/// The definition, with the factors that the kernel rounds rounded.
fn oracle(s: &AttentionShape, inputs: &Inputs, bf16: bool) -> Vec<f64> {
    let (width, kv_width) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let mut out = vec![0.0; inputs.q.len()];
    for (index, out) in out.chunks_exact_mut(s.head_dim).enumerate() {
        let (row, head) = (index / s.heads, index % s.heads);
        let (sequence, query) = (row / s.seq, row % s.seq);
        let kv = head / (s.heads / s.kv_heads) * s.head_dim;
        let q = &inputs.q[row * width + head * s.head_dim..][..s.head_dim];
        let seen: Vec<usize> = (0..s.seq)
            .filter(|key| !s.causal || *key <= query)
            .filter(|key| s.window.is_none_or(|window| query < key + window))
            .collect();
        let at = |key: usize| (sequence * s.seq + key) * kv_width + kv;
        let scores: Vec<f64> = seen
            .iter()
            .map(|key| {
                let k = &inputs.k[at(*key)..];
                let dot: f64 =
                    q.iter().zip(k).map(|(q, k)| factor(*q, bf16) * factor(*k, bf16)).sum();
                let score = dot * f64::from(s.scale);
                s.soft_cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
            })
            .collect();
        let maximum = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
        for (key, score) in seen.iter().zip(&scores) {
            let weight = (score - maximum).exp() / total;
            for (out, v) in out.iter_mut().zip(&inputs.v[at(*key)..]) {
                *out += weight * factor(*v, bf16);
            }
        }
    }
    out
}

fn check(isa: Isa, precision: Precision, shape: &AttentionShape) {
    let inputs = inputs(shape, 2.0);
    let got = run(isa, precision, shape, &inputs);
    let bf16 = precision == Precision::Bf16;
    // |v| < 1; the probabilities are rounded to 8 bits where the product is bf16.
    let tolerance = if bf16 { 4e-3 } else { 3e-5 };
    for (got, want) in got.iter().zip(oracle(shape, &inputs, bf16)) {
        near(*got, want, tolerance);
    }
}

fn shapes() -> impl Strategy<Value = AttentionShape> {
    let sizes = (1_usize..3, 1_usize..140, 1_usize..4, 1_usize..3, 1_usize..70);
    let masks = (any::<bool>(), prop::option::of(1_usize..150), prop::option::of(0.3_f32..60.0));
    (sizes, masks).prop_map(|((batch, seq, group, kv_heads, head_dim), masks)| {
        let (causal, window, soft_cap) = masks;
        AttentionShape {
            batch,
            seq,
            heads: group * kv_heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            soft_cap,
            causal,
            window,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn equals_the_definition(shape in shapes()) {
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                check(isa, precision, &shape);
            }
        }
    }
}

fn long(seq: usize, head_dim: usize, causal: bool, window: Option<usize>) -> AttentionShape {
    AttentionShape {
        batch: 1,
        seq,
        heads: 3,
        kv_heads: 1,
        head_dim,
        scale: 0.2,
        soft_cap: None,
        causal,
        window,
    }
}

#[test]
fn equals_the_definition_over_several_blocks_of_keys() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            check(isa, precision, &long(600, 64, true, None));
            check(isa, precision, &long(531, 5, true, Some(270)));
            check(isa, precision, &long(270, 80, false, None));
            check(isa, precision, &long(300, 128, false, Some(17)));
            check(isa, precision, &long(300, 32, true, Some(1)));
        }
    }
}

#[test]
fn gives_the_same_bits_on_any_number_of_threads() {
    let mut shape = long(700, 20, true, Some(300));
    shape.batch = 2;
    let inputs = inputs(&shape, 1.0);
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let attend = |threads: usize| {
                bits(&on_threads(threads, || run(isa, precision, &shape, &inputs)))
            };
            let one = attend(1);
            assert_eq!(one, attend(2));
            assert_eq!(one, attend(3));
        }
    }
}

#[test]
fn scores_far_beyond_the_range_of_exp_are_safe() {
    let shape = long(300, 16, true, None);
    let inputs = inputs(&shape, 300.0);
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let got = run(isa, precision, &shape, &inputs);
            let bf16 = precision == Precision::Bf16;
            for (got, want) in got.iter().zip(oracle(&shape, &inputs, bf16)) {
                near(*got, want, 2e-2);
            }
        }
    }
}
