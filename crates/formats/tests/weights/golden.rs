//! A folder that compressed-tensors wrote: decoded as it decodes, and written again as it writes.

use crate::support::{bits, format, fs, testdata};
use lapidary_formats::Source;
use lapidary_store::Checkpoint;
use lapidary_weight::{FloatType, Term, TermOutline};

#[test]
fn layers_are_decoded_as_by_compressed_tensors() {
    let folder = testdata("golden/compressed_tensors");
    let source = Source::open(fs(), &folder).unwrap();
    let decoded = Checkpoint::open(fs(), &folder.join("decoded.safetensors")).unwrap();
    assert!(source.tensors().len() >= 20);
    for tensor in source.tensors() {
        assert!(tensor.is_compressed());
        let module = tensor.name.strip_suffix(".weight").unwrap();
        let weight = source.weight(&tensor.name).unwrap();
        let [Term::Affine(affine)] = weight.terms() else { panic!("one affine term") };
        let scales = affine.scales.kind().float();
        assert!(module.ends_with(match scales {
            FloatType::F32 => "_f32",
            FloatType::F16 => "_f16",
            FloatType::Bf16 => "_bf16",
        }));
        let golden = decoded.require(&format!("{module}.decoded")).unwrap();
        let golden = scales.decode(&decoded.read(golden).unwrap());
        // It multiplies in the type of the scales.
        let values: Vec<f32> = weight.decode().into_iter().map(|v| scales.round(v)).collect();
        assert_eq!(bits(&values), bits(&golden), "{module}");
    }
}

#[test]
fn layers_are_written_byte_for_byte_as_by_compressed_tensors() {
    let folder = testdata("golden/compressed_tensors");
    let source = Source::open(fs(), &folder).unwrap();
    let file = Checkpoint::open(fs(), &folder.join("model.safetensors")).unwrap();
    for tensor in source.tensors() {
        let module = tensor.name.strip_suffix(".weight").unwrap();
        let weight = source.weight(&tensor.name).unwrap();
        let [TermOutline::Affine { scales, .. }] = weight.outline().terms[..] else { panic!() };
        let (ours, scales) = (format("compressed-tensors"), scales.float());
        let specs = ours.tensors(module, &weight.outline(), scales);
        for (spec, bytes) in specs.iter().zip(ours.encode(&weight, scales).unwrap()) {
            let golden = file.require(&spec.name).unwrap();
            assert_eq!((golden.dtype, &golden.shape), (spec.dtype, &spec.shape), "{}", spec.name);
            assert_eq!(bytes, file.read(golden).unwrap(), "{}", spec.name);
        }
        let parts = file.tensors().iter().filter(|t| t.name.starts_with(&format!("{module}.")));
        assert_eq!(parts.count(), specs.len(), "{module}");
    }
}

/// The golden folder of FP8, FP4 and one-byte layers, with the format that writes each.
fn of_floats() -> (Source, Checkpoint, Vec<(String, &'static str)>) {
    let folder = testdata("golden/compressed_tensors/floats");
    let source = Source::open(fs(), &folder).unwrap();
    let file = Checkpoint::open(fs(), &folder.join("model.safetensors")).unwrap();
    let format = |name: &str| match name.contains(".int_") {
        true => "int-quantized",
        false => "compressed-tensors",
    };
    let names = source.tensors().iter().map(|tensor| tensor.name.strip_suffix(".weight").unwrap());
    let modules: Vec<_> = names.map(|name| (name.to_owned(), format(name))).collect();
    assert_eq!(modules.len(), 18);
    (source, file, modules)
}

#[test]
fn floats_are_decoded_as_by_compressed_tensors() {
    let (source, _, modules) = of_floats();
    let path = testdata("golden/compressed_tensors/floats/decoded.safetensors");
    let decoded = Checkpoint::open(fs(), &path).unwrap();
    for (module, _) in modules {
        let weight = source.weight(&format!("{module}.weight")).unwrap();
        let golden = decoded.require(&format!("{module}.decoded")).unwrap();
        let golden = FloatType::F32.decode(&decoded.read(golden).unwrap());
        // It multiplies in the type of the scales; NVFP4 in bfloat16.
        let float = match &module {
            name if name.ends_with("_f16") => FloatType::F16,
            name if name.ends_with("_bf16") || name.contains(".nvfp4") => FloatType::Bf16,
            _ => FloatType::F32,
        };
        let values: Vec<f32> = weight.decode().into_iter().map(|v| float.round(v)).collect();
        assert_eq!(values, golden, "{module}");
    }
}

#[test]
fn floats_are_written_byte_for_byte_as_by_compressed_tensors() {
    let (source, file, modules) = of_floats();
    for (module, id) in modules {
        let weight = source.weight(&format!("{module}.weight")).unwrap();
        let ours = format(id);
        let outline = weight.outline();
        let specs = ours.tensors(&module, &outline, FloatType::F32);
        for (spec, bytes) in specs.iter().zip(ours.encode(&weight, FloatType::F32).unwrap()) {
            let golden = file.require(&spec.name).unwrap();
            assert_eq!((golden.dtype, &golden.shape), (spec.dtype, &spec.shape), "{}", spec.name);
            assert_eq!(bytes, file.read(golden).unwrap(), "{}", spec.name);
        }
        let parts = file.tensors().iter().filter(|t| t.name.starts_with(&format!("{module}.")));
        assert_eq!(parts.count(), specs.len(), "{module}");
        let get = |name: &str| Ok(file.read(file.require(name).unwrap()).unwrap());
        assert_eq!(ours.decode(&module, &outline, FloatType::F32, &get).unwrap(), weight);
    }
}
