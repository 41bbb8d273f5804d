//! Embeddings and heads: tied, untied, and made apart.

use crate::support::{Setup, model, real, scratch};
use lapidary_engine::plan::Limits;
use lapidary_engine::recipe::Recipe;
use lapidary_engine::{EngineError, Failure, Manifest, Plan};
use lapidary_formats::Source;
use lapidary_model::{Place, spec};
use lapidary_weight::Tensors;
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";
const BLOCKS: &str = "method: gptq, bits: 4, group_size: 16";

fn run(setup: &Setup, folder: &Path, name: &str) -> (Source, Manifest) {
    let output = folder.join(name);
    let manifest = setup.run(&output).unwrap().manifest;
    (Source::open(real(), &output).unwrap(), manifest)
}

fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.sites.iter().map(|site| site.name.as_str()).collect()
}

/// `‖a − b‖² / ‖b‖²`
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let error: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

#[test]
fn a_tied_table_is_quantized_once_under_the_embeddings_name() {
    let scratch = scratch();
    let original = Source::open(real(), &model("llama-tied")).unwrap();
    for format in ["native", "dense"] {
        for target in ["Embedding", "model.embed_tokens", "lm_head", "Head", "\"re:lm_.*\""] {
            let step = format!("method: rtn, bits: 8, group_size: row, targets: [{target}]");
            let setup = Setup::new("llama-tied", &step, scratch.path(), format);
            let name = format!("{format}-{}", target.len());
            let (written, manifest) = run(&setup, scratch.path(), &name);
            assert_eq!(names(&manifest), ["model.embed_tokens"], "{target}");
            assert_eq!(manifest.tensors.compressed, [EMBEDDING]);
            assert!(manifest.calibration.is_none(), "no forward without statistics");
            assert!(spec(written.config()).unwrap().tied);
            let (before, after) =
                (original.read(EMBEDDING).unwrap(), written.read(EMBEDDING).unwrap());
            let error = distance(&after, &before);
            assert!(error > 0.0 && error < 1e-4, "{format} {target}: {error}");
            // Rows are looked up as the whole has them, in any order and more than once.
            let width = written.shape(EMBEDDING).unwrap()[1];
            let rows = written.read_rows(EMBEDDING, &[7, 0, 50, 7]).unwrap();
            for (row, values) in [7, 0, 50, 7].iter().zip(rows.chunks_exact(width)) {
                assert_eq!(values, &after[row * width..][..width]);
            }
            assert!(written.read_rows(EMBEDDING, &[10_000]).is_err());
            assert_eq!(manifest.bits_per_weight, None, "no layer of a block is compressed");
            let bits = manifest.table_bits_per_weight.unwrap();
            let expected = if format == "dense" { 32.0 } else { 8.0 + 16.0 / width as f64 };
            assert!((bits - expected).abs() < 1e-9, "{bits}");
        }
    }
}

#[test]
fn a_tied_table_is_encoded_with_the_heads_statistics_where_the_method_wants_them() {
    let scratch = scratch();
    let setup = |steps: &str| Setup::new("llama-tied", steps, scratch.path(), "native");
    let blocks = setup(BLOCKS);
    let (alone, _) = run(&blocks, scratch.path(), "alone");
    let table = "method: gptq, bits: 4, group_size: row, targets: [Embedding]";
    let (both, manifest) = run(&setup(&format!("{BLOCKS}}}, {{{table}")), scratch.path(), "both");
    let last = manifest.sites.last().unwrap();
    assert_eq!(last.name, "model.embed_tokens");
    let error = last.output_error.unwrap();
    assert!(error > 0.0 && error < 0.05 && error < last.weight_error, "{error}");
    assert!(manifest.fallbacks().next().is_none());
    // A table of few bits that is there before the blocks are calibrated changes what they see.
    let table = "method: rtn, bits: 2, group_size: row, targets: [Embedding]";
    let (before, manifest) =
        run(&setup(&format!("{BLOCKS}}}, {{{table}")), scratch.path(), "before");
    assert_eq!(names(&manifest)[0], "model.embed_tokens");
    assert_eq!(manifest.sites[0].output_error, None);
    let query = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(alone.read(query).unwrap(), both.read(query).unwrap());
    assert_ne!(alone.read(query).unwrap(), before.read(query).unwrap());
}

#[test]
fn an_untied_table_has_no_statistics_and_says_so() {
    let scratch = scratch();
    let step = "method: gptq, bits: 4, group_size: 16, targets: [\"re:.*\"]";
    let mut setup = Setup::new("llama-untied", step, scratch.path(), "native");
    let (_, manifest) = run(&setup, scratch.path(), "out");
    let (first, last) = (&manifest.sites[0], manifest.sites.last().unwrap());
    assert_eq!((first.name.as_str(), first.output_error), ("model.embed_tokens", None));
    assert_eq!(last.name, "lm_head");
    assert!(last.output_error.unwrap() < 0.05);
    let fallbacks: Vec<_> = manifest.fallbacks().collect();
    assert_eq!(fallbacks.len(), 1);
    assert_eq!(fallbacks[0].0, "model.embed_tokens");
    assert!(fallbacks[0].1.what.contains("rows of a table are looked up"));
    // What takes GPTQ's place finds the scales of least error, as OMSE does.
    let step = "method: omse, bits: 4, group_size: 16, targets: [Embedding]";
    let omse = Setup::new("llama-untied", step, scratch.path(), "native");
    let (_, least) = run(&omse, scratch.path(), "omse");
    let ratio = first.weight_error / least.sites[0].weight_error;
    assert!((1.0..1.01).contains(&ratio), "{ratio}");
    setup.strict = true;
    let error = setup.run(&scratch.path().join("strict")).unwrap_err();
    assert!(error.to_string().contains("--strict does not allow it"), "{error}");
}

