//! SCOP on feed-forwards: where they are, the mixture and its slopes, what the card must show.

use crate::support::{Model, dot, mean, model, models, noise, norm, slope};
use candle_core::{Device, Tensor};
use lapidary_kernels::random::{nth, unit};
use lapidary_model::gradient::{
    Backward, BlockGradients, FeedForward, Mixture, Neurons, Reading, Scop, Training,
    feed_forwards, scop, train,
};
use lapidary_model::{Batch, Executor, Fused, GraphWeights, ModelError, Precision, spec};
use lapidary_weight::Tensors;
use std::collections::BTreeMap;

/// A little training, where not its result matters but what is made of it.
const SHORT: Training = Training { steps: 3, rows: 2, rate: 4e-3 };

/// Knockoffs that are the input with noise, for tests that need no law.
fn noisy(index: usize, row: usize, input: &Tensor) -> Result<Tensor, ModelError> {
    let values = noise(nth(index as u64, row as u64), input.elem_count());
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    let noise = Tensor::from_vec(values, input.shape(), input.device())?;
    Ok(((input * 0.5)? + noise)?)
}

fn all(feed_forwards: &[FeedForward], share: f32) -> Vec<Vec<f32>> {
    feed_forwards.iter().map(|ff| vec![share; ff.neurons()]).collect()
}

fn losses(model: &Model, rows: &[Vec<u32>], mixture: &Mixture<'_>) -> Vec<f64> {
    let replace = |reading: &Reading<'_>| mixture.replace(reading);
    let backward = Backward::new(&model.spec, model).replacing(&replace);
    backward.losses(rows, &*model.loss()).unwrap()
}

/// Mean slopes of the shares over the rows.
fn slopes(
    model: &Model,
    rows: &[Vec<u32>],
    ffs: &[FeedForward],
    mix: &Mixture<'_>,
) -> Vec<Vec<f64>> {
    slopes_with(model, rows, ffs, mix, &|_| Ok(None))
}

/// The same, other inputs being replaced too.
fn slopes_with(
    model: &Model,
    rows: &[Vec<u32>],
    feed_forwards: &[FeedForward],
    mixture: &Mixture<'_>,
    also: &dyn Fn(&Reading<'_>) -> Result<Option<Tensor>, ModelError>,
) -> Vec<Vec<f64>> {
    let mut slopes: Vec<Vec<f64>> =
        feed_forwards.iter().map(|ff| vec![0.0; ff.neurons()]).collect();
    let replace = |reading: &Reading<'_>| match mixture.replace(reading)? {
        Some(mixed) => Ok(Some(mixed)),
        None => also(reading),
    };
    let mut visit = |gradients: &BlockGradients<'_>| mixture.add_slopes(gradients, &mut slopes);
    let backward = Backward::new(&model.spec, model).replacing(&replace);
    backward.run(rows, &*model.loss(), &mut visit).unwrap();
    slopes.iter_mut().flatten().for_each(|slope| *slope /= rows.len() as f64);
    slopes
}

#[test]
fn every_feed_forward_is_found_and_nothing_else() {
    let ends = [
        "mlp.down_proj",
        "mlp.c_proj",
        ".w2",
        "mlp.dense_4h_to_h",
        ".fc2",
        "ffn.lin2",
        "ffn_output",
        "output.dense",
    ];
    for name in models() {
        let model = model(&name);
        let have: Vec<String> = feed_forwards(&model.spec)
            .iter()
            .flat_map(|ff| ff.readers.iter().map(|linear| linear.module.clone()))
            .collect();
        let linears = model.spec.blocks.iter().flat_map(lapidary_model::Graph::linears);
        let modules = linears.map(|linear| linear.module.clone());
        let is_last = |module: &String| {
            let attention = module.ends_with("attention.output.dense");
            let expert = module.contains("experts.") && module.ends_with("down_proj");
            expert || (!attention && ends.iter().any(|end| module.ends_with(end)))
        };
        let want: Vec<String> = modules.filter(is_last).collect();
        assert!(want.len() >= model.spec.blocks.len(), "{name}");
        assert_eq!(have, want, "{name}");
    }
}

