//! Tokenizers of every kind that GGUF is written for, in llama.cpp: its tokens of awkward texts are those
//! of Python's `tokenizers`, and so are ours, before and after.
//!
//! `LAPIDARY_PYTHON` names a Python with llama-cpp-python, else it is `python3`.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;
use serde_json::{Value, json as value};
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "tokenizers",
    summary: "awkward texts through every kind of tokenizer: llama.cpp's tokens are the model's",
    models: &[],
    run,
};

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let golden = context.root().join("testdata/golden/gguf/tokenizers");
    let scratch = context.scratch("tokenizers");
    std::fs::create_dir_all(&scratch).map_err(Error::at(&scratch))?;
    let mut script = context.own_python("llama_tokenizers.py");
    script.arg(context.binary());
    let found = json(script.arg(&golden).arg(&scratch))?;
    let (texts, wanted) = (read(&golden.join("texts.json"))?, read(&golden.join("golden.json"))?);
    let texts: Vec<&str> =
        texts.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, wanted) in wanted.as_object().into_iter().flatten() {
        let folder = scratch.join(format!("tokenizer-{name}"));
        let gguf = scratch.join(format!("tokenizer-{name}-gguf/model.gguf"));
        let kinds = [
            ("llama.cpp", found[name].clone()),
            ("we", ours(context, &folder, &texts)),
            ("we from GGUF", ours(context, &gguf, &texts)),
        ];
        for (who, have) in kinds {
            let other = (0..texts.len()).find(|at| have[*at] != wanted[*at]);
            let figures = match other {
                None => format!("the tokens of {} texts", texts.len()),
                Some(_) if have.is_string() => have.as_str().unwrap_or_default().to_owned(),
                Some(at) => {
                    format!("{:?} is {}, not {}", texts[at], have[at], wanted[at])
                }
            };
            report.line(other.is_none(), &format!("{name}, {who}"), &figures);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::at(path))?;
    serde_json::from_str(&text).map_err(|error| Error::Unexpected(format!("{path:?}: {error}")))
}

/// Our tokens of each text, or what stood in the way.
fn ours(context: &Context, model: &Path, texts: &[&str]) -> Value {
    let encode = || -> Result<Value, Error> {
        let source = context.open(model)?;
        let tokenizer = lapidary_engine::tokenizer(&source).map_err(Error::library)?;
        let ids = |text: &&str| tokenizer.encode(text, false).map_err(Error::library);
        Ok(value!(texts.iter().map(ids).collect::<Result<Vec<_>, _>>()?))
    };
    encode().unwrap_or_else(|error| value!(error.to_string()))
}
