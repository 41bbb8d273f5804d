//! Searches for the shape of a model, and budgets of parameters and of speed.

use crate::chains::chain;
use crate::support::{Setup, dies_anywhere, files, real, scratch};
use lapidary_engine::recipe::Recipe;
use lapidary_engine::search::Shapes;
use lapidary_engine::{Failure, Survey};
use lapidary_formats::Source;
use lapidary_kernels::softmax::Comparison;
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision, spec};
use serde_json::Value;
use std::path::Path;

const LAYERS: &str = "method: layers, drop: [0, 1, 2], protect: false";
const WIDTHS: &str = "method: minitron, neurons: [0, 0.25, 0.5], multiple: 8";
const GPTQ: &str = "method: gptq, bits: 4, group_size: 8";

fn setup(folder: &Path, steps: &[&str], budget: &str, format: &str) -> Setup {
    let mut setup = Setup::new("llama-tied", &chain(steps), folder, format);
    setup.recipe.push_str(&format!("budget: {{{budget}}}\n"));
    // What is told is compared with what is computed here.
    setup.recipe = setup.recipe.replace("seq_len: 16", "seq_len: 16, precision: f32");
    setup
}

fn report(output: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(output.join("search.json")).unwrap()).unwrap()
}

fn chosen(report: &Value) -> &Value {
    let shapes = report["shapes"].as_array().unwrap();
    shapes.iter().find(|shape| shape["chosen"] == true).unwrap()
}

/// The logits of a model for the rows that a search compares shapes by: the first 8 of 12.
fn logits(folder: &Path, rows: &Path) -> (Vec<f32>, usize) {
    let source = Source::open(real(), folder).unwrap();
    let spec = spec(source.config()).unwrap();
    let bytes = std::fs::read(rows).unwrap();
    let tokens: Vec<u32> = bytes[bytes.len() - 12 * 16 * 8..]
        .chunks_exact(8)
        .map(|id| i64::from_le_bytes(id.try_into().unwrap()) as u32)
        .take(8 * 16)
        .collect();
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 8, seq_len: 16 };
    let mut hidden = executor.embed(&spec, &source, batch, tokens.as_slice().into()).unwrap();
    for graph in spec.blocks.iter().chain(&spec.head) {
        let weights = GraphWeights::load(graph, &source, executor.backend()).unwrap();
        hidden = executor.run(graph, &weights, batch, hidden, None).unwrap();
    }
    (hidden, spec.vocab_size)
}

fn divergence(whole: &Path, cut: &Path, rows: &Path) -> f64 {
    let ((a, width), (b, _)) = (logits(whole, rows), logits(cut, rows));
    let pairs = a.chunks_exact(width).zip(b.chunks_exact(width));
    pairs.map(|(a, b)| Comparison::of(a, b).kl_divergence).sum::<f64>() / (8 * 16) as f64
}

/// Numbers of a model's weights: all of them, and those that each token is multiplied by.
fn counts(folder: &Path) -> (u64, u64) {
    let source = Source::open(real(), folder).unwrap();
    let count = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let all = source.tensors().iter().map(|tensor| count(&tensor.shape)).sum();
    // The head of this model is its embedding.
    let read = source.tensors().iter().filter(|tensor| tensor.shape.len() == 2);
    (all, read.map(|tensor| count(&tensor.shape)).sum())
}