/// The input of an expert is some rows of what the router reads, as that of its neighbours.
#[test]
fn experts_have_a_common_source() {
    let model = model("mixtral");
    for ff in feed_forwards(&model.spec) {
        let graph = &model.spec.blocks[ff.input.block];
        let groups = graph.shared_inputs();
        let of_source = groups.iter().find(|group| group.value == ff.source).unwrap();
        assert_eq!(of_source.linears, graph.routers());
        assert!(ff.source != ff.input.value);
    }
}

/// What is run from the input of a feed-forward is what its last layers read.
#[test]
fn the_part_of_a_feed_forward_makes_its_neurons() {
    for name in ["llama-biases", "gpt2", "mixtral", "phi3", "bert-model", "gemma2", "stablelm"] {
        let model = model(name);
        let rows = model.rows(1, 7);
        let found = feed_forwards(&model.spec);
        let seen = std::cell::Cell::new(0);
        let replace = |reading: &Reading<'_>| {
            let is_hidden = |ff: &&FeedForward| {
                (ff.hidden.block, ff.hidden.value) == (reading.block, reading.group.value)
            };
            if let Some(ff) = found.iter().find(is_hidden) {
                let made = reading.run(&ff.part, reading.before[&ff.input.value].clone())?;
                let apart = (made - reading.input)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert_eq!(apart, 0.0, "{name}");
                seen.set(seen.get() + 1);
            }
            Ok(None)
        };
        let backward = Backward::new(&model.spec, &model).replacing(&replace);
        backward.losses(&rows, &*model.loss()).unwrap();
        assert_eq!(seen.get(), found.len(), "{name}");
    }
}

/// Must show 1: with `β = 1` the model is as it was; with less it is not.
#[test]
fn neurons_that_keep_their_values_change_nothing() {
    for name in ["llama-untied", "mixtral", "bert-model"] {
        let model = model(name);
        let rows = model.rows(3, 9);
        let found = feed_forwards(&model.spec);
        let plain = Backward::new(&model.spec, &model).losses(&rows, &*model.loss()).unwrap();
        let mixture = |share| Mixture::new(&found, &all(&found, share), &noisy).unwrap();
        assert_eq!(losses(&model, &rows, &mixture(1.0)), plain);
        let other = losses(&model, &rows, &mixture(0.5));
        assert!(plain.iter().zip(&other).all(|(a, b)| (a - b).abs() > 1e-3), "{name}");
    }
    let model = model("llama-untied");
    let found = feed_forwards(&model.spec);
    assert!(Mixture::new(&found, &[vec![1.0]], &noisy).is_err());
}

/// `∂L/∂β` is the slope of the loss, through the knockoffs of later blocks too.
#[test]
fn slopes_of_shares_are_differences_of_losses() {
    for name in ["llama-untied", "gpt2", "mixtral", "albert"] {
        let model = model(name);
        let rows = model.rows(2, 9);
        let found = feed_forwards(&model.spec);
        let shares: Vec<Vec<f32>> = all(&found, 0.6);
        let mixture = Mixture::new(&found, &shares, &noisy).unwrap();
        let have = slopes(&model, &rows, &found, &mixture);
        for (index, have) in have.iter().enumerate() {
            if norm(have) == 0.0 {
                // An expert that no token goes to.
                assert_eq!(name, "mixtral");
                continue;
            }
            let random = noise(index as u64, have.len());
            let along = norm(&random) / norm(have);
            let direction: Vec<f64> =
                have.iter().zip(&random).map(|(g, r)| g * along + r).collect();
            let expected = dot(&direction, have);
            let found = slope(3e-4 / expected.max(1.0), |step| {
                let mut shares = shares.clone();
                let moved = shares[index].iter_mut().zip(&direction);
                moved.for_each(|(share, d)| *share += (step * d) as f32);
                mean(&losses(&model, &rows, &Mixture::new(&found, &shares, &noisy).unwrap()))
            });
            assert!((found / expected - 1.0).abs() < 2e-2, "{name} {index}: {found}, {expected}");
        }
    }
}

