//! Chat templates: messages to the text that a model was trained to continue.
//!
//! The templates are Jinja, rendered as transformers' `apply_chat_template` does: its whitespace
//! rules, its `tojson`, `raise_exception` and `strftime_now`, Python's methods of strings and
//! dictionaries. A template comes with a model and is not trusted: it has no files, no clock but the
//! time it is given, a number of steps it may take and a length it may write.

mod clock;
mod dump;

use crate::RuntimeError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Steps of a rendering.
const FUEL: u64 = 5_000_000;

/// Longest template, and longest rendering, in bytes.
const LONGEST_TEMPLATE: usize = 1 << 20;
const LONGEST_TEXT: usize = 1 << 24;

/// Name of the variable that holds the time; templates have no use for such a name.
const NOW: &str = "__now__";

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    text: String,
    special: BTreeMap<String, String>,
}

/// What a template is given.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    /// The messages: objects with `role` and `content`, and what else a template reads.
    pub messages: Vec<Json>,
    /// Descriptions of functions, for templates that know of such.
    pub tools: Option<Vec<Json>>,
    /// Whether the beginning of an answer follows the messages.
    pub add_generation_prompt: bool,
    /// Other variables of the template.
    pub variables: Map<String, Json>,
}

impl ChatTemplate {
    /// Compiles a template; `special` are the special tokens it may name (`bos_token`).
    ///
    /// # Errors
    /// When it is no template, or longer than a megabyte.
    pub fn new(text: String, special: BTreeMap<String, String>) -> Result<Self, RuntimeError> {
        if text.len() > LONGEST_TEMPLATE {
            let what = format!("it has {} bytes, more than {LONGEST_TEMPLATE}", text.len());
            return Err(RuntimeError::Template(what));
        }
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build().map_err(told)?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |state: &mut minijinja::State, format: String| {
            let now = state.lookup(NOW).and_then(|now| now.as_i64()).unwrap_or_default();
            Value::from(clock::format(now, &format))
        });
        environment.add_template_owned("chat", plain(&text)).map_err(told)?;
        Ok(Self { environment, text, special })
    }

    /// The template itself.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text for a chat at a time. The text holds its special tokens already: none are to be
    /// added when it is tokenized.
    ///
    /// # Errors
    /// When the template refuses the messages, cannot deal with them, or goes on for too long.
    pub fn render(&self, chat: &Chat, now: SystemTime) -> Result<String, RuntimeError> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, token) in &self.special {
            variables.insert(name, Value::from(token.as_str()));
        }
        for (name, value) in &chat.variables {
            variables.insert(name, Value::from(Serde(value)));
        }
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        variables.insert(NOW, Value::from(seconds));
        variables.insert("messages", Value::from(Serde(&chat.messages)));
        variables.insert("tools", Value::from(Serde(&chat.tools)));
        variables.insert("documents", Value::from(()));
        variables.insert("add_generation_prompt", Value::from(chat.add_generation_prompt));
        let template = self.environment.get_template("chat").map_err(told)?;
        let mut out = Bounded(vec![]);
        template.render_captured_to(Value::from_pairs(variables), &mut out).map_err(told)?;
        String::from_utf8(out.0).map_err(|error| RuntimeError::Template(error.to_string()))
    }
}

/// A text of limited length.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST_TEXT {
            return Err(io::Error::other(format!("it writes more than {LONGEST_TEXT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The innermost reason; the names of our functions say nothing to whoever sent the messages.
fn told(error: Error) -> RuntimeError {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            format!("{error}{}", source.unwrap_or_default())
        }
    };
    RuntimeError::Template(what)
}

/// Takes out the marks around what the assistant wrote (`{% generation %}`): only training reads
/// them. What stands in their place keeps the whitespace rules of a block.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_start_matches("{%").trim_end_matches("%}");
        let bare = name.trim_matches(['-', '+']).trim();
        match bare {
            "generation" => out.push_str(&tag.replace(bare, "if true")),
            "endgeneration" => out.push_str(&tag.replace(bare, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// Python's `json.dumps`, with the arguments that transformers takes.
fn to_json(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let style = dump::Style {
        ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: arguments.get::<Option<usize>>("indent")?,
        separators: match arguments.get::<Option<Vec<String>>>("separators")?.as_deref() {
            None => None,
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => {
                let what = "tojson: separators are two strings";
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        },
        sorted: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    arguments.assert_all_used()?;
    if value.is_undefined() {
        let what = "tojson: the value is undefined";
        return Err(Error::new(ErrorKind::UndefinedError, what));
    }
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from(style.dump(&json)))
}

#[cfg(test)]
mod tests;
