//! Importance matrices of llama.cpp: for each layer the sum of squares of every input column.
//!
//! Written as GGUF: for the layer with the weight `NAME`, the tensors `NAME.in_sum2` (the sums, F32) and
//! `NAME.counts` (tokens summed over), and as metadata `imatrix.datasets`, `imatrix.chunk_count` and
//! `imatrix.chunk_size`. The experts of a layer stand in one pair, a row each. Read as that or as what it
//! was before, a list of names and mean squares.

use super::metadata::Model;
use super::{Destination, Names};
use crate::FormatError;
use lapidary_store::fs::{ReadAt, read};
use lapidary_store::gguf::{Gguf, MetaArray, MetaValue, Metadata, Writer, read_gguf};
use lapidary_store::{Dtype, Fs, TensorSpec};
use lapidary_weight::FloatType;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What is known of the inputs of a model's layers, by the Hugging Face names of their weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// One a layer.
    pub layers: BTreeMap<String, Inputs>,
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Rows of tokens.
    pub rows: u32,
    /// Tokens of a row.
    pub row_tokens: u32,
}

/// The inputs of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// Sum of squares of each column.
    pub squares: Vec<f32>,
    /// Tokens summed over.
    pub tokens: f32,
}

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// The most bytes a file of the older form may have.
const MOST_BYTES: u64 = 1 << 30;

impl Importance {
    /// Writes a file for the model of this configuration.
    ///
    /// # Errors
    /// When the model or one of the layers has no name in GGUF, or the disk refuses.
    pub fn write(&self, fs: &Arc<dyn Fs>, path: &Path, config: &Value) -> Result<(), FormatError> {
        let (names, _) = names(path, config)?;
        let mut layers: BTreeMap<String, BTreeMap<usize, &Inputs>> = BTreeMap::new();
        for (name, inputs) in &self.layers {
            let nameless = || FormatError::malformed(name, "has no name in llama.cpp");
            let alone = || names.to_gguf(name).map(|gguf| (gguf, 0));
            let (gguf, expert) = names.to_experts(name).or_else(alone).ok_or_else(nameless)?;
            layers.entry(gguf).or_default().insert(expert, inputs);
        }
        for (name, parts) in &layers {
            // Experts are told by their places alone.
            if !parts.keys().copied().eq(0..parts.len()) {
                return Err(FormatError::malformed(name, "lacks one of its experts"));
            }
        }
        let mut metadata = Metadata::default();
        metadata.set("general.type", MetaValue::String("imatrix".to_owned()));
        let datasets = MetaArray::String(self.datasets.clone());
        metadata.set("imatrix.datasets", MetaValue::Array(datasets));
        metadata.set("imatrix.chunk_count", MetaValue::U32(self.rows));
        metadata.set("imatrix.chunk_size", MetaValue::U32(self.row_tokens));
        let tensors = |(name, parts): (&String, &BTreeMap<usize, &Inputs>)| {
            let columns = parts.values().map(|inputs| inputs.squares.len()).max().unwrap_or(0);
            [(SUMS, columns), (COUNTS, 1)].map(|(what, length)| {
                let shape = match parts.len() {
                    1 => vec![length],
                    count => vec![count, length],
                };
                TensorSpec::new(format!("{name}{what}"), Dtype::F32, shape)
            })
        };
        let specs: Vec<TensorSpec> = layers.iter().flat_map(tensors).collect();
        let mut writer = Writer::create(fs, path, &metadata, &specs)?;
        for (name, parts) in layers {
            let values = |values: &[f32]| FloatType::F32.encode(values);
            for inputs in parts.values() {
                writer.append(&format!("{name}{SUMS}"), &values(&inputs.squares))?;
            }
            for inputs in parts.values() {
                writer.append(&format!("{name}{COUNTS}"), &values(&[inputs.tokens]))?;
            }
        }
        writer.finish()?;
        Ok(())
    }

    /// Reads a file made for the model of this configuration, in either form.
    ///
    /// # Errors
    /// When the file is none, is damaged, names no layer of the model, or holds what is no sum of
    /// squares.
    pub fn read(fs: &dyn Fs, path: &Path, config: &Value) -> Result<Self, FormatError> {
        let (names, experts) = names(path, config)?;
        let place = path.display().to_string();
        let file = fs.open(path)?;
        let mut magic = [0; 4];
        let is_gguf = file.len()? >= 4 && {
            file.read_exact_at(&mut magic, 0)?;
            magic == *b"GGUF"
        };
        let (rest, found) = match is_gguf {
            true => from_gguf(&place, &*file)?,
            false => {
                let bytes = read(fs, path, "the importance matrix", MOST_BYTES)?;
                (Self::default(), from_list(&place, &bytes)?)
            }
        };
        let mut layers = BTreeMap::new();
        for (name, parts) in found {
            let is_sum = |value: &f32| value.is_finite() && *value >= 0.0;
            let are_sums =
                |inputs: &Inputs| inputs.squares.iter().all(is_sum) && is_sum(&inputs.tokens);
            if !parts.iter().all(are_sums) {
                return Err(FormatError::malformed(place, format!("{name} is no sum of squares")));
            }
            // What is not of this model, or of no layer that we know of, is of no use.
            match (names.to_hugging_face(&name), parts.len()) {
                (Ok(Destination::Tensor { name, .. }), 1) => {
                    layers.extend(parts.into_iter().map(|inputs| (name.clone(), inputs)));
                }
                (Ok(Destination::Experts { module, part }), count) => {
                    let parts = if count == 1 { parted(parts, experts) } else { parts };
                    let named =
                        |(expert, inputs)| (format!("{module}.{expert}.{part}.weight"), inputs);
                    layers.extend(parts.into_iter().enumerate().map(named));
                }
                _ => {}
            }
        }
        match layers.is_empty() {
            true => Err(FormatError::malformed(place, "names no layer of this model")),
            false => Ok(Self { layers, ..rest }),
        }
    }
}

