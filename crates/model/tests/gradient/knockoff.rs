//! Second-order knockoffs: their moments against those of the card, and what they are made of.

use crate::support::noise;
use candle_core::{Device, Tensor};
use lapidary_model::gradient::SecondOrder;

/// Rows with the covariance `factor · factorᵀ` about the mean.
fn rows_of(mean: &[f64], factor: &[f64], count: usize) -> Vec<f64> {
    let n = mean.len();
    let row = |row: usize| {
        let normal = noise(row as u64 + 1000, n);
        let value = |i: usize| (0..n).map(|k| factor[i * n + k] * normal[k]).sum::<f64>() + mean[i];
        (0..n).map(value).collect::<Vec<_>>()
    };
    (0..count).flat_map(row).collect()
}

fn knockoffs(law: &SecondOrder, rows: &[f64], channels: usize) -> Vec<f64> {
    let floats: Vec<f32> = rows.iter().map(|value| *value as f32).collect();
    let rows = Tensor::from_vec(floats, (rows.len() / channels, channels), &Device::Cpu).unwrap();
    let sampled = law.sample(&rows, 17).unwrap();
    let sampled: Vec<f32> = sampled.flatten_all().unwrap().to_vec1().unwrap();
    sampled.into_iter().map(f64::from).collect()
}

fn covariance(a: &[f64], b: &[f64], channels: usize) -> Vec<f64> {
    let rows = (a.len() / channels) as f64;
    let mean = |x: &[f64], i: usize| x.iter().skip(i).step_by(channels).sum::<f64>() / rows;
    let of = |i: usize, j: usize| {
        let products = a.chunks(channels).zip(b.chunks(channels)).map(|(a, b)| a[i] * b[j]);
        products.sum::<f64>() / rows - mean(a, i) * mean(b, j)
    };
    (0..channels * channels).map(|at| of(at / channels, at % channels)).collect()
}

/// The card's check: `cov(z̃) = Σ`, `cov(z, z̃) = Σ − diag(s)`, means the same.
#[test]
fn knockoffs_have_the_covariance_of_the_channels_and_the_same_with_them() {
    let n = 5;
    let mut factor = noise(3, n * n);
    (0..n).for_each(|i| factor[i * n + i] += 2.0);
    let mean = [0.5, -3.0, 20.0, 0.0, 1.0];
    let product = |at: usize| {
        let (i, j) = (at / n, at % n);
        (0..n).map(|k| factor[i * n + k] * factor[j * n + k]).sum::<f64>()
    };
    let sigma: Vec<f64> = (0..n * n).map(product).collect();
    let law = SecondOrder::new(&mean, &sigma, 0.0).unwrap();
    let s = law.independence();
    assert!(s > 0.1 && s < 1.0, "{s}");
    let rows = rows_of(&mean, &factor, 200_000);
    let other = knockoffs(&law, &rows, n);
    let (own, cross) = (covariance(&other, &other, n), covariance(&rows, &other, n));
    for at in 0..n * n {
        let (i, j) = (at / n, at % n);
        let scale = (sigma[i * n + i] * sigma[j * n + j]).sqrt();
        let apart = if i == j { s * sigma[at] } else { 0.0 };
        assert!((own[at] - sigma[at]).abs() < 0.015 * scale, "{i} {j}: {}", own[at]);
        assert!((cross[at] - (sigma[at] - apart)).abs() < 0.015 * scale, "{i} {j}: {}", cross[at]);
    }
    for (i, mean) in mean.iter().enumerate() {
        let count = (other.len() / n) as f64;
        let have = other.iter().skip(i).step_by(n).sum::<f64>() / count;
        assert!((have - mean).abs() < 0.015 * sigma[i * n + i].sqrt(), "{i}: {have}");
    }
}

/// Of two channels with correlation `r` the eigenvalues are `1 ± r`; shrinking makes `r` less.
#[test]
fn the_share_of_a_channel_is_twice_the_least_eigenvalue() {
    let law = |r: f64, shrinkage| {
        SecondOrder::new(&[0.0; 2], &[4.0, 6.0 * r, 6.0 * r, 9.0], shrinkage).unwrap()
    };
    for (r, shrinkage, want) in
        [(0.6, 0.0, 0.8), (0.6, 0.1, 0.92), (-0.9, 0.0, 0.2), (1.0, 0.1, 0.2), (0.3, 0.0, 1.0)]
    {
        let have = law(r, shrinkage).independence();
        assert!((have - want).abs() < 1e-9, "{r} {shrinkage}: {have} is not {want}");
    }
    // Nothing is left of a channel that another one says, without shrinkage.
    assert!(SecondOrder::new(&[0.0; 2], &[1.0, 2.0, 2.0, 1.0], 0.0).is_err());
    assert!(SecondOrder::new(&[0.0], &[f64::NAN], 0.1).is_err());
    assert!(SecondOrder::new(&[0.0; 2], &[1.0], 0.1).is_err());
}

#[test]
fn a_channel_that_never_changes_is_its_own_knockoff() {
    let law = SecondOrder::new(&[7.0, 0.0], &[0.0, 0.0, 0.0, 1.0], 0.1).unwrap();
    let rows: Vec<f64> = noise(5, 100).into_iter().flat_map(|x| [7.0, x]).collect();
    let other = knockoffs(&law, &rows, 2);
    assert!(other.iter().step_by(2).all(|value| *value == 7.0));
    assert!(rows.iter().zip(&other).skip(1).step_by(2).all(|(z, other)| z != other));
}
