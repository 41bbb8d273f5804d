//! What tests use in place of models: tokenizers of several kinds, and a model whose logits are a
//! hash of everything before them, so that nothing can be lost or mixed up without being seen.

use crate::generate::LanguageModel;
use crate::text::Vocabulary;
use crate::{LogitRow, Piece, RuntimeError, Want};
use lapidary_kernels::random::{mix, unit};
use lapidary_store::Tokenizer;
use serde_json::{Value, json};
use std::sync::Arc;

/// The demo's tokenizer: bytes in pairs, 2048 tokens.
pub(crate) fn byte_level() -> Arc<Vocabulary> {
    let definition = include_bytes!("../../../assets/demo/tokenizer.json");
    vocabulary(Tokenizer::from_json(definition, "demo").unwrap())
}

/// As Llama 2's: words after `▁`, and a token for every byte.
pub(crate) fn byte_fallback() -> Arc<Vocabulary> {
    let pieces = ["<unk>", "<s>", "</s>", "▁", "▁a", "a", "b", "▁▁", "é", "日", "\u{fffd}", "ab"];
    let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
    let vocab: Vec<String> = pieces.map(str::to_owned).into_iter().chain(bytes).collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": vocab[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        })
    };
    let ids: Value = vocab.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let definition = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "byte_fallback": true,
            "vocab": ids, "merges": [["▁", "a"], ["▁", "▁"], ["a", "b"]]}
    });
    from_value(&definition)
}

/// As BERT's: pieces of words.
pub(crate) fn word_pieces() -> Arc<Vocabulary> {
    let vocab = ["[UNK]", "[CLS]", "[SEP]", "a", "##b", "##c", "don", "'", "t", ".", "日", "##é"];
    let ids: Value = vocab.iter().zip(0..).map(|(token, id)| (*token, json!(id))).collect();
    let definition = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids}
    });
    from_value(&definition)
}

fn from_value(definition: &Value) -> Arc<Vocabulary> {
    let bytes = serde_json::to_vec(definition).unwrap();
    vocabulary(Tokenizer::from_json(&bytes, "test").unwrap())
}

fn vocabulary(tokenizer: Tokenizer) -> Arc<Vocabulary> {
    Arc::new(Vocabulary::bare(tokenizer).unwrap())
}

/// A model of hashes.
pub(crate) struct Hashes {
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    pub(crate) sequences: Vec<Vec<u32>>,
    /// The most tokens that a step has had.
    pub(crate) widest: usize,
    /// The step at which it fails.
    pub(crate) fails_at: Option<usize>,
    pub(crate) steps: usize,
}

impl Hashes {
    pub(crate) fn new(vocabulary: usize, context: usize, sequences: usize) -> Self {
        let sequences = vec![vec![]; sequences];
        Self { vocabulary, context, sequences, widest: 0, fails_at: None, steps: 0 }
    }

    /// The logits after some tokens.
    pub(crate) fn logits(vocabulary: usize, tokens: &[u32]) -> Vec<f32> {
        let key = tokens.iter().fold(17, |key, token| mix(key ^ u64::from(*token)));
        (0..vocabulary as u64).map(|token| 8.0 * unit(key.wrapping_add(token)) as f32).collect()
    }
}

impl LanguageModel for Hashes {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn sequences(&self) -> usize {
        self.sequences.len()
    }

    fn truncate(&mut self, sequence: usize, length: usize) {
        self.sequences[sequence].truncate(length);
    }

    fn step(
        &mut self,
        pieces: &[Piece<'_>],
        on_row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), RuntimeError> {
        self.steps += 1;
        if self.fails_at == Some(self.steps) {
            return Err(RuntimeError::NotFinite);
        }
        self.widest = self.widest.max(pieces.iter().map(|piece| piece.tokens.len()).sum());
        for (index, piece) in pieces.iter().enumerate() {
            let sequence = &mut self.sequences[piece.sequence];
            for (at, token) in piece.tokens.iter().enumerate() {
                sequence.push(*token);
                let wanted = match piece.want {
                    Want::None => false,
                    Want::Last => at + 1 == piece.tokens.len(),
                    Want::All => true,
                };
                if wanted {
                    let logits = Self::logits(self.vocabulary, sequence);
                    on_row(LogitRow { piece: index, token: at, logits: &logits });
                }
            }
            assert!(sequence.len() <= self.context);
        }
        Ok(())
    }
}
