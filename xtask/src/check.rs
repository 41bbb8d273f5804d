//! What a check is, and the lines it reports.

use crate::context::Context;
use crate::error::Error;
use std::time::Instant;

/// A check.
pub(crate) struct Check {
    /// Its name for `--only` and `--skip`.
    pub(crate) name: &'static str,
    /// What it checks.
    pub(crate) summary: &'static str,
    /// Models it needs, by their names in `fetch.py`.
    pub(crate) models: &'static [&'static str],
    pub(crate) run: fn(&Context, &mut Report) -> Result<(), Error>,
}

/// Prints a line for each comparison and counts those that failed.
pub(crate) struct Report {
    check: &'static str,
    since: Instant,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { check: "", since: Instant::now(), passed: 0, failed: 0 }
    }

    /// Runs a check; one that cannot be run to its end counts as failed.
    pub(crate) fn run(&mut self, check: &Check, context: &Context) {
        self.check = check.name;
        self.since = Instant::now();
        if let Err(error) = (check.run)(context, self) {
            self.line(false, "could not be run to its end", &error.to_string());
        }
    }

    /// One comparison: what was compared, and the figures. Its time is that since the last line.
    pub(crate) fn line(&mut self, holds: bool, what: &str, figures: &str) {
        let verdict = if holds { "ok" } else { "FAILED" };
        let seconds = self.since.elapsed().as_secs_f64();
        println!("{verdict:<6} {seconds:>6.1} s  {:<10}  {what}: {figures}", self.check);
        self.since = Instant::now();
        match holds {
            true => self.passed += 1,
            false => self.failed += 1,
        }
    }

    /// A comparison of two numbers, which may differ by `tolerance` of the second.
    pub(crate) fn close(&mut self, what: &str, ours: f64, theirs: f64, tolerance: f64) {
        let difference = ours / theirs - 1.0;
        let figures = format!(
            "{ours:.5} against {theirs:.5}, {:+.4} % (at most {} %)",
            100.0 * difference,
            100.0 * tolerance
        );
        self.line(difference.abs() <= tolerance, what, &figures);
    }
}
