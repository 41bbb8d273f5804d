//! A tokenizer of SentencePiece's kind into GGUF: scores for its merges, and what becomes of spaces.
//!
//! llama.cpp joins any two neighbours that make a token, the one of the highest score first, and spells
//! what has no token in bytes. A `tokenizer.json` that was made from a SentencePiece model says the same
//! by listing every way to make each token; others are told apart here.

use std::collections::HashSet;

use lapidary_store::gguf::{MetaArray, MetaValue};
use serde_json::Value;

use super::pre;
use super::vocabulary::Use;
use super::write::{Vocabulary, Written, no_normalizer, wrong};
use crate::gguf::GgufError;

/// Pairs of tokens that join, by rank.
type Merges = [(String, String)];

/// How SentencePiece spells a space.
const SPACE: char = '▁';

/// Adds the scores and what becomes of a space before a text, and says what llama.cpp does otherwise.
pub(super) fn write(
    tokenizer: &Value,
    vocabulary: &Vocabulary,
    merges: &Merges,
    written: &mut Written,
) -> Result<(), GgufError> {
    let scores = scores(vocabulary, merges)?;
    written.put("scores", MetaValue::Array(MetaArray::F32(scores)));
    let spaces = Spaces::read(tokenizer)?;
    if spaces.parts_words && vocabulary.ids.keys().any(|token| token.chars().skip(1).any(is_space))
    {
        let problem = "its Metaspace splits text into words, but some tokens have spaces within: \
                       llama.cpp would make them";
        return Err(wrong(problem.to_owned()));
    }
    written.put("add_space_prefix", MetaValue::Bool(spaces.prefix));
    written.departures.extend(spaces.departure.map(str::to_owned));
    let bytes = vocabulary.uses.iter().filter(|usage| **usage == Use::Byte).count();
    if bytes != 256 || tokenizer["model"]["byte_fallback"] != true {
        written.departures.push(
            "the tokenizer has no byte fallback: llama.cpp does, and stops at a character that has \
             neither a token nor tokens for its bytes"
                .to_owned(),
        );
    }
    if let Some((left, right)) = unlisted(vocabulary, merges) {
        written.departures.push(format!(
            "the tokenizer does not join {left:?} and {right:?}, which llama.cpp does: it is no \
             SentencePiece model, and some texts have other tokens there"
        ));
    }
    Ok(())
}

fn is_space(character: char) -> bool {
    character == SPACE
}

/// Scores that merge in the order of the merges: what a pair makes is worth more the earlier it
/// stands. All pairs that make one token must stand together, as they do in files that were made
/// from a SentencePiece model; scores cannot say anything else.
fn scores(vocabulary: &Vocabulary, merges: &Merges) -> Result<Vec<f32>, GgufError> {
    let mut scores: Vec<f32> = vec![0.0; vocabulary.tokens.len()];
    let ids = (0..vocabulary.tokens.len()).zip(&vocabulary.uses);
    for (id, _) in ids.filter(|(_, usage)| **usage == Use::Normal) {
        scores[id] = -((merges.len() + id) as f32);
    }
    let mut last = String::new();
    let mut seen = HashSet::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        let token = format!("{left}{right}");
        let Some(id) = vocabulary.ids.get(&token) else {
            return Err(wrong(format!("model.merges: {left:?} and {right:?} make no token")));
        };
        if token == last {
            continue;
        }
        if !seen.insert(*id) {
            return Err(wrong(format!(
                "the merges that make {token:?} do not stand together, so that no scores say the \
                 same; GGUF holds SentencePiece models and byte-level BPE"
            )));
        }
        scores[*id as usize] = -(rank as f32);
        last = token;
    }
    Ok(scores)
}

/// Two tokens of text that make a third and are no merge.
fn unlisted<'a>(vocabulary: &'a Vocabulary, merges: &Merges) -> Option<(&'a str, &'a str)> {
    let listed: HashSet<(&str, &str)> =
        merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
    let is_text = |token: &str| {
        let id = vocabulary.ids.get(token);
        id.is_some_and(|id| vocabulary.uses[*id as usize] == Use::Normal)
    };
    // In the order of ids, so that what is said is always the same.
    let uses = vocabulary.tokens.iter().zip(&vocabulary.uses);
    let texts = uses.filter(|(_, usage)| **usage == Use::Normal).map(|(token, _)| token.as_str());
    let cuts = |token: &'a str| {
        let places = token.char_indices().skip(1).map(|(at, _)| at);
        places.map(move |at| token.split_at(at))
    };
    let is_missing = |(left, right): &(&str, &str)| {
        is_text(left) && is_text(right) && !listed.contains(&(*left, *right))
    };
    texts.flat_map(cuts).find(is_missing)
}

/// What becomes of spaces.
#[derive(Debug, Default)]
struct Spaces {
    /// Whether a text gets one before it.
    prefix: bool,
    /// Whether tokens never go beyond a word.
    parts_words: bool,
    departure: Option<&'static str>,
}

impl Spaces {
    /// A normalizer or pre-tokenizer that does anything else has no key.
    fn read(tokenizer: &Value) -> Result<Self, GgufError> {
        let (mut spaces, mut is_spelled) = (Self::default(), false);
        for step in pre::steps(&tokenizer["normalizer"], "normalizers") {
            match step["type"].as_str() {
                Some("Prepend") if step["prepend"] == "▁" => spaces.prefix = true,
                Some("Replace") if step["pattern"]["String"] == " " && step["content"] == "▁" => {
                    is_spelled = true;
                }
                other => return Err(no_normalizer(other)),
            }
        }
        for step in pre::steps(&tokenizer["pre_tokenizer"], "pretokenizers") {
            match step["type"].as_str() {
                // Where no space is left, nothing is split.
                Some("Split") if is_spelled && step["pattern"]["String"] == " " => {}
                Some("Metaspace") if step["replacement"].as_str().is_none_or(|r| r == "▁") => {
                    is_spelled = true;
                    spaces.metaspace(step);
                }
                other => {
                    let kind = other.unwrap_or("without a type");
                    return Err(wrong(format!("a pre-tokenizer {kind:?} has no place in GGUF")));
                }
            }
        }
        match is_spelled {
            true => Ok(spaces),
            false => {
                let problem = "spaces are not spelled as ▁: neither byte-level BPE nor a \
                               SentencePiece model, which are what GGUF holds";
                Err(wrong(problem.to_owned()))
            }
        }
    }

    fn metaspace(&mut self, step: &Value) {
        self.parts_words = step["split"].as_bool().unwrap_or(true);
        let unnamed = match step["add_prefix_space"] == false {
            true => "never",
            false => "always",
        };
        match step["prepend_scheme"].as_str().unwrap_or(unnamed) {
            "never" => {}
            "first" => {
                self.prefix = true;
                self.departure = Some(
                    "llama.cpp puts a space before each piece of text between special tokens, and \
                     before texts that begin with one; the tokenizer before the first alone, if it \
                     has none",
                );
            }
            _ => {
                self.prefix = true;
                self.departure = Some(
                    "llama.cpp puts a space before texts that begin with one too; the tokenizer does \
                     not",
                );
            }
        }
    }
}
