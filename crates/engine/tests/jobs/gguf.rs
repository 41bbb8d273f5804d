//! Results for llama.cpp: one file that is read back as the same model, or a refusal by name.

use crate::support::{Setup, dies_anywhere, entries, model, real, rows, scratch};
use lapidary_engine::importance::gather;
use lapidary_engine::recipe::{Calibration, presets};
use lapidary_engine::{EngineError, Failure, Silent, tokenizer};
use lapidary_formats::Source;
use lapidary_formats::gguf::{Importance, Inputs};
use lapidary_kernels::ggml::BlockKind;
use lapidary_model::{Spec, spec};
use lapidary_store::gguf::{MetaValue, read_gguf};
use lapidary_store::safetensors::Writer;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{FloatType, Tensors};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A model of `testdata/models` with a tokenizer of as many tokens as its table has rows.
fn with_tokenizer(name: &str, folder: &Path) -> PathBuf {
    let copy = folder.join(format!("model-{name}"));
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(model(name)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !file.contains("golden") && !file.contains("old") {
            std::fs::copy(&path, copy.join(file)).unwrap();
        }
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(copy.join("config.json")).unwrap()).unwrap();
    let rows = config["vocab_size"].as_u64().unwrap();
    let words = config["model_type"] == "bert";
    let token = |id: u64| match (words, id) {
        (true, 0..5) => ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"][id as usize].to_owned(),
        (true, _) if id.is_multiple_of(2) => {
            format!("##{}", char::from_u32(0x61 + id as u32).unwrap())
        }
        (false, 0..3) => format!("<|{id}|>"),
        _ => char::from_u32(0x21 + id as u32).unwrap().to_string(),
    };
    let vocab: Map<String, Value> = (0..rows).map(|id| (token(id), json!(id))).collect();
    let special = |id: u64| json!({ "id": id, "content": token(id), "special": true });
    let definition = match words {
        true => json!({
            "model": { "type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab,
                       "continuing_subword_prefix": "##", "max_input_chars_per_word": 100 },
            "added_tokens": (0..5).map(special).collect::<Vec<_>>(),
            "normalizer": { "type": "BertNormalizer", "lowercase": false, "strip_accents": null,
                            "clean_text": true, "handle_chinese_chars": true },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
        }),
        false => json!({
            "model": { "type": "BPE", "vocab": vocab, "merges": [] },
            "added_tokens": (0..3).map(special).collect::<Vec<_>>(),
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        }),
    };
    std::fs::write(copy.join("tokenizer.json"), definition.to_string()).unwrap();
    let named = match words {
        true => json!({ "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]",
                        "unk_token": "[UNK]", "mask_token": "[MASK]" }),
        false => json!({ "bos_token": "<|1|>", "eos_token": "<|2|>" }),
    };
    std::fs::write(copy.join("tokenizer_config.json"), named.to_string()).unwrap();
    copy
}

fn setup(model: PathBuf, step: &str, folder: &Path) -> Setup {
    Setup { model, ..Setup::new("llama-untied", step, folder, "gguf") }
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo")
}

fn open(path: &Path) -> Source {
    Source::open(real(), path).unwrap()
}

/// The model without the name of its family: a Mistral is a Llama in GGUF.
fn graphs(source: &Source) -> Spec {
    Spec { family: "", ..spec(source.config()).unwrap() }
}

/// `omse` on layers and tables, in 8-bit blocks.
const EIGHT: &str = "method: omse, targets: [Linear, Embedding], grid: q8_0";

