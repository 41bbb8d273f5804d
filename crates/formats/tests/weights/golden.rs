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
