//! How byte-pair tokenizers split a text into the words that they merge within.
//!
//! GGUF keeps only a name, `tokenizer.ggml.pre`; the rules behind a name are those of the
//! `tokenizer.json` of the model it was given for.

use serde_json::{Value, json};

/// One step of splitting; each one splits what the steps before it left.
enum Step {
    /// The matches of a regular expression, and what lies between them.
    Split(&'static str),
    /// Numbers: every digit by itself, or runs of digits.
    Digits { individual: bool },
    /// Runs of punctuation.
    Punctuation,
    /// The words of GPT-2.
    Gpt2,
}

use Step::{Digits, Gpt2, Punctuation, Split};

/// The rules behind a name.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    /// Whether texts are first brought to Unicode's composed form, NFC.
    pub(super) composed: bool,
    steps: &'static [Step],
    /// Whether a word that is a token is not merged, but taken whole.
    pub(super) ignore_merges: bool,
    /// Whether a text starts with the beginning-of-sequence token, when the file does not say.
    pub(super) add_bos: bool,
}

/// What most entries of [`ALL`] have.
const PLAIN: PreTokenizer =
    PreTokenizer { names: &[], composed: false, steps: &[], ignore_merges: false, add_bos: false };

const ALL: &[PreTokenizer] = &[
    PreTokenizer { names: &["gpt-2", "phi-2"], steps: &[Gpt2], ..PLAIN },
    PreTokenizer { names: &["mpt", "olmo"], composed: true, steps: &[Gpt2], ..PLAIN },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        steps: &[Digits { individual: true }, Gpt2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["command-r"],
        composed: true,
        steps: &[Digits { individual: true }, Gpt2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"],
        steps: &[Split(LLAMA3)],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe"], steps: &[Split(LLAMA3)], ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        composed: true,
        steps: &[Split(QWEN2)],
        ..PLAIN
    },
    PreTokenizer { names: &["stablelm2"], steps: &[Split(QWEN2)], ..PLAIN },
    PreTokenizer {
        names: &["tekken"],
        steps: &[Split(TEKKEN)],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["gpt-4o", "llama4"], steps: &[Split(GPT4O)], ..PLAIN },
    PreTokenizer {
        names: &["falcon"],
        steps: &[Punctuation, Gpt2, Digits { individual: false }, Split("[0-9][0-9][0-9]")],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            Split("[\r\n]"),
            Split(DEEPSEEK_LETTERS),
            Split(
                "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
            ),
            Split("\\s+$"),
            Split(CJK),
            Digits { individual: true },
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[
            Split("[\r\n]"),
            Split("\\s?\\p{L}+"),
            Split("\\s?\\p{P}+"),
            Split(CJK),
            Digits { individual: true },
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3"],
        steps: &[
            Split("\\p{N}{1,3}"),
            Split("[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
            Split(DEEPSEEK_V3),
        ],
        ..PLAIN
    },
];

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const CJK: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";

/// The letters of the Latin, Greek, Cyrillic and other scripts that have capitals.
const DEEPSEEK_LETTERS: &str = concat!(
    "\\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}",
    "\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}",
    "\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}",
    "\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}",
    "\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}",
    "\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-",
    "\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}",
    "\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}",
    "\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}",
    "\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}",
    "\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}",
    "\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}",
    "\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}",
    "\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-",
    "\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+"
);

const DEEPSEEK_V3: &str = concat!(
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+",
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*",
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
);

/// The rules behind a name, if they are known.
pub(super) fn find(name: &str) -> Option<&'static PreTokenizer> {
    ALL.iter().find(|rules| rules.names.contains(&name))
}

/// The steps of a `tokenizer.json`'s component, which may be a `Sequence` of them under `list`.
pub(super) fn steps<'a>(component: &'a Value, list: &str) -> Vec<&'a Value> {
    if component.is_null() {
        return vec![];
    }
    match component[list].as_array() {
        Some(parts) if component["type"] == "Sequence" => {
            parts.iter().flat_map(|part| steps(part, list)).collect()
        }
        _ => vec![component],
    }
}

/// The rules of a byte-level `tokenizer.json`.
///
/// # Errors
/// When no name stands for them: another one would give other tokens.
pub(super) fn rules(tokenizer: &Value) -> Result<&'static PreTokenizer, String> {
    let mut composed = false;
    for step in steps(&tokenizer["normalizer"], "normalizers") {
        match step["type"].as_str() {
            Some("NFC") => composed = true,
            other => {
                let kind = other.unwrap_or("without a type");
                return Err(format!("a normalizer {kind:?} has no place in GGUF"));
            }
        }
    }
    let ignore_merges = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let found = steps(&tokenizer["pre_tokenizer"], "pretokenizers");
    let is_it = |rules: &&PreTokenizer| {
        rules.composed == composed && rules.ignore_merges == ignore_merges && rules.are(&found)
    };
    ALL.iter().find(is_it).ok_or_else(|| {
        "llama.cpp has no name for its rules of splitting text (normalizer, pre_tokenizer, \
         ignore_merges), and would split text otherwise than the model was trained with"
            .to_owned()
    })
}

impl PreTokenizer {
    /// What they are called.
    pub(super) fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    /// Whether these are the steps, the spelling of bytes aside.
    fn are(&self, found: &[&Value]) -> bool {
        let is_spelling =
            |step: &&&Value| step["type"] == "ByteLevel" && step["use_regex"] == false;
        let found: Vec<&&Value> = found.iter().filter(|step| !is_spelling(step)).collect();
        let is = |step: &Step, value: &Value| match *step {
            Split(pattern) => {
                let behavior = value["behavior"].as_str();
                let isolated = match value["invert"] == true {
                    false => behavior == Some("Isolated"),
                    // What lies between matches goes away; here nothing does.
                    true => behavior == Some("Removed") && pattern.ends_with(r"|\s+"),
                };
                value["type"] == "Split" && value["pattern"]["Regex"] == pattern && isolated
            }
            Digits { individual } => {
                value["type"] == "Digits" && value["individual_digits"] == individual
            }
            Punctuation => value["type"] == "Punctuation" && value["behavior"] == "Contiguous",
            Gpt2 => value["type"] == "ByteLevel" && value["add_prefix_space"] != true,
        };
        found.len() == self.steps.len()
            && self.steps.iter().zip(found).all(|(step, value)| is(step, value))
    }

    pub(super) fn normalizer(&self) -> Value {
        if self.composed { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The steps; the last one also spells the bytes as characters.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let byte_level = |gpt2: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": gpt2,
            })
        };
        let step = |step: &Step| match *step {
            Split(pattern) => json!({
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": false,
            }),
            Digits { individual } => json!({"type": "Digits", "individual_digits": individual}),
            Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
            Gpt2 => byte_level(true),
        };
        let mut steps: Vec<_> = self.steps.iter().map(step).collect();
        if !self.steps.iter().any(|step| matches!(step, Gpt2)) {
            steps.push(byte_level(false));
        }
        match (steps.pop(), steps.is_empty()) {
            (Some(only), true) => only,
            (last, _) => {
                steps.extend(last);
                json!({"type": "Sequence", "pretokenizers": steps})
            }
        }
    }
}
