//! The tokenizer's files, and the tokens that they give.

use std::collections::HashMap;

use lapidary_formats::gguf::{GgufError, TokenizerFiles, folder_files, tokenizer_files};
use lapidary_store::Tokenizer;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::builder::{self, Builder};

fn files(builder: &Builder) -> Result<TokenizerFiles, GgufError> {
    tokenizer_files(&builder.read().metadata)
}

fn load(builder: &Builder) -> Tokenizer {
    let files = files(builder).unwrap();
    Tokenizer::from_json(&serde_json::to_vec(&files.tokenizer).unwrap(), "test").unwrap()
}

fn encode(builder: &Builder, text: &str) -> Vec<String> {
    let tokenizer = load(builder);
    let ids = tokenizer.encode(text, true).unwrap();
    ids.into_iter().map(|id| tokenizer.id_to_token(id).unwrap()).collect()
}

/// Two control tokens, one user-defined, then text.
const BPE_TOKENS: &[&str] = &[
    "<s>", "<|end|>", "<user>", "a", "b", "c", "1", "2", "3", "4", "Ġ", "Ċ", "!", "ab", "12",
    "123", "abc", "Ġa", "Ġab", "34", "'", "S", "'S",
];

fn bpe(pre: &str) -> Builder {
    let mut types = vec![1; BPE_TOKENS.len()];
    types[..3].copy_from_slice(&[3, 3, 4]);
    let merges = ["Ġ a", "Ġa b", "a b", "1 2", "12 3", "3 4", "' S"];
    Builder::default()
        .set("general.architecture", "llama")
        .set("llama.context_length", 2048)
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", pre)
        .set("tokenizer.ggml.tokens", BPE_TOKENS)
        .set("tokenizer.ggml.token_type", types)
        .set("tokenizer.ggml.merges", merges)
        .set("tokenizer.ggml.bos_token_id", 0)
        .set("tokenizer.ggml.eos_token_id", 1)
}

#[test]
fn words_are_merged_and_added_tokens_found_first() {
    let text = "ab<user> ab<|end|>a";
    assert_eq!(encode(&bpe("gpt-2"), text), ["ab", "<user>", "Ġab", "<|end|>", "a"]);
    let tokenizer = load(&bpe("gpt-2"));
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    // Control tokens are special; user-defined text is not.
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab<user> aba");
}

#[test]
fn each_pre_tokenizer_splits_numbers_in_its_way() {
    assert_eq!(encode(&bpe("gpt-2"), "1234"), ["123", "4"]);
    for pre in ["smollm", "starcoder", "command-r", "qwen2", "tekken", "deepseek-coder"] {
        let tokens = encode(&bpe(pre).set("tokenizer.ggml.add_bos_token", false), "1234");
        assert_eq!(tokens, ["1", "2", "3", "4"], "{pre}");
    }
    for pre in ["llama-bpe", "gpt-4o", "deepseek-v3", "falcon"] {
        let tokens = encode(&bpe(pre).set("tokenizer.ggml.add_bos_token", false), "12312");
        assert_eq!(tokens, ["123", "12"], "{pre}");
    }
}

#[test]
fn each_pre_tokenizer_splits_words_in_its_way() {
    let split =
        |pre: &str, text| encode(&bpe(pre).set("tokenizer.ggml.add_bos_token", false), text);
    // Capitals after an apostrophe make a suffix for Llama 3, but not for GPT-2.
    assert_eq!(split("gpt-2", "a'Sa"), ["a", "'", "S", "a"]);
    assert_eq!(split("qwen2", "a'Sa"), ["a", "'S", "a"]);
    // GPT-2's words start with a space, Llama 3's with any one sign that is no letter or number.
    assert_eq!(split("gpt-2", "!ab"), ["!", "ab"]);
    assert_eq!(split("smollm", " ab"), ["Ġab"]);
    assert_eq!(split("qwen2", "  ab"), ["Ġ", "Ġab"]);
    assert_eq!(split("deepseek-llm", "a\n ab"), ["a", "Ċ", "Ġab"]);
}

