//! The importance of heads, against a mask that is a variable of its own, and what the card must show.

use crate::support::{Model, mean, model};
use candle_core::{Device, Tensor, Var};
use lapidary_model::gradient::{
    Backward, BlockGradients, Input, Reading, Units, heads, unit_importance,
};
use lapidary_model::{ModelError, Value};
use lapidary_weight::Tensors;

/// The heads of every block, one set of units a block.
fn units_of(model: &Model) -> Vec<Units> {
    let of_block = |(block, graph): (usize, &lapidary_model::Graph)| {
        let groups = graph.shared_inputs();
        let (value, ranges) =
            groups.iter().find_map(|g| Some((g.value, heads(graph, g.value)?))).unwrap();
        let channels = ranges.into_iter().map(Iterator::collect).collect();
        Units { places: vec![Input { block, value }], channels }
    };
    model.spec.blocks.iter().enumerate().map(of_block).collect()
}

fn importance(model: &Model, rows: &[Vec<u32>], units: &[Units]) -> Vec<Vec<f64>> {
    let backward = Backward::new(&model.spec, model);
    unit_importance(&backward, rows, &*model.loss(), units).unwrap()
}

/// The slope of each row's loss along a mask `ξ` of the heads of each block, by autograd.
fn mask_slopes(model: &Model, rows: &[Vec<u32>], units: &[Units]) -> Vec<Vec<Vec<f64>>> {
    let ones =
        |units: &Units| Var::ones(units.channels.len(), candle_core::DType::F32, &Device::Cpu);
    let masks: Vec<Var> = units.iter().map(|units| ones(units).unwrap()).collect();
    let spread = |units: &Units| {
        let count: usize = units.channels.iter().map(Vec::len).sum();
        let mut spread = vec![0.0_f32; units.channels.len() * count];
        for (unit, channels) in units.channels.iter().enumerate() {
            channels.iter().for_each(|channel| spread[unit * count + channel] = 1.0);
        }
        Tensor::from_vec(spread, (units.channels.len(), count), &Device::Cpu).unwrap()
    };
    let spreads: Vec<Tensor> = units.iter().map(spread).collect();
    let replace = |reading: &Reading<'_>| {
        let place = Input { block: reading.block, value: reading.group.value };
        let Some(index) = units.iter().position(|units| units.places.contains(&place)) else {
            return Ok(None);
        };
        let mask = masks[index].as_tensor().unsqueeze(0)?.matmul(&spreads[index])?;
        Ok(Some(reading.input.broadcast_mul(&mask)?))
    };
    let backward = Backward::new(&model.spec, model).replacing(&replace);
    let mut slopes = vec![vec![vec![]; units.len()]; rows.len()];
    let mut visit = |gradients: &BlockGradients<'_>| {
        for (index, units) in units.iter().enumerate() {
            if units.places[0].block == gradients.block {
                let slope = gradients.of(&masks[index])?;
                slopes[gradients.row][index] = slope.into_iter().map(f64::from).collect();
            }
        }
        Ok::<(), ModelError>(())
    };
    backward.run(rows, &*model.loss(), &mut visit).unwrap();
    slopes
}

/// Must show 1 and 4: the formula of the hook is the gradient of a mask, its absolute value taken row by
/// row; where slopes have opposite signs, the mean of the slopes is less.
#[test]
fn importance_is_the_mean_absolute_slope_of_a_mask() {
    let mut cancelled = 0;
    for name in ["llama-tied", "gpt2", "gemma2", "mixtral", "qwen3", "bert-model"] {
        let model = model(name);
        let (rows, units) = (model.rows(3, 9), units_of(&model));
        assert_eq!(units.len(), model.spec.blocks.len());
        let have = importance(&model, &rows, &units);
        let slopes = mask_slopes(&model, &rows, &units);
        for (block, have) in have.iter().enumerate() {
            let largest = have.iter().copied().fold(0.0, f64::max);
            assert!(have.len() >= 2 && largest > 0.0);
            for (head, have) in have.iter().enumerate() {
                let of_rows: Vec<f64> = slopes.iter().map(|row| row[block][head]).collect();
                let want = mean(&of_rows.iter().map(|slope| slope.abs()).collect::<Vec<_>>());
                assert!((have - want).abs() < 1e-5 * largest.max(want), "{name}: {have}, {want}");
                cancelled += usize::from(mean(&of_rows).abs() < 0.9 * want);
            }
        }
    }
    assert!(cancelled >= 5, "slopes of opposite signs occur: {cancelled}");
}

