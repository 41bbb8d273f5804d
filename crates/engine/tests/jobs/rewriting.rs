//! Models that are rewritten before they are encoded: the same function in other numbers.

use crate::chains::chain;
use crate::support::{Setup, model, real, scratch};
use lapidary_engine::{EngineError, Failure, Manifest};
use lapidary_formats::Source;
use lapidary_methods::{Method, find};
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision, spec};
use lapidary_weight::{Edit, Edits, Tensors};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Every family and what it may differ in; the widths are of one, two and three odd factors.
const DECODERS: [&str; 8] = [
    "llama-tied",
    "llama-untied",
    "llama-biases",
    "llama-head-dim",
    "mistral",
    "qwen2-tied",
    "qwen3",
    "qwen3-biases",
];

/// Logits of some tokens, in f32; `see` is given the residual stream before each block and the head.
pub(crate) fn run(source: &Source, see: &mut dyn FnMut(&[f32])) -> Vec<f32> {
    let spec = spec(source.config()).unwrap();
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 2, seq_len: 12 };
    let tokens: Vec<u32> =
        (0..24_u32).map(|i| (i * i * 7 + 3 * i) % spec.vocab_size as u32).collect();
    let embedded = executor.embed(&spec, source, batch, tokens.as_slice().into()).unwrap();
    spec.blocks.iter().chain(&spec.head).fold(embedded, |x, graph| {
        see(&x);
        let weights = GraphWeights::load(graph, source, executor.backend()).unwrap();
        executor.run(graph, &weights, batch, x, None).unwrap()
    })
}

fn logits(folder: &Path) -> Vec<f32> {
    run(&Source::open(real(), folder).unwrap(), &mut |_| {})
}

/// `max |a − b|` of the largest `|b|`.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |m: f32, v| m.max(v.abs()));
    most(&mut a.iter().zip(b).map(|(a, b)| a - b)) / most(&mut b.iter().copied())
}

/// A model with a head of its own, seen through the edits of a rotation after some others.
fn rotated(name: &str, before: Edits, params: Value) -> Source {
    let source = Source::open(real(), &model(name)).unwrap();
    let mut config = source.config().clone();
    config["tie_word_embeddings"] = json!(false);
    let tied = spec(source.config()).unwrap().tied;
    let own = ("lm_head.weight".to_owned(), "model.embed_tokens.weight".to_owned());
    let names = if tied { vec![own] } else { vec![] };
    let source = source.renamed(config, &names).unwrap();
    let entry = find("rotate").unwrap();
    let Method::Graphwise(method) = (entry.build)(&params).unwrap() else { panic!("a graph") };
    let mut edits = before;
    for (name, more) in method.rewrite(&spec(source.config()).unwrap(), 3).unwrap() {
        edits.entry(name).or_default().extend(more);
    }
    source.edited(edits)
}

/// Card of `QuaRot`, must show 1: the same logits to 1e-4, for every family, all gains folded.
#[test]
fn a_rotation_changes_no_logit() {
    for name in DECODERS {
        let plain = logits(&model(name));
        for (residual, value) in [(true, true), (true, false), (false, true)] {
            let params = json!({"residual": residual, "value": value});
            let source = rotated(name, Edits::new(), params);
            let moved = difference(&run(&source, &mut |_| {}), &plain);
            assert!(moved < 1e-4, "{name} {residual} {value}: {moved}");
            let q = "model.layers.0.self_attn.q_proj.weight";
            assert_eq!(source.is_edited(q), residual, "{name}");
            let o = source.read("model.layers.0.self_attn.o_proj.weight").unwrap();
            let original = Source::open(real(), &model(name)).unwrap();
            let before = original.read("model.layers.0.self_attn.o_proj.weight").unwrap();
            assert!(difference(&o, &before) > 0.1, "{name}: the output projection is another");
        }
    }
}

