//! The format `gguf`: weights, configuration and tokenizer in one file `model.gguf`, or in several of
//! a size that is asked for, as llama.cpp reads it.

use super::metadata::{Model, mark};
use super::names::Change;
use super::parts::{PartsWriter, file_bytes, parts};
use super::tokenizer::{Folder, entries};
use super::{Architecture, Destination, GgufError, Names, blocks, config, mixture};
use crate::container::{Container, Kept, Settled, WeightFiles};
use crate::{Format, FormatError, Layout, LogicalTensor, ReadTensor, Reader, Source};
use lapidary_store::checked::{FileInt, Span};
use lapidary_store::gguf::{Metadata, Writer};
use lapidary_store::{Dtype, Fs, TensorInfo, TensorSpec};
use lapidary_weight::{FloatType, Outline, Weight};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Name of the format.
pub(super) const ID: &str = "gguf";

/// Bytes of memory for each of `tokenizer.json` while it is made into metadata: the file, the document
/// it is parsed into, the arrays made of that and the header they are written as.
const TOKENIZER_FACTOR: u64 = 16;

pub(crate) struct Gguf;

impl Format for Gguf {
    fn id(&self) -> &'static str {
        ID
    }

    fn loaders(&self) -> &'static str {
        "llama.cpp, lapidary"
    }

    fn scale_type(&self, _model: FloatType) -> FloatType {
        FloatType::F16
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        blocks::dtype_of(outline).map(|_| ())
    }

    fn tensors(&self, module: &str, outline: &Outline, dtype: FloatType) -> Vec<TensorSpec> {
        // Of an outline that is not accepted there are none; whoever asks has been told.
        let found = blocks::dtype_of(outline).unwrap_or_else(|_| crate::float_dtype(dtype));
        let shape = [outline.rows, outline.cols];
        vec![TensorSpec::new(format!("{module}.weight"), found, shape)]
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        Ok(vec![blocks::encode(weight)?])
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        blocks::decode(module, outline, &read(&format!("{module}.weight"))?)
    }

    fn config(&self, _layout: &Layout<'_>) -> Option<Value> {
        None
    }

    fn reader(&self, _config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        None
    }

    fn container(&self, source: &Source) -> Result<Box<dyn Container>, FormatError> {
        let model = Model::read(source.config()).map_err(wrong(source))?;
        let names = Names::of(model.architecture, model.heads, model.kv_heads);
        Ok(Box::new(GgufFile { model, names }))
    }
}

/// An error of this module as one of the model it is about.
fn wrong(source: &Source) -> impl Fn(GgufError) -> FormatError {
    |error| FormatError::Inexpressible {
        format: ID,
        model: source.path().display().to_string(),
        what: error.to_string(),
    }
}

/// Where a tensor is in the file.
#[derive(Debug)]
struct Place {
    gguf: String,
    change: Change,
    /// Its number among those that the tensor of the file holds.
    expert: Option<usize>,
}

/// Metadata, and what people should know of them.
struct Described {
    metadata: Metadata,
    remarks: Vec<String>,
    departures: Vec<String>,
}

/// The file of one model.
#[derive(Debug)]
struct GgufFile {
    model: Model,
    names: Names,
}

impl GgufFile {
    /// Name of a tensor in the file, and what is other about it there.
    fn place(&self, name: &str) -> Result<Place, GgufError> {
        let architecture = self.model.architecture.name();
        let unknown = || GgufError::UnknownTensor { name: name.to_owned(), architecture };
        if let Some((gguf, expert)) = self.names.to_experts(name) {
            return Ok(Place { gguf, change: Change::Same, expert: Some(expert) });
        }
        let gguf = self.names.to_gguf(name).ok_or_else(unknown)?;
        match self.names.to_hugging_face(&gguf)? {
            Destination::Tensor { change, .. } => Ok(Place { gguf, change, expert: None }),
            Destination::RopeFactors(_) | Destination::Experts { .. } => Err(unknown()),
        }
    }

