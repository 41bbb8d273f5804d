//! The cut itself: methods look at the model on its way over the rows, choose what stays, and the choice
//! is in the journal before anything is built on it.

use super::Job;
use super::activations::{Activations, Writer};
use super::block::chunk_rows;
use super::work::Work;
use crate::EngineError;
use crate::calibration::Rows;
use crate::cost::{Costs, Part};
use crate::plan::{ActivationsIn, untied};
use crate::recipe::Step;
use crate::structure::{CutRecord, carved, steps};
use lapidary_formats::Source;
use lapidary_kernels::softmax::Summary;
use lapidary_methods::{MethodError, Seen, Structural, Walk};
use lapidary_model::{
    Batch, Executor, Fused, Graph, GraphWeights, ModelError, Precision, Spec, spec,
};
use lapidary_weight::{Edits, Tensors};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// How a cut is gone about.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) rows: Option<&'a Rows>,
    pub(super) precision: Precision,
    pub(super) activations_in: ActivationsIn,
    pub(super) costs: &'a Costs,
}

/// The source of a job after all steps that cut it.
///
/// # Errors
/// When a step cannot cut the model, it cannot be run, or a stop is asked for.
pub(super) fn cut(
    job: &Job<'_>,
    whole: &Source,
    means: Means<'_>,
    work: &mut Work,
) -> Result<Source, EngineError> {
    let steps = steps(job.recipe)?;
    let mut cut: Option<Source> = None;
    for (index, (step, method)) in steps.iter().enumerate() {
        let source = cut.as_ref().unwrap_or(whole);
        let known = work.cuts().get(index).cloned();
        let is_new = known.is_none();
        let (after, record) = cut_once(job, source, (step, &**method), means, work, known)?;
        if is_new {
            for note in &record.notes {
                job.progress.note(&format!("{}: {}", step.name, note.what));
            }
            work.commit_cut(record.clone())?;
        }
        job.progress.note(&record.summary);
        cut = Some(after);
    }
    cut.ok_or_else(|| EngineError::Internal("a cut without a step".to_owned()))
}

/// The source after one step, as it is known to cut or as it chooses to.
///
/// # Errors
/// As [`cut`].
pub(super) fn cut_once(
    job: &Job<'_>,
    source: &Source,
    (step, method): (&Step, &dyn Structural),
    means: Means<'_>,
    work: &Work,
    known: Option<CutRecord>,
) -> Result<(Source, CutRecord), EngineError> {
    let apart = untied(source, method.unties())?;
    let source = apart.as_ref().unwrap_or(source);
    // What a cut rewrites is in no journal.
    if let Some(record) = known.filter(|_| !method.edits()) {
        let (after, summary) = carved(source, step, &record.cut, Edits::new(), true)?;
        return Ok((after, CutRecord { summary, ..record }));
    }
    job.progress.begin(&format!("choosing what {} leaves", step.name), 0);
    let walk = over_rows(job, source, means, work)?;
    let chosen = match method.needs_rows() {
        true => method.choose(&walk),
        false => method.provisional(&walk.spec),
    };
    job.progress.end();
    let chosen = chosen.map_err(ended)?;
    let (after, summary) = carved(source, step, &chosen.cut, chosen.edits, true)?;
    let record = CutRecord {
        step: step.name.clone(),
        summary,
        cut: chosen.cut,
        scores: chosen.scores.into_iter().collect(),
        notes: chosen.notes,
    };
    Ok((after, record))
}

/// A walk over the rows of a job.
///
/// # Errors
/// When the model is of no family.
pub(super) fn over_rows<'a>(
    job: &'a Job<'a>,
    source: &'a Source,
    means: Means<'a>,
    work: &Work,
) -> Result<OverRows<'a>, EngineError> {
    let spec = spec(source.config())?;
    let executor = Executor::new(Fused { precision: means.precision });
    let files = [0, 1].map(|turn| work.walk_path(turn));
    Ok(OverRows { job, source, spec, means, executor, files })
}

/// What ended a walk, itself.
pub(super) fn ended(error: MethodError) -> EngineError {
    match error {
        MethodError::Walk(error) => match error.downcast::<EngineError>() {
            Ok(error) => *error,
            Err(error) => match error.downcast::<ModelError>() {
                Ok(error) => (*error).into(),
                Err(error) => EngineError::Internal(error.to_string()),
            },
        },
        error => error.into(),
    }
}

