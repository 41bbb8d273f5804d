//! An encoder that is wholly in memory: its sentence embeddings, its size, its speed.

use crate::error::Error;
use lapidary_formats::{LogicalTensor, Source};
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision, Spec, spec};
use lapidary_store::{Fs, RealFs};
use lapidary_weight::TermOutline;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Times that two encoders are measured beside each other.
const ROUNDS: usize = 101;

/// A model that turns tokens into hidden states, its weights decoded to f32.
pub(super) struct Encoder {
    source: Source,
    spec: Spec,
    executor: Executor,
    blocks: Vec<GraphWeights>,
}

/// What is stored of the tensors that the graphs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Bytes in the files.
    pub(super) bytes: u64,
    /// Those of them that are tables of embeddings: words, positions, segments.
    pub(super) table_bytes: u64,
    /// Numbers that stand for weights: codes, what is not zero, what the factors hold.
    pub(super) parameters: u64,
}

impl Encoder {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        let source = Source::open(fs, path).map_err(Error::library)?;
        let spec = spec(source.config()).map_err(Error::library)?;
        let executor = Executor::new(Fused { precision: Precision::F32 });
        let load = |block| GraphWeights::load(block, &source, executor.backend());
        let blocks = spec.blocks.iter().map(load).collect::<Result<_, _>>();
        let blocks = blocks.map_err(Error::library)?;
        Ok(Self { source, spec, executor, blocks })
    }

    /// The source of the weights.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// The mean of the last hidden states over the tokens of a sentence, of length 1.
    pub(super) fn embedding(&self, ids: &[u32]) -> Result<Vec<f64>, Error> {
        let batch = Batch { rows: 1, seq_len: ids.len() };
        let states = self.run(batch, self.embed(batch, ids)?)?;
        let mut mean = vec![0.0; self.spec.hidden_size];
        for state in states.chunks_exact(self.spec.hidden_size.max(1)) {
            mean.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !(length.is_finite() && length > 0.0) {
            return Err(Error::Unexpected("an embedding is zero or no number".to_owned()));
        }
        mean.iter_mut().for_each(|value| *value /= length);
        Ok(mean)
    }

    /// How many times as fast as another encoder its blocks are on a row of tokens: the median over
    /// rounds in which both run, each first in every other one, so that what else the machine does
    /// slows both.
    pub(super) fn speed(&self, other: &Self, ids: &[u32]) -> Result<f64, Error> {
        let batch = Batch { rows: 1, seq_len: ids.len() };
        let inputs = [self.embed(batch, ids)?, other.embed(batch, ids)?];
        let seconds = |which: usize| -> Result<f64, Error> {
            let input = inputs[which].clone();
            let started = Instant::now();
            [self, other][which].run(batch, input)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let mut ratios = vec![];
        for round in 0..ROUNDS {
            let first = round % 2;
            let mut taken = [0.0; 2];
            for which in [first, 1 - first] {
                taken[which] = seconds(which)?;
            }
            ratios.push(taken[1] / taken[0]);
        }
        ratios.sort_by(f64::total_cmp);
        Ok(ratios[ROUNDS / 2])
    }

    pub(super) fn size(&self) -> Size {
        let is_table = |shape: &[usize]| shape.len() == 2;
        let tables = self.spec.embed.tensors();
        let tables = tables.iter().filter(|(_, shape)| is_table(shape));
        let read = self.spec.tensors();
        let stored = |name: &String| self.source.get(name);
        let tensors = || read.iter().filter_map(|(name, _)| stored(name));
        Size {
            bytes: tensors().map(|tensor| self.source.stored_bytes(tensor)).sum(),
            table_bytes: tables
                .filter_map(|(name, _)| stored(name))
                .map(|tensor| self.source.stored_bytes(tensor))
                .sum(),
            parameters: tensors().map(|tensor| self.parameters(tensor)).sum(),
        }
    }

    fn parameters(&self, tensor: &LogicalTensor) -> u64 {
        let all: usize = tensor.shape.iter().product();
        let Some(outline) = self.source.outline(tensor).filter(|_| tensor.is_compressed()) else {
            return all as u64;
        };
        let of_term = |term: &TermOutline| match *term {
            TermOutline::LowRank { rank, .. } => rank * (outline.rows + outline.cols),
            TermOutline::Sparse { nonzeros, .. } => nonzeros,
            _ => all,
        };
        outline.terms.iter().map(of_term).sum::<usize>() as u64
    }

    fn embed(&self, batch: Batch, ids: &[u32]) -> Result<Vec<f32>, Error> {
        self.executor.embed(&self.spec, &self.source, batch, ids.into()).map_err(Error::library)
    }

    fn run(&self, batch: Batch, mut states: Vec<f32>) -> Result<Vec<f32>, Error> {
        for (block, weights) in self.spec.blocks.iter().zip(&self.blocks) {
            states =
                self.executor.run(block, weights, batch, states, None).map_err(Error::library)?;
        }
        Ok(states)
    }
}
