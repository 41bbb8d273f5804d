//! Cuts of every tiny model of `testdata/models`: a model without some units computes what the whole
//! one does with these set to zero, and one without a layer what the whole one does when that is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should panic"
)]

use lapidary_formats::{Selected, Source};
use lapidary_model::cut::{Cut, KeptUnits, UnitKind, Units, carve};
use lapidary_model::{
    Batch, Executor, Fused, Graph, GraphWeights, ModelError, Op, Precision, Spec, Tokens, spec,
};
use lapidary_store::RealFs;
use lapidary_weight::{TensorError, Tensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BATCH: Batch = Batch { rows: 2, seq_len: 7 };

fn models() -> Vec<(String, Source, Spec)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    let open = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let source = Source::open(Arc::new(RealFs), &path).unwrap();
        let spec = spec(source.config()).unwrap();
        (name, source, spec)
    };
    folders.into_iter().map(open).collect()
}

/// The source after a cut.
fn cut(source: &Source, cut: &Cut) -> Result<(Source, Spec), ModelError> {
    let carving = carve(source.config(), cut)?;
    let selected = source.tensors().iter().filter_map(|tensor| {
        let selection = carving.selections.get(&tensor.name).cloned().unwrap_or_default();
        let (rows, columns) = (selection.rows, selection.columns);
        Some(Selected { name: carving.name(&tensor.name)?, of: tensor.name.clone(), rows, columns })
    });
    let source = source.cut(carving.config.clone(), selected.collect(), vec![]).unwrap();
    for (name, shape) in carving.spec.tensors() {
        assert_eq!(source.shape(&name), Some(shape), "{name}");
    }
    Ok((source, carving.spec))
}

/// The output of a model, with some blocks left out.
fn forward(spec: &Spec, tensors: &dyn Tensors, without: Option<usize>) -> Vec<f32> {
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let count = BATCH.tokens() as u32;
    let ids: Vec<u32> = (0..count).map(|i| (i * 7 + 3) % spec.vocab_size as u32).collect();
    let mut x = executor.embed(spec, tensors, BATCH, Tokens::from(&ids[..])).unwrap();
    let left = spec.blocks.iter().enumerate().filter(|(index, _)| Some(*index) != without);
    for graph in left.map(|(_, graph)| graph).chain(&spec.head) {
        let weights = GraphWeights::load(graph, tensors, executor.backend()).unwrap();
        x = executor.run(graph, &weights, BATCH, x, None).unwrap();
    }
    x
}

/// Tensors of which some columns are zero.
struct Masked<'a> {
    source: &'a Source,
    /// Columns that stay, by tensor.
    columns: BTreeMap<String, Vec<bool>>,
}

impl Tensors for Masked<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let mut values = self.source.read(name)?;
        if let Some(stays) = self.columns.get(name) {
            for (at, value) in values.iter_mut().enumerate() {
                *value *= f32::from(u8::from(stays[at % stays.len()]));
            }
        }
        Ok(values)
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        self.source.read_rows(name, rows)
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn linear<'a>(graph: &'a Graph, module: &str) -> &'a lapidary_model::LinearOp {
    graph.linears().find(|linear| linear.module == module).unwrap()
}

#[test]
fn a_model_without_a_layer_is_the_model_that_skips_it() {
    let mut done = 0;
    for (name, source, spec) in models() {
        if name.starts_with("albert") || spec.blocks.len() < 2 {
            continue;
        }
        for gone in 0..spec.blocks.len() {
            let blocks = (0..spec.blocks.len()).filter(|block| *block != gone).collect();
            let wanted = Cut { blocks: Some(blocks), ..Cut::default() };
            // Its scores are divided by the number of the layer, which would be another.
            if name == "gpt2-inner" && gone == 0 {
                assert!(cut(&source, &wanted).is_err());
                continue;
            }
            let (smaller, after) =
                cut(&source, &wanted).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                forward(&after, &smaller, None),
                forward(&spec, &source, Some(gone)),
                "{name}"
            );
            done += 1;
        }
    }
    assert!(done > 80, "{done}");
}

/// Every second unit of those that a kind has.
fn half(units: &Units) -> Vec<u32> {
    (0..units.count as u32).filter(|unit| unit % 2 == 0).collect()
}

