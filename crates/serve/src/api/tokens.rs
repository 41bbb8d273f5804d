//! `/tokenize`, `/detokenize`, `/tokenizer_info`: the vocabulary, as vLLM serves it.

use super::fields::Fields;
use super::{App, chat};
use crate::error::ApiError;
use serde_json::{Map, Value, json as object};

/// The ids of a text, or of the messages of a chat.
pub(super) fn tokenize(app: &App, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::read(body)?;
    fields.ignore(&["model"]);
    let special: Option<bool> = fields.take("add_special_tokens")?;
    let spelled = fields.take("return_token_strs")?.unwrap_or(false);
    let tokens = match fields.take::<String>("prompt")? {
        Some(text) => {
            let tokens = app.vocabulary.tokenizer().encode(&text, special.unwrap_or(true));
            tokens.map_err(|error| ApiError::malformed(error.to_string()))?
        }
        None if fields.has("messages") => chat::prompt(app, &mut fields)?,
        None => return Err(ApiError::parameter("prompt", "is missing, and so are messages")),
    };
    fields.finish()?;
    let mut found = object!({
        "count": tokens.len(), "max_model_len": app.context, "tokens": tokens,
    });
    if spelled {
        let spell = |token: &u32| app.vocabulary.tokenizer().id_to_token(*token);
        found["token_strs"] = object!(tokens.iter().map(spell).collect::<Vec<_>>());
    }
    Ok(found)
}

/// The text of some ids.
pub(super) fn detokenize(app: &App, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::read(body)?;
    fields.ignore(&["model"]);
    let Some(tokens) = fields.take::<Vec<u32>>("tokens")? else {
        return Err(ApiError::parameter("tokens", "is missing"));
    };
    fields.finish()?;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= app.tokens) {
        let problem = format!("{token} is not in the vocabulary of {}", app.tokens);
        return Err(ApiError::parameter("tokens", problem));
    }
    let text = app.vocabulary.tokenizer().decode(&tokens, false);
    Ok(object!({"prompt": text.map_err(|error| ApiError::malformed(error.to_string()))?}))
}

/// The special tokens and the chat template.
pub(super) fn info(app: &App) -> Value {
    let mut info: Map<String, Value> = ["bos_token", "eos_token", "pad_token", "unk_token"]
        .into_iter()
        .map(|name| (name.to_owned(), object!(app.vocabulary.named(name))))
        .collect();
    let template = app.vocabulary.template().map(|template| template.text());
    info.insert("chat_template".to_owned(), object!(template));
    info.insert("max_model_len".to_owned(), object!(app.context));
    info.insert("vocab_size".to_owned(), object!(app.tokens));
    Value::Object(info)
}
