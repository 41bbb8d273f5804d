//! The scores of LLM-Pruner: its formulas element by element, and what its card says they must show.

use crate::support::{Model, model, slope};
use lapidary_model::gradient::{Axes, Backward, BlockGradients, Importance, taylor};
use lapidary_model::{ModelError, Op, Value};
use lapidary_weight::Tensors;
use std::collections::BTreeMap;

fn scores(model: &Model, rows: &[Vec<u32>]) -> BTreeMap<String, Axes> {
    taylor(&Backward::new(&model.spec, model), rows, &*model.loss()).unwrap()
}

/// Each row's gradient of every tensor, in f64, one row at a time.
fn row_gradients(model: &Model, rows: &[Vec<u32>]) -> Vec<BTreeMap<String, Vec<f64>>> {
    rows.iter().map(|row| model.gradients(std::slice::from_ref(row))).collect()
}

#[track_caller]
fn same(have: &Importance, want: &Importance, scale: f64) {
    let pairs = [
        (have.first, want.first),
        (have.second, want.second),
        (have.mixed, want.mixed),
        (have.signed, want.signed),
    ];
    for (have, want) in pairs {
        assert!((have - want).abs() <= 1e-4 * want.abs() + 1e-5 * scale, "{have} is not {want}");
    }
}

/// The authors' formulas, written out; ALBERT's tensors are summed over their blocks first.
#[test]
fn scores_are_the_formulas_of_the_paper() {
    for name in ["llama-biases", "gpt2", "mixtral", "gemma2", "bert-model", "albert"] {
        let model = model(name);
        let rows = model.rows(3, 7);
        let have = scores(&model, &rows);
        let gradients = row_gradients(&model, &rows);
        let offsets = offsets(&model);
        let shapes: BTreeMap<String, Vec<usize>> = model.spec.tensors().into_iter().collect();
        assert_eq!(have.keys().collect::<Vec<_>>(), gradients[0].keys().collect::<Vec<_>>());
        for (tensor, axes) in &have {
            let columns = shapes[tensor].get(1).copied().unwrap_or(1);
            let offset = offsets.get(tensor).copied().unwrap_or(0.0);
            let weight = model.read(tensor).unwrap();
            let mut want = Axes {
                rows: vec![Importance::default(); shapes[tensor][0]],
                columns: vec![Importance::default(); columns],
            };
            for (i, weight) in weight.iter().enumerate() {
                let weight = f64::from(*weight) + offset;
                let g = gradients.iter().map(|row| row[tensor][i]).sum::<f64>() / 3.0;
                let fisher = gradients.iter().map(|row| row[tensor][i].powi(2)).sum::<f64>() / 3.0;
                let importance = Importance {
                    first: (weight * g).abs(),
                    second: (weight * weight * fisher).abs(),
                    mixed: (weight * g - 0.5 * weight * weight * fisher).abs(),
                    signed: weight * g,
                };
                want.rows[i / columns] += importance;
                want.columns[i % columns] += importance;
            }
            for (have, want) in [(&axes.rows, &want.rows), (&axes.columns, &want.columns)] {
                assert_eq!(have.len(), want.len());
                let scale = want.iter().map(|want| want.first + want.second).fold(0.0, f64::max);
                have.iter().zip(want).for_each(|(have, want)| same(have, want, scale));
            }
        }
    }
}

/// What norms add to their gains.
fn offsets(model: &Model) -> BTreeMap<String, f64> {
    let nodes = model.spec.blocks.iter().flat_map(|block| &block.nodes);
    let offset = nodes.filter_map(|node| match &node.op {
        Op::RmsNorm { gain, offset, .. } => Some((gain.clone(), f64::from(*offset))),
        _ => None,
    });
    offset.collect()
}

