//! The measurements of a search: one pass over the blocks of the uncompressed model.
//!
//! At each block every candidate of every unit, or the quicker stand-in that its method has, is
//! encoded with the block's statistics, and its output error noted; nothing of it is kept but two
//! candidates of each unit, those whose errors are nearest to [`PROBE_ERRORS`]. With one of these in
//! its place, and all else as it was, a few rows of tokens go through the block and the rest of the
//! model, and the divergence from the logits of the whole model is noted. Memory is this block, one
//! of those after it (or all, where they are small), the statistics, and the activations of the rows.

use super::activations::Streams;
use super::block::{BlockRunner, Peaks, Stored};
use super::work::Work;
use super::{Job, next_block, stage_name};
use crate::EngineError;
use crate::calibration::Rows;
use crate::cost::{Costs, Part};
use crate::plan::SitePlan;
use crate::search::{
    LOGIT_ROWS, Measured, PROBE_ROWS, PROBE_TOKENS, Probe, Survey, Unit, is_resident,
};
use lapidary_kernels::memory::return_freed;
use lapidary_kernels::softmax::Comparison;
use lapidary_methods::Statistics;
use lapidary_model::{Batch, Executor, Fused, Graph, GraphWeights, LinearOp, Place};
use lapidary_weight::{Tensors, Weight};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Relative output errors at which a unit's divergence is measured: well above the noise of rounded
/// products, and where divergence may have begun to grow faster than the error.
const PROBE_ERRORS: [f64; 2] = [0.02, 0.12];

/// Measures every unit of a survey; what an earlier run has measured is taken from the journal.
pub(super) fn measure(
    job: &Job<'_>,
    survey: &Survey<'_>,
    rows: &Rows,
    work: &mut Work,
    costs: &Costs,
) -> Result<Vec<Measured>, EngineError> {
    let stages = stages(survey);
    let done = work.measured().len();
    if done < stages.len() {
        if done > 0 {
            job.progress.note(&format!("resuming: {done} blocks are measured"));
        }
        let precision = rows_precision(survey);
        let executor = Executor::new(Fused { precision });
        let (learned, probes) = split(rows);
        let runners: Vec<BlockRunner<'_>> = survey
            .candidates
            .iter()
            .map(|candidate| BlockRunner {
                job,
                plan: &candidate.plan,
                costs,
                executor: &executor,
                seq_len: learned.seq_len,
            })
            .collect();
        let pass = Pass::new(job, survey, costs, &executor, &runners, &probes)?;
        pass.run(&stages, &learned, &probes, work)?;
    }
    Ok(work.measured().iter().flat_map(|stage| stage.units.clone()).collect())
}

fn rows_precision(survey: &Survey<'_>) -> lapidary_model::Precision {
    match &survey.plan().calibration {
        Some(calibration) => calibration.precision.into(),
        None => lapidary_model::Precision::F32,
    }
}

/// The blocks with something to measure and those before them, then whatever stands at the ends of
/// the model, before and after all blocks.
fn stages(survey: &Survey<'_>) -> Vec<Place> {
    let places = || survey.units.iter().map(|unit| unit.place);
    let ends = places().any(is_end);
    let after = |place| match place {
        Place::Block(block) => block + 1,
        _ => 0,
    };
    let blocks = match ends {
        true => survey.plan().spec.blocks.len(),
        false => places().map(after).max().unwrap_or(0),
    };
    (0..blocks).map(Place::Block).chain(ends.then_some(Place::Head)).collect()
}

fn is_end(place: Place) -> bool {
    !matches!(place, Place::Block(_))
}

