//! How recipes and checkpoints name linear layers: `Linear`, a module's name, or `re:…`.

use regex::Regex;

/// A pattern that names modules.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Every linear layer inside a block.
    Linear,
    /// A module, or the last parts of its name.
    Name,
    /// A regular expression that must match from the start of the name.
    Regex(Regex),
}

/// A regular expression that does not parse.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{pattern:?} is not a regular expression: {what}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// The parser's complaint.
    pub what: String,
}

impl Pattern {
    /// `Linear` for all linear layers of the blocks; `re:` and a regular expression, matched from
    /// the start of the module's name as Python's `re.match` does; else a module's name, or the
    /// last parts of it (`mlp.down_proj`).
    ///
    /// # Errors
    /// When a regular expression does not parse.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let kind = match text.strip_prefix("re:") {
            Some(expression) => {
                let regex = Regex::new(&format!("^(?:{expression})")).map_err(|error| {
                    // The parser draws the place over several lines; the last says what it is.
                    let what = error.to_string();
                    let what = what.lines().last().unwrap_or_default();
                    let what = what.trim_start_matches("error: ").to_owned();
                    PatternError { pattern: text.to_owned(), what }
                })?;
                Kind::Regex(regex)
            }
            None if text == "Linear" => Kind::Linear,
            None => Kind::Name,
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it names this module; `in_block` tells a block's layers from the head.
    pub fn matches(&self, module: &str, in_block: bool) -> bool {
        match &self.kind {
            Kind::Linear => in_block,
            Kind::Regex(regex) => regex.is_match(module),
            Kind::Name => module
                .strip_suffix(self.text.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: &str = "model.layers.10.mlp.down_proj";

    #[test]
    fn names_match_whole_parts_from_the_end() {
        let matches = |text: &str| Pattern::new(text).unwrap().matches(DOWN, true);
        assert!(matches(DOWN) && matches("down_proj") && matches("mlp.down_proj"));
        assert!(!matches("proj") && !matches("model.layers.1") && !matches("p.down_proj"));
    }

    #[test]
    fn expressions_match_from_the_start_as_in_python() {
        let matches = |text: &str| Pattern::new(text).unwrap().matches(DOWN, true);
        assert!(matches("re:.*down_proj$") && matches("re:model.layers.(9|10)"));
        assert!(!matches("re:layers") && !matches("re:.*gate|nothing"));
        assert!(Pattern::new("re:(").unwrap_err().to_string().contains("unclosed group"));
    }

    #[test]
    fn linear_is_the_layers_of_the_blocks() {
        let linear = Pattern::new("Linear").unwrap();
        assert!(linear.matches(DOWN, true) && !linear.matches("lm_head", false));
    }
}
