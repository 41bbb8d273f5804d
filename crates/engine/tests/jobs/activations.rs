//! Layers whose inputs are rounded when the model is run: whole jobs, and what is refused.

use crate::support::{Setup, StopAfter, files, model, real, scratch};
use lapidary_engine::{EngineError, Failure, Manifest, Silent};
use lapidary_formats::Source;
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision, spec};
use lapidary_weight::{InputRounding, Tensors};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn open(path: &Path) -> Source {
    Source::open(real(), path).unwrap()
}

fn config(path: &Path) -> Value {
    let text = std::fs::read(path.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    config["quantization_config"].clone()
}

const W8A8: &str = "method: gptq, bits: 8, group_size: row, activations: int8";

#[test]
fn a_job_writes_what_engines_read_and_records_it() {
    for (step, inputs, form, weights) in [
        (W8A8, InputRounding::INT8, "int-quantized", "channel"),
        (
            "method: smoothquant}, {method: rtn, group_size: row, bits: 8, activations: int8",
            InputRounding::INT8,
            "int-quantized",
            "channel",
        ),
        (
            "method: rtn, bits: 4, group_size: 8, activations: int8",
            InputRounding::INT8,
            "int-quantized",
            "group",
        ),
        ("method: fp8, activations: fp8", InputRounding::FP8, "float-quantized", "channel"),
    ] {
        let scratch = scratch();
        let output = scratch.path().join("out");
        let setup = Setup::new("llama-untied", step, scratch.path(), "compressed-tensors");
        let manifest = setup.run(&output).unwrap().manifest;
        assert!(manifest.sites.iter().all(|site| site.inputs == Some(inputs)), "{step}");
        let read = Manifest::read(&*real(), &output).unwrap();
        assert_eq!(read.sites, manifest.sites);
        let config = config(&output);
        assert_eq!(config["format"], form);
        let group = &config["config_groups"]["group_0"];
        assert_eq!(group["weights"]["strategy"], weights);
        assert_eq!(group["input_activations"]["strategy"], "token");
        let source = open(&output);
        for site in &manifest.sites {
            assert_eq!(source.input_rounding(&format!("{}.weight", site.name)), Some(inputs));
        }
        assert_eq!(source.input_rounding("lm_head.weight"), None, "it was not asked for");
    }
}

/// The outputs of block 0 of a folder, for some tokens.
fn block(source: &Source, rounded: bool) -> Vec<f32> {
    let spec = spec(source.config()).unwrap();
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 1, seq_len: 12 };
    let tokens: Vec<u32> = (0..12).map(|i| i * i % 51).collect();
    let x = executor.embed(&spec, source, batch, tokens.as_slice().into()).unwrap();
    let graph = &spec.blocks[0];
    let mut weights = GraphWeights::load(graph, source, executor.backend()).unwrap();
    if !rounded {
        graph.linears().for_each(|linear| weights.round_inputs(linear, None));
    }
    executor.run(graph, &weights, batch, x, None).unwrap()
}

#[test]
fn a_result_is_run_with_its_inputs_rounded() {
    let scratch = scratch();
    let output = scratch.path().join("out");
    Setup::new("llama-untied", W8A8, scratch.path(), "native").run(&output).unwrap();
    let (source, floats) = (open(&output), open(&model("llama-untied")));
    let distance = |a: &[f32], b: &[f32]| -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
    };
    let (exact, weights) = (block(&floats, true), block(&source, false));
    let both = block(&source, true);
    assert_ne!(both, weights);
    assert!(distance(&both, &exact) > distance(&weights, &exact), "more is lost");
    let share = distance(&both, &exact) / distance(&exact, &vec![0.0; exact.len()]);
    assert!(share < 0.05, "{share}");
}

/// What the second block is calibrated on has gone through the first with its inputs rounded.
#[test]
fn later_blocks_are_calibrated_on_what_they_will_get() {
    let scratch = scratch();
    let run = |activations: &str| {
        let step = format!("method: gptq, bits: 3, group_size: row, activations: {activations}");
        let output = scratch.path().join(activations);
        Setup::new("llama-untied", &step, scratch.path(), "native").run(&output).unwrap();
        open(&output)
    };
    let (rounded, plain) = (run("int8"), run("none"));
    let same = |block: usize| {
        let name = format!("model.layers.{block}.mlp.gate_proj.weight");
        rounded.weight(&name).unwrap() == plain.weight(&name).unwrap()
    };
    assert!(same(0), "the first block gets the same inputs");
    assert!(!same(1), "the second block does not");
}