    /// The tensors by those of the file that they are or are a part of, in the order of the file:
    /// experts by their numbers where the first of them stands.
    fn arranged<'a>(
        &self,
        tensors: &'a [TensorSpec],
    ) -> Result<Vec<(Place, Vec<&'a TensorSpec>)>, GgufError> {
        let mut found: Vec<(Place, BTreeMap<usize, &TensorSpec>)> = vec![];
        let mut places: HashMap<String, usize> = HashMap::new();
        for tensor in tensors {
            let place = self.place(&tensor.name)?;
            let number = place.expert.unwrap_or(0);
            let index = *places.entry(place.gguf.clone()).or_insert(found.len());
            match found.get_mut(index) {
                None => found.push((place, BTreeMap::from([(number, tensor)]))),
                Some((_, parts)) => _ = parts.insert(number, tensor),
            }
        }
        let whole = |(place, parts): (Place, BTreeMap<usize, &'a TensorSpec>)| {
            let parts: Vec<&TensorSpec> = parts.into_values().collect();
            let differs = |tensor: &&&TensorSpec| {
                (tensor.dtype, &tensor.shape) != (parts[0].dtype, &parts[0].shape)
            };
            match parts.iter().find(differs) {
                None => Ok((place, parts)),
                Some(other) => Err(GgufError::Experts {
                    name: place.gguf,
                    first: format!("{} is {} {:?}", parts[0].name, parts[0].dtype, parts[0].shape),
                    other: format!("{} is {} {:?}", other.name, other.dtype, other.shape),
                }),
            }
        };
        found.into_iter().map(whole).collect()
    }

    /// The tensors as they stand in the file, those of the rotary factors first.
    fn in_file(&self, tensors: &[TensorSpec]) -> Result<Vec<TensorSpec>, GgufError> {
        let renamed = |(place, parts): (Place, Vec<&TensorSpec>)| {
            let mut shape = parts[0].shape.clone();
            if place.expert.is_some() {
                shape.insert(0, parts.len());
            }
            TensorSpec::new(place.gguf, parts[0].dtype, shape)
        };
        let mut found: Vec<_> = self.arranged(tensors)?.into_iter().map(renamed).collect();
        let factors = self.model.rope_factors.iter();
        let factors = factors.map(|(name, f)| TensorSpec::new(*name, Dtype::F32, [f.len()]));
        found.splice(..0, factors);
        Ok(found)
    }

    /// Whether llama.cpp's converter keeps a matrix in single precision, in which llama.cpp computes with
    /// it: tables of positions and segments, and what chooses among experts.
    fn is_kept(&self, name: &str) -> bool {
        let is_one = |gguf: String| {
            matches!(gguf.as_str(), "position_embd.weight" | "token_types.weight")
                || gguf.ends_with(".ffn_gate_inp.weight")
        };
        self.names.to_gguf(name).is_some_and(is_one)
    }

    /// The metadata: those of the source where it is a GGUF itself, else made from its files.
    fn metadata(&self, source: &Source, tensors: &[TensorSpec]) -> Result<Described, FormatError> {
        let in_file = self.in_file(tensors).map_err(wrong(source))?;
        let file_type = mixture::file_type(&in_file, self.model.heads / self.model.kv_heads.max(1));
        if let Some(mut metadata) = source.gguf_metadata()? {
            metadata.retain(|key| !key.starts_with("split.") && !key.starts_with("quantize."));
            if source.is_cut() {
                // Sizes are others; everything else stays as whoever made the file wrote it.
                metadata.retain(|key| key != "general.size_label");
                for (key, value) in self.model.sizes() {
                    metadata.set(&key, value);
                }
            }
            mark(&mut metadata, file_type);
            let departures = self.model.departures.clone();
            return Ok(Described { metadata, remarks: vec![], departures });
        }
        let mut metadata = self.model.metadata(file_type);
        let folder = folder(source)?;
        if self.model.architecture == Architecture::Bert {
            pooling(source, tensors, &mut metadata)?;
        }
        let written = entries(&folder, self.model.vocabulary).map_err(wrong(source))?;
        for (key, value) in written.entries {
            metadata.set(&key, value);
        }
        let (remarks, mut departures) = (written.remarks, self.model.departures.clone());
        departures.extend(written.departures);
        Ok(Described { metadata, remarks, departures })
    }
}

impl Container for GgufFile {
    fn has_files(&self) -> bool {
        false
    }

