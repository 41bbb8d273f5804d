//! Tensor names of GGUF and of Hugging Face, and the order of rows.
//!
//! For `llama` and what is built on it the converter reorders the rows of the query and key
//! projections, weights and biases, from the two halves of a head that Hugging Face rotates against
//! each other to neighbouring pairs: row `(head, half, i)` becomes row `(head, i, half)`. For Gemma it
//! adds one to the gains of the norms, which Hugging Face adds when it computes. For GPT-NeoX it puts
//! the rows that make queries before those that make keys and values: row `(head, part, i)` becomes row
//! `(part, head, i)`. The experts of a layer stand in one tensor, one after the other.

use lapidary_store::gguf::Metadata;

use super::architecture::Architecture;
use super::config::heads;
use super::{GgufError, rope};

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
    /// To as many tensors as there are experts, a matrix each.
    Experts {
        /// Hugging Face name of the module whose parts have the experts' numbers.
        module: String,
        /// Which layer of an expert it is.
        part: &'static str,
    },
    /// Into `config.json`: give its values to [`super::config`] as `rope_factors` by this name.
    RopeFactors(&'static str),
}

/// What is other about a tensor in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Same,
    /// Its values, gains of a norm, have one added.
    Raised,
    /// Its rows (or elements, for a bias) stand in another order.
    Rows(RowOrder),
}

/// An order of rows that is not Hugging Face's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// In each head, a row of the first half and the one of the second that it is rotated against.
    Paired {
        /// The heads that the rows divide into.
        heads: usize,
    },
    /// All heads' queries, then keys, then values, where Hugging Face has them head by head.
    Parted {
        /// The heads of each part.
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
        let is_known = |factors: &(&str, Architecture)| *factors == (name, self.architecture);
        if let Some((factors, _)) = rope::TENSORS.into_iter().find(is_known) {
            return Ok(Destination::RopeFactors(factors));
        }
        if let Some(experts) = self.experts(name) {
            return Ok(experts);
        }
        let pairs = self.architecture.names();
        let translated = translate(name, pairs).ok_or_else(|| GgufError::UnknownTensor {
            name: name.to_owned(),
            architecture: self.architecture.name(),
        })?;
        let is_gain = name.ends_with("norm.weight");
        let paired = |heads| Change::Rows(RowOrder::Paired { heads });
        let change = match (self.architecture, translated.pattern) {
            (of, "blk.{}.attn_q") if of.pairs_rows() => paired(self.heads),
            (of, "blk.{}.attn_k") if of.pairs_rows() => paired(self.kv_heads),
            (of, "blk.{}.attn_qkv") if of.parts_rows() => {
                Change::Rows(RowOrder::Parted { heads: self.heads })
            }
            (of, _) if is_gain && of.raises_gains() => Change::Raised,
            _ => Change::Same,
        };
        Ok(Destination::Tensor { name: translated.name, change })
    }

    /// The experts that a tensor holds, if it holds any.
    fn experts(&self, name: &str) -> Option<Destination> {
        let names = self.architecture.experts()?;
        let rest = name.strip_prefix("blk.")?.strip_suffix(".weight")?;
        let (layer, stem) = rest.split_once('.').filter(|(layer, _)| is_number(layer))?;
        let index = EXPERTS.iter().position(|experts| *experts == stem)?;
        let module = format!("model.layers.{layer}.{}.experts", names.module);
        Some(Destination::Experts { module, part: names.parts[index] })
    }

    /// The GGUF name of the tensor that holds an expert's with this Hugging Face name, and the number
    /// of the expert.
    #[must_use]
    pub fn to_experts(&self, name: &str) -> Option<(String, usize)> {
        let names = self.architecture.experts()?;
        let rest = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?;
        let (layer, rest) = rest.split_once('.').filter(|(layer, _)| is_number(layer))?;
        let rest = rest.strip_prefix(names.module)?.strip_prefix(".experts.")?;
        let (expert, part) = rest.split_once('.').filter(|(expert, _)| is_number(expert))?;
        let index = names.parts.iter().position(|known| *known == part)?;
        Some((format!("blk.{layer}.{}.weight", EXPERTS[index]), expert.parse().ok()?))
    }

    /// The GGUF name of the tensor with a Hugging Face name, if there is one of its own.
    #[must_use]
    pub fn to_gguf(&self, name: &str) -> Option<String> {
        let pairs = self.architecture.names().map(|(gguf, hf)| (hf, gguf));
        Some(translate(name, pairs)?.name)
    }
}

/// The tensors of gates, ups and downs of all experts of a layer.
const EXPERTS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

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

impl RowOrder {
    /// Brings rows from Hugging Face's order into this one, in place: `data` is `[rows, row_length]`, of
    /// numbers or, since the rows of a quantized tensor are whole blocks, of bytes.
    ///
    /// # Errors
    /// When the rows do not divide into heads of such parts; `name` tells the error.
    pub fn arrange<T: Copy>(
        self,
        name: &str,
        data: &mut [T],
        row_length: usize,
    ) -> Result<(), GgufError> {
        let grid = self.grid(name, data.len(), row_length)?;
        transpose(data, grid);
        Ok(())
    }

    /// Undoes [`arrange`](Self::arrange).
    ///
    /// # Errors
    /// As [`arrange`](Self::arrange).
    pub fn restore<T: Copy>(
        self,
        name: &str,
        data: &mut [T],
        row_length: usize,
    ) -> Result<(), GgufError> {
        let Grid { high, wide, run } = self.grid(name, data.len(), row_length)?;
        transpose(data, Grid { high: wide, wide: high, run });
        Ok(())
    }

    /// Both orders differ as a matrix of runs of rows does from its transpose.
    fn grid(self, name: &str, length: usize, row_length: usize) -> Result<Grid, GgufError> {
        let (heads, parts) = match self {
            Self::Paired { heads } => (heads, 2),
            Self::Parted { heads } => (heads, 3),
        };
        let rows = length.checked_div(row_length).unwrap_or(0);
        let head = rows.checked_div(heads).unwrap_or(0);
        let is_whole = rows * row_length == length && head * heads == rows && rows > 0;
        if !is_whole || !head.is_multiple_of(parts) {
            return Err(GgufError::BadShape {
                name: name.to_owned(),
                shape: vec![rows, row_length],
                expected: format!("a multiple of {parts} rows for each of {heads} heads"),
            });
        }
        let part = head / parts;
        Ok(match self {
            Self::Paired { .. } => Grid { high: parts, wide: part, run: row_length },
            Self::Parted { .. } => Grid { high: heads, wide: parts, run: part * row_length },
        })
    }
}

/// Runs of elements, `high` rows of `wide` of them.
struct Grid {
    high: usize,
    wide: usize,
    run: usize,
}

/// Transposes each of the matrices that follow each other in `data`.
fn transpose<T: Copy>(data: &mut [T], Grid { high, wide, run }: Grid) {
    let mut before = Vec::new();
    for matrix in data.chunks_exact_mut((high * wide * run).max(1)) {
        before.clear();
        before.extend_from_slice(matrix);
        for (place, to) in matrix.chunks_exact_mut(run).enumerate() {
            let from = (place % high * wide + place / high) * run;
            to.copy_from_slice(&before[from..from + run]);
        }
    }
}
