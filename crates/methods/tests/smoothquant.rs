//! SmoothQuant's scales against the card's formulas in f64, and what they do to rounded products.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Random, build, gram, method};
use lapidary_methods::{
    Blockwise, Group, Inputs, Method, MethodError, Reader, Rescaled, Shared, Site, Statistics,
    Tensorwise, find,
};
use lapidary_weight::{FloatType, InputNumbers, InputRounding, InputScales};
use serde_json::{Value, json};

fn smoothquant(alpha: Value) -> Box<dyn Blockwise> {
    match build("smoothquant", json!({"alpha": alpha})) {
        Method::Blockwise(method) => method,
        _ => panic!("smoothquant scales"),
    }
}

/// Layers that share inputs `[tokens, cols]`.
struct Layers {
    inputs: Vec<f32>,
    weights: Vec<Vec<f32>>,
    cols: usize,
    shared: Shared,
    encoder: Box<dyn Tensorwise>,
    rounding: Option<InputRounding>,
}

impl Layers {
    fn new(inputs: Vec<f32>, weights: Vec<Vec<f32>>, cols: usize) -> Self {
        let encoder = method("rtn", json!({"bits": 8, "group_size": "row", "symmetric": true}));
        let rounding = Some(InputRounding::INT8);
        Self { inputs, weights, cols, shared: Shared::default(), encoder, rounding }
    }

    fn statistics(&self) -> Statistics {
        let mut inputs = Inputs::new(self.cols);
        inputs.add(&self.inputs);
        Statistics { inputs: Some(inputs), ..gram(&self.inputs, self.cols) }
    }

    fn try_rescale(&self, alpha: Value, statistics: &Statistics) -> Result<Rescaled, MethodError> {
        let readers = self.weights.iter().map(|weight| Reader {
            name: "layer",
            rows: weight.len() / self.cols,
            weight,
            scale_type: FloatType::F32,
            encoder: &*self.encoder,
            inputs: self.rounding,
        });
        let group = Group { readers: readers.collect(), statistics, shared: self.shared };
        smoothquant(alpha).rescale(&group)
    }

    fn rescale(&self, alpha: Value) -> Vec<f32> {
        let scales = self.try_rescale(alpha, &self.statistics()).unwrap().scales;
        assert_eq!(scales.len(), self.cols);
        assert!(scales.iter().all(|scale| scale.is_finite() && *scale > 0.0));
        scales
    }

    /// The layers after scaling: inputs divided, columns multiplied.
    fn scaled(&self, scales: &[f32]) -> Self {
        let each = |values: &[f32], by: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
            let at = |(index, value): (usize, &f32)| by(*value, scales[index % self.cols]);
            values.iter().enumerate().map(at).collect()
        };
        let inputs = each(&self.inputs, &|x, s| x / s);
        let weights = self.weights.iter().map(|weight| each(weight, &|w, s| w * s)).collect();
        Self {
            shared: self.shared,
            rounding: self.rounding,
            ..Self::new(inputs, weights, self.cols)
        }
    }

    /// The largest magnitudes of a channel, of its inputs and of its weights.
    fn peaks(&self, channel: usize) -> (f64, f64) {
        let most = |values: &mut dyn Iterator<Item = &f32>| -> f64 {
            values.fold(0.0, |most, value| most.max(f64::from(value.abs())))
        };
        let inputs = most(&mut self.inputs.iter().skip(channel).step_by(self.cols));
        let weights = self.weights.iter().flat_map(|w| w.iter().skip(channel).step_by(self.cols));
        (inputs, most(&mut weights.into_iter()))
    }

    /// `Q(X) Q(W)ᵀ`, or without rounding `X Wᵀ`, by definition.
    fn products(&self, rounded: bool) -> Vec<f64> {
        let mut inputs = self.inputs.clone();
        if let Some(rounding) = self.rounding.filter(|_| rounded) {
            rounding.apply(&mut inputs, self.cols);
        }
        let mut products = vec![];
        for weight in &self.weights {
            let site = Site {
                name: "layer",
                rows: weight.len() / self.cols,
                cols: self.cols,
                weight,
                statistics: None,
                scale_type: FloatType::F32,
                peak: None,
            };
            let stored = match rounded {
                true => self.encoder.encode(&site).unwrap().weight.decode(),
                false => weight.clone(),
            };
            for token in inputs.chunks_exact(self.cols) {
                for row in stored.chunks_exact(self.cols) {
                    let terms = token.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    products.push(terms.sum());
                }
            }
        }
        products
    }
}

/// Inputs of channels of all sizes, one of which stands out.
fn uneven(random: &mut Random, tokens: usize, cols: usize) -> Layers {
    let sizes: Vec<f32> = (0..cols).map(|_| (0.7 * random.gaussian()).exp() as f32).collect();
    let mut inputs = random.gaussians(tokens * cols);
    inputs.iter_mut().enumerate().for_each(|(at, x)| *x *= sizes[at % cols]);
    inputs.iter_mut().skip(3).step_by(cols).for_each(|x| *x *= 50.0);
    let weights = vec![random.gaussians(12 * cols), random.gaussians(5 * cols)];
    Layers::new(inputs, weights, cols)
}