    fn keep(&self, source: &Source, tensor: &LogicalTensor) -> Kept {
        let name = tensor.name.as_str();
        if self.model.tied && name == "lm_head.weight" {
            return Kept::Dropped("the head is the embedding table".to_owned());
        }
        if self.model.architecture == Architecture::Bert
            && (name.starts_with("pooler.") || name == "embeddings.position_ids")
        {
            return Kept::Dropped("llama.cpp has no use for it".to_owned());
        }
        const COMPUTED: [&str; 5] = [
            ".rotary_emb.inv_freq",
            ".attn.bias",
            ".attn.masked_bias",
            ".attention.bias",
            ".attention.masked_bias",
        ];
        if COMPUTED.iter().any(|end| name.ends_with(end)) {
            return Kept::Dropped("follows from the configuration".to_owned());
        }
        let dtype = match source.block_dtype(tensor) {
            Some(blocks) => blocks,
            None => source.raw_dtype(tensor),
        };
        let is_small = tensor.shape.len() < 2 || self.is_kept(name);
        Kept::As(if is_small || dtype == Dtype::F64 { Dtype::F32 } else { dtype })
    }

    fn as_read(&self, tensor: &TensorSpec, bytes: &[u8]) -> Option<Vec<u8>> {
        let change = self.place(&tensor.name).ok()?.change;
        let is_raised = change == Change::Raised && tensor.dtype == Dtype::F32;
        is_raised.then(|| shifted(&shifted(bytes, 1.0), -1.0))
    }

    fn settle(&self, source: &Source, tensors: &[TensorSpec]) -> Result<Settled, FormatError> {
        let in_file = self.in_file(tensors).map_err(wrong(source))?;
        let Described { metadata, remarks, departures } = self.metadata(source, tensors)?;
        let bytes = Writer::file_bytes(&metadata, &in_file)?;
        let span = Span::within(bytes, FileInt::new(0), FileInt::new(0));
        let infos = in_file.into_iter().filter_map(|TensorSpec { name, dtype, shape }| {
            span.map(|span| TensorInfo { name, dtype, shape, span, file: 0 })
        });
        let infos: Vec<TensorInfo> = infos.collect();
        let factors = &self.model.rope_factors;
        let read = config(&metadata, &infos, factors, "float16").map_err(wrong(source))?;
        Ok(Settled { config: Some(read), remarks, departures })
    }

    fn file_bytes(
        &self,
        source: &Source,
        tensors: &[TensorSpec],
        shard_bytes: Option<u64>,
    ) -> Result<u64, FormatError> {
        let in_file = self.in_file(tensors).map_err(wrong(source))?;
        file_bytes(&parts(self.metadata(source, tensors)?.metadata, in_file, shard_bytes)?)
    }

    fn writing_bytes(&self, source: &Source) -> u64 {
        let json = source.files().iter().find(|file| file.name == "tokenizer.json");
        let tokenizer = TOKENIZER_FACTOR * json.map_or(0, |file| file.bytes);
        // Rows that change their places: their values in 32 bits at the most.
        let is_paired = |tensor: &&LogicalTensor| {
            self.place(&tensor.name).is_ok_and(|place| place.change != Change::Same)
        };
        let numbers = |tensor: &LogicalTensor| tensor.shape.iter().product::<usize>() as u64;
        let paired = source.tensors().iter().filter(is_paired).map(numbers).max();
        tokenizer + 2 * 4 * paired.unwrap_or(0)
    }

