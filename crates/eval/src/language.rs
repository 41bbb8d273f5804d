//! Perplexity of a language model, and its divergence from a reference on the same predictions.

use crate::EvalError;
use crate::protocol::{Protocol, Segment, named_prefix};
use crate::runner::Runner;
use crate::score::Sums;
use lapidary_formats::Source;
use lapidary_model::{Precision, Spec};
use lapidary_store::Tokenizer;
use std::sync::atomic::AtomicBool;

/// Tokens that go through the blocks together, at least.
const GROUP_TOKENS: usize = 16_384;

/// Bytes of hidden states that go through the blocks together, unless so many tokens take more. The
/// weights of a block are read and decoded once for all of them.
const GROUP_BYTES: usize = 1 << 27;

/// Predictions whose logits are in memory at once.
const LOGIT_ROWS: usize = 256;

/// What to evaluate, and how.
pub struct Evaluation<'a> {
    /// The model.
    pub model: (&'a Source, &'a Spec),
    /// What it is compared with.
    pub reference: Option<(&'a Source, &'a Spec)>,
    /// At most this many windows, chunks or pages are compared with it, the first ones.
    pub reference_limit: Option<usize>,
    /// Tokens of both.
    pub tokenizer: &'a Tokenizer,
    /// The text.
    pub text: &'a str,
    /// How it is cut and scored.
    pub protocol: Protocol,
    /// At most this many windows, chunks or pages.
    pub limit: Option<usize>,
    /// Longest segment, where it is to be shorter than the protocol's.
    pub context: Option<usize>,
    /// Rounding of factors in matrix products.
    pub precision: Precision,
    /// Set from outside to stop.
    pub stop: &'a AtomicBool,
}

/// Figures of one evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The protocol.
    pub protocol: Protocol,
    /// Tokens of a full segment.
    pub length: usize,
    /// Segments.
    pub windows: usize,
    /// The model's figures.
    pub scored: Scored,
    /// The reference's perplexity and what lies between the two.
    pub against: Option<Against>,
}

/// Figures of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Predictions.
    pub tokens: u64,
    /// `exp` of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// `exp` of the negative log-likelihood of a word, and of a byte, in the protocol that counts
    /// them.
    pub word_perplexity: Option<f64>,
    /// The same of a byte.
    pub byte_perplexity: Option<f64>,
}

/// Figures of a model against a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Against {
    /// Segments compared.
    pub windows: usize,
    /// The model's perplexity in these segments.
    pub perplexity: f64,
    /// The reference's perplexity in them.
    pub reference_perplexity: f64,
    /// Mean `KL(reference ‖ model)` of a prediction, in nats.
    pub kl_divergence: f64,
    /// Share of predictions whose most likely token is the same.
    pub top1_agreement: f64,
}

