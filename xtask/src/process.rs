//! Commands: their output, how long they took, and the most memory they had.

use crate::error::Error;
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// How often a running command's memory is looked at; the kernel keeps the maximum between looks.
const POLL: Duration = Duration::from_millis(5);

/// Characters of standard error that an error message repeats.
const TAIL: usize = 2000;

/// A command that ended well.
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) wall_seconds: f64,
    /// Peak resident memory in bytes; 0 where the system does not tell.
    pub(crate) peak_bytes: u64,
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<Finished, Error> {
    let started = Instant::now();
    let mut child = start(command)?;
    let stdout = child.stdout.take().map(|pipe| spawn(move || drain(pipe)));
    let stderr = child.stderr.take().map(|pipe| spawn(move || drain(pipe)));
    let mut peak_bytes = 0;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(wait_failed)? {
            break status;
        }
        peak_bytes = peak_bytes.max(peak_resident(child.id()));
        sleep(POLL);
    };
    let joined = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (stdout, stderr) = (joined(stdout), joined(stderr));
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
        let from = stderr.char_indices().rev().nth(TAIL).map_or(0, |(at, _)| at);
        return Err(Error::Command {
            command: format!("{command:?}"),
            status: status.to_string(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: stderr[from..].to_owned(),
        });
    }
    Ok(Finished { stdout, wall_seconds: started.elapsed().as_secs_f64(), peak_bytes })
}

/// Runs a command that prints one JSON value.
pub(crate) fn json(command: &mut Command) -> Result<Value, Error> {
    let finished = run(command)?;
    parse(command, &finished.stdout)
}

/// The JSON value that a command printed.
pub(crate) fn parse(command: &Command, stdout: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(stdout)
        .map_err(|error| Error::Unexpected(format!("{command:?}: its output is not JSON: {error}")))
}

/// Runs a command with its output left to the terminal: for what takes minutes.
pub(crate) fn show(command: &mut Command) -> Result<(), Error> {
    let status = command.status().map_err(|source| cannot_run(command, source))?;
    if status.success() {
        return Ok(());
    }
    let (command, status) = (format!("{command:?}"), status.to_string());
    Err(Error::Command { command, status, stdout: String::new(), stderr: "see above".to_owned() })
}

/// Starts a command with its output in pipes.
fn start(command: &mut Command) -> Result<Child, Error> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| cannot_run(command, source))
}

/// Lets a process live for `limit`, then kills it as `kill -9` does; true when it was killed, false
/// when it had ended by itself.
pub(crate) fn kill_after(command: &mut Command, limit: Duration) -> Result<bool, Error> {
    let started = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|source| cannot_run(command, source))?;
    while started.elapsed() < limit {
        if child.try_wait().map_err(wait_failed)?.is_some() {
            return Ok(false);
        }
        sleep(Duration::from_millis(1).min(limit.saturating_sub(started.elapsed())));
    }
    child.kill().map_err(wait_failed)?;
    let status = child.wait().map_err(wait_failed)?;
    Ok(!status.success())
}

/// A number in a command's JSON.
pub(crate) fn number(value: &Value, key: &str) -> Result<f64, Error> {
    value[key].as_f64().ok_or_else(|| Error::Unexpected(format!("no number {key:?} in {value}")))
}

fn drain(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = vec![];
    // What could be read before an error is still worth showing.
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

/// `VmHWM` of a process, in bytes.
fn peak_resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kibibytes.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn cannot_run(command: &Command, source: std::io::Error) -> Error {
    Error::Io { what: format!("{command:?}"), source }
}

fn wait_failed(source: std::io::Error) -> Error {
    Error::Io { what: "waiting for a command".to_owned(), source }
}
