//! Jobs with a budget: what they choose, what they leave behind, and that they resume.

use crate::support::{Setup, dies_anywhere, files, model, real, scratch};
use lapidary_engine::plan::ActivationsIn;
use lapidary_engine::recipe::Recipe;
use lapidary_engine::{EngineError, Failure, Manifest, Progress, Survey};
use lapidary_formats::Source;
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const STEP: &str = "method: gptq, bits: [2, 3, 4, 6], group_size: [16, 32]";

fn setup(name: &str, step: &str, budget: &str, folder: &Path) -> Setup {
    let mut setup = Setup::new(name, step, folder, "compressed-tensors");
    setup.recipe.push_str(&format!("budget: {{{budget}}}\n"));
    setup
}

fn report(output: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(output.join("search.json")).unwrap()).unwrap()
}

fn run(setup: &Setup, output: &Path) -> Manifest {
    setup.run(output).unwrap().manifest
}

#[test]
fn a_budget_of_bits_is_kept_and_used_and_its_recipe_gives_the_same_weights() {
    let scratch = scratch();
    for (name, bits) in [("llama-tied", 3.5), ("qwen3", 4.2), ("bert-model", 5.0)] {
        let output = scratch.path().join(name);
        let mut job = setup(name, STEP, &format!("bpw: {bits}"), scratch.path());
        let manifest = run(&job, &output);
        let stored = manifest.bits_per_weight.unwrap();
        assert!(stored <= bits && stored > 0.97 * bits, "{name}: {stored}");
        let report = report(&output);
        assert_eq!(report["chosen"]["bits_per_weight"], stored, "{name}");
        assert_eq!(report["chosen"]["gap"], 0.0, "{name}");
        check_units(name, &report, &manifest);
        let text = std::fs::read_to_string(output.join("recipe.yaml")).unwrap();
        let again = scratch.path().join(format!("{name}-again"));
        let rows = scratch.path().join("rows.safetensors").display().to_string();
        assert!(!text.contains(&rows), "an artefact holds no path: {text}");
        job.recipe = text.replace("\"file\"", &format!("{rows:?}"));
        run(&job, &again);
        let (found, repeated) = (files(&output), files(&again));
        assert_eq!(found["model.safetensors"], repeated["model.safetensors"], "{name}\n{text}");
        assert_eq!(found["config.json"], repeated["config.json"], "{name}");
        let listed = manifest.files.iter().map(|file| file.name.as_str());
        assert_eq!(listed.filter(|name| ["recipe.yaml", "search.json"].contains(name)).count(), 2);
    }
}

/// A rotation before the search: it is the same in all candidates, stays the first step of the recipe
/// that is found, and that gives the same weights.
#[test]
fn a_search_rounds_a_rotated_model() {
    let scratch = scratch();
    for (index, (name, rotate)) in [
        ("llama-tied", "residual: false"),
        ("llama-tied", "residual: true"),
        ("qwen3", "value: false"),
    ]
    .into_iter()
    .enumerate()
    {
        let step = format!("method: rotate, {rotate}}}, {{{STEP}");
        let output = scratch.path().join(format!("out{index}"));
        let mut job = setup(name, &step, "bpw: 3.5", scratch.path());
        let source = Source::open(real(), &model(name)).unwrap();
        let recipe = Recipe::parse(&job.recipe).unwrap();
        let fs = real();
        let survey = Survey::new(&fs, &source, &recipe, job.limits, None).unwrap();
        let (least, most) = survey.range_of_sizes().unwrap();
        let manifest = run(&job, &output);
        let stored = manifest.bits_per_weight.unwrap();
        assert!(stored <= 3.5 && stored > 3.4, "{name}: {stored}");
        let written = std::fs::metadata(output.join("model.safetensors")).unwrap().len();
        assert!((least..=most).contains(&written), "{name}: {least} to {most}, {written}");
        let text = std::fs::read_to_string(output.join("recipe.yaml")).unwrap();
        let steps = text.split("method: ").collect::<Vec<_>>();
        assert!(steps[1].starts_with("rotate") && !steps[2].starts_with("rotate"), "{text}");
        let rows = scratch.path().join("rows.safetensors").display().to_string();
        job.recipe = text.replace("\"file\"", &format!("{rows:?}"));
        let again = scratch.path().join(format!("again{index}"));
        run(&job, &again);
        let (found, repeated) = (files(&output), files(&again));
        assert_eq!(found["model.safetensors"], repeated["model.safetensors"], "{name}\n{text}");
    }
    let step = format!("method: rotate, residual: [false, true]}}, {{{STEP}");
    let job = setup("qwen3", &step, "bpw: 3.5", scratch.path());
    let error = job.run(&scratch.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("in another way in each candidate"), "{error}");
}

