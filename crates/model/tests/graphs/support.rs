//! The tiny models of `testdata`, run whole or in part.

use lapidary_formats::Source;
use lapidary_model::{Batch, Executor, Fused, Graph, GraphWeights, Precision, Spec, spec};
use lapidary_store::RealFs;
use lapidary_weight::{TensorError, Tensors};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// A model of `testdata/models`.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) spec: Spec,
}

pub(crate) fn model(name: &str) -> Model {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let source = Source::open(Arc::new(RealFs), &root.join(name)).unwrap();
    let spec = spec(source.config()).unwrap();
    Model { name: name.to_owned(), source, spec }
}

pub(crate) fn models() -> Vec<Model> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let entries = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 20, "the tiny models are missing");
    names.iter().map(|name| model(name)).collect()
}

/// Tensors of a source, some of them replaced.
pub(crate) struct Edited<'a> {
    pub(crate) source: &'a Source,
    pub(crate) edits: HashMap<String, Vec<f32>>,
}

impl<'a> Edited<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self { source, edits: HashMap::new() }
    }

    /// Changes each value of a tensor by its place.
    pub(crate) fn edit(&mut self, name: &str, change: impl Fn(usize, f32) -> f32) {
        let values = self.edits.remove(name).unwrap_or_else(|| self.source.read(name).unwrap());
        let values = values.into_iter().enumerate().map(|(place, value)| change(place, value));
        self.edits.insert(name.to_owned(), values.collect());
    }
}

impl Tensors for Edited<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        self.edits.get(name).map_or_else(|| self.source.read(name), |values| Ok(values.clone()))
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        self.source.read_rows(name, rows)
    }
}

pub(crate) const BATCH: Batch = Batch { rows: 2, seq_len: 9 };

pub(crate) fn executor() -> Executor {
    Executor::new(Fused { precision: Precision::F32 })
}

pub(crate) fn tokens(spec: &Spec) -> Vec<u32> {
    (0..BATCH.tokens()).map(|i| (i * i * 7 + 3 * i) as u32 % spec.vocab_size as u32).collect()
}

pub(crate) fn embedded(model: &Model) -> Vec<f32> {
    let tokens = tokens(&model.spec);
    executor().embed(&model.spec, &model.source, BATCH, tokens.as_slice().into()).unwrap()
}

pub(crate) fn run(graph: &Graph, tensors: &dyn Tensors, input: &[f32]) -> Vec<f32> {
    let executor = executor();
    let weights = GraphWeights::load(graph, tensors, executor.backend()).unwrap();
    executor.run(graph, &weights, BATCH, input.to_vec(), None).unwrap()
}

/// The output of all blocks and the head. The embedding is that of the source, so that a change of
/// the head of a tied model is one of the head alone.
pub(crate) fn output(model: &Model, tensors: &dyn Tensors) -> Vec<f32> {
    let graphs = model.spec.blocks.iter().chain(&model.spec.head);
    graphs.fold(embedded(model), |x, graph| run(graph, tensors, &x))
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|value| value.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
