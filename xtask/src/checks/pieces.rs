//! SentencePiece tokenizers written into a GGUF give the same ids in llama.cpp as `tokenizer.json` does.
//!
//! `LAPIDARY_PYTHON` names a Python with llama-cpp-python, else it is `python3`.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;
use lapidary_store::safetensors::Writer;
use lapidary_store::{Dtype, Fs, RealFs, TensorSpec};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

pub(crate) const CHECK: Check = Check {
    name: "pieces",
    summary: "SentencePiece tokenizers written for llama.cpp: its ids are those of tokenizer.json",
    models: &[],
    run,
};

/// Spaces at all places, letters without a piece, bytes, special tokens, runs of everything.
const TEXTS: [&str; 16] = [
    "the",
    "The ship was in the offing; there's 1,234.56 of it.",
    "the  other    thing ",
    "in\nthe\n\n street\t and\r\nhome",
    "naïve café — 東京 🙂‍↕️ ﷽",
    "\u{7f}é\u{1}",
    "<0x41> is a byte",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "and</s>then<s> more",
    "<s>and",
    "for (int i = 0; i < n; ++i) {\n        sum += a[i];\n}",
    "Zażółć gęślą jaźń",
    "한국어 текст עברית",
    "x",
    " the",
    "   in",
];
/// So many of them at the end begin with a space.
const SPACED: usize = 2;

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let both = json!({ "type": "Sequence", "normalizers": [prepend, replace] });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁",
                            "prepend_scheme": "first", "split": false });
    let split = json!({ "type": "Split", "pattern": { "String": " " },
                        "behavior": "MergedWithPrevious", "invert": false });
    let all = TEXTS.len();
    // After a special token llama.cpp adds the space again; a space that is there it doubles.
    let first = |text: &&str| !text.contains("<s>") && !text.contains("</s>");
    let words: Vec<&str> = TEXTS[..all - SPACED].iter().copied().filter(first).collect();
    let kinds = [
        ("a space before every text (Llama 2)", both, Value::Null, TEXTS.to_vec()),
        ("a space before words (Llama 2, saved later)", Value::Null, metaspace, words),
        ("no space (Gemma)", replace, split, TEXTS.to_vec()),
    ];
    for (index, (name, normalizer, pre_tokenizer, texts)) in kinds.into_iter().enumerate() {
        let folder = context.scratch(&format!("pieces-{index}"));
        model(context, &folder, normalizer, pre_tokenizer)?;
        let result = context.scratch(&format!("pieces-{index}-gguf"));
        let mut convert = context.lapidary("convert");
        json(convert.arg(&folder).args(["--to", "gguf", "--output"]).arg(&result))?;
        let ours = ids(context, &folder, &texts)?;
        let again = ids(context, &result, &texts)?;
        let theirs = llama_cpp(context, &result.join("model.gguf"), &texts)?;
        let differ =
            (0..texts.len()).find(|at| ours[*at] != theirs[*at] || ours[*at] != again[*at]);
        let count: usize = ours.iter().map(Vec::len).sum();
        let figures = match differ {
            None => format!("{count} ids of {} texts", texts.len()),
            Some(at) => format!("{:?}: {:?}, {:?} there", texts[at], ours[at], theirs[at]),
        };
        report.line(differ.is_none(), name, &figures);
    }
    Ok(())
}

/// A tiny Llama with the tokenizer of `testdata/tokenizers`, all of its weights zero.
fn model(
    context: &Context,
    folder: &Path,
    normalizer: Value,
    pre_tokenizer: Value,
) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::at(folder))?;
    let mut tokenizer = read(&context.root().join("testdata/tokenizers/pieces.json"))?;
    tokenizer["normalizer"] = normalizer;
    tokenizer["pre_tokenizer"] = pre_tokenizer;
    let rows = tokenizer["model"]["vocab"].as_object().map_or(0, serde_json::Map::len);
    let mut config = read(&context.root().join("testdata/models/llama-untied/config.json"))?;
    config["vocab_size"] = json!(rows);
    let named = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
    for (file, value) in [
        ("tokenizer.json", &tokenizer),
        ("config.json", &config),
        ("tokenizer_config.json", &named),
    ] {
        let path = folder.join(file);
        std::fs::write(&path, value.to_string()).map_err(Error::at(&path))?;
    }
    let spec = lapidary_model::spec(&config).map_err(Error::library)?;
    let specs: Vec<TensorSpec> = spec
        .tensors()
        .iter()
        .map(|(n, shape)| TensorSpec::new(n, Dtype::F32, &shape[..]))
        .collect();
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let path = folder.join("model.safetensors");
    let mut writer =
        Writer::create(&fs, &path, &specs, &BTreeMap::new()).map_err(Error::library)?;
    for spec in &specs {
        let bytes = 4 * spec.shape.iter().product::<usize>();
        writer.append(&spec.name, &vec![0; bytes]).map_err(Error::library)?;
    }
    writer.finish().map_err(Error::library)?;
    Ok(())
}

fn read(path: &PathBuf) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::at(path))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Unexpected(format!("{}: {error}", path.display())))
}

/// By our own library.
fn ids(context: &Context, model: &Path, texts: &[&str]) -> Result<Vec<Vec<u32>>, Error> {
    let source = context.open(model)?;
    let tokenizer = lapidary_engine::tokenizer(&source).map_err(Error::library)?;
    let encode = |text: &&str| tokenizer.encode(text, false).map_err(Error::library);
    texts.iter().map(encode).collect()
}

/// By llama.cpp.
fn llama_cpp(context: &Context, file: &Path, texts: &[&str]) -> Result<Vec<Vec<u32>>, Error> {
    let list = context.scratch("texts.json");
    std::fs::write(&list, json!(texts).to_string()).map_err(Error::at(&list))?;
    let python = std::env::var_os("LAPIDARY_PYTHON").unwrap_or_else(|| "python3".into());
    let mut script = Command::new(python);
    script.arg(context.root().join("xtask/real/llama_tokens.py")).arg(file).arg(&list);
    let found = json(&mut script)?;
    serde_json::from_value(found["ids"].clone())
        .map_err(|error| Error::Unexpected(format!("ids of llama.cpp: {error}")))
}