const ALPHAS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// The card's formula in f64, over all tokens and over the rows of all the layers.
#[test]
fn scales_are_the_authors() {
    let layers = uneven(&mut Random::new(1), 90, 24);
    for alpha in ALPHAS {
        let scales = layers.rescale(json!(alpha));
        for (channel, scale) in scales.iter().enumerate() {
            let (a, w) = layers.peaks(channel);
            let expected = a.powf(alpha) / w.max(1e-5).powf(1.0 - alpha);
            assert!((f64::from(*scale) / expected - 1.0).abs() < 1e-6, "{alpha} {channel}");
        }
    }
}

/// Must show 2, and 1 as far as it is the method's: the peaks that each alpha promises, and the same
/// products.
#[test]
fn each_alpha_makes_the_peaks_it_promises() {
    let layers = uneven(&mut Random::new(2), 70, 16);
    let exact = layers.products(false);
    let largest = exact.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    for alpha in ALPHAS {
        let scaled = layers.scaled(&layers.rescale(json!(alpha)));
        for channel in 0..16 {
            let ((a, w), (before_a, before_w)) = (scaled.peaks(channel), layers.peaks(channel));
            let near = |x: f64, y: f64| assert!((x / y - 1.0).abs() < 1e-5, "{alpha}: {x} {y}");
            match alpha {
                0.0 => near(w, 1.0),
                0.5 => (near(a, w), near(a, (before_a * before_w).sqrt())).0,
                1.0 => near(a, 1.0),
                _ => {}
            }
        }
        for (x, y) in scaled.products(false).iter().zip(&exact) {
            assert!((x - y).abs() < 1e-5 * largest, "{alpha}: {x} {y}");
        }
    }
}

/// Must show 4: the second time there is nothing left to even out.
#[test]
fn smoothing_twice_is_smoothing_once() {
    let layers = uneven(&mut Random::new(3), 60, 20);
    let again = layers.scaled(&layers.rescale(json!(0.5))).rescale(json!(0.5));
    assert!(again.iter().all(|scale| (scale - 1.0).abs() < 1e-5), "{again:?}");
}

/// Must show 3: one channel a hundred times larger among 256, with a scale a token and a row or one for
/// all; the error falls by an order of magnitude, most near 1/2.
#[test]
fn an_outlier_channel_costs_little_when_smoothed() {
    let mut random = Random::new(4);
    let cols = 256;
    let mut inputs = random.gaussians(128 * cols);
    inputs.iter_mut().skip(77).step_by(cols).for_each(|x| *x *= 100.0);
    let weights = vec![random.gaussians(64 * cols)];
    let mut layers = Layers::new(inputs, weights, cols);
    for (group_size, least) in [("row", [6.0, 20.0, 8.0, 3.0]), ("tensor", [5.0, 15.0, 6.0, 2.4])] {
        let params = json!({"bits": 8, "group_size": group_size, "symmetric": true});
        layers.encoder = method("rtn", params.clone());
        if group_size == "tensor" {
            let peak = layers.inputs.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            layers.rounding = Some(fixed(peak));
        }
        let error = |layers: &Layers, scales: &[f32]| {
            let exact = layers.products(false);
            let mut scaled = layers.scaled(scales);
            scaled.encoder = method("rtn", params.clone());
            if group_size == "tensor" {
                let peak = scaled.inputs.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                scaled.rounding = Some(fixed(peak));
            }
            let rounded = scaled.products(true);
            exact.iter().zip(&rounded).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
        };
        let plain = error(&layers, &vec![1.0; cols]);
        let falls = [0.3, 0.5, 0.7, 0.8].map(|a| plain / error(&layers, &layers.rescale(json!(a))));
        for (fall, least) in falls.iter().zip(least) {
            assert!(*fall > least, "{group_size}: {falls:?}");
        }
        assert!(falls[1] > falls[0] && falls[1] > falls[2] && falls[2] > falls[3], "{falls:?}");
    }
}

fn fixed(peak: f32) -> InputRounding {
    let scales = InputScales::Fixed(peak / 127.5);
    InputRounding { numbers: InputNumbers::Integers(8), scales }
}

/// Must show 5: on tokens that reach further than those of calibration a scale that was settled before
/// loses more than one that follows.
#[test]
fn a_fixed_scale_clips_what_it_has_not_seen() {
    let mut random = Random::new(5);
    let layers = uneven(&mut random, 64, 32);
    let mut smooth = layers.scaled(&layers.rescale(json!(0.5)));
    let peak = smooth.inputs.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    smooth.inputs.iter_mut().for_each(|x| *x *= 3.0);
    let exact = smooth.products(false);
    let mut error = |rounding: InputRounding| {
        smooth.rounding = Some(rounding);
        let rounded = smooth.products(true);
        exact.iter().zip(&rounded).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
    };
    let (dynamic, fixed) = (error(InputRounding::INT8), error(fixed(peak)));
    assert!(fixed > 10.0 * dynamic, "{fixed} {dynamic}");
}

