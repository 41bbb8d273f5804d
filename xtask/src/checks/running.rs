//! The packed executor: greedy text in f32 is transformers', and 8-bit activations stay near the float
//! executor on the decoded weights.

use super::load::w4a16;
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision as Products, spec};
use lapidary_runtime::{CacheType, Decoder, Options, Piece, Precision, Want};
use serde_json::Value;
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "running",
    summary: "greedy text in f32 against transformers', 8-bit activations against the float executor",
    models: &["smollm2"],
    run,
};

/// Tokens after each prompt.
const FOLLOWING: usize = 200;
/// Tokens whose logits are compared.
const COMPARED: usize = 256;
/// Most that 8-bit activations may move logits, relative to their length: what is wanted. It is not
/// reached yet: each product is off by about 0.5 %, and SmolLM2 has sixty of them one after the other.
const TOLERANCE: f64 = 0.007;
/// Most that another order of sums may.
const EXACT_TOLERANCE: f64 = 1e-4;

const PROMPTS: [&str; 5] = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "The three most important inventions of the last century were",
];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    greedy(context, report)?;
    let model = context.model("offgrid")?;
    let packed = context.compressed(&model, &w4a16(context))?;
    near(context, report, "W4A16, group 64", &packed.folder)?;
    near(context, report, "GGUF", &context.model("smollm2")?)
}

fn greedy(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("smollm2")?;
    let source = context.open(&model)?;
    let tokenizer = lapidary_engine::tokenizer(&source).map_err(Error::library)?;
    let prompts = PROMPTS.map(|prompt| tokenizer.encode(prompt, false).map_err(Error::library));
    let prompts = prompts.into_iter().collect::<Result<Vec<_>, _>>()?;
    let file = context.scratch("prompts.json");
    let text = serde_json::to_vec(&prompts).map_err(Error::library)?;
    std::fs::write(&file, text).map_err(Error::at(&file))?;
    let mut script = context.python("greedy.py");
    script.arg(&model).arg(&file).args(["--tokens", &FOLLOWING.to_string()]);
    let theirs = json(&mut script)?;
    let mut decoder =
        Decoder::from_source(&source, &exact(FOLLOWING + 64)).map_err(Error::library)?;
    for (index, (prompt, text)) in prompts.iter().zip(PROMPTS).enumerate() {
        let ours = follow(&mut decoder, prompt)?;
        let row = &theirs["rows"][index];
        let ids = row["ids"].as_array().into_iter().flatten();
        let theirs: Vec<u64> = ids.filter_map(Value::as_u64).collect();
        let same = ours.iter().zip(&theirs).take_while(|(a, b)| u64::from(**a) == **b).count();
        let figures = format!("{same} of {FOLLOWING} tokens, smallest gap {}", row["gap"]);
        report.line(same == FOLLOWING, &format!("after {text:?}"), &figures);
    }
    Ok(())
}

/// The likeliest tokens after a prompt.
fn follow(decoder: &mut Decoder, prompt: &[u32]) -> Result<Vec<u32>, Error> {
    decoder.truncate(0, 0);
    let (mut following, mut next) = (vec![], prompt.to_vec());
    while following.len() < FOLLOWING {
        let piece = Piece { sequence: 0, tokens: &next, want: Want::Last };
        let mut logits = decoder.step(&[piece]).map_err(Error::library)?;
        let row = logits.next().map(|row| row.logits).unwrap_or_default();
        let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a)));
        let token = best.unwrap_or_default() as u32;
        following.push(token);
        next = vec![token];
    }
    Ok(following)
}

/// Nothing rounded but sums.
fn exact(context: usize) -> Options {
    Options {
        cache: CacheType::F32,
        precision: Precision::Float,
        context: Some(context),
        ..Options::default()
    }
}

fn near(context: &Context, report: &mut Report, what: &str, model: &Path) -> Result<(), Error> {
    let source = context.open(model)?;
    let tokenizer = lapidary_engine::tokenizer(&source).map_err(Error::library)?;
    let text = std::fs::read_to_string(&context.text).map_err(Error::at(&context.text))?;
    let start: String = text.chars().take(16 * COMPARED).collect();
    let mut tokens = tokenizer.encode(&start, false).map_err(Error::library)?;
    tokens.truncate(COMPARED);

    let spec = spec(source.config()).map_err(Error::library)?;
    let executor = Executor::new(Fused { precision: Products::F32 });
    let batch = Batch { rows: 1, seq_len: tokens.len() };
    let ids = tokens.as_slice().into();
    let mut x = executor.embed(&spec, &source, batch, ids).map_err(Error::library)?;
    for graph in spec.blocks.iter().chain(&spec.head) {
        let weights = GraphWeights::load(graph, &source, executor.backend());
        let weights = weights.map_err(Error::library)?;
        x = executor.run(graph, &weights, batch, x, None).map_err(Error::library)?;
    }

    for (mode, options, most) in [
        ("8-bit activations", Options::default(), TOLERANCE),
        (
            "16-bit activations",
            Options { precision: Precision::Int16, ..Options::default() },
            TOLERANCE,
        ),
        ("f32", exact(COMPARED), EXACT_TOLERANCE),
    ] {
        let mut decoder = Decoder::from_source(&source, &options).map_err(Error::library)?;
        for (how, length) in [("as a prompt", tokens.len()), ("one by one", 1)] {
            let relative = difference(&mut decoder, &tokens, length, &x)?;
            let figures = format!("{:.4} % from the float executor", 100.0 * relative);
            let line = format!("{what}, {mode}, logits {how}");
            report.line(relative <= most, &line, &figures);
        }
    }
    Ok(())
}

/// Of the logits after each token, given `length` at a time, from those wanted: relative to these.
fn difference(
    decoder: &mut Decoder,
    tokens: &[u32],
    length: usize,
    wanted: &[f32],
) -> Result<f64, Error> {
    decoder.truncate(0, 0);
    let (mut error, mut size) = (0.0, 0.0);
    let mut rows = wanted.chunks_exact(wanted.len() / tokens.len());
    for tokens in tokens.chunks(length) {
        let piece = Piece { sequence: 0, tokens, want: Want::All };
        let mut logits = decoder.step(&[piece]).map_err(Error::library)?;
        while let Some(have) = logits.next() {
            for (have, want) in have.logits.iter().zip(rows.next().unwrap_or_default()) {
                error += f64::from(have - want).powi(2);
                size += f64::from(*want).powi(2);
            }
        }
    }
    Ok((error / size).sqrt())
}