#[test]
fn a_model_without_neurons_is_the_model_in_which_they_are_zero() {
    let mut done = vec![];
    for (name, source, spec) in models() {
        if spec.shares_blocks() || name.starts_with("albert") {
            continue;
        }
        let (mut wanted, mut columns) = (Cut::default(), BTreeMap::new());
        for (block, graph) in spec.blocks.iter().enumerate() {
            for units in graph.units(spec.hidden_size) {
                if units.kind != UnitKind::Neurons {
                    continue;
                }
                let reader = linear(graph, &units.reader);
                assert_eq!(units.count, reader.in_features, "{name}: {}", units.reader);
                let kept = half(&units);
                let stays = (0..units.count as u32).map(|unit| kept.contains(&unit)).collect();
                columns.insert(reader.weight.clone(), stays);
                let (kind, reader) = (units.kind, units.reader.clone());
                wanted.units.push(KeptUnits { block, kind, reader, kept });
            }
        }
        let (smaller, after) =
            cut(&source, &wanted).unwrap_or_else(|error| panic!("{name}: {error}"));
        let masked = forward(&spec, &Masked { source: &source, columns }, None);
        let difference = largest_difference(&forward(&after, &smaller, None), &masked);
        assert!(difference <= 1e-5, "{name}: {difference}");
        let removed: usize = wanted.units.iter().map(|units| units.kept.len()).sum();
        assert!(removed > 0, "{name}");
        done.push(name);
    }
    assert!(done.len() > 50, "{done:?}");
}

/// Families whose configuration has no width of a head: fewer heads would be wider ones. In OLMo 2 a
/// norm sees all heads at once.
const WITHOUT_HEAD_DIM: [&str; 8] =
    ["bert", "distilbert", "roberta", "gpt2", "gpt-neox", "opt", "olmo2", "stablelm"];

#[test]
fn a_model_without_heads_is_the_model_in_which_they_are_zero() {
    let mut done = vec![];
    for (name, source, spec) in models() {
        if spec.shares_blocks() || name.starts_with("albert") {
            continue;
        }
        let (mut wanted, mut columns) = (Cut::default(), BTreeMap::new());
        for (block, graph) in spec.blocks.iter().enumerate() {
            let units = graph.units(spec.hidden_size);
            let of_kind = |kind| units.iter().find(|units| units.kind == kind).unwrap();
            let (queries, keys) = (of_kind(UnitKind::QueryHeads), of_kind(UnitKind::KeyHeads));
            let attention = graph.nodes.iter().find_map(|node| match &node.op {
                Op::Attention(attention) => Some(attention),
                _ => None,
            });
            let attention = attention.unwrap();
            if queries.bound.is_none() {
                assert_eq!(
                    (queries.count, keys.count),
                    (attention.heads, attention.kv_heads),
                    "{name}"
                );
            }
            let group = queries.count / keys.count.max(1);
            // Every second group, and of a model with one group every second head of it.
            let stay_keys = half(keys);
            let stays = |head: usize| match keys.count {
                1 => head.is_multiple_of(2),
                _ => stay_keys.contains(&((head / group) as u32)),
            };
            let kept: Vec<u32> =
                (0..queries.count as u32).filter(|head| stays(*head as usize)).collect();
            let reader = linear(graph, &queries.reader);
            let channels =
                (0..reader.in_features).map(|channel| stays(channel / attention.head_dim));
            columns.insert(reader.weight.clone(), channels.collect());
            for (units, kept) in [(queries, kept), (keys, stay_keys)] {
                let (kind, reader) = (units.kind, units.reader.clone());
                wanted.units.push(KeptUnits { block, kind, reader, kept });
            }
        }
        let stays_as_it_is = wanted.units.iter().all(|kept| kept.kept.len() == 1)
            && spec.blocks[0]
                .units(spec.hidden_size)
                .iter()
                .all(|u| u.kind == UnitKind::Neurons || u.count == 1);
        match cut(&source, &wanted) {
            _ if stays_as_it_is => {}
            Ok((smaller, after)) => {
                assert!(!WITHOUT_HEAD_DIM.iter().any(|family| name.starts_with(family)), "{name}");
                let masked = forward(&spec, &Masked { source: &source, columns }, None);
                let difference = largest_difference(&forward(&after, &smaller, None), &masked);
                assert!(difference <= 1e-5, "{name}: {difference}");
                done.push(name);
            }
            // Refused, and why: transformers would refuse the result.
            Err(error) if error.to_string().contains("would not divide") => {}
            Err(error) => {
                assert!(
                    WITHOUT_HEAD_DIM.iter().any(|family| name.starts_with(family)),
                    "{name}: {error}"
                );
            }
        }
    }
    assert!(done.len() > 20, "{done:?}");
}
