//! What engines that load a result ask of it.

use crate::support::{Setup, real, scratch};
use lapidary_engine::plan::Limits;
use lapidary_engine::target::{Engine, Finding, Stored, Target};
use lapidary_formats::Source;
use lapidary_model::{Spec, spec};
use lapidary_weight::{
    FloatType, Grouping, InputNumbers, InputRounding, InputScales, Outline, SmallFloat,
    TermOutline, ZeroType,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

fn llama() -> Spec {
    spec(&json!({
        "model_type": "llama", "hidden_size": 512, "intermediate_size": 1536,
        "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "vocab_size": 640, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    }))
    .unwrap()
}

/// Every layer of the blocks with these bits and groups.
fn layers(spec: &Spec, bits: u8, group: usize, zeros: ZeroType) -> BTreeMap<String, Outline> {
    let grouping = Grouping::Columns(NonZeroUsize::new(group).unwrap());
    let term = TermOutline::Affine { bits, grouping, zeros, scales: FloatType::F16.into() };
    let linears = spec.blocks.iter().flat_map(|block| block.linears());
    let outline = |rows, cols| Outline { rows, cols, terms: vec![term.clone()] };
    linears.map(|l| (l.module.clone(), outline(l.out_features, l.in_features))).collect()
}

fn findings(
    engine: Engine,
    devices: usize,
    format: &str,
    spec: &Spec,
    layers: BTreeMap<String, Outline>,
) -> Vec<Finding> {
    let tensor_parallel = NonZeroUsize::new(devices).unwrap();
    Target { engine, tensor_parallel }.findings(&Stored {
        spec,
        format,
        layers,
        inputs: BTreeMap::new(),
        sparsity: None,
        floats: FloatType::F16,
    })
}

#[test]
fn a_scheme_that_every_kernel_has_passes() {
    let spec = llama();
    for (engine, format) in [
        (Engine::Vllm, "compressed-tensors"),
        (Engine::Vllm, "gptq"),
        (Engine::Transformers, "compressed-tensors"),
        (Engine::Transformers, "gptq"),
        (Engine::LlamaCpp, "gguf"),
    ] {
        for devices in [1, 2, 4] {
            let layers = layers(&spec, 4, 128, ZeroType::Middle);
            let found = findings(engine, devices, format, &spec, layers);
            assert_eq!(found, [], "{engine} {format} {devices}");
        }
    }
}

#[test]
fn each_rule_names_the_layer_and_the_cure() {
    let spec = llama();
    let vllm = |devices, format, layers| findings(Engine::Vllm, devices, format, &spec, layers);
    let symmetric = |bits, group| layers(&spec, bits, group, ZeroType::Middle);

    let native = vllm(1, "native", symmetric(4, 128));
    assert_eq!(native.len(), 1);
    assert!(native[0].is_refused && native[0].to_string().contains("--format with one of dense"));

    let three = vllm(1, "compressed-tensors", symmetric(3, 128));
    assert!(three.len() == 14 && three.iter().all(|f| !f.is_refused), "{three:?}");
    assert!(three[0].rule.contains("kernels for 4 and 8"), "{three:?}");
    let awq = vllm(1, "awq", symmetric(3, 128));
    assert!(awq.iter().all(|f| f.is_refused), "{awq:?}");

    let groups = vllm(1, "compressed-tensors", symmetric(4, 16));
    assert!(groups.len() == 14 && groups[0].is_refused, "{groups:?}");
    assert!(groups[0].to_string().contains("use --group-size"), "{groups:?}");

    let zeros = vllm(1, "gptq", layers(&spec, 4, 128, ZeroType::Codes));
    assert!(zeros.len() == 14 && !zeros[0].is_refused, "{zeros:?}");

    let mut mixed = symmetric(4, 128);
    let eight = symmetric(8, 128);
    let key = "model.layers.1.self_attn.k_proj";
    mixed.insert(key.to_owned(), eight[key].clone());
    let siblings = vllm(1, "compressed-tensors", mixed.clone());
    assert!(siblings.len() == 1 && siblings[0].is_refused, "{siblings:?}");
    assert_eq!(siblings[0].module, key);
    assert!(siblings[0].rule.contains("model.layers.1.self_attn.q_proj"), "{siblings:?}");
    let free = findings(Engine::Transformers, 1, "compressed-tensors", &spec, mixed.clone());
    assert_eq!(free, [], "transformers runs them apart");
    mixed.remove(key);
    assert_eq!(vllm(1, "compressed-tensors", mixed).len(), 1, "one of three left plain");
}

#[test]
fn layers_must_divide_over_the_devices() {
    let spec = llama();
    let found = |devices, group| {
        let layers = layers(&spec, 4, group, ZeroType::Middle);
        findings(Engine::Vllm, devices, "compressed-tensors", &spec, layers)
    };
    let heads = found(3, 32);
    assert!(heads[0].is_refused && heads[0].rule.contains("8 heads and 2 key heads"), "{heads:?}");
    // Over 8 devices o_proj has 64 columns each and down_proj 192.
    let groups = found(8, 128);
    let refused: Vec<&str> =
        groups.iter().filter(|f| f.is_refused).map(|f| f.module.as_str()).collect();
    let wanted = ["mlp.down_proj", "self_attn.o_proj"];
    let wanted = [0, 1].map(|layer| wanted.map(|name| format!("model.layers.{layer}.{name}")));
    assert_eq!(refused, wanted.concat());
    let tiles = groups.iter().filter(|f| !f.is_refused);
    assert!(tiles.clone().all(|f| f.rule.contains("Marlin")) && tiles.count() > 0);
}

#[test]
fn tables_are_plain_where_the_engine_wants_them_plain() {
    let spec = llama();
    let table = |outline: &Outline| Outline { rows: 640, cols: 512, ..outline.clone() };
    let mut layers = layers(&spec, 8, 32, ZeroType::Middle);
    let first = table(layers.values().next().unwrap());
    layers.insert("model.embed_tokens".to_owned(), first);
    let found = findings(Engine::Transformers, 1, "compressed-tensors", &spec, layers.clone());
    assert!(found.len() == 1 && found[0].is_refused, "{found:?}");
    assert!(found[0].to_string().contains("add model.embed_tokens to ignore"));
    assert_eq!(findings(Engine::LlamaCpp, 1, "gguf", &spec, layers), []);
}

/// Zeros are told of, and no reason to refuse.
#[test]
fn pruned_weights_load_and_gain_no_speed() {
    let (spec, tensor_parallel) = (llama(), NonZeroUsize::MIN);
    for (engine, why) in [(Engine::Vllm, "removed in 2026"), (Engine::Transformers, "no format")] {
        let target = Target { engine, tensor_parallel };
        let of = |sparsity| {
            let layers = BTreeMap::new();
            target.findings(&Stored {
                spec: &spec,
                format: "dense",
                layers,
                inputs: BTreeMap::new(),
                sparsity,
                floats: FloatType::F16,
            })
        };
        let [found] = &of(Some(0.5))[..] else { panic!("one warning") };
        assert!(!found.is_refused && found.rule.contains(why), "{found}");
        assert!(of(None).is_empty() && of(Some(0.0)).is_empty());
    }
}

#[test]
fn a_job_is_refused_before_it_begins() {
    let scratch = scratch();
    let step = "method: rtn, bits: 4, group_size: 16";
    let mut setup = Setup::new("llama-tied", step, scratch.path(), "compressed-tensors");
    let target = Target { engine: "vllm".parse().unwrap(), tensor_parallel: NonZeroUsize::MIN };
    setup.limits = Limits { target: Some(target), ..Limits::default() };
    let error = setup.run(&scratch.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("groups of 16, where vLLM takes 32, 64, 128"), "{error}");
    assert!(error.contains("more)") && !scratch.path().join("out").exists(), "{error}");
    assert!("vlm".parse::<Engine>().is_err());
}

#[test]
fn weights_with_small_scales_are_computed_in_bfloat16_by_transformers() {
    let count = |method: &str, floats: FloatType| {
        let scratch = scratch();
        let step = format!("method: {method}");
        let setup = Setup::new("bert-model", &step, scratch.path(), "compressed-tensors");
        let output = scratch.path().join("out");
        setup.run(&output).unwrap();
        let source = Source::open(real(), &output).unwrap();
        let spec = spec(source.config()).unwrap();
        let stored = Stored { floats, ..Stored::in_source(&source, &spec) };
        let target = Target { engine: Engine::Transformers, tensor_parallel: NonZeroUsize::MIN };
        let findings = target.findings(&stored);
        assert!(findings.iter().all(|found| found.cure.contains("bfloat16") && !found.is_refused));
        findings.len()
    };
    assert_eq!(count("mxfp8", FloatType::F16), 1);
    assert_eq!(count("nvfp4", FloatType::F32), 1);
    assert_eq!(count("mxfp8", FloatType::Bf16), 0);
    assert_eq!(count("fp8", FloatType::F16), 0);
}

/// A layer of these terms with these inputs, as vLLM sees it.
fn of_inputs(term: TermOutline, inputs: InputRounding) -> Vec<Finding> {
    let (spec, module) = (llama(), "model.layers.0.mlp.down_proj".to_owned());
    let outline = Outline { rows: 512, cols: 1536, terms: vec![term] };
    let one = NonZeroUsize::new(1).unwrap();
    Target { engine: Engine::Vllm, tensor_parallel: one }.findings(&Stored {
        spec: &spec,
        format: "compressed-tensors",
        layers: BTreeMap::from([(module.clone(), outline)]),
        inputs: BTreeMap::from([(module, inputs)]),
        sparsity: None,
        floats: FloatType::F16,
    })
}

#[test]
fn vllm_has_schemes_for_some_pairs_of_weights_and_inputs() {
    let columns = |width| Grouping::Columns(NonZeroUsize::new(width).unwrap());
    let int = |bits, grouping, zeros| TermOutline::Affine {
        bits,
        grouping,
        zeros,
        scales: FloatType::F16.into(),
    };
    let fp8 = |grouping| TermOutline::Lookup {
        bits: 8,
        grouping: Some(grouping),
        book_per_row: false,
        books: SmallFloat::E4M3.into(),
        scales: FloatType::F16.into(),
    };
    let (row, middle) = (Grouping::Row, ZeroType::Middle);
    let (int8, of_fp8) = (InputRounding::INT8, InputRounding::FP8);
    let side = NonZeroUsize::new(128).unwrap();
    let of_128 = InputRounding { scales: InputScales::Channels(side), ..of_fp8 };
    let blocks = Grouping::Blocks { rows: side, columns: side };
    for (term, inputs) in [(int(8, row, middle), int8), (fp8(row), of_fp8), (fp8(blocks), of_128)] {
        assert_eq!(of_inputs(term, inputs), []);
    }
    for (inputs, which) in [(int8, "Arm processors"), (of_fp8, "GPUs from Hopper on")] {
        let found = of_inputs(int(4, columns(128), middle), inputs);
        assert!(found.len() == 1 && !found[0].is_refused, "{found:?}");
        assert!(found[0].rule.contains(which), "{found:?}");
    }
    let int4 = InputRounding { numbers: InputNumbers::Integers(4), ..int8 };
    for (term, inputs) in [
        (int(8, columns(128), middle), int8),
        (int(8, row, ZeroType::Codes), int8),
        (int(8, row, middle), of_fp8),
        (int(4, row, middle), int4),
        (int(3, row, middle), int8),
        (fp8(row), int8),
        (fp8(row), of_128),
    ] {
        let found = of_inputs(term, inputs);
        assert!(found.len() == 1 && found[0].is_refused, "{found:?}");
        assert!(found[0].to_string().contains("use the recipe W8A8"), "{found:?}");
    }
}

/// Of one-byte integers vLLM loads those with rounded inputs.
#[test]
fn plans_for_vllm_are_told_of_the_inputs() {
    let scratch = scratch();
    let one = NonZeroUsize::new(1).unwrap();
    let target = Some(Target { engine: Engine::Vllm, tensor_parallel: one });
    let run = |activations: &str, format: &str| {
        let step = format!("method: rtn, bits: 8, group_size: row, activations: {activations}");
        let mut setup = Setup::new("llama-untied", &step, scratch.path(), format);
        setup.limits = Limits { target, ..Limits::default() };
        setup.run(&scratch.path().join(format!("{activations}-{format}")))
    };
    run("int8", "compressed-tensors").unwrap();
    run("int8", "int-quantized").unwrap();
    let refused = run("none", "int-quantized").unwrap_err().to_string();
    assert!(refused.contains("--activations int8"), "{refused}");
}
