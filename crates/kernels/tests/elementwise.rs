//! Norms, activations, rotations and conversions against f64, with the same bits at every level.

mod common;

use common::{bits, near, numbers, on_threads};
use half::{bf16, f16};
use lapidary_kernels::activation::{Activation, soft_cap_here};
use lapidary_kernels::convert;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::norm::{layer_norm_with, rms_norm_in_place_with, rms_norm_with};
use lapidary_kernels::rope::{Pairing, Rotation};
use proptest::prelude::*;

/// Runs `job` at every level, and asserts that all give the same bits.
#[track_caller]
fn same_at_every_level(job: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
    let portable = job(Isa::Portable);
    for isa in Isa::available() {
        assert_eq!(bits(&portable), bits(&job(isa)), "{isa:?} differs");
    }
    portable
}

/// erf by its series, and by the continued fraction of erfc where that converges.
fn erf(x: f64) -> f64 {
    if x < 0.0 {
        return -erf(-x);
    }
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 3.0 {
        let (mut term, mut sum) = (2.0 * x, 2.0 * x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return scale * sum;
    }
    let fraction = (1..100).rev().fold(x, |tail, n| x + f64::from(n) / 2.0 / tail);
    1.0 - scale / fraction
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt())),
        Activation::GeluTanh => {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + z.tanh())
        }
        Activation::Relu => x.max(0.0),
    }
}

const ACTIVATIONS: [Activation; 4] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

#[test]
fn soft_caps_equal_their_definition() {
    let x: Vec<f32> = (-90_000..90_000).map(|i| i as f32 * 1e-3).collect();
    for cap in [0.5, 30.0, 50.0] {
        let got = same_at_every_level(|isa| {
            let mut x = x.clone();
            soft_cap_here(isa, &mut x, cap);
            x
        });
        for (got, x) in got.iter().zip(&x) {
            let want = f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
            assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs(), "{x}: {got} not {want}");
        }
    }
}

#[test]
fn activations_equal_their_definitions() {
    let x: Vec<f32> = (-120_000..120_000).map(|i| i as f32 * 1e-4).collect();
    let up = numbers(x.len(), 20);
    for activation in ACTIVATIONS {
        let got = same_at_every_level(|isa| {
            let mut y = x.clone();
            activation.apply_with(isa, &mut y);
            y
        });
        let gated = same_at_every_level(|isa| {
            let mut y = x.clone();
            activation.gate_multiply_with(isa, &mut y, &up);
            y
        });
        for (((x, up), got), gated) in x.iter().zip(&up).zip(got).zip(gated) {
            let want = activate(activation, f64::from(*x));
            near(got, want, 4e-7 * f64::from(x.abs()) + 1e-12);
            assert_eq!(gated.to_bits(), (got * up).to_bits());
        }
    }
}