/// Must show 4: with the input and its knockoff exchanged, `L'(β)` becomes `−L'(1 − β)`.
#[test]
fn exchanging_input_and_knockoff_turns_the_slopes() {
    let model = model("llama-untied");
    let rows = model.rows(1, 9);
    let found = &feed_forwards(&model.spec)[..1];
    let width = model.spec.hidden_size;
    let tensor = |key| {
        let values: Vec<f32> = noise(key, 9 * width).into_iter().map(|v| v as f32).collect();
        Tensor::from_vec(values, (9, width), &Device::Cpu).unwrap()
    };
    let pair = [tensor(1), tensor(2)];
    let share: Vec<f32> =
        noise(9, found[0].neurons()).into_iter().map(|r| (0.5 + 0.2 * r) as f32).collect();
    let turned: Vec<f32> = share.iter().map(|share| 1.0 - share).collect();
    let slopes = |own: &Tensor, other: &Tensor, share: Vec<f32>| {
        let knockoff = |_: usize, _: usize, _: &Tensor| Ok(other.clone());
        let mixture = Mixture::new(found, &[share], &knockoff).unwrap();
        let feed = |reading: &Reading<'_>| {
            let place = (reading.block, reading.group.value);
            Ok((place == (found[0].input.block, found[0].input.value)).then(|| own.clone()))
        };
        slopes_with(&model, &rows, found, &mixture, &feed).remove(0)
    };
    let straight = slopes(&pair[0], &pair[1], share);
    let exchanged = slopes(&pair[1], &pair[0], turned);
    assert!(norm(&straight) > 1e-3);
    for (a, b) in straight.iter().zip(&exchanged) {
        assert!((a + b).abs() < 1e-4 * norm(&straight), "{a} and {b}");
    }
}

/// Adam as it was published, on the slopes that the mixture has at each step.
#[test]
fn training_is_adam_on_the_slopes() {
    let model = model("llama-untied");
    let rows = model.rows(3, 7);
    let found = feed_forwards(&model.spec);
    let training = Training { steps: 4, rows: 2, rate: 0.3 };
    let mut seen = vec![];
    let mut on_step = |step, loss| {
        seen.push((step, loss));
        Ok(())
    };
    let loss = model.loss();
    let have =
        train((&model.spec, &model), &found, &noisy, (&rows, &*loss), training, &mut on_step)
            .unwrap();

    let mut want = all(&found, 0.5);
    let (mut m, mut v) = (slopes_of_zero(&found), slopes_of_zero(&found));
    for step in 0..4 {
        let at = |index: usize, row: usize, z: &Tensor| noisy(index, row + 2 * step, z);
        let mixture = Mixture::new(&found, &want, &at).unwrap();
        let batch = [rows[2 * step % 3].clone(), rows[(2 * step + 1) % 3].clone()];
        let loss = mean(&losses(&model, &batch, &mixture));
        assert_eq!(seen[step].0, step);
        assert!((seen[step].1 - loss).abs() < 1e-4 * loss, "{loss}");
        let g = slopes(&model, &batch, &found, &mixture);
        let t = step as i32 + 1;
        for (i, share) in want.iter_mut().enumerate() {
            for (n, share) in share.iter_mut().enumerate() {
                m[i][n] = 0.5 * m[i][n] + 0.5 * g[i][n];
                v[i][n] = 0.9 * v[i][n] + 0.1 * g[i][n] * g[i][n];
                let (mean, square) =
                    (m[i][n] / (1.0 - 0.5_f64.powi(t)), v[i][n] / (1.0 - 0.9_f64.powi(t)));
                let moved = f64::from(*share) - 0.3 * mean / (square.sqrt() + 1e-8);
                *share = moved.clamp(0.0, 1.0) as f32;
            }
        }
    }
    let pairs = || have.iter().flatten().zip(want.iter().flatten());
    assert!(pairs().all(|(have, want)| (have - want).abs() < 1e-3));
    assert!(pairs().any(|(have, _)| *have == 0.0) && pairs().any(|(have, _)| *have == 1.0));
    let stop = &mut |_, _| Err(ModelError::Gradient("stop".to_owned()));
    assert!(train((&model.spec, &model), &found, &noisy, (&rows, &*loss), training, stop).is_err());
    let none = Training { rows: 0, ..training };
    let on_step = &mut |_, _| Ok(());
    assert!(train((&model.spec, &model), &found, &noisy, (&rows, &*loss), none, on_step).is_err());
}

