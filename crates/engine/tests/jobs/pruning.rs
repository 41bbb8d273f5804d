//! Pruned layers, from the recipe to what is stored and read back.

use crate::chains::chain;
use crate::support::{Setup, StopAfter, files, model, real, scratch};
use lapidary_engine::Manifest;
use lapidary_engine::recipe::{Overrides, Recipe, preset};
use lapidary_formats::Source;
use lapidary_weight::{Places, Tensors, TermOutline};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const GPTQ: &str = "method: gptq, bits: 4, group_size: 16";

fn run(folder: &Path, steps: &[&str], format: &str) -> Manifest {
    let setup = Setup::new("llama-bf16", &chain(steps), folder, format);
    setup.run(&folder.join("out")).unwrap().manifest
}

fn open(folder: &Path) -> Source {
    Source::open(real(), folder).unwrap()
}

/// Every layer has exactly the zeros that were asked for, in every format the same weights.
#[test]
fn formats_hold_the_same_pruned_model() {
    for method in ["magnitude", "wanda", "sparsegpt"] {
        for (share, steps) in
            [(0.5, "sparsity: 0.5"), (0.5, "pattern: \"2:4\""), (0.25, "sparsity: 0.25")]
        {
            let step = format!("method: {method}, {steps}");
            let (native, dense) = (scratch(), scratch());
            let manifest = run(native.path(), &[&step], "native");
            let other = run(dense.path(), &[&step], "dense");
            assert!((manifest.sparsity.unwrap() - share).abs() < 0.01, "{step}");
            let (native, dense) =
                (open(&native.path().join("out")), open(&dense.path().join("out")));
            for (site, written) in manifest.sites.iter().zip(&other.sites) {
                let [TermOutline::Sparse { nonzeros, places, .. }] = site.outline.terms[..] else {
                    panic!("{step}: {}", site.outline.describe());
                };
                assert_eq!(places == Places::Bitmap, !steps.contains("2:4"), "{step}");
                let name = format!("{}.weight", site.name);
                let values = native.read(&name).unwrap();
                let zeros = values.iter().filter(|value| value.to_bits() == 0).count();
                assert!(zeros >= values.len() - nonzeros, "{step}: {}", site.name);
                assert!(site.sparsity.unwrap() >= share - 0.01);
                assert_eq!(values, dense.read(&name).unwrap(), "{step}: {}", site.name);
                assert_eq!(site.weight_error, written.weight_error);
            }
            assert!(manifest.bytes.result < other.bytes.result, "{step}");
        }
    }
}

/// Card 0: a share of nothing is the source, bit for bit.
#[test]
fn nothing_pruned_is_the_source() {
    for method in ["magnitude", "wanda", "sparsegpt"] {
        for format in ["dense", "native"] {
            let scratch = scratch();
            let step = format!("method: {method}, sparsity: 0");
            run(scratch.path(), &[&step], format);
            let (before, after) = (open(&model("llama-bf16")), open(&scratch.path().join("out")));
            for tensor in before.tensors() {
                let bits = |source: &Source| -> Vec<u32> {
                    source.read(&tensor.name).unwrap().iter().map(|value| value.to_bits()).collect()
                };
                assert_eq!(bits(&before), bits(&after), "{step}: {}", tensor.name);
            }
        }
    }
}

/// Stopped after each block, on any number of threads, the bytes are the same.
#[test]
fn pruning_resumes_and_does_not_depend_on_threads() {
    for steps in [&["method: wanda"][..], &["method: sparsegpt, pattern: \"1:2\"", GPTQ]] {
        let whole = scratch();
        let job = |folder: &Path| Setup::new("llama-head-dim", &chain(steps), folder, "native");
        job(whole.path()).run(&whole.path().join("out")).unwrap();
        let wanted = files(&whole.path().join("out"));
        for threads in [1, 3] {
            let scratch = scratch();
            let job = job(scratch.path());
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let output = scratch.path().join("out");
            let stop = AtomicBool::new(false);
            let stopped = pool.install(|| job.run_with(&output, &stop, &StopAfter::new(&stop, 1)));
            assert!(stopped.is_err());
            pool.install(|| job.run(&output)).unwrap();
            assert_eq!(files(&output), wanted, "{steps:?} on {threads} threads");
        }
    }
}

