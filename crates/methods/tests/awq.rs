//! AWQ's search on groups of layers, against its loss computed here in f64.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Random, build, gram, method};
use lapidary_methods::{
    Blockwise, Group, Method, Reader, Rescaled, Shared, Site, Statistics, Tensorwise,
};
use lapidary_weight::FloatType;
use serde_json::json;

fn awq(grid: usize) -> Box<dyn Blockwise> {
    match build("awq", json!({"grid": grid})) {
        Method::Blockwise(method) => method,
        _ => panic!("awq scales"),
    }
}

/// A group whose layers are encoded by one method.
struct Layers {
    weights: Vec<Vec<f32>>,
    cols: usize,
    statistics: Statistics,
    shared: Shared,
    encoder: Box<dyn Tensorwise>,
}

impl Layers {
    fn rescale(&self, grid: usize) -> Rescaled {
        let rows = |weight: &Vec<f32>| weight.len() / self.cols;
        let readers = self.weights.iter().map(|weight| Reader {
            name: "layer",
            rows: rows(weight),
            weight,
            scale_type: FloatType::F32,
            encoder: &*self.encoder,
            inputs: None,
        });
        let readers = readers.collect();
        let group = Group { readers, statistics: &self.statistics, shared: self.shared };
        let rescaled = awq(grid).rescale(&group).unwrap();
        assert_eq!(rescaled.scales.len(), self.cols);
        assert!(rescaled.scales.iter().all(|scale| scale.is_finite() && *scale > 0.0));
        rescaled
    }

    /// `Σ ‖(Q(W s) / s − W) X‖²`, by definition.
    fn loss(&self, scales: &[f32]) -> f64 {
        let mut sum = 0.0;
        for weight in &self.weights {
            let rows = weight.len() / self.cols;
            let scaled: Vec<f32> =
                weight.iter().enumerate().map(|(at, w)| w * scales[at % self.cols]).collect();
            let site = Site {
                name: "layer",
                rows,
                cols: self.cols,
                weight: &scaled,
                statistics: None,
                scale_type: FloatType::F32,
                peak: None,
            };
            let decoded = self.encoder.encode(&site).unwrap().weight.decode();
            let error = |row: usize, col: usize| {
                let at = row * self.cols + col;
                f64::from(decoded[at]) / f64::from(scales[col]) - f64::from(weight[at])
            };
            for row in 0..rows {
                for i in 0..self.cols {
                    for j in 0..self.cols {
                        let h = f64::from(self.statistics.gram[i * self.cols + j]);
                        sum += error(row, i) * h * error(row, j);
                    }
                }
            }
        }
        sum
    }
}

fn layers(random: &mut Random, inputs: &[f32], cols: usize, rows: &[usize]) -> Layers {
    Layers {
        weights: rows.iter().map(|rows| random.gaussians(rows * cols)).collect(),
        cols,
        statistics: gram(inputs, cols),
        shared: Shared::default(),
        encoder: method("rtn", json!({"bits": 3, "group_size": 16, "symmetric": false})),
    }
}

/// Card, must show 4: one channel a hundred times larger, and the module's error falls; 2: never
/// above that without scales.
#[test]
fn a_channel_that_stands_out_is_scaled_up() {
    let mut random = Random::new(1);
    let cols = 32;
    let mut inputs = random.gaussians(300 * cols);
    inputs.iter_mut().skip(5).step_by(cols).for_each(|x| *x *= 100.0);
    let layers = layers(&mut random, &inputs, cols, &[24, 8]);
    let rescaled = layers.rescale(20);
    let (scaled, plain) = (layers.loss(&rescaled.scales), layers.loss(&[1.0; 32]));
    assert!(scaled < 0.3 * plain, "{scaled} {plain}");
    let largest = rescaled.scales.iter().copied().fold(0.0, f32::max);
    assert_eq!(rescaled.scales[5], largest);
    // Must show 5: what stands out in the weights instead is of no use.
    let mut by_weight = vec![1.0_f32; cols];
    for (column, scale) in by_weight.iter_mut().enumerate() {
        let of_column = layers.weights.iter().flat_map(|w| w.iter().skip(column).step_by(cols));
        *scale = of_column.map(|w| w * w).sum::<f32>().sqrt();
    }
    let mean = by_weight.iter().sum::<f32>() / cols as f32;
    by_weight.iter_mut().for_each(|scale| *scale /= mean);
    assert!(scaled < layers.loss(&by_weight));
}