#[test]
fn a_job_that_is_resumed_gives_the_same_bytes() {
    let scratch = scratch();
    let setup = Setup::new("llama-untied", W8A8, scratch.path(), "compressed-tensors");
    let (whole, resumed) = (scratch.path().join("whole"), scratch.path().join("resumed"));
    setup.run(&whole).unwrap();
    let stop = AtomicBool::new(false);
    let stopped = setup.run_with(&resumed, &stop, &StopAfter::new(&stop, 1));
    assert!(matches!(stopped, Err(EngineError::Interrupted { .. })));
    assert_eq!(setup.run_with(&resumed, &AtomicBool::new(false), &Silent).unwrap().resumed, 1);
    assert_eq!(files(&whole), files(&resumed));
}

#[test]
fn a_conversion_keeps_them_or_says_that_they_are_lost() {
    let scratch = scratch();
    let rounded = scratch.path().join("rounded");
    let mut setup = Setup::new("llama-untied", W8A8, scratch.path(), "compressed-tensors");
    setup.run(&rounded).unwrap();
    setup.model = rounded.clone();
    let keep = |format: &str| format!("steps: [{{method: keep}}]\nformat: {format}\n");
    let name = "model.layers.0.mlp.up_proj.weight";
    let (there, back) = (scratch.path().join("native"), scratch.path().join("back"));
    setup.recipe = keep("native");
    setup.strict = true;
    setup.run(&there).unwrap();
    assert_eq!(open(&there).input_rounding(name), Some(InputRounding::INT8));
    setup.model = there.clone();
    setup.recipe = keep("compressed-tensors");
    setup.run(&back).unwrap();
    assert_eq!(open(&back).weight(name).unwrap(), open(&rounded).weight(name).unwrap());
    assert_eq!(config(&back), config(&rounded));
    setup.recipe = keep("dense");
    let lost = setup.run(&scratch.path().join("dense")).unwrap_err();
    assert_eq!(lost.failure(), Failure::Refused);
    assert!(
        lost.to_string().contains("the inputs of 14 layers are rounded in the source"),
        "{lost}"
    );
    setup.strict = false;
    let manifest = setup.run(&scratch.path().join("dense")).unwrap().manifest;
    assert!(manifest.fallbacks().any(|(_, note)| note.what.contains("stay floats")));
    // Who encodes anew says how inputs are to be.
    setup.recipe = "steps: [{method: rtn, group_size: row}]\nformat: native\n".to_owned();
    setup.strict = true;
    let manifest = setup.run(&scratch.path().join("anew")).unwrap().manifest;
    assert!(manifest.notes.iter().any(|note| note.note.what.contains("stay floats")));
    assert_eq!(open(&scratch.path().join("anew")).input_rounding(name), None);
}

#[test]
fn what_cannot_be_is_refused_with_its_cure() {
    let scratch = scratch();
    let refused = |step: &str, format: &str| {
        let setup = Setup::new("llama-untied", step, scratch.path(), format);
        let error = setup.run(&scratch.path().join("out")).unwrap_err();
        assert_eq!(error.failure(), Failure::Refused, "{error}");
        error.to_string()
    };
    let step = "method: rtn, bits: 4, group_size: 8, activations: int8";
    let gptq = refused("method: rtn, bits: 4, group_size: 32, activations: int8", "gptq");
    assert!(gptq.contains("no place") && gptq.contains("--format compressed-tensors"), "{gptq}");
    let table = refused(&format!("{step}, targets: [Embedding]"), "native");
    assert!(table.contains("looked up") && table.contains("without activations"), "{table}");
    let groups = "method: fp8, activations: {type: float, strategy: group, group_size: 24}";
    let groups = refused(groups, "native");
    assert!(groups.contains("groups of 24 do not divide the 32 inputs"), "{groups}");
}
