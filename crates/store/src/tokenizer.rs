//! Text to token ids and back, by the rules of a `tokenizer.json`.
//!
//! The rules are those of the `tokenizers` crate, which does not show in this interface. Truncation
//! and padding that a `tokenizer.json` may ask for are left out: how long a text may be is the
//! caller's business.

use std::path::Path;

use crate::error::{Result, StoreError};
use crate::json;

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    what: String,
}

impl Tokenizer {
    /// Builds a tokenizer from the content of a `tokenizer.json`; `what` names it in errors.
    ///
    /// # Errors
    /// When it is not valid JSON within the limits of [`json`], or no tokenizer.
    pub fn from_json(bytes: &[u8], what: &str) -> Result<Self> {
        json::parse(bytes, Path::new(what))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| failed(what, &error))?;
        inner.with_truncation(None).map_err(|error| failed(what, &error))?;
        inner.with_padding(None);
        Ok(Self { inner, what: what.to_owned() })
    }

    /// The ids of a text; with `add_special_tokens`, including those that the tokenizer puts around
    /// every text, such as `[CLS]` or a beginning-of-sequence token.
    ///
    /// # Errors
    /// When a part of the text has no token and the tokenizer has none for the unknown.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        Ok(encoding.map_err(|error| failed(&self.what, &error))?.get_ids().to_vec())
    }

    /// The text of token ids; ids that are not in the vocabulary are passed over.
    ///
    /// # Errors
    /// When the tokenizer cannot put the tokens together.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let text = self.inner.decode(ids, skip_special_tokens);
        text.map_err(|error| failed(&self.what, &error))
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

fn failed(what: &str, error: &tokenizers::Error) -> StoreError {
    StoreError::Tokenizer { what: what.to_owned(), problem: error.to_string() }
}
