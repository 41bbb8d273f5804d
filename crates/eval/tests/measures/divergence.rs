//! Divergence and agreement of two models, by the definitions.

use crate::support::{Model, close, ids, log_probabilities, model, nll, run, text, tokenizer};
use lapidary_eval::{Evaluation, Protocol, compare_encoders, evaluate};
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision};
use std::sync::atomic::AtomicBool;

fn argmax(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, index| if row[index] > row[best] { index } else { best })
}

#[test]
fn divergence_and_agreement_are_their_definitions() {
    let (candidate, reference) = (model("mistral"), model("llama-untied"));
    let text = text(3 * 512, 1);
    let tokenizer = tokenizer(false);
    let report =
        run(&candidate, Some(&reference), Protocol::LlamaCpp, &tokenizer, &text, None).unwrap();
    let (mut kl, mut same, mut candidate_nll, mut reference_nll) = (0.0, 0, 0.0, 0.0);
    for chunk in ids(&text).chunks_exact(512) {
        let q = log_probabilities(&candidate, &chunk[..511]);
        let p = log_probabilities(&reference, &chunk[..511]);
        for (q, p) in q.iter().zip(&p).skip(256) {
            kl += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            same += u64::from(argmax(p) == argmax(q));
        }
        candidate_nll += nll(&candidate, &chunk[..511], 256, &chunk[257..]);
        reference_nll += nll(&reference, &chunk[..511], 256, &chunk[257..]);
    }
    let predictions = 3.0 * 255.0;
    let against = report.against.unwrap();
    close(against.kl_divergence, kl / predictions);
    assert_eq!(against.top1_agreement, same as f64 / predictions);
    assert!(same > 0 && same < 765, "{same}");
    close(against.reference_perplexity, (reference_nll / predictions).exp());
    close(report.scored.perplexity, (candidate_nll / predictions).exp());
}

/// Comparing fewer windows is comparing those alone, and predicts the others none the less.
#[test]
fn a_reference_for_some_windows_is_one_for_these_alone() {
    let (candidate, reference) = (model("mistral"), model("llama-untied"));
    let (tokenizer, text) = (tokenizer(false), text(700, 8));
    let stop = AtomicBool::new(false);
    let with = |limit, reference_limit| {
        let evaluation = Evaluation {
            model: (&candidate.source, &candidate.spec),
            reference: Some((&reference.source, &reference.spec)),
            reference_limit,
            tokenizer: &tokenizer,
            text: &text,
            protocol: Protocol::Windows,
            limit,
            context: Some(64),
            precision: Precision::F32,
            stop: &stop,
        };
        evaluate(&evaluation, &mut |_, _| {}).unwrap()
    };
    let (whole, first, both) = (with(None, None), with(Some(3), None), with(None, Some(3)));
    assert_eq!((whole.windows, both.windows), (10, 10));
    assert_eq!(both.against, first.against);
    assert_eq!(both.against.map(|against| against.windows), Some(3));
    assert_eq!(both.against.map(|against| against.perplexity), Some(first.scored.perplexity));
    close(both.scored.perplexity, whole.scored.perplexity);
    assert_eq!(both.scored.tokens, whole.scored.tokens);
    assert_eq!(with(None, Some(99)), whole, "more than there are are all");
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let (a, b) = (model("qwen3"), model("qwen3"));
    let report =
        run(&a, Some(&b), Protocol::LlamaCpp, &tokenizer(true), &text(1100, 2), None).unwrap();
    let against = report.against.unwrap();
    assert!(against.kl_divergence.abs() < 1e-12 && against.top1_agreement == 1.0, "{against:?}");
    assert_eq!(against.reference_perplexity, report.scored.perplexity);
}

#[test]
fn vocabularies_of_different_sizes_cannot_be_compared() {
    let (a, b) = (model("llama-untied"), model("llama-bf16"));
    let text = text(1100, 3);
    let error = run(&a, Some(&b), Protocol::LlamaCpp, &tokenizer(false), &text, None).unwrap_err();
    assert!(error.to_string().contains("vocabularies of different sizes"), "{error}");
}

/// Last hidden states of one row.
fn hidden(model: &Model, row: &[u32]) -> Vec<f64> {
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 1, seq_len: row.len() };
    let mut x = executor.embed(&model.spec, &model.source, batch, row.into()).unwrap();
    for graph in &model.spec.blocks {
        let weights = GraphWeights::load(graph, &model.source, executor.backend()).unwrap();
        x = executor.run(graph, &weights, batch, x, None).unwrap();
    }
    x.into_iter().map(f64::from).collect()
}

#[test]
fn encoders_are_compared_by_their_pooled_states() {
    let (a, b) = (model("bert-masked-lm"), model("bert-model"));
    let rows: Vec<Vec<u32>> =
        (1..20_u32).map(|n| (0..2 * n).map(|i| (i * n + 5) % 73).collect()).collect();
    let compare = |a: &Model, b: &Model| {
        let stop = AtomicBool::new(false);
        let models = ((&a.source, &a.spec), (&b.source, &b.spec));
        compare_encoders(models.0, models.1, &rows, Precision::F32, &stop).unwrap()
    };
    let (mut cosines, mut error, mut energy) = (0.0, 0.0, 0.0);
    for row in &rows {
        let (x, y) = (hidden(&a, row), hidden(&b, row));
        let pool = |states: &[f64]| -> Vec<f64> {
            let channel = |c: usize| states.iter().skip(c).step_by(32).sum::<f64>();
            (0..32).map(channel).collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (p, q) = (pool(&x), pool(&y));
        cosines += dot(&p, &q) / (dot(&p, &p) * dot(&q, &q)).sqrt();
        error += x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        energy += dot(&y, &y);
    }
    let found = compare(&a, &b);
    assert!((found.embedding_cosine - cosines / rows.len() as f64).abs() < 1e-5, "{found:?}");
    close(found.hidden_error, error / energy);
    assert_eq!(found.tokens, rows.iter().map(Vec::len).sum::<usize>());
    let same = compare(&b, &b);
    assert!((same.embedding_cosine - 1.0).abs() < 1e-12 && same.hidden_error == 0.0);
}