fn slopes_of_zero(found: &[FeedForward]) -> Vec<Vec<f64>> {
    found.iter().map(|ff| vec![0.0; ff.neurons()]).collect()
}

fn scored(model: &Model, rows: &[Vec<u32>], training: Training) -> Vec<Neurons> {
    let settings = Scop { training, ..Scop::default() };
    scop((&model.spec, model), (rows, &*model.loss()), settings, &mut |_, _| Ok(())).unwrap()
}

/// Must show 2: a neuron that nothing reads has no slope, keeps `β = ½` and is worth 0.
#[test]
fn a_neuron_that_nothing_reads_stays_in_the_middle() {
    let mut model = model("llama-untied");
    let rows = model.rows(4, 9);
    let name = "model.layers.1.mlp.down_proj.weight";
    let width = model.shape(name).unwrap()[1];
    model.change(name, |i, v| if i % width == 7 { 0.0 } else { v });
    let have = scored(&model, &rows, SHORT);
    for (index, neurons) in have.iter().enumerate() {
        for (neuron, (share, score)) in neurons.shares.iter().zip(neurons.scores()).enumerate() {
            let unread = (index, neuron) == (1, 7);
            assert_eq!((*share == 0.5, score == 0.0), (unread, unread), "{index} {neuron}");
        }
    }
}

/// The size of a neuron is the root mean square of its value times the length of its column, and a
/// score that times `2β − 1`; knockoffs are paired with seeds.
#[test]
fn scores_are_sizes_times_shares() {
    let model = model("mixtral");
    let rows = model.rows(4, 9);
    let have = scored(&model, &rows, SHORT);
    let found = feed_forwards(&model.spec);
    assert_eq!(have.len(), found.len());
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 4, seq_len: 9 };
    let mut x =
        executor.embed(&model.spec, &model, batch, rows.concat().as_slice().into()).unwrap();
    for (block, graph) in model.spec.blocks.iter().enumerate() {
        let weights = GraphWeights::load(graph, &model, executor.backend()).unwrap();
        let mut on_tap = |tap: &lapidary_model::Tap<'_>| {
            let place = (block, tap.group.value);
            let index = found.iter().position(|ff| (ff.hidden.block, ff.hidden.value) == place);
            let Some(index) = index else { return Ok(()) };
            let (neurons, ff) = (&have[index], &found[index]);
            assert_eq!(neurons.places, [ff.hidden]);
            let width = ff.neurons();
            let column = model.read(&ff.readers[0].weight).unwrap();
            for neuron in 0..width {
                let of = |values: &[f32]| {
                    let values = values.iter().skip(neuron).step_by(width);
                    values.map(|v| f64::from(*v).powi(2)).sum::<f64>()
                };
                let count = (tap.input.len() / width) as f64;
                let size = (of(tap.input) / count.max(1.0)).sqrt() * of(&column).sqrt();
                assert!((neurons.sizes[neuron] - size).abs() < 1e-4 * size);
                let score = size * (2.0 * f64::from(neurons.shares[neuron]) - 1.0);
                assert!((neurons.scores()[neuron] - score).abs() <= 1e-4 * score.abs());
            }
            Ok(())
        };
        x = executor.run(graph, &weights, batch, x, Some(&mut on_tap)).unwrap();
    }
    assert_eq!(have, scored(&model, &rows, SHORT), "the same seed, the same scores");
}

#[test]
fn blocks_that_share_weights_share_their_neurons() {
    let model = model("albert");
    let rows = model.rows(4, 9);
    let have = scored(&model, &rows, SHORT);
    assert_eq!(have.len(), 1);
    assert_eq!(have[0].places.len(), model.spec.blocks.len());
    assert!(have[0].scores().iter().any(|score| *score != 0.0));
}

