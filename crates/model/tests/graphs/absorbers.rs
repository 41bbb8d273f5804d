//! A scale moved from the input of linear layers into what makes it leaves the model as it was.

use crate::support::{Edited, Model, largest_difference, model, models, output};
use lapidary_model::{
    Absorber, Activation, AttentionOp, Graph, GraphBuilder, InputGroup, LinearOp, Value,
};

/// Scales from 1/2 to 2.
fn scale(index: usize) -> f32 {
    2.0_f32.powf(((index * 37 + 11) % 41) as f32 / 20.0 - 1.0)
}

/// Divides the rows of a matrix, or a vector, by the scale of each row.
fn divide(tensors: &mut Edited<'_>, name: &str, width: usize) {
    tensors.edit(name, |place, value| value / scale(place / width));
}

/// Divides gains that `offset` is added to.
fn divide_gains(tensors: &mut Edited<'_>, name: &str, offset: f32) {
    tensors.edit(name, |place, value| (value + offset) / scale(place) - offset);
}

/// Divides what makes the value; the scale of each channel of the value.
fn absorb(tensors: &mut Edited<'_>, absorber: &Absorber<'_>, channels: usize) -> Vec<f32> {
    match absorber {
        Absorber::Norm { gain, offset, bias } => {
            divide_gains(tensors, gain, *offset);
            bias.iter().for_each(|bias| divide(tensors, bias, 1));
            (0..channels).map(scale).collect()
        }
        Absorber::Rows { linear, repeat, head_dim } => {
            divide(tensors, &linear.weight, linear.in_features);
            linear.bias.iter().for_each(|bias| divide(tensors, bias, 1));
            let row = |channel: usize| channel / head_dim / repeat * head_dim + channel % head_dim;
            (0..channels).map(|channel| scale(row(channel))).collect()
        }
    }
}

fn consume(tensors: &mut Edited<'_>, group: &InputGroup<'_>, scales: &[f32]) {
    for linear in &group.linears {
        tensors.edit(&linear.weight, |place, value| value * scales[place % linear.in_features]);
    }
}

