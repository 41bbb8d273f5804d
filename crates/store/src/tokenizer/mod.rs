//! Text to token ids and back, by the rules of a `tokenizer.json`.
//!
//! The rules are those of the `tokenizers` crate, which does not show in this interface. Truncation
//! and padding that a `tokenizer.json` may ask for are left out: how long a text may be is the
//! caller's business.

mod definition;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Result, StoreError};
use crate::json;

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<u32>,
    what: String,
}

impl Tokenizer {
    /// Builds a tokenizer from the content of a `tokenizer.json`; `what` names it in errors.
    ///
    /// # Errors
    /// When it is not valid JSON within the limits of [`json`], or no tokenizer, or one that gives
    /// other tokens each time (`dropout`).
    pub fn from_json(bytes: &[u8], what: &str) -> Result<Self> {
        let parsed = json::parse(bytes, Path::new(what))?;
        definition::check(&parsed).map_err(|problem| failed(what, problem))?;
        drop(parsed);
        let inner = guarded(what, || {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(inner)
        })?;
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        Ok(Self { inner, special, what: what.to_owned() })
    }

    /// The ids of a text; with `add_special_tokens`, including those that the tokenizer puts around
    /// every text, such as `[CLS]` or a beginning-of-sequence token.
    ///
    /// The text may be long: a million characters take one or two seconds and, until the end, about
    /// a hundred times as many bytes.
    ///
    /// # Errors
    /// When a part of the text has no token and the tokenizer has none for the unknown.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        guarded(&self.what, || {
            let encoding = self.inner.encode_fast(text, add_special_tokens)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// The text of token ids; ids that are not in the vocabulary are passed over.
    ///
    /// # Errors
    /// When the tokenizer cannot put the tokens together.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        guarded(&self.what, || self.inner.decode(ids, skip_special_tokens))
    }

    /// Whether [`decode`](Self::decode) can be told to skip this token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

/// Runs a part of the `tokenizers` crate, which panics on some definitions that
/// [`definition::check`] does not know of; that is an error of the definition.
fn guarded<T>(what: &str, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    // What a panic could leave half-done is the crate's cache of words, which it then drops.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| failed(what, error.to_string())),
        Err(_) => Err(failed(what, "its definition contradicts itself".to_owned())),
    }
}

fn failed(what: &str, problem: String) -> StoreError {
    StoreError::Tokenizer { what: what.to_owned(), problem }
}
