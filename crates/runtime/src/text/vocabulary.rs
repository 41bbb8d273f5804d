//! A model's tokenizer, the tokens with a meaning of their own, and its chat template.

use crate::RuntimeError;
use crate::chat::ChatTemplate;
use lapidary_formats::Source;
use lapidary_store::{Tokenizer, json};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The name that a tokenizer's configuration gives its end of text, and its other names.
const END: &str = "eos_token";

/// Between text and a model's tokens.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// Special tokens by name, `bos_token` and so on.
    named: BTreeMap<String, String>,
    /// Tokens that end an answer.
    ends: BTreeSet<u32>,
    template: Option<ChatTemplate>,
    /// A word of one token: what follows it is spelled as within a text.
    anchor: Option<(u32, String)>,
}

impl Vocabulary {
    /// What the files of a checkpoint say; `template` stands in for its chat template.
    ///
    /// # Errors
    /// When there is no tokenizer of the kind that can be read, or a file is malformed.
    pub fn open(source: &Source, template: Option<String>) -> Result<Self, RuntimeError> {
        let Some(definition) = read(source, "tokenizer.json")? else {
            return Err(RuntimeError::Missing(
                "the checkpoint has no tokenizer.json, which a model needs to read and write text; \
                 save its fast tokenizer beside it (transformers: AutoTokenizer.from_pretrained(…)\
                 .save_pretrained(FOLDER))"
                    .to_owned(),
            ));
        };
        let tokenizer = Tokenizer::from_json(&definition, "tokenizer.json")?;
        let config = read_object(source, "tokenizer_config.json")?;
        let mut named = named_tokens(&read_object(source, "special_tokens_map.json")?);
        named.extend(named_tokens(&config));
        let generation = read_object(source, "generation_config.json")?;
        let mut ends = BTreeSet::new();
        for value in [generation.get("eos_token_id"), source.config().get("eos_token_id")] {
            ends.extend(ids(value));
        }
        ends.extend(named.get(END).and_then(|token| tokenizer.token_to_id(token)));
        let template = match template {
            Some(template) => Some(template),
            None => chat_template(source, &config)?,
        };
        let template = template.map(|text| ChatTemplate::new(text, named.clone())).transpose()?;
        Self::assemble(tokenizer, named, ends, template)
    }

    fn assemble(
        tokenizer: Tokenizer,
        named: BTreeMap<String, String>,
        ends: BTreeSet<u32>,
        template: Option<ChatTemplate>,
    ) -> Result<Self, RuntimeError> {
        let mut anchor = None;
        if let Some(token) = tokenizer.encode("a", false).ok().and_then(|ids| ids.last().copied()) {
            anchor = Some((token, tokenizer.decode(&[token], false)?));
        }
        Ok(Self { tokenizer, named, ends, template, anchor })
    }

    /// A tokenizer alone, with nothing that ends an answer.
    ///
    /// # Errors
    /// When it cannot decode.
    pub fn bare(tokenizer: Tokenizer) -> Result<Self, RuntimeError> {
        Self::assemble(tokenizer, BTreeMap::new(), BTreeSet::new(), None)
    }

    /// The tokens of a text to be continued; with `special`, with those that the tokenizer puts
    /// around every text. An empty text is continued from the token that begins one.
    ///
    /// # Errors
    /// When a part of the text has no token.
    pub fn prompt(&self, text: &str, special: bool) -> Result<Vec<u32>, RuntimeError> {
        let mut tokens = self.tokenizer.encode(text, special)?;
        if tokens.is_empty() {
            let named = ["bos_token", END].into_iter().filter_map(|name| self.named(name));
            let ids = named.filter_map(|token| self.tokenizer.token_to_id(token));
            tokens.extend(ids.take(1));
        }
        Ok(tokens)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, where the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The text of a special token, by its name in the tokenizer's configuration (`bos_token`).
    pub fn named(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Whether a token is left out of texts for people.
    pub fn is_special(&self, token: u32) -> bool {
        self.tokenizer.is_special(token)
    }

    /// Whether an id is of a token at all: embeddings may have more rows than there are tokens.
    pub(crate) fn is_known(&self, token: u32) -> bool {
        self.tokenizer.id_to_token(token).is_some()
    }

    /// Whether a token stands for one byte, as `<0xE2>` does.
    pub(crate) fn is_byte(&self, token: u32) -> bool {
        self.tokenizer.id_to_token(token).is_some_and(|token| {
            let digits = token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>'));
            digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
        })
    }

    /// The text of a token by itself, as it is within a text: with its space, where it has one. A
    /// part of a character is spelled as in the vocabulary.
    pub fn token_text(&self, token: u32) -> String {
        let within = self.anchor.as_ref().and_then(|(anchor, text)| {
            let both = self.tokenizer.decode(&[*anchor, token], false).ok()?;
            both.strip_prefix(text.as_str()).map(str::to_owned)
        });
        match within {
            Some(text) if !text.contains(char::REPLACEMENT_CHARACTER) => text,
            _ => self.tokenizer.id_to_token(token).unwrap_or_default(),
        }
    }
}

/// A file that goes with the weights, where there is one.
fn read(source: &Source, name: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
    if !source.files().iter().any(|file| file.name == name) {
        return Ok(None);
    }
    Ok(Some(source.read_file(name)?))
}

fn read_object(source: &Source, name: &str) -> Result<Map<String, Value>, RuntimeError> {
    match read(source, name)? {
        None => Ok(Map::new()),
        Some(bytes) => match json::parse(&bytes, Path::new(name))? {
            Value::Object(object) => Ok(object),
            _ => Ok(Map::new()),
        },
    }
}

/// Tokens that a configuration names: plain strings, or objects with their `content`.
fn named_tokens(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let named = config.iter().filter(|(name, _)| name.ends_with("_token"));
    let named = named.filter_map(|(name, value)| {
        let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some((name.clone(), token.to_owned()))
    });
    named.collect()
}

/// An id, or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => vec![],
    }
}

/// The chat template: a file of its own, or in the tokenizer's configuration, as a string or the
/// first, or the one called `default`, of several.
fn chat_template(
    source: &Source,
    config: &Map<String, Value>,
) -> Result<Option<String>, RuntimeError> {
    if let Some(bytes) = read(source, "chat_template.jinja")? {
        let text = String::from_utf8(bytes);
        return text.map(Some).map_err(|_| {
            RuntimeError::Template("chat_template.jinja is not text in UTF-8".to_owned())
        });
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(match config.get("chat_template") {
        Some(Value::Array(templates)) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            default.or_else(|| templates.first()).and_then(|template| text(&template["template"]))
        }
        Some(value) => text(value),
        None => None,
    })
}