/// Every unit takes one candidate for all its layers, errors fall with bits, the curve is convex,
/// and no change of one unit within the budget would have been better.
fn check_units(name: &str, report: &Value, manifest: &Manifest) {
    let number = |value: &Value| value.as_f64().unwrap();
    let mut layers = 0;
    for unit in report["units"].as_array().unwrap() {
        let chosen = &unit["choices"][unit["chosen"].as_u64().unwrap() as usize];
        let modules = unit["modules"].as_array().unwrap();
        layers += modules.len();
        assert!([1, 2, 3].contains(&modules.len()), "{name}: {modules:?}");
        let outlines: Vec<_> = modules
            .iter()
            .map(|module| manifest.sites.iter().find(|site| site.name == *module).unwrap())
            .map(|site| site.outline.terms.clone())
            .collect();
        assert!(outlines.windows(2).all(|pair| pair[0] == pair[1]), "{name}: {modules:?}");
        let choices = unit["choices"].as_array().unwrap();
        for choice in choices {
            let better =
                number(&choice["predicted_divergence"]) < number(&chosen["predicted_divergence"]);
            let smaller = number(&choice["bytes"]) <= number(&chosen["bytes"]);
            assert!(!(better && smaller), "{name}: {modules:?} {choice} instead of {chosen}");
        }
        let errors: Vec<f64> = choices.iter().map(|c| number(&c["output_error"])).collect();
        assert!(errors[0] > errors[errors.len() - 1], "{name}: {errors:?}");
        let probes = unit["measured_divergences"].as_array().unwrap();
        assert!(!probes.is_empty() && probes.len() <= 2, "{name}: {modules:?}");
        for probe in probes {
            // What was measured is what is predicted there.
            let choice = &choices[probe["choice"].as_u64().unwrap() as usize];
            let (measured, predicted) =
                (number(&probe["divergence"]), number(&choice["predicted_divergence"]));
            assert!(measured > 0.0 && (predicted / measured - 1.0).abs() < 1e-9, "{name}: {unit}");
        }
    }
    assert_eq!(layers, manifest.sites.len());
    let curve: Vec<(f64, f64)> = report["curve"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| (number(&point["layer_bytes"]), number(&point["predicted_divergence"])))
        .collect();
    assert!(curve.windows(2).all(|p| p[0].0 < p[1].0 && p[0].1 > p[1].1), "{name}: {curve:?}");
}

#[test]
fn a_size_counts_the_whole_file_and_is_never_exceeded() {
    let scratch = scratch();
    let open = setup("llama-tied", STEP, "bpw: 9", scratch.path());
    let source = Source::open(real(), &model("llama-tied")).unwrap();
    let recipe = Recipe::parse(&open.recipe).unwrap();
    let fs = real();
    let survey = Survey::new(&fs, &source, &recipe, open.limits, None).unwrap();
    let (least, most) = survey.range_of_sizes().unwrap();
    for (index, part) in [0.0, 0.1, 0.37, 0.5, 0.83, 1.0, 1.2].into_iter().enumerate() {
        let size = least + (part * (most - least) as f64) as u64;
        let output = scratch.path().join(format!("out{index}"));
        let job = setup("llama-tied", STEP, &format!("size: {size}"), scratch.path());
        run(&job, &output);
        let written = std::fs::metadata(output.join("model.safetensors")).unwrap().len();
        assert_eq!(report(&output)["chosen"]["weight_file_bytes"], written);
        assert!(written <= size, "{written} of {size}");
        assert!(written + (most - least) / 10 > size.min(most), "{written} of {size}");
    }
    let job = setup("llama-tied", STEP, &format!("size: {}", least - 1), scratch.path());
    let error = job.run(&scratch.path().join("none")).unwrap_err();
    assert_eq!(error.failure(), Failure::Refused);
    assert!(error.to_string().contains(&format!("they take {least} (")), "{error}");
}

