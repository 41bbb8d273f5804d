//! Methods that cut, on a walk that is made up: what they choose, and by which numbers.

#![allow(clippy::unwrap_used, reason = "tests")]

use lapidary_methods::{Chosen, Method, MethodError, Seen, Structural, Walk, find};
use lapidary_model::cut::UnitKind;
use lapidary_model::{Batch, Spec, spec};
use lapidary_weight::{TensorError, Tensors};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const BATCH: Batch = Batch { rows: 2, seq_len: 3 };

/// A Llama of six blocks.
fn llama() -> Spec {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "intermediate_size": 6,
        "num_hidden_layers": 6, "vocab_size": 16, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32, "hidden_act": "silu",
    });
    spec(&config).unwrap()
}

fn build(id: &str, params: &Value) -> Box<dyn Structural> {
    let entry = find(id).unwrap();
    let mut all = (entry.defaults)();
    for (key, value) in params.as_object().unwrap() {
        all[key] = value.clone();
    }
    match (entry.build)(&all).unwrap() {
        Method::Structural(method) => method,
        _ => panic!("{id} does not cut"),
    }
}

/// Numbers that look random.
fn number(seed: usize) -> f32 {
    let mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 40) as f32) / (1 << 24) as f32 - 0.5
}

/// The residual stream and all inputs, made up; blocks that do nothing are named.
struct MadeUp {
    spec: Spec,
    idle: Vec<usize>,
    /// What the loss is, by the blocks that are left out.
    loss: fn(&BTreeSet<usize>) -> f64,
    /// Multiplies the residual stream.
    scale: f32,
}

impl MadeUp {
    fn state(&self, block: usize) -> Vec<f32> {
        let moved = (0..block).filter(|block| !self.idle.contains(block)).count();
        (0..BATCH.tokens() * 8)
            .map(|at| self.scale * (number(at) + 0.3 * moved as f32 * number(at * 31 + moved)))
            .collect()
    }
}

fn input(block: usize, module: &str, width: usize) -> Vec<f32> {
    let seed = module.len() * 1000 + block * 77;
    (0..BATCH.tokens() * width).map(|at| number(seed + at)).collect()
}

struct None_;

impl Tensors for None_ {
    fn shape(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }

    fn read(&self, _name: &str) -> Result<Vec<f32>, TensorError> {
        unreachable!("these methods read no tensors")
    }

    fn read_rows(&self, _name: &str, _rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        unreachable!("these methods read no tensors")
    }
}

impl Walk for MadeUp {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn tensors(&self) -> &dyn Tensors {
        &None_
    }

    fn rows(&self) -> (&[u32], usize) {
        (&[], BATCH.seq_len)
    }

    fn blocks(
        &self,
        see: &mut dyn FnMut(Seen<'_>) -> Result<(), MethodError>,
    ) -> Result<(), MethodError> {
        for (block, graph) in self.spec.blocks.iter().enumerate() {
            for group in &graph.shared_inputs() {
                let linear = group.linears[0];
                let values = input(block, &linear.module, linear.in_features);
                see(Seen::Input { block, batch: BATCH, group, values: &values })?;
            }
            let (before, after) = (self.state(block), self.state(block + 1));
            see(Seen::Passed { block, batch: BATCH, before: &before, after: &after })?;
        }
        Ok(())
    }

    fn go_on(&self, _what: &str) -> Result<(), MethodError> {
        Ok(())
    }

    fn losses(
        &self,
        gone: &BTreeSet<usize>,
        each: &[usize],
        _rows: usize,
    ) -> Result<Vec<f64>, MethodError> {
        let without = |block: &usize| gone.iter().chain([block]).copied().collect();
        Ok(each.iter().map(|block| (self.loss)(&without(block))).collect())
    }
}

fn walk(idle: &[usize]) -> MadeUp {
    MadeUp { spec: llama(), idle: idle.to_vec(), loss: |_| 0.0, scale: 1.0 }
}

fn gone(chosen: &Chosen) -> Vec<usize> {
    let stay = chosen.cut.blocks.clone().unwrap();
    (0..6).filter(|block| !stay.contains(block)).collect()
}

/// Card 8, 1 and 3: of six blocks of which 2 and 3 do nothing, these two go.
#[test]
fn idle_blocks_go_first() {
    for criterion in ["block-influence", "angular"] {
        let method = build("layers", &json!({ "drop": 2, "criterion": criterion }));
        let chosen = method.choose(&walk(&[2, 3])).unwrap();
        assert_eq!(gone(&chosen), [2, 3], "{criterion}");
    }
    let method = build("layers", &json!({ "drop": 2 }));
    let chosen = method.choose(&walk(&[1, 4])).unwrap();
    let influence = &chosen.scores[0].1;
    assert_eq!((gone(&chosen), influence[1], influence[4]), (vec![1, 4], 0.0, 0.0));
}

/// Card 8, 2 and 5: influence lies within 0 and 2, and does not depend on the length of states.
#[test]
fn influence_is_a_matter_of_direction() {
    let method = build("layers", &json!({ "drop": 1, "protect": false }));
    let one = method.choose(&walk(&[])).unwrap();
    let other = method.choose(&MadeUp { scale: 1024.0, ..walk(&[]) }).unwrap();
    assert_eq!(one.cut, other.cut);
    for (one, other) in one.scores[0].1.iter().zip(&other.scores[0].1) {
        assert!((0.0..=2.0).contains(one) && (one - other).abs() < 1e-9, "{one} {other}");
    }
}

/// The distance of a run is that of its ends, by Gromov's formula in a few lines.
#[test]
fn angular_distances_are_those_of_last_tokens() {
    let method = build("layers", &json!({ "drop": 3, "criterion": "angular", "protect": false }));
    let walk = walk(&[]);
    let chosen = method.choose(&walk).unwrap();
    let distance = |first: usize| -> f64 {
        let (x, y) = (walk.state(first), walk.state(first + 3));
        let of_row = |row: usize| {
            let at = ((row + 1) * BATCH.seq_len - 1) * 8;
            let pairs = || {
                x[at..at + 8]
                    .iter()
                    .zip(&y[at..at + 8])
                    .map(|(a, b)| (f64::from(*a), f64::from(*b)))
            };
            let dot: f64 = pairs().map(|(a, b)| a * b).sum();
            let length =
                |pick: fn((f64, f64)) -> f64| pairs().map(pick).map(|v| v * v).sum::<f64>().sqrt();
            (dot / length(|p| p.0) / length(|p| p.1)).acos() / std::f64::consts::PI
        };
        (of_row(0) + of_row(1)) / 2.0
    };
    let wanted: Vec<f64> = (0..4).map(distance).collect();
    let found = &chosen.scores[0].1;
    assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?} {wanted:?}");
    let least = wanted.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(gone(&chosen), (least..least + 3).collect::<Vec<_>>());
}