#[test]
fn packed_integers_are_no_embedding_for_other_loaders() {
    let scratch = scratch();
    for (name, target, expected) in [
        ("llama-untied", "Embedding", "load embedding tables as plain floats only"),
        ("llama-tied", "lm_head", "untie: true"),
    ] {
        let step = format!("method: rtn, bits: 8, group_size: 16, targets: [{target}]");
        let setup = Setup::new(name, &step, scratch.path(), "compressed-tensors");
        let error = setup.run(&scratch.path().join("out")).unwrap_err();
        assert_eq!(error.failure(), Failure::Refused);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_tied_head_is_made_apart_where_the_recipe_says_so() {
    let scratch = scratch();
    let original = Source::open(real(), &model("qwen2-tied")).unwrap();
    let step = "method: gptq, bits: 4, group_size: 16, targets: [lm_head]";
    let mut setup = Setup::new("qwen2-tied", step, scratch.path(), "compressed-tensors");
    setup.recipe.push_str("untie: true\n");
    let (written, manifest) = run(&setup, scratch.path(), "packed");
    assert_eq!(names(&manifest), ["lm_head"]);
    assert!(manifest.notes.iter().any(|note| note.note.what.contains("a weight of its own")));
    assert_eq!(written.config()["tie_word_embeddings"], false);
    assert!(!spec(written.config()).unwrap().tied);
    assert_eq!(written.read(EMBEDDING).unwrap(), original.read(EMBEDDING).unwrap());
    let head = written.read("lm_head.weight").unwrap();
    let error = distance(&head, &original.read(EMBEDDING).unwrap());
    assert!(error > 0.0 && error < 0.05, "{error}");
    // Each on its own grid.
    let steps = "method: rtn, bits: 8, group_size: row, targets: [Embedding]}, {method: rtn, \
                 bits: 4, group_size: 16, targets: [lm_head]";
    let mut setup = Setup::new("qwen2-tied", steps, scratch.path(), "native");
    setup.recipe.push_str("untie: true\n");
    let (written, manifest) = run(&setup, scratch.path(), "native");
    assert_eq!(names(&manifest), ["model.embed_tokens", "lm_head"]);
    let terms = |name: &str| written.outline(written.get(name).unwrap()).unwrap().describe();
    assert_ne!(terms(EMBEDDING), terms("lm_head.weight"));
    // Nothing to do where the head has a weight of its own.
    let mut setup = Setup::new("qwen2-untied", step, scratch.path(), "compressed-tensors");
    setup.recipe.push_str("untie: true\n");
    let (_, manifest) = run(&setup, scratch.path(), "untied");
    assert!(manifest.notes.iter().all(|note| !note.note.what.contains("of its own")));
}

#[test]
fn every_table_of_an_encoder_is_a_site() {
    let scratch = scratch();
    let kinds = ["word_embeddings", "token_type_embeddings", "position_embeddings"];
    for (name, prefix) in [("bert-model", ""), ("bert-masked-lm", "bert.")] {
        let step = "method: gptq, bits: 8, group_size: row, targets: [\"re:.*\"]";
        let setup = Setup::new(name, step, scratch.path(), "native");
        let (written, manifest) = run(&setup, scratch.path(), name);
        let source = Source::open(real(), &model(name)).unwrap();
        for kind in kinds {
            let module = format!("{prefix}embeddings.{kind}");
            assert!(names(&manifest).contains(&module.as_str()), "{name}: {module}");
            let table = format!("{module}.weight");
            let error = distance(&written.read(&table).unwrap(), &source.read(&table).unwrap());
            assert!(error > 0.0 && error < 1e-3, "{table}: {error}");
        }
        // The table that the head multiplies by is encoded with the head.
        let words = format!("{prefix}embeddings.word_embeddings");
        let place = names(&manifest).iter().position(|name| *name == words).unwrap();
        assert_eq!(place > 3, name == "bert-masked-lm", "{:?}", names(&manifest));
        let fallbacks = manifest.fallbacks().count();
        assert_eq!(fallbacks, if name == "bert-masked-lm" { 2 } else { 3 });
    }
}

#[test]
fn the_plan_counts_what_a_table_and_a_head_need() {
    let source = Source::open(real(), &model("llama-untied")).unwrap();
    let plan = |steps: &str| -> Result<Plan, EngineError> {
        let recipe = format!("steps: [{{{steps}}}]\nformat: native\n");
        Plan::new(&real(), &source, &Recipe::parse(&recipe).unwrap(), Limits::default())
    };
    let blocks = plan(BLOCKS).unwrap();
    let head = plan(&format!("{BLOCKS}, targets: [Linear, lm_head]")).unwrap();
    assert!(head.memory.statistics >= blocks.memory.statistics);
    assert!(head.memory.peak >= blocks.memory.peak);
    let table = plan("method: rtn, targets: [Embedding]").unwrap();
    let site = &table.sites[0];
    assert_eq!((site.place, site.stage), (Place::Embedding, Place::Embedding));
    let numbers = (site.outline.rows * site.outline.cols) as u64;
    assert!(table.memory.peak > 14 * numbers);
    assert!(table.bits_per_weight().is_none() && table.table_bits_per_weight().unwrap() > 4.0);
}