#[test]
fn every_family_comes_back_as_it_was() {
    let names = [
        "llama-tied",
        "llama-untied",
        "llama-head-dim",
        "llama-biases",
        "llama-rope-llama3",
        "llama-rope-linear",
        "llama-theta",
        "llama-bf16",
        "llama-sharded",
        "mistral",
        "mistral-sliding",
        "mistral-head-dim-f16",
        "qwen2-tied",
        "qwen2-untied",
        "qwen3",
        "qwen3-yarn",
        "gemma2-published",
        "gemma3-published",
        "granite",
        "granite-biases",
        "olmo2",
        "phi3",
        "phi3-partial",
        "phi3-longrope",
        "smollm3",
        "starcoder2",
        "stablelm",
        "stablelm-parallel",
        "gpt2",
        "gpt2-blocks",
        "gpt-neox",
        "mixtral",
        "mixtral-window",
        "mixtral-together",
        "qwen3-moe-together",
        "qwen3-moe-blocks",
        "bert-model",
    ];
    for name in names {
        let scratch = scratch();
        let model = with_tokenizer(name, scratch.path());
        let output = scratch.path().join("out");
        let outcome = setup(model.clone(), EIGHT, scratch.path()).run(&output);
        let manifest = outcome.unwrap_or_else(|error| panic!("{name}: {error}")).manifest;
        assert_eq!(entries(&output), ["README.md", "lapidary.json", "model.gguf"]);
        let (before, after) = (open(&model), open(&output));
        assert_eq!(graphs(&before), graphs(&after), "{name}");
        assert_eq!(open(&output.join("model.gguf")).config(), after.config(), "{name}");
        for (tensor, _) in spec(before.config()).unwrap().tensors() {
            let (had, has) = (before.read(&tensor).unwrap(), after.read(&tensor).unwrap());
            let energy: f32 = had.iter().map(|v| v * v).sum();
            let error: f32 = had.iter().zip(&has).map(|(a, b)| (a - b).powi(2)).sum();
            let is_encoded = manifest.tensors.compressed.contains(&tensor);
            // Gemma's gains are written with one added, which takes a bit of those near none.
            let is_raised = name.starts_with("gemma") && tensor.ends_with("norm.weight");
            let most = match (is_encoded, is_raised) {
                (true, _) => 1e-4 * energy,
                (_, true) => 1e-13 * energy,
                _ => 0.0,
            };
            assert!(error <= most, "{name}: {tensor}: {error} of {energy}");
        }
    }
}

