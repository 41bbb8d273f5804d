//! What a check is, and the lines it reports.

use crate::context::Context;
use crate::error::Error;
use std::path::Path;
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
    /// What the check that runs has said so far, as rows of a table.
    rows: Vec<String>,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { check: "", since: Instant::now(), rows: vec![], passed: 0, failed: 0 }
    }

    /// Runs a check; one that cannot be run to its end counts as failed.
    pub(crate) fn run(&mut self, check: &Check, context: &Context) {
        self.check = check.name;
        self.since = Instant::now();
        self.rows.clear();
        if let Err(error) = (check.run)(context, self) {
            self.line(false, "could not be run to its end", &error.to_string());
        }
    }

    /// Writes what the check that ran last has said, as the table `FOLDER/{check}.md`.
    pub(crate) fn write_table(&self, folder: &Path, check: &Check, on: &str) -> Result<(), Error> {
        let path = folder.join(format!("{}.md", check.name));
        let rows = self.rows.join("\n");
        let head = "| what | result | |\n|---|---|---|";
        let (name, summary) = (check.name, check.summary);
        let made =
            format!("Made by `cargo xtask real --only {name} --tables docs/checked` on {on}.");
        std::fs::create_dir_all(folder).map_err(Error::at(folder))?;
        std::fs::write(&path, format!("# {summary}\n\n{made}\n\n{head}\n{rows}\n"))
            .map_err(Error::at(&path))
    }

    /// One comparison: what was compared, and the figures. Its time is that since the last line.
    pub(crate) fn line(&mut self, holds: bool, what: &str, figures: &str) {
        let verdict = if holds { "ok" } else { "FAILED" };
        let seconds = self.since.elapsed().as_secs_f64();
        println!("{verdict:<6} {seconds:>6.1} s  {:<10}  {what}: {figures}", self.check);
        let cell = |text: &str| text.lines().next().unwrap_or_default().replace('|', "\\|");
        self.rows.push(format!("| {} | {} | {verdict} |", cell(what), cell(figures)));
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
