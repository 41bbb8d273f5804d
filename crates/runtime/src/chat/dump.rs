//! JSON as Python's `json.dumps` writes it.

use serde_json::Value;
use std::fmt::Write;

/// The arguments of `json.dumps`.
#[derive(Default)]
pub(super) struct Style {
    /// Escape everything that is not ASCII.
    pub(super) ascii: bool,
    /// Spaces of each level, on lines of their own.
    pub(super) indent: Option<usize>,
    /// Between items, and between a key and its value.
    pub(super) separators: Option<(String, String)>,
    /// Keys in order.
    pub(super) sorted: bool,
}

impl Style {
    pub(super) fn dump(&self, value: &Value) -> String {
        let mut out = String::new();
        self.write(value, 0, &mut out);
        out
    }

    fn write(&self, value: &Value, level: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => out.push_str(&python_float(float)),
                None => out.push_str(&number.to_string()),
            },
            Value::String(text) => self.string(text, out),
            Value::Array(items) => self.container(('[', ']'), items, level, out, |item, out| {
                self.write(item, level + 1, out);
            }),
            Value::Object(object) => {
                let mut items: Vec<_> = object.iter().collect();
                if self.sorted {
                    items.sort_by(|a, b| a.0.cmp(b.0));
                }
                self.container(('{', '}'), &items, level, out, |(key, value), out| {
                    self.string(key, out);
                    out.push_str(self.separators.as_ref().map_or(": ", |(_, key)| key.as_str()));
                    self.write(value, level + 1, out);
                });
            }
        }
    }

    fn container<T>(
        &self,
        (open, close): (char, char),
        items: &[T],
        level: usize,
        out: &mut String,
        each: impl Fn(&T, &mut String),
    ) {
        out.push(open);
        let line = |level: usize, out: &mut String| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * level));
            }
        };
        let between = if self.indent.is_some() { "," } else { ", " };
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(self.separators.as_ref().map_or(between, |(item, _)| item.as_str()));
            }
            line(level + 1, out);
            each(item, out);
        }
        if !items.is_empty() {
            line(level, out);
        }
        out.push(close);
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                other if other < ' ' || (self.ascii && !(' '..='~').contains(&other)) => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                other => out.push(other),
            }
        }
        out.push('"');
    }
}

/// The shortest digits that give the number back, with an exponent below 1e-4 and from 1e16.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let sign = if exponent.starts_with('-') { '-' } else { '+' };
        return format!("{digits}e{sign}{:0>2}", exponent.trim_start_matches('-'));
    }
    format!("{value:?}")
}