/// Must show 2: a head that nothing reads is worth nothing, and cutting it changes nothing.
#[test]
fn a_head_that_nothing_reads_is_worth_nothing() {
    let mut model = model("llama-tied");
    let rows = model.rows(2, 9);
    let units = units_of(&model);
    let name = "model.layers.1.self_attn.o_proj.weight";
    let width = model.shape(name).unwrap()[1];
    let unread = units[1].channels[1].clone();
    model.change(name, |i, v| if unread.contains(&(i % width)) { 0.0 } else { v });
    let have = importance(&model, &rows, &units);
    for (head, have) in have[1].iter().enumerate() {
        assert_eq!(*have == 0.0, head == 1, "{head}: {have}");
    }
    let before = model.mean_loss(&rows);
    let value = units[1].places[0].value;
    let replace = |reading: &Reading<'_>| {
        if (reading.block, reading.group.value) != (1, value) {
            return Ok(None);
        }
        let kept: Vec<f32> = (0..width).map(|i| f32::from(!unread.contains(&i))).collect();
        let kept = Tensor::from_vec(kept, (1, width), &Device::Cpu)?;
        Ok(Some(reading.input.broadcast_mul(&kept)?))
    };
    let cut = Backward::new(&model.spec, &model).replacing(&replace);
    assert_eq!(mean(&cut.losses(&rows, &*model.loss()).unwrap()), before);
}

/// Must show 4 on its own: a unit whose slopes cancel over two rows, exactly.
#[test]
fn opposite_signs_do_not_cancel() {
    let model = model("llama-tied");
    let units = units_of(&model);
    let rows = model.rows(12, 5);
    let slopes = mask_slopes(&model, &rows, &units);
    let (plus, minus) = (0..rows.len())
        .flat_map(|a| (0..rows.len()).map(move |b| (a, b)))
        .find(|(a, b)| slopes[*a][0][0] > 1e-3 && slopes[*b][0][0] < -1e-3)
        .unwrap();
    let pair = [rows[plus].clone(), rows[minus].clone()];
    let want = (slopes[plus][0][0] - slopes[minus][0][0]) / 2.0;
    let have = importance(&model, &pair, &units)[0][0];
    assert!((have / want - 1.0).abs() < 1e-4, "{have} is not {want}");
}

/// Where blocks share their weights, a head is one unit in all of them: slopes add up before the
/// absolute value.
#[test]
fn a_unit_in_several_places_has_one_slope() {
    let model = model("albert");
    let rows = model.rows(3, 9);
    let each = units_of(&model);
    let slopes = mask_slopes(&model, &rows, &each);
    let places = each.iter().flat_map(|units| units.places.clone()).collect();
    let together = [Units { places, channels: each[0].channels.clone() }];
    let have = importance(&model, &rows, &together);
    for (head, have) in have[0].iter().enumerate() {
        let of_row = |row: &Vec<Vec<f64>>| row.iter().map(|block| block[head]).sum::<f64>().abs();
        let want = mean(&slopes.iter().map(of_row).collect::<Vec<_>>());
        assert!((have / want - 1.0).abs() < 1e-4, "{have} is not {want}");
    }
}

#[test]
fn channels_that_there_are_not_are_refused() {
    let model = model("llama-tied");
    let rows = model.rows(1, 5);
    let refused = |units: Units| {
        let backward = Backward::new(&model.spec, &model);
        unit_importance(&backward, &rows, &*model.loss(), &[units]).unwrap_err().to_string()
    };
    let mut units = units_of(&model).remove(0);
    units.channels[0].push(1000);
    assert!(refused(units.clone()).contains("channel 1000 of block 0"), "{}", refused(units));
    let mut units = units_of(&model).remove(0);
    units.places[0].value = Value::INPUT;
    assert!(refused(units).contains("no linear layer"));
}