/// Rows that the model itself makes, token by token: what it would not change.
fn sampled(model: &Model, count: usize, tokens: usize) -> Vec<Vec<u32>> {
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let graphs: Vec<_> = model.spec.blocks.iter().chain(&model.spec.head).collect();
    let load = |graph: &&lapidary_model::Graph| {
        GraphWeights::load(graph, model, executor.backend()).unwrap()
    };
    let weights: Vec<_> = graphs.iter().map(load).collect();
    let vocab = model.spec.vocab_size;
    let mut rows: Vec<Vec<u32>> = (0..count).map(|row| vec![(row % vocab) as u32]).collect();
    for position in 1..tokens {
        let batch = Batch { rows: count, seq_len: position };
        let ids = rows.concat();
        let mut x = executor.embed(&model.spec, model, batch, ids.as_slice().into()).unwrap();
        for (graph, weights) in graphs.iter().zip(&weights) {
            x = executor.run(graph, weights, batch, x, None).unwrap();
        }
        for (index, row) in rows.iter_mut().enumerate() {
            let logits = &x[((index + 1) * position - 1) * vocab..][..vocab];
            let weight = |logit: &f32| f64::from(*logit).exp();
            let mut left =
                unit(nth(index as u64, position as u64)) * logits.iter().map(weight).sum::<f64>();
            let token = logits.iter().position(|logit| {
                left -= weight(logit);
                left < 0.0
            });
            row.push(token.unwrap_or(vocab - 1) as u32);
        }
    }
    rows
}

/// The same model with more neurons, each a copy of one that reads other channels: it computes the same
/// kind of number, of no use to the layer after it.
fn with_planted(model: &Model, planted: usize) -> Model {
    let mut config = model.source.config().clone();
    let own = config["intermediate_size"].as_u64().unwrap() as usize;
    config["intermediate_size"] = (own + planted).into();
    let source = crate::support::model("llama-untied").source;
    let mut wide = Model { source, spec: spec(&config).unwrap(), changed: BTreeMap::new() };
    let hidden = model.spec.hidden_size;
    for layer in 0..model.spec.blocks.len() {
        // The channels of both, and of the column, in another order for each.
        let order = |neuron: usize, which: u64| {
            let key = nth(nth(31, (layer * 1000 + neuron) as u64), which);
            let mut order: Vec<usize> = (0..hidden).collect();
            order.sort_by_key(|channel| nth(key, *channel as u64));
            order
        };
        for (which, name) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let name = format!("model.layers.{layer}.mlp.{name}.weight");
            let mut values = model.read(&name).unwrap();
            for neuron in 0..planted {
                let row = values[neuron * hidden..][..hidden].to_vec();
                values.extend(order(neuron, which as u64).into_iter().map(|i| row[i]));
            }
            wide.changed.insert(name, values);
        }
        let name = format!("model.layers.{layer}.mlp.down_proj.weight");
        let values = model.read(&name).unwrap();
        let orders: Vec<Vec<usize>> = (0..planted).map(|neuron| order(neuron, 2)).collect();
        let row = |out: usize| {
            let own = values[out * own..][..own].to_vec();
            let others = (0..planted).map(|n| values[orders[n][out] * own.len() + n]);
            own.iter().copied().chain(others.collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        wide.changed.insert(name, (0..hidden).flat_map(row).collect());
    }
    wide
}

/// Must show 3: of the neurons that know nothing of use, 95 in 100 are in the half that is pruned. Their
/// sizes alone do not tell.
#[test]
fn planted_neurons_are_pruned_first() {
    let model = model("llama-untied");
    let rows = sampled(&model, 64, 32);
    let planted = 24;
    let wide = with_planted(&model, planted);
    let training = Training { steps: 250, rows: 4, rate: 4e-3 };
    let (mut by_score, mut by_size, mut all) = (0, 0, 0);
    for neurons in scored(&wide, &rows, training) {
        let scores = neurons.scores();
        let pruned = |scores: &[f64]| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            let own = scores.len() - planted;
            order[..scores.len() / 2].iter().filter(|neuron| **neuron >= own).count()
        };
        by_score += pruned(&scores);
        by_size += pruned(&neurons.sizes);
        all += planted;
    }
    assert!(by_score * 20 >= all * 19, "{by_score} of {all}");
    assert!(by_size * 4 < all * 3, "{by_size} of {all}");
}