#[test]
fn qwen_composes_characters_first() {
    let tokens = [BPE_TOKENS, &["Ã", "©"]].concat();
    let mut types = vec![1; tokens.len()];
    types[..3].copy_from_slice(&[3, 3, 4]);
    let bpe = |pre| {
        let bpe = bpe(pre).set("tokenizer.ggml.tokens", &tokens[..]);
        bpe.set("tokenizer.ggml.token_type", types.clone())
    };
    // The bytes of é are in the vocabulary, those of the combining accent are not.
    assert_eq!(encode(&bpe("qwen2"), "a\u{e9}"), ["a", "Ã", "©"]);
    assert_eq!(encode(&bpe("qwen2"), "ae\u{301}"), ["a", "Ã", "©"]);
    assert_eq!(encode(&bpe("gpt-2"), "ae\u{301}"), ["a"]);
}

#[test]
fn llama_3_takes_whole_words_and_begins_texts() {
    // `abc` is a token that no merge gives.
    assert_eq!(encode(&bpe("llama-bpe"), "abc"), ["<s>", "abc"]);
    assert_eq!(encode(&bpe("qwen2"), "abc"), ["ab", "c"]);
    let both = bpe("llama-bpe")
        .set("tokenizer.ggml.add_bos_token", false)
        .set("tokenizer.ggml.add_eos_token", true);
    assert_eq!(encode(&both, "abc"), ["abc", "<|end|>"]);
    let bos = bpe("gpt-2").set("tokenizer.ggml.add_bos_token", true);
    assert_eq!(encode(&bos, "ab"), ["<s>", "ab"]);
}

#[test]
fn unknown_rules_are_refused() {
    let error = |builder: Builder| files(&builder).unwrap_err().to_string();
    assert_eq!(
        error(bpe("viking")),
        "pre-tokenizer `viking` is not known; use the original Hugging Face folder, or put its \
         tokenizer.json beside the file"
    );
    assert_eq!(
        error(bpe("x").remove("tokenizer.ggml.pre")),
        "the metadata has no `tokenizer.ggml.pre`; convert the model to GGUF again with a newer \
         llama.cpp"
    );
    assert_eq!(
        error(bpe("gpt-2").set("tokenizer.ggml.model", "rwkv")),
        "tokenizer model `rwkv` is not supported; gpt2, llama and bert are"
    );
    assert_eq!(
        error(bpe("gpt-2").set("tokenizer.ggml.merges", ["a b", "a c"])),
        "metadata `tokenizer.ggml.merges`: entry 1, `a c`, is not a pair of tokens that join"
    );
    assert_eq!(
        error(bpe("gpt-2").set("tokenizer.ggml.token_type", vec![1, 1])),
        "metadata `tokenizer.ggml.token_type`: 2 types for 23 tokens"
    );
}

#[test]
fn the_configuration_names_the_special_tokens() {
    let builder = bpe("smollm")
        .set("tokenizer.ggml.padding_token_id", 1)
        .set("tokenizer.ggml.unknown_token_id", 0)
        .set("tokenizer.chat_template", "{{ messages }}");
    let files = files(&builder).unwrap();
    let special = json!({
        "bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<|end|>", "unk_token": "<s>",
    });
    assert_eq!(files.special_tokens_map, special);
    let added = |content: &str, special: bool| {
        json!({
            "content": content, "lstrip": false, "normalized": false, "rstrip": false,
            "single_word": false, "special": special,
        })
    };
    let expected = json!({
        "add_bos_token": false,
        "add_eos_token": false,
        "added_tokens_decoder": {
            "0": added("<s>", true), "1": added("<|end|>", true), "2": added("<user>", false),
        },
        "bos_token": "<s>",
        "chat_template": "{{ messages }}",
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|end|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048,
        "pad_token": "<|end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<s>",
    });
    assert_eq!(files.tokenizer_config, expected);
}

#[test]
fn a_pad_token_that_is_text_stays_text() {
    let files = files(&bpe("smollm").set("tokenizer.ggml.padding_token_id", 3)).unwrap();
    assert_eq!(files.special_tokens_map.get("pad_token"), None);
    assert_eq!(files.tokenizer["added_tokens"].as_array().map(Vec::len), Some(3));
}

#[test]
fn several_chat_templates_become_a_list() {
    let builder = bpe("smollm")
        .set("tokenizer.chat_template", "plain")
        .set("tokenizer.chat_templates", ["tool_use"])
        .set("tokenizer.chat_template.tool_use", "tools");
    let files = files(&builder).unwrap();
    let expected = json!([
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
    ]);
    assert_eq!(files.tokenizer_config["chat_template"], expected);
}