/// Rows for the statistics, and the beginnings of others for the divergences. Of fewer than 16 rows
/// none is set aside.
pub(super) fn split(rows: &Rows) -> (Rows, Rows) {
    let count = rows.count();
    let probes = PROBE_ROWS.min(count);
    let part = count / probes.max(1);
    let is_apart = count >= 2 * PROBE_ROWS;
    let is_probe = |row: usize| row % part.max(1) == part / 2 && row / part.max(1) < probes;
    let tokens = PROBE_TOKENS.min(rows.seq_len);
    let (mut learned, mut probe) = (vec![], vec![]);
    for (row, ids) in rows.tokens.chunks_exact(rows.seq_len.max(1)).enumerate() {
        if is_probe(row) {
            probe.extend_from_slice(&ids[..tokens]);
        }
        if !(is_apart && is_probe(row)) {
            learned.extend_from_slice(ids);
        }
    }
    let of = |tokens, seq_len| Rows { tokens, seq_len, notes: vec![] };
    (of(learned, rows.seq_len), of(probe, tokens))
}

/// The layers of a unit with what is stored of them.
type Changes<'a> = Vec<(&'a SitePlan, Weight)>;

/// One pass over the model.
struct Pass<'a> {
    job: &'a Job<'a>,
    survey: &'a Survey<'a>,
    costs: &'a Costs,
    executor: &'a Executor,
    /// One for each candidate.
    runners: &'a [BlockRunner<'a>],
    /// The probes, as they go through a block.
    batch: Batch,
    /// Weights of all blocks, where they are kept.
    resident: Option<Vec<GraphWeights>>,
    head: Option<(&'a Graph, GraphWeights)>,
    /// Hidden states of the probes after the last block of the uncompressed model.
    wanted: Vec<f32>,
}

/// A stream that one unit has changed, at the end of the model.
struct Changed<'a> {
    hidden: &'a [f32],
    /// The head's weights, where the unit is in it.
    head: Option<&'a GraphWeights>,
}

