//! The tokenizer's files from the metadata of a GGUF file.
//!
//! `tokenizer.json` gets the definition that the model's own has, as far as tokens go: the same
//! model, normalizer, pre-tokenizer, added tokens and post-processor, so that both split every text
//! into the same tokens. What GGUF does not keep, such as flags of offsets, gets its usual value.

mod bpe;
mod pieces;
mod pre;
mod spm;
mod vocabulary;
mod wordpiece;
mod write;

use lapidary_store::gguf::Metadata;
use serde_json::{Map, Value, json};

pub(super) use self::vocabulary::SpecialIds;
use self::vocabulary::Vocabulary;
use self::write::phi3_strips;
pub(super) use self::write::{Folder, entries};
use super::{GgufError, keys};

/// The contents of the files of a tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`, with the chat template.
    pub tokenizer_config: Value,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Value,
}

/// The files of the tokenizer that the metadata describe.
///
/// # Errors
/// When a key is missing or wrong, or the tokenizer is of a kind that is not supported.
pub fn tokenizer_files(metadata: &Metadata) -> Result<TokenizerFiles, GgufError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let definition = match Kind::of(metadata)? {
        Kind::Bpe => bpe::definition(metadata, &vocabulary)?,
        Kind::Spm => spm::definition(metadata, &vocabulary)?,
        Kind::WordPiece => wordpiece::definition(metadata, &vocabulary)?,
    };
    let special_tokens_map = special_tokens_map(&vocabulary);
    Ok(TokenizerFiles {
        tokenizer_config: tokenizer_config(metadata, &vocabulary, &definition)?,
        tokenizer: definition.into_json(&vocabulary, is_phi3(metadata)?),
        special_tokens_map: Value::Object(special_tokens_map),
    })
}

/// The kinds of tokenizers, `tokenizer.ggml.model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `gpt2`: byte-pair encoding of bytes spelled as characters.
    Bpe,
    /// `llama`: a SentencePiece model of type BPE, merging by scores.
    Spm,
    /// `bert`: the longest pieces of each word.
    WordPiece,
}

impl Kind {
    fn of(metadata: &Metadata) -> Result<Self, GgufError> {
        let key = "tokenizer.ggml.model";
        match keys::required(key, keys::string(metadata, key))? {
            "gpt2" => Ok(Self::Bpe),
            "llama" => Ok(Self::Spm),
            "bert" => Ok(Self::WordPiece),
            other => Err(GgufError::UnknownTokenizer(other.to_owned())),
        }
    }
}

/// The parts of a `tokenizer.json` that depend on the kind.
struct Definition {
    model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    /// Applied to every text, before the special tokens are added; null for nothing.
    post_processor: Value,
    decoder: Value,
    /// Special tokens put before and after every text.
    before: Option<u32>,
    after: Option<u32>,
    /// Whether a second text is preceded by `before` again.
    before_second: bool,
}

impl Definition {
    fn into_json(self, vocabulary: &Vocabulary<'_>, is_phi3: bool) -> Value {
        let template = self.template(vocabulary);
        let post_processor = match (self.post_processor, template) {
            (processor, None) => processor,
            (Value::Null, Some(template)) => template,
            (processor, Some(template)) => {
                json!({"type": "Sequence", "processors": [processor, template]})
            }
        };
        let added: Vec<_> = vocabulary
            .added()
            .map(|(id, token, special)| {
                let mut added = added_token(token, special, is_phi3);
                added.insert("id".to_owned(), json!(id));
                added.sort_keys();
                added
            })
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": post_processor,
            "decoder": self.decoder,
            "model": self.model,
        })
    }

    /// The post-processor that puts special tokens around texts; `None` if there are none.
    fn template(&self, vocabulary: &Vocabulary<'_>) -> Option<Value> {
        if self.before.is_none() && self.after.is_none() {
            return None;
        }
        let mut special_tokens = Map::new();
        for id in [self.before, self.after].into_iter().flatten() {
            let token = vocabulary.token(id);
            special_tokens
                .insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
        let special = |id: Option<u32>, type_id: u32| {
            let token = vocabulary.token(id?);
            Some(json!({"SpecialToken": {"id": token, "type_id": type_id}}))
        };
        let text =
            |name: &str, type_id: u32| Some(json!({"Sequence": {"id": name, "type_id": type_id}}));
        let second = self.before.filter(|_| self.before_second);
        let single = [special(self.before, 0), text("A", 0), special(self.after, 0)];
        let pair = [special(second, 1), text("B", 1), special(self.after, 1)];
        let single: Vec<_> = single.into_iter().flatten().collect();
        let pair: Vec<_> = single.iter().cloned().chain(pair.into_iter().flatten()).collect();
        Some(json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": special_tokens,
        }))
    }
}

