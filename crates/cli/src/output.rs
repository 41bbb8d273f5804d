//! Standard output: text for people or one JSON value, never both.

use crate::error::CliError;
use serde_json::Value;
use std::io::{BufWriter, Stdout, Write};

/// A line on standard error. Nobody may be there to read it, and then the work goes on.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Where results go.
pub(crate) struct Output {
    json: bool,
    out: BufWriter<Stdout>,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, out: BufWriter::new(std::io::stdout()) }
    }

    /// A result: `text` is made only for people, `value` only for programs.
    pub(crate) fn result(
        &mut self,
        value: impl FnOnce() -> Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        if self.json {
            serde_json::to_writer_pretty(&mut self.out, &value()).map_err(std::io::Error::from)?;
            writeln!(self.out)?;
        } else {
            let text = text();
            writeln!(self.out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    /// A part of a text that is still being written; people see it at once.
    pub(crate) fn piece(&mut self, text: &str) -> Result<(), CliError> {
        if self.json || text.is_empty() {
            return Ok(());
        }
        self.out.write_all(text.as_bytes())?;
        self.flush()
    }

    /// Hands on what there is so far.
    pub(crate) fn flush(&mut self) -> Result<(), CliError> {
        Ok(self.out.flush()?)
    }

    /// Hands everything on; a full disk or a closed pipe shows here at the latest.
    pub(crate) fn finish(mut self) -> Result<(), CliError> {
        Ok(self.out.flush()?)
    }
}
