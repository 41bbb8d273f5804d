//! Bits per weight, counted by hand.

use crate::support::{folder, model};
use lapidary_eval::size;
use lapidary_formats::{Format, FormatError, Layout, LogicalTensor, Source};
use lapidary_model::{Graph, spec};
use lapidary_store::safetensors::Writer;
use lapidary_store::{Fs, RealFs, TensorSpec};
use lapidary_weight::{Affine, FloatType, GroupFloats, Grouping, Outline, Term, Weight, Zeros};
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

#[test]
fn plain_models_have_the_bits_of_their_type() {
    for (name, bits) in [
        ("llama-untied", 32.0),
        ("llama-tied", 32.0),
        ("llama-bf16", 16.0),
        ("llama-sharded", 32.0),
    ] {
        let model = model(name);
        let size = size(&model.source, &model.spec);
        assert_eq!((size.bits_per_weight, size.embedding_bits_per_weight), (bits, bits), "{name}");
        let linears = model.spec.blocks.iter().flat_map(Graph::linears);
        let weights: usize = linears.map(|linear| linear.in_features * linear.out_features).sum();
        assert_eq!(size.linear_weights, weights as u64);
        let files = std::fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with("model") && name.ends_with(".safetensors")
        });
        let bytes: u64 = files.map(|entry| entry.metadata().unwrap().len()).sum();
        assert_eq!(size.bytes, bytes);
    }
    // As README.md of the tiny models says.
    let model = model("llama-tied");
    assert_eq!(size(&model.source, &model.spec).parameters, 27_712);
}

/// 4 bits with zero points in groups of 8: codes, scales, zeros, and 16 bytes of shape a layer.
#[test]
fn compressed_layers_count_everything_that_is_stored() {
    let model = model("llama-untied");
    let format = lapidary_formats::find("compressed-tensors").unwrap();
    let (mut tensors, mut compressed, mut bits) = (vec![], vec![], 0);
    let mut layers = HashMap::new();
    for linear in model.spec.blocks.iter().flat_map(Graph::linears) {
        let (rows, cols) = (linear.out_features, linear.in_features);
        let weight = affine(rows, cols);
        let outline = weight.outline();
        let specs = format.tensors(&linear.module, &outline, FloatType::F16);
        tensors.extend(specs.into_iter().zip(format.encode(&weight, FloatType::F16).unwrap()));
        let groups = cols / 8;
        // The zero points of a group's column are packed into whole words.
        bits += 4 * rows * cols + 16 * rows * groups + 32 * (4 * rows).div_ceil(32) * groups + 128;
        compressed.push((linear.module.clone(), outline));
        layers.insert(linear.weight.clone(), rows * cols);
    }
    for tensor in model.source.tensors() {
        if !layers.contains_key(&tensor.name) {
            tensors.push(plain(&model.source, tensor));
        }
    }
    let written = write(format, &model.source, &compressed, &tensors);
    let source = Source::open(Arc::new(RealFs), written.path()).unwrap();
    let spec = spec(source.config()).unwrap();
    let (before, after) = (size(&model.source, &model.spec), size(&source, &spec));
    let weights: usize = layers.values().sum();
    assert_eq!(after.linear_weights, weights as u64);
    assert_eq!(after.bits_per_weight, bits as f64 / weights as f64);
    assert!(after.bits_per_weight > 6.5 && after.bits_per_weight < 8.0);
    assert_eq!(after.embedding_bits_per_weight, 32.0);
    assert_eq!(after.parameters, before.parameters);
    assert!(after.bytes < before.bytes);
}

/// A table counts beside the layers, never among them; the head that shares it is the same weight.
#[test]
fn compressed_tables_count_beside_the_layers() {
    let model = model("llama-tied");
    let format = lapidary_formats::find("native").unwrap();
    let table = &model.spec.matrices()[0];
    assert_eq!(table.tied.as_deref(), Some("lm_head"));
    let weight = affine(table.linear.out_features, table.linear.in_features);
    let outline = weight.outline();
    let specs = format.tensors(&table.linear.module, &outline, FloatType::F16);
    let bytes = format.encode(&weight, FloatType::F16).unwrap();
    let stored: usize = bytes.iter().map(Vec::len).sum();
    let mut tensors: Vec<_> = specs.into_iter().zip(bytes).collect();
    for tensor in model.source.tensors().iter().filter(|t| t.name != table.linear.weight) {
        tensors.push(plain(&model.source, tensor));
    }
    let compressed = [(table.linear.module.clone(), outline.clone())];
    let written = write(format, &model.source, &compressed, &tensors);
    let source = Source::open(Arc::new(RealFs), written.path()).unwrap();
    let (before, after) = (size(&model.source, &model.spec), size(&source, &model.spec));
    assert_eq!(after.bits_per_weight, before.bits_per_weight);
    let numbers = (outline.rows * outline.cols) as f64;
    assert_eq!(after.embedding_bits_per_weight, 8.0 * stored as f64 / numbers);
    assert_eq!(after.parameters, before.parameters);
}

/// A tensor of a checkpoint as it is handed on.
fn plain(source: &Source, tensor: &LogicalTensor) -> (TensorSpec, Vec<u8>) {
    let mut bytes = vec![];
    let gathered = source.raw(&tensor.name, |piece| -> Result<(), FormatError> {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    gathered.unwrap();
    (TensorSpec::new(&tensor.name, source.raw_dtype(tensor), tensor.shape.clone()), bytes)
}

fn affine(rows: usize, cols: usize) -> Weight {
    let groups = rows * (cols / 8);
    let term = Affine {
        bits: 4,
        grouping: Grouping::Columns(NonZeroUsize::new(8).unwrap()),
        codes: (0..rows * cols).map(|i| (i * 7 % 16) as u8).collect(),
        scales: GroupFloats::plain(vec![0.0625; groups], FloatType::F16),
        zeros: Zeros::Codes((0..groups).map(|i| (i % 16) as u8).collect()),
    };
    Weight::new(rows, cols, vec![Term::Affine(term)]).unwrap()
}

fn write(
    format: &dyn Format,
    source: &Source,
    compressed: &[(String, Outline)],
    tensors: &[(TensorSpec, Vec<u8>)],
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = source.config().clone();
    let plain = ["lm_head".to_owned()];
    config["quantization_config"] =
        format.config(&Layout { compressed, plain: &plain, inputs: &[] }).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let path = folder.path().join("model.safetensors");
    let mut writer = Writer::create(&fs, &path, &specs, &BTreeMap::new()).unwrap();
    let order: Vec<String> = writer.order().map(str::to_owned).collect();
    for name in order {
        let (_, bytes) = tensors.iter().find(|(spec, _)| spec.name == name).unwrap();
        writer.append(&name, bytes).unwrap();
    }
    writer.finish().unwrap();
    folder
}
