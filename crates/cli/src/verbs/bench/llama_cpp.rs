//! llama.cpp in a Python process of its own, timed on request.

use crate::error::CliError;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

const SCRIPT: &str = include_str!("time_llama.py");

/// A loaded model.
pub(super) struct LlamaCpp {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    version: String,
}

impl LlamaCpp {
    /// Loads a GGUF.
    pub(super) fn start(file: &Path, threads: usize, context: usize) -> Result<Self, CliError> {
        let python = std::env::var_os("LAPIDARY_PYTHON").unwrap_or_else(|| "python3".into());
        let name = python.to_string_lossy().into_owned();
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .arg(file)
            .args([threads.to_string(), context.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| CliError::Program(format!("cannot run {name}: {error}")))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(CliError::Program(format!("cannot talk to {name}")));
        };
        let answers = BufReader::new(answers);
        let mut peer = Self { child, requests, answers, version: String::new() };
        peer.version = peer.answer().map_err(|_| {
            let what = format!(
                "{name} did not start llama.cpp on {}: is llama-cpp-python installed there? \
                 LAPIDARY_PYTHON names another Python",
                file.display()
            );
            CliError::Program(what)
        })?;
        Ok(peer)
    }

    /// The package's version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Times `prefill` or `decode`.
    pub(super) fn time(&mut self, what: &str, tokens: usize) -> Result<Duration, CliError> {
        let sent = writeln!(self.requests, "{what} {tokens}").and_then(|()| self.requests.flush());
        sent.map_err(|_| stopped())?;
        let answer = self.answer()?;
        let seconds: f64 = answer.parse().map_err(|_| stopped())?;
        Duration::try_from_secs_f64(seconds).map_err(|_| stopped())
    }

    fn answer(&mut self) -> Result<String, CliError> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(length) if length > 0 => Ok(line.trim().to_owned()),
            _ => Err(stopped()),
        }
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stopped() -> CliError {
    CliError::Program("llama.cpp stopped before it had answered".to_owned())
}
