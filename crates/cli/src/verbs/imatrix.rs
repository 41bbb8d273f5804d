//! `lapidary imatrix`: an importance matrix for llama.cpp, or for methods that need no more.

use super::{disk, open};
use crate::arguments::ImatrixArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Shown;
use crate::signal::stop_flag;
use lapidary_engine::importance::gather;
use lapidary_engine::recipe::Calibration;
use serde_json::json;

pub(crate) fn run(
    arguments: &ImatrixArguments,
    quiet: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let fs = disk();
    let source = open(&fs, &arguments.model)?;
    let mut calibration = Calibration::default();
    calibration.text.clone_from(&arguments.calibration);
    (calibration.samples, calibration.seq_len) = (arguments.samples.get(), arguments.seq_len.get());
    let (stop, progress) = (stop_flag(), Shown::new(quiet));
    let found = gather(&fs, &source, &calibration, arguments.seed, &stop, &progress)?;
    found.write(&fs, &arguments.output, source.config())?;
    let (path, layers) = (arguments.output.display().to_string(), found.layers.len());
    let tokens = u64::from(found.rows) * u64::from(found.row_tokens);
    output.result(
        || json!({ "output": path, "layers": layers, "tokens": tokens }),
        || format!("{path}: the inputs of {layers} layers on {tokens} tokens\n"),
    )
}
