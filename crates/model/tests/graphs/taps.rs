//! What a tap sees is what the linear layers multiply.

use crate::support::{BATCH, embedded, executor, largest_difference, models, run};
use lapidary_model::{Graph, GraphWeights, LinearOp, ModelError, Op, Value};
use lapidary_weight::Tensors;

/// The inputs of each group, with the modules that share it.
fn taps(
    graph: &Graph,
    tensors: &dyn Tensors,
    input: &[f32],
    whole: bool,
) -> Vec<(Vec<String>, Vec<f32>)> {
    let executor = executor();
    let weights = GraphWeights::load(graph, tensors, executor.backend()).unwrap();
    let mut seen = vec![];
    let mut on_tap = |tap: &lapidary_model::Tap<'_>| {
        let modules = tap.group.linears.iter().map(|linear| linear.module.clone()).collect();
        seen.push((modules, tap.input.clone()));
        Ok(())
    };
    if whole {
        executor.run(graph, &weights, BATCH, input.to_vec(), Some(&mut on_tap)).unwrap();
    } else {
        executor.observe(graph, &weights, BATCH, input.to_vec(), &mut on_tap).unwrap();
    }
    seen
}

/// `x Wᵀ + b` in f64.
fn product(linear: &LinearOp, tensors: &dyn Tensors, input: &[f32]) -> Vec<f32> {
    let weight = tensors.read(&linear.weight).unwrap();
    let bias = linear.bias.as_ref().map(|bias| tensors.read(bias).unwrap());
    let mut output = vec![];
    for x in input.chunks_exact(linear.in_features) {
        for (row, weights) in weight.chunks_exact(linear.in_features).enumerate() {
            let products = x.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
            output.push((products.sum::<f64>() + bias) as f32);
        }
    }
    output
}

#[test]
fn a_tapped_input_times_the_weight_is_the_layers_output() {
    for model in models() {
        let mut x = embedded(&model);
        for graph in model.spec.blocks.iter().chain(&model.spec.head) {
            let seen = taps(graph, &model.source, &x, true);
            let modules: usize = seen.iter().map(|(modules, _)| modules.len()).sum();
            assert_eq!(modules, graph.linears().count(), "every layer is tapped once");
            for (index, node) in graph.nodes.iter().enumerate() {
                let Op::Linear(linear) = &node.op else { continue };
                let (_, input) =
                    seen.iter().find(|(modules, _)| modules.contains(&linear.module)).unwrap();
                let rows = input.len() / linear.in_features;
                assert!(rows == BATCH.tokens() || graph.is_routed(node.inputs[0]), "{rows} rows");
                // The same graph, ended at this layer.
                let ended = Graph { output: Value::of_node(index), ..graph.clone() };
                let output = run(&ended, &model.source, &x);
                let difference =
                    largest_difference(&output, &product(linear, &model.source, input));
                assert!(difference < 2e-5, "{} {}: {difference}", model.name, linear.module);
            }
            x = run(graph, &model.source, &x);
        }
    }
}

#[test]
fn observing_taps_the_same_without_the_rest() {
    for model in models() {
        let x = embedded(&model);
        for graph in model.spec.blocks.iter().chain(&model.spec.head) {
            let whole = taps(graph, &model.source, &x, true);
            assert_eq!(taps(graph, &model.source, &x, false), whole, "{}", model.name);
            // A tap changes nothing of what comes out.
            let executor = executor();
            let weights = GraphWeights::load(graph, &model.source, executor.backend()).unwrap();
            let mut nothing = |_: &lapidary_model::Tap<'_>| Ok(());
            let tapped =
                executor.run(graph, &weights, BATCH, x.clone(), Some(&mut nothing)).unwrap();
            assert_eq!(tapped, run(graph, &model.source, &x));
        }
    }
}

#[test]
fn a_tap_that_fails_ends_the_run() {
    let model = crate::support::model("llama-untied");
    let (graph, executor) = (&model.spec.blocks[0], executor());
    let weights = GraphWeights::load(graph, &model.source, executor.backend()).unwrap();
    let mut calls = 0;
    let mut fail = |_: &lapidary_model::Tap<'_>| {
        calls += 1;
        Err(ModelError::Graph("enough".to_owned()))
    };
    let input = embedded(&model);
    let error = executor.run(graph, &weights, BATCH, input, Some(&mut fail)).unwrap_err();
    assert_eq!((error.to_string().as_str(), calls), ("graph: enough", 1));
}
