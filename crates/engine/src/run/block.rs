//! One block: gather its statistics, encode its sites, move the activations past it.

use super::activations::{Activations, Streams, Writer};
use super::expert::Expert;
use super::rescale::Rewritten;
use super::work::Work;
use super::{Job, next_block, stage_name};
use crate::EngineError;
use crate::calibration::Rows;
use crate::cost::{Costs, Part};
use crate::importance::statistics;
use crate::manifest::SiteRecord;
use crate::plan::{ActivationsIn, CHUNK_TOKENS, Plan, SitePlan};
use lapidary_formats::{FormatError, Source};
use lapidary_kernels::gram::energy;
use lapidary_kernels::matrix::{PackedMatrix, Precision};
use lapidary_kernels::memory::return_freed;
use lapidary_methods::{Encoded, Note, Site, Statistics};
use lapidary_model::{Batch, Executor, Graph, GraphWeights, InputGroup, Place};
use lapidary_store::TensorSpec;
use lapidary_weight::{Edit, Edited, Edits, InputRounding, TensorError, Tensors, Weight};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Runs the stages of a job.
pub(super) struct BlockRunner<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) plan: &'a Plan,
    pub(super) costs: &'a Costs,
    pub(super) executor: &'a Executor,
    /// Tokens of a calibration row.
    pub(super) seq_len: usize,
}

/// A tensor in the output's format, with its bytes.
pub(super) type StoredTensor = (TensorSpec, Vec<u8>);

/// A stage that is encoded and not yet committed.
pub(super) struct Done {
    /// Tensors in the output's format, with their bytes.
    pub(super) tensors: Vec<StoredTensor>,
    /// What happened to each site.
    pub(super) sites: Vec<SiteRecord>,
}

impl Done {
    pub(super) fn notes<'a>(&'a self) -> impl Iterator<Item = (&'a str, &'a Note)> {
        let of_site =
            |site: &'a SiteRecord| site.notes.iter().map(|note| (site.name.as_str(), note));
        self.sites.iter().flat_map(of_site)
    }
}