/// Every shape by itself, then the search: what it tells of them is so, and it takes the best that fits.
#[test]
fn the_best_shape_within_a_budget_is_found() {
    let scratch = scratch();
    let rows = scratch.path().join("rows.safetensors");
    let (mut alone, mut whole) = (vec![], None);
    for drop in [0, 1, 2] {
        for neurons in [0.0, 0.25, 0.5] {
            let steps = [
                &*format!("method: layers, drop: {drop}, protect: false"),
                &*format!("method: minitron, neurons: {neurons}, multiple: 8"),
            ];
            let mut job = setup(scratch.path(), &steps, "size: 1", "dense");
            job.recipe = job.recipe.replace("budget: {size: 1}\n", "");
            let output = scratch.path().join(format!("{drop}-{neurons}"));
            job.run(&output).unwrap();
            whole = Some(counts(&job.model));
            alone.push((divergence(&job.model, &output, &rows), counts(&output), output));
        }
    }
    let whole = whole.unwrap();
    let (parameters, speed) = (alone[4].1.0, whole.1 as f64 / alone[4].1.1 as f64);
    let bytes = std::fs::metadata(alone[4].2.join("model.safetensors")).unwrap().len();
    for (index, budget) in [
        format!("parameters: {parameters}"),
        format!("size: {bytes}"),
        format!("speedup: {}", speed - 1e-9),
    ]
    .iter()
    .enumerate()
    {
        let output = scratch.path().join(format!("found-{index}"));
        setup(scratch.path(), &[LAYERS, WIDTHS], budget, "dense").run(&output).unwrap();
        let report = report(&output);
        let mut best = f64::INFINITY;
        for shape in report["shapes"].as_array().unwrap() {
            let known = |(_, (all, _), _): &&(f64, (u64, u64), _)| shape["parameters"] == *all;
            let known = alone.iter().find(known).unwrap();
            let expected = whole.1 as f64 / known.1.1 as f64;
            assert!((shape["expected_speedup"].as_f64().unwrap() - expected).abs() < 1e-9);
            if let Some(told) = shape["divergence"].as_f64() {
                assert!(shape["fits"] == true, "{shape}");
                assert!((told - known.0).abs() < 1e-4 * (1e-3 + known.0), "{told}, {}", known.0);
                best = best.min(told);
            }
        }
        let found = chosen(&report);
        assert_eq!(found["divergence"].as_f64(), Some(best), "{budget}");
        assert!(found["parameters"].as_u64().unwrap() <= parameters);
        let same = alone.iter().find(|(_, (all, _), _)| found["parameters"] == *all).unwrap();
        let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(weights(&output), weights(&same.2), "{budget}");
        // Some fit and lie within another that fits.
        let untried = |shape: &&Value| shape["fits"] == true && shape["divergence"].is_null();
        assert!(report["shapes"].as_array().unwrap().iter().any(|shape| untried(&shape)));
    }
    // The smallest that is good enough.
    let enough = alone[1].0.max(alone[3].0) * 1.0001;
    let output = scratch.path().join("close");
    let job = setup(scratch.path(), &[LAYERS, WIDTHS], &format!("max_kl: {enough}"), "dense");
    job.run(&output).unwrap();
    let good = alone.iter().filter(|(divergence, ..)| *divergence <= enough);
    let least = good.map(|(_, (all, _), _)| *all).min().unwrap();
    assert_eq!(chosen(&report(&output))["parameters"], least);
}

/// What was found is a recipe, and what follows the cut is done to it.
#[test]
fn a_found_shape_is_compressed_as_its_recipe_says() {
    let scratch = scratch();
    let steps = [LAYERS, WIDTHS, GPTQ];
    let job = setup(scratch.path(), &steps, "speedup: 5", "native");
    let outcome = job.run(&scratch.path().join("out")).unwrap();
    assert!(outcome.search_costs.is_some());
    assert_eq!(outcome.manifest.structure.len(), 2);
    assert!(chosen(&report(&scratch.path().join("out")))["expected_speedup"].as_f64() >= Some(5.0));
    let found = std::fs::read_to_string(scratch.path().join("out/recipe.yaml")).unwrap();
    let rows = scratch.path().join("rows.safetensors").display().to_string();
    let mut again = setup(scratch.path(), &steps, "size: 1", "native");
    again.recipe = found.replace("\"file\"", &format!("{rows:?}"));
    again.run(&scratch.path().join("again")).unwrap();
    let weights = |name: &str| std::fs::read(scratch.path().join(name).join("model.safetensors"));
    assert_eq!(weights("out").unwrap(), weights("again").unwrap());
    assert!(job.run(&scratch.path().join("out")).unwrap().was_complete);
}

/// Killed at any write, in the trials or afterwards, the bytes are the same.
#[test]
fn a_search_for_a_shape_resumes() {
    let steps = ["method: layers, drop: [0, 1]", "method: minitron, neurons: [0, 0.5]", GPTQ];
    let job = |folder: &Path| setup(folder, &steps, "speedup: 5", "compressed-tensors");
    let tight = |job: &Setup| {
        let source = Source::open(real(), &job.model).unwrap();
        let recipe = Recipe::parse(&job.recipe).unwrap();
        let shapes = Shapes::new(&job.fs, &source, &recipe, job.limits, None).unwrap();
        shapes.memory()
    };
    dies_anywhere(job, 5, tight);
}

/// Parameters are what pruning leaves, layer by layer as costs least; and bytes that a token reads what
/// bits leave.
#[test]
fn parameters_and_speed_are_budgets_of_layers_too() {
    let scratch = scratch();
    let wanda = "method: wanda, sparsity: [0.25, 0.5, 0.75]";
    let (all, read) = counts(&setup(scratch.path(), &[wanda], "size: 1", "dense").model);
    let limit = all * 3 / 5;
    let job = setup(scratch.path(), &[wanda], &format!("parameters: {limit}"), "dense");
    let output = scratch.path().join("sparse");
    job.run(&output).unwrap();
    let source = Source::open(real(), &output).unwrap();
    let zeros = |name: &str| {
        let values = lapidary_weight::Tensors::read(&source, name).unwrap();
        values.iter().filter(|value| **value == 0.0).count() as u64
    };
    let zeros: u64 = source.tensors().iter().map(|tensor| zeros(&tensor.name)).sum();
    let left = all - zeros;
    assert!(left <= limit && left as f64 > 0.97 * limit as f64, "{left} of {limit}");

    let rtn = "method: rtn, bits: [2, 3, 4, 6, 8], group_size: 8";
    let job = setup(scratch.path(), &[rtn], "speedup: 3", "native");
    let output = scratch.path().join("fast");
    let manifest = job.run(&output).unwrap().manifest;
    let bits = manifest.bits_per_weight.unwrap();
    let table = {
        // not compressed, and read for every token
        let source = Source::open(real(), &job.model).unwrap();
        let embedding = source.get("model.embed_tokens.weight").unwrap();
        embedding.shape.iter().product::<usize>() as u64
    };
    let stored = 4 * table + ((read - table) as f64 * bits / 8.0).round() as u64;
    let speed = (4 * read) as f64 / stored as f64;
    assert!((3.0..3.2).contains(&speed), "{speed}");
}

