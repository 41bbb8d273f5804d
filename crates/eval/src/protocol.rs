//! Three ways to cut a text into segments and to count what is predicted. Their figures are not
//! comparable with each other, so each has a name.
//!
//! - `windows`: the token stream of the whole text in windows of 2048 that do not overlap; each
//!   predicts all its tokens but the first. The GPTQ papers' way.
//! - `llama.cpp`: chunks of 512 of which the second half is scored, 255 predictions each; where the
//!   tokenizer begins every text with a token, it takes the place of each chunk's first.
//! - `word`: lm-evaluation-harness's `wikitext`: each page by itself, detokenized, every token
//!   predicted once from at most `max_length` before it; normalised by words and bytes of the raw page.

use crate::EvalError;
use lapidary_formats::Source;
use lapidary_store::{Tokenizer, json};
use regex::Regex;
use serde_json::Value;
use std::path::Path;

/// A way to measure perplexity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Windows of 2048.
    Windows,
    /// Chunks of 512, second half.
    LlamaCpp,
    /// Pages, normalised by words.
    Word,
}

/// Tokens that go through the model together, and what is scored of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// What the model reads.
    pub tokens: Vec<u32>,
    /// The first position whose prediction is scored; all after it are too.
    pub first: usize,
    /// What those positions should predict: `tokens.len() − first` tokens.
    pub targets: Vec<u32>,
}

/// Segments, and what the text holds besides tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) segments: Vec<Segment>,
    /// Words and bytes of the raw pages, in the protocol that counts them.
    pub(crate) words: u64,
    pub(crate) octets: u64,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Windows, Self::LlamaCpp, Self::Word];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Windows => "windows",
            Self::LlamaCpp => "llama.cpp",
            Self::Word => "word",
        }
    }

    /// Tokens of a full segment, for a model of this context.
    pub fn length(self, context: usize) -> usize {
        match self {
            Self::Windows | Self::Word => context.min(2048),
            Self::LlamaCpp => context.min(512),
        }
    }

    /// Cuts a text; at most `limit` windows, chunks or pages. `named` is the token that the
    /// tokenizer's configuration names as the first of a text, whether it puts it there or not.
    pub(crate) fn cut(
        self,
        text: &str,
        tokenizer: &Tokenizer,
        named: Option<u32>,
        context: usize,
        limit: Option<usize>,
    ) -> Result<Cut, EvalError> {
        let length = self.length(context);
        // Half a chunk of three predicts one token; a window of two does.
        let least = if self == Self::LlamaCpp { 3 } else { 2 };
        if length < least {
            let what = format!(
                "a context of {length} tokens leaves nothing to predict; use {least} at least"
            );
            return Err(EvalError::Unusable(what));
        }
        let limit = limit.unwrap_or(usize::MAX);
        let cut = match self {
            Self::Windows => {
                let tokens = tokenizer.encode(&with_unix_newlines(text), false)?;
                let windows = tokens.chunks_exact(length).take(limit);
                let segment = |window: &[u32]| Segment {
                    tokens: window[..length - 1].to_vec(),
                    first: 0,
                    targets: window[1..].to_vec(),
                };
                Cut { segments: windows.map(segment).collect(), ..Cut::default() }
            }
            Self::LlamaCpp => llama_cpp(text, tokenizer, length, limit)?,
            Self::Word => pages(text, tokenizer, named, length, limit)?,
        };
        if cut.segments.is_empty() {
            let what = format!("the text is too short for one window of {length} tokens");
            return Err(EvalError::Unusable(what));
        }
        Ok(cut)
    }
}

/// CRLF and CR as LF, as Python's text mode reads them: a file with CRLF gives other tokens.
fn with_unix_newlines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// The token that the tokenizer puts before every text.
fn beginning(tokenizer: &Tokenizer) -> Result<Option<u32>, EvalError> {
    let (bare, framed) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    Ok(framed.first().copied().filter(|first| bare.first() != Some(first)))
}

/// llama.cpp reads its file byte for byte, CRLF included.
fn llama_cpp(
    text: &str,
    tokenizer: &Tokenizer,
    length: usize,
    limit: usize,
) -> Result<Cut, EvalError> {
    let beginning = beginning(tokenizer)?;
    let mut tokens: Vec<u32> = beginning.into_iter().collect();
    tokens.extend(tokenizer.encode(text, false)?);
    let first = length / 2;
    let segment = |chunk: &[u32]| {
        let mut tokens = chunk[..length - 1].to_vec();
        if let (Some(beginning), Some(token)) = (beginning, tokens.first_mut()) {
            *token = beginning;
        }
        Segment { tokens, first, targets: chunk[first + 1..].to_vec() }
    };
    let segments = tokens.chunks_exact(length).take(limit).map(segment).collect();
    Ok(Cut { segments, ..Cut::default() })
}