impl BlockRunner<'_> {
    /// The activations before the first stage that is not committed: read back when an earlier run
    /// kept them, else computed through the committed stages.
    pub(super) fn restore(
        &self,
        rows: &Rows,
        committed: &[Place],
        work: &mut Work,
    ) -> Result<Streams, EngineError> {
        let compressed = self.restore_compressed(rows, committed, work)?;
        if !self.plan.needs_drift() {
            return Ok(Streams { compressed, uncompressed: None });
        }
        let path = |stage| work.uncompressed_path(stage);
        let tables = committed.iter().filter(|stage| **stage == Place::Embedding).count();
        let mut uncompressed = self.embed(rows, self.job.source, &path(tables))?;
        for (index, stage) in committed.iter().enumerate() {
            if let Place::Block(_) = stage {
                let what = format!("replaying {}", stage_name(self.plan, *stage));
                self.job.progress.advance(index as u64, &what);
                let graph = self.graph(*stage)?;
                let weights = GraphWeights::load(graph, self.job.source, self.executor.backend())?;
                self.advance(graph, &weights, &mut uncompressed, &path(index + 1), *stage)?;
            }
        }
        Ok(Streams { compressed, uncompressed: Some(uncompressed) })
    }

    fn restore_compressed(
        &self,
        rows: &Rows,
        committed: &[Place],
        work: &mut Work,
    ) -> Result<Activations, EngineError> {
        let width = self.plan.spec.hidden_size;
        let kept = work.kept_activations(committed.len());
        let (mut activations, from) = match kept {
            Some((path, stage)) => {
                let stored = Activations::on_disk(&self.job.fs, &path, width, rows.tokens.len())?;
                (self.load(stored)?, stage)
            }
            None => {
                let tables = committed.iter().filter(|stage| **stage == Place::Embedding).count();
                let stored = self.stored_tables(tables, work)?;
                (self.embed(rows, &stored, &work.activations_path(tables))?, tables)
            }
        };
        for (index, stage) in committed.iter().enumerate().skip(from) {
            self.job.check_stop(next_block(self.plan, *stage))?;
            let what = format!("replaying {}", stage_name(self.plan, *stage));
            self.job.progress.advance(index as u64, &what);
            let graph = self.graph(*stage)?;
            let edits = self.committed_edits(*stage, index, work)?;
            let view = Edited::new(self.job.source, edits);
            let mut weights = GraphWeights::load(graph, &view, self.executor.backend())?;
            for site in self.plan.sites_in(*stage) {
                let weight = work.read_site(index, site, self.plan)?;
                weights.replace(&site.linear, &weight.decode(), self.executor.backend())?;
            }
            self.round_inputs(graph, &mut weights);
            let path = work.activations_path(index + 1);
            self.advance(graph, &weights, &mut activations, &path, *stage)?;
        }
        Ok(activations)
    }

    /// Values of a file, where the plan wants them.
    fn load(&self, stored: Activations) -> Result<Activations, EngineError> {
        match self.plan.memory.activations_in {
            ActivationsIn::Disk => Ok(stored),
            ActivationsIn::Memory => {
                Ok(Activations::in_memory(stored.read(0, stored.tokens)?, stored.width))
            }
        }
    }

    /// The tables as they are stored: those that the first `stages` stages, none or one, have
    /// committed.
    fn stored_tables(&self, stages: usize, work: &Work) -> Result<Stored<'_>, EngineError> {
        let mut tables = BTreeMap::new();
        for site in (0..stages).flat_map(|_| self.plan.sites_in(Place::Embedding)) {
            tables.insert(site.linear.weight.clone(), work.read_site(0, site, self.plan)?);
        }
        Ok(Stored { source: self.job.source, tables })
    }

    /// The residual stream before the first block; in the file at `path` where it goes to the disk.
    pub(super) fn embed(
        &self,
        rows: &Rows,
        tables: &dyn Tensors,
        path: &Path,
    ) -> Result<Activations, EngineError> {
        let width = self.plan.spec.hidden_size;
        let per_chunk = chunk_rows(rows.seq_len);
        let chunks = rows.tokens.chunks(per_chunk * rows.seq_len);
        let embed = |tokens: &[u32]| {
            let batch = Batch { rows: tokens.len() / rows.seq_len, seq_len: rows.seq_len };
            self.executor.embed(&self.plan.spec, tables, batch, tokens.into())
        };
        match self.plan.memory.activations_in {
            ActivationsIn::Memory => {
                let mut values = Vec::with_capacity(rows.tokens.len() * width);
                for tokens in chunks {
                    values.extend(embed(tokens)?);
                }
                Ok(Activations::in_memory(values, width))
            }
            ActivationsIn::Disk => {
                let mut writer = Writer::create(&self.job.fs, path)?;
                for tokens in chunks {
                    writer.append(&embed(tokens)?)?;
                }
                writer.finish()?;
                Activations::on_disk(&self.job.fs, path, width, rows.tokens.len())
            }
        }
    }

    /// The graph of a block or of the head.
    pub(super) fn graph(&self, stage: Place) -> Result<&Graph, EngineError> {
        let graph = match stage {
            Place::Embedding => Some(&self.plan.spec.embed),
            Place::Block(block) => self.plan.spec.blocks.get(block),
            Place::Head => self.plan.spec.head.as_ref(),
        };
        graph.ok_or_else(|| EngineError::Internal("a stage without a graph".to_owned()))
    }

    /// Encodes the sites of a stage and moves the activations past it, unless no later stage needs
    /// them. Without activations, no site of the stage needs any.
    pub(super) fn compress(
        &self,
        stage: Place,
        streams: Option<&mut Streams>,
        last: bool,
        index: usize,
        work: &Work,
    ) -> Result<Done, EngineError> {
        let graph = self.graph(stage)?;
        let Some(streams) = streams else {
            let known = statistics(self.plan, graph);
            return Ok(self.encode(graph, stage, &known, Rewritten::default())?.0);
        };
        let (source, backend) = (self.job.source, self.executor.backend());
        let mut weights = match last {
            true => GraphWeights::load_to_observe(graph, source, backend)?,
            false => GraphWeights::load(graph, source, backend)?,
        };
        let mut statistics = self.observe(graph, &weights, streams, stage)?;
        return_freed();
        let rewritten = self.rescale(graph, stage, &mut statistics)?;
        if last {
            drop(weights);
            return Ok(self.encode(graph, stage, &statistics, rewritten)?.0);
        }
        if let Some(uncompressed) = &mut streams.uncompressed {
            let path = work.uncompressed_path(index + 1);
            self.advance(graph, &weights, uncompressed, &path, stage)?;
        }
        if !rewritten.edits.is_empty() {
            drop(weights);
            let view = Edited::new(source, rewritten.edits.clone());
            weights = GraphWeights::load(graph, &view, backend)?;
        }
        let (done, stored) = self.encode(graph, stage, &statistics, rewritten)?;
        for (site, weight) in self.plan.sites_in(stage).zip(&stored) {
            weights.replace(&site.linear, &weight.decode(), backend)?;
        }
        self.round_inputs(graph, &mut weights);
        drop((statistics, stored));
        return_freed();
        let path = work.activations_path(index + 1);
        self.advance(graph, &weights, &mut streams.compressed, &path, stage)?;
        Ok(done)
    }

    /// Rounds the inputs of layers as those of the result are when it is run.
    fn round_inputs(&self, graph: &Graph, weights: &mut GraphWeights) {
        for linear in graph.linears() {
            let site = self.plan.site_of(&linear.weight);
            weights.round_inputs(linear, site.and_then(|site| site.inputs));
        }
    }

    /// Encodes each site and reads back what was stored: later blocks see that, not what the method
    /// had before it was stored.
    fn encode(
        &self,
        graph: &Graph,
        stage: Place,
        statistics: &BTreeMap<String, Statistics>,
        rewritten: Rewritten,
    ) -> Result<(Done, Vec<Weight>), EngineError> {
        let groups = graph.shared_inputs();
        let Rewritten { edits, tensors, mut notes } = rewritten;
        let view = Edited::new(self.job.source, edits);
        let mut done = Done { tensors, sites: vec![] };
        let mut stored = vec![];
        let mut peaks = Peaks::default();
        for site in self.plan.sites_in(stage) {
            // By the weight: a table that the head multiplies by has a module of its own.
            let weight = &site.linear.weight;
            let group = groups.iter().find(|g| g.linears.iter().any(|l| l.weight == *weight));
            let statistics = group.and_then(|group| statistics.get(&group.linears[0].module));
            let is_routed = group.is_some_and(|group| graph.is_routed(group.value));
            let expert = is_routed.then(|| Expert::new(site, statistics, self.plan)).flatten();
            let site = expert.as_ref().map_or(site, |expert| &expert.site);
            let peak = peaks.of(self.plan, site, group, &view)?;
            let (mut record, tensors, weight) = self.encode_site(site, &view, statistics, peak)?;
            record.notes.splice(0..0, expert.map(|expert| expert.notes).unwrap_or_default());
            record.notes.splice(0..0, notes.remove(&record.name).unwrap_or_default());
            done.sites.push(record);
            done.tensors.extend(tensors);
            stored.push(weight);
        }
        Ok((done, stored))
    }

    pub(super) fn encode_site(
        &self,
        site: &SitePlan,
        tensors: &dyn Tensors,
        statistics: Option<&Statistics>,
        peak: Option<f32>,
    ) -> Result<(SiteRecord, Vec<StoredTensor>, Weight), EngineError> {
        let (plan, linear) = (self.plan, &site.linear);
        let weight = tensors.read(&linear.weight).map_err(lapidary_model::ModelError::from)?;
        let view = Site {
            name: &linear.module,
            rows: linear.out_features,
            cols: linear.in_features,
            weight: &weight,
            statistics,
            scale_type: plan.scale_type(site),
            peak,
        };
        let kept = site.method.keeps_stored();
        let stored = kept.then(|| self.job.source.weight(&linear.weight)).transpose()?;
        let encode = || match &stored {
            Some(stored) => site.method.encode_stored(&view, stored),
            None => site.method.encode(&view),
        };
        let Encoded { weight: encoded, notes } = self.costs.charge(Part::Solve, encode)?;
        if encoded.outline() != site.outline {
            let what =
                format!("{} is not what {} promised", encoded.outline().describe(), site.method_id);
            return Err(EngineError::Internal(format!("{}: {what}", linear.module)));
        }
        let specs = site.format.tensors(&linear.module, &site.outline, plan.float_type);
        let bytes = site.format.encode(&encoded, plan.float_type)?;
        let tensors: Vec<StoredTensor> = specs.into_iter().zip(bytes).collect();
        let stored = read_back(site, plan, &tensors)?;
        let record = self
            .costs
            .charge(Part::Measure, || record(site, &weight, &stored, statistics, notes))?;
        Ok((record, tensors, stored))
    }

    /// The tensors that a committed stage has changed besides those it encoded.
    fn committed_edits(
        &self,
        stage: Place,
        index: usize,
        work: &Work,
    ) -> Result<Edits, EngineError> {
        let mut edits = Edits::new();
        for name in self.plan.rewritten_in(stage) {
            let (_, float) = self.plan.written(name)?;
            let values = float.decode(&work.read_tensor(index, name)?);
            edits.insert(name.to_owned(), vec![Edit::Replace(values.into())]);
        }
        Ok(edits)
    }

    /// Moves the activations past a stage; those on the disk to the file `next`.
    pub(super) fn advance(
        &self,
        graph: &Graph,
        weights: &GraphWeights,
        activations: &mut Activations,
        next: &Path,
        stage: Place,
    ) -> Result<(), EngineError> {
        let block = next_block(self.plan, stage);
        activations.begin(next)?;
        for (start, batch) in self.chunks(activations) {
            self.job.check_stop(block)?;
            let input = activations.read(start, batch.tokens())?;
            let output = self
                .costs
                .charge(Part::Forward, || self.executor.run(graph, weights, batch, input, None))?;
            if let Some(at) = output.iter().position(|value| !value.is_finite()) {
                let row = start / self.seq_len + at / (self.plan.spec.hidden_size * batch.seq_len);
                let what = format!("row {row} of the calibration text is not finite");
                return Err(EngineError::NotFinite { block, what });
            }
            activations.write(start, &output)?;
        }
        activations.finish()
    }

    /// First token and batch of each chunk.
    pub(super) fn chunks(&self, activations: &Activations) -> Vec<(usize, Batch)> {
        let rows = activations.tokens / self.seq_len.max(1);
        let per_chunk = chunk_rows(self.seq_len);
        let batch = |row| Batch { rows: per_chunk.min(rows - row), seq_len: self.seq_len };
        (0..rows).step_by(per_chunk).map(|row| (row * self.seq_len, batch(row))).collect()
    }
}

