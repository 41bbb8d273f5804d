//! How recipes and checkpoints name modules: a kind as `Linear`, a module's name, or `re:…`.

use regex::Regex;

/// A pattern that names modules.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Every module of a kind.
    All(ModuleKind),
    /// A module, or the last parts of its name.
    Name,
    /// A regular expression that must match from the start of the name.
    Regex(Regex),
}

/// What a module is, for the patterns that name a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// A linear layer inside a block.
    Layer,
    /// A linear layer after the blocks.
    Head,
    /// A table of embeddings.
    Table,
    /// A table of embeddings whose rows belong to positions or segments, not to tokens.
    Positions,
    /// A linear layer that chooses experts, of which a few numbers decide much: named by itself only.
    Router,
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
    /// `Linear` for all linear layers of the blocks; `Embedding` for all tables, `Positions` for those
    /// of positions and segments among them; `Head` for what makes the logits, which may be a table;
    /// `re:` and a regular expression, matched from the start of the module's name as Python's
    /// `re.match` does; else a module's name, or the last parts of it (`mlp.down_proj`).
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
            None => match text {
                "Linear" => Kind::All(ModuleKind::Layer),
                "Embedding" => Kind::All(ModuleKind::Table),
                "Positions" => Kind::All(ModuleKind::Positions),
                "Head" => Kind::All(ModuleKind::Head),
                _ => Kind::Name,
            },
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it names a kind of modules, of which a model may have none.
    pub fn is_kind(&self) -> bool {
        matches!(self.kind, Kind::All(_))
    }

    /// Whether it names this module, which is of this kind.
    pub fn matches(&self, module: &str, kind: ModuleKind) -> bool {
        match &self.kind {
            Kind::All(ModuleKind::Table) => {
                matches!(kind, ModuleKind::Table | ModuleKind::Positions)
            }
            Kind::All(wanted) => *wanted == kind,
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
        let matches = |text: &str| Pattern::new(text).unwrap().matches(DOWN, ModuleKind::Layer);
        assert!(matches(DOWN) && matches("down_proj") && matches("mlp.down_proj"));
        assert!(!matches("proj") && !matches("model.layers.1") && !matches("p.down_proj"));
    }

    #[test]
    fn expressions_match_from_the_start_as_in_python() {
        let matches = |text: &str| Pattern::new(text).unwrap().matches(DOWN, ModuleKind::Layer);
        assert!(matches("re:.*down_proj$") && matches("re:model.layers.(9|10)"));
        assert!(!matches("re:layers") && !matches("re:.*gate|nothing"));
        assert!(Pattern::new("re:(").unwrap_err().to_string().contains("unclosed group"));
    }

    #[test]
    fn words_name_the_layers_of_the_blocks_and_the_tables() {
        let modules = [
            (DOWN, ModuleKind::Layer),
            ("lm_head", ModuleKind::Head),
            ("model.embed_tokens", ModuleKind::Table),
            ("model.layers.0.mlp.gate", ModuleKind::Router),
            ("transformer.wpe", ModuleKind::Positions),
        ];
        let cases: [(&str, &[usize]); 8] = [
            ("Linear", &[0]),
            ("lm_head", &[1]),
            ("Head", &[1]),
            ("Embedding", &[2, 4]),
            ("embed_tokens", &[2]),
            ("gate", &[3]),
            ("Positions", &[4]),
            ("wpe", &[4]),
        ];
        for (text, wanted) in cases {
            let pattern = Pattern::new(text).unwrap();
            for (index, (module, kind)) in modules.iter().enumerate() {
                let is_wanted = wanted.contains(&index);
                assert_eq!(pattern.matches(module, *kind), is_wanted, "{text} {module}");
            }
        }
    }
}