/// Evaluates; `progress` is told windows done and windows in all.
///
/// # Errors
/// When the text is too short, the vocabularies differ, or a model cannot be run.
pub fn evaluate(
    evaluation: &Evaluation<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, EvalError> {
    let (source, spec) = evaluation.model;
    if spec.head.is_none() || !spec.causal {
        let what =
            "perplexity is of models that predict the next token; give an encoder a --reference";
        return Err(EvalError::Unusable(what.to_owned()));
    }
    let context = evaluation.context.map_or(spec.context, |asked| asked.min(spec.context));
    let cut = evaluation.protocol.cut(
        evaluation.text,
        evaluation.tokenizer,
        named_prefix(source, evaluation.tokenizer),
        context,
        evaluation.limit,
    )?;
    let runner = |(source, spec)| Runner::new(source, spec, evaluation.precision, evaluation.stop);
    let model = runner((source, spec))?;
    let reference = evaluation.reference.map(runner).transpose()?;
    if reference.as_ref().is_some_and(|reference| reference.spec.vocab_size != spec.vocab_size) {
        let what = "the model and its reference have vocabularies of different sizes";
        return Err(EvalError::Unusable(what.to_owned()));
    }
    let all = cut.segments.len();
    let compared = reference.as_ref().map_or(0, |_| evaluation.reference_limit.unwrap_or(all));
    let (first, rest) = cut.segments.split_at(compared.min(all));
    let mut progress = Advancing { done: 0, all, shown: 0, progress };
    let in_first = score(&model, reference.as_ref(), first, &mut progress)?;
    let mut sums = score(&model, None, rest, &mut progress)?;
    sums.merge(&in_first);
    let per = |count: u64| (count > 0).then(|| (sums.nll / count as f64).exp());
    Ok(Report {
        protocol: evaluation.protocol,
        length: evaluation.protocol.length(context),
        windows: all,
        scored: Scored {
            tokens: sums.predictions,
            perplexity: sums.mean(sums.nll).exp(),
            word_perplexity: per(cut.words),
            byte_perplexity: per(cut.octets),
        },
        against: (!first.is_empty()).then(|| Against {
            windows: first.len(),
            perplexity: in_first.mean(in_first.nll).exp(),
            reference_perplexity: in_first.mean(in_first.reference_nll).exp(),
            kl_divergence: in_first.mean(in_first.kl),
            top1_agreement: in_first.mean(in_first.same_top as f64),
        }),
    })
}

/// Segments done, told where their number has grown.
struct Advancing<'a> {
    done: usize,
    all: usize,
    shown: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl Advancing<'_> {
    fn show(&mut self, done: usize) {
        if done > self.shown {
            self.shown = done;
            (self.progress)(done, self.all);
        }
    }
}

/// Sums over segments, which are compared with the reference if there is one.
fn score(
    model: &Runner<'_>,
    reference: Option<&Runner<'_>>,
    segments: &[Segment],
    progress: &mut Advancing<'_>,
) -> Result<Sums, EvalError> {
    let mut sums = Sums::default();
    for group in groups(segments, model.spec.hidden_size) {
        score_group(model, reference, group, &mut sums, progress)?;
        progress.done += group.len();
        if !sums.nll.is_finite() {
            return Err(EvalError::NotFinite { window: progress.done });
        }
        progress.show(progress.done);
    }
    Ok(sums)
}

/// Runs of segments that go through the blocks together.
fn groups(segments: &[Segment], hidden_size: usize) -> impl Iterator<Item = &[Segment]> {
    let tokens = GROUP_TOKENS.max(GROUP_BYTES / (size_of::<f32>() * hidden_size.max(1)));
    let longest = segments.iter().map(|segment| segment.tokens.len()).max().unwrap_or(1);
    segments.chunks((tokens / longest.max(1)).max(1))
}

fn score_group(
    model: &Runner<'_>,
    reference: Option<&Runner<'_>>,
    segments: &[Segment],
    sums: &mut Sums,
    progress: &mut Advancing<'_>,
) -> Result<(), EvalError> {
    let rows: Vec<&[u32]> = segments.iter().map(|segment| segment.tokens.as_slice()).collect();
    // The heads are a last block of each.
    let steps = |runner: &Runner<'_>| runner.spec.blocks.len() + 1;
    let all = steps(model) + reference.map_or(0, steps);
    let mut step = 0;
    let mut advance = || {
        step += 1;
        progress.show(progress.done + segments.len() * step / all);
    };
    let states = model.hidden(&rows, &mut advance)?;
    let wanted = reference.map(|reference| reference.hidden(&rows, &mut advance)).transpose()?;
    for (index, segment) in segments.iter().enumerate() {
        for (chunk, targets) in segment.targets.chunks(LOGIT_ROWS).enumerate() {
            let first = segment.first + chunk * LOGIT_ROWS;
            let part = |runner: &Runner<'_>, states: &[Vec<f32>]| {
                let width = runner.spec.hidden_size;
                runner.logits(&states[index][first * width..(first + targets.len()) * width])
            };
            let candidate = part(model, &states)?;
            let compared = match (reference, &wanted) {
                (Some(reference), Some(states)) => Some(part(reference, states)?),
                _ => None,
            };
            sums.add(&candidate, compared.as_deref(), targets);
        }
    }
    Ok(())
}