/// What is pruned survives rounding, also in formats for engines; layers of tables have no inputs.
#[test]
fn chains_keep_the_zeros_and_tables_are_pruned_by_magnitude() {
    for (format, steps) in [
        ("compressed-tensors", &["method: sparsegpt", "method: gptq, bits: 4, group_size: 16"][..]),
        ("compressed-tensors", &["method: wanda, pattern: \"2:4\"", "method: rtn, group_size: 16"]),
        ("native", &["method: awq", "method: wanda", GPTQ]),
    ] {
        let scratch = scratch();
        let manifest = run(scratch.path(), steps, format);
        assert!(manifest.sites.iter().all(|site| site.sparsity.unwrap() >= 0.49), "{steps:?}");
    }
    let scratch = scratch();
    let manifest = run(scratch.path(), &["method: wanda, targets: [Embedding]"], "native");
    assert!(manifest.sites[0].sparsity.unwrap() > 0.48);
    let without = |note: &str| note.contains("encoded as without them");
    assert!(manifest.notes.iter().any(|note| without(&note.note.what)), "{:?}", manifest.notes);
}

#[test]
fn options_settle_the_share() {
    let read = |name: &str, sparsity, pattern: Option<&str>| {
        let mut document = preset(name).unwrap().document().unwrap();
        let pattern = pattern.map(str::to_owned);
        Overrides { sparsity, pattern, ..Overrides::default() }.apply(&mut document)?;
        Recipe::from_document(&document)
    };
    let recipe = read("sparse-50", Some(0.7), None).unwrap();
    assert_eq!(recipe.steps[0].params["sparsity"], 0.7);
    let recipe = read("sparse-50", None, Some("4:8")).unwrap();
    assert_eq!(recipe.steps[0].params["pattern"], "4:8", "in place of the sparsity");
    assert!(recipe.steps[0].params["sparsity"].is_null());
    let recipe = read("sparse-2-4", Some(0.3), None).unwrap();
    assert!(recipe.steps[0].params["pattern"].is_null());
    let wrong = read("W4A16", Some(0.3), None).unwrap_err().to_string();
    assert!(wrong.contains("no step takes sparsity"), "{wrong}");
}

/// OWL: blocks keep as their outliers are, the mean is what was asked for, in every block exactly what
/// the record says; it resumes, and goes with an encoder.
#[test]
fn shares_follow_outliers() {
    for steps in [
        &["method: wanda, sparsity: 0.6, owl: 0.2"][..],
        &["method: sparsegpt, sparsity: 0.6, owl: 0.2", GPTQ],
    ] {
        let whole = scratch();
        let job = |folder: &Path| Setup::new("llama-tied", &chain(steps), folder, "native");
        let manifest = job(whole.path()).run(&whole.path().join("out")).unwrap().manifest;
        // Rows are short here, and lose a part of a weight each.
        assert!((manifest.sparsity.unwrap() - 0.6).abs() < 0.03, "{:?}", manifest.sparsity);
        let told = std::fs::read(whole.path().join("out/structure.json")).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        let shares: Vec<f64> = told[0]["scores"]["share of each block"]
            .as_array()
            .unwrap()
            .iter()
            .map(|share| share.as_f64().unwrap())
            .collect();
        let spread = |shares: &[f64]| {
            let most = shares.iter().copied().fold(0.0, f64::max);
            most - shares.iter().copied().fold(1.0, f64::min)
        };
        assert!((spread(&shares) - 0.4).abs() < 1e-9, "{shares:?}");
        for site in &manifest.sites {
            let block: usize = site.name.split('.').nth(2).unwrap().parse().unwrap();
            assert!((site.sparsity.unwrap() - shares[block]).abs() < 0.05, "{}", site.name);
        }
        let scratch = scratch();
        let (stop, output) = (AtomicBool::new(false), scratch.path().join("out"));
        let stopped = job(scratch.path());
        stopped.run_with(&output, &stop, &StopAfter::new(&stop, 1)).unwrap_err();
        stopped.run(&output).unwrap();
        assert_eq!(files(&output), files(&whole.path().join("out")));
    }
}

/// A search over shares: every layer gets its own, within the size.
#[test]
fn a_search_gives_every_layer_its_share() {
    let scratch = scratch();
    let step = "method: wanda, sparsity: [0.25, 0.5, 0.75]";
    let mut job = Setup::new("llama-tied", step, scratch.path(), "native");
    job.recipe.push_str("budget: {bpw: 18}\n");
    let manifest = job.run(&scratch.path().join("out")).unwrap().manifest;
    assert!(manifest.bits_per_weight.unwrap() <= 18.0, "{:?}", manifest.bits_per_weight);
    let shares: std::collections::BTreeSet<String> =
        manifest.sites.iter().map(|site| format!("{:.2}", site.sparsity.unwrap())).collect();
    assert!(shares.len() > 1, "{shares:?}");
}
