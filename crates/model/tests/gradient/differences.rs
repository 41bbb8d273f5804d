//! Gradients of tensors, of what linear layers read and of the residual stream are slopes of the loss.

use crate::support::{Model, dot, mean, model, models, noise, norm, slope};
use lapidary_model::gradient::{Backward, BlockGradients, Loss, NextToken, Reading};
use lapidary_model::{ModelError, Value};
use std::collections::BTreeMap;

/// A step that moves the loss by three thousandths: far above the rounding of f32, and little enough for
/// what five points leave of its curves, and for tokens to stay with their experts.
fn step(expected: f64) -> f64 {
    0.003 / expected.abs().max(1.0)
}

/// Half a hundredth of it, and the rounding of the loss.
fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() < 5e-3 * expected.abs() + 1e-3
}

/// Slope of the mean loss when tensors move in a direction.
fn slope_along(
    model: &mut Model,
    rows: &[Vec<u32>],
    directions: &BTreeMap<String, Vec<f64>>,
    expected: f64,
) -> f64 {
    let slope = slope(step(expected), |step| {
        model.changed.clear();
        for (name, direction) in directions {
            model.change(name, |i, value| value + step * direction[i]);
        }
        model.mean_loss(rows)
    });
    model.changed.clear();
    slope
}

/// A random direction as long as the tensor, and as much again along the gradient.
fn direction(model: &Model, name: &str, gradient: &[f64], key: u64) -> Vec<f64> {
    use lapidary_weight::Tensors;
    let values: Vec<f64> = model.read(name).unwrap().into_iter().map(f64::from).collect();
    let random = noise(key, values.len());
    let size = norm(&values).max(0.1);
    let (of_random, of_gradient) = (size / norm(&random), size / norm(gradient).max(1e-30));
    random.iter().zip(gradient).map(|(r, g)| r * of_random + g * of_gradient).collect()
}