    fn create(
        &self,
        fs: &Arc<dyn Fs>,
        folder: &Path,
        source: &Source,
        tensors: &[TensorSpec],
        shard_bytes: Option<u64>,
    ) -> Result<Box<dyn WeightFiles>, FormatError> {
        let (mut places, mut order) = (BTreeMap::new(), vec![]);
        for (Place { gguf, change, .. }, parts) in self.arranged(tensors).map_err(wrong(source))? {
            for tensor in parts {
                let height = tensor.shape.first().copied().unwrap_or(1).max(1);
                let whole =
                    usize::try_from(tensor.byte_len().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
                let row_bytes = whole / height;
                let buffered = (change != Change::Same).then(|| Buffered {
                    change,
                    row_bytes,
                    bytes: vec![],
                    whole,
                });
                places.insert(tensor.name.clone(), (gguf.clone(), buffered));
                order.push(tensor.name.clone());
            }
        }
        let in_file = self.in_file(tensors).map_err(wrong(source))?;
        let metadata = self.metadata(source, tensors)?.metadata;
        let files = parts(metadata, in_file, shard_bytes)?;
        let mut writer = PartsWriter::create(fs, folder, files)?;
        for (name, factors) in &self.model.rope_factors {
            writer.append(name, &FloatType::F32.encode(factors))?;
        }
        Ok(Box::new(GgufWriter { writer, order, places }))
    }
}

/// Floats of 32 bits, all that a gain is written as, with something added.
fn shifted(bytes: &[u8], by: f32) -> Vec<u8> {
    let values: Vec<f32> = FloatType::F32.decode(bytes).into_iter().map(|v| v + by).collect();
    FloatType::F32.encode(&values)
}

/// The file being written.
struct GgufWriter {
    writer: PartsWriter,
    order: Vec<String>,
    /// For each tensor its name in the file, and what waits until it can be changed.
    places: BTreeMap<String, (String, Option<Buffered>)>,
}

/// A tensor that is other in the file, until it is whole.
struct Buffered {
    change: Change,
    row_bytes: usize,
    bytes: Vec<u8>,
    whole: usize,
}

impl WeightFiles for GgufWriter {
    fn order(&self) -> Vec<String> {
        self.order.clone()
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        let place = self.places.get_mut(name);
        let (gguf, buffered) =
            place.ok_or_else(|| FormatError::malformed(name, "is not among the tensors"))?;
        let Some(buffered) = buffered else { return self.writer.append(gguf, bytes) };
        buffered.bytes.extend_from_slice(bytes);
        if buffered.bytes.len() < buffered.whole {
            return Ok(());
        }
        let mut whole = std::mem::take(&mut buffered.bytes);
        match buffered.change {
            Change::Same => {}
            Change::Raised => whole = shifted(&whole, 1.0),
            Change::Rows(order) => order
                .arrange(gguf, &mut whole, buffered.row_bytes)
                .map_err(|error| FormatError::malformed(name, error.to_string()))?,
        }
        self.writer.append(gguf, &whole)
    }

    fn finish(self: Box<Self>) -> Result<u64, FormatError> {
        self.writer.finish()
    }
}

/// The files that say what the tokenizer does.
fn folder(source: &Source) -> Result<Folder, FormatError> {
    let read = |name: &str| -> Result<Value, FormatError> {
        if !source.files().iter().any(|file| file.name == name) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&source.read_file(name)?)
            .map_err(|error| FormatError::malformed(name, error.to_string()))
    };
    let template = "chat_template.jinja";
    let chat_template =
        match source.files().iter().any(|file| file.name == template) {
            false => None,
            true => Some(String::from_utf8(source.read_file(template)?).map_err(|error| {
                FormatError::malformed(template, format!("is not UTF-8: {error}"))
            })?),
        };
    Ok(Folder {
        config: source.config().clone(),
        generation_config: read("generation_config.json")?,
        tokenizer: read("tokenizer.json")?,
        tokenizer_config: read("tokenizer_config.json")?,
        special_tokens_map: read("special_tokens_map.json")?,
        chat_template,
    })
}

/// How a sentence's vector is made of its tokens', as sentence-transformers has it beside the model.
fn pooling(
    source: &Source,
    tensors: &[TensorSpec],
    metadata: &mut Metadata,
) -> Result<(), FormatError> {
    use lapidary_store::gguf::MetaValue;
    let types = tensors.iter().find(|t| t.name == "embeddings.token_type_embeddings.weight");
    if let Some(rows) = types.and_then(|types| types.shape.first()) {
        let rows = u32::try_from(*rows).unwrap_or(u32::MAX);
        metadata.set("tokenizer.ggml.token_type_count", MetaValue::U32(rows));
    }
    let name = "1_Pooling/config.json";
    if !source.files().iter().any(|file| file.name == name) {
        return Ok(());
    }
    let pooling: Value = serde_json::from_slice(&source.read_file(name)?)
        .map_err(|error| FormatError::malformed(name, error.to_string()))?;
    let kinds = [("pooling_mode_mean_tokens", 1), ("pooling_mode_cls_token", 2)];
    match kinds.iter().find(|(key, _)| pooling[*key] == true) {
        Some((_, number)) => metadata.set("bert.pooling_type", MetaValue::U32(*number)),
        None => {
            let what = "a pooling other than mean or cls has no place in GGUF";
            return Err(FormatError::malformed(name, what));
        }
    }
    Ok(())
}