/// The largest magnitudes of layers with a common input, each found once.
#[derive(Default)]
pub(super) struct Peaks(BTreeMap<String, f32>);

impl Peaks {
    /// That of a site's group, of the layers in it that are compressed, where its method wants it.
    pub(super) fn of(
        &mut self,
        plan: &Plan,
        site: &SitePlan,
        group: Option<&InputGroup<'_>>,
        tensors: &dyn Tensors,
    ) -> Result<Option<f32>, EngineError> {
        let Some(group) = group.filter(|_| site.method.shares_range()) else { return Ok(None) };
        let key = &group.linears[0].module;
        if let Some(peak) = self.0.get(key) {
            return Ok(Some(*peak));
        }
        let mut peak = 0.0_f32;
        for linear in group.linears.iter().filter(|l| plan.site_of(&l.weight).is_some()) {
            let values = tensors.read(&linear.weight).map_err(lapidary_model::ModelError::from)?;
            peak = values.iter().fold(peak, |most, value| most.max(value.abs()));
        }
        self.0.insert(key.clone(), peak);
        Ok(Some(peak))
    }
}

/// A source with some of its tables as they are stored in the result.
pub(super) struct Stored<'a> {
    pub(super) source: &'a Source,
    pub(super) tables: BTreeMap<String, Weight>,
}