#[test]
fn what_cannot_be_searched_for_is_refused_with_the_reason() {
    let scratch = scratch();
    let bits = "method: rtn, bits: [2, 4], group_size: 8";
    let sparse = "method: wanda, sparsity: [0.25, 0.5]";
    for (steps, budget, expected) in [
        (vec![LAYERS], "bpw: 4", "to cut changes no bits a weight"),
        (vec![LAYERS, bits], "size: 1MB", "both how the model is cut and what is done afterwards"),
        (vec![LAYERS], "parameters: 100", "cannot be reached: the smallest shape (layers drop 2)"),
        (vec![LAYERS], "speedup: 9", "cannot be reached: the smallest shape"),
        (vec![LAYERS, WIDTHS], "max_kl: 1e-9", ""),
        (
            vec!["method: layers, drop: [1, 2], protect: false"],
            "max_kl: 1e-9",
            "the least of all shapes is",
        ),
        (vec![bits], "speedup: 99", "99 times the speed cannot be reached: with the smallest"),
        (vec!["method: layers, drop: 1", bits], "speedup: 2", "one follows the other; use --size"),
        (vec![sparse], "speedup: 1.2", "sparse weights is not in proportion"),
        (vec![sparse], "parameters: 100", "the sparsest candidates leave"),
        (vec!["method: rtn, bits: 4"], "parameters: 1M", "nothing to choose from; list what may"),
    ] {
        let only_cuts = steps.iter().all(|step| step.contains("neurons") || step.contains("drop"));
        let format = if only_cuts { "dense" } else { "native" };
        let job = setup(scratch.path(), &steps, budget, format);
        let output = scratch.path().join("out");
        let said = match Recipe::parse(&job.recipe) {
            Err(error) => error.to_string(),
            Ok(_) if expected.is_empty() => {
                // Nothing cut is no divergence.
                job.run(&output).unwrap();
                assert_eq!(chosen(&report(&output))["divergence"], 0.0);
                assert!(!files(&output).is_empty());
                std::fs::remove_dir_all(&output).unwrap();
                continue;
            }
            Ok(_) => {
                let error = job.run(&output).unwrap_err();
                assert_eq!(error.failure(), Failure::Refused, "{error}");
                error.to_string()
            }
        };
        assert!(said.contains(expected), "{steps:?} {budget}: {said}");
        let _ = std::fs::remove_dir_all(scratch.path().join(".out.lapidary"));
    }
}

/// A plan tells the same as the search that follows it.
#[test]
fn a_plan_knows_the_shapes() {
    let scratch = scratch();
    let job = setup(scratch.path(), &[LAYERS, WIDTHS], "speedup: 1.3", "dense");
    let source = Source::open(real(), &job.model).unwrap();
    let recipe = Recipe::parse(&job.recipe).unwrap();
    assert!(Shapes::are_open(&recipe).unwrap());
    let shapes = Shapes::new(&job.fs, &source, &recipe, job.limits, None).unwrap();
    assert_eq!(shapes.shapes.len(), 9);
    assert!(shapes.shapes.is_sorted_by_key(|shape| std::cmp::Reverse(shape.file_bytes)));
    assert!(shapes.shapes.iter().all(|shape| shape.fits == (shape.speedup >= 1.3)));
    let tried = shapes.shapes.iter().filter(|shape| shape.is_tried).count();
    job.run(&scratch.path().join("out")).unwrap();
    let report = report(&scratch.path().join("out"));
    let told = report["shapes"].as_array().unwrap();
    assert_eq!(told.iter().filter(|shape| !shape["divergence"].is_null()).count(), tried);
    let bytes = std::fs::metadata(scratch.path().join("out/model.safetensors")).unwrap().len();
    assert_eq!(chosen(&report)["weight_file_bytes"], bytes);
    // Bits are another search.
    let bits = setup(scratch.path(), &["method: rtn, bits: [2, 4]"], "bpw: 4", "native");
    let recipe = Recipe::parse(&bits.recipe).unwrap();
    assert!(!Shapes::are_open(&recipe).unwrap());
    assert!(Survey::new(&job.fs, &source, &recipe, job.limits, None).is_ok());
}
