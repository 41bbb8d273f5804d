//! Checks of a `tokenizer.json` that the `tokenizers` crate leaves out.
//!
//! On definitions that break these rules it panics, or does not give the same tokens every time.

use serde_json::{Map, Value};

use crate::error::Quoted;

/// Checks a definition; the error says what is wrong with it.
pub(super) fn check(definition: &Value) -> Result<(), String> {
    if let Some(model) = definition.get("model").and_then(Value::as_object) {
        if let Some(dropout) = model.get("dropout").filter(|dropout| !dropout.is_null()) {
            let problem = format!(
                "it leaves out merges at random (`dropout` {dropout}), so that a text has no fixed \
                 tokens; set `dropout` to null"
            );
            return Err(problem);
        }
        check_merges(model)?;
    }
    definition.get("post_processor").map_or(Ok(()), check_post_processor)
}

/// Every merge must join two tokens of the vocabulary to a third, and the second of them must be
/// long enough to have the prefix that is cut off it.
fn check_merges(model: &Map<String, Value>) -> Result<(), String> {
    let Some(merges) = model.get("merges").and_then(Value::as_array) else {
        return Ok(());
    };
    let Some(vocab) = model.get("vocab").and_then(Value::as_object) else {
        return Ok(());
    };
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    for merge in merges {
        // Other forms are refused by the crate itself.
        let Some((first, second)) = pair(merge) else {
            continue;
        };
        let joined = second.get(prefix.len()..).map(|rest| format!("{first}{rest}"));
        if !joined.is_some_and(|joined| vocab.contains_key(&joined)) {
            return Err(format!(
                "the merge of {} and {} is not in the vocabulary",
                Quoted(first),
                Quoted(second)
            ));
        }
    }
    Ok(())
}

/// The two parts of a merge, `["a", "b"]` or `"a b"`.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::Array(parts) => match parts.as_slice() {
            [first, second] => Some((first.as_str()?, second.as_str()?)),
            _ => None,
        },
        Value::String(text) => text.split_once(' '),
        _ => None,
    }
}

/// A template may only name special tokens that it defines, and, for a single text, only that.
fn check_post_processor(processor: &Value) -> Result<(), String> {
    for inner in processor.get("processors").and_then(Value::as_array).into_iter().flatten() {
        check_post_processor(inner)?;
    }
    let defined = processor.get("special_tokens").and_then(Value::as_object);
    for template in ["single", "pair"] {
        let pieces = processor.get(template).and_then(Value::as_array);
        for piece in pieces.into_iter().flatten() {
            let special = piece.pointer("/SpecialToken/id").and_then(Value::as_str);
            if let Some(token) = special
                && !defined.is_some_and(|defined| defined.contains_key(token))
            {
                return Err(format!(
                    "its template uses {}, which it does not define",
                    Quoted(token)
                ));
            }
            let sequence = piece.pointer("/Sequence/id").and_then(Value::as_str);
            if template == "single" && sequence == Some("B") {
                return Err("its template for one text uses a second one".to_owned());
            }
        }
    }
    Ok(())
}