impl<'a> Pass<'a> {
    fn new(
        job: &'a Job<'a>,
        survey: &'a Survey<'a>,
        costs: &'a Costs,
        executor: &'a Executor,
        runners: &'a [BlockRunner<'a>],
        probes: &Rows,
    ) -> Result<Self, EngineError> {
        let spec = &survey.plan().spec;
        let load = |graph| GraphWeights::load(graph, job.source, executor.backend());
        let resident = is_resident(survey)
            .then(|| spec.blocks.iter().map(load).collect::<Result<Vec<_>, _>>())
            .transpose()?;
        let head = spec.head.as_ref();
        let head = head.map(|graph| load(graph).map(|weights| (graph, weights))).transpose()?;
        let batch = Batch { rows: probes.count(), seq_len: probes.seq_len };
        let mut pass =
            Self { job, survey, costs, executor, runners, batch, resident, head, wanted: vec![] };
        let mut streams = vec![pass.embed(probes, BTreeMap::new())?];
        pass.run_from(0, &mut streams)?;
        pass.wanted = streams.pop().unwrap_or_default();
        Ok(pass)
    }

    /// The residual stream of rows before the first block, with these tables changed.
    fn embed(
        &self,
        rows: &Rows,
        tables: BTreeMap<String, Weight>,
    ) -> Result<Vec<f32>, EngineError> {
        let spec = &self.survey.plan().spec;
        let batch = Batch { rows: rows.count(), seq_len: rows.seq_len };
        let tensors = Stored { source: self.job.source, tables };
        Ok(self.executor.embed(spec, &tensors, batch, rows.tokens.as_slice().into())?)
    }

    fn run(
        &self,
        stages: &[Place],
        learned: &Rows,
        probes: &Rows,
        work: &mut Work,
    ) -> Result<(), EngineError> {
        let (runner, plan) = (&self.runners[0], self.survey.plan());
        let done = work.measured().len();
        self.job.progress.begin("measuring", stages.len() as u64);
        let path = work.activations_path(0);
        // Nothing is compressed here, so that nothing drifts.
        let compressed = runner.embed(learned, self.job.source, &path)?;
        let mut activations = Streams { compressed, uncompressed: None };
        let mut stream = self.embed(probes, BTreeMap::new())?;
        for (index, stage) in stages.iter().enumerate() {
            self.job.check_stop(next_block(plan, *stage))?;
            self.job.progress.advance(index as u64, &stage_name(plan, *stage));
            if let Place::Block(_) = stage {
                let graph = runner.graph(*stage)?;
                let backend = self.executor.backend();
                let mut weights = GraphWeights::load(graph, self.job.source, backend)?;
                if index >= done {
                    let statistics = runner.observe(graph, &weights, &activations, *stage)?;
                    return_freed();
                    let units = self.block(*stage, &mut weights, &statistics, &stream)?;
                    self.costs.charge(Part::Write, || work.commit_measured(index, units))?;
                    return_freed();
                }
                if index + 1 < stages.len() {
                    let path = work.activations_path(index + 1);
                    let advancing = &mut activations.compressed;
                    runner.advance(graph, &weights, advancing, &path, *stage)?;
                    stream = self.forward(graph, &weights, stream)?;
                    work.remove_activations(&activations.compressed, index)?;
                }
            } else if index >= done {
                let units = self.ends(&activations, probes)?;
                self.costs.charge(Part::Write, || work.commit_measured(index, units))?;
            }
        }
        work.remove_activations(&activations.compressed, stages.len().saturating_sub(1))?;
        self.job.progress.end();
        Ok(())
    }

    /// Measures the units of a block; its weights are as they were afterwards.
    fn block(
        &self,
        stage: Place,
        weights: &mut GraphWeights,
        statistics: &BTreeMap<String, Statistics>,
        stream: &[f32],
    ) -> Result<Vec<Measured>, EngineError> {
        let graph = self.runners[0].graph(stage)?;
        let backend = self.executor.backend();
        let (mut all, mut streams) = (vec![], vec![]);
        for unit in self.survey.units.iter().filter(|unit| unit.place == stage) {
            let (measured, probes) = self.errors(unit, Some(graph), statistics)?;
            for changes in probes {
                for (site, weight) in &changes {
                    weights.replace(&site.linear, &weight.decode(), backend)?;
                    weights.round_inputs(&site.linear, site.inputs);
                }
                streams.push(self.forward(graph, weights, stream.to_vec())?);
                for (SitePlan { linear, .. }, _) in changes {
                    let original = self.job.source.read(&linear.weight);
                    let original = original.map_err(lapidary_model::ModelError::from)?;
                    weights.replace(linear, &original, backend)?;
                    weights.round_inputs(linear, self.job.source.input_rounding(&linear.weight));
                }
            }
            all.push(measured);
        }
        self.run_from(next_block(self.survey.plan(), stage) + 1, &mut streams)?;
        let changed: Vec<Changed<'_>> =
            streams.iter().map(|hidden| Changed { hidden, head: None }).collect();
        let probes = all.iter_mut().flat_map(|measured| &mut measured.probes);
        for (probe, divergence) in probes.zip(self.divergences(&changed)?) {
            probe.divergence = divergence;
        }
        Ok(all)
    }

    /// Measures the units before and after the blocks: tables, which the head may multiply by too,
    /// and layers of the head.
    fn ends(&self, activations: &Streams, probes: &Rows) -> Result<Vec<Measured>, EngineError> {
        let (source, backend) = (self.job.source, self.executor.backend());
        let graph = self.survey.plan().spec.head.as_ref();
        let statistics = match graph {
            Some(graph) => {
                let weights = GraphWeights::load_to_observe(graph, source, backend)?;
                self.runners[0].observe(graph, &weights, activations, Place::Head)?
            }
            None => BTreeMap::new(),
        };
        return_freed();
        let mut all = vec![];
        for unit in self.survey.units.iter().filter(|unit| is_end(unit.place)) {
            let (mut measured, probes_of_unit) = self.errors(unit, graph, &statistics)?;
            for (probe, changes) in measured.probes.iter_mut().zip(probes_of_unit) {
                probe.divergence = self.changed_end(unit, changes, probes)?;
            }
            all.push(measured);
        }
        Ok(all)
    }

    /// The divergence of the model with a table or a layer of the head changed.
    fn changed_end(
        &self,
        unit: &Unit,
        changes: Changes<'_>,
        probes: &Rows,
    ) -> Result<f64, EngineError> {
        let backend = self.executor.backend();
        let graph = self.survey.plan().spec.head.as_ref();
        let mut head = None;
        for (site, weight) in &changes {
            let mut of_head = graph.into_iter().flat_map(Graph::linears);
            let of_head = of_head.find(|other| other.weight == site.linear.weight);
            if let (Some(graph), Some(linear)) = (graph, of_head) {
                let mut weights = GraphWeights::load(graph, self.job.source, backend)?;
                weights.replace(linear, &weight.decode(), backend)?;
                weights.round_inputs(linear, site.inputs);
                head = Some(weights);
            }
        }
        let mut streams = vec![];
        if unit.place == Place::Embedding {
            let tables =
                changes.into_iter().map(|(site, weight)| (site.linear.weight.clone(), weight));
            streams.push(self.embed(probes, tables.collect())?);
            self.run_from(0, &mut streams)?;
        }
        let hidden = streams.first().unwrap_or(&self.wanted);
        let changed = Changed { hidden, head: head.as_ref() };
        Ok(self.divergences(&[changed])?.iter().sum())
    }

    /// The error of every choice of a unit, and what is stored of those that serve as probes, by
    /// rising error; their divergences are still to be measured.
    fn errors(
        &self,
        unit: &Unit,
        graph: Option<&Graph>,
        statistics: &BTreeMap<String, Statistics>,
    ) -> Result<(Measured, Vec<Changes<'_>>), EngineError> {
        let groups = graph.map(Graph::shared_inputs).unwrap_or_default();
        let mut errors = vec![];
        let mut nearest: Vec<(usize, Changes<'_>)> = vec![];
        let distance = |error: f64, wanted: f64| (error.max(1e-300) / wanted).ln().abs();
        for (index, choice) in unit.choices.iter().enumerate() {
            let runner = &self.runners[choice.candidate];
            let is_in = |site: &&SitePlan| unit.modules.contains(&site.linear.module);
            let (mut sum, mut stored) = (0.0, vec![]);
            let mut peaks = Peaks::default();
            for site in runner.plan.sites.iter().filter(is_in) {
                // By the weight: a table that the head multiplies by has a module of its own.
                let has = |linear: &&LinearOp| linear.weight == site.linear.weight;
                let group = groups.iter().find(|group| group.linears.iter().any(has));
                let statistics = group.and_then(|group| statistics.get(&group.linears[0].module));
                let plan = runner.plan;
                let sketch = site.sketch(plan.scale_type(site));
                let quick = sketch.as_ref().unwrap_or(site);
                let source = self.job.source;
                let peak = peaks.of(plan, quick, group, source)?;
                let (record, _, weight) = runner.encode_site(quick, source, statistics, peak)?;
                sum += record.output_error.unwrap_or(record.weight_error);
                stored.push((site, weight));
            }
            errors.push(sum / unit.modules.len().max(1) as f64);
            nearest.push((index, stored));
            // Only what is nearest to a wanted error is kept.
            nearest.retain(|(kept, _)| {
                PROBE_ERRORS.iter().any(|wanted| {
                    let all = errors.iter().map(|error| distance(*error, *wanted));
                    let least = all.fold(f64::INFINITY, f64::min);
                    distance(errors[*kept], *wanted) <= least
                })
            });
        }
        nearest.sort_by(|(a, _), (b, _)| errors[*a].total_cmp(&errors[*b]));
        // Choices with the same error tell the same.
        nearest.dedup_by(|(a, _), (b, _)| errors[*a] == errors[*b]);
        let probe = |(choice, _): &(usize, _)| Probe { choice: *choice, divergence: 0.0 };
        let probes = nearest.iter().map(probe).collect();
        let changes = nearest.into_iter().map(|(_, changes)| changes).collect();
        Ok((Measured { errors, probes }, changes))
    }

    /// The probes through one graph.
    fn forward(
        &self,
        graph: &Graph,
        weights: &GraphWeights,
        input: Vec<f32>,
    ) -> Result<Vec<f32>, EngineError> {
        let run = || self.executor.run(graph, weights, self.batch, input, None);
        Ok(self.costs.charge(Part::Forward, run)?)
    }

    /// Streams through the blocks from `first` on, as they are in the uncompressed model.
    fn run_from(&self, first: usize, streams: &mut [Vec<f32>]) -> Result<(), EngineError> {
        let blocks = &self.survey.plan().spec.blocks;
        for (block, graph) in blocks.iter().enumerate().skip(first) {
            let loaded;
            let weights = match &self.resident {
                Some(resident) => &resident[block],
                None => {
                    let backend = self.executor.backend();
                    loaded = GraphWeights::load(graph, self.job.source, backend)?;
                    &loaded
                }
            };
            for stream in streams.iter_mut() {
                self.job.check_stop(first.saturating_sub(1))?;
                *stream = self.forward(graph, weights, std::mem::take(stream))?;
            }
        }
        Ok(())
    }

    /// Mean divergence of each changed stream from the uncompressed model; without a head, the
    /// relative squared error of the hidden states.
    fn divergences(&self, changed: &[Changed<'_>]) -> Result<Vec<f64>, EngineError> {
        let width = self.survey.plan().spec.hidden_size.max(1);
        let Some((graph, head)) = &self.head else {
            let energy = squares(self.wanted.iter().map(|value| f64::from(*value)));
            let error = |changed: &Changed<'_>| {
                let pairs = changed.hidden.iter().zip(&self.wanted);
                squares(pairs.map(|(a, b)| f64::from(a - b))) / energy.max(f64::MIN_POSITIVE)
            };
            return Ok(changed.iter().map(error).collect());
        };
        let logits = |weights: &GraphWeights, hidden: &[f32]| -> Result<Vec<f32>, EngineError> {
            let batch = Batch { rows: hidden.len() / width, seq_len: 1 };
            let run = || self.executor.run(graph, weights, batch, hidden.to_vec(), None);
            Ok(self.costs.charge(Part::Forward, run)?)
        };
        let mut sums = vec![0.0; changed.len()];
        for (part, wanted) in self.wanted.chunks(LOGIT_ROWS * width).enumerate() {
            let rows = wanted.len() / width;
            let wanted = logits(head, wanted)?;
            let vocabulary = wanted.len() / rows.max(1);
            for (sum, changed) in sums.iter_mut().zip(changed) {
                let hidden = &changed.hidden[part * LOGIT_ROWS * width..][..rows * width];
                let found = logits(changed.head.unwrap_or(head), hidden)?;
                let pairs = wanted.par_chunks(vocabulary).zip(found.par_chunks(vocabulary));
                let compared: Vec<f64> = self.costs.charge(Part::Measure, || {
                    pairs.map(|(a, b)| Comparison::of(a, b).kl_divergence).collect()
                });
                *sum += compared.iter().sum::<f64>();
            }
        }
        let tokens = (self.wanted.len() / width).max(1) as f64;
        Ok(sums.into_iter().map(|sum| sum / tokens).collect())
    }
}

fn squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_set_aside_where_there_are_enough_rows() {
        let rows = |count: u32, seq_len: u32| Rows {
            tokens: (0..count * seq_len).collect(),
            seq_len: seq_len as usize,
            notes: vec![],
        };
        let (learned, probes) = split(&rows(128, 512));
        assert_eq!((learned.count(), probes.count(), probes.seq_len), (120, 8, 256));
        assert!(probes.tokens.iter().all(|token| !learned.tokens.contains(token)));
        let (learned, probes) = split(&rows(12, 16));
        assert_eq!((learned.count(), probes.count(), probes.seq_len), (12, 8, 16));
        let (learned, probes) = split(&rows(1, 4));
        assert_eq!((learned.tokens, probes.tokens), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
    }
}
