//! `general.file_type`: a file that llama.cpp's quantizer made is called as it calls it.
//!
//! `LAPIDARY_PYTHON` names a Python with llama-cpp-python and gguf, else it is `python3`.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;

pub(crate) const CHECK: Check = Check {
    name: "mixtures",
    summary: "files of llama.cpp's quantizer are named after the mixtures they were made as",
    models: &[],
    run,
};

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let scratch = context.scratch("mixtures");
    std::fs::create_dir_all(&scratch).map_err(Error::at(&scratch))?;
    let mut script = context.own_python("llama_mixtures.py");
    script
        .arg(context.binary())
        .arg(context.root().join("testdata/golden/gguf/tokenizers/llama.json"));
    let found = json(script.arg(&scratch))?;
    let cases = found.as_object();
    let other = cases.into_iter().flatten().find(|(_, numbers)| numbers[0] != numbers[1]);
    let figures = match other {
        Some((case, numbers)) => format!("{case} is called {}", numbers[1]),
        None => format!("{} files", cases.map_or(0, |cases| cases.len())),
    };
    let is_any = cases.is_some_and(|cases| !cases.is_empty());
    report.line(is_any && other.is_none(), "file types", &figures);
    Ok(())
}