/// Whether a model is called as those are whose added tokens take the spaces after them in llama.cpp.
fn is_phi3(metadata: &Metadata) -> Result<bool, GgufError> {
    let name = keys::string(metadata, "general.name")?.unwrap_or_default().to_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

fn added_token(token: &str, special: bool, is_phi3: bool) -> Map<String, Value> {
    let mut added = Map::new();
    added.insert("content".to_owned(), json!(token));
    for flag in ["lstrip", "normalized", "single_word"] {
        added.insert(flag.to_owned(), json!(false));
    }
    added.insert("rstrip".to_owned(), json!(is_phi3 && phi3_strips(token)));
    added.insert("special".to_owned(), json!(special));
    added
}

/// The named special tokens: `bos_token` and so on.
fn special_tokens_map(vocabulary: &Vocabulary<'_>) -> Map<String, Value> {
    let named = vocabulary.special.named();
    let named = named
        .into_iter()
        .filter_map(|(name, id)| Some((format!("{name}_token"), json!(vocabulary.token(id?)))));
    named.collect()
}

/// The class that takes `tokenizer.json` as it is: the classes of model families build their own
/// from parts of it, by rules that have changed between the versions of transformers.
const CLASS: &str = "PreTrainedTokenizerFast";

fn tokenizer_config(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    definition: &Definition,
) -> Result<Value, GgufError> {
    let mut config = special_tokens_map(vocabulary);
    let is_phi3 = is_phi3(metadata)?;
    let added: Map<_, _> = vocabulary
        .added()
        .map(|(id, token, special)| {
            (id.to_string(), Value::Object(added_token(token, special, is_phi3)))
        })
        .collect();
    config.insert("added_tokens_decoder".to_owned(), Value::Object(added));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    let inputs: &[&str] = if vocabulary.special.separator.is_some() {
        &["input_ids", "token_type_ids", "attention_mask"]
    } else {
        config.insert("add_bos_token".to_owned(), json!(definition.before.is_some()));
        config.insert("add_eos_token".to_owned(), json!(definition.after.is_some()));
        &["input_ids", "attention_mask"]
    };
    config.insert("model_input_names".to_owned(), json!(inputs));
    let key = "general.architecture";
    let architecture = keys::required(key, keys::string(metadata, key))?;
    if let Some(length) = keys::unsigned(metadata, &format!("{architecture}.context_length"))? {
        config.insert("model_max_length".to_owned(), json!(length));
    }
    config.insert("tokenizer_class".to_owned(), json!(CLASS));
    if let Some(template) = chat_template(metadata)? {
        config.insert("chat_template".to_owned(), template);
    }
    config.sort_keys();
    Ok(Value::Object(config))
}

/// The chat template: a string, or a list if there are several, by name.
fn chat_template(metadata: &Metadata) -> Result<Option<Value>, GgufError> {
    let template = keys::string(metadata, "tokenizer.chat_template")?;
    let names = keys::strings(metadata, "tokenizer.chat_templates")?.unwrap_or_default();
    if names.is_empty() {
        return Ok(template.map(Value::from));
    }
    let mut templates = Vec::new();
    if let Some(template) = template {
        templates.push(json!({"name": "default", "template": template}));
    }
    for name in names {
        let key = format!("tokenizer.chat_template.{name}");
        let template = keys::required(&key, keys::string(metadata, &key))?;
        templates.push(json!({"name": name, "template": template}));
    }
    Ok(Some(Value::Array(templates)))
}