impl Tensors for Stored<'_> {
    fn input_rounding(&self, weight: &str) -> Option<InputRounding> {
        self.source.input_rounding(weight)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        match self.tables.get(name) {
            Some(table) => Ok(table.decode()),
            None => self.source.read(name),
        }
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        let Some(table) = self.tables.get(name) else { return self.source.read_rows(name, rows) };
        let mut values = vec![0.0; rows.len() * table.cols()];
        for (row, out) in rows.iter().zip(values.chunks_exact_mut(table.cols().max(1))) {
            table.add_row(*row as usize, out);
        }
        Ok(values)
    }
}

/// Rows that go through a block together.
pub(super) fn chunk_rows(seq_len: usize) -> usize {
    (CHUNK_TOKENS / seq_len.max(1)).max(1)
}

/// The weight as the written tensors hold it.
fn read_back(
    site: &SitePlan,
    plan: &Plan,
    tensors: &[StoredTensor],
) -> Result<Weight, EngineError> {
    let read = |name: &str| match tensors.iter().find(|(spec, _)| spec.name == name) {
        Some((_, bytes)) => Ok(bytes.clone()),
        None => {
            Err(FormatError::Malformed { place: name.to_owned(), what: "is missing".to_owned() })
        }
    };
    Ok(site.format.decode(&site.linear.module, &site.outline, plan.float_type, &read)?)
}

