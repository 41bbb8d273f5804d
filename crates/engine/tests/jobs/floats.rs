//! FP8, FP4 and one-byte layers: whole jobs, and the methods beside what compressed-tensors made.

use crate::support::{Setup, model, real, scratch};
use lapidary_formats::{Format, Source};
use lapidary_methods::{Method, Site};
use lapidary_store::Checkpoint;
use lapidary_weight::{BookType, FloatType, Term, TermOutline};
use serde_json::{Value, json};
use std::path::Path;

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/compressed_tensors/floats")
}

/// Layers of f32 are encoded and written byte for byte as compressed-tensors does; it computes those
/// of other types in these.
#[test]
fn scales_by_range_are_those_of_compressed_tensors() {
    let format = lapidary_formats::find("compressed-tensors").unwrap();
    let weights = Checkpoint::open(real(), &golden().join("weights.safetensors")).unwrap();
    let file = Checkpoint::open(real(), &golden().join("model.safetensors")).unwrap();
    let mut compared = vec![];
    for (pattern, id, params) in [
        (".naive_channel_", "fp8", json!({})),
        (".float_tensor_", "fp8", json!({"group_size": "tensor"})),
        (".float_block_", "fp8", json!({"block": [4, 16]})),
        (".naive_group_", "fp8", json!({"group_size": 16})),
        (".mxfp8_", "mxfp8", json!({})),
        (".mxfp4_", "mxfp4", json!({})),
        (".nvfp4_", "nvfp4", json!({})),
    ] {
        let of_case = |name: &&str| name.contains(pattern) && name.ends_with("_f32");
        let name =
            weights.tensors().iter().map(|tensor| tensor.name.as_str()).find(of_case).unwrap();
        compare(format, &file, &weights, name, (id, &params));
        compared.push(name);
    }
    assert_eq!(compared.len(), 7);
}

fn compare(
    format: &dyn Format,
    file: &Checkpoint,
    weights: &Checkpoint,
    name: &str,
    (id, params): (&str, &Value),
) {
    let tensor = weights.require(name).unwrap();
    let values = FloatType::F32.decode(&weights.read(tensor).unwrap());
    let Ok(Method::Tensorwise(method)) = (lapidary_methods::find(id).unwrap().build)(params) else {
        panic!("{id} encodes weights")
    };
    let site = Site {
        name,
        rows: tensor.shape[0],
        cols: tensor.shape[1],
        weight: &values,
        statistics: None,
        scale_type: FloatType::F32,
        peak: None,
    };
    let encoded = method.encode(&site).unwrap().weight;
    let bytes = format.encode(&encoded, FloatType::F32).unwrap();
    let specs = format.tensors(name, &encoded.outline(), FloatType::F32);
    assert!(specs.len() >= 2, "{name}");
    for (spec, bytes) in specs.iter().zip(bytes) {
        let golden = file.read(file.require(&spec.name).unwrap()).unwrap();
        assert_eq!(bytes, golden, "{}", spec.name);
    }
}

/// From the float model to a folder that reads back as what was promised.
#[test]
fn jobs_write_every_float_format() {
    // The widths of llama-tied are multiples of 32 and those of llama-bf16 of 16, but for down_proj.
    for (step, format, name) in [
        ("method: fp8", "compressed-tensors", "naive-quantized"),
        ("method: fp8, block: [16, 16], scale: error", "compressed-tensors", "naive-quantized"),
        ("method: nvfp4", "compressed-tensors", "nvfp4-pack-quantized"),
        ("method: mxfp4, scale: error", "compressed-tensors", "mxfp4-pack-quantized"),
        ("method: mxfp8", "compressed-tensors", "mxfp8-quantized"),
        ("method: rtn, bits: 8, group_size: row", "int-quantized", "int-quantized"),
        ("method: nvfp4", "native", "native"),
        ("method: fp8, block: [16, 16]", "native", "native"),
    ] {
        let scratch = scratch();
        let output = scratch.path().join("out");
        let (model, float) = match step.contains("mxfp") {
            true => ("llama-tied", FloatType::F32),
            false => ("llama-bf16", FloatType::Bf16),
        };
        let step = format!("{step}, ignore: [down_proj]");
        let outcome = Setup::new(model, &step, scratch.path(), format).run(&output);
        let outcome = outcome.unwrap_or_else(|error| panic!("{step} {format}: {error}"));
        let written = Source::open(real(), &output).unwrap();
        assert_eq!(written.config()["quantization_config"]["format"], name, "{step}");
        assert_eq!(written.float_type(), float, "{step}: as the model was");
        assert!(!outcome.manifest.sites.is_empty());
        for site in &outcome.manifest.sites {
            let weight = written.weight(&format!("{}.weight", site.name)).unwrap();
            assert_eq!(weight.outline(), site.outline, "{step}: {}", site.name);
            assert!(site.weight_error < 0.02, "{step}: {} {}", site.name, site.weight_error);
            assert!(site.notes.is_empty(), "{step}: {:?}", site.notes);
            let [ref term] = site.outline.terms[..] else { panic!("one term") };
            let is_float = matches!(term, TermOutline::Lookup { books: BookType::Fixed(_), .. });
            assert_eq!(is_float, !step.contains("rtn"));
        }
    }
}

/// Engines fuse q, k and v, and gate and up: each has one divisor.
#[test]
fn layers_with_a_common_input_share_their_divisor() {
    let scratch = scratch();
    let output = scratch.path().join("out");
    let step = "method: nvfp4, ignore: [down_proj]";
    let setup = Setup::new("llama-bf16", step, scratch.path(), "compressed-tensors");
    setup.run(&output).unwrap();
    let written = Source::open(real(), &output).unwrap();
    let divisor = |module: &str| {
        let weight = written.weight(&format!("model.layers.0.{module}.weight")).unwrap();
        let [Term::Lookup(lookup)] = weight.terms() else { panic!("one lookup") };
        lookup.scales.as_ref().unwrap().1.small_codes().unwrap().1.unwrap()
    };
    let [q, k, v] =
        ["q_proj", "k_proj", "v_proj"].map(|part| divisor(&format!("self_attn.{part}")));
    let [gate, up] = ["gate", "up"].map(|part| divisor(&format!("mlp.{part}_proj")));
    assert_eq!([k, v, up], [q, q, gate]);
    assert!(q != gate && q != divisor("self_attn.o_proj"), "each input has its own");
    let source = Source::open(real(), &model("llama-bf16")).unwrap();
    let peak = |part: &str| {
        let name = format!("model.layers.0.self_attn.{part}.weight");
        let values = lapidary_weight::Tensors::read(&source, &name).unwrap();
        values.iter().fold(0.0_f32, |most, value| most.max(value.abs()))
    };
    let all = ["q_proj", "k_proj", "v_proj"].map(peak).into_iter().fold(0.0, f32::max);
    assert_eq!(
        q,
        all.recip() * (448.0 * 6.0),
        "a number over a tensor, as the reference rounds it"
    );
}

/// Widths that groups do not divide are refused with what to do, and stored by the native format.
#[test]
fn ragged_widths_are_refused_with_a_way_out() {
    let scratch = scratch();
    let setup = |format| Setup::new("llama-head-dim", "method: mxfp4", scratch.path(), format);
    let error = setup("compressed-tensors").run(&scratch.path().join("a")).unwrap_err().to_string();
    assert!(error.contains("groups of 32 do not divide"), "{error}");
    assert!(error.contains("--format native"), "{error}");
    setup("native").run(&scratch.path().join("b")).unwrap();
}