#[test]
fn a_divergence_is_bought_with_the_fewest_bytes() {
    let scratch = scratch();
    let free = scratch.path().join("free");
    run(&setup("llama-tied", STEP, "bpw: 9", scratch.path()), &free);
    let report_of_all = report(&free);
    let curve = report_of_all["curve"].as_array().unwrap().clone();
    let mut before = u64::MAX;
    for (index, point) in curve.iter().step_by(4).enumerate() {
        let nats = point["predicted_divergence"].as_f64().unwrap() * (1.0 + 1e-9);
        let output = scratch.path().join(format!("out{index}"));
        run(&setup("llama-tied", STEP, &format!("max_kl: {nats}"), scratch.path()), &output);
        let chosen = &report(&output)["chosen"];
        assert!(chosen["predicted_divergence"].as_f64().unwrap() <= nats, "{chosen}");
        let bytes = chosen["objective"].as_f64().unwrap() as u64;
        assert!(bytes as f64 <= point["layer_bytes"].as_f64().unwrap() + 0.5, "{chosen} {point}");
        before = before.min(bytes);
    }
    let least = curve[0]["layer_bytes"].as_f64().unwrap() as u64;
    assert!(before >= least);
    for (budget, name, expected) in [
        ("max_kl: 1e-12", "llama-tied", "a divergence of 0.000000000001 cannot be reached"),
        ("max_kl: 0.1", "bert-model", "no language-model head"),
        ("bpw: 1.5", "llama-tied", "1.5 bits a weight cannot be reached: the smallest"),
    ] {
        let job = setup(name, STEP, budget, scratch.path());
        let error = job.run(&scratch.path().join("none")).unwrap_err();
        assert!(matches!(error, EngineError::Refused(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn candidates_may_be_methods_with_and_without_statistics() {
    let scratch = scratch();
    let step = "one_of: [{method: rtn, bits: [2, 8], group_size: 16}, \
                {method: gptq, bits: [2, 3], group_size: 16}]";
    let output = scratch.path().join("out");
    let manifest = run(&setup("llama-untied", step, "bpw: 4", scratch.path()), &output);
    let methods: Vec<&str> = manifest.sites.iter().map(|site| site.method.as_str()).collect();
    assert!(methods.contains(&"gptq"), "{methods:?}");
    // Of two that take the same bytes the one with the lower error is taken.
    for unit in report(&output)["units"].as_array().unwrap() {
        let error = |index: usize| unit["choices"][index]["output_error"].as_f64().unwrap();
        assert_eq!(unit["choices"][0]["bytes"], unit["choices"][2]["bytes"]);
        assert!(unit["chosen"] != if error(0) < error(2) { 2 } else { 0 }, "{unit}");
    }
    // Rounding alone needs no rows in the end, and its recipe runs without.
    let step = "method: rtn, bits: [2, 3, 8], group_size: 16";
    let plain = scratch.path().join("plain");
    let manifest = run(&setup("llama-untied", step, "bpw: 4.5", scratch.path()), &plain);
    assert!(manifest.calibration.is_none());
}

/// Tables, tied and not, and heads are units of their own, whatever wants their statistics.
#[test]
fn tables_and_heads_are_searched_too() {
    let scratch = scratch();
    for (name, method, untie) in [
        ("llama-tied", "rtn", false),
        ("llama-tied", "gptq", false),
        ("llama-tied", "gptq", true),
        ("llama-untied", "rtn", false),
    ] {
        let output = scratch.path().join(format!("{name}-{method}-{untie}"));
        let targets = if name == "llama-tied" { "Linear, Embedding" } else { "Linear, lm_head" };
        let step =
            format!("method: {method}, bits: [2, 4, 8], group_size: 16, targets: [{targets}]");
        let step = if untie { step.replace("Embedding", "Embedding, lm_head") } else { step };
        let mut job = setup(name, &step, "bpw: 5", scratch.path());
        job.recipe = job.recipe.replace("compressed-tensors", "native");
        job.recipe.push_str(&format!("untie: {untie}\n"));
        let manifest = run(&job, &output);
        let report = report(&output);
        let units = report["units"].as_array().unwrap();
        let ends = units.iter().filter(|unit| unit["block"].is_null());
        assert_eq!(ends.clone().count(), if untie { 2 } else { 1 }, "{name} {method}");
        for unit in ends {
            let probe = &unit["measured_divergences"][0];
            assert!(probe["divergence"].as_f64().unwrap() > 0.0, "{name} {unit}");
        }
        let chosen = |unit: &Value| {
            unit["choices"][unit["chosen"].as_u64().unwrap() as usize]["bytes"].as_f64().unwrap()
        };
        let bytes: f64 = units.iter().map(chosen).sum();
        let weights: f64 = units.iter().map(|unit| unit["weights"].as_f64().unwrap()).sum();
        assert!(8.0 * bytes / weights <= 5.0 && 8.0 * bytes / weights > 4.5, "{name} {method}");
        assert_eq!(manifest.fallbacks().count(), usize::from(untie), "{:?}", manifest.notes);
    }
}

#[test]
fn what_the_format_cannot_hold_is_no_candidate() {
    let scratch = scratch();
    let step = "method: rtn, bits: [3, 4], group_size: [16, 24, row]";
    // Groups of 24 do not divide the columns and become rows, which are candidates already.
    let job = setup("llama-tied", step, "bpw: 4.6", scratch.path());
    let output = scratch.path().join("out");
    let manifest = run(&job, &output);
    assert_eq!(manifest.fallbacks().count(), 0, "{:?}", manifest.notes);
    for unit in report(&output)["units"].as_array().unwrap() {
        let is_down = unit["modules"][0].as_str().unwrap().ends_with("down_proj");
        let choices = unit["choices"].as_array().unwrap();
        assert_eq!(choices.len(), if is_down { 2 } else { 4 }, "{unit}");
    }
}

/// The disk goes away at some of the calls that change it, in the search and after it.
#[test]
fn a_search_that_dies_anywhere_resumes_to_the_same_bytes() {
    let step = "method: gptq, bits: [2, 4], group_size: 16";
    dies_anywhere(|folder| setup("llama-head-dim", step, "bpw: 4.4", folder), 3, tight);
}

/// A limit under which the activations are on the disk.
fn tight(job: &Setup) -> u64 {
    let source = Source::open(real(), &job.model).unwrap();
    let recipe = Recipe::parse(&job.recipe).unwrap();
    let fs = real();
    let mut limits = job.limits;
    loop {
        let survey = Survey::new(&fs, &source, &recipe, limits, None).unwrap();
        if survey.plan().memory.activations_in == ActivationsIn::Disk {
            assert!(Some(survey.memory()) <= limits.memory);
            return survey.memory();
        }
        limits.memory = Some(survey.memory() - 1);
    }
}

/// Asks for a stop when a block is measured.
struct StopWhileMeasuring<'a>(&'a AtomicBool, AtomicBool);

impl Progress for StopWhileMeasuring<'_> {
    fn begin(&self, phase: &str, _steps: u64) {
        self.1.store(phase == "measuring", Ordering::Relaxed);
    }

    fn advance(&self, done: u64, _detail: &str) {
        if done == 1 && self.1.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn threads_and_interruptions_change_no_byte() {
    let scratch = scratch();
    let job = setup("qwen3", STEP, "bpw: 3.9", scratch.path());
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (one, three) = (scratch.path().join("a"), scratch.path().join("b"));
    pool(1).install(|| job.run(&one)).unwrap();
    let stop = AtomicBool::new(false);
    let stopper = StopWhileMeasuring(&stop, AtomicBool::new(false));
    let error = pool(3).install(|| job.run_with(&three, &stop, &stopper)).unwrap_err();
    assert_eq!(error.failure(), Failure::Interrupted);
    let outcome = pool(3).install(|| job.run(&three)).unwrap();
    assert!(outcome.search_costs.is_some());
    assert_eq!(files(&one), files(&three));
    assert!(job.run(&three).unwrap().was_complete);
}