#[test]
fn a_scale_that_is_absorbed_changes_nothing() {
    let (mut tried, mut failures) = (0, vec![]);
    for model in models() {
        let plain = output(&model, &model.source);
        let mut all = Edited::new(&model.source);
        for graph in model.spec.blocks.iter().chain(&model.spec.head) {
            for group in graph.shared_inputs() {
                let Some(absorber) = graph.absorber(group.value) else { continue };
                let channels = group.linears[0].in_features;
                // Half of the change is a change; and then the whole is none.
                let mut half = Edited::new(&model.source);
                let scales = absorb(&mut half, &absorber, channels);
                let moved = largest_difference(&output(&model, &half), &plain);
                assert!(moved > 1e-2, "{}: {absorber:?} is not felt: {moved}", model.name);
                consume(&mut half, &group, &scales);
                let moved = largest_difference(&output(&model, &half), &plain);
                if moved > 1e-4 {
                    failures.push(format!("{} {}: {absorber:?}: {moved}", model.name, graph.name));
                }
                let scales = absorb(&mut all, &absorber, channels);
                consume(&mut all, &group, &scales);
                tried += 1;
            }
        }
        let moved = largest_difference(&output(&model, &all), &plain);
        if moved > 1e-4 {
            failures.push(format!("{}, all at once: {moved}", model.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(tried > 100, "{tried}");
}

fn module<'a>(graph: &Graph, linear: &'a LinearOp) -> &'a str {
    linear.module.strip_prefix(&format!("{}.", graph.name)).unwrap_or(&linear.module)
}

/// The absorber of each group of a graph, in short.
fn absorbers(graph: &Graph) -> Vec<String> {
    let describe = |absorber: &Absorber<'_>| match absorber {
        Absorber::Norm { gain, bias, .. } => {
            let gain = gain.strip_prefix(&format!("{}.", graph.name)).unwrap_or(gain);
            format!("{gain}{}", if bias.is_some() { " and bias" } else { "" })
        }
        Absorber::Rows { linear, repeat, head_dim } => {
            format!("{} x{repeat} of {head_dim}", module(graph, linear))
        }
    };
    let groups = graph.shared_inputs().into_iter();
    groups
        .map(|group| {
            graph.absorber(group.value).map_or_else(|| "none".to_owned(), |a| describe(&a))
        })
        .collect()
}

#[test]
fn each_family_has_the_absorbers_it_should() {
    for (name, repeat, head_dim, inner) in [
        ("llama-untied", 1, 8, 0),
        ("llama-tied", 2, 8, 0),
        ("llama-head-dim", 5, 12, 0),
        ("mistral", 2, 8, 0),
        ("qwen2-untied", 3, 14, 0),
        ("qwen3", 2, 12, 0),
    ] {
        let Model { spec, .. } = model(name);
        let inner =
            if inner > 0 { inner } else { spec.blocks[0].linears().nth(5).unwrap().out_features };
        let expected = [
            "input_layernorm.weight".to_owned(),
            format!("self_attn.v_proj x{repeat} of {head_dim}"),
            "post_attention_layernorm.weight".to_owned(),
            format!("mlp.up_proj x1 of {inner}"),
        ];
        for block in &spec.blocks {
            assert_eq!(absorbers(block), expected, "{name}");
        }
        assert_eq!(absorbers(spec.head.as_ref().unwrap()), ["model.norm.weight"]);
    }
}

/// BERT's norms stand after the residual, which reads them too; of its activations only ReLU can
/// be passed.
#[test]
fn an_encoder_has_fewer() {
    for (name, head_dim, inner) in [
        ("bert-model", 8, "none".to_owned()),
        ("bert-gelu-new", 6, "none".to_owned()),
        ("bert-relu", 11, "intermediate.dense x1 of 47".to_owned()),
    ] {
        let value = format!("attention.self.value x1 of {head_dim}");
        for block in &model(name).spec.blocks {
            assert_eq!(absorbers(block), ["none", &value, "none", &inner], "{name}");
        }
    }
    let Model { spec, .. } = model("bert-masked-lm");
    let expected = ["none", "transform.LayerNorm.weight and bias"];
    assert_eq!(absorbers(spec.head.as_ref().unwrap()), expected);
}

/// The absorber of the input of the last linear layer of a graph of width 8.
fn last(build: impl Fn(&mut GraphBuilder) -> (Value, Value)) -> String {
    let mut builder = GraphBuilder::new("g", 8);
    let (input, output) = build(&mut builder);
    let graph = builder.finish(output);
    let groups = graph.shared_inputs();
    let place = groups.iter().position(|group| group.value == input).unwrap();
    absorbers(&graph)[place].clone()
}

#[test]
fn nothing_absorbs_where_something_stands_between() {
    const HEADS: AttentionOp = AttentionOp {
        heads: 2,
        kv_heads: 2,
        head_dim: 4,
        scale: 0.5,
        soft_cap: None,
        causal: true,
        window: None,
    };
    // The graph's input has no maker.
    let of_input = last(|g| (Value::INPUT, g.linear(Value::INPUT, "b", 8, false)));
    assert_eq!(of_input, "none");
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        let through = last(|g| {
            let a = g.linear(Value::INPUT, "a", 8, true);
            let x = g.activation(a, activation);
            (x, g.linear(x, "b", 8, false))
        });
        assert_eq!(through, "none", "{activation:?}");
    }
    let through_relu = last(|g| {
        let a = g.linear(Value::INPUT, "a", 8, true);
        let x = g.activation(a, Activation::Relu);
        (x, g.linear(x, "b", 8, false))
    });
    assert_eq!(through_relu, "a x1 of 8");
    let direct = last(|g| {
        let a = g.linear(Value::INPUT, "a", 8, true);
        (a, g.linear(a, "b", 8, false))
    });
    assert_eq!(direct, "a x1 of 8");
    // A residual reads the norm too.
    let shared = last(|g| {
        let x = g.rms_norm(Value::INPUT, "n", 1e-5);
        let b = g.linear(x, "b", 8, false);
        (x, g.add(x, b))
    });
    assert_eq!(shared, "none");
    // The graph hands the norm on.
    let handed_on = last(|g| {
        let x = g.layer_norm(Value::INPUT, "n", 1e-5);
        g.linear(x, "b", 8, false);
        (x, x)
    });
    assert_eq!(handed_on, "none");
    // One gain for several heads is no scale per channel.
    let heads = last(|g| {
        let x = g.head_norm(Value::INPUT, "n", 4, 0.0, 1e-5);
        (x, g.linear(x, "b", 8, false))
    });
    assert_eq!(heads, "none");
    let sum = last(|g| {
        let a = g.linear(Value::INPUT, "a", 8, false);
        let x = g.add(a, Value::INPUT);
        (x, g.linear(x, "b", 8, false))
    });
    assert_eq!(sum, "none");
    // What is normed or rotated on its way to attention is not what a linear layer made.
    let normed_values = last(|g| {
        let [q, k, v] = ["q", "k", "v"].map(|name| g.linear(Value::INPUT, name, 8, false));
        let v = g.head_norm(v, "n", 4, 0.0, 1e-5);
        let x = g.attention([q, k, v], HEADS);
        (x, g.linear(x, "b", 8, false))
    });
    assert_eq!(normed_values, "none");
    // Another reader of the values would see the scale.
    let read_again = last(|g| {
        let [q, k, v] = ["q", "k", "v"].map(|name| g.linear(Value::INPUT, name, 8, false));
        let x = g.attention([q, k, v], HEADS);
        let b = g.linear(x, "b", 8, false);
        (x, g.add(b, v))
    });
    assert_eq!(read_again, "none");
    // So would the same node in another place: keys that are the values, a gate that is the factor.
    let same_keys = last(|g| {
        let [q, v] = ["q", "v"].map(|name| g.linear(Value::INPUT, name, 8, false));
        let x = g.attention([q, v, v], HEADS);
        (x, g.linear(x, "b", 8, false))
    });
    assert_eq!(same_keys, "none");
    let same_gate = last(|g| {
        let up = g.linear(Value::INPUT, "up", 8, false);
        let x = g.gated(up, up, Activation::Silu);
        (x, g.linear(x, "b", 8, false))
    });
    assert_eq!(same_gate, "none");
}
