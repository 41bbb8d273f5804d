//! `lapidary serve` as a process: started, watched, ended.

use crate::error::Error;
use serde::Deserialize;
use serde_json::Value;
use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A running server; it is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server at a port that is free, and waits until it says where it is.
    pub(crate) fn start(binary: &Path, model: &Path, options: &[&str]) -> Result<Self, Error> {
        let mut command = Command::new(binary);
        command.args(["serve", "--json", "--port", "0"]).arg(model).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let spawned = command.spawn();
        let mut child =
            spawned.map_err(|source| Error::Io { what: format!("{command:?}"), source })?;
        let out = child.stdout.take().map(BufReader::new);
        let told = out.and_then(|out| {
            Value::deserialize(&mut serde_json::Deserializer::from_reader(out.take(1 << 16))).ok()
        });
        let address = told.as_ref().and_then(|told| told["address"].as_str()?.parse().ok());
        match address {
            Some(address) => Ok(Self { child, address }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::Unexpected(format!("{command:?} does not say where it listens")))
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A figure of `/proc/PID/status`, in bytes; 0 where the system does not tell.
    pub(crate) fn memory(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kibibytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Open files and sockets.
    pub(crate) fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).map_or(0, Iterator::count)
    }

    /// Asks it to end, as Ctrl-C does; how long that took, and whether it ended well.
    pub(crate) fn end(mut self) -> Result<(Duration, bool), Error> {
        let begun = Instant::now();
        let waiting = |source| Error::Io { what: "ending the server".to_owned(), source };
        Command::new("kill").arg(self.id().to_string()).status().map_err(waiting)?;
        loop {
            if let Some(status) = self.child.try_wait().map_err(waiting)? {
                return Ok((begun.elapsed(), status.success()));
            }
            if begun.elapsed() > Duration::from_secs(60) {
                return Ok((begun.elapsed(), false));
            }
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
