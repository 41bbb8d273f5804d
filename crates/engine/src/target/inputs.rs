//! What engines ask of layers whose inputs are rounded when the model is run.

use super::{Engine, Finding};
use lapidary_weight::{
    BookType, GroupType, Grouping, InputNumbers, InputRounding, InputScales, Outline, SmallFloat,
    TermOutline, ZeroType,
};

/// How an engine takes a layer.
enum Taken {
    /// On whatever it runs.
    Everywhere,
    /// On some processors only.
    On(&'static str),
    /// Nowhere.
    Not,
}

/// What stands in the way of a layer. Facts of vLLM's `compressed_tensors` schemes: `W8A8Int8`,
/// `W8A8Fp8`, `W4A8Int` and `W4A8Fp8`, and of which numbers each looks for.
pub(super) fn finding(
    engine: Engine,
    module: &str,
    outline: &Outline,
    inputs: InputRounding,
) -> Option<Finding> {
    let taken = match engine {
        Engine::Vllm => by_vllm(outline, inputs),
        // It multiplies what was rounded as floats, whatever the rule.
        Engine::Transformers => Taken::Everywhere,
        Engine::LlamaCpp => Taken::Not,
    };
    let terms = outline.describe();
    let (rule, cure) = match taken {
        Taken::Everywhere => return None,
        Taken::On(which) => {
            (format!("{terms} with inputs {inputs}, which {engine} runs on {which} only"), "")
        }
        Taken::Not => (
            format!("{terms} with inputs {inputs}, for which {engine} has no scheme"),
            "use the recipe W8A8, W4A8 or FP8_DYNAMIC, or --activations none",
        ),
    };
    let is_refused = matches!(taken, Taken::Not);
    Some(Finding { module: module.to_owned(), rule, cure: cure.to_owned(), is_refused })
}

fn by_vllm(outline: &Outline, inputs: InputRounding) -> Taken {
    let InputRounding { numbers, scales } = inputs;
    let is_token = scales == InputScales::Token;
    let is_fixed = matches!(scales, InputScales::Fixed(_));
    let [term] = &outline.terms[..] else { return Taken::Not };
    match (term, numbers) {
        (
            TermOutline::Affine {
                bits: 8, grouping: Grouping::Row | Grouping::Tensor, zeros, ..
            },
            InputNumbers::Integers(8),
        ) if *zeros == ZeroType::Middle && (is_token || is_fixed) => Taken::Everywhere,
        (
            TermOutline::Affine {
                bits: 4,
                grouping: Grouping::Row | Grouping::Columns(_),
                zeros,
                ..
            },
            numbers,
        ) if *zeros == ZeroType::Middle && is_token => match numbers {
            InputNumbers::Integers(8) => Taken::On("Arm processors"),
            InputNumbers::E4M3 => Taken::On("GPUs from Hopper on"),
            InputNumbers::Integers(_) => Taken::Not,
        },
        (
            TermOutline::Lookup {
                books: BookType::Fixed(SmallFloat::E4M3),
                grouping: Some(grouping),
                scales: GroupType::Plain(_),
                ..
            },
            InputNumbers::E4M3,
        ) => match grouping {
            Grouping::Row | Grouping::Tensor if is_token || is_fixed => Taken::Everywhere,
            Grouping::Blocks { columns, .. } if scales == InputScales::Channels(*columns) => {
                Taken::Everywhere
            }
            _ => Taken::Not,
        },
        _ => Taken::Not,
    }
}
