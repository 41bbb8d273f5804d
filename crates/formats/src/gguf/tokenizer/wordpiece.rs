//! WordPiece, as BERT has it: words cut into the longest pieces of the vocabulary.
//!
//! The converter turns the spelling of pieces round: a piece that continues a word loses its `##`,
//! one that starts a word gets a `▁`, and names in brackets stay.

use std::collections::HashSet;

use lapidary_store::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::vocabulary::{Use, Vocabulary};
use super::{Definition, GgufError, keys};

const CONTINUES: &str = "##";

pub(super) fn definition(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
) -> Result<Definition, GgufError> {
    let key = "tokenizer.ggml.normalizer.lowercase";
    let lowercase = match keys::boolean(metadata, key)? {
        Some(lowercase) => lowercase,
        // Files from before 2026 do not say; a vocabulary without capitals is for lower-cased text.
        None => !has_capitals(vocabulary),
    };
    let accents = keys::boolean(metadata, "tokenizer.ggml.normalizer.strip_accents")?;
    let unknown = vocabulary.special.unknown.map(|id| vocabulary.token(id));
    Ok(Definition {
        model: json!({
            "type": "WordPiece",
            "unk_token": keys::required("tokenizer.ggml.unknown_token_id", Ok(unknown))?,
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": 100,
            "vocab": pieces(vocabulary),
        }),
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": true,
            "strip_accents": accents,
            "lowercase": lowercase,
        }),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        post_processor: Value::Null,
        decoder: json!({"type": "WordPiece", "prefix": CONTINUES, "cleanup": true}),
        before: vocabulary.special.class,
        after: vocabulary.special.separator,
        before_second: false,
    })
}

/// Whether a piece of text has a capital letter of ASCII.
fn has_capitals(vocabulary: &Vocabulary<'_>) -> bool {
    vocabulary.iter().any(|(_, token, usage)| {
        usage == Use::Normal && !in_brackets(token) && token.bytes().any(|b| b.is_ascii_uppercase())
    })
}

fn in_brackets(token: &str) -> bool {
    token.starts_with('[') && token.ends_with(']')
}

/// The pieces in BERT's own spelling.
fn pieces(vocabulary: &Vocabulary<'_>) -> Map<String, Value> {
    let mut seen = HashSet::new();
    let mut pieces = Map::new();
    for (id, token, usage) in vocabulary.iter() {
        let piece = match token.strip_prefix('▁') {
            _ if usage != Use::Normal || in_brackets(token) => token.to_owned(),
            // A piece `##▁…` lost its sharps, and now looks like one that starts a word; that one
            // is before it in every vocabulary that was made from text.
            Some(word) if !seen.contains(word) => word.to_owned(),
            _ => format!("{CONTINUES}{token}"),
        };
        seen.insert(piece.clone());
        pieces.insert(piece, json!(id));
    }
    pieces
}
