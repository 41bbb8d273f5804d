//! Which blocks of a model a step goes to, where that depends on their number or kind.

use lapidary_model::{Op, Spec};

/// `layers` of a step: a rule, or all but what a rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layers {
    rule: Rule,
    negated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// So many blocks from the first on.
    First(usize),
    /// One block.
    Block(usize),
    /// A part of the blocks from the first on, one in so many.
    FirstPart(usize),
    /// The first eighth, the last eighth, and of those between every third: where llama.cpp's
    /// mixtures have more bits.
    MoreBits,
    /// All blocks, where so many query heads or more share each head of keys and values.
    Grouped(usize),
}

/// What the rules ask of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Depth {
    blocks: usize,
    /// Query heads for each head of keys and values.
    queries: usize,
}

impl Depth {
    pub(crate) fn of(spec: &Spec) -> Self {
        let queries = |op: &Op| match op {
            Op::Attention(attention) => attention.heads.checked_div(attention.kv_heads),
            _ => None,
        };
        let nodes = spec.blocks.iter().flat_map(|block| &block.nodes);
        let queries = nodes.filter_map(|node| queries(&node.op)).max().unwrap_or(1);
        Self { blocks: spec.blocks.len(), queries }
    }
}

/// What can stand under `layers`.
pub(super) const RULES: &str =
    "first N, first 1/N, block N, more-bits or grouped N, or not and one of these";

impl Layers {
    /// Reads `first 4`, `first 1/8`, `block 7` (from 0), `more-bits`, `grouped 4`, or one of them after `not`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let negated = words.first() == Some(&"not");
        if negated {
            words.remove(0);
        }
        let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
        let rule = match words[..] {
            ["more-bits"] => Rule::MoreBits,
            ["block", block] => Rule::Block(block.parse().ok()?),
            ["grouped", count] => Rule::Grouped(number(count)?),
            ["first", count] => match count.strip_prefix("1/") {
                Some(part) => Rule::FirstPart(number(part)?),
                None => Rule::First(number(count)?),
            },
            _ => return None,
        };
        Some(Self { rule, negated })
    }

    /// One block, counted from 0.
    pub(crate) fn block(block: usize) -> Self {
        Self { rule: Rule::Block(block), negated: false }
    }

    /// As it is written.
    pub(crate) fn text(self) -> String {
        let rule = match self.rule {
            Rule::First(count) => format!("first {count}"),
            Rule::Block(block) => format!("block {block}"),
            Rule::FirstPart(part) => format!("first 1/{part}"),
            Rule::MoreBits => "more-bits".to_owned(),
            Rule::Grouped(count) => format!("grouped {count}"),
        };
        if self.negated { format!("not {rule}") } else { rule }
    }

    /// Whether it names a block of a model.
    pub(crate) fn holds(self, block: usize, model: Depth) -> bool {
        let eighth = model.blocks / 8;
        let named = match self.rule {
            Rule::First(count) => block < count,
            Rule::Block(one) => block == one,
            Rule::FirstPart(part) => block < model.blocks / part,
            Rule::MoreBits => {
                block < eighth || block >= 7 * model.blocks / 8 || (block - eighth) % 3 == 2
            }
            Rule::Grouped(count) => model.queries >= count,
        };
        named != self.negated
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn blocks(text: &str, blocks: usize) -> Vec<usize> {
        let layers = Layers::parse(text).unwrap();
        assert_eq!(layers.text(), text);
        (0..blocks).filter(|block| layers.holds(*block, Depth { blocks, queries: 3 })).collect()
    }

    /// What llama.cpp gives more bits in models of 22 and of 32 layers, by its formula.
    #[test]
    fn more_bits_are_where_llama_cpp_has_them() {
        assert_eq!(blocks("more-bits", 22), [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]);
        assert_eq!(
            blocks("more-bits", 32),
            [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
        );
        assert_eq!(blocks("not more-bits", 8), [1, 2, 4, 5]);
        assert_eq!(blocks("more-bits", 3), [2]);
    }

    /// The layers of a model of 30 that llama.cpp itself gave Q6_K in a Q4_K_M.
    #[test]
    fn a_real_model_has_more_bits_where_llama_cpp_gave_them() {
        let given = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29];
        assert_eq!(blocks("more-bits", 30), given);
    }

    #[test]
    fn parts_and_kinds() {
        assert_eq!(blocks("first 2", 5), [0, 1]);
        assert_eq!(blocks("first 1/8", 30), [0, 1, 2]);
        assert_eq!(blocks("not first 1/2", 5), [2, 3, 4]);
        assert_eq!(blocks("block 1", 3), [1]);
        assert_eq!(blocks("not block 0", 3), [1, 2]);
        assert_eq!(blocks("grouped 3", 2), [0, 1]);
        assert!(blocks("grouped 4", 2).is_empty());
        for text in
            ["", "first", "first 0", "first 2/8", "first 1/0", "last 2", "not", "more-bits 2"]
        {
            assert_eq!(Layers::parse(text), None, "{text}");
        }
    }
}
