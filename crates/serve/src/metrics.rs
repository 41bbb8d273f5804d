//! Figures for Prometheus, in its text format.

use lapidary_runtime::generate::Counts;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// What is counted while the server runs.
#[derive(Default)]
pub(crate) struct Metrics {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Answers by path and status.
    answers: BTreeMap<(&'static str, u16), u64>,
    first_token: Histogram,
    between_tokens: Histogram,
    sequence: Histogram,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Metrics {
    pub(crate) fn answered(&self, path: &'static str, status: u16) {
        self.change(|inner| *inner.answers.entry((path, status)).or_default() += 1);
    }

    /// Time from a request to the first token of a sequence.
    pub(crate) fn first_token(&self, time: Duration) {
        self.change(|inner| inner.first_token.add(time));
    }

    /// Time from one token of a sequence to the next.
    pub(crate) fn next_token(&self, time: Duration) {
        self.change(|inner| inner.between_tokens.add(time));
    }

    /// Time from a request to the end of a sequence.
    pub(crate) fn ended(&self, time: Duration) {
        self.change(|inner| inner.sequence.add(time));
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All figures.
    pub(crate) fn render(&self, counts: &Counts) -> String {
        let mut out = String::new();
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        head(&mut out, "lapidary_http_responses_total", "counter", "Answers by path and status.");
        for ((path, status), count) in &inner.answers {
            let labels = format!("path=\"{path}\",status=\"{status}\"");
            let _ = writeln!(out, "lapidary_http_responses_total{{{labels}}} {count}");
        }
        let figures = [
            ("sequences_running", "gauge", "Sequences in the model.", counts.running as u64),
            ("sequences_waiting", "gauge", "Sequences in the queue.", counts.waiting as u64),
            ("steps_total", "counter", "Steps of the model.", counts.steps),
            ("prompt_tokens_total", "counter", "Tokens of prompts read.", counts.prompt_tokens),
            (
                "reused_tokens_total",
                "counter",
                "Tokens of prompts that were there from an earlier request.",
                counts.reused_tokens,
            ),
            ("generated_tokens_total", "counter", "Tokens generated.", counts.generated_tokens),
        ];
        for (name, kind, help, value) in figures {
            let name = format!("lapidary_{name}");
            head(&mut out, &name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
        inner.first_token.render(&mut out, "time_to_first_token", "Request to first token.");
        inner.between_tokens.render(&mut out, "time_between_tokens", "One token to the next.");
        inner.sequence.render(&mut out, "sequence", "Request to the end of its sequence.");
        out
    }
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let within = self.buckets.iter_mut().zip(BOUNDS).filter(|(_, bound)| seconds <= *bound);
        within.for_each(|(count, _)| *count += 1);
        self.count += 1;
        self.sum += seconds;
    }

    fn render(&self, out: &mut String, name: &str, help: &str) {
        let name = format!("lapidary_{name}_seconds");
        head(out, &name, "histogram", help);
        for (count, bound) in self.buckets.iter().zip(BOUNDS) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum {}", self.sum);
        let _ = writeln!(out, "{name}_count {}", self.count);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