/// Must show 2 and 4 for inputs of all kinds: never worse than no scale, and no scale at all where
/// all channels are alike.
#[test]
fn the_search_never_loses() {
    let mut random = Random::new(2);
    for (case, spread) in [0.0, 0.5, 2.0].into_iter().enumerate() {
        let cols = 24;
        let sizes: Vec<f32> =
            (0..cols).map(|_| (spread * random.gaussian()).exp() as f32).collect();
        let mut inputs = random.gaussians(200 * cols);
        inputs.iter_mut().enumerate().for_each(|(at, x)| *x *= sizes[at % cols]);
        let layers = layers(&mut random, &inputs, cols, &[9]);
        let rescaled = layers.rescale(10);
        let (scaled, plain) = (layers.loss(&rescaled.scales), layers.loss(&[1.0; 24]));
        assert!(scaled <= plain * 1.0001, "case {case}: {scaled} {plain}");
    }
    // Equal channels: every candidate is the identity.
    let cols = 8;
    let inputs: Vec<f32> =
        (0..64 * cols).map(|i| if i * 7 % 13 < 6 { 1.0 } else { -1.0 }).collect();
    let layers = layers(&mut random, &inputs, cols, &[4]);
    assert_eq!(layers.rescale(20).scales, [1.0; 8]);
}

/// Must show 3: scales that are equal within every group of the grid change no weight.
#[test]
fn the_grid_moves_with_scales_of_whole_groups() {
    let mut random = Random::new(3);
    let inputs = random.gaussians(100 * 32);
    let layers = layers(&mut random, &inputs, 32, &[6]);
    let scales: Vec<f32> = (0..32).map(|column| if column < 16 { 4.0 } else { 0.5 }).collect();
    let (scaled, plain) = (layers.loss(&scales), layers.loss(&[1.0; 32]));
    assert!((scaled / plain - 1.0).abs() < 1e-5, "{scaled} {plain}");
}

/// Channels that one value row feeds, for query heads that share a key head, share a scale.
#[test]
fn shared_channels_share_a_scale() {
    let mut random = Random::new(4);
    let (heads, repeat, head_dim) = (2, 3, 4);
    let cols = heads * repeat * head_dim;
    let mut inputs = random.gaussians(200 * cols);
    inputs.iter_mut().skip(7).step_by(cols).for_each(|x| *x *= 50.0);
    let layers =
        Layers { shared: Shared { repeat, head_dim }, ..layers(&mut random, &inputs, cols, &[10]) };
    let scales = layers.rescale(20).scales;
    for channel in 0..cols {
        let row = channel / head_dim / repeat * head_dim + channel % head_dim;
        let first = row / head_dim * repeat * head_dim + row % head_dim;
        assert_eq!(scales[channel], scales[first], "channel {channel}");
    }
    assert!(scales[3] > scales[0], "channel 7 is of head 1, which shares head 0's values");
    assert!(layers.loss(&scales) < layers.loss(&vec![1.0; cols]));
}

/// Dead inputs, an outlier, equal rows, one row, a ragged group, an encoder with statistics.
#[test]
fn awkward_groups_are_never_worse() {
    let mut random = Random::new(5);
    for (encoder, params) in [("rtn", json!({"bits": 2, "group_size": 5})), ("gptq", json!({}))] {
        for rows in [1, 7] {
            let cols = 13;
            let mut inputs = random.correlated(30, cols, 0.7);
            inputs.iter_mut().skip(2).step_by(cols).for_each(|x| *x = 0.0);
            let mut layers = layers(&mut random, &inputs, cols, &[rows, 2]);
            layers.weights[0][3] = 1e4;
            layers.weights[1].copy_within(0..cols, cols);
            layers.encoder = method(encoder, params.clone());
            let scales = layers.rescale(20).scales;
            assert_eq!(scales[2], 1.0, "a dead channel has nothing to scale");
            if encoder == "rtn" {
                let (scaled, plain) = (layers.loss(&scales), layers.loss(&[1.0; 13]));
                assert!(scaled <= plain * 1.0001, "{scaled} {plain}");
            }
        }
    }
    let nothing = gram(&[0.0; 8], 8);
    let mut layers = layers(&mut random, &[1.0; 8], 8, &[3]);
    layers.statistics = nothing;
    assert_eq!(layers.rescale(20).scales, [1.0; 8]);
}