/// Must show 2: scaling a neuron's column of `down_proj` by `1 − ε` moves the loss by `−ε Σ W·g`.
#[test]
fn the_signed_sum_is_the_first_order_change_of_the_loss() {
    let mut model = model("llama-untied");
    let rows = model.rows(2, 9);
    let have = scores(&model, &rows);
    for (name, of_row) in [
        ("model.layers.0.mlp.down_proj.weight", false),
        ("model.layers.1.mlp.gate_proj.weight", true),
    ] {
        let columns = model.shape(name).unwrap()[1];
        let sums = if of_row { &have[name].rows } else { &have[name].columns };
        let mut order: Vec<usize> = (0..sums.len()).collect();
        order.sort_by(|a, b| sums[*b].signed.abs().total_cmp(&sums[*a].signed.abs()));
        for unit in &order[..4] {
            let expected = -sums[*unit].signed;
            let found = slope(0.02, |step| {
                model.changed.clear();
                let is_unit = |i: usize| if of_row { i / columns } else { i % columns } == *unit;
                model.change(name, |i, v| if is_unit(i) { v * (1.0 - step) } else { v });
                model.mean_loss(&rows)
            });
            model.changed.clear();
            assert!((found / expected - 1.0).abs() < 1e-2, "{name} {unit}: {found}, {expected}");
        }
    }
}

/// Must show 3: where `up` has a row `c` times as large and `down` a column `c` times as small, the
/// model is the same, and so are these scores; the magnitudes are not.
#[test]
fn scores_do_not_depend_on_how_a_neuron_is_scaled() {
    let mut model = model("llama-untied");
    let rows = model.rows(2, 9);
    let before = scores(&model, &rows);
    let (up, down) = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight");
    let (neuron, factor) = (5, 7.3);
    let (width, neurons) = (model.shape(up).unwrap()[1], model.shape(down).unwrap()[1]);
    model.change(up, |i, v| if i / width == neuron { v * factor } else { v });
    model.change(down, |i, v| if i % neurons == neuron { v / factor } else { v });
    let after = scores(&model, &rows);
    assert!(before[up].rows[neuron].first > 0.0);
    for (tensor, axes) in &after {
        let scale = axes.rows.iter().map(|row| row.first + row.second).fold(0.0, f64::max);
        let columns = axes.columns.iter().zip(&before[tensor].columns);
        for (have, want) in axes.rows.iter().zip(&before[tensor].rows).chain(columns) {
            same(have, want, 10.0 * scale);
        }
    }
}

/// What `gate`, `up` and `down` say of a neuron: the gradient by way of the hidden value is that of the
/// row of `up`, that of the column of `down`, and the mask's.
#[test]
fn row_column_and_channel_agree_on_a_neuron() {
    let model = model("llama-untied");
    let rows = model.rows(2, 9);
    let have = scores(&model, &rows);
    let graph = &model.spec.blocks[0];
    let gated = graph.nodes.iter().position(|node| matches!(node.op, Op::Gated(_))).unwrap();
    let hidden = Value::of_node(gated);
    let width = graph.nodes[gated].width;
    let mut slopes = vec![0.0; width];
    let mut visit = |gradients: &BlockGradients<'_>| {
        let inputs = gradients.inputs.iter().filter(|input| input.group.value == hidden);
        for input in inputs.filter(|_| gradients.block == 0) {
            for (i, (x, g)) in input.input.iter().zip(&input.gradient).enumerate() {
                slopes[i % width] += f64::from(*x) * f64::from(*g) / 2.0;
            }
        }
        Ok::<(), ModelError>(())
    };
    Backward::new(&model.spec, &model).run(&rows, &*model.loss(), &mut visit).unwrap();
    let largest = slopes.iter().map(|slope: &f64| slope.abs()).fold(0.0, f64::max);
    for (neuron, slope) in slopes.iter().enumerate() {
        let up = have["model.layers.0.mlp.up_proj.weight"].rows[neuron].signed;
        let down = have["model.layers.0.mlp.down_proj.weight"].columns[neuron].signed;
        assert!((up - slope).abs() < 1e-4 * largest, "{neuron}: {up} is not {slope}");
        assert!((down - slope).abs() < 1e-4 * largest, "{neuron}: {down} is not {slope}");
    }
}

#[test]
fn no_rows_are_no_scores() {
    let model = model("llama-untied");
    assert!(taylor(&Backward::new(&model.spec, &model), &[], &*model.loss()).is_err());
}
