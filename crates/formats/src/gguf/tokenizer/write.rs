//! The tokenizer's metadata from the files of a Hugging Face folder: the inverse of
//! [`super::tokenizer_files`].
//!
//! What llama.cpp would do otherwise than the tokenizer is refused, not approximated: an unknown
//! rule for splitting text, a normalizer that has no key.

use std::collections::HashMap;

use lapidary_store::gguf::{MetaArray, MetaValue};
use serde_json::Value;

use super::vocabulary::Use;
use super::{pieces, pre};
use crate::gguf::GgufError;

/// The files of a folder that say what its tokenizer does; null where there is none.
#[derive(Debug, Default)]
pub(in super::super) struct Folder {
    pub(in super::super) config: Value,
    pub(in super::super) generation_config: Value,
    pub(in super::super) tokenizer: Value,
    pub(in super::super) tokenizer_config: Value,
    pub(in super::super) special_tokens_map: Value,
    /// `chat_template.jinja`.
    pub(in super::super) chat_template: Option<String>,
}

/// Keys and values in the order of the file, and what people should know of the choice.
#[derive(Debug, Default)]
pub(in super::super) struct Written {
    pub(in super::super) entries: Vec<(String, MetaValue)>,
    pub(in super::super) remarks: Vec<String>,
    /// What llama.cpp does otherwise.
    pub(in super::super) departures: Vec<String>,
}

impl Written {
    pub(super) fn put(&mut self, key: &str, value: MetaValue) {
        self.entries.push((format!("tokenizer.ggml.{key}"), value));
    }

    fn text(&mut self, key: &str, text: &str) {
        self.put(key, MetaValue::String(text.to_owned()));
    }
}

/// How a folder's tokenizer works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    Pieces,
    Words,
}

/// The entries of the tokenizer of a model whose embedding table has so many rows.
///
/// # Errors
/// When a file is missing or wrong, or GGUF has no place for what the tokenizer does.
pub(in super::super) fn entries(folder: &Folder, rows: usize) -> Result<Written, GgufError> {
    let kind = kind(&folder.tokenizer)?;
    let vocabulary = Vocabulary::read(folder, kind, rows)?;
    let mut written = Written::default();
    match kind {
        Kind::Bytes => {
            written.text("model", "gpt2");
            let rules = pre::rules(&folder.tokenizer).map_err(wrong)?;
            let name = rules.name();
            written.text("pre", name);
            let also = match rules.composed {
                true => {
                    "; llama.cpp does not compose characters (NFC) first, as the tokenizer does"
                }
                false => "",
            };
            written.remarks.push(format!(
                "tokenizer: its rules for splitting text are those that llama.cpp calls {name:?}{also}"
            ));
        }
        Kind::Pieces => {
            written.text("model", "llama");
            written.text("pre", "default");
        }
        Kind::Words => {
            written.text("model", "bert");
            written.text("pre", "default");
        }
    }
    let types = vocabulary.uses.iter().map(|usage| *usage as i32).collect();
    let merges = merges(&folder.tokenizer)?;
    if kind == Kind::Pieces {
        pieces::write(&folder.tokenizer, &vocabulary, &merges, &mut written)?;
    }
    strips(folder, &vocabulary.ids, &mut written);
    if kind == Kind::Words {
        words(&folder.tokenizer, &mut written)?;
    }
    special(folder, kind, &vocabulary, &mut written);
    written.put("tokens", MetaValue::Array(MetaArray::String(vocabulary.tokens)));
    written.put("token_type", MetaValue::Array(MetaArray::I32(types)));
    if kind == Kind::Bytes {
        let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        written.put("merges", MetaValue::Array(MetaArray::String(merges)));
    }
    chat_templates(folder, &mut written)?;
    Ok(written)
}

pub(super) fn wrong(problem: String) -> GgufError {
    GgufError::folder("tokenizer.json", problem)
}