/// One block after another: the second choice is made without the first.
#[test]
fn the_loss_is_followed_greedily() {
    let loss = |without: &BTreeSet<usize>| -> f64 {
        let each: f64 = without.iter().map(|block| [9.0, 3.0, 1.0, 2.0, 5.0, 9.0][*block]).sum();
        // Without 2, block 3 is needed more than 1.
        each + if without.contains(&2) && without.contains(&3) { 10.0 } else { 0.0 }
    };
    let method = build("layers", &json!({ "drop": 2, "criterion": "perplexity" }));
    let chosen = method.choose(&MadeUp { loss, ..walk(&[]) }).unwrap();
    assert_eq!(gone(&chosen), [1, 2]);
    assert_eq!(chosen.scores[0].1, [3.0, 1.0, 2.0, 5.0]);
}

#[test]
fn layers_may_be_named() {
    let method = build("layers", &json!({ "blocks": "0, 2-3" }));
    assert!(!method.needs_rows());
    assert_eq!(gone(&method.provisional(&llama()).unwrap()), [0, 2, 3]);
    let last = build("layers", &json!({ "drop": 2, "criterion": "last" }));
    assert_eq!(gone(&last.provisional(&llama()).unwrap()), [3, 4]);
}

/// Card 7, 2: the mean of |x| over the tokens of a row, the root of the sum of squares over rows.
#[test]
fn activity_is_that_of_a_naive_reduction() {
    let method = build("minitron", &json!({ "neurons": 0.5, "multiple": 1, "heads": 0.5 }));
    let chosen = method.choose(&walk(&[])).unwrap();
    let spec = llama();
    for (block, graph) in spec.blocks.iter().enumerate() {
        let kept = |kind: UnitKind| {
            let units =
                chosen.cut.units.iter().find(|units| units.block == block && units.kind == kind);
            units.map(|units| units.kept.clone())
        };
        let activity = |module: &str, width: usize| -> Vec<f64> {
            let values = input(block, module, width);
            let mean = |row: usize, channel: usize| -> f64 {
                let tokens = (0..3)
                    .map(|token| f64::from(values[(row * 3 + token) * width + channel].abs()));
                tokens.sum::<f64>() / 3.0
            };
            (0..width).map(|c| (mean(0, c).powi(2) + mean(1, c).powi(2)).sqrt()).collect()
        };
        let linears: Vec<_> = graph.linears().collect();
        let neurons = activity(&linears[6].module, 6);
        let mut order: Vec<u32> = (0..6).collect();
        order.sort_by(|a, b| neurons[*b as usize].total_cmp(&neurons[*a as usize]));
        order.truncate(3);
        order.sort_unstable();
        assert_eq!(kept(UnitKind::Neurons), Some(order));
        // Card 7, 3: one of the two heads of each group stays, the one of the larger norm.
        let of_output = activity(&linears[3].module, 8);
        let norm = |head: usize| of_output[2 * head].hypot(of_output[2 * head + 1]);
        let best =
            |group: usize| (2 * group + usize::from(norm(2 * group + 1) > norm(2 * group))) as u32;
        assert_eq!(kept(UnitKind::QueryHeads), Some(vec![best(0), best(1)]));
        assert_eq!(kept(UnitKind::KeyHeads), None);
    }
}
