//! Tensor names of GGUF and of Hugging Face, and the order of rows.
//!
//! For `llama` and what is built on it the converter reorders the rows of the query and key
//! projections, weights and biases, from the two halves of a head that Hugging Face rotates against
//! each other to neighbouring pairs: row `(head, half, i)` becomes row `(head, i, half)`. For Gemma it
//! adds one to the gains of the norms, which Hugging Face adds when it computes.

use lapidary_store::gguf::Metadata;

use super::GgufError;
use super::architecture::{Architecture, EXPERTS};
use super::config::heads;

/// The factors of Llama 3's scaled rotary embedding: part of `config.json` at Hugging Face.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Where a tensor of a GGUF file goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To a tensor.
    Tensor {
        /// Its Hugging Face name.
        name: String,
        /// What is to be done to it on the way.
        change: Change,
    },
    /// To a tensor for each expert, `{prefix}.{expert}.{part}.weight`: the matrices of all experts of a
    /// layer stand one after the other.
    Experts {
        /// The module of the experts at Hugging Face.
        prefix: String,
        /// What the matrix is called there.
        part: &'static str,
    },
    /// Into `config.json`: give its values to [`super::config`] as `rope_factors`.
    RopeFactors,
}

/// What is other about a tensor in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Same,
    /// Its values, gains of a norm, have one added.
    Raised,
    /// Its rows (or elements, for a bias) stand in pairs; [`unpermute_rows`] restores the halves of each head.
    Paired {
        /// The heads that the rows divide into.
        heads: usize,
    },
}

/// The translation of tensor names for one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    architecture: Architecture,
    heads: usize,
    kv_heads: usize,
}

impl Names {
    /// The translation for the model that the metadata describe.
    ///
    /// # Errors
    /// When the architecture is not supported, or the numbers of heads are missing.
    pub fn new(metadata: &Metadata) -> Result<Self, GgufError> {
        let architecture = Architecture::of(metadata)?;
        let (heads, kv_heads) = heads(metadata, architecture)?;
        Ok(Self { architecture, heads, kv_heads })
    }

    /// The translation for a model of this architecture with so many heads.
    pub(super) fn of(architecture: Architecture, heads: usize, kv_heads: usize) -> Self {
        Self { architecture, heads, kv_heads }
    }

    /// Where the tensor with a GGUF name goes.
    ///
    /// # Errors
    /// When models of this architecture have no such tensor.
    pub fn to_hugging_face(&self, name: &str) -> Result<Destination, GgufError> {
        if name == ROPE_FACTORS && self.architecture == Architecture::Llama {
            return Ok(Destination::RopeFactors);
        }
        if let Some(experts) = self.experts_of(name) {
            return Ok(experts);
        }
        let pairs = self.architecture.names();
        let translated = translate(name, pairs).ok_or_else(|| GgufError::UnknownTensor {
            name: name.to_owned(),
            architecture: self.architecture.name(),
        })?;
        let heads = match translated.pattern {
            "blk.{}.attn_q" => self.heads,
            "blk.{}.attn_k" => self.kv_heads,
            _ => 0,
        };
        let is_gain = name.ends_with("norm.weight");
        let change = match self.architecture {
            architecture if heads > 0 && architecture.pairs_rows() => Change::Paired { heads },
            architecture if is_gain && architecture.raises_gains() => Change::Raised,
            _ => Change::Same,
        };
        Ok(Destination::Tensor { name: translated.name, change })
    }

    /// The tensors that one of all experts of a layer holds.
    fn experts_of(&self, name: &str) -> Option<Destination> {
        let names = self.architecture.experts()?;
        let (layer, stem) = name.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
        let part = names.parts[EXPERTS.iter().position(|known| *known == stem)?];
        let prefix = format!("model.layers.{layer}.{}.experts", names.module);
        is_number(layer).then_some(Destination::Experts { prefix, part })
    }

    /// The tensor of all experts that holds a matrix with a Hugging Face name, and which of them it is
    /// of.
    pub(super) fn expert(&self, name: &str) -> Option<(String, usize)> {
        let names = self.architecture.experts()?;
        let stem = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?;
        let (layer, rest) = stem.split_once('.')?;
        let rest = rest.strip_prefix(names.module)?.strip_prefix(".experts.")?;
        let (expert, part) = rest.split_once('.')?;
        let kind = names.parts.iter().position(|known| *known == part)?;
        let numbers = is_number(layer) && is_number(expert);
        let gguf = format!("blk.{layer}.{}.weight", EXPERTS[kind]);
        Some((gguf, expert.parse().ok()?)).filter(|_| numbers)
    }

