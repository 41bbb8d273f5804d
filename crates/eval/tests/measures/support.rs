//! A tiny model with a tokenizer of single characters, and its probabilities in f64.

use lapidary_eval::{EvalError, Evaluation, Protocol, Report, evaluate};
use lapidary_formats::Source;
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision, Spec, spec};
use lapidary_store::{RealFs, Tokenizer};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub(crate) struct Model {
    pub(crate) source: Source,
    pub(crate) spec: Spec,
}

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

/// A model of `testdata/models`, for longer rows than its configuration has: rotary positions know
/// no end.
pub(crate) fn model(name: &str) -> Model {
    let source = Source::open(Arc::new(RealFs), &folder(name)).unwrap();
    let spec = Spec { context: 4096, ..spec(source.config()).unwrap() };
    Model { source, spec }
}

/// Characters that have a token, from 2 on; 0 is for all others, 1 begins or ends a text.
const CHARACTERS: &str = " \n\rabcdefghijklmnopqrstuvwxyz.,;:!?'\"()[]{}=<>-01235";

pub(crate) fn ids(text: &str) -> Vec<u32> {
    let id =
        |c: char| CHARACTERS.chars().position(|known| known == c).map_or(0, |at| at as u32 + 2);
    text.chars().map(id).collect()
}

/// The tokenizer of [`ids`]; with `begins`, it puts token 1 before every text.
pub(crate) fn tokenizer(begins: bool) -> Tokenizer {
    let special = if begins { "<s>" } else { "<|endoftext|>" };
    let mut vocab = Map::new();
    vocab.insert("<unk>".to_owned(), json!(0));
    vocab.insert(special.to_owned(), json!(1));
    for (index, character) in CHARACTERS.chars().enumerate() {
        vocab.insert(character.to_string(), json!(index + 2));
    }
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": special, "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {special: {"id": special, "ids": [1], "tokens": [special]}},
    });
    let definition = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated",
            "invert": false,
        },
        "post_processor": if begins { template } else { Value::Null },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    Tokenizer::from_json(definition.to_string().as_bytes(), "test").unwrap()
}

/// A text of so many characters, without much sense.
pub(crate) fn text(characters: usize, seed: u64) -> String {
    let alphabet: Vec<char> = CHARACTERS.chars().filter(|c| *c != '\r').collect();
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        alphabet[(state >> 33) as usize % alphabet.len()]
    };
    (0..characters).map(|_| next()).collect()
}

/// Log-probabilities of the next token after each of `tokens`.
pub(crate) fn log_probabilities(model: &Model, tokens: &[u32]) -> Vec<Vec<f64>> {
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 1, seq_len: tokens.len() };
    let mut x = executor.embed(&model.spec, &model.source, batch, tokens.into()).unwrap();
    for graph in model.spec.blocks.iter().chain(&model.spec.head) {
        let weights = GraphWeights::load(graph, &model.source, executor.backend()).unwrap();
        x = executor.run(graph, &weights, batch, x, None).unwrap();
    }
    let normalized = |row: &[f32]| {
        let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        row.iter().map(|logit| f64::from(*logit) - total.ln()).collect()
    };
    x.chunks_exact(model.spec.vocab_size).map(normalized).collect()
}

/// `Σ −ln p` of the tokens that should follow the positions from `first` on.
pub(crate) fn nll(model: &Model, tokens: &[u32], first: usize, targets: &[u32]) -> f64 {
    assert_eq!(tokens.len(), first + targets.len());
    let rows = log_probabilities(model, tokens);
    rows[first..].iter().zip(targets).map(|(row, target)| -row[*target as usize]).sum()
}

pub(crate) fn run(
    model: &Model,
    reference: Option<&Model>,
    protocol: Protocol,
    tokenizer: &Tokenizer,
    text: &str,
    limit: Option<usize>,
) -> Result<Report, EvalError> {
    let evaluation = Evaluation {
        model: (&model.source, &model.spec),
        reference: reference.map(|model| (&model.source, &model.spec)),
        reference_limit: None,
        tokenizer,
        text,
        protocol,
        limit,
        context: None,
        precision: Precision::F32,
        stop: &AtomicBool::new(false),
    };
    evaluate(&evaluation, &mut |_, _| {})
}

#[track_caller]
pub(crate) fn close(have: f64, want: f64) {
    assert!((have / want - 1.0).abs() < 1e-5, "{have} is not {want}");
}