#[test]
fn the_loss_of_every_tiny_model_moves_as_the_gradients_say() {
    let mut failures = vec![];
    for name in models() {
        let mut model = model(&name);
        let rows = model.rows(2, 9);
        let gradients = model.gradients(&rows);
        let mut directions = BTreeMap::new();
        let mut expected = 0.0;
        for (key, (tensor, gradient)) in gradients.iter().enumerate() {
            let direction = direction(&model, tensor, gradient, key as u64);
            expected += dot(&direction, gradient);
            directions.insert(tensor.clone(), direction);
        }
        let found = slope_along(&mut model, &rows, &directions, expected);
        if !close(found, expected) {
            failures.push(format!("{name}: {found} is not {expected}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_gradient_of_each_tensor_is_a_slope() {
    let mut failures = vec![];
    for name in ["llama-biases", "gpt2", "mixtral", "gemma2", "qwen3", "bert-model", "albert"] {
        let mut model = model(name);
        let rows = model.rows(2, 9);
        for (key, (tensor, gradient)) in model.gradients(&rows).into_iter().enumerate() {
            let direction = direction(&model, &tensor, &gradient, key as u64);
            let directions = BTreeMap::from([(tensor.clone(), direction.clone())]);
            let expected = dot(&direction, &gradient);
            let found = slope_along(&mut model, &rows, &directions, expected);
            if !close(found, expected) {
                failures.push(format!("{name}: {tensor}: {found} is not {expected}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The gradient of what a group reads, and of nothing else: other readers of the value, as the residual
/// of an encoder, keep what they had.
#[test]
fn gradients_of_inputs_are_slopes_by_way_of_the_layers_that_read_them() {
    for name in ["llama-biases", "gpt2", "mixtral", "bert-model"] {
        let model = model(name);
        let rows = model.rows(1, 9);
        let loss = model.loss();
        let mut inputs: Vec<(usize, Value, Vec<f32>, Vec<f64>)> = vec![];
        let plain = Backward::new(&model.spec, &model);
        let visit = &mut |gradients: &BlockGradients<'_>| {
            for input in &gradients.inputs {
                let gradient = input.gradient.iter().map(|g| f64::from(*g)).collect();
                inputs.push((gradients.block, input.group.value, input.input.clone(), gradient));
            }
            Ok::<(), ModelError>(())
        };
        plain.run(&rows, &*loss, visit).unwrap();
        assert!(inputs.len() >= 4 * model.spec.blocks.len(), "{name}: {}", inputs.len());
        for (key, (block, value, input, gradient)) in inputs.into_iter().enumerate() {
            let input: Vec<f64> = input.into_iter().map(f64::from).collect();
            let random = noise(key as u64, input.len());
            let scale = norm(&input) / norm(&random);
            let along = norm(&input) / norm(&gradient).max(1e-30);
            let directions = random.iter().zip(&gradient).map(|(r, g)| r * scale + g * along);
            let direction: Vec<f64> = directions.collect();
            let expected = dot(&direction, &gradient);
            let found = slope(step(expected), |step| {
                let replace = |reading: &Reading<'_>| {
                    if (reading.block, reading.group.value) != (block, value) {
                        return Ok(None);
                    }
                    let moved: Vec<f32> = direction.iter().map(|d| (step * d) as f32).collect();
                    let shape = reading.input.shape();
                    let moved =
                        candle_core::Tensor::from_vec(moved, shape, reading.input.device())?;
                    Ok(Some((reading.input + moved)?))
                };
                let moved = Backward::new(&model.spec, &model).replacing(&replace);
                mean(&moved.losses(&rows, &*loss).unwrap())
            });
            let place = format!("{name}: block {block} {value:?}");
            assert!(close(found, expected), "{place}: {found} is not {expected}");
        }
    }
}

/// To read zeros is to have weights of zero. The residual beside the layers keeps the value: that of an
/// encoder is the stream itself.
#[test]
fn what_is_replaced_is_what_these_layers_read() {
    let mut model = model("bert-model");
    let rows = model.rows(2, 9);
    let plain = model.mean_loss(&rows);
    let replace = |reading: &Reading<'_>| {
        let is_stream = (reading.block, reading.group.value) == (1, Value::INPUT);
        Ok(is_stream.then(|| reading.input.zeros_like()).transpose()?)
    };
    let replaced = Backward::new(&model.spec, &model).replacing(&replace);
    let have = mean(&replaced.losses(&rows, &*model.loss()).unwrap());
    let groups = model.spec.blocks[1].shared_inputs();
    let readers = groups.iter().find(|group| group.value == Value::INPUT).unwrap();
    let weights: Vec<String> = readers.linears.iter().map(|l| l.weight.clone()).collect();
    assert_eq!(weights.len(), 3);
    weights.iter().for_each(|weight| model.change(weight, |_, _| 0.0));
    let want = model.mean_loss(&rows);
    assert!((have - want).abs() < 1e-5 && (have - plain).abs() > 1e-3, "{have}, {want}, {plain}");
}

/// The stream before the first block is rows of the embedding table, which the untied head does not read.
#[test]
fn the_gradient_of_the_stream_is_that_of_the_embedding() {
    let mut model = model("llama-untied");
    let rows = vec![vec![3, 9, 3, 20, 7, 9]];
    let table = "model.embed_tokens.weight";
    let width = model.spec.hidden_size;
    let mut gradient = vec![0.0; model.spec.vocab_size * width];
    let loss = NextToken::new(&model.spec, &model).unwrap();
    let backward = Backward::new(&model.spec, &model);
    let visit = &mut |gradients: &BlockGradients<'_>| {
        if gradients.block == 0 {
            for (token, part) in rows[0].iter().zip(gradients.stream.chunks_exact(width)) {
                let row = &mut gradient[*token as usize * width..][..width];
                row.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(*part));
            }
        }
        Ok::<(), ModelError>(())
    };
    backward.run(&rows, &loss, visit).unwrap();
    drop(loss);
    let direction = direction(&model, table, &gradient, 5);
    let expected = dot(&direction, &gradient);
    let directions = BTreeMap::from([(table.to_owned(), direction)]);
    let found = slope_along(&mut model, &rows, &directions, expected);
    assert!(close(found, expected), "{found} is not {expected}");
}

#[test]
fn what_has_no_gradient_says_why() {
    let encoder = model("bert-model");
    let error = NextToken::new(&encoder.spec, &encoder).err().unwrap().to_string();
    assert!(error.contains("is of models that predict them"), "{error}");
    let decoder = model("llama-tied");
    let backward = Backward::new(&decoder.spec, &decoder);
    let error = backward.losses(&[vec![1, 2], vec![1]], &*decoder.loss()).unwrap_err().to_string();
    assert!(error.contains("fewer than two tokens"), "{error}");
    let strange = NextToken::new(&decoder.spec, &decoder).unwrap();
    let hidden = vec![0.0; 2 * decoder.spec.hidden_size];
    assert!(matches!(strange.seed(&[1, 1000], &hidden), Err(ModelError::Token { .. })));
    let rows = decoder.rows(1, 5);
    let mut broken = model("llama-tied");
    broken.change("model.layers.0.mlp.down_proj.weight", |_, value| value * 1e38);
    let loss = NextToken::new(&broken.spec, &broken).unwrap();
    let backward = Backward::new(&broken.spec, &broken);
    let error = backward.run(&rows, &loss, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("the loss of a row is not finite"), "{error}");
}

/// A sum of the loss over a visitor that stops half way is an error, not a part of the gradients.
#[test]
fn a_visitor_can_stop() {
    let model = model("llama-tied");
    let rows = model.rows(2, 5);
    let mut seen = vec![];
    let stopped = Backward::new(&model.spec, &model).run(&rows, &*model.loss(), &mut |g| {
        seen.push((g.block, g.row));
        if seen.len() == 3 { Err(ModelError::Gradient("stop".to_owned())) } else { Ok(()) }
    });
    assert!(stopped.is_err());
    let last = model.spec.blocks.len() - 1;
    assert_eq!(seen, [(last, 0), (last, 1), (last - 1, 0)]);
}