fn spm(pieces: &[(&str, f32)]) -> Builder {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut scores = vec![0.0; 3];
    let mut types = vec![2, 3, 3];
    for byte in 0..=255 {
        tokens.push(format!("<0x{byte:02X}>"));
        scores.push(0.0);
        types.push(6);
    }
    for &(piece, score) in pieces {
        tokens.push(piece.to_owned());
        scores.push(score);
        types.push(1);
    }
    let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
    Builder::default()
        .set("general.architecture", "llama")
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.tokens", &tokens[..])
        .set("tokenizer.ggml.scores", scores)
        .set("tokenizer.ggml.token_type", types)
}

const PIECES: &[(&str, f32)] = &[
    ("ab", -1.0),
    ("▁a", -2.0),
    ("abc", -3.0),
    ("bc", -4.0),
    ("▁abc", -5.0),
    ("▁", -6.0),
    ("a", -7.0),
    ("b", -8.0),
    ("c", -9.0),
];

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let builder = spm(PIECES);
    assert_eq!(encode(&builder, "abc abc"), ["<s>", "▁abc", "▁abc"]);
    assert_eq!(encode(&builder, "bé"), ["<s>", "▁", "b", "<0xC3>", "<0xA9>"]);
    assert_eq!(encode(&builder, "a</s>a"), ["<s>", "▁a", "</s>", "▁a"]);
    let plain = builder
        .set("tokenizer.ggml.add_space_prefix", false)
        .set("tokenizer.ggml.add_bos_token", false);
    assert_eq!(encode(&plain, "abc abc"), ["abc", "▁abc"]);
    for builder in [&plain, &spm(PIECES)] {
        let tokenizer = load(builder);
        let ids = tokenizer.encode("abc é  c", true).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "abc é  c");
    }
}

#[test]
fn sentencepiece_needs_a_score_for_each_token() {
    let error = |builder: Builder| files(&builder).unwrap_err().to_string();
    assert_eq!(
        error(spm(PIECES).remove("tokenizer.ggml.scores")),
        "the metadata has no `tokenizer.ggml.scores`; convert the model to GGUF again with a newer \
         llama.cpp"
    );
    assert_eq!(
        error(spm(PIECES).set("tokenizer.ggml.scores", vec![0.0])),
        "metadata `tokenizer.ggml.scores`: 1 scores for 268 tokens"
    );
    assert_eq!(
        error(spm(PIECES).set("tokenizer.ggml.scores", vec![f32::NAN; 268])),
        "metadata `tokenizer.ggml.scores`: the score of token 0 is not a number"
    );
}

/// SentencePiece's rule: join the neighbours that make the token of the highest score, the first
/// of equals, for as long as there are any.
fn by_score<'a>(text: &'a str, scores: &HashMap<String, f32>) -> Vec<&'a str> {
    let mut cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 1..cuts.len() - 1 {
            if let Some(&score) = scores.get(&text[cuts[i - 1]..cuts[i + 1]])
                && best.is_none_or(|(highest, _)| score > highest)
            {
                best = Some((score, i));
            }
        }
        let Some((_, i)) = best else { break };
        cuts.remove(i);
    }
    cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect()
}

proptest! {
    /// Vocabularies as they are trained: each piece joins two earlier ones, and ranks after them.
    #[test]
    fn merges_do_what_the_scores_do(
        joins in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..20),
        text in "[ab▁]{1,30}",
    ) {
        let mut pieces: Vec<String> = ["a", "b", "▁"].map(str::to_owned).to_vec();
        for (left, right) in joins {
            let piece = [left.get(&pieces).as_str(), right.get(&pieces).as_str()].concat();
            let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
            let known = |part: &str| pieces.iter().any(|piece| piece == part);
            // With two ways to make a piece, a rank for each pair cannot express the first of
            // equals; the files of transformers have the same limit.
            if cuts.filter(|(left, right)| known(left) && known(right)).count() == 1
                && !known(&piece)
            {
                pieces.push(piece);
            }
        }
        let scores: HashMap<String, f32> =
            pieces.iter().zip(0..).map(|(piece, rank)| (piece.clone(), -(rank as f32))).collect();
        let scored: Vec<_> = pieces.iter().map(|piece| (piece.as_str(), scores[piece])).collect();
        let builder = spm(&scored)
            .set("tokenizer.ggml.add_space_prefix", false)
            .set("tokenizer.ggml.add_bos_token", false);
        prop_assert_eq!(encode(&builder, &text), by_score(&text, &scores));
    }
}