fn walk_error(error: impl Into<EngineError>) -> MethodError {
    MethodError::Walk(Box::new(error.into()))
}

/// A model on its way over the calibration rows.
pub(super) struct OverRows<'a> {
    job: &'a Job<'a>,
    source: &'a Source,
    spec: Spec,
    means: Means<'a>,
    executor: Executor,
    /// Where activations are kept that memory has no room for; they take turns.
    files: [PathBuf; 2],
}

impl OverRows<'_> {
    fn rows_there_are(&self) -> Result<&Rows, EngineError> {
        self.means.rows.ok_or_else(|| EngineError::Internal("a walk without rows".to_owned()))
    }

    /// First token and batch of each chunk of so many rows.
    fn chunks(&self, rows: usize, seq_len: usize) -> Vec<(usize, Batch)> {
        let per_chunk = chunk_rows(seq_len);
        let batch = |row| Batch { rows: per_chunk.min(rows - row), seq_len };
        (0..rows).step_by(per_chunk).map(|row| (row * seq_len, batch(row))).collect()
    }

    fn embed(&self, rows: &Rows) -> Result<Activations, EngineError> {
        let width = self.spec.hidden_size;
        let embed = |(start, batch): (usize, Batch)| {
            let tokens = &rows.tokens[start..start + batch.tokens()];
            self.executor.embed(&self.spec, self.source, batch, tokens.into())
        };
        let chunks = self.chunks(rows.count(), rows.seq_len);
        match self.means.activations_in {
            ActivationsIn::Memory => {
                let mut values = Vec::with_capacity(rows.tokens.len() * width);
                for chunk in chunks {
                    values.extend(embed(chunk)?);
                }
                Ok(Activations::in_memory(values, width))
            }
            ActivationsIn::Disk => {
                let mut writer = Writer::create(&self.job.fs, &self.files[0])?;
                for chunk in chunks {
                    writer.append(&embed(chunk)?)?;
                }
                writer.finish()?;
                Activations::on_disk(&self.job.fs, &self.files[0], width, rows.tokens.len())
            }
        }
    }

    fn go(
        &self,
        see: &mut dyn FnMut(Seen<'_>) -> Result<(), MethodError>,
    ) -> Result<(), MethodError> {
        let rows = self.rows_there_are().map_err(walk_error)?;
        let mut stream = self.embed(rows).map_err(walk_error)?;
        for (block, graph) in self.spec.blocks.iter().enumerate() {
            let what = format!("block {} of {}", block + 1, self.spec.blocks.len());
            self.job.progress.advance(block as u64, &what);
            let weights = GraphWeights::load(graph, self.source, self.executor.backend());
            let weights = weights.map_err(walk_error)?;
            stream.begin(&self.files[(block + 1) % 2]).map_err(walk_error)?;
            for (start, batch) in self.chunks(rows.count(), rows.seq_len) {
                self.job.check_stop(0).map_err(walk_error)?;
                let before = stream.read(start, batch.tokens()).map_err(walk_error)?;
                let mut failed = None;
                let mut tap = |tap: &lapidary_model::Tap<'_>| {
                    if failed.is_none() {
                        let (group, values) = (tap.group, &tap.input[..]);
                        failed = see(Seen::Input { block, batch, group, values }).err();
                    }
                    Ok(())
                };
                let after = self.means.costs.charge(Part::Forward, || {
                    self.executor.run(graph, &weights, batch, before.clone(), Some(&mut tap))
                });
                let after = after.map_err(walk_error)?;
                failed.map_or(Ok(()), Err)?;
                if !after.iter().all(|value| value.is_finite()) {
                    let what = "the residual stream is not finite".to_owned();
                    return Err(walk_error(EngineError::NotFinite { block, what }));
                }
                see(Seen::Passed { block, batch, before: &before, after: &after })?;
                stream.write(start, &after).map_err(walk_error)?;
            }
            stream.finish().map_err(walk_error)?;
        }
        Ok(())
    }

    fn mean_losses(
        &self,
        gone: &BTreeSet<usize>,
        each: &[usize],
        count: usize,
    ) -> Result<Vec<f64>, EngineError> {
        let rows = self.rows_there_are()?;
        let head = self.spec.head.as_ref().filter(|_| self.spec.causal).ok_or_else(|| {
            let what = "the model has no head that predicts the next token, and so no perplexity; \
                        take another criterion";
            EngineError::Refused(what.to_owned())
        })?;
        let head = (head, GraphWeights::load(head, self.source, self.executor.backend())?);
        let chunks = self.chunks(count.min(rows.count()), rows.seq_len);
        let mut states = vec![];
        for (start, batch) in &chunks {
            let tokens = &rows.tokens[*start..start + batch.tokens()];
            states.push(self.executor.embed(&self.spec, self.source, *batch, tokens.into())?);
        }
        let left = |block: &usize| !gone.contains(block);
        let mut losses = vec![];
        // What comes before a block is the same whether it is left out or not.
        for block in (0..self.spec.blocks.len()).filter(left) {
            if each.contains(&block) {
                let what = format!("the loss without layer {block}");
                self.job.progress.advance(losses.len() as u64, &what);
                let mut without = states.clone();
                for later in (block + 1..self.spec.blocks.len()).filter(left) {
                    self.pass(later, &mut without, &chunks)?;
                }
                losses.push(self.mean_loss(&head, without, &chunks)?);
            }
            if each.iter().any(|other| *other > block) {
                self.pass(block, &mut states, &chunks)?;
            }
        }
        Ok(losses)
    }

    /// Takes the states of some chunks through a block.
    fn pass(
        &self,
        block: usize,
        states: &mut [Vec<f32>],
        chunks: &[(usize, Batch)],
    ) -> Result<(), EngineError> {
        let graph = &self.spec.blocks[block];
        let weights = GraphWeights::load(graph, self.source, self.executor.backend())?;
        for (state, (_, batch)) in states.iter_mut().zip(chunks) {
            self.job.check_stop(0)?;
            let before = std::mem::take(state);
            *state = self.executor.run(graph, &weights, *batch, before, None)?;
        }
        Ok(())
    }

    /// The loss of the last states of some chunks, a row's logits at a time.
    fn mean_loss(
        &self,
        (head, weights): &(&Graph, GraphWeights),
        states: Vec<Vec<f32>>,
        chunks: &[(usize, Batch)],
    ) -> Result<f64, EngineError> {
        let rows = self.rows_there_are()?;
        let (mut sum, mut tokens) = (0.0, 0_u64);
        for (state, (start, batch)) in states.into_iter().zip(chunks) {
            let one = Batch { rows: 1, seq_len: batch.seq_len };
            let width = batch.seq_len * self.spec.hidden_size;
            for (row, of_row) in state.chunks_exact(width).enumerate() {
                let logits = self.executor.run(head, weights, one, of_row.to_vec(), None)?;
                let targets = &rows.tokens[start + row * batch.seq_len..][..batch.seq_len];
                let predicted = logits.chunks_exact(self.spec.vocab_size).zip(&targets[1..]);
                for (logits, target) in predicted {
                    sum -= Summary::of(logits).log_probability(logits, *target as usize);
                    tokens += 1;
                }
            }
        }
        Ok(sum / tokens.max(1) as f64)
    }
}

impl Walk for OverRows<'_> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn tensors(&self) -> &dyn Tensors {
        self.source
    }

    fn rows(&self) -> (&[u32], usize) {
        self.means.rows.map_or((&[], 1), |rows| (&rows.tokens[..], rows.seq_len))
    }

    fn blocks(
        &self,
        see: &mut dyn FnMut(Seen<'_>) -> Result<(), MethodError>,
    ) -> Result<(), MethodError> {
        let walked = self.go(see);
        for file in &self.files {
            if self.means.activations_in == ActivationsIn::Disk {
                // What is not there was not needed.
                let _ = self.job.fs.remove_file(file);
            }
        }
        walked
    }

    fn go_on(&self, what: &str) -> Result<(), MethodError> {
        self.job.progress.advance(0, what);
        self.job.check_stop(0).map_err(walk_error)
    }

    fn losses(
        &self,
        gone: &BTreeSet<usize>,
        each: &[usize],
        rows: usize,
    ) -> Result<Vec<f64>, MethodError> {
        let losses = || self.mean_losses(gone, each, rows);
        self.means.costs.charge(Part::Forward, losses).map_err(walk_error)
    }
}
