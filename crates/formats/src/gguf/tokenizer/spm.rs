//! SentencePiece models of type BPE, as the first Llamas and Mistrals have: spaces spelled `▁`,
//! pairs merged by the score of what they join to, bytes for characters without a token.

use std::cmp::Reverse;
use std::collections::HashMap;

use lapidary_store::gguf::Metadata;
use serde_json::{Value, json};

use super::vocabulary::{Use, Vocabulary};
use super::{Definition, GgufError, keys};

/// How SentencePiece spells a space.
const SPACE: &str = "▁";

pub(super) fn definition(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
) -> Result<Definition, GgufError> {
    let flag = |name: &str, default: bool| {
        let value = keys::boolean(metadata, &format!("tokenizer.ggml.{name}"))?;
        Ok::<_, GgufError>(value.unwrap_or(default))
    };
    let add_bos = flag("add_bos_token", true)?;
    let add_eos = flag("add_eos_token", false)?;
    let bytes = vocabulary.uses.iter().filter(|&&usage| usage == Use::Byte).count();
    let mut normalizers = vec![json!({
        "type": "Replace",
        "pattern": {"String": " "},
        "content": SPACE,
    })];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if flag("add_space_prefix", true)? {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Definition {
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": vocabulary.special.unknown.map(|id| vocabulary.token(id)),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": bytes == 256,
            "ignore_merges": false,
            "vocab": vocabulary.to_json(),
            "merges": merges(metadata, vocabulary)?,
        }),
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        post_processor: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        before: vocabulary.special.bos.filter(|_| add_bos),
        after: vocabulary.special.eos.filter(|_| add_eos),
        before_second: true,
    })
}

/// The merges that do what the scores do: every way to cut a token into two tokens, by falling
/// score of the token; of the same score, the longer left parts first, as transformers orders them.
fn merges(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Vec<Value>, GgufError> {
    let key = "tokenizer.ggml.scores";
    let scores = keys::required(key, keys::floats(metadata, key))?;
    let bad = |problem: String| GgufError::BadValue { key: key.to_owned(), problem };
    if scores.len() != vocabulary.tokens.len() {
        return Err(bad(format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len())));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(bad(format!("the score of token {id} is not a number")));
    }
    let text = |usage: Use| matches!(usage, Use::Normal | Use::UserDefined);
    let ids: HashMap<&str, u32> = vocabulary
        .iter()
        .filter(|&(_, _, usage)| text(usage))
        .map(|(id, token, _)| (token, id))
        .collect();
    let mut merges = Vec::new();
    for (id, token, usage) in vocabulary.iter() {
        if usage != Use::Normal {
            continue;
        }
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut pairs: Vec<_> = cuts
            .filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right)))
            .collect();
        pairs.sort_by_key(|&(left, right, ..)| (left, right));
        let score = scores[id as usize];
        merges.extend(pairs.into_iter().map(|(_, _, left, right)| (score, left, right)));
    }
    // Stable, so that what is equal stays in the order of the ids.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| lengths(a).cmp(&lengths(b))));
    Ok(merges.into_iter().map(|(_, left, right)| json!([left, right])).collect())
}

/// Orders by length in characters, the longest first.
fn lengths(&(_, left, right): &(f32, &str, &str)) -> Reverse<(usize, usize)> {
    Reverse((left.chars().count(), right.chars().count()))
}
