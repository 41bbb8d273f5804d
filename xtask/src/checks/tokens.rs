//! The tokenizer inside a GGUF gives the ids that Python's `tokenizers` gives, one by one.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "tokens",
    summary: "the tokenizer in SmolLM2's GGUF against Python's, id by id",
    models: &["smollm2"],
    run,
};

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let calibration = Path::new(&context.calibration);
    let texts = [context.text.as_path(), calibration];
    for text in texts.into_iter().filter(|text| text.is_file()) {
        let name = text.file_name().unwrap_or_default().to_string_lossy();
        let model = context.model("smollm2")?;
        let (ours, theirs) = (ours(context, &model, text)?, theirs(context, &model, text)?);
        let first = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        let figures = match first {
            Some(at) => format!("id {at} is {} with us, {} there", ours[at], theirs[at]),
            None => format!("{} ids with us, {} there", ours.len(), theirs.len()),
        };
        report.line(ours == theirs, &name, &figures);
    }
    Ok(())
}

/// Ids of the text, every byte of it, by our own library.
pub(crate) fn ours(context: &Context, model: &Path, text: &Path) -> Result<Vec<u32>, Error> {
    let source = context.open(model)?;
    let tokenizer = lapidary_engine::tokenizer(&source).map_err(Error::library)?;
    let text = std::fs::read_to_string(text).map_err(Error::at(text))?;
    tokenizer.encode(&text, false).map_err(Error::library)
}

/// The same by Python.
pub(crate) fn theirs(context: &Context, model: &Path, text: &Path) -> Result<Vec<u32>, Error> {
    let out = context.scratch("ids.u32");
    let mut script = context.python("tokens.py");
    json(script.arg(model).arg(text).arg(&out).args(["--newlines", "keep"]))?;
    let bytes = std::fs::read(&out).map_err(Error::at(&out))?;
    Ok(bytes.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect())
}
