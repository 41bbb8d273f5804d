//! The trials of a search for a shape: each is cut as its steps say, and compared with the whole model.

use super::Job;
use super::measure::split;
use super::structure::{Means, cut_once};
use super::work::Work;
use crate::EngineError;
use crate::calibration::Rows;
use crate::cost::{Costs, Part};
use crate::search::{Found, LOGIT_ROWS, Shapes, Trial};
use crate::structure::{CutRecord, steps};
use lapidary_formats::Source;
use lapidary_kernels::softmax::Comparison;
use lapidary_model::{Batch, Executor, Fused, Graph, GraphWeights, Spec, spec};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tries what is worth it, and chooses; what an earlier run has tried is taken from the journal.
///
/// # Errors
/// When a shape cannot be cut or run, none is good enough, or a stop is asked for.
pub(super) fn choose(
    job: &Job<'_>,
    shapes: &Shapes<'_>,
    means: Means<'_>,
    work: &mut Work,
) -> Result<Found, EngineError> {
    let missing = || EngineError::Internal("a search without rows".to_owned());
    let (_, probes) = split(means.rows.ok_or_else(missing)?);
    let executor = Executor::new(Fused { precision: means.precision });
    let judge = Judge { job, executor, probes: &probes, costs: means.costs };
    let mut wanted = None;
    let mut cut_already = BTreeMap::new();
    let tried = shapes.tried();
    if !work.trials().is_empty() {
        job.progress.note(&format!("resuming: {} shapes are tried", work.trials().len()));
    }
    for (index, shape) in tried.iter().enumerate() {
        if work.trials().last().is_some_and(|trial| shapes.is_settled_by(trial)) {
            break;
        }
        if index < work.trials().len() {
            continue;
        }
        if wanted.is_none() {
            wanted = Some(judge.run(job.source)?);
        }
        let recipe = shapes.recipe_of(shape.index);
        let of_shape = Job { recipe: &recipe, fs: Arc::clone(&job.fs), ..*job };
        let (source, cuts) = cut(&of_shape, means, work, &mut cut_already)?;
        let divergence = match &wanted {
            Some(wanted) => judge.divergence(wanted, &judge.run(&source)?)?,
            None => 0.0,
        };
        job.progress.note(&format!("{}: divergence {divergence:.5}", shape.label));
        work.commit_trial(Trial { candidate: shape.index, divergence, cuts })?;
    }
    let (found, best) = shapes.choose(work.trials())?;
    if work.cuts().is_empty() {
        best.cuts.into_iter().try_for_each(|record| work.commit_cut(record))?;
    }
    Ok(found)
}

/// What steps have made of the whole model, by the text of these steps.
type CutAlready = BTreeMap<String, (Arc<Source>, CutRecord)>;

/// The source that the steps of a job leave. Steps that another shape began with too are not repeated.
fn cut(
    job: &Job<'_>,
    means: Means<'_>,
    work: &Work,
    known: &mut CutAlready,
) -> Result<(Arc<Source>, Vec<CutRecord>), EngineError> {
    let (mut path, mut last, mut records) = (String::new(), None, vec![]);
    for (step, method) in steps(job.recipe)? {
        path.push_str(&step.to_json().to_string());
        if !known.contains_key(&path) {
            let source: &Source = last.as_deref().unwrap_or(job.source);
            let (after, record) = cut_once(job, source, (step, &*method), means, work, None)?;
            known.insert(path.clone(), (Arc::new(after), record));
        }
        if let Some((after, record)) = known.get(&path) {
            last = Some(Arc::clone(after));
            records.push(record.clone());
        }
    }
    let nothing = || EngineError::Internal("a shape without a cut".to_owned());
    Ok((last.ok_or_else(nothing)?, records))
}

/// What models are compared by.
struct Judge<'a> {
    job: &'a Job<'a>,
    executor: Executor,
    probes: &'a Rows,
    costs: &'a Costs,
}

/// A model after its last block.
struct Ended {
    spec: Spec,
    head: Option<GraphWeights>,
    hidden: Vec<f32>,
}

impl Judge<'_> {
    /// Takes the probes through the blocks of a model.
    fn run(&self, source: &Source) -> Result<Ended, EngineError> {
        let spec = spec(source.config())?;
        let batch = Batch { rows: self.probes.count(), seq_len: self.probes.seq_len };
        let tokens = self.probes.tokens.as_slice();
        let mut hidden = self.executor.embed(&spec, source, batch, tokens.into())?;
        let backend = self.executor.backend();
        for graph in &spec.blocks {
            self.job.check_stop(0)?;
            let weights = GraphWeights::load(graph, source, backend)?;
            let run =
                || self.executor.run(graph, &weights, batch, std::mem::take(&mut hidden), None);
            hidden = self.costs.charge(Part::Forward, run)?;
        }
        let load = |graph: &Graph| GraphWeights::load(graph, source, backend);
        let head = spec.head.as_ref().map(load).transpose()?;
        Ok(Ended { spec, head, hidden })
    }

    /// Mean divergence of a model from the whole one; without a head, the relative squared error of the
    /// hidden states.
    fn divergence(&self, whole: &Ended, cut: &Ended) -> Result<f64, EngineError> {
        let tokens = self.probes.tokens.len();
        if whole.head.is_none() {
            if whole.hidden.len() != cut.hidden.len() {
                let what = "a model without a language-model head cannot be compared with one that has \
                            fewer channels; give channels one value";
                return Err(EngineError::Refused(what.to_owned()));
            }
            let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
                values.map(|value| f64::from(value).powi(2)).sum()
            };
            let pairs = whole.hidden.iter().zip(&cut.hidden);
            let error = squares(&mut pairs.map(|(a, b)| a - b));
            return Ok(error / squares(&mut whole.hidden.iter().copied()).max(f64::MIN_POSITIVE));
        }
        let mut sum = 0.0;
        for first in (0..tokens).step_by(LOGIT_ROWS) {
            let rows = first..tokens.min(first + LOGIT_ROWS);
            let (a, b) = (self.logits(whole, rows.clone())?, self.logits(cut, rows)?);
            let width = whole.spec.vocab_size;
            let pairs = a.par_chunks(width).zip(b.par_chunks(width));
            let compared: Vec<f64> = self.costs.charge(Part::Measure, || {
                pairs.map(|(a, b)| Comparison::of(a, b).kl_divergence).collect()
            });
            sum += compared.iter().sum::<f64>();
        }
        Ok(sum / tokens.max(1) as f64)
    }

    /// The logits of some rows.
    fn logits(&self, model: &Ended, rows: std::ops::Range<usize>) -> Result<Vec<f32>, EngineError> {
        let (Some(graph), Some(weights)) = (&model.spec.head, &model.head) else {
            return Ok(vec![]);
        };
        let width = model.spec.hidden_size;
        let batch = Batch { rows: rows.len(), seq_len: 1 };
        let hidden = model.hidden[rows.start * width..rows.end * width].to_vec();
        let run = || self.executor.run(graph, weights, batch, hidden, None);
        Ok(self.costs.charge(Part::Forward, run)?)
    }
}
