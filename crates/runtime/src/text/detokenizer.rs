//! Text of tokens that come one by one: never half a character, and in the end the same text as
//! that of all the tokens at once.
//!
//! What a token adds is the difference between two decodings of a short window, with and without it:
//! decoders look at a token's neighbours (spaces, pieces of words), but not far. Two things wait for
//! what follows them: a text that ends in the character for broken UTF-8, since the rest of a
//! character may be to come; and tokens of single bytes (`<0xE2>`), as their decoder takes a run of
//! them as characters or as garbage in its whole.

use super::Vocabulary;
use crate::RuntimeError;
use std::sync::Arc;

/// A window of so many tokens that still ends in broken UTF-8 is no character in the making: only
/// its last three bytes can be.
const LONGEST_WAIT: usize = 32;

/// What decoders put in place of broken UTF-8.
const BROKEN: char = char::REPLACEMENT_CHARACTER;

/// The text of a growing sequence of tokens.
#[derive(Debug)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    skip_special: bool,
    /// The latest tokens.
    window: Vec<u32>,
    /// How many of them are only there for their successors' sake.
    context: usize,
    /// Bytes of the window's text that were handed on.
    emitted: usize,
}

impl Detokenizer {
    /// A detokenizer; with `skip_special`, tokens such as the end of a text have no text.
    pub fn new(vocabulary: Arc<Vocabulary>, skip_special: bool) -> Self {
        Self { vocabulary, skip_special, window: vec![], context: 0, emitted: 0 }
    }

    /// The text that is certain now and was not before this token.
    ///
    /// # Errors
    /// When the tokenizer cannot put the tokens together.
    pub fn push(&mut self, token: u32) -> Result<String, RuntimeError> {
        // Decoders pass over them, so that they must not part the bytes around them.
        let hidden = self.skip_special && self.vocabulary.is_special(token);
        if hidden || !self.vocabulary.is_known(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        if self.vocabulary.is_byte(token) {
            return Ok(String::new());
        }
        let text = self.decode()?;
        if !text.ends_with(BROKEN) {
            let piece = text.get(self.emitted..).unwrap_or_default().to_owned();
            if !piece.is_empty() || self.window.len() >= LONGEST_WAIT {
                self.shift(self.context)?;
                self.context = self.window.len();
            }
            return Ok(piece);
        }
        if self.window.len() < LONGEST_WAIT {
            return Ok(String::new());
        }
        let certain = text.len() - BROKEN.len_utf8();
        let piece = text.get(self.emitted..certain).unwrap_or_default().to_owned();
        self.shift(LONGEST_WAIT / 2)?;
        self.emitted = self.emitted.saturating_sub(BROKEN.len_utf8());
        self.context = self.window.len() / 2;
        Ok(piece)
    }

    /// What is left when no token follows.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<String, RuntimeError> {
        let text = self.decode()?;
        let piece = text.get(self.emitted..).unwrap_or_default().to_owned();
        self.emitted = text.len();
        Ok(piece)
    }

    /// Lets go of the window's first tokens; all of the others' text counts as handed on.
    fn shift(&mut self, tokens: usize) -> Result<(), RuntimeError> {
        self.window.drain(..tokens);
        self.emitted = self.decode()?.len();
        Ok(())
    }

    fn decode(&self) -> Result<String, RuntimeError> {
        Ok(self.vocabulary.tokenizer().decode(&self.window, self.skip_special)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stand_ins::{byte_fallback, byte_level, word_pieces};
    use proptest::prelude::*;

    /// The pieces, which must be whole characters and make up the text of all tokens at once.
    fn pieces(vocabulary: &Arc<Vocabulary>, tokens: &[u32], skip: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::clone(vocabulary), skip);
        let mut pieces: Vec<String> =
            tokens.iter().map(|token| detokenizer.push(*token).unwrap()).collect();
        pieces.push(detokenizer.finish().unwrap());
        pieces
    }

    fn check(vocabulary: &Arc<Vocabulary>, tokens: &[u32], skip: bool) {
        let whole = vocabulary.tokenizer().decode(tokens, skip).unwrap();
        assert_eq!(pieces(vocabulary, tokens, skip).concat(), whole, "{tokens:?}");
    }

    /// Single bytes with long runs of broken characters among them, and ids that are not there.
    fn of_bytes(vocabulary: &Arc<Vocabulary>) -> Vec<u32> {
        (0..=255_u8)
            .filter_map(|byte| {
                let (in_pairs, alone) = (byte_character(byte), format!("<0x{byte:02X}>"));
                let id = |token: &str| vocabulary.tokenizer().token_to_id(token);
                id(&alone).or_else(|| id(&in_pairs.to_string()))
            })
            .collect()
    }

    /// The character by which byte-level vocabularies spell a byte.
    fn byte_character(byte: u8) -> char {
        let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let hidden = (0..byte).filter(|other| !printable(*other)).count() as u32;
        let code = if printable(byte) { u32::from(byte) } else { 256 + hidden };
        char::from_u32(code).unwrap()
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole(
            kind in 0_usize..3,
            choices in prop::collection::vec((any::<bool>(), any::<u32>()), 0..120),
            skip in any::<bool>(),
        ) {
            let vocabulary = [byte_level, byte_fallback, word_pieces][kind]();
            let (bytes, count) = (of_bytes(&vocabulary), vocabulary.tokenizer().vocab_size() as u32);
            let token = |(byte, any): &(bool, u32)| match bytes.len() {
                0 => any % count,
                many if *byte => bytes[*any as usize % many],
                _ => any % (count + 3),
            };
            let tokens: Vec<u32> = choices.iter().map(token).collect();
            check(&vocabulary, &tokens, skip);
        }

        #[test]
        fn text_comes_back(text in any::<String>()) {
            let vocabulary = byte_level();
            let tokens = vocabulary.tokenizer().encode(&text, false).unwrap();
            prop_assert_eq!(pieces(&vocabulary, &tokens, false).concat(), text);
        }
    }

    #[test]
    fn ids_without_a_token_part_nothing() {
        // Embeddings are often padded beyond the vocabulary, and a model may choose such a row.
        let vocabulary = byte_fallback();
        let bytes = of_bytes(&vocabulary);
        let beyond = vocabulary.tokenizer().vocab_size() as u32;
        for skip in [false, true] {
            check(&vocabulary, &[bytes[0], beyond, bytes[0x80]], skip);
            check(&vocabulary, &[bytes[0xC3], beyond, bytes[0xA9], beyond], skip);
        }
    }

    #[test]
    fn characters_wait_for_their_last_byte() {
        let vocabulary = byte_level();
        let bytes = of_bytes(&vocabulary);
        let tokens: Vec<u32> = "a🙂é".bytes().map(|byte| bytes[byte as usize]).collect();
        let expected = ["a", "", "", "", "🙂", "", "é", ""];
        assert_eq!(pieces(&vocabulary, &tokens, false), expected);
        // A run of garbage is handed on while it lasts, all but its last character.
        let garbage = vec![bytes[0xE2]; 200];
        let pieces = pieces(&vocabulary, &garbage, false);
        assert!(pieces[..100].concat().chars().count() > 60);
        check(&vocabulary, &garbage, false);
        check(&vocabulary, &[vec![bytes[0xF0]; 70], tokens].concat(), false);
    }
}