fn kind(tokenizer: &Value) -> Result<Kind, GgufError> {
    if tokenizer.is_null() {
        let problem = "is missing, and a GGUF file holds the tokenizer; save the tokenizer into \
                       the folder with transformers' save_pretrained";
        return Err(wrong(problem.to_owned()));
    }
    let model = &tokenizer["model"];
    let is_of_bytes = || {
        let steps = pre::steps(&tokenizer["pre_tokenizer"], "pretokenizers");
        steps.iter().any(|step| step["type"] == "ByteLevel")
    };
    match model["type"].as_str() {
        Some("BPE") if is_of_bytes() => Ok(Kind::Bytes),
        Some("BPE") => Ok(Kind::Pieces),
        Some("WordPiece") => Ok(Kind::Words),
        // Files from before the key.
        None if model["merges"].is_array() => {
            Ok(if is_of_bytes() { Kind::Bytes } else { Kind::Pieces })
        }
        other => Err(wrong(format!(
            "a model of type {:?}; BPE and WordPiece can be written to GGUF",
            other.unwrap_or("none")
        ))),
    }
}

/// The tokens by id.
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) uses: Vec<Use>,
    /// Ids by the spelling of `tokenizer.json`.
    pub(super) ids: HashMap<String, u32>,
}

impl Vocabulary {
    fn read(folder: &Folder, kind: Kind, rows: usize) -> Result<Self, GgufError> {
        let model = &folder.tokenizer["model"];
        let map = model["vocab"].as_object();
        let map = map.ok_or_else(|| wrong("model.vocab is no map of tokens".to_owned()))?;
        let unknown = model["unk_token"].as_str();
        let mut found: Vec<Option<(String, Use)>> = vec![None; rows];
        let mut ids = HashMap::new();
        let mut put = |token: &str, id: &Value, spelled: String, usage: Use| {
            let place = id.as_u64().and_then(|id| usize::try_from(id).ok());
            let Some(slot) = place.and_then(|place| found.get_mut(place)) else {
                return Err(wrong(format!(
                    "token {token:?} has the id {id}, and the embedding table has {rows} rows"
                )));
            };
            ids.insert(token.to_owned(), id.as_u64().unwrap_or(0) as u32);
            *slot = Some((spelled, usage));
            Ok(())
        };
        for (token, id) in map {
            let usage = match kind {
                Kind::Pieces if is_byte(token) => Use::Byte,
                Kind::Pieces | Kind::Words if unknown == Some(token) => Use::Unknown,
                _ => Use::Normal,
            };
            put(token, id, spelling(kind, token), usage)?;
        }
        for added in folder.tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let token = added["content"].as_str();
            let token = token.ok_or_else(|| wrong("an added token has no content".to_owned()))?;
            let usage = match added["special"].as_bool().unwrap_or(false) || looks_special(token) {
                true if kind == Kind::Pieces && unknown == Some(token) => Use::Unknown,
                true => Use::Control,
                false => Use::UserDefined,
            };
            let spelled = match usage {
                Use::UserDefined => token.replace('▁', " "),
                _ => token.to_owned(),
            };
            put(token, &added["id"], spelled, usage)?;
        }
        let filled = found.into_iter().enumerate();
        let unused = |id: usize| (format!("[PAD{id}]"), Use::Unused);
        let filled = filled.map(|(id, token)| token.unwrap_or_else(|| unused(id)));
        let (tokens, uses) = filled.unzip();
        Ok(Self { tokens, uses, ids })
    }
}

/// A token as GGUF spells it: words of BERT are turned round.
fn spelling(kind: Kind, token: &str) -> String {
    match (kind, token.strip_prefix("##")) {
        (Kind::Words, Some(rest)) => rest.to_owned(),
        (Kind::Words, None) if !(token.starts_with('[') && token.ends_with(']')) => {
            format!("▁{token}")
        }
        _ => token.to_owned(),
    }
}

