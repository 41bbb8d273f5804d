//! Byte-pair encoding as GPT-2 has it: bytes spelled as characters, merges in order of rank.

use std::collections::HashSet;

use lapidary_store::gguf::Metadata;
use serde_json::{Value, json};

use super::vocabulary::Vocabulary;
use super::{Definition, GgufError, keys, pre};

pub(super) fn definition(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
) -> Result<Definition, GgufError> {
    let key = "tokenizer.ggml.pre";
    let name = keys::required(key, keys::string(metadata, key))?;
    let Some(rules) = pre::find(name) else {
        return Err(GgufError::UnknownPreTokenizer(name.to_owned()));
    };
    let merges = merges(metadata, vocabulary)?;
    let add_bos = keys::boolean(metadata, "tokenizer.ggml.add_bos_token")?;
    let add_eos = keys::boolean(metadata, "tokenizer.ggml.add_eos_token")?;
    let byte_level = json!({
        "type": "ByteLevel",
        "add_prefix_space": true,
        "trim_offsets": false,
        "use_regex": true,
    });
    Ok(Definition {
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": rules.ignore_merges,
            "vocab": vocabulary.to_json(),
            "merges": merges,
        }),
        normalizer: rules.normalizer(),
        pre_tokenizer: rules.pre_tokenizer(),
        post_processor: byte_level.clone(),
        decoder: byte_level,
        before: vocabulary.special.bos.filter(|_| add_bos.unwrap_or(rules.add_bos)),
        after: vocabulary.special.eos.filter(|_| add_eos.unwrap_or(false)),
        before_second: true,
    })
}

/// The pairs, checked to be tokens that join to a token: `tokenizers` refuses others.
fn merges(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Vec<Value>, GgufError> {
    let key = "tokenizer.ggml.merges";
    let merges = keys::required(key, keys::strings(metadata, key))?;
    let tokens: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let pair = |(index, merge): (usize, &String)| {
        // The first character may itself be a space.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let space = merge[first..].find(' ').map(|at| first + at);
        let pair = space.map(|at| (&merge[..at], &merge[at + 1..]));
        match pair {
            Some((left, right))
                if [left, right, &[left, right].concat()]
                    .iter()
                    .all(|token| tokens.contains(token)) =>
            {
                Ok(json!([left, right]))
            }
            _ => Err(GgufError::BadValue {
                key: key.to_owned(),
                problem: format!("entry {index}, `{merge}`, is not a pair of tokens that join"),
            }),
        }
    };
    merges.iter().enumerate().map(pair).collect()
}
