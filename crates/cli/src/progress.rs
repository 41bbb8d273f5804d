//! Progress on standard error: a bar with the time left on a terminal, plain lines elsewhere.

use crate::output::tell;
use indicatif::{ProgressBar, ProgressStyle};
use lapidary_engine::Progress;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Plain lines come at most this often.
const EVERY: Duration = Duration::from_secs(10);

/// Shows the course of a job.
pub(crate) struct Shown {
    quiet: bool,
    is_terminal: bool,
    phase: Mutex<Option<Phase>>,
}

struct Phase {
    name: String,
    steps: u64,
    began: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Shown {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, is_terminal: std::io::stderr().is_terminal(), phase: Mutex::new(None) }
    }

    fn with_phase(&self, f: impl FnOnce(&mut Option<Phase>)) {
        if !self.quiet {
            f(&mut self.phase.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Progress for Shown {
    fn begin(&self, phase: &str, steps: u64) {
        self.with_phase(|slot| {
            let now = Instant::now();
            let bar = self.is_terminal.then(|| bar(phase, steps));
            if bar.is_none() {
                tell(phase);
            }
            *slot = Some(Phase { name: phase.to_owned(), steps, began: now, last_line: now, bar });
        });
    }

    fn advance(&self, done: u64, detail: &str) {
        self.with_phase(|slot| {
            let Some(phase) = slot else { return };
            if let Some(bar) = &phase.bar {
                bar.set_position(done);
                bar.set_message(detail.to_owned());
            } else if phase.last_line.elapsed() >= EVERY {
                phase.last_line = Instant::now();
                tell(&line(phase, done, detail));
            }
        });
    }

    fn end(&self) {
        self.with_phase(|slot| {
            if let Some(Phase { bar: Some(bar), .. }) = slot.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn note(&self, what: &str) {
        self.with_phase(|slot| match slot {
            Some(Phase { bar: Some(bar), .. }) => bar.suspend(|| tell(&format!("note: {what}"))),
            _ => tell(&format!("note: {what}")),
        });
    }
}

fn bar(phase: &str, steps: u64) -> ProgressBar {
    let (bar, template) = match steps {
        0 => (ProgressBar::new_spinner(), "{spinner} {prefix} {elapsed}"),
        _ => (
            ProgressBar::new(steps),
            "{prefix} [{bar:30}] {pos}/{len} {elapsed} (left {eta}) {msg}",
        ),
    };
    // The templates are constants; a test would fail on one that does not parse.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(phase.to_owned());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// One plain line: how far, how long, how long still.
fn line(phase: &Phase, done: u64, detail: &str) -> String {
    let elapsed = phase.began.elapsed().as_secs_f64();
    let mut line = format!("{}: {done}", phase.name);
    if phase.steps > 0 {
        line = format!("{line}/{}", phase.steps);
    }
    if done > 0 && phase.steps > done {
        let left = elapsed / done as f64 * (phase.steps - done) as f64;
        line = format!("{line}, {elapsed:.0} s, about {left:.0} s left");
    }
    if detail.is_empty() { line } else { format!("{line} ({detail})") }
}