    /// The GGUF name of the tensor with a Hugging Face name, if there is one; experts of a layer share
    /// one.
    #[must_use]
    pub fn to_gguf(&self, name: &str) -> Option<String> {
        if let Some((gguf, _)) = self.expert(name) {
            return Some(gguf);
        }
        let pairs = self.architecture.names().map(|(gguf, hf)| (hf, gguf));
        Some(translate(name, pairs)?.name)
    }
}

/// A translated name, and the pattern that matched.
struct Translated {
    pattern: &'static str,
    name: String,
}

/// Finds the pattern of the first kind that matches a name, and fills in that of the second.
fn translate(
    name: &str,
    pairs: impl Iterator<Item = (&'static str, &'static str)>,
) -> Option<Translated> {
    let (stem, suffix) = name.rsplit_once('.')?;
    if !matches!(suffix, "weight" | "bias") {
        return None;
    }
    for (from, to) in pairs {
        let layer = match from.split_once("{}") {
            None if from == stem => "",
            None => continue,
            Some((before, after)) => {
                let layer = stem.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                match layer {
                    Some(layer) if is_number(layer) => layer,
                    _ => continue,
                }
            }
        };
        let name = format!("{}.{suffix}", to.replace("{}", layer));
        return Some(Translated { pattern: from, name });
    }
    None
}

/// Whether this is a number as it is written: no sign, no leading zero.
fn is_number(text: &str) -> bool {
    text == "0"
        || !text.starts_with('0') && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Restores the order of [`Change::Paired`] rows, in place: `data` is `[rows, row_length]`, of
/// numbers or, since the rows of a quantized tensor are whole blocks, of bytes.
///
/// # Errors
/// When the rows do not divide into heads of an even number of rows; `name` tells the error.
pub fn unpermute_rows<T: Copy>(
    name: &str,
    data: &mut [T],
    row_length: usize,
    heads: usize,
) -> Result<(), GgufError> {
    let head = head_length(name, data.len(), row_length, heads)?;
    let mut paired = Vec::new();
    for head in data.chunks_exact_mut(head * row_length) {
        paired.clear();
        paired.extend_from_slice(head);
        let (first, second) = head.split_at_mut(head.len() / 2);
        let halves = first.chunks_exact_mut(row_length).zip(second.chunks_exact_mut(row_length));
        for ((first, second), pair) in halves.zip(paired.chunks_exact(2 * row_length)) {
            first.copy_from_slice(&pair[..row_length]);
            second.copy_from_slice(&pair[row_length..]);
        }
    }
    Ok(())
}

/// Brings rows into the order of [`Change::Paired`], in place: what [`unpermute_rows`] undoes.
///
/// # Errors
/// As [`unpermute_rows`].
pub fn permute_rows<T: Copy>(
    name: &str,
    data: &mut [T],
    row_length: usize,
    heads: usize,
) -> Result<(), GgufError> {
    let head = head_length(name, data.len(), row_length, heads)?;
    let mut halves = Vec::new();
    for head in data.chunks_exact_mut(head * row_length) {
        halves.clear();
        halves.extend_from_slice(head);
        let (first, second) = halves.split_at(halves.len() / 2);
        let halves = first.chunks_exact(row_length).zip(second.chunks_exact(row_length));
        for ((first, second), pair) in halves.zip(head.chunks_exact_mut(2 * row_length)) {
            pair[..row_length].copy_from_slice(first);
            pair[row_length..].copy_from_slice(second);
        }
    }
    Ok(())
}

/// Rows of a head, an even number.
fn head_length(
    name: &str,
    length: usize,
    row_length: usize,
    heads: usize,
) -> Result<usize, GgufError> {
    let rows = length.checked_div(row_length).unwrap_or(0);
    let head = rows.checked_div(heads).unwrap_or(0);
    if rows * row_length != length || head * heads != rows || !head.is_multiple_of(2) || rows == 0 {
        return Err(GgufError::BadShape {
            name: name.to_owned(),
            shape: vec![rows, row_length],
            expected: format!("an even number of rows for each of {heads} heads"),
        });
    }
    Ok(head)
}