/// Must show 3: a channel that stands out does so no longer, from the embedding to the head.
#[test]
fn a_rotation_spreads_what_stands_out() {
    let name = "llama-untied";
    let width = spec(Source::open(real(), &model(name)).unwrap().config()).unwrap().hidden_size;
    let planted: Arc<[f32]> = (0..width).map(|i| if i == 5 { 60.0 } else { 1.0 }).collect();
    let plant = || {
        let edit = vec![Edit::ScaleColumns(Arc::clone(&planted))];
        Edits::from([("model.embed_tokens.weight".to_owned(), edit)])
    };
    // The mean of max|x| over rms, and of the fourth moment over the square of the second.
    let spread = |source: &Source| {
        let (mut peaks, mut kurtosis) = (vec![], vec![]);
        run(source, &mut |x| {
            for token in x.chunks_exact(width) {
                let moment = |p: i32| {
                    token.iter().map(|x| f64::from(*x).powi(p)).sum::<f64>() / width as f64
                };
                let most = token.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                peaks.push(f64::from(most) / moment(2).sqrt());
                kurtosis.push(moment(4) / moment(2).powi(2));
            }
        });
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        (mean(&peaks), mean(&kurtosis))
    };
    let source = Source::open(real(), &model(name)).unwrap().edited(plant());
    let before = spread(&source);
    let after = spread(&rotated(name, plant(), json!({})));
    // A Gaussian of this width has a peak of about √(2 ln width) and a kurtosis of 3.
    let gaussian = (2.0 * (width as f64).ln()).sqrt();
    assert!(before.0 > 1.25 * gaussian && before.1 > 9.0, "{before:?}");
    assert!(after.0 < gaussian && after.1 < 4.0, "{before:?} {after:?}");
}

/// Rewrites a model, and encodes it with all that was lost in a correction of full rank.
fn try_rewrite(name: &str, step: &str, folder: &Path) -> Result<Manifest, EngineError> {
    let exactly =
        ["method: rtn, bits: 8, group_size: 8", "method: lqer, rank: 999, weighting: none"];
    let setup = Setup::new(name, &chain(&[step, exactly[0], exactly[1]]), folder, "native");
    Ok(setup.run(&folder.join("out"))?.manifest)
}