/// A model of one block of zeros, with a tokenizer of `testdata/golden/gguf/tokenizers`.
fn with_golden_tokenizer(definition: &Value, folder: &Path) -> PathBuf {
    const WIDTH: usize = 32;
    let ids = definition["model"]["vocab"].as_object().unwrap().values();
    let added = definition["added_tokens"].as_array().unwrap().iter().map(|token| &token["id"]);
    let rows = ids.chain(added).filter_map(Value::as_u64).max().unwrap() as usize + 1;
    let config = json!({
        "model_type": "llama", "vocab_size": rows, "hidden_size": WIDTH, "intermediate_size": WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    let copy = folder.join("golden-tokenizer");
    std::fs::create_dir(&copy).unwrap();
    let (mut header, mut length) = (Map::new(), 0);
    for (name, shape) in spec(&config).unwrap().tensors() {
        let end = length + 2 * shape.iter().product::<usize>();
        let place = json!({ "dtype": "F16", "shape": shape, "data_offsets": [length, end] });
        header.insert(name, place);
        length = end;
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + length, 0);
    std::fs::write(copy.join("model.safetensors"), bytes).unwrap();
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
    std::fs::write(copy.join("tokenizer.json"), definition.to_string()).unwrap();
    let named = json!({ "bos_token": "<s>", "eos_token": "</s>" });
    std::fs::write(copy.join("tokenizer_config.json"), named.to_string()).unwrap();
    copy
}

#[test]
fn tokenizers_of_every_kind_give_the_same_tokens_out_of_a_gguf() {
    let folder = model("").join("../golden/gguf/tokenizers");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
    };
    let (texts, golden) = (read("texts.json"), read("golden.json"));
    let convert = |definition: &Value| {
        let scratch = scratch();
        let (copy, output) =
            (with_golden_tokenizer(definition, scratch.path()), scratch.path().join("out"));
        let outcome = setup(copy, "method: keep, targets: ['re:.*']", scratch.path()).run(&output);
        let notes = outcome.map_err(|error| error.to_string())?.manifest;
        let fallbacks: Vec<String> = notes.fallbacks().map(|(_, note)| note.what.clone()).collect();
        Ok::<_, String>((tokenizer(&open(&output)).unwrap(), fallbacks))
    };
    for (name, wanted) in golden.as_object().unwrap() {
        let (found, fallbacks) = convert(&read(&format!("{name}.json"))).unwrap();
        assert_eq!(fallbacks, Vec::<String>::new(), "{name}");
        for (text, wanted) in texts.as_array().unwrap().iter().zip(wanted.as_array().unwrap()) {
            let ids = found.encode(text.as_str().unwrap(), false).unwrap();
            assert_eq!(json!(ids), *wanted, "{name}: {text}");
        }
    }
    // What llama.cpp does otherwise is a fallback, what it cannot do is refused.
    let other = |change: &dyn Fn(&mut Value)| {
        let mut definition = read("llama.json");
        change(&mut definition);
        convert(&definition)
    };
    let says = |change: &dyn Fn(&mut Value), what: &str| {
        let (_, fallbacks) = other(change).unwrap();
        assert!(fallbacks.len() == 1 && fallbacks[0].contains(what), "{what}: {fallbacks:?}");
    };
    let metaspace = |scheme: &str, split: bool| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
    says(
        &|d| (d["normalizer"], d["pre_tokenizer"]) = (Value::Null, metaspace("first", false)),
        "special",
    );
    says(
        &|d| (d["normalizer"], d["pre_tokenizer"]) = (Value::Null, metaspace("always", false)),
        "space",
    );
    says(&|d| d["model"]["byte_fallback"] = json!(false), "no byte fallback");
    says(&|d| d["added_tokens"][3]["lstrip"] = json!(true), "1 added tokens");
    says(&|d| d["added_tokens"][3]["rstrip"] = json!(true), "1 added tokens");
    says(&|d| _ = d["model"]["merges"].as_array_mut().unwrap().pop(), "does not join");
    let refused = |change: &dyn Fn(&mut Value), what: &str| {
        let error = other(change).err().unwrap_or_default();
        assert!(error.contains(what), "{what}: {error}");
    };
    refused(
        &|d| (d["normalizer"], d["pre_tokenizer"]) = (Value::Null, metaspace("never", true)),
        "words",
    );
    refused(&|d| d["normalizer"] = Value::Null, "not spelled");
}

/// What is written as a GGUF and as a folder again is the folder that it was, tensor by tensor.
#[test]
fn a_folder_of_a_gguf_is_the_folder_it_was_made_from() {
    const KEEP: &str = "method: keep, targets: ['re:.*']";
    for name in ["llama-biases", "phi3", "gpt2", "gpt-neox", "mixtral-together", "qwen3-moe-blocks"]
    {
        let scratch = scratch();
        let (file, folder) = (scratch.path().join("file"), scratch.path().join("folder"));
        let model = with_tokenizer(name, scratch.path());
        setup(model.clone(), KEEP, scratch.path()).run(&file).unwrap();
        let mut dense = setup(file.join("model.gguf"), KEEP, scratch.path());
        dense.recipe = dense.recipe.replace("format: gguf", "format: dense");
        dense.run(&folder).unwrap();
        let (before, after) = (open(&model), open(&folder));
        assert_eq!(graphs(&before), graphs(&after), "{name}");
        assert_eq!(before.tensors().len(), after.tensors().len(), "{name}");
        for tensor in before.tensors() {
            let found = after.get(&tensor.name).unwrap();
            assert_eq!(found.raw_shape(), tensor.raw_shape(), "{name}: {}", tensor.name);
            let values = |source: &Source| source.read(&tensor.name).unwrap();
            assert_eq!(values(&before), values(&after), "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn every_preset_for_llama_cpp_runs_and_reads_the_same_tokens() {
    let presets = presets().into_iter().filter(|preset| preset.name.starts_with(['Q', 'I']));
    let text = std::fs::read_to_string(demo().join("evaluation.txt")).unwrap();
    let text: String = text.chars().take(5000).collect();
    let wanted = tokenizer(&open(&demo())).unwrap().encode(&text, true).unwrap();
    for preset in presets {
        let scratch = scratch();
        let mut recipe = preset.recipe().unwrap().to_json();
        recipe["calibration"]["samples"] = 4.into();
        recipe["calibration"]["seq_len"] = 64.into();
        recipe["calibration"]["text"] = "builtin".into();
        let mut setup = setup(demo(), EIGHT, scratch.path());
        setup.recipe = recipe.to_string();
        let output = scratch.path().join("out");
        let manifest = setup.run(&output).unwrap().manifest;
        let bits = f64::from(preset.name.trim_start_matches('I').as_bytes()[1] - b'0');
        let stored = manifest.bits_per_weight.unwrap();
        assert!(stored > bits && stored < bits + 3.0, "{}: {stored}", preset.name);
        // The demo's rows are no multiples of 256: what takes the place of such blocks is planned.
        let instead = manifest.notes.iter().any(|note| note.note.what.contains("do not divide"));
        assert_eq!(instead, !preset.name.ends_with("_0"), "{}", preset.name);
        let result = open(&output);
        assert_eq!(tokenizer(&result).unwrap().encode(&text, true).unwrap(), wanted);
        let notes = manifest.notes.iter().map(|note| note.note.what.as_str());
        let named = notes.filter(|what| what.contains("llama.cpp calls \"gpt-2\"")).count();
        assert_eq!(named, 1, "which rules were chosen is said");
    }
}

#[test]
fn every_mixture_goes_to_every_family() {
    let presets = presets().into_iter().filter(|preset| preset.name.starts_with(['Q', 'I']));
    let mixtures: Vec<Value> = presets.map(|preset| preset.recipe().unwrap().to_json()).collect();
    let names = [
        "gpt2-blocks",
        "gpt-neox",
        "mixtral",
        "qwen3-moe-blocks",
        "phi3",
        "starcoder2",
        "bert-model",
    ];
    for name in names {
        let scratch = scratch();
        let model = with_tokenizer(name, scratch.path());
        for (index, recipe) in mixtures.iter().enumerate() {
            let mut setup = setup(model.clone(), EIGHT, scratch.path());
            let mut recipe = recipe.clone();
            if recipe.get("calibration").is_some_and(|calibration| !calibration.is_null()) {
                recipe["calibration"] =
                    json!({ "text": rows(scratch.path()), "samples": 4, "seq_len": 16 });
            }
            setup.recipe = recipe.to_string();
            let output = scratch.path().join(format!("out-{index}"));
            let outcome = setup.run(&output);
            outcome.unwrap_or_else(|error| panic!("{name}, {recipe}: {error}"));
            let (before, after) = (open(&model), open(&output));
            assert_eq!(graphs(&before), graphs(&after), "{name}");
        }
    }
}

#[test]
fn files_of_a_size_are_the_same_model_as_one() {
    let scratch = scratch();
    let model = with_tokenizer("llama-rope-llama3", scratch.path());
    let (whole, split) = (scratch.path().join("whole"), scratch.path().join("split"));
    setup(model.clone(), EIGHT, scratch.path()).run(&whole).unwrap();
    let shard_bytes = 6_000;
    Setup { shard_bytes, ..setup(model, EIGHT, scratch.path()) }.run(&split).unwrap();
    let files: Vec<String> =
        entries(&split).into_iter().filter(|name| name.ends_with(".gguf")).collect();
    let count = files.len();
    assert!(count > 1, "{files:?}");
    for (number, name) in files.iter().enumerate() {
        assert_eq!(*name, format!("model-{:05}-of-{count:05}.gguf", number + 1));
        let gguf = read_gguf(&*real().open(&split.join(name)).unwrap()).unwrap();
        assert_eq!(gguf.metadata.u64("split.no"), Some(number as u64));
        assert_eq!(gguf.metadata.u64("split.count"), Some(count as u64));
        assert_eq!(gguf.metadata.get("general.architecture").is_some(), number == 0);
        let data: u64 = gguf.tensors.iter().map(|tensor| tensor.span.len()).sum();
        assert!(data <= shard_bytes || gguf.tensors.len() == 1, "{name}: {data}");
    }
    let (one, several) = (open(&whole), open(&split.join(&files[0])));
    assert_eq!(graphs(&one), graphs(&several));
    for (tensor, _) in spec(one.config()).unwrap().tensors() {
        assert_eq!(one.read(&tensor).unwrap(), several.read(&tensor).unwrap(), "{tensor}");
    }
    std::fs::remove_file(split.join(&files[1])).unwrap();
    let error = Source::open(real(), &split).unwrap_err().to_string();
    assert!(error.contains(&files[1]), "{error}");
}

#[test]
fn an_importance_matrix_stands_in_for_calibration() {
    let scratch = scratch();
    let source = open(&demo());
    let calibration = Calibration { samples: 4, seq_len: 64, ..Calibration::default() };
    let (stop, path) = (AtomicBool::new(false), scratch.path().join("demo.imatrix.gguf"));
    let found = gather(&real(), &source, &calibration, 0, &stop, &Silent).unwrap();
    found.write(&real(), &path, source.config()).unwrap();
    assert_eq!(Importance::read(&*real(), &path, source.config()).unwrap(), found);
    // The sums are the diagonals of what calibration gathers, which llama.cpp's own names tell.
    let gguf = read_gguf(&*real().open(&path).unwrap()).unwrap();
    assert!(gguf.tensors.iter().any(|tensor| tensor.name == "blk.0.ffn_down.weight.in_sum2"));
    assert!(found.layers.values().all(|inputs| inputs.tokens == 256.0));

    let with = |step: &str, path: &Path| {
        let mut setup = setup(demo(), step, scratch.path());
        setup.recipe = json!({
            "steps": [{ "method": "omse", "grid": "q4_0", "weighted": true }],
            "calibration": { "imatrix": path }, "format": "gguf",
        })
        .to_string();
        if step == "gptq" {
            setup.recipe = setup.recipe.replace("omse", "gptq").replace(r#","weighted":true"#, "");
        }
        setup
    };
    let manifest = with(EIGHT, &path).run(&scratch.path().join("out")).unwrap().manifest;
    // Weighted by the inputs, the outputs lose less than with every column alike.
    let alike = setup(demo(), "method: omse, grid: q4_0", scratch.path());
    let loss = |name: &str| found.layers[name].squares.clone();
    let error = |folder: &Path| -> f64 {
        let (before, after) = (open(&demo()), open(folder));
        let layers = manifest.tensors.compressed.iter();
        let of_layer = |name: &String| {
            let (weight, other) = (before.read(name).unwrap(), after.read(name).unwrap());
            let squares = loss(name);
            let columns = squares.iter().cycle();
            let terms = weight.iter().zip(&other).zip(columns);
            terms.map(|((a, b), c)| f64::from((a - b).powi(2) * c)).sum::<f64>()
        };
        layers.map(of_layer).sum()
    };
    alike.run(&scratch.path().join("alike")).unwrap();
    let (weighted, plain) =
        (error(&scratch.path().join("out")), error(&scratch.path().join("alike")));
    assert!(weighted < 0.97 * plain, "{weighted} {plain}");

    let refused = |setup: Setup, words: &str| {
        let error = setup.run(&scratch.path().join("refused")).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(with("gptq", &path), "needs the whole Gram matrix");
    let mut narrow = found.clone();
    let (name, inputs) = narrow.layers.iter_mut().next().unwrap();
    let module = name.strip_suffix(".weight").unwrap().to_owned();
    inputs.squares.pop();
    let other = scratch.path().join("narrow.gguf");
    narrow.write(&real(), &other, source.config()).unwrap();
    refused(with(EIGHT, &other), &format!("columns for {module}"));
    narrow.layers.pop_first();
    narrow.write(&real(), &other, source.config()).unwrap();
    refused(with(EIGHT, &other), &format!("nothing of the inputs of {module}"));
}

/// A Mixtral of three experts whose rows blocks divide, its weights random.
fn wide_mixtral(folder: &Path) -> PathBuf {
    let copy = with_tokenizer("mixtral", folder);
    let path = copy.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, size) in [("hidden_size", 32), ("intermediate_size", 64), ("num_local_experts", 3)] {
        config[key] = json!(size);
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let tensors: Vec<(String, Vec<usize>)> = spec(&config).unwrap().tensors();
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|(name, shape)| TensorSpec::new(name, Dtype::F32, &shape[..])).collect();
    let mut writer =
        Writer::create(&real(), &copy.join("model.safetensors"), &specs, &BTreeMap::new()).unwrap();
    let mut state = 1_u32;
    for name in writer.order().map(str::to_owned).collect::<Vec<_>>() {
        let (_, shape) = tensors.iter().find(|(known, _)| *known == name).unwrap();
        let values = (0..shape.iter().product()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        });
        writer.append(&name, &FloatType::F32.encode(&values.collect::<Vec<_>>())).unwrap();
    }
    writer.finish().unwrap();
    copy
}

#[test]
fn experts_stand_together_in_blocks_and_in_importance_matrices() {
    let scratch = scratch();
    let model = wide_mixtral(scratch.path());
    let output = scratch.path().join("out");
    setup(model.clone(), "method: rtn, grid: q4_0", scratch.path()).run(&output).unwrap();
    let gguf = read_gguf(&*real().open(&output.join("model.gguf")).unwrap()).unwrap();
    let shape = |name: &str| &gguf.tensors.iter().find(|t| t.name == name).unwrap().shape;
    assert_eq!(*shape("blk.1.ffn_gate_exps.weight"), [3, 64, 32]);
    assert_eq!(*shape("blk.1.ffn_down_exps.weight"), [3, 32, 64]);
    let (before, after) = (open(&model), open(&output));
    for expert in 0..3 {
        for (part, size) in [("w1", (64, 32)), ("w3", (64, 32)), ("w2", (32, 64))] {
            let name = format!("model.layers.1.block_sparse_moe.experts.{expert}.{part}.weight");
            let blocks = after.blocks(&name).unwrap().unwrap();
            assert_eq!((blocks.kind, blocks.rows, blocks.cols), (BlockKind::Q4_0, size.0, size.1));
            let (had, has) = (before.read(&name).unwrap(), after.read(&name).unwrap());
            let furthest = had.iter().zip(&has).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest <= 1.01 / 8.0, "{name}: {furthest}");
        }
    }
    // And from there into another file.
    let again = scratch.path().join("again");
    setup(output, "method: keep", scratch.path()).run(&again).unwrap();
    let name = "model.layers.0.block_sparse_moe.experts.2.w2.weight";
    assert_eq!(open(&again).blocks(name).unwrap(), after.blocks(name).unwrap());

    let text = rows(scratch.path()).display().to_string();
    let calibration = Calibration { text, samples: 2, seq_len: 16, ..Calibration::default() };
    let (stop, path) = (AtomicBool::new(false), scratch.path().join("mixtral.imatrix.gguf"));
    let found = gather(&real(), &before, &calibration, 0, &stop, &Silent).unwrap();
    found.write(&real(), &path, before.config()).unwrap();
    let read = Importance::read(&*real(), &path, before.config()).unwrap();
    assert_eq!(read, found);
    let tokens = |expert: usize| {
        read.layers[&format!("model.layers.0.block_sparse_moe.experts.{expert}.w1.weight")].tokens
    };
    assert_eq!((0..3).map(tokens).sum::<f32>(), 2.0 * 32.0);
}

#[test]
fn experts_of_a_layer_have_one_type() {
    let scratch = scratch();
    let model = wide_mixtral(scratch.path());
    let step = "method: rtn, grid: q4_0, targets: ['re:.*experts\\.1\\.w2']";
    let error = setup(model, step, scratch.path()).run(&scratch.path().join("out")).unwrap_err();
    assert_eq!(error.failure(), Failure::Refused, "{error}");
    assert!(error.to_string().contains("must be alike"), "{error}");
}

#[test]
fn an_importance_matrix_of_experts_stands_in_one_tensor() {
    let (scratch, source) = (scratch(), open(&model("qwen3-moe-blocks")));
    let mut found = Importance { rows: 1, row_tokens: 8, ..Importance::default() };
    for (number, linear) in spec(source.config()).unwrap().linears().enumerate() {
        if linear.module.contains("experts") || linear.module.contains("o_proj") {
            let squares = (0..linear.in_features).map(|column| (number * column) as f32).collect();
            let inputs = Inputs { squares, tokens: number as f32 };
            found.layers.insert(linear.weight.clone(), inputs);
        }
    }
    let path = scratch.path().join("experts.imatrix.gguf");
    found.write(&real(), &path, source.config()).unwrap();
    assert_eq!(Importance::read(&*real(), &path, source.config()).unwrap(), found);
    let gguf = read_gguf(&*real().open(&path).unwrap()).unwrap();
    let shape =
        |name: &str| gguf.tensors.iter().find(|tensor| tensor.name == name).unwrap().shape.clone();
    assert_eq!(shape("blk.1.ffn_down_exps.weight.in_sum2"), [3, 32]);
    assert_eq!(shape("blk.1.ffn_down_exps.weight.counts"), [3, 1]);
    // The older form has all experts' columns in one entry.
    let mut old = 1_i32.to_le_bytes().to_vec();
    let name = b"blk.1.ffn_down_exps.weight";
    old.extend((name.len() as i32).to_le_bytes());
    old.extend(name);
    old.extend([3_i32, 96].iter().flat_map(|number| number.to_le_bytes()));
    old.extend((0..96).flat_map(|column| (column as f32).to_le_bytes()));
    std::fs::write(&path, old).unwrap();
    let read = Importance::read(&*real(), &path, source.config()).unwrap();
    let last = &read.layers["model.layers.1.mlp.experts.2.down_proj.weight"];
    assert_eq!((read.layers.len(), last.tokens), (3, 3.0));
    assert_eq!(last.squares, (64..96).map(|column| column as f32).collect::<Vec<_>>());
    // An expert that is missing would give its place to the next.
    let gap = found.layers.keys().find(|name| name.contains("experts.0.")).cloned();
    found.layers.remove(&gap.unwrap());
    assert!(found.write(&real(), &path, source.config()).is_err());
}

#[test]
fn an_importance_matrix_of_the_older_form_is_read() {
    let scratch = scratch();
    let source = open(&demo());
    let mut bytes = 1_i32.to_le_bytes().to_vec();
    let name = b"blk.0.attn_q.weight";
    bytes.extend((name.len() as i32).to_le_bytes());
    bytes.extend(name);
    bytes.extend([3_i32, 2].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([1.5_f32, 6.0].iter().flat_map(|value| value.to_le_bytes()));
    let path = scratch.path().join("old.dat");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Importance::read(&*real(), &path, source.config())
    };
    let found = read(&bytes).unwrap();
    let inputs = &found.layers["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!((inputs.squares.clone(), inputs.tokens), (vec![1.5, 6.0], 3.0));
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length}");
    }
    assert!(read(&[0xff; 40]).is_err() && read(b"GGUFGGUFGGUF").is_err());
}

#[test]
fn a_gguf_from_a_gguf_keeps_its_metadata() {
    let scratch = scratch();
    let model = with_tokenizer("llama-rope-llama3", scratch.path());
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    setup(model, EIGHT, scratch.path()).run(&first).unwrap();
    // The layers again; the table stays in its blocks.
    let again = "method: omse, targets: [Linear], grid: q5_1";
    setup(first.join("model.gguf"), again, scratch.path()).run(&second).unwrap();
    let metadata = |folder: &Path| {
        let file = real().open(&folder.join("model.gguf")).unwrap();
        read_gguf(&*file).unwrap()
    };
    let (before, mut after) = (metadata(&first), metadata(&second));
    assert_ne!(before.metadata.get("general.file_type"), after.metadata.get("general.file_type"));
    let number = before.metadata.u64("general.file_type").unwrap() as u32;
    after.metadata.set("general.file_type", MetaValue::U32(number));
    assert_eq!(before.metadata, after.metadata);
    let table = |gguf: &lapidary_store::gguf::Gguf| {
        gguf.tensors.iter().find(|tensor| tensor.name == "token_embd.weight").unwrap().dtype
    };
    assert_eq!(table(&before), table(&after));
}

/// A cut model is written from a folder and from a GGUF, with the sizes that are left; what follows the
/// cut and what is only cut.
#[test]
fn a_cut_model_has_a_gguf() {
    let scratch = scratch();
    let cut = "method: layers, blocks: 0}, {method: minitron, neurons: 0.5, multiple: 32";
    let model = with_tokenizer("llama-rope-llama3", scratch.path());
    let place = |name: &str| scratch.path().join(name);
    setup(model.clone(), EIGHT, scratch.path()).run(&place("whole")).unwrap();
    let steps = format!("{cut}}}, {{{EIGHT}");
    setup(model, &steps, scratch.path()).run(&place("of-a-folder")).unwrap();
    let whole = place("whole").join("model.gguf");
    setup(whole.clone(), &steps, scratch.path()).run(&place("of-a-file")).unwrap();
    setup(whole.clone(), cut, scratch.path()).run(&place("only-cut")).unwrap();
    let before = graphs(&open(&whole));
    for name in ["of-a-folder", "of-a-file", "only-cut"] {
        let after = open(&place(name).join("model.gguf"));
        let read = graphs(&after);
        assert_eq!(read.blocks.len() + 1, before.blocks.len(), "{name}");
        let width = |spec: &Spec| spec.blocks[0].linears().last().unwrap().in_features;
        assert_eq!((width(&before), width(&read)), (56, 32), "{name}");
        for (tensor, shape) in read.tensors() {
            assert_eq!(after.shape(&tensor), Some(shape), "{name}: {tensor}");
        }
    }
}

#[test]
fn a_model_without_a_place_is_refused_by_name() {
    let refused = |name: &str, why: &str| {
        let scratch = scratch();
        let model = with_tokenizer(name, scratch.path());
        let output = scratch.path().join("out");
        let error = setup(model, EIGHT, scratch.path()).run(&output).unwrap_err();
        assert_eq!(error.failure(), Failure::Refused, "{name}: {error}");
        assert!(error.to_string().contains(why), "{name}: {error}");
        assert!(!output.exists());
    };
    refused("llama-gelu", "hidden_act");
    refused("qwen2-sliding", "use_sliding_window");
    refused("qwen3-biases", "attention_bias");
    refused("gemma2", "query_pre_attn_scalar");
    refused("gemma3", "query_pre_attn_scalar");
    refused("olmo2-biases", "attention_bias");
    refused("smollm3-window", "attention_bias");
    refused("qwen3-moe", "norm_topk_prob");
    refused("qwen3-moe-mixed", "experts in every layer");
    refused("gpt2-inner", "activation_function");
    refused("gpt-neox-sequential", "attention_bias");
    refused("opt", "llama.cpp has no loader for OPT");
    refused("bert-masked-lm", "architectures");
    refused("bert-relu", "hidden_act");
}

/// Changes a model's `config.json`.
fn configure(model: &Path, change: impl FnOnce(&mut Value)) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn factors_that_single_precision_rounds_are_the_same_model() {
    // The usual factor of attention is √1.5; what is near it is not it.
    for (attention, wanted) in [
        (1.2345678912345, json!(1.2345679)),
        (1.22476, json!(1.22476)),
        (1.5_f64.sqrt(), json!(null)),
    ] {
        let scratch = scratch();
        let model = with_tokenizer("phi3-longrope", scratch.path());
        configure(&model, |config| {
            let scaling = &mut config["rope_parameters"];
            scaling["long_factor"] = json!([1.0800000429153442, 1.1, 2.7, 3.3000000000000003]);
            scaling["attention_factor"] = json!(attention);
        });
        let output = scratch.path().join("out");
        setup(model, EIGHT, scratch.path()).run(&output).unwrap();
        let config = open(&output).config().clone();
        assert_eq!(config["rope_scaling"]["long_factor"], json!([1.08, 1.1, 2.7, 3.3]));
        assert_eq!(config["rope_scaling"]["attention_factor"], wanted);
    }
}

#[test]
fn stretched_positions_are_refused_where_llama_cpp_computes_others() {
    let refused = |name: &str, changes: Value, why: &str| {
        let scratch = scratch();
        let model = with_tokenizer(name, scratch.path());
        configure(&model, |config| {
            for (key, value) in changes.as_object().unwrap() {
                config["rope_parameters"][key] = value.clone();
            }
        });
        let output = scratch.path().join("out");
        let error = setup(model, EIGHT, scratch.path()).run(&output).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
    };
    refused("llama-rope-yarn", json!({}), "beta_fast");
    refused("qwen3-yarn", json!({"truncate": false}), "truncate");
    refused("qwen3-yarn", json!({"rope_type": "dynamic"}), "rope_type");
    let llama3 = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    refused("granite", llama3, "for llama only");
    refused("phi3-longrope", json!({"long_factor": [1.0, 1.0]}), "divisors for 4 pairs");
}

#[test]
fn windows_of_a_mixture_are_refused() {
    let scratch = scratch();
    let model = with_tokenizer("qwen3-moe-blocks", scratch.path());
    configure(&model, |config| {
        config["use_sliding_window"] = json!(true);
        config["sliding_window"] = json!(8);
    });
    let error = setup(model, EIGHT, scratch.path()).run(&scratch.path().join("out")).unwrap_err();
    assert!(error.to_string().contains("use_sliding_window"), "{error}");
}

#[test]
fn a_window_that_llama_cpp_has_not_is_a_fallback() {
    let scratch = scratch();
    let model = with_tokenizer("mistral-sliding", scratch.path());
    let mut setup = setup(model, "method: omse, grid: q8_0, targets: [q_proj]", scratch.path());
    let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
    assert!(manifest.fallbacks().any(|(_, note)| note.what.contains("beyond 7 tokens")));
    setup.strict = true;
    let error = setup.run(&scratch.path().join("strict")).unwrap_err();
    assert!(error.to_string().contains("sliding window"), "{error}");
}

#[test]
fn a_folder_or_a_name_that_does_not_do_is_refused() {
    let scratch = scratch();
    let run = |model: PathBuf, output: &str| -> EngineError {
        setup(model, EIGHT, scratch.path()).run(&scratch.path().join(output)).unwrap_err()
    };
    let error = run(model("llama-tied"), "out").to_string();
    assert!(error.contains("tokenizer.json: is missing"), "{error}");
    let model = with_tokenizer("llama-tied", scratch.path());
    let error = run(model.clone(), "out.gguf").to_string();
    assert!(error.contains("out/model.gguf"), "{error}");
    let tokenizer = model.join("tokenizer.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    changed["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": "x+" }, "behavior": "Isolated" },
        { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false }
    ] });
    std::fs::write(&tokenizer, changed.to_string()).unwrap();
    let error = run(model.clone(), "out").to_string();
    assert!(error.contains("rules of splitting text"), "{error}");
    changed["model"]["vocab"]["too far"] = json!(1_000_000);
    std::fs::write(&tokenizer, changed.to_string()).unwrap();
    let error = run(model, "out").to_string();
    assert!(error.contains("the embedding table has"), "{error}");
}

#[test]
fn a_disk_that_fails_anywhere_leaves_nothing_unfinished() {
    let models = scratch();
    let model = with_tokenizer("llama-tied", models.path());
    let job = |folder: &Path| {
        let step = "method: gptq, targets: [Linear], grid: q4_0";
        setup(model.clone(), step, folder)
    };
    dies_anywhere(job, 7, |_| u64::MAX);
}
