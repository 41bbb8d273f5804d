//! Two models in turns, and what their sizes would lead one to expect of the one beside the other.

use super::{disk, open};
use crate::arguments::BenchArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::table::{megabytes, table};
use lapidary_kernels::memory::return_freed;
use lapidary_kernels::process::held_memory;
use lapidary_runtime::{Decoder, Timing};
use serde_json::{Value, json};
use std::num::NonZeroUsize;

/// A model that is measured.
struct Side {
    name: String,
    decoder: Decoder,
    /// By how much the memory of the process grew.
    held: Option<u64>,
    prefill: Timing,
    decode: Timing,
}

/// What there is to say of a model.
struct Found {
    name: String,
    /// Tokens a second, the median.
    prefill: f64,
    decode: f64,
    held: Option<u64>,
    products_per_token: usize,
    bytes_per_token: usize,
    weight_bytes: usize,
}

/// This model over the other one.
struct Ratios {
    prefill: Option<f64>,
    decode: Option<f64>,
    memory: Option<f64>,
}

pub(super) fn run(
    arguments: &BenchArguments,
    other: &str,
    threads: Option<NonZeroUsize>,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut sides =
        [Side::load(arguments, &arguments.model, threads)?, Side::load(arguments, other, threads)?];
    for side in &mut sides {
        side.decoder.time_prefill(arguments.prompt.get())?;
        side.decoder.time_decoding(arguments.generate.get().min(16))?;
    }
    let mut shares = vec![];
    for _ in 0..arguments.repetitions.get() {
        let mut times = [[0.0; 2]; 2];
        for (side, times) in sides.iter_mut().zip(&mut times) {
            let prefill = side.decoder.time_prefill(arguments.prompt.get())?;
            let decode = side.decoder.time_decoding(arguments.generate.get())?;
            side.prefill.add(prefill);
            side.decode.add(decode);
            *times = [prefill.as_secs_f64(), decode.as_secs_f64()];
        }
        shares.push([times[1][0] / times[0][0], times[1][1] / times[0][1]]);
    }
    // Times of one turn are of one moment of the machine; the middle of their ratios is the ratio.
    let middle = |index: usize| {
        let mut ratios: Vec<f64> = shares.iter().map(|share| share[index]).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied()
    };
    let [this, that] = sides.map(Side::found);
    let measured = Ratios {
        prefill: middle(0),
        decode: middle(1),
        memory: this.held.zip(that.held).map(|(a, b)| a as f64 / b as f64),
    };
    let ratio = |over: usize, under: usize| (under > 0).then(|| over as f64 / under as f64);
    let expected = Ratios {
        prefill: ratio(that.products_per_token, this.products_per_token),
        decode: ratio(that.bytes_per_token, this.bytes_per_token),
        memory: ratio(this.weight_bytes, that.weight_bytes),
    };
    output.result(
        || {
            json!({
                "prompt": arguments.prompt.get(),
                "generate": arguments.generate.get(),
                "models": [this.to_json(), that.to_json()],
                "measured_ratio": measured.to_json(),
                "expected_ratio": expected.to_json(),
            })
        },
        || {
            let prefill = format!("prefill {}", arguments.prompt);
            let decode = format!("decode {}", arguments.generate);
            let header = ["tokens/s", &prefill, &decode, "weights", "held once loaded"];
            let rows =
                [this.row(), that.row(), measured.row("ratio", true), expected.row("expected", false)];
            format!(
                "{}\n\nexpected: prefill by the products of linear layers, decoding by the bytes that \
                 a token reads, memory by the weights",
                table(&header, &rows)
            )
        },
    )
}

impl Side {
    fn load(
        arguments: &BenchArguments,
        model: &str,
        threads: Option<NonZeroUsize>,
    ) -> Result<Self, CliError> {
        return_freed();
        let before = held_memory();
        let source = open(&disk(), model)?;
        let decoder = Decoder::from_source(&source, &arguments.running.options(threads, 1))?;
        drop(source);
        return_freed();
        let held = held_memory().zip(before).map(|(after, before)| after.saturating_sub(before));
        let timing = Timing::of;
        Ok(Self {
            name: model.to_owned(),
            decoder,
            held,
            prefill: timing(arguments.prompt.get()),
            decode: timing(arguments.generate.get()),
        })
    }

    fn found(self) -> Found {
        let median = |timing: &Timing| timing.rate().map_or(0.0, |rate| rate.median);
        Found {
            prefill: median(&self.prefill),
            decode: median(&self.decode),
            held: self.held,
            products_per_token: self.decoder.products_per_token(),
            bytes_per_token: self.decoder.bytes_per_token(),
            weight_bytes: self.decoder.weight_bytes(),
            name: self.name,
        }
    }
}

impl Found {
    fn to_json(&self) -> Value {
        json!({
            "model": self.name,
            "prefill_tokens_per_s_median": self.prefill,
            "decode_tokens_per_s_median": self.decode,
            "held_bytes": self.held,
            "weight_bytes": self.weight_bytes,
            "bytes_per_token": self.bytes_per_token,
            "products_per_token": self.products_per_token,
        })
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            format!("{:.1}", self.prefill),
            format!("{:.1}", self.decode),
            megabytes(self.weight_bytes as u64),
            self.held.map_or_else(|| "unknown".to_owned(), megabytes),
        ]
    }
}

impl Ratios {
    fn to_json(&self) -> Value {
        json!({ "prefill": self.prefill, "decode": self.decode, "memory": self.memory })
    }

    /// Memory stands under what is held where it was measured, under the weights where it is expected.
    fn row(&self, name: &str, is_held: bool) -> Vec<String> {
        let cell =
            |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let memory = cell(self.memory);
        let [weights, held] =
            if is_held { [String::new(), memory] } else { [memory, String::new()] };
        vec![name.to_owned(), cell(self.prefill), cell(self.decode), weights, held]
    }
}
