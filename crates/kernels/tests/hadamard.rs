//! The Hadamard transform against its definition, and that rotations are orthogonal.

mod common;

use common::{bits, near, numbers, on_threads};
use lapidary_kernels::hadamard::{Rotation, hadamard, hadamard_with};
use lapidary_kernels::isa::Isa;
use proptest::prelude::*;

/// `x H` by the definition, in f64.
fn defined(x: &[f32], width: usize) -> Vec<f64> {
    let transform = |run: &[f32], j: usize| -> f64 {
        let sign = |i: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let sum: f64 = run.iter().enumerate().map(|(i, x)| sign(i) * f64::from(*x)).sum();
        sum / (width as f64).sqrt()
    };
    x.chunks_exact(width).flat_map(|run| (0..width).map(|j| transform(run, j))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_transform_is_its_definition(power in 0_u32..10, runs in 0_usize..5, seed in any::<u64>()) {
        let width = 1 << power;
        let x = numbers(runs * width, seed);
        let wanted = defined(&x, width);
        let mut portable = x.clone();
        hadamard_with(Isa::Portable, &mut portable, width);
        for (got, wanted) in portable.iter().zip(&wanted) {
            near(*got, *wanted, 1e-6 * (width as f64).sqrt());
        }
        for isa in [Isa::Avx2, Isa::Avx512, Isa::detect()] {
            let mut other = x.clone();
            hadamard_with(isa, &mut other, width);
            prop_assert_eq!(bits(&other), bits(&portable));
        }
    }

    /// Lengths stay, and undoing gives the values back, for every width.
    #[test]
    fn rotations_are_orthogonal(width in 1_usize..200, runs in 1_usize..4, key in any::<u64>()) {
        let x = numbers(runs * width, key);
        let rotation = Rotation::new(width, key);
        prop_assert_eq!(rotation.width(), width);
        let mut rotated = x.clone();
        rotation.apply(&mut rotated);
        let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        for (x, rotated) in x.chunks_exact(width).zip(rotated.chunks_exact(width)) {
            prop_assert!((length(rotated) / length(x) - 1.0).abs() < 1e-5);
        }
        rotation.undo(&mut rotated);
        for (got, wanted) in rotated.iter().zip(&x) {
            near(*got, f64::from(*wanted), 1e-5);
        }
    }
}

/// `Qᵀ Q = I`, and no channel goes to few others: the width of a real model, 9 · 64, among them.
#[test]
fn every_channel_is_spread_over_all() {
    for width in [1, 2, 7, 12, 40, 96, 576] {
        let rotation = Rotation::new(width, 7);
        let mut q = vec![0.0_f32; width * width];
        (0..width).for_each(|i| q[i * width + i] = 1.0);
        rotation.apply(&mut q);
        let bound = (2.0 / width as f32).sqrt() * 1.001;
        assert!(q.iter().all(|value| value.abs() <= bound), "{width}");
        for i in 0..width {
            for j in 0..width {
                let dot: f64 =
                    (0..width).map(|k| f64::from(q[i * width + k] * q[j * width + k])).sum();
                near(dot as f32, if i == j { 1.0 } else { 0.0 }, 1e-5);
            }
        }
    }
}

#[test]
fn keys_differ_and_threads_do_not_matter() {
    let x = numbers(96 * 1000, 3);
    let rotate = |key: u64, threads: usize| {
        on_threads(threads, || {
            let mut x = x.clone();
            Rotation::new(96, key).apply(&mut x);
            bits(&x)
        })
    };
    assert_eq!(rotate(1, 1), rotate(1, 3));
    assert_ne!(rotate(1, 1), rotate(2, 1));
    let mut twice = x.clone();
    hadamard(&mut twice, 32);
    hadamard(&mut twice, 32);
    x.iter().zip(&twice).for_each(|(x, twice)| near(*twice, f64::from(*x), 1e-5));
}

#[test]
#[should_panic(expected = "no power of two")]
fn only_powers_of_two() {
    hadamard(&mut [0.0; 12], 12);
}
