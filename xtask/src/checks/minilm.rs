//! An encoder: all-MiniLM-L6-v2 gives transformers' hidden states, and loads when compressed.

use super::load::loads;
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::{json, number};
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision, Tokens, spec};
use lapidary_store::{Checkpoint, Fs, RealFs};
use std::path::Path;
use std::sync::Arc;

pub(crate) const CHECK: Check = Check {
    name: "minilm",
    summary: "all-MiniLM-L6-v2's hidden states against transformers', to 1e-4; compressed, loads",
    models: &["minilm"],
    run,
};

const TOLERANCE: f32 = 1e-4;

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("minilm")?;
    let facts = context.scratch("minilm.safetensors");
    let said = json(context.python("encode.py").arg(&model).arg(&facts))?;
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let facts = Checkpoint::open(fs, &facts).map_err(Error::library)?;
    let mut worst = 0.0_f32;
    let sentences = number(&said, "sentences")? as usize;
    for sentence in 0..sentences {
        let (ours, theirs) = hidden_states(context, &model, &facts, sentence)?;
        let differences = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
        // A difference that is no number counts as the worst.
        worst = differences.fold(worst, |a, b| if b.is_nan() { f32::INFINITY } else { a.max(b) });
        if ours.len() != theirs.len() {
            worst = f32::INFINITY;
        }
    }
    let figures =
        format!("{sentences} sentences, largest difference {worst:.2e} (at most {TOLERANCE:.0e})");
    report.line(worst <= TOLERANCE, "hidden states", &figures);

    let rtn = ["--recipe", "W8A16-rtn", "--group-size", "128"].map(str::to_owned);
    let folder = &context.compressed(&model, &rtn)?.folder;
    loads(context, report, "W8A16", folder)?;
    let mut script = context.python("agree.py");
    script.arg(&model).arg(folder).arg("--text").arg(&context.text).args(["--windows", "16"]);
    let theirs = number(&json(&mut script)?, "row_cosine")?;
    let mut eval = context.lapidary("eval");
    eval.arg(folder).arg("--reference").arg(&model).args(["--windows", "16"]);
    let ours = number(&json(eval.arg("--text").arg(&context.text))?, "embedding_cosine")?;
    let figures = format!("{theirs:.5} there, {ours:.5} with us (at least 0.999)");
    report.line(theirs > 0.999 && ours > 0.999, "W8A16, cosine with the original", &figures);
    Ok(())
}

/// Last hidden states of a sentence, by our executor and by transformers.
fn hidden_states(
    context: &Context,
    model: &Path,
    facts: &Checkpoint,
    sentence: usize,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let fact = |name: &str| -> Result<Vec<u8>, Error> {
        let tensor = facts.require(&format!("{sentence}.{name}")).map_err(Error::library)?;
        facts.read(tensor).map_err(Error::library)
    };
    let (ids, types) = (integers(&fact("input_ids")?), integers(&fact("token_type_ids")?));
    let theirs = fact("last_hidden_state")?;
    let theirs = theirs.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();

    let source = context.open(model)?;
    let spec = spec(source.config()).map_err(Error::library)?;
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = Batch { rows: 1, seq_len: ids.len() };
    let tokens = Tokens { ids: &ids, types: Some(&types) };
    let mut states = executor.embed(&spec, &source, batch, tokens).map_err(Error::library)?;
    for block in &spec.blocks {
        let weights =
            GraphWeights::load(block, &source, executor.backend()).map_err(Error::library)?;
        states = executor.run(block, &weights, batch, states, None).map_err(Error::library)?;
    }
    Ok((states, theirs))
}

/// Token ids, stored as I64; none is negative.
fn integers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect()
}