fn rewrite(name: &str, step: &str, folder: &Path) -> Manifest {
    try_rewrite(name, step, folder).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What each family allows of a rotation of the stream, one of the values, and scales: `r`, `v` and
/// `a`. What it does not is refused, and what it does leaves the logits as they were.
const FAMILIES: [(&str, &str); 28] = [
    ("albert", "v"),
    ("distilbert", "va"),
    ("gemma2", "va"),
    ("gemma2-no-caps", "va"),
    ("gemma3", "va"),
    ("gemma3-scaled", "va"),
    ("gpt-neox", "a"),
    ("gpt-neox-sequential", "a"),
    ("gpt2", "a"),
    ("gpt2-inner", "a"),
    ("granite", "rva"),
    ("granite-biases", "rva"),
    ("mixtral", "rva"),
    ("mixtral-window", "rva"),
    ("olmo2", "va"),
    ("olmo2-biases", "va"),
    ("opt", "va"),
    ("opt-post-norm", "va"),
    ("phi3", "ra"),
    ("phi3-partial", "ra"),
    ("qwen3-moe", "rva"),
    ("qwen3-moe-mixed", "rva"),
    ("roberta", "va"),
    ("smollm3", "rva"),
    ("smollm3-window", "rva"),
    ("starcoder2", "va"),
    ("starcoder2-window", "va"),
    ("stablelm-parallel", "va"),
];

#[test]
fn every_family_is_rewritten_exactly_or_refused() {
    let steps = [
        ('r', "method: rotate, value: false"),
        ('v', "method: rotate, residual: false"),
        ('a', "method: awq"),
    ];
    let mut failures = vec![];
    for (name, allowed) in FAMILIES {
        let plain = logits(&model(name));
        for (letter, step) in steps {
            let scratch = scratch();
            match try_rewrite(name, step, scratch.path()) {
                Ok(_) if !allowed.contains(letter) => {
                    failures.push(format!("{name} {step}: is not refused"));
                }
                Ok(_) => {
                    let moved = difference(&logits(&scratch.path().join("out")), &plain);
                    if moved.is_nan() || moved > 1e-3 {
                        failures.push(format!("{name} {step}: {moved}"));
                    }
                }
                Err(error) if allowed.contains(letter) || error.failure() != Failure::Refused => {
                    failures.push(format!("{name} {step}: {error}"));
                }
                Err(_) => {}
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What presets rely on, which are for any model: blocks that cannot be rotated stay, and that is said.
#[test]
fn where_possible_every_family_is_rewritten_exactly() {
    for (name, allowed) in FAMILIES {
        let scratch = scratch();
        let step = "method: rotate, residual: false, where_possible: true";
        let manifest = try_rewrite(name, step, scratch.path()).unwrap();
        let moved = difference(&logits(&scratch.path().join("out")), &logits(&model(name)));
        assert!(moved < 1e-3, "{name}: {moved}");
        let is_noted = manifest.notes.iter().any(|note| note.note.what.contains("not rotated"));
        assert_eq!(is_noted, !allowed.contains('v'), "{name}");
    }
}

#[test]
fn a_rotated_model_has_the_same_logits() {
    for name in DECODERS {
        for step in
            ["method: rotate", "method: rotate, residual: false", "method: rotate, value: false"]
        {
            let scratch = scratch();
            let manifest = rewrite(name, step, scratch.path());
            let output = scratch.path().join("out");
            let moved = difference(&logits(&output), &logits(&model(name)));
            assert!(moved < 1e-3, "{name} {step}: {moved}");
            let rotates_stream = !step.contains("residual: false");
            let written = Source::open(real(), &output).unwrap();
            for tensor in written.tensors().iter().filter(|t| t.name.ends_with("layernorm.weight"))
            {
                let gains = written.read(&tensor.name).unwrap();
                assert_eq!(
                    gains.iter().all(|gain| *gain == 1.0),
                    rotates_stream,
                    "{}",
                    tensor.name
                );
            }
            let embedding = "model.embed_tokens.weight";
            let is_rewritten = manifest.tensors.rewritten.iter().any(|name| name == embedding);
            assert_eq!(is_rewritten, rotates_stream, "{name}");
            let original = Source::open(real(), &model(name)).unwrap();
            if spec(original.config()).unwrap().tied && rotates_stream {
                assert!(!spec(written.config()).unwrap().tied, "{name}: the head is apart");
                assert!(manifest.notes.iter().any(|note| note.site == "lm_head"), "{name}");
            }
        }
    }
}

/// Card of `SmoothQuant`, must show 1: for every alpha and every family that has what absorbs scales, the
/// float model is as it was; and the inputs were smoothed. Where nothing is rounded a search leaves
/// them alone.
#[test]
fn a_smoothed_model_has_the_same_logits() {
    let scaled = FAMILIES.iter().filter(|(_, allowed)| allowed.contains('a'));
    let names = scaled.map(|(name, _)| *name).chain(DECODERS).chain(["bert-masked-lm"]);
    let mut failures = vec![];
    for name in names {
        let plain = logits(&model(name));
        // Its logits move by 1.5e-5 when weights are disturbed in their last bit, in transformers too.
        let most = if name == "gemma3-scaled" { 3e-5 } else { 1e-5 };
        for alpha in ["0", "0.25", "0.5", "0.75", "1", "search"] {
            let scratch = scratch();
            let smooth = format!("method: smoothquant, alpha: {alpha}");
            // Nothing is pruned: all layers are written as floats.
            let steps = chain(&[&smooth, "method: magnitude, sparsity: 0"]);
            let setup = Setup::new(name, &steps, scratch.path(), "native");
            let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
            let moved = difference(&logits(&scratch.path().join("out")), &plain);
            if moved.is_nan() || moved > most {
                failures.push(format!("{name} {alpha}: {moved}"));
            }
            let (said, acts) = match alpha {
                "search" => ("inputs left as they are", false),
                _ => ("inputs smoothed with alpha", true),
            };
            let mut notes = manifest.sites.iter().flat_map(|site| &site.notes);
            assert!(notes.any(|note| note.what.starts_with(said)), "{name} {alpha}");
            assert_eq!(moved > 0.0, acts, "{name} {alpha}");
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_rescaled_model_has_the_same_logits() {
    for name in DECODERS.into_iter().chain(["bert-masked-lm"]) {
        let scratch = scratch();
        let manifest = rewrite(name, "method: awq", scratch.path());
        let moved = difference(&logits(&scratch.path().join("out")), &logits(&model(name)));
        assert!(moved < 1e-3, "{name}: {moved}");
        let scaled = manifest.sites.iter().filter(|site| {
            site.notes.iter().any(|note| note.what.starts_with("inputs scaled with alpha"))
        });
        let all = manifest.sites.len();
        let groups = if name.starts_with("bert") { all / 6 } else { all / 7 * 4 };
        assert_eq!(scaled.count(), groups, "{name}: a note for each input that was scaled");
        let norms = manifest.tensors.rewritten.iter().filter(|n| n.contains("layernorm")).count();
        assert_eq!(norms > 0, !name.starts_with("bert"), "{name}");
    }
}
