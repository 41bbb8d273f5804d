//! The tokenizer on small definitions made here.

use lapidary_store::{Category, Tokenizer};
use serde_json::{Value, json};

/// A byte-level BPE tokenizer with Llama 3's pattern, whose look-ahead needs more than plain
/// regular expressions. Truncation and padding are asked for, and must not happen.
fn definition() -> Value {
    let pattern = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    // The 256 characters that stand for bytes: printable ones for themselves, the rest from U+0100.
    let printable = (33..=126).chain(161..=172).chain(174..=255);
    let mut alphabet: Vec<char> = printable.map(|c: u32| char::from_u32(c).unwrap()).collect();
    alphabet.extend((0..68).map(|c| char::from_u32(0x100 + c).unwrap()));
    assert_eq!(alphabet.len(), 256);
    let merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["Ġ", "hello"], ["1", "2"]];
    let tokens = alphabet.into_iter().map(String::from);
    let tokens = tokens.chain(merges.iter().map(|pair| pair.concat()));
    let vocab: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!({
        "version": "1.0",
        "truncation": {
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
        },
        "padding": {
            "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"
        },
        "added_tokens": [{
            "id": vocab.len(), "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        }],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
             "use_regex": false}
        ]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab.len()], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges}
    })
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(definition().to_string().as_bytes(), "test").unwrap()
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 263);
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert_eq!(tokenizer.id_to_token(id("hello")).as_deref(), Some("hello"));
    assert_eq!(tokenizer.token_to_id("absent"), None);

    let ids = tokenizer.encode("hello hello  hello 1234", false).unwrap();
    let space = id("Ġ");
    let expected =
        [id("hello"), id("Ġhello"), space, id("Ġhello"), space, id("12"), id("3"), id("4")];
    assert_eq!(ids, expected, "neither cut nor padded");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "hello hello  hello 1234");

    let ids = tokenizer.encode("é<s>", true).unwrap();
    assert_eq!(ids, [id("<s>"), id("Ã"), id("©"), id("<s>")]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "é");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<s>é<s>");
    assert!(tokenizer.encode("", false).unwrap().is_empty());
    assert_eq!(tokenizer.decode(&[9999], false).unwrap(), "", "an unknown id");
}

#[test]
fn a_long_text_is_the_sum_of_its_parts() {
    let tokenizer = tokenizer();
    let line = "hello world, it's 12345 o'clock\n";
    let one = tokenizer.encode(line, false).unwrap();
    let many = tokenizer.encode(&line.repeat(3_000), false).unwrap();
    assert_eq!(many.len(), 3_000 * one.len());
    assert!(many.chunks(one.len()).all(|part| part == one));
}

#[test]
fn awkward_texts_do_not_hang() {
    let tokenizer = tokenizer();
    for text in [" ", "a", "'", "\n", "\u{3000}", "é", " a", "1"] {
        let text = text.repeat(50_000);
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let text = format!("{text}x");
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    let error = |text: &str| Tokenizer::from_json(text.as_bytes(), "test.json").unwrap_err();
    for text in ["", "{}", "[]", "{\"model\": 1}", "{\"a\":1,\"a\":1}"] {
        let error = error(text);
        assert_eq!(error.category(), Category::BadInput, "{text}");
        assert!(error.to_string().contains("test.json"), "{error}");
    }
    let refused = |pointer: &str, value: Value, expected: &str| {
        let mut bad = definition();
        *bad.pointer_mut(pointer).unwrap() = value;
        let error = error(&bad.to_string());
        assert_eq!(error.category(), Category::BadInput);
        assert!(error.to_string().contains(expected), "{error}");
    };
    let regex = "/pre_tokenizer/pretokenizers/0/pattern/Regex";
    refused(regex, json!("("), "tokenizer test.json");
    refused("/model/dropout", json!(0.1), "set `dropout` to null");
    // On these the tokenizers crate itself panics.
    let prefix = "/model/continuing_subword_prefix";
    refused(prefix, json!("####"), "the merge of `h` and `e` is not in the vocabulary");
    refused("/model/merges/0", json!(["hello", "hello"]), "of `hello` and `hello` is not in");
    refused("/model/merges/0", json!(["h", "absent"]), "is not in the vocabulary");
    let special = "/post_processor/single/0/SpecialToken/id";
    refused(special, json!("<t>"), "uses `<t>`, which it does not define");
    refused("/post_processor/single/1/Sequence/id", json!("B"), "uses a second one");
}

#[test]
fn a_panic_of_the_library_is_an_error() {
    let mut bad = definition();
    // A charsmap that is too short for the table it announces.
    bad["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP//////"});
    let result = Tokenizer::from_json(bad.to_string().as_bytes(), "test.json")
        .and_then(|tokenizer| tokenizer.encode("hello", false));
    assert_eq!(result.unwrap_err().category(), Category::BadInput);
}
