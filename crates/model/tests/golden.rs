//! Every tiny model of `testdata/models` against the outputs that `transformers` gave for it, with
//! both spellings of its configuration and both arithmetics.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should panic"
)]

use lapidary_formats::Source;
use lapidary_model::{
    Backend, Batch, Composed, Executor, Fused, GraphWeights, Precision, Spec, Tokens, spec,
};
use lapidary_store::{Checkpoint, RealFs};
use lapidary_weight::{TensorError, Tensors};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest difference from transformers' float32 that is put down to rounding.
const TOLERANCE: f32 = 1e-4;

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// Token rows and the output of a model.
struct Golden {
    batch: Batch,
    tokens: Vec<u32>,
    types: Option<Vec<u32>>,
    output: Vec<f32>,
    hidden: Vec<Vec<f32>>,
}

fn golden(folder: &Path) -> Golden {
    let file = Checkpoint::open(Arc::new(RealFs), &folder.join("golden.safetensors")).unwrap();
    let floats = |name: &str| -> Option<Vec<f32>> {
        let bytes = file.read(file.get(name)?).unwrap();
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    };
    let ids = |name: &str| -> Option<Vec<u32>> {
        let bytes = file.read(file.get(name)?).unwrap();
        let id = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap()) as u32;
        Some(bytes.chunks_exact(8).map(id).collect())
    };
    let info = file.get("input_ids").expect("input_ids");
    Golden {
        batch: Batch { rows: info.shape[0], seq_len: info.shape[1] },
        tokens: ids("input_ids").expect("input_ids"),
        types: ids("token_type_ids"),
        output: floats("logits").or_else(|| floats("last_hidden_state")).expect("an output"),
        hidden: (0..).map_while(|block| floats(&format!("hidden.{block}"))).collect(),
    }
}

/// Output of the whole model, and the residual stream after each block.
fn forward<B: Backend>(
    backend: B,
    spec: &Spec,
    source: &dyn Tensors,
    golden: &Golden,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let executor = Executor::new(backend);
    let tokens = Tokens { ids: &golden.tokens, types: golden.types.as_deref() };
    let mut x = executor.embed(spec, source, golden.batch, tokens).unwrap();
    let mut hidden = vec![];
    for graph in spec.blocks.iter().chain(&spec.head) {
        let weights = GraphWeights::load(graph, source, executor.backend()).unwrap();
        x = executor.run(graph, &weights, golden.batch, x, None).unwrap();
        hidden.push(executor.backend().numbers(x.clone()).unwrap());
    }
    (executor.backend().numbers(x).unwrap(), hidden)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn outputs_are_those_of_transformers() {
    let models = models();
    assert!(models.len() >= 20, "the tiny models are missing");
    let mut failures = vec![];
    for folder in models {
        let golden = golden(&folder);
        let source = Source::open(Arc::new(RealFs), &folder).unwrap();
        for config in ["config.json", "config.old.json"] {
            let text = std::fs::read(folder.join(config)).unwrap();
            let spec = spec(&serde_json::from_slice(&text).unwrap()).unwrap();
            let fused = Fused { precision: Precision::F32 };
            let (fused, hidden) = forward(fused, &spec, &source, &golden);
            let composed = Composed { device: candle_core::Device::Cpu };
            let (composed, _) = forward(composed, &spec, &source, &golden);
            let mut differences = vec![
                ("fused", largest_difference(&fused, &golden.output)),
                ("composed", largest_difference(&composed, &golden.output)),
            ];
            for (have, need) in hidden.iter().zip(&golden.hidden) {
                differences.push(("hidden", largest_difference(have, need)));
            }
            for (what, difference) in differences {
                if difference.is_nan() || difference > TOLERANCE {
                    failures.push(format!("{}: {config}: {what} {difference}", folder.display()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn bf16_factors_move_outputs_a_little_and_only_a_little() {
    let mut failures = vec![];
    for folder in models() {
        let golden = golden(&folder);
        let source = Source::open(Arc::new(RealFs), &folder).unwrap();
        let spec = spec(source.config()).unwrap();
        let (output, _) = forward(Fused { precision: Precision::Bf16 }, &spec, &source, &golden);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        let error = square(&mut output.iter().zip(&golden.output).map(|(a, b)| a - b));
        let relative = (error / square(&mut golden.output.iter().copied())).sqrt();
        // A rounding of 2^-9 through some seven products a block; gains above one make it more.
        // Where rounding sends a token to another expert, its row is another.
        let has_experts = spec.blocks.iter().any(|block| !block.routers().is_empty());
        let most = if has_experts { 0.5 } else { 0.02 * spec.blocks.len().max(3) as f32 };
        if !(relative > 1e-6 && relative < most) {
            failures.push(format!("{}: {relative}", folder.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A source whose layers get their inputs as they are.
struct Floats<'a>(&'a Source);

impl Tensors for Floats<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        self.0.read(name)
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        self.0.read_rows(name, rows)
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

/// Folders of compressed-tensors whose layers round their inputs when the model is run. The last bit
/// of an input may decide which of two numbers it is rounded to, so that outputs differ by more than
/// elsewhere; by far less than where inputs are not rounded.
#[test]
fn models_with_rounded_inputs_are_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.join("../../testdata/golden/compressed_tensors/activations");
    for name in ["W8A8", "W4A8", "FP8_DYNAMIC", "FP8"] {
        let folder = root.join(name);
        let golden = golden(&folder);
        let source = Source::open(Arc::new(RealFs), &folder).unwrap();
        let spec = spec(source.config()).unwrap();
        let fused = || Fused { precision: Precision::F32 };
        let (rounded, _) = forward(fused(), &spec, &source, &golden);
        let composed = Composed { device: candle_core::Device::Cpu };
        let (composed, _) = forward(composed, &spec, &source, &golden);
        let (floats, _) = forward(fused(), &spec, &Floats(&source), &golden);
        let effect = distance(&floats, &golden.output);
        assert!(effect > 0.1, "{name}: {effect}");
        for output in [rounded, composed] {
            let difference = distance(&output, &golden.output);
            eprintln!(
                "{name} {difference} {effect} {}",
                largest_difference(&output, &golden.output)
            );
            assert!(difference < 0.2 * effect, "{name}: {difference} where {effect} is the effect");
        }
    }
}
