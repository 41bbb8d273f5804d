//! Tiny models whose tensors can be changed, and sums in f64.

use lapidary_formats::Source;
use lapidary_kernels::random::{gaussian, nth, unit};
use lapidary_model::gradient::{Backward, Loss, NextToken, Projection};
use lapidary_model::{ModelError, Spec, spec};
use lapidary_store::RealFs;
use lapidary_weight::{TensorError, Tensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A tiny model, some of whose tensors are others than in its folder.
pub(crate) struct Model {
    pub(crate) source: Source,
    pub(crate) spec: Spec,
    pub(crate) changed: BTreeMap<String, Vec<f32>>,
}

pub(crate) fn models() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn model(name: &str) -> Model {
    let folder: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name);
    let source = Source::open(Arc::new(RealFs), &folder).unwrap();
    let spec = spec(source.config()).unwrap();
    Model { source, spec, changed: BTreeMap::new() }
}

impl Tensors for Model {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (_, shape) = self.spec.tensors().into_iter().find(|(tensor, _)| tensor == name)?;
        Some(shape)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        self.changed.get(name).map_or_else(|| self.source.read(name), |values| Ok(values.clone()))
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        let Some(values) = self.changed.get(name) else {
            return self.source.read_rows(name, rows);
        };
        let width = self.shape(name).unwrap()[1];
        Ok(rows.iter().flat_map(|row| &values[*row as usize * width..][..width]).copied().collect())
    }
}

impl Model {
    /// Changes a tensor's numbers, in f64.
    pub(crate) fn change(&mut self, name: &str, change: impl Fn(usize, f64) -> f64) {
        let values = self.read(name).unwrap();
        let changed = values.iter().enumerate().map(|(i, v)| change(i, f64::from(*v)) as f32);
        self.changed.insert(name.to_owned(), changed.collect());
    }

    /// Random rows of tokens.
    pub(crate) fn rows(&self, count: usize, tokens: usize) -> Vec<Vec<u32>> {
        let token = |at: usize| (unit(nth(11, at as u64)) * self.spec.vocab_size as f64) as u32;
        (0..count).map(|row| (0..tokens).map(|i| token(row * tokens + i)).collect()).collect()
    }

    /// The loss that the model has: of next tokens, or of its embedding.
    pub(crate) fn loss(&self) -> Box<dyn Loss + '_> {
        if self.spec.head.is_some() && self.spec.causal {
            return Box::new(NextToken::new(&self.spec, self).unwrap());
        }
        Box::new(Projection { seed: 3, hidden_size: self.spec.hidden_size })
    }

    /// Mean loss of the rows.
    pub(crate) fn mean_loss(&self, rows: &[Vec<u32>]) -> f64 {
        mean(&Backward::new(&self.spec, self).losses(rows, &*self.loss()).unwrap())
    }

    /// Mean gradient over the rows of every tensor of the blocks.
    pub(crate) fn gradients(&self, rows: &[Vec<u32>]) -> BTreeMap<String, Vec<f64>> {
        let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let backward = Backward::new(&self.spec, self);
        let visit = &mut |gradients: &lapidary_model::gradient::BlockGradients<'_>| {
            for tensor in gradients.tensors()? {
                let tensor = tensor?;
                let zeros = || vec![0.0; tensor.gradient.len()];
                let sum = sums.entry(tensor.name.to_owned()).or_insert_with(zeros);
                let parts = tensor.gradient.iter().map(|g| f64::from(*g) / rows.len() as f64);
                sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
            }
            Ok::<(), ModelError>(())
        };
        backward.run(rows, &*self.loss(), visit).unwrap();
        sums
    }
}

/// Independent normal numbers.
pub(crate) fn noise(key: u64, count: usize) -> Vec<f64> {
    (0..count as u64).map(|i| gaussian(nth(key, i))).collect()
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// The slope of a function at 0, from five points: what rounding of f32 leaves of it is about
/// `1e-6 / step`.
pub(crate) fn slope(step: f64, mut value: impl FnMut(f64) -> f64) -> f64 {
    let near = value(step) - value(-step);
    let far = value(2.0 * step) - value(-2.0 * step);
    (8.0 * near - far) / (12.0 * step)
}