fn pages(
    text: &str,
    tokenizer: &Tokenizer,
    named: Option<u32>,
    length: usize,
    limit: usize,
) -> Result<Cut, EvalError> {
    let text = with_unix_newlines(text);
    let detokenizer = Detokenizer::new()?;
    let beginning = beginning(tokenizer)?;
    let prefix = named.or(beginning).or_else(|| end_of_text(tokenizer)).ok_or_else(|| {
        let what =
            "the tokenizer has no token that begins or ends a text, which the protocol word needs";
        EvalError::Unusable(what.to_owned())
    })?;
    let mut cut = Cut::default();
    for page in split_pages(&text).into_iter().take(limit) {
        let mut tokens: Vec<u32> = beginning.into_iter().collect();
        tokens.extend(tokenizer.encode(&detokenizer.apply(&page), false)?);
        let shifted: Vec<u32> = std::iter::once(prefix).chain(tokens.iter().copied()).collect();
        for start in (0..tokens.len()).step_by(length) {
            let end = (start + length).min(tokens.len());
            let seen = &shifted[end.saturating_sub(length)..end];
            cut.segments.push(Segment {
                tokens: seen.to_vec(),
                first: seen.len() - (end - start),
                targets: tokens[start..end].to_vec(),
            });
        }
        cut.words += detokenizer.spaces.split(&page).count() as u64;
        cut.octets += page.len() as u64;
    }
    Ok(cut)
}

/// The token that a tokenizer's configuration names as the first of a text, or else as its last:
/// what lm-evaluation-harness predicts a first token from.
pub(crate) fn named_prefix(source: &Source, tokenizer: &Tokenizer) -> Option<u32> {
    let files = ["tokenizer_config.json", "special_tokens_map.json"];
    let read = |name: &str| json::parse(&source.read_file(name).ok()?, Path::new(name)).ok();
    let files: Vec<Value> = files.into_iter().filter_map(read).collect();
    let named = |key: &str| {
        files.iter().find_map(|file| {
            let token = file.get(key)?;
            let token = token.get("content").unwrap_or(token).as_str()?;
            tokenizer.token_to_id(token)
        })
    };
    named("bos_token").or_else(|| named("eos_token"))
}

/// The token that ends a text, under the names it has in known vocabularies.
fn end_of_text(tokenizer: &Tokenizer) -> Option<u32> {
    let names =
        ["<|endoftext|>", "<|im_end|>", "</s>", "<|end_of_text|>", "<|eot_id|>", "<eos>", "[SEP]"];
    names.iter().find_map(|name| tokenizer.token_to_id(name))
}

/// The text cut before each heading of the top level, a line like ` = Title = `.
fn split_pages(text: &str) -> Vec<String> {
    let is_title = |line: &str| {
        // Deeper headings are written ` = = Title = = `.
        let line = line.replace("= =", "==");
        let line = line.trim();
        line.starts_with("= ") && line.ends_with(" =")
    };
    let mut pages: Vec<Vec<&str>> = vec![vec![]];
    for line in text.split('\n') {
        if is_title(line) {
            pages.push(vec![]);
        }
        if let Some(page) = pages.last_mut() {
            page.push(line);
        }
    }
    let pages = pages.into_iter().map(|lines| lines.join("\n"));
    pages.filter(|page| !page.trim().is_empty()).collect()
}

/// Undoes WikiText's tokenization as far as lm-evaluation-harness does.
struct Detokenizer {
    rules: Vec<(Regex, &'static str)>,
    spaces: Regex,
}

impl Detokenizer {
    fn new() -> Result<Self, EvalError> {
        // In this order. The second pattern's slashes come from another language's notation and
        // match nothing sensible; they are part of the protocol.
        const RULES: [(&str, &str); 24] = [
            (r"s '", "s'"),
            (r"/' [0-9]/", "/'[0-9]/"),
            (r" @-@ ", "-"),
            (r" @,@ ", ","),
            (r" @\.@ ", "."),
            (r" : ", ": "),
            (r" ; ", "; "),
            (r" \. ", ". "),
            (r" ! ", "! "),
            (r" \? ", "? "),
            (r" , ", ", "),
            (r"\(\s*([^\)]*?)\s*\)", "(${1})"),
            (r"\[\s*([^\]]*?)\s*\]", "[${1}]"),
            (r"\{\s*([^}]*?)\s*\}", "{${1}}"),
            (r#""\s*([^"]*?)\s*""#, "\"${1}\""),
            (r"'\s*([^']*?)\s*'", "'${1}'"),
            (r"= = = =", "===="),
            (r"= = =", "==="),
            (r"= =", "=="),
            (r" ° ", "°"),
            (r" \n", "\n"),
            (r"\n ", "\n"),
            (r" N ", " 1 "),
            (r" 's", "'s"),
        ];
        let compile = |pattern: &str| {
            Regex::new(pattern).map_err(|error| EvalError::Unusable(error.to_string()))
        };
        let rules = RULES.iter().map(|(pattern, with)| Ok((compile(pattern)?, *with)));
        Ok(Self { rules: rules.collect::<Result<_, EvalError>>()?, spaces: compile(r"\s+")? })
    }

    fn apply(&self, page: &str) -> String {
        self.rules.iter().fold(page.to_owned(), |page, (pattern, with)| {
            pattern.replace_all(&page, *with).into_owned()
        })
    }
}
