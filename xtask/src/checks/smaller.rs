//! Models cut smaller, in transformers: tiny ones of every family against the whole ones with what is
//! gone left out, and SmolLM2 with the perplexity it has here.

use super::load::{agrees, loads};
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;
use lapidary_store::safetensors::Writer;
use lapidary_store::{Dtype, Fs, RealFs, TensorSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const CHECK: Check = Check {
    name: "smaller",
    summary: "models with fewer layers, heads, neurons and channels are the same in transformers",
    models: &["smollm2"],
    run,
};

/// Folders of `testdata/models`, and the steps that cut them, with the parameters of these.
const TINY: [(&str, &str, &[&str]); 22] = [
    ("llama-untied", "layers+minitron", &["layers.blocks=1", "minitron.heads=0.5"]),
    ("llama-tied", "layers+heads", &["layers.blocks=1", "heads.share=0.5", "heads.rows=4"]),
    ("mistral", "layers+llm-pruner", &["layers.blocks=0", "llm-pruner.rows=4"]),
    ("qwen2-tied", "minitron", &["minitron.heads=0.5"]),
    ("qwen2-sliding", "layers", &["layers.blocks=0"]),
    ("qwen3", "layers+minitron", &["layers.blocks=1", "minitron.heads=0.5"]),
    ("gemma2", "layers+minitron", &["layers.blocks=0"]),
    ("gemma3", "layers+minitron", &["layers.blocks=1"]),
    ("granite", "layers+minitron", &["layers.blocks=0"]),
    ("olmo2", "layers+minitron", &["layers.blocks=1"]),
    ("phi3", "layers+minitron", &["layers.blocks=1", "minitron.heads=0.5"]),
    ("smollm3", "layers+minitron", &["layers.blocks=1"]),
    ("starcoder2", "layers+minitron", &["layers.blocks=0"]),
    ("stablelm", "layers+minitron", &["layers.blocks=1"]),
    ("gpt2", "layers+minitron", &["layers.blocks=0"]),
    ("gpt-neox", "layers+minitron", &["layers.blocks=1"]),
    ("opt", "layers+minitron", &["layers.blocks=0"]),
    ("bert-model", "layers+minitron", &["layers.blocks=1"]),
    ("distilbert-model", "layers+llm-pruner", &["layers.blocks=0", "llm-pruner.rows=4"]),
    ("roberta-model", "layers+minitron", &["layers.blocks=1"]),
    ("mixtral", "layers", &["layers.blocks=1"]),
    ("qwen3-moe-mixed", "layers", &["layers.blocks=1"]),
];

/// The largest difference over the spread of all outputs.
const MOST: f64 = 1e-5;

/// Steps that cut `SmolLM2`.
const REAL: [(&str, &[&str]); 6] = [
    ("layers", &["layers.drop=3"]),
    ("minitron", &["minitron.neurons=0.2", "minitron.heads=0.33"]),
    ("heads", &["heads.share=0", "heads.key_heads=0.33", "heads.rows=8"]),
    ("llm-pruner", &["llm-pruner.neurons=0.2", "llm-pruner.rows=8"]),
    ("slice", &["slice.channels=0.1"]),
    ("layers+minitron+gptq", &["layers.drop=3", "minitron.neurons=0.2", "gptq.group_size=64"]),
];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let scratch = context.scratch("smaller");
    std::fs::create_dir_all(&scratch).map_err(Error::at(&scratch))?;
    let rows = rows(&scratch)?;
    let mut script = context.python("smaller.py");
    for (name, method, parameters) in TINY {
        let model = context.root().join("testdata/models").join(name);
        let mut options = options(method, parameters);
        let calibration =
            ["--format", "dense", "--samples", "12", "--seq-len", "16", "--calibration"];
        options.extend(calibration.map(str::to_owned));
        options.push(rows.display().to_string());
        let made = context.compress(&model, &options, scratch.join(name))?;
        script.arg(format!("{name}={}:{}", model.display(), made.folder.display()));
    }
    let found = json(&mut script)?;
    for (name, method, _) in TINY {
        let what = format!("{name}, {method}");
        match found[name].as_f64() {
            Some(off) => report.line(off <= MOST, &what, &format!("off by {off:.1e} at most")),
            None => report.line(false, &what, found[name].as_str().unwrap_or("nothing was said")),
        }
    }
    let model = context.model("offgrid")?;
    for (method, parameters) in REAL {
        let options = [options(method, parameters), context.rows(16, 256)].concat();
        let made = context.compressed(&model, &options)?;
        let what = format!("{method} {}", parameters.join(" "));
        loads(context, report, &what, &made.folder)?;
        agrees(context, report, &what, &made.folder, "1")?;
    }
    Ok(())
}

fn options(method: &str, parameters: &[&str]) -> Vec<String> {
    let set = parameters.iter().flat_map(|parameter| ["--set", parameter]);
    ["--method", method].into_iter().chain(set).map(str::to_owned).collect()
}

/// Rows of tokens that every tiny vocabulary has.
fn rows(folder: &Path) -> Result<PathBuf, Error> {
    let path = folder.join("rows.safetensors");
    let token = |i: i64| (i * i * 31 + i * 7 + 5) % 51;
    let bytes: Vec<u8> = (0..12 * 16).flat_map(|i| token(i).to_le_bytes()).collect();
    let specs = [TensorSpec::new("input_ids", Dtype::I64, vec![12, 16])];
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let mut writer =
        Writer::create(&fs, &path, &specs, &BTreeMap::new()).map_err(Error::library)?;
    writer.append("input_ids", &bytes).map_err(Error::library)?;
    writer.finish().map_err(Error::library)?;
    Ok(path)
}