#[test]
fn activations_at_the_ends_of_the_range() {
    for activation in ACTIVATIONS {
        let got = same_at_every_level(|isa| {
            let mut y = vec![0.0, -0.0, 1e-40, 1e30, -1e30, f32::MAX, f32::MIN, 90.0, -90.0];
            activation.apply_with(isa, &mut y);
            y
        });
        let want = [0.0, 0.0, 1e-40, 1e30, 0.0, f32::MAX, 0.0, 90.0, 0.0];
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= want.abs() * 0.51, "{activation:?}: {got} for {want}");
        }
        let mut nan = [f32::NAN; 20];
        activation.apply(&mut nan);
        assert!(nan.iter().all(|x| x.is_nan()), "{activation:?} loses NaN");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rms_norm_equals_its_definition(rows in 0_usize..40, width in 1_usize..200, eps in 0.0_f32..0.1) {
        let x = numbers(rows * width, 21);
        let gain = numbers(width, 22);
        let eps = eps + 1e-6;
        let got = same_at_every_level(|isa| {
            let mut out = vec![f32::NAN; x.len()];
            rms_norm_with(isa, &x, &gain, eps, &mut out);
            let mut in_place = x.clone();
            rms_norm_in_place_with(isa, &mut in_place, &gain, eps);
            assert_eq!(bits(&out), bits(&in_place));
            out
        });
        for (got, x) in got.chunks_exact(width).zip(x.chunks_exact(width)) {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            for ((got, x), gain) in got.iter().zip(x).zip(&gain) {
                let want = f64::from(*x) * scale * f64::from(*gain);
                near(*got, want, 1e-6 * want.abs() + 1e-12);
            }
        }
    }

    #[test]
    fn layer_norm_equals_its_definition(rows in 0_usize..40, width in 1_usize..200, biased: bool) {
        let x: Vec<f32> = numbers(rows * width, 23).into_iter().map(|x| x + 3.0).collect();
        let gain = numbers(width, 24);
        let bias = numbers(width, 25);
        let eps = 1e-3;
        let got = same_at_every_level(|isa| {
            let mut out = vec![f32::NAN; x.len()];
            layer_norm_with(isa, &x, &gain, biased.then_some(&bias[..]), eps, &mut out);
            out
        });
        for (got, x) in got.chunks_exact(width).zip(x.chunks_exact(width)) {
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let variance =
                x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = 1.0 / (variance + f64::from(eps)).sqrt();
            for (((got, x), gain), bias) in got.iter().zip(x).zip(&gain).zip(&bias) {
                let bias = if biased { f64::from(*bias) } else { 0.0 };
                let want = (f64::from(*x) - mean) * scale * f64::from(*gain) + bias;
                near(*got, want, 3e-6 * (1.0 + scale));
            }
        }
    }

    #[test]
    fn rotations_equal_their_definition(
        batch in 0_usize..3,
        seq in 1_usize..50,
        heads in 1_usize..4,
        half in 0_usize..20,
        rest in 0_usize..5,
        neighbours: bool,
    ) {
        let head_dim = (2 * half + rest).max(1);
        let width = heads * head_dim;
        let x = numbers(batch * seq * width, 26);
        let (cos, sin) = (numbers(seq * half, 27), numbers(seq * half, 28));
        let pairing = if neighbours { Pairing::Neighbours } else { Pairing::Halves };
        let rotation = Rotation { cos: &cos, sin: &sin, rotary: 2 * half, pairing };
        let got = same_at_every_level(|isa| {
            let mut y = x.clone();
            rotation.apply_with(isa, &mut y, seq, heads, head_dim);
            y
        });
        let mut want: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for (index, head) in want.chunks_exact_mut(head_dim).enumerate() {
            let position = index / heads % seq;
            for i in 0..half {
                let (a, b) = if neighbours { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (cos, sin) = (cos[position * half + i], sin[position * half + i]);
                let (cos, sin) = (f64::from(cos), f64::from(sin));
                (head[a], head[b]) =
                    (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
        }
        for (got, want) in got.iter().zip(want) {
            near(*got, want, 3e-7);
        }
    }

    #[test]
    fn conversions_agree_with_half(bits in prop::collection::vec(any::<u32>(), 0..100)) {
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let mut narrow = vec![bf16::ZERO; x.len()];
        convert::f32_to_bf16(&x, &mut narrow);
        let mut narrow16 = vec![f16::ZERO; x.len()];
        convert::f32_to_f16(&x, &mut narrow16);
        for ((x, narrow), narrow16) in x.iter().zip(&narrow).zip(&narrow16) {
            prop_assert_eq!(narrow.to_bits(), bf16::from_f32(*x).to_bits());
            prop_assert_eq!(narrow16.is_nan(), x.is_nan());
            prop_assert!(x.is_nan() || narrow16.to_bits() == f16::from_f32(*x).to_bits());
        }
    }
}

#[test]
fn every_16_bit_number_survives_widening_and_narrowing() {
    let codes: Vec<u16> = (0..=u16::MAX).collect();
    let mut wide = vec![0.0; codes.len()];
    let source: Vec<bf16> = codes.iter().map(|code| bf16::from_bits(*code)).collect();
    let mut back = vec![bf16::ZERO; codes.len()];
    convert::bf16_to_f32(&source, &mut wide);
    convert::f32_to_bf16(&wide, &mut back);
    for (source, back) in source.iter().zip(&back) {
        assert!(source == back || source.is_nan() && back.is_nan());
    }
    let source: Vec<f16> = codes.iter().map(|code| f16::from_bits(*code)).collect();
    let mut back = vec![f16::ZERO; codes.len()];
    convert::f16_to_f32(&source, &mut wide);
    convert::f32_to_f16(&wide, &mut back);
    for (source, back) in source.iter().zip(&back) {
        assert!(source == back || source.is_nan() && back.is_nan());
    }
}

#[test]
fn gives_the_same_bits_on_any_number_of_threads() {
    let (rows, width) = (700, 192);
    let x = numbers(rows * width, 29);
    let gain = numbers(width, 30);
    let angles = numbers(100 * 32, 31);
    let rotation = Rotation { cos: &angles, sin: &angles, rotary: 64, pairing: Pairing::Halves };
    let run = |threads: usize| {
        on_threads(threads, || {
            let mut y = x.clone();
            rms_norm_in_place_with(Isa::detect(), &mut y, &gain, 1e-5);
            rotation.apply(&mut y, 100, 3, 64);
            Activation::Silu.gate_multiply(&mut y, &x);
            bits(&y)
        })
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}
