//! Results for llama.cpp: one file that is read back as the same model, or a refusal by name.

mod importance;
mod refusals;

use crate::support::{Setup, dies_anywhere, entries, model, real, rows, scratch};
use lapidary_engine::recipe::presets;
use lapidary_engine::tokenizer;
use lapidary_formats::Source;
use lapidary_model::{Spec, spec};
use lapidary_store::gguf::{MetaValue, read_gguf};
use lapidary_weight::Tensors;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

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
fn a_disk_that_fails_anywhere_leaves_nothing_unfinished() {
    let models = scratch();
    let model = with_tokenizer("llama-tied", models.path());
    let job = |folder: &Path| {
        let step = "method: gptq, targets: [Linear], grid: q4_0";
        setup(model.clone(), step, folder)
    };
    dies_anywhere(job, 7, |_| u64::MAX);
}