fn wordpiece() -> Builder {
    // `##a` and `##b` lost their sharps, `a`, `un` and `able` got the mark of a word.
    let tokens =
        ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "▁a", "▁un", "a", "b", "▁able", "▁["];
    let mut types = vec![1; tokens.len()];
    for id in [0, 2, 3, 4] {
        types[id] = 3;
    }
    Builder::default()
        .set("general.architecture", "bert")
        .set("bert.context_length", 512)
        .set("tokenizer.ggml.model", "bert")
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.token_type", types)
        .set("tokenizer.ggml.padding_token_id", 0)
        .set("tokenizer.ggml.unknown_token_id", 2)
        .set("tokenizer.ggml.cls_token_id", 3)
        .set("tokenizer.ggml.seperator_token_id", 4)
}

#[test]
fn wordpiece_gets_its_sharps_back() {
    let builder = wordpiece();
    let tokens = encode(&builder, "Unab [ ABLE x");
    assert_eq!(tokens, ["[CLS]", "un", "##a", "##b", "[", "able", "[UNK]", "[SEP]"]);
    let files = files(&builder).unwrap();
    assert_eq!(files.tokenizer["model"]["vocab"]["[unused0]"], json!(1));
    assert_eq!(files.tokenizer["normalizer"]["lowercase"], json!(true));
    assert_eq!(files.tokenizer["normalizer"]["strip_accents"], Value::Null);
    assert_eq!(
        files.tokenizer_config["model_input_names"],
        json!(["input_ids", "token_type_ids", "attention_mask"])
    );
    assert_eq!(files.special_tokens_map["sep_token"], json!("[SEP]"));
    let cased = builder.set("tokenizer.ggml.normalizer.lowercase", false);
    assert_eq!(encode(&cased, "unab Able"), ["[CLS]", "un", "##a", "##b", "[UNK]", "[SEP]"]);
}

#[test]
fn a_vocabulary_with_capitals_is_cased() {
    let mut tokens = vec!["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁A"];
    let builder = |tokens: &[&str]| {
        Builder::default()
            .set("general.architecture", "bert")
            .set("tokenizer.ggml.model", "bert")
            .set("tokenizer.ggml.tokens", tokens)
            .set("tokenizer.ggml.unknown_token_id", 1)
    };
    let lowercase = |tokens: &[&str]| {
        files(&builder(tokens)).unwrap().tokenizer["normalizer"]["lowercase"].clone()
    };
    assert_eq!(lowercase(&tokens), json!(false));
    tokens.pop();
    assert_eq!(lowercase(&tokens), json!(true));
}

/// Keys that the functions read, to be given any values.
const KEYS: &[&str] = &[
    "general.architecture",
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.sliding_window",
    "llama.rope.freq_base",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_templates",
];

fn any_value() -> impl Strategy<Value = builder::Value> {
    let word = prop_oneof!["[a▁ #\\[\\]<]{0,4}", "llama|bert|gpt2|linear|smollm|qwen2"];
    prop_oneof![
        prop_oneof![0..10u32, any::<u32>()].prop_map(builder::Value::U32),
        any::<f32>().prop_map(builder::Value::F32),
        any::<bool>().prop_map(builder::Value::Bool),
        word.clone().prop_map(builder::Value::Str),
        vec(word, 0..6).prop_map(builder::Value::Strs),
        vec(-1..8i32, 0..6).prop_map(builder::Value::I32s),
        vec(any::<f32>(), 0..6).prop_map(builder::Value::F32s),
    ]
}

proptest! {
    #[test]
    fn any_metadata_are_read_or_refused(
        base in prop::sample::select(vec![bpe("smollm"), spm(PIECES), wordpiece()]),
        changes in vec((prop::sample::select(KEYS), any_value()), 0..5),
        factors in btree_map(
            prop::sample::select(vec![
                "rope_freqs.weight",
                "rope_factors_long.weight",
                "rope_factors_short.weight",
            ]),
            vec(any::<f32>(), 0..4),
            0..3,
        ),
    ) {
        let changed = changes.into_iter().fold(base, |base, (key, value)| base.set(key, value));
        let gguf = changed.read();
        let _ = folder_files(&gguf.metadata, &gguf.tensors, &factors, "float32");
        // What is accepted must load.
        if let Ok(files) = tokenizer_files(&gguf.metadata) {
            let json = serde_json::to_vec(&files.tokenizer).unwrap();
            prop_assert!(Tokenizer::from_json(&json, "test").is_ok(), "{}", files.tokenizer);
        }
    }
}
