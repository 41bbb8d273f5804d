//! Mixtures of experts: which weights a token reads, and that threads and company change nothing. Their
//! logits are held to the executor's with those of all other models.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use lapidary_runtime::{CacheType, Decoder, Options, Piece, Precision, Want};
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

fn options(threads: usize, precision: Precision, prefill_block: usize) -> Options {
    Options {
        threads: Some(threads),
        sequences: 2,
        prefill_block,
        cache: CacheType::F32,
        precision,
        ..Options::default()
    }
}

/// Logits after each of 30 tokens.
fn logits(decoder: &mut Decoder) -> Vec<f32> {
    let vocabulary = decoder.vocabulary() as u32;
    let tokens: Vec<u32> = (0..30).map(|i| (i * i * 7 + i * 13 + 5) % vocabulary).collect();
    let mut rows =
        decoder.step(&[Piece { sequence: 1, tokens: &tokens, want: Want::All }]).unwrap();
    let mut all = vec![];
    while let Some(row) = rows.next() {
        all.extend_from_slice(row.logits);
    }
    all
}

#[test]
fn neither_threads_nor_blocks_change_what_experts_give() {
    for name in ["mixtral", "qwen3-moe", "qwen3-moe-mixed"] {
        for precision in [Precision::Float, Precision::Int16, Precision::Int8] {
            let run = |threads| {
                let options = options(threads, precision, 16);
                logits(&mut Decoder::load(&model(name), &options).unwrap())
            };
            let one = run(1);
            assert!(one == run(2) && one == run(5), "{name} {precision:?}");
        }
        let run = |block| {
            let options = options(2, Precision::Float, block);
            logits(&mut Decoder::load(&model(name), &options).unwrap())
        };
        for (one, other) in run(1).iter().zip(run(30)) {
            assert!((one - other).abs() < 1e-4, "{name}: {one} {other}");
        }
    }
}

/// By `config.json`: a token is multiplied by the experts that it goes to, and no more.
#[test]
fn a_token_reads_its_experts_alone() {
    let text = std::fs::read_to_string(model("mixtral").join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, layers) = (number("hidden_size"), number("num_hidden_layers"));
    let (heads, key_heads) = (number("num_attention_heads"), number("num_key_value_heads"));
    let head = config["head_dim"].as_u64().map_or(hidden / heads, |head| head as usize);
    let experts = number("num_local_experts");
    let attention = 2 * hidden * head * (heads + key_heads);
    let expert = 3 * hidden * number("intermediate_size");
    let layer =
        |experts_of_a_token: usize| attention + experts * hidden + experts_of_a_token * expert;
    let decoder = Decoder::load(&model("mixtral"), &options(1, Precision::Float, 8)).unwrap();
    assert_eq!(decoder.products_per_token(), layers * layer(number("num_experts_per_tok")));
    assert!(number("num_experts_per_tok") < experts);
    let (read, held) = (decoder.bytes_per_token(), decoder.weight_bytes());
    assert!(read < held, "{read} of {held}");
}