/// The search is never above no scales nor above any alpha of its grid, on a sample that is all tokens.
#[test]
fn the_search_finds_the_least_error_of_its_grid() {
    let mut random = Random::new(6);
    for (case, bits) in [8, 4, 3].into_iter().enumerate() {
        let mut layers = uneven(&mut random, 100, 32);
        layers.encoder = method("rtn", json!({"bits": bits, "group_size": "row"}));
        layers.rounding = (case != 2).then_some(InputRounding::INT8);
        let found = layers.try_rescale(json!("search"), &layers.statistics()).unwrap();
        let error = |scales: &[f32]| {
            let mut scaled = layers.scaled(scales);
            scaled.encoder = method("rtn", json!({"bits": bits, "group_size": "row"}));
            let (exact, rounded) = (layers.products(false), scaled.products(true));
            exact.iter().zip(&rounded).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
        };
        let least = error(&found.scales);
        assert!(least <= 1.0001 * error(&[1.0; 32]), "{bits}");
        for step in 0..=20 {
            let alpha = f64::from(step) / 20.0;
            let of_alpha = error(&layers.rescale(json!(alpha)));
            assert!(least <= 1.0001 * of_alpha, "{bits} bits, {alpha}: {least} {of_alpha}");
        }
        assert!(found.notes[0].what.contains("of the outputs' error"), "{:?}", found.notes);
    }
}

/// Alpha 0 looks at the weights alone: other inputs, the same scales.
#[test]
fn without_alpha_inputs_do_not_count() {
    let mut layers = uneven(&mut Random::new(7), 40, 16);
    let scales = layers.rescale(json!(0));
    layers.inputs.iter_mut().for_each(|x| *x *= 17.0);
    assert_eq!(layers.rescale(json!(0)), scales);
}

/// Channels that one value row feeds share the scale of their largest peaks.
#[test]
fn shared_channels_share_a_scale() {
    let mut random = Random::new(8);
    let (heads, repeat, head_dim) = (2, 3, 4);
    let cols = heads * repeat * head_dim;
    let mut layers = uneven(&mut random, 50, cols);
    layers.shared = Shared { repeat, head_dim };
    let scales = layers.rescale(json!(0.5));
    for (channel, scale) in scales.iter().enumerate() {
        let first = layers.shared.first(channel);
        let of_one = (0..cols).filter(|other| layers.shared.first(*other) == first);
        let (a, w) = of_one
            .map(|other| layers.peaks(other))
            .fold((0.0, 0.0), |(a, w), (b, v)| (f64::max(a, b), f64::max(w, v)));
        assert!((f64::from(*scale) / (a / w).sqrt() - 1.0).abs() < 1e-6, "{channel}");
    }
}

/// Dead inputs, dead weights, tiny weights, nothing at all, no statistics.
#[test]
fn awkward_groups_keep_finite_scales() {
    let mut layers = uneven(&mut Random::new(9), 30, 8);
    layers.inputs.iter_mut().skip(2).step_by(8).for_each(|x| *x = 0.0);
    for weight in &mut layers.weights {
        weight.iter_mut().skip(4).step_by(8).for_each(|w| *w = 0.0);
        weight.iter_mut().skip(5).step_by(8).for_each(|w| *w *= 1e-20);
    }
    for alpha in [json!(0), json!(0.5), json!(1), json!("search")] {
        let scales = layers.rescale(alpha);
        assert_eq!((scales[2], scales[4]), (1.0, 1.0), "nothing to even out");
        assert!(scales.iter().all(|scale| (1e-5..=1e6).contains(scale)), "{scales:?}");
    }
    layers.inputs.fill(0.0);
    assert_eq!(layers.rescale(json!("search")), [1.0; 8]);
    let error = layers.try_rescale(json!(0.5), &gram(&layers.inputs, 8)).unwrap_err();
    assert!(error.to_string().contains("needs the peaks of its inputs"), "{error}");
}

#[test]
fn alpha_is_a_number_from_0_to_1_or_search() {
    let build = find("smoothquant").unwrap().build;
    for (alpha, reason) in [
        (json!(1.5), "1.5 is not from 0 to 1"),
        (json!(-0.1), "-0.1 is not from 0 to 1"),
        (json!("best"), "\"best\" is neither a number from 0 to 1 nor search"),
    ] {
        let error = build(&json!({ "alpha": alpha })).err().unwrap();
        assert_eq!(error.path, "alpha");
        assert!(error.what.contains(reason), "{error}");
    }
}