/// The experts of an entry of the older form, which has one count of tokens for all.
fn parted(together: Vec<Inputs>, experts: usize) -> Vec<Inputs> {
    let each = |Inputs { squares, tokens }: Inputs| -> Vec<Inputs> {
        let columns = (squares.len() / experts.max(1)).max(1);
        let rows = squares.chunks(columns).map(<[f32]>::to_vec);
        rows.map(|squares| Inputs { squares, tokens }).collect()
    };
    together.into_iter().flat_map(each).collect()
}

/// The names of a model, and the number of its experts.
fn names(path: &Path, config: &Value) -> Result<(Names, usize), FormatError> {
    let model = Model::read(config)
        .map_err(|error| FormatError::malformed(path.display().to_string(), error.to_string()))?;
    let names = Names::of(model.architecture, model.heads, model.kv_heads);
    Ok((names, model.experts()))
}

/// The inputs of each expert of a layer, or of the one layer there is, by names in GGUF.
type ByName = BTreeMap<String, Vec<Inputs>>;

/// The newer form: all but the layers, and the layers.
fn from_gguf(place: &str, file: &dyn ReadAt) -> Result<(Importance, ByName), FormatError> {
    let Gguf { metadata, tensors, .. } = read_gguf(file)?;
    let wrong = |what: String| FormatError::malformed(place, what);
    let kind = metadata.get("general.type").and_then(MetaValue::as_str).unwrap_or("none");
    if kind != "imatrix" {
        return Err(wrong(format!("its general.type is {kind:?}, not \"imatrix\"")));
    }
    let values = |name: &str| -> Result<Option<Vec<f32>>, FormatError> {
        let Some(info) = tensors.iter().find(|info| info.name == name) else { return Ok(None) };
        if info.dtype != Dtype::F32 {
            return Err(wrong(format!("{name} is of type {}, not F32", info.dtype)));
        }
        let mut bytes = vec![0; usize::try_from(info.span.len()).unwrap_or(0)];
        file.read_exact_at(&mut bytes, info.span.start())?;
        Ok(Some(FloatType::F32.decode(&bytes)))
    };
    let mut layers = BTreeMap::new();
    for info in &tensors {
        let Some(name) = info.name.strip_suffix(SUMS) else { continue };
        let counts = values(&format!("{name}{COUNTS}"))?;
        let missing = || wrong(format!("{name}{SUMS} has no {name}{COUNTS} beside it"));
        let counts = counts.ok_or_else(missing)?;
        let squares = values(&info.name)?.unwrap_or_default();
        if counts.is_empty() || squares.is_empty() || !squares.len().is_multiple_of(counts.len()) {
            continue;
        }
        let rows = squares.chunks_exact(squares.len() / counts.len()).zip(counts);
        let inputs = rows.map(|(row, tokens)| Inputs { squares: row.to_vec(), tokens });
        layers.insert(name.to_owned(), inputs.collect());
    }
    let datasets = metadata.get("imatrix.datasets").and_then(MetaValue::as_strings);
    let number = |key: &str| u32::try_from(metadata.u64(key).unwrap_or(0)).unwrap_or(u32::MAX);
    let rest = Importance {
        layers: BTreeMap::new(),
        datasets: datasets.unwrap_or_default().to_vec(),
        rows: number("imatrix.chunk_count"),
        row_tokens: number("imatrix.chunk_size"),
    };
    Ok((rest, layers))
}

/// The older form: a count of entries; for each its name's length, its name, calls, the number of
/// values, and the values, mean squares times calls: sums, as if over as many tokens as calls.
fn from_list(place: &str, bytes: &[u8]) -> Result<ByName, FormatError> {
    let mut list = List { place, rest: bytes };
    let mut layers = BTreeMap::new();
    for _ in 0..list.number()? {
        let length = list.number()?;
        let name = std::str::from_utf8(list.take(length)?);
        let name = name.map_err(|_| list.wrong("a name is not UTF-8"))?.to_owned();
        let (calls, count) = (list.number()?, list.number()?);
        let length = count.checked_mul(4).ok_or_else(|| list.wrong("an entry is too long"))?;
        let squares = FloatType::F32.decode(list.take(length)?);
        layers.insert(name, vec![Inputs { squares, tokens: calls as f32 }]);
    }
    Ok(layers)
}

/// The bytes of the older form that were not read yet.
struct List<'a> {
    place: &'a str,
    rest: &'a [u8],
}

impl<'a> List<'a> {
    fn wrong(&self, what: &str) -> FormatError {
        FormatError::malformed(self.place, format!("{what}; it is no importance matrix"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], FormatError> {
        let taken = self.rest.split_at_checked(length);
        let (taken, rest) = taken.ok_or_else(|| self.wrong("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<usize, FormatError> {
        let bytes = self.take(4)?.first_chunk().copied().unwrap_or_default();
        let number = usize::try_from(i32::from_le_bytes(bytes));
        number.map_err(|_| self.wrong("it has a negative count"))
    }
}
