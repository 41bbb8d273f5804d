//! The tokens of a GGUF file, what they are for, and the ids of the special ones.

use lapidary_store::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::{GgufError, Kind, keys};

/// What a token is for, `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A piece of text.
    Normal = 1,
    /// What stands for text that has no token.
    Unknown,
    /// A sign that is not text.
    Control,
    /// Text that is always this one token, wherever it stands.
    UserDefined,
    /// Nothing: it fills a gap.
    Unused,
    /// A byte, written `<0x0A>`.
    Byte,
}

/// The tokens, by id.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: &'a [String],
    pub(super) uses: Vec<Use>,
    pub(super) special: SpecialIds,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, GgufError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = keys::required(key, keys::strings(metadata, key))?;
        let bad = |key: &str, problem: String| GgufError::BadValue { key: key.to_owned(), problem };
        if u32::try_from(tokens.len()).is_err() {
            return Err(bad(key, format!("{} are too many", tokens.len())));
        }
        let key = "tokenizer.ggml.token_type";
        let uses: Vec<Use> = match keys::integers(metadata, key)? {
            Some(types) => types.into_iter().map(usage).collect(),
            None => vec![Use::Normal; tokens.len()],
        };
        if uses.len() != tokens.len() {
            return Err(bad(key, format!("{} types for {} tokens", uses.len(), tokens.len())));
        }
        let mut special = SpecialIds::read(metadata)?;
        // A pad token that is ordinary text must not become a special token.
        special.pad = special.pad.filter(|&id| uses[id as usize] != Use::Normal);
        Ok(Self { tokens, uses, special })
    }

    /// The token of an id from this vocabulary.
    pub(super) fn token(&self, id: u32) -> &'a str {
        &self.tokens[id as usize]
    }

    /// Ids, tokens and uses.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &'a str, Use)> {
        (0..)
            .zip(self.tokens)
            .zip(&self.uses)
            .map(|((id, token), &usage)| (id, token.as_str(), usage))
    }

    /// The tokens that are found in a text before anything else, with whether they are special:
    /// control tokens and those with a special id are, user-defined text is not.
    pub(super) fn added(&self) -> impl Iterator<Item = (u32, &'a str, bool)> {
        self.iter().filter_map(|(id, token, usage)| {
            let special = usage == Use::Control || self.special.contains(id);
            (special || usage == Use::UserDefined).then_some((id, token, special))
        })
    }

    /// The `vocab` of a model; of tokens with the same text the last one counts, as in llama.cpp.
    pub(super) fn to_json(&self) -> Value {
        let ids = self.iter().map(|(id, token, _)| (token.to_owned(), json!(id)));
        Value::Object(ids.collect::<Map<_, _>>())
    }
}

/// The use that a number stands for; those of later versions are taken for text, as llama.cpp does.
fn usage(number: i64) -> Use {
    match number {
        2 => Use::Unknown,
        3 => Use::Control,
        4 => Use::UserDefined,
        5 => Use::Unused,
        6 => Use::Byte,
        _ => Use::Normal,
    }
}

/// The ids of special tokens. Every one of them is an id of the vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct SpecialIds {
    pub(in super::super) bos: Option<u32>,
    pub(in super::super) eos: Option<u32>,
    pub(in super::super) pad: Option<u32>,
    /// Ends a turn of a conversation.
    end_of_turn: Option<u32>,
    /// Ends a message, after which the model waits for a tool.
    end_of_message: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) separator: Option<u32>,
    pub(super) class: Option<u32>,
    mask: Option<u32>,
}

impl SpecialIds {
    /// Reads the ids; where none is given, those that the kind of tokenizer always has.
    pub(in super::super) fn read(metadata: &Metadata) -> Result<Self, GgufError> {
        let tokens = "tokenizer.ggml.tokens";
        let count = keys::required(tokens, keys::strings(metadata, tokens))?.len();
        let read = |name: &str, default: Option<u32>| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match keys::unsigned(metadata, &key)?.map(u32::try_from) {
                None => Ok(default.filter(|&id| (id as usize) < count)),
                Some(Ok(id)) if (id as usize) < count => Ok(Some(id)),
                Some(_) => {
                    let problem = format!("it is not the id of one of the {count} tokens");
                    Err(GgufError::BadValue { key, problem })
                }
            }
        };
        let kind = Kind::of(metadata)?;
        let spm = |id: u32| (kind == Kind::Spm).then_some(id);
        let bert = |id: u32| (kind == Kind::WordPiece).then_some(id);
        Ok(Self {
            // BERT has no such tokens; converters give some anyway, the class and separator.
            bos: read("bos", spm(1))?.filter(|_| kind != Kind::WordPiece),
            eos: read("eos", spm(2))?.filter(|_| kind != Kind::WordPiece),
            pad: read("padding", bert(0))?,
            end_of_turn: read("eot", None)?,
            end_of_message: read("eom", None)?,
            unknown: read("unknown", spm(0).or_else(|| bert(100)))?,
            // Sic: the key is misspelled in the format.
            separator: read("seperator", bert(102))?,
            class: read("cls", bert(101))?,
            mask: read("mask", bert(103))?,
        })
    }

    /// The special tokens that transformers has names for.
    pub(super) fn named(&self) -> [(&'static str, Option<u32>); 7] {
        [
            ("bos", self.bos),
            ("cls", self.class),
            ("eos", self.eos),
            ("mask", self.mask),
            ("pad", self.pad),
            ("sep", self.separator),
            ("unk", self.unknown),
        ]
    }

    /// The ids that end a generation, each once.
    pub(in super::super) fn ends(&self) -> Vec<u32> {
        let mut ends = Vec::new();
        for id in [self.eos, self.end_of_turn, self.end_of_message].into_iter().flatten() {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        ends
    }

    fn contains(&self, id: u32) -> bool {
        let unnamed = [self.end_of_turn, self.end_of_message];
        self.named().into_iter().map(|(_, id)| id).chain(unnamed).any(|special| special == Some(id))
    }
}
