//! `lapidary eval`: perplexity, divergence from a reference, bits per weight.

use super::{disk, open};
use crate::arguments::{EvalArguments, PrecisionName, ProtocolName};
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Shown;
use crate::signal::stop_flag;
use crate::table::megabytes;
use lapidary_engine::{Progress, tokenizer};
use lapidary_eval::{
    EncoderAgreement, EvalError, Evaluation, Protocol, Report, Size, compare_encoders, evaluate,
    size,
};
use lapidary_formats::Source;
use lapidary_model::{Precision, Spec, spec};
use lapidary_store::fs::read_text;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;

/// Longest text that is evaluated.
const MOST_TEXT: u64 = 1 << 30;

/// Held-out text of the demo model's kind.
pub(crate) const HELD_OUT: &str = include_str!("../../../../assets/demo/evaluation.txt");

pub(crate) fn run(
    arguments: &EvalArguments,
    quiet: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let fs = disk();
    let source = open(&fs, &arguments.model)?;
    let model = spec(source.config())?;
    let reference = arguments.reference.as_ref().map(|name| open(&fs, name)).transpose()?;
    let reference_spec = reference.as_ref().map(|source| spec(source.config())).transpose()?;
    let reference = reference.as_ref().zip(reference_spec.as_ref());
    let text = match &arguments.text {
        Some(path) => read_text(&*fs, path, "the text", MOST_TEXT)?,
        None => HELD_OUT.to_owned(),
    };
    let size = size(&source, &model);
    if let (false, Some(reference)) = (model.causal, reference) {
        let agreement = encoders(arguments, (&source, &model), reference, &text)?;
        return output
            .result(|| encoder_json(&agreement, &size), || encoder_text(&agreement, &size));
    }
    let progress = Shown::new(quiet);
    let tokenizer = tokenizer(&source)?;
    let evaluation = Evaluation {
        model: (&source, &model),
        reference,
        reference_limit: arguments.reference_windows.map(NonZeroUsize::get),
        tokenizer: &tokenizer,
        text: &text,
        protocol: protocol(arguments.protocol),
        limit: arguments.windows.map(NonZeroUsize::get),
        context: arguments.context,
        precision: precision(arguments.precision),
        stop: &stop_flag(),
    };
    let mut begun = false;
    let report = evaluate(&evaluation, &mut |done, all| {
        if !std::mem::replace(&mut begun, true) {
            progress.begin("evaluating", all as u64);
        }
        progress.advance(done as u64, "");
    })?;
    progress.end();
    if let Some(context) = arguments.context.filter(|context| *context > report.length) {
        progress.note(&format!(
            "windows have {} tokens, the model's context, instead of {context}",
            report.length
        ));
    }
    output.result(|| to_json(&report, &size), || describe(&report, &size))
}

pub(crate) fn precision(name: PrecisionName) -> Precision {
    match name {
        PrecisionName::F32 => Precision::F32,
        PrecisionName::Bf16 => Precision::Bf16,
    }
}

fn protocol(name: ProtocolName) -> Protocol {
    match name {
        ProtocolName::Windows => Protocol::Windows,
        ProtocolName::LlamaCpp => Protocol::LlamaCpp,
        ProtocolName::Word => Protocol::Word,
    }
}

/// Agreement of hidden states, on rows of the text.
fn encoders(
    arguments: &EvalArguments,
    model: (&Source, &Spec),
    reference: (&Source, &Spec),
    text: &str,
) -> Result<EncoderAgreement, CliError> {
    let tokenizer = tokenizer(model.0)?;
    let length = arguments.context.unwrap_or(128).min(model.1.context);
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty());
    let mut rows = vec![];
    let rows_asked = [arguments.windows, arguments.reference_windows].into_iter().flatten().min();
    for paragraph in paragraphs.take(rows_asked.map_or(64, NonZeroUsize::get)) {
        let mut row = tokenizer.encode(paragraph, true)?;
        row.truncate(length);
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(EvalError::Unusable("the text is empty".to_owned()).into());
    }
    let precision = precision(arguments.precision);
    Ok(compare_encoders(model, reference, &rows, precision, &stop_flag())?)
}

fn encoder_json(agreement: &EncoderAgreement, size: &Size) -> Value {
    json!({
        "embedding_cosine": agreement.embedding_cosine,
        "hidden_error": agreement.hidden_error,
        "tokens": agreement.tokens,
        "bits_per_weight": size.bits_per_weight,
        "bytes": size.bytes,
    })
}

fn encoder_text(agreement: &EncoderAgreement, size: &Size) -> String {
    format!(
        "cosine of mean-pooled states {:.6}, relative error of hidden states {:.5} ({} tokens)\n\
         {:.3} bits a weight, {}",
        agreement.embedding_cosine,
        agreement.hidden_error,
        agreement.tokens,
        size.bits_per_weight,
        megabytes(size.bytes)
    )
}

fn to_json(report: &Report, size: &Size) -> Value {
    let mut json = json!({
        "protocol": report.protocol.name(),
        "window": report.length,
        "perplexity": report.scored.perplexity,
        "tokens": report.scored.tokens,
        "windows": report.windows,
        "bits_per_weight": size.bits_per_weight,
        "embedding_bits_per_weight": size.embedding_bits_per_weight,
        "bytes": size.bytes,
    });
    if let Some(word) = report.scored.word_perplexity {
        json["word_perplexity"] = json!(word);
    }
    if let Some(byte) = report.scored.byte_perplexity {
        json["byte_perplexity"] = json!(byte);
        json["bits_per_byte"] = json!(byte.log2());
    }
    if let Some(against) = &report.against {
        if against.windows < report.windows {
            json["compared_windows"] = json!(against.windows);
            json["compared_perplexity"] = json!(against.perplexity);
        }
        json["reference_perplexity"] = json!(against.reference_perplexity);
        json["kl_divergence"] = json!(against.kl_divergence);
        json["top1_agreement"] = json!(against.top1_agreement);
    }
    json
}

fn describe(report: &Report, size: &Size) -> String {
    let mut text = format!(
        "perplexity {:.4} (protocol {}, {} windows of {}, {} tokens)\n",
        report.scored.perplexity,
        report.protocol.name(),
        report.windows,
        report.length,
        report.scored.tokens
    );
    if let (Some(word), Some(byte)) = (report.scored.word_perplexity, report.scored.byte_perplexity)
    {
        let _ = writeln!(
            text,
            "word perplexity {word:.4}, byte perplexity {byte:.5}, {:.5} bits a byte",
            byte.log2()
        );
    }
    if let Some(against) = &report.against {
        if against.windows < report.windows {
            let (windows, perplexity) = (against.windows, against.perplexity);
            let _ = write!(text, "first {windows} windows: perplexity {perplexity:.4}, ");
        }
        let _ = writeln!(
            text,
            "reference {:.4}, KL divergence {:.5}, top-1 agreement {:.2} %",
            against.reference_perplexity,
            against.kl_divergence,
            100.0 * against.top1_agreement
        );
    }
    let _ = write!(
        text,
        "{:.3} bits a weight ({:.3} in the embedding), {}",
        size.bits_per_weight,
        size.embedding_bits_per_weight,
        megabytes(size.bytes)
    );
    text
}
