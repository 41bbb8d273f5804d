//! Between tokens and text: a model's vocabulary, text that grows token by token, strings that end it.

mod detokenizer;
mod stop;
mod vocabulary;

pub use detokenizer::Detokenizer;
pub use stop::StopStrings;
pub use vocabulary::Vocabulary;
