//! Prefill and decode rates of a model, without the rest of the program:
//! `speed MODEL [PROMPT] [GENERATE] [THREADS]`.

use lapidary_runtime::{Decoder, Options, RuntimeError, Timing};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), RuntimeError> {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize, otherwise: usize| {
        arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (prompt, generate) = (number(2, 512), number(3, 128));
    let options = Options { threads: Some(number(4, 2)), ..Options::default() };
    let begin = Instant::now();
    let model = arguments.get(1).map_or("assets/demo", String::as_str);
    let mut decoder = Decoder::load(Path::new(model), &options)?;
    println!("loaded in {:.2} s", begin.elapsed().as_secs_f64());
    let (mut prefill, mut decode) = (Timing::of(prompt), Timing::of(generate));
    for _ in 0..6 {
        prefill.add(decoder.time_prefill(prompt)?);
        decode.add(decoder.time_decoding(generate)?);
    }
    let bandwidth = decoder.read_bandwidth();
    let bytes = decoder.bytes_per_token() as f64;
    if let (Some(prefill), Some(decode)) = (prefill.rate(), decode.rate()) {
        println!("prefill {prompt}: {:.1} (median {:.1})", prefill.best, prefill.median);
        println!("decode {generate}: {:.1} (median {:.1})", decode.best, decode.median);
        println!(
            "{:.1} MB a token, {:.1} of {:.1} GB/s",
            bytes / 1e6,
            decode.best * bytes / 1e9,
            bandwidth / 1e9
        );
    }
    Ok(())
}