/// The errors of a layer, and what happened to it.
fn record(
    site: &SitePlan,
    weight: &[f32],
    stored: &Weight,
    statistics: Option<&Statistics>,
    notes: Vec<Note>,
) -> Result<SiteRecord, EngineError> {
    let mut difference = stored.decode();
    let zeros = difference.iter().filter(|value| value.to_bits() == 0).count();
    let pruned = site.method.pruned(stored.rows(), stored.cols());
    if let Some(promised) = pruned.filter(|promised| zeros < *promised) {
        let what = format!("{zeros} weights are 0 where {promised} were pruned");
        return Err(EngineError::Internal(format!("{}: {what}", site.linear.module)));
    }
    difference.iter_mut().zip(weight).for_each(|(stored, weight)| *stored -= weight);
    let relative = |error: f64, whole: f64| if whole > 0.0 { error / whole } else { 0.0 };
    let output_error = statistics.map(|statistics| {
        let cols = site.linear.in_features;
        if statistics.gram.len() == cols {
            let squares = |values: &[f32]| weighted_squares(values, &statistics.gram);
            return relative(squares(&difference), squares(weight));
        }
        let gram = PackedMatrix::new(&statistics.gram, cols, cols, Precision::F32);
        relative(energy(&difference, &gram), energy(weight, &gram))
    });
    Ok(SiteRecord {
        name: site.linear.module.clone(),
        method: site.method_id.clone(),
        outline: site.outline.clone(),
        inputs: site.inputs,
        weight_error: relative(squares(&difference), squares(weight)),
        output_error,
        sparsity: pruned.map(|_| relative(zeros as f64, difference.len() as f64)),
        notes,
    })
}

/// Squares of `[rows, columns]`, each times the weight of its column.
fn weighted_squares(values: &[f32], columns: &[f32]) -> f64 {
    let rows = values.chunks_exact(columns.len().max(1));
    let row = |row: &[f32]| -> f64 {
        row.iter().zip(columns).map(|(v, weight)| f64::from(*v).powi(2) * f64::from(*weight)).sum()
    };
    rows.map(row).sum()
}

/// Stretches are summed side by side, and their sums in order.
fn squares(values: &[f32]) -> f64 {
    const STRETCH: usize = 1 << 14;
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    let of_stretch = |values: &[f32]| -> f64 {
        let (eights, rest) = values.as_chunks::<8>();
        let mut sums = [0.0; 8];
        for values in eights {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += square(value));
        }
        sums.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>()
    };
    let sums: Vec<f64> = values.par_chunks(STRETCH).map(of_stretch).collect();
    sums.iter().sum()
}
