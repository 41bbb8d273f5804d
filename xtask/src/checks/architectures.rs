//! Every architecture that GGUF is written for, in llama.cpp: tiny models with the logits that
//! transformers gave for them.
//!
//! `LAPIDARY_PYTHON` names a Python with llama-cpp-python, else it is `python3`.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;

pub(crate) const CHECK: Check = Check {
    name: "architectures",
    summary: "tiny models of every architecture: llama.cpp's logits are those of transformers",
    models: &[],
    run,
};

/// Folders of `testdata/models`, with the blocks that layers are rounded to if any, and the largest
/// difference of a logit over the spread of all: llama.cpp looks GELU up in a table of 16-bit floats.
const MODELS: [(&str, f64); 28] = [
    ("llama-untied", 1e-4),
    ("llama-biases", 1e-4),
    ("llama-rope-llama3", 1e-4),
    ("mistral", 1e-4),
    ("qwen2-untied", 1e-4),
    ("qwen3", 1e-4),
    ("qwen3-yarn", 1e-4),
    ("gemma2-published", 1e-2),
    ("gemma3-published", 1e-2),
    ("granite", 1e-4),
    ("granite-biases", 1e-4),
    ("olmo2", 1e-4),
    ("phi3", 1e-4),
    ("phi3-longrope", 1e-4),
    ("phi3-longrope-short", 1e-4),
    ("smollm3", 1e-4),
    ("starcoder2", 1e-2),
    ("stablelm", 1e-4),
    ("stablelm-parallel", 1e-4),
    ("gpt2", 1e-2),
    ("gpt2-blocks", 1e-2),
    ("gpt-neox", 1e-2),
    ("mixtral", 1e-4),
    ("qwen3-moe-together", 1e-4),
    ("qwen3-moe-blocks", 1e-4),
    ("gpt2-blocks:q8_0", 0.3),
    ("gpt-neox:q8_0", 0.3),
    ("qwen3-moe-blocks:q8_0", 0.3),
];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let scratch = context.scratch("architectures");
    std::fs::create_dir_all(&scratch).map_err(Error::at(&scratch))?;
    let mut script = context.own_python("llama_architectures.py");
    script.arg(context.binary()).arg(context.root().join("testdata/models")).arg(&scratch);
    let found = json(script.args(MODELS.map(|(name, _)| name)))?;
    for (name, most) in MODELS {
        let (holds, figures) = match found[name].as_f64() {
            Some(difference) => (
                difference <= most,
                format!("off by {difference:.1e} at most (at most {most:.0e})"),
            ),
            None => (false, found[name].as_str().unwrap_or("nothing was said").to_owned()),
        };
        report.line(holds, name, &figures);
    }
    Ok(())
}