/// Whether a token stands for a byte, as `<0x0A>` does.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether llama.cpp's converter takes a token for a control token by its looks.
fn looks_special(token: &str) -> bool {
    let within = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

/// The merges, as strings of older files or as pairs.
fn merges(tokenizer: &Value) -> Result<Vec<(String, String)>, GgufError> {
    let list = tokenizer["model"]["merges"].as_array();
    let pair = |merge: &Value| match merge {
        Value::String(text) => {
            let first = text.chars().next().map_or(0, char::len_utf8);
            let space = text[first..].find(' ').map(|at| first + at);
            space.map(|at| (text[..at].to_owned(), text[at + 1..].to_owned()))
        }
        Value::Array(pair) => match &pair[..] {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    let bad = |merge: &Value| wrong(format!("model.merges: {merge} is no pair of tokens"));
    list.into_iter().flatten().map(|merge| pair(merge).ok_or_else(|| bad(merge))).collect()
}

/// Tokens that take the space beside them with them: GGUF has no place for that, but llama.cpp does as
/// Phi 3's do for models of that name.
fn strips(folder: &Folder, ids: &HashMap<String, u32>, written: &mut Written) {
    let added = folder.tokenizer["added_tokens"].as_array();
    let added: Vec<&Value> = added.into_iter().flatten().collect();
    let content = |token: &Value| token["content"].as_str().unwrap_or_default().to_owned();
    let is_odd = |token: &&&Value| {
        ["lstrip", "rstrip", "single_word"].iter().any(|flag| token[*flag] == true)
    };
    let odd: Vec<String> = added.iter().filter(is_odd).map(|token| content(token)).collect();
    let is_phi = |token: &&Value| {
        let strips = phi3_strips(&content(token));
        (token["rstrip"] == true) == strips
            && token["lstrip"] != true
            && token["single_word"] != true
    };
    // llama.cpp loads no model of that name without them.
    let has_them =
        ["<unk>", "<s>", "</s>", "<|endoftext|>"].iter().all(|token| ids.contains_key(*token));
    match odd.first() {
        None => {}
        Some(_) if has_them && added.iter().all(is_phi) => {
            let name = MetaValue::String("Phi-3".to_owned());
            written.entries.push(("general.name".to_owned(), name));
            written.remarks.push(
                "tokenizer: its added tokens take the spaces after them as Phi 3's do, which \
                 llama.cpp does for models called so; the file says that name"
                    .to_owned(),
            );
        }
        Some(first) => written.departures.push(format!(
            "{} added tokens ({first:?} the first) take the spaces beside them or stand as words \
             alone; llama.cpp finds them anywhere and leaves the spaces",
            odd.len()
        )),
    }
}

/// Whether llama.cpp has an added token take the spaces after it, in models that are called Phi 3.
pub(super) fn phi3_strips(token: &str) -> bool {
    !matches!(token, "<unk>" | "<s>" | "<|endoftext|>")
}

pub(super) fn no_normalizer(kind: Option<&str>) -> GgufError {
    wrong(format!("a normalizer {:?} has no place in GGUF", kind.unwrap_or("without a type")))
}

/// What BERT does to a text before it looks for words.
fn words(tokenizer: &Value, written: &mut Written) -> Result<(), GgufError> {
    let normalizer = &tokenizer["normalizer"];
    if normalizer["type"] != "BertNormalizer" {
        return Err(no_normalizer(normalizer["type"].as_str()));
    }
    let lowercase = normalizer["lowercase"].as_bool().unwrap_or(true);
    written.put("normalizer.lowercase", MetaValue::Bool(lowercase));
    if let Some(strip) = normalizer["strip_accents"].as_bool() {
        written.put("normalizer.strip_accents", MetaValue::Bool(strip));
    }
    Ok(())
}

/// Ids of special tokens, and which of them are put around a text.
fn special(folder: &Folder, kind: Kind, vocabulary: &Vocabulary, written: &mut Written) {
    let named = |name: &str| {
        let of = |file: &Value| {
            let token = &file[format!("{name}_token")];
            let text = token.as_str().or_else(|| token["content"].as_str());
            text.and_then(|text| vocabulary.ids.get(text)).copied()
        };
        let stated = || {
            let id = &folder.config[format!("{name}_token_id")];
            let id = id.as_array().and_then(|ids| ids.first()).unwrap_or(id).as_u64()?;
            u32::try_from(id).ok().filter(|id| (*id as usize) < vocabulary.tokens.len())
        };
        of(&folder.tokenizer_config).or_else(|| of(&folder.special_tokens_map)).or_else(stated)
    };
    // Sic: the key is misspelled in the format.
    let keys = [
        ("bos", "bos"),
        ("eos", "eos"),
        ("unk", "unknown"),
        ("sep", "seperator"),
        ("pad", "padding"),
        ("cls", "cls"),
        ("mask", "mask"),
    ];
    for (name, key) in keys {
        if let Some(id) = named(name) {
            written.put(&format!("{key}_token_id"), MetaValue::U32(id));
        }
    }
    if kind == Kind::Words {
        return;
    }
    let eos = named("eos");
    let ends = folder.generation_config["eos_token_id"].as_array();
    let ends = ends.into_iter().flatten().filter_map(Value::as_u64);
    let others = ends.filter_map(|id| u32::try_from(id).ok()).filter(|id| Some(*id) != eos);
    let others = others.filter(|id| (*id as usize) < vocabulary.tokens.len());
    for (key, id) in ["eot", "eom"].into_iter().zip(others) {
        written.put(&format!("{key}_token_id"), MetaValue::U32(id));
    }
    let (first, last) = around(&folder.tokenizer["post_processor"]);
    let is = |token: Option<String>, name: &str| {
        let id = token.and_then(|token| vocabulary.ids.get(&token).copied());
        id.is_some() && id == named(name)
    };
    let flagged = |name: &str| {
        let flag = folder.tokenizer_config[format!("add_{name}_token")].as_bool();
        flag.unwrap_or(false) && named(name).is_some()
    };
    let before = is(first, "bos") || flagged("bos");
    let after = is(last, "eos") || flagged("eos");
    written.put("add_bos_token", MetaValue::Bool(before));
    written.put("add_eos_token", MetaValue::Bool(after));
}

/// The special tokens that a post-processor puts before and after a text.
fn around(post_processor: &Value) -> (Option<String>, Option<String>) {
    let steps = pre::steps(post_processor, "processors");
    let template = steps.iter().find(|step| step["type"] == "TemplateProcessing");
    let single = template.and_then(|template| template["single"].as_array());
    let special = |piece: Option<&Value>| {
        piece.and_then(|piece| piece["SpecialToken"]["id"].as_str()).map(str::to_owned)
    };
    match single {
        Some(pieces) => (special(pieces.first()), special(pieces.last())),
        None => (None, None),
    }
}

/// The chat templates: one, or several by name.
fn chat_templates(folder: &Folder, written: &mut Written) -> Result<(), GgufError> {
    let mut put = |key: String, text: &str| {
        written.entries.push((key, MetaValue::String(text.to_owned())));
    };
    let mut names = vec![];
    match &folder.tokenizer_config["chat_template"] {
        Value::String(text) => put("tokenizer.chat_template".to_owned(), text),
        Value::Array(templates) => {
            for template in templates {
                let (Some(name), Some(text)) =
                    (template["name"].as_str(), template["template"].as_str())
                else {
                    let problem = "an entry has no name or no template";
                    let file = "tokenizer_config.json: chat_template";
                    return Err(GgufError::folder(file, problem));
                };
                match name {
                    "default" => put("tokenizer.chat_template".to_owned(), text),
                    name => {
                        put(format!("tokenizer.chat_template.{name}"), text);
                        names.push(name.to_owned());
                    }
                }
            }
        }
        _ => {
            if let Some(text) = &folder.chat_template {
                put("tokenizer.chat_template".to_owned(), text);
            }
        }
    }
    if !names.is_empty() {
        let names = MetaValue::Array(MetaArray::String(names));
        written.entries.push(("tokenizer.chat_templates".to_owned(), names));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::gguf::tokenizer::tokenizer_files;
    use lapidary_store::gguf::Metadata;
    use serde_json::json;

    fn text(text: &str) -> MetaValue {
        MetaValue::String(text.to_owned())
    }

    fn strings(texts: &[&str]) -> MetaValue {
        MetaValue::Array(MetaArray::String(texts.iter().map(|t| (*t).to_owned()).collect()))
    }

    /// The files that some metadata describe, as a folder.
    fn folder(metadata: &Metadata) -> Folder {
        let files = tokenizer_files(metadata).unwrap();
        Folder {
            tokenizer: files.tokenizer,
            tokenizer_config: files.tokenizer_config,
            special_tokens_map: files.special_tokens_map,
            config: json!({}),
            ..Folder::default()
        }
    }

    /// Entries by key, after the tokenizer's files went there and back.
    fn again(metadata: &Metadata, rows: usize) -> Metadata {
        let mut found = Metadata::default();
        for (key, value) in entries(&folder(metadata), rows).unwrap().entries {
            assert!(found.insert(key, value));
        }
        found
    }

    fn same(before: &Metadata, after: &Metadata, keys: &[&str]) {
        for key in keys {
            let key = match key.strip_prefix('/') {
                Some(rest) => format!("tokenizer.{rest}"),
                None => format!("tokenizer.ggml.{key}"),
            };
            assert_eq!(before.get(&key), after.get(&key), "{key}");
        }
    }

    fn metadata(entries: Vec<(&str, MetaValue)>) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", text("llama"));
        for (key, value) in entries {
            metadata.set(&format!("tokenizer.{key}"), value);
        }
        metadata
    }

    #[test]
    fn byte_pairs_come_back() {
        let tokens = ["<|a|>", "h", "e", "he", "Ġ", "Ġhe", "[PAD6]", "x y"];
        let before = metadata(vec![
            ("ggml.model", text("gpt2")),
            ("ggml.pre", text("qwen2")),
            ("ggml.tokens", strings(&tokens)),
            ("ggml.token_type", MetaValue::Array(MetaArray::I32(vec![3, 1, 1, 1, 1, 1, 5, 4]))),
            ("ggml.merges", strings(&["h e", "Ġ he"])),
            ("ggml.bos_token_id", MetaValue::U32(0)),
            ("ggml.eos_token_id", MetaValue::U32(0)),
            ("ggml.add_bos_token", MetaValue::Bool(true)),
            ("ggml.add_eos_token", MetaValue::Bool(false)),
            ("chat_template", text("{{ messages }}")),
            ("chat_template.tools", text("{{ tools }}")),
            ("chat_templates", strings(&["tools"])),
        ]);
        let mut folder = folder(&before);
        // A gap is not in `tokenizer.json`, and is filled.
        let vocab = folder.tokenizer["model"]["vocab"].as_object_mut().unwrap();
        assert!(vocab.shift_remove("[PAD6]").is_some());
        let written = entries(&folder, 8).unwrap();
        assert!(written.remarks[0].contains("qwen2"));
        let mut after = Metadata::default();
        written.entries.into_iter().for_each(|(key, value)| after.set(&key, value));
        let keys = ["model", "pre", "tokens", "token_type", "merges", "bos_token_id"];
        same(&before, &after, &keys);
        same(&before, &after, &["eos_token_id", "add_bos_token", "add_eos_token"]);
        same(&before, &after, &["/chat_template", "/chat_template.tools", "/chat_templates"]);
        assert!(entries(&folder, 7).is_err(), "a token beyond the table");
    }

    #[test]
    fn every_name_of_rules_is_found_again() {
        for name in ["gpt-2", "mpt", "smollm", "command-r", "llama-bpe", "dbrx", "qwen2", "tekken"]
        {
            let before = metadata(vec![
                ("ggml.model", text("gpt2")),
                ("ggml.pre", text(name)),
                ("ggml.tokens", strings(&["a"])),
                ("ggml.merges", strings(&[])),
            ]);
            same(&before, &again(&before, 1), &["pre"]);
        }
    }

    #[test]
    fn pieces_come_back_with_scores_of_the_same_order() {
        let tokens = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "ab", "▁ab", "ba"];
        let mut types = vec![2, 3, 3, 6];
        types.resize(tokens.len(), 1);
        let scores = [0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
        let before = metadata(vec![
            ("ggml.model", text("llama")),
            ("ggml.pre", text("default")),
            ("ggml.tokens", strings(&tokens)),
            ("ggml.token_type", MetaValue::Array(MetaArray::I32(types))),
            ("ggml.scores", MetaValue::Array(MetaArray::F32(scores.to_vec()))),
            ("ggml.add_space_prefix", MetaValue::Bool(true)),
            ("ggml.add_bos_token", MetaValue::Bool(true)),
            ("ggml.bos_token_id", MetaValue::U32(1)),
            ("ggml.eos_token_id", MetaValue::U32(2)),
            ("ggml.unknown_token_id", MetaValue::U32(0)),
        ]);
        let after = again(&before, tokens.len());
        same(&before, &after, &["model", "tokens", "token_type", "add_space_prefix"]);
        same(&before, &after, &["add_bos_token", "bos_token_id", "eos_token_id"]);
        let Some(MetaValue::Array(MetaArray::F32(found))) = after.get("tokenizer.ggml.scores")
        else {
            panic!("no scores")
        };
        let order = |scores: &[f32]| {
            let mut ids = vec![7, 8, 9];
            ids.sort_by(|a: &usize, b| scores[*b].total_cmp(&scores[*a]));
            ids
        };
        assert_eq!(order(found), order(&scores));
        // The merges, and so the tokens of every text, are the same in the end.
        let (first, second) = (
            tokenizer_files(&before),
            tokenizer_files(&{
                let mut whole = after.clone();
                whole.set("general.architecture", text("llama"));
                whole
            }),
        );
        assert_eq!(first.unwrap().tokenizer, second.unwrap().tokenizer);
    }

    #[test]
    fn words_come_back() {
        let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁he", "llo"];
        let types = vec![3, 3, 3, 3, 3, 1, 1];
        let id = MetaValue::U32;
        let before = metadata(vec![
            ("ggml.model", text("bert")),
            ("ggml.pre", text("default")),
            ("ggml.tokens", strings(&tokens)),
            ("ggml.token_type", MetaValue::Array(MetaArray::I32(types))),
            ("ggml.padding_token_id", id(0)),
            ("ggml.unknown_token_id", id(1)),
            ("ggml.cls_token_id", id(2)),
            ("ggml.seperator_token_id", id(3)),
            ("ggml.mask_token_id", id(4)),
            ("ggml.normalizer.lowercase", MetaValue::Bool(false)),
        ]);
        let after = again(&before, tokens.len());
        same(&before, &after, &["model", "tokens", "token_type", "normalizer.lowercase"]);
        same(&before, &after, &["cls_token_id", "seperator_token_id", "unknown_token_id"]);
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let refused = |tokenizer: Value, why: &str| {
            let error = entries(&Folder { tokenizer, ..Folder::default() }, 4).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        };
        refused(Value::Null, "is missing");
        refused(json!({ "model": { "type": "Unigram" } }), "Unigram");
        refused(json!({ "model": { "type": "BPE" } }), "vocab");
        let bytes = json!({ "type": "ByteLevel", "use_regex": true });
        let vocab = json!({ "a": 0, "b": 1 });
        refused(
            json!({ "model": { "type": "BPE", "vocab": vocab }, "pre_tokenizer": bytes,
                    "normalizer": { "type": "Lowercase" } }),
            "Lowercase",
        );
        refused(
            json!({ "model": { "type": "BPE", "vocab": { "a": -1 } }, "pre_tokenizer": bytes }),
            "rows",
        );
        let model = |merges: Value| {
            json!({ "model": { "type": "BPE", "merges": merges,
                               "vocab": { "a": 0, "b": 1, "ab": 2, "ba": 3 } } })
        };
        refused(model(json!([["a", "b"], ["b", "a"], ["a", "b"]])), "do not stand together");
        refused(model(json!([["a", "c"]])), "make no token");
        refused(model(json!(["ab"])), "no pair");
    }
}
