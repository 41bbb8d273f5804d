//! `lapidary bench`: how fast a model runs on this machine, beside another model or llama.cpp on
//! request.

mod against;
mod llama_cpp;

use super::{disk, locate, open};
use crate::arguments::BenchArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::table::{megabytes, table};
use lapidary_kernels::process::peak_memory;
use lapidary_runtime::{Decoder, Rate, Timing};
use llama_cpp::LlamaCpp;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

/// What was measured.
struct Measured {
    prefill: Rate,
    decode: Rate,
}

/// All there is to tell.
struct Findings {
    threads: usize,
    tokens: (usize, usize),
    load_seconds: f64,
    ours: Measured,
    bytes_per_token: usize,
    bandwidth: f64,
    peak: Option<u64>,
    theirs: Option<(String, Measured)>,
}

pub(crate) fn run(
    arguments: &BenchArguments,
    threads: Option<NonZeroUsize>,
    output: &mut Output,
) -> Result<(), CliError> {
    if let Some(other) = &arguments.against {
        return against::run(arguments, other, threads, output);
    }
    let (prompt, generate) = (arguments.prompt.get(), arguments.generate.get());
    let peer = arguments.compare.as_ref().map(|file| peer_file(arguments, file.as_ref()));
    let peer = peer.transpose()?;
    let begin = Instant::now();
    let source = open(&disk(), &arguments.model)?;
    let mut decoder = Decoder::from_source(&source, &arguments.running.options(threads, 1))?;
    drop(source);
    let load_seconds = begin.elapsed().as_secs_f64();
    let longest = prompt.max(generate);
    let mut peer =
        peer.map(|file| LlamaCpp::start(&file, decoder.threads(), longest.max(256))).transpose()?;
    decoder.time_prefill(prompt)?;
    decoder.time_decoding(generate.min(16))?;
    let mut ours = [Timing::of(prompt), Timing::of(generate)];
    let mut theirs = ours.clone();
    let (mut bandwidth, mut peak) = (0.0_f64, None);
    if let Some(peer) = &mut peer {
        peer.time("prefill", prompt)?;
    }
    for _ in 0..arguments.repetitions.get() {
        ours[0].add(decoder.time_prefill(prompt)?);
        if let Some(peer) = &mut peer {
            theirs[0].add(peer.time("prefill", prompt)?);
        }
        ours[1].add(decoder.time_decoding(generate)?);
        if let Some(peer) = &mut peer {
            theirs[1].add(peer.time("decode", generate)?);
        }
        // What measuring the bandwidth takes is not the model's.
        peak = peak.or_else(peak_memory);
        // In turns too: the best of a busy machine's moments against the best.
        bandwidth = bandwidth.max(decoder.read_bandwidth());
    }
    let measured = |timings: &[Timing; 2]| {
        Some(Measured { prefill: timings[0].rate()?, decode: timings[1].rate()? })
    };
    let none = || CliError::Program("nothing was measured".to_owned());
    let findings = Findings {
        threads: decoder.threads(),
        tokens: (prompt, generate),
        load_seconds,
        ours: measured(&ours).ok_or_else(none)?,
        bytes_per_token: decoder.bytes_per_token(),
        bandwidth,
        peak,
        theirs: peer.and_then(|peer| Some((peer.version().to_owned(), measured(&theirs)?))),
    };
    output.result(|| to_json(&findings), || describe(&findings))
}

/// The file that llama.cpp reads: the one named, or the model itself.
fn peer_file(arguments: &BenchArguments, named: Option<&PathBuf>) -> Result<PathBuf, CliError> {
    let path = match named {
        Some(path) => path.clone(),
        None => locate(&*disk(), &arguments.model)?,
    };
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return Ok(path);
    }
    let path = path.display();
    let what = format!("llama.cpp cannot read {path}: name a GGUF with --compare FILE");
    Err(CliError::Usage(what))
}

fn to_json(found: &Findings) -> Value {
    let mut json = json!({
        "prefill_tokens_per_s": found.ours.prefill.best,
        "decode_tokens_per_s": found.ours.decode.best,
        "prefill_tokens_per_s_median": found.ours.prefill.median,
        "decode_tokens_per_s_median": found.ours.decode.median,
        "prompt": found.tokens.0,
        "generate": found.tokens.1,
        "threads": found.threads,
        "load_s": found.load_seconds,
        "bytes_per_token": found.bytes_per_token,
        "read_bytes_per_s": found.bandwidth,
        "share_of_bandwidth": share(found),
        "peak_rss_bytes": found.peak,
    });
    if let Some((version, theirs)) = &found.theirs {
        json["llama_cpp"] = json!({
            "version": version,
            "prefill_tokens_per_s": theirs.prefill.best,
            "decode_tokens_per_s": theirs.decode.best,
            "prefill_tokens_per_s_median": theirs.prefill.median,
            "decode_tokens_per_s_median": theirs.decode.median,
            "prefill_ratio": found.ours.prefill.best / theirs.prefill.best,
            "decode_ratio": found.ours.decode.best / theirs.decode.best,
        });
    }
    json
}

/// Of the measured bandwidth, what decoding reads in weights.
fn share(found: &Findings) -> f64 {
    found.ours.decode.best * found.bytes_per_token as f64 / found.bandwidth
}

fn describe(found: &Findings) -> String {
    let (prompt, generate) = found.tokens;
    let row = |name: String, rates: [Rate; 2]| {
        let cells = rates.iter().flat_map(|rate| [rate.best, rate.median]);
        std::iter::once(name).chain(cells.map(|rate| format!("{rate:.1}"))).collect()
    };
    let mut rows: Vec<Vec<String>> =
        vec![row("lapidary".to_owned(), [found.ours.prefill, found.ours.decode])];
    if let Some((version, theirs)) = &found.theirs {
        rows.push(row(format!("llama.cpp ({version})"), [theirs.prefill, theirs.decode]));
        let ratio = |ours: f64, theirs: f64| format!("{:.2}", ours / theirs);
        let Measured { prefill, decode } = theirs;
        rows.push(vec![
            "ratio".to_owned(),
            ratio(found.ours.prefill.best, prefill.best),
            ratio(found.ours.prefill.median, prefill.median),
            ratio(found.ours.decode.best, decode.best),
            ratio(found.ours.decode.median, decode.median),
        ]);
    }
    let prefill = format!("prefill {prompt}");
    let decode = format!("decode {generate}");
    let header = ["tokens/s", &prefill, "median", &decode, "median"];
    let peak = found.peak.map_or_else(|| "unknown".to_owned(), megabytes);
    format!(
        "{}\n\n{} of weights a token: {:.1} GB/s of {:.1} GB/s measured ({:.0} %)\n\
         {} threads, loaded in {:.2} s, peak memory {peak}",
        table(&header, &rows),
        megabytes(found.bytes_per_token as u64),
        found.ours.decode.best * found.bytes_per_token as f64 / 1e9,
        found.bandwidth / 1e9,
        100.0 * share(found),
        found.threads,
        found.load_seconds,
    )
}
