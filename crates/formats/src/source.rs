//! A checkpoint of any format, seen under its Hugging Face names.
//!
//! Plain tensors keep their names; a compressed layer's tensors are one logical tensor
//! `{module}.weight`; the tensors of a GGUF appear as their Hugging Face counterparts.

mod edited;
mod experts;
mod from_gguf;
mod gpt2;
mod logical;
mod reading;
mod selected;

pub(crate) use experts::ExpertNames;
pub use logical::LogicalTensor;
pub use selected::Selected;

use crate::gguf;
use crate::{FormatError, Module, QUANTIZATION_FILES, Reader, TensorIndex, float_dtype};
use lapidary_kernels::ggml::BlockKind;
use lapidary_store::checkpoint::FileHash;
use lapidary_store::gguf::Metadata;
use lapidary_store::{Checkpoint, Dtype, Fs, TensorInfo};
use lapidary_weight::{
    Dense, Edits, FloatType, InputRounding, Outline, TensorError, Tensors, Term, TermOutline,
    Weight,
};
use logical::{Storage, float_type, module_float, most_of};
use reading::{Index, reader};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a tensor that are handed on at a time, about.
const PIECE_BYTES: u64 = 4 << 20;

/// An opened checkpoint.
#[derive(Debug)]
pub struct Source {
    checkpoint: Arc<Checkpoint>,
    config: Value,
    format: &'static str,
    reader: Option<Arc<dyn Reader>>,
    tensors: Vec<LogicalTensor>,
    by_name: HashMap<String, usize>,
    /// Tensors of the checkpoint that stand for nothing here, with the reason.
    consumed: Vec<(String, String)>,
    files: Vec<SourceFile>,
    /// Edits of tensors, applied as they are read.
    edits: Arc<Edits>,
    is_cut: bool,
    /// The compressed tables that rows were looked up in, their codes unpacked.
    tables: Mutex<HashMap<String, Arc<Weight>>>,
}

/// A file that goes with the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Name relative to the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its content where it was made from a GGUF's metadata; `None` for a file of the folder.
    pub made: Option<Vec<u8>>,
}

/// A matrix in blocks of ggml.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Their kind.
    pub kind: BlockKind,
    /// Rows of the matrix.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
    /// The blocks, row by row.
    pub bytes: Vec<u8>,
}

impl Source {
    /// Opens a folder, a GGUF or a single safetensors file.
    ///
    /// # Errors
    /// When there is no checkpoint there, a file is damaged, or its format cannot be read.
    pub fn open(fs: Arc<dyn Fs>, path: &Path) -> Result<Self, FormatError> {
        let checkpoint = Checkpoint::open(fs, path)?;
        if checkpoint.gguf().is_some() {
            return Self::from_gguf(checkpoint);
        }
        let config = checkpoint.config().cloned().ok_or_else(|| {
            FormatError::malformed(path.display().to_string(), "has no config.json")
        })?;
        let (format, reader) = match reader(&checkpoint, &config)? {
            Some((format, reader)) => (format, Some(reader)),
            None => ("dense", None),
        };
        let mut tensors = vec![];
        let mut of_modules: HashMap<String, usize> = HashMap::new();
        let modules = match &reader {
            Some(reader) => reader.modules(&Index(&checkpoint))?,
            None => vec![],
        };
        let consumed = match &reader {
            Some(reader) => reader.unused(&Index(&checkpoint)),
            None => vec![],
        };
        let unused: HashSet<&str> = consumed.iter().map(|(name, _)| name.as_str()).collect();
        for (index, module) in modules.iter().enumerate() {
            of_modules.extend(module.tensors.iter().map(|name| (name.clone(), index)));
        }
        let plain_float = most_of(checkpoint.tensors().iter().filter_map(|info| {
            let is_plain = matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
            (is_plain && !of_modules.contains_key(&info.name))
                .then(|| (float_type(info.dtype), info.shape.iter().product()))
        }));
        let mut seen = vec![false; modules.len()];
        for info in checkpoint.tensors() {
            match of_modules.get(&info.name) {
                None if unused.contains(info.name.as_str()) => {}
                None => tensors.push(LogicalTensor {
                    name: info.name.clone(),
                    shape: info.shape.clone(),
                    storage: Storage::Plain(info.clone()),
                }),
                Some(index) if !std::mem::replace(&mut seen[*index], true) => {
                    let module = modules[*index].clone();
                    let float = module_float(&module).unwrap_or(plain_float);
                    tensors.push(LogicalTensor {
                        name: format!("{}.weight", module.name),
                        shape: vec![module.outline.rows, module.outline.cols],
                        storage: Storage::Compressed(module, float),
                    });
                }
                Some(_) => {}
            }
        }
        gpt2::undo(&config, &mut tensors);
        experts::part(&config, &mut tensors)?;
        let file = |file: &lapidary_store::checkpoint::AuxiliaryFile| SourceFile {
            name: file.name.clone(),
            bytes: file.bytes,
            made: None,
        };
        // What describes how the layers are stored goes with how they are stored.
        let is_kept = |file: &&lapidary_store::checkpoint::AuxiliaryFile| {
            !QUANTIZATION_FILES.iter().any(|(name, _)| *name == file.name)
        };
        let files = checkpoint.auxiliary().iter().filter(is_kept).map(file).collect();
        let source = Self::assemble(checkpoint, config, tensors, consumed, files);
        Ok(Self { format, reader: reader.map(Arc::from), ..source })
    }

    fn assemble(
        checkpoint: Checkpoint,
        config: Value,
        tensors: Vec<LogicalTensor>,
        consumed: Vec<(String, String)>,
        files: Vec<SourceFile>,
    ) -> Self {
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let checkpoint = Arc::new(checkpoint);
        let (format, reader) = ("dense", None);
        let (edits, is_cut, tables) = (Arc::default(), false, Mutex::default());
        Self {
            checkpoint,
            config,
            format,
            reader,
            tensors,
            by_name,
            consumed,
            files,
            edits,
            is_cut,
            tables,
        }
    }

    /// Another view of the same checkpoint.
    fn again(&self) -> Self {
        Self {
            checkpoint: Arc::clone(&self.checkpoint),
            config: self.config.clone(),
            format: self.format,
            reader: self.reader.clone(),
            tensors: self.tensors.clone(),
            by_name: self.by_name.clone(),
            consumed: self.consumed.clone(),
            files: self.files.clone(),
            edits: Arc::clone(&self.edits),
            is_cut: self.is_cut,
            tables: Mutex::default(),
        }
    }

    /// The same checkpoint under another configuration, with some tensors found under a second name
    /// too: pairs of the new name and the tensor that it stands for.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn renamed(&self, config: Value, names: &[(String, String)]) -> Result<Self, FormatError> {
        let mut tensors = self.tensors.clone();
        tensors.retain(|tensor| !names.iter().any(|(name, _)| *name == tensor.name));
        for (name, of) in names {
            tensors.push(LogicalTensor { name: name.clone(), ..self.require(of)?.clone() });
        }
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { config, tensors, by_name, ..self.again() })
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// `config.json`, reconstructed for a GGUF.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Name of the format: `gguf`, that of the writer of its compressed layers, or `dense`.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// All tensors, in the order of the files.
    pub fn tensors(&self) -> &[LogicalTensor] {
        &self.tensors
    }

    /// Tensors that are not handed on, with the reason.
    pub fn consumed(&self) -> &[(String, String)] {
        &self.consumed
    }

    /// Compressed layers that are not read as they are stored, with the reason.
    pub fn notes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tensors.iter().filter_map(|tensor| match &tensor.storage {
            Storage::Compressed(module, _) => Some((module.name.as_str(), module.note.as_deref()?)),
            _ => None,
        })
    }

    /// Files of the folder that are not part of the checkpoint, with the reason.
    pub fn skipped_files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.checkpoint.skipped().iter().map(|file| (file.name.as_str(), file.reason))
    }

    /// The files that go with the weights, `config.json` not among them.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The content of a file that goes with the weights.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be read.
    pub fn read_file(&self, name: &str) -> Result<Vec<u8>, FormatError> {
        match self.files.iter().find(|file| file.name == name) {
            Some(SourceFile { made: Some(bytes), .. }) => Ok(bytes.clone()),
            _ => Ok(self.checkpoint.read_auxiliary(name)?),
        }
    }

    /// Hashes of all files of the checkpoint.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn hash_files(&self, progress: &mut dyn FnMut(u64)) -> Result<Vec<FileHash>, FormatError> {
        Ok(self.checkpoint.hash_files(progress)?)
    }

    /// Bytes of the weight files.
    pub fn total_bytes(&self) -> u64 {
        self.checkpoint.total_bytes()
    }

    /// The storage type of the model's floats: that of most of its plain values, 16 bits wide for
    /// a GGUF of quantized blocks.
    pub fn float_type(&self) -> FloatType {
        let tensors = self.tensors.iter();
        most_of(tensors.map(|tensor| (tensor.float_type(), tensor.shape.iter().product())))
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&LogicalTensor> {
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    /// The weight of a linear layer as it is stored; a plain matrix is one dense term.
    ///
    /// # Errors
    /// When the tensor is missing, no matrix, or cannot be read.
    pub fn weight(&self, tensor: &str) -> Result<Weight, FormatError> {
        let logical = self.require(tensor)?;
        if let (Storage::Compressed(module, _), false) = (&logical.storage, self.is_edited(tensor))
        {
            return self.stored(module);
        }
        if let Some(outline) = self.outline_of_blocks(logical)
            && let Some(blocks) = self.blocks(tensor)?
        {
            return gguf::blocks::decode(tensor, &outline, &blocks.bytes);
        }
        let [rows, cols] = logical.shape[..] else {
            return Err(FormatError::malformed(tensor, format!("has shape {:?}", logical.shape)));
        };
        let values = self.values(logical)?;
        let dense = Term::Dense(Dense { values, dtype: logical.float_type() });
        Weight::new(rows, cols, vec![dense])
            .map_err(|error| FormatError::Weight { module: tensor.to_owned(), error })
    }

    /// A matrix that a GGUF holds in blocks of ggml, as they stand; nothing where there are none.
    ///
    /// # Errors
    /// When the tensor is missing or cannot be read.
    pub fn blocks(&self, tensor: &str) -> Result<Option<Blocks>, FormatError> {
        let logical = self.require(tensor)?;
        let (info, order) = match &logical.storage {
            Storage::Plain(info) | Storage::Turned(info) => (info, None),
            Storage::Reordered(info, order) => (info, Some(*order)),
            Storage::Compressed(..)
            | Storage::Transposed(_)
            | Storage::Raised(_)
            | Storage::Part(_) => return Ok(None),
        };
        let (Some(kind), &[rows, cols]) = (gguf::block_kind(info.dtype), &logical.shape[..]) else {
            return Ok(None);
        };
        if kind.elements() == 1 || self.is_edited(tensor) {
            return Ok(None);
        }
        let mut bytes = self.checkpoint.read(info)?;
        if let Some(order) = order {
            let row_bytes = cols / kind.elements() * kind.bytes();
            order
                .restore(&info.name, &mut bytes, row_bytes)
                .map_err(|error| FormatError::malformed(tensor, error.to_string()))?;
        }
        Ok(Some(Blocks { kind, rows, cols, bytes }))
    }

    /// Whether a tensor is a matrix of plain numbers of which some rows can be had without the others.
    pub fn is_plain_by_rows(&self, tensor: &str) -> bool {
        let is_plain = |logical: &LogicalTensor| match &logical.storage {
            Storage::Plain(_) => true,
            Storage::Part(part) => part.is_of_rows(),
            _ => false,
        };
        self.get(tensor).is_some_and(|logical| logical.shape.len() == 2 && is_plain(logical))
            && self.is_read_by_rows(tensor)
    }

    /// What blocks of ggml are as a term, where they can be told as one.
    fn outline_of_blocks(&self, tensor: &LogicalTensor) -> Option<Outline> {
        let &[rows, cols] = &tensor.shape[..] else { return None };
        let kind = gguf::block_kind(self.block_dtype(tensor)?)?;
        gguf::blocks::outline_of(kind, rows, cols)
    }

    /// What a tensor is stored as.
    pub fn outline(&self, tensor: &LogicalTensor) -> Option<Outline> {
        match (&tensor.storage, &tensor.shape[..]) {
            (Storage::Compressed(module, _), _) if !self.is_edited(&tensor.name) => {
                Some(module.outline.clone())
            }
            (_, &[rows, cols]) => {
                if let Some(outline) = self.outline_of_blocks(tensor) {
                    return Some(outline);
                }
                let term = TermOutline::Dense { values: tensor.float_type() };
                Some(Outline { rows, cols, terms: vec![term] })
            }
            _ => None,
        }
    }

    /// Hands on the bytes of a tensor piece by piece, never more than a few megabytes of a plain one
    /// at a time: as they are where safetensors has the type; blocks of a GGUF and compressed layers
    /// as floats of the type [`raw_dtype`](Self::raw_dtype).
    ///
    /// # Errors
    /// When the tensor is missing, unreadable, or not finite where it had to be decoded, and when
    /// `sink` refuses a piece.
    pub fn raw<E: From<FormatError>>(
        &self,
        name: &str,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let logical = self.require(name)?;
        let float = logical.float_type();
        // A value that overflows the type is no longer the value; blocks hold none that large.
        let as_floats = |values: &[f32]| -> Result<Vec<u8>, FormatError> {
            check_finite(name, values)?;
            let stored: Vec<f32> = values.iter().map(|value| float.round(*value)).collect();
            check_finite(name, &stored)?;
            Ok(float.encode(values))
        };
        let changes = match &logical.storage {
            Storage::Part(part) => part.is_of_rows(),
            _ => self.is_edited(name),
        };
        if let (&[rows, width], true, true) =
            (&logical.shape[..], changes, self.is_read_by_rows(name))
        {
            let rows: Vec<u32> = (0..rows as u32).collect();
            let rows_per_piece = (PIECE_BYTES as usize / (4 * width.max(1))).max(1);
            return rows
                .chunks(rows_per_piece)
                .try_for_each(|rows| sink(&as_floats(&self.rows(name, rows)?)?));
        }
        let info = match &logical.storage {
            Storage::Plain(info) | Storage::Transposed(info) if !self.is_edited(name) => info,
            Storage::Part(_) | Storage::Turned(_) if logical.is_transposed() => {
                let width = logical.shape.last().copied().unwrap_or(1);
                return sink(&as_floats(&gpt2::transposed(&self.values(logical)?, width))?);
            }
            _ => return sink(&as_floats(&self.values(logical)?)?),
        };
        let is_kept = info.dtype.safetensors_name().is_some();
        // Blocks never cross a row of the innermost dimension.
        let width = info.shape.last().copied().unwrap_or(1);
        let count: usize = logical.shape.iter().product();
        let rows = count.checked_div(width).unwrap_or(0) as u64;
        let row_bytes = info.span.len().checked_div(rows).unwrap_or(0);
        let rows_per_piece = (PIECE_BYTES / row_bytes.max(1)).max(1);
        let mut first = 0;
        while first < rows {
            let last = (first + rows_per_piece).min(rows);
            let mut bytes = vec![0; ((last - first) * row_bytes) as usize];
            let range = first * row_bytes..last * row_bytes;
            self.checkpoint.read_range(info, range, &mut bytes).map_err(FormatError::from)?;
            if is_kept {
                sink(&bytes)?;
            } else {
                let values = to_f32(info, &bytes, (last - first) as usize * width)?;
                sink(&as_floats(&values)?)?;
            }
            first = last;
        }
        Ok(())
    }

    /// As [`raw`](Self::raw), widened to single precision where `dtype` is that and the tensor not.
    ///
    /// # Errors
    /// As [`raw`](Self::raw), and when `dtype` is neither single precision nor the type there is.
    pub fn raw_as<E: From<FormatError>>(
        &self,
        name: &str,
        dtype: Dtype,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let found = self.raw_dtype(self.require(name)?);
        if found == dtype {
            return self.raw(name, sink);
        }
        if dtype != Dtype::F32 || !found.is_float() {
            let what = format!("is of type {found}, not {dtype}");
            return Err(FormatError::malformed(name, what).into());
        }
        let width = found.block_bytes() as usize;
        self.raw(name, |bytes| {
            let mut values = vec![0.0; bytes.len() / width];
            gguf::dequantize(found, bytes, &mut values)
                .map_err(|error| FormatError::malformed(name, error.to_string()))?;
            check_finite(name, &values)?;
            sink(&FloatType::F32.encode(&values))
        })
    }

    /// Type that [`raw`](Self::raw) gives.
    pub fn raw_dtype(&self, tensor: &LogicalTensor) -> Dtype {
        match &tensor.storage {
            Storage::Plain(info) | Storage::Transposed(info)
                if info.dtype.safetensors_name().is_some() && !self.is_edited(&tensor.name) =>
            {
                info.dtype
            }
            _ => float_dtype(tensor.float_type()),
        }
    }

    /// The type of the blocks that [`blocks`](Self::blocks) gives for a tensor, where it has any.
    pub fn block_dtype(&self, tensor: &LogicalTensor) -> Option<Dtype> {
        let info = match &tensor.storage {
            Storage::Plain(info) | Storage::Reordered(info, _) | Storage::Turned(info) => info,
            Storage::Compressed(..)
            | Storage::Transposed(_)
            | Storage::Raised(_)
            | Storage::Part(_) => return None,
        };
        let is_blocks = info.dtype.block_elements() > 1 && tensor.shape.len() == 2;
        (is_blocks && !self.is_edited(&tensor.name)).then_some(info.dtype)
    }

    /// The metadata of a GGUF, read once more: they are not kept, since vocabularies are large.
    ///
    /// # Errors
    /// When the file cannot be read, or was changed.
    pub fn gguf_metadata(&self) -> Result<Option<Metadata>, FormatError> {
        Ok(self.checkpoint.read_gguf_metadata()?)
    }

    /// Bytes that a tensor takes in the checkpoint's files.
    pub fn stored_bytes(&self, tensor: &LogicalTensor) -> u64 {
        match &tensor.storage {
            Storage::Plain(info)
            | Storage::Reordered(info, _)
            | Storage::Turned(info)
            | Storage::Raised(info)
            | Storage::Transposed(info) => info.span.len(),
            Storage::Compressed(module, _) => {
                let stored = module.tensors.iter().filter_map(|name| self.checkpoint.get(name));
                stored.map(|info| info.span.len()).sum()
            }
            Storage::Part(part) => self.stored_bytes(&part.of),
        }
    }

    fn require(&self, name: &str) -> Result<&LogicalTensor, FormatError> {
        match self.get(name) {
            Some(tensor) => Ok(tensor),
            // The store's error names the most similar tensor.
            None => match self.checkpoint.require(name) {
                Err(error) => Err(error.into()),
                Ok(_) => Err(FormatError::malformed(name, "is part of a compressed layer")),
            },
        }
    }

    /// All values of a tensor as it is in the files, which must be finite.
    fn unedited_values(&self, logical: &LogicalTensor) -> Result<Vec<f32>, FormatError> {
        let values = match &logical.storage {
            Storage::Compressed(module, _) => self.stored(module)?.decode(),
            Storage::Part(part) => {
                let mut values = self.unedited_values(&part.of)?;
                self.edit(&part.of, &part.edits, &mut values)?;
                part.values_of(values)
            }
            Storage::Plain(info) | Storage::Turned(info) => {
                to_f32(info, &self.checkpoint.read(info)?, logical.shape.iter().product())?
            }
            Storage::Raised(info) => {
                let count = logical.shape.iter().product();
                let stored = to_f32(info, &self.checkpoint.read(info)?, count)?;
                stored.into_iter().map(|gain| gain - 1.0).collect()
            }
            Storage::Transposed(info) => {
                let count = logical.shape.iter().product();
                let stored = to_f32(info, &self.checkpoint.read(info)?, count)?;
                gpt2::transposed(&stored, info.shape[1])
            }
            Storage::Reordered(info, order) => {
                let count = logical.shape.iter().product();
                let mut values = to_f32(info, &self.checkpoint.read(info)?, count)?;
                let rows = logical.shape.first().copied().unwrap_or(0);
                let width = values.len().checked_div(rows).unwrap_or(0);
                order
                    .restore(&info.name, &mut values, width)
                    .map_err(|error| FormatError::malformed(&logical.name, error.to_string()))?;
                values
            }
        };
        check_finite(&logical.name, &values)?;
        Ok(values)
    }

    /// Rows of a matrix as it is in the files.
    fn unedited_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, FormatError> {
        self.rows_in_files(self.require(name)?, rows)
    }

    fn rows_in_files(
        &self,
        logical: &LogicalTensor,
        rows: &[u32],
    ) -> Result<Vec<f32>, FormatError> {
        let name = logical.name.as_str();
        let [height, width] = logical.shape[..] else {
            return Err(FormatError::malformed(name, format!("has shape {:?}", logical.shape)));
        };
        if let Some(row) = rows.iter().find(|row| **row as usize >= height) {
            return Err(FormatError::malformed(
                name,
                format!("has {height} rows; row {row} was asked for"),
            ));
        }
        let info = match &logical.storage {
            Storage::Plain(info) => info,
            Storage::Compressed(module, _) => {
                let table = self.table(name, module)?;
                let mut values = vec![0.0; rows.len() * width];
                for (row, out) in rows.iter().zip(values.chunks_exact_mut(width.max(1))) {
                    table.add_row(*row as usize, out);
                }
                check_finite(name, &values)?;
                return Ok(values);
            }
            Storage::Part(part) if part.is_of_rows() => {
                return Ok(part.columns_of(self.rows_in_files(&part.of, rows)?));
            }
            Storage::Reordered(..)
            | Storage::Turned(_)
            | Storage::Raised(_)
            | Storage::Transposed(_)
            | Storage::Part(_) => {
                let values = self.unedited_values(logical)?;
                let row = |row: &u32| values[*row as usize * width..][..width].to_vec();
                return Ok(rows.iter().flat_map(row).collect());
            }
        };
        // Each distinct row is read once, in the order of the file, neighbours together.
        let mut distinct: Vec<u32> = rows.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let row_bytes = info.span.len() / (height.max(1) as u64);
        let (mut bytes, mut values) = (vec![], Vec::with_capacity(distinct.len() * width));
        for run in distinct.chunk_by(|row, next| *next == row + 1) {
            let start = u64::from(run[0]) * row_bytes;
            let length = run.len() as u64 * row_bytes;
            bytes.resize(length as usize, 0);
            self.checkpoint.read_range(info, start..start + length, &mut bytes)?;
            values.append(&mut to_f32(info, &bytes, run.len() * width)?);
        }
        check_finite(name, &values)?;
        if distinct == rows {
            return Ok(values);
        }
        let place = |row: &u32| distinct.partition_point(|known| known < row) * width;
        Ok(rows.iter().flat_map(|row| &values[place(row)..][..width]).copied().collect())
    }
}

impl Source {
    /// A compressed layer as it is in the files.
    fn stored(&self, module: &Module) -> Result<Weight, FormatError> {
        let missing = || FormatError::malformed(&module.name, "has no reader");
        let reader = self.reader.as_ref().ok_or_else(missing)?;
        reader.decode(module, &|name| Index(&self.checkpoint).read(name))
    }

    /// A compressed table, unpacked at the first look-up: a byte a number, and its scales.
    fn table(&self, name: &str, module: &Module) -> Result<Arc<Weight>, FormatError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(name) {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(self.stored(module)?);
        tables.insert(name.to_owned(), Arc::clone(&table));
        Ok(table)
    }
}

impl Tensors for Source {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.get(name).map(|tensor| tensor.shape.clone())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let values = self.require(name).and_then(|tensor| self.values(tensor));
        values.map_err(|error| TensorError(Box::new(error)))
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        self.rows(name, rows).map_err(|error| TensorError(Box::new(error)))
    }

    fn input_rounding(&self, weight: &str) -> Option<InputRounding> {
        match &self.get(weight)?.storage {
            Storage::Compressed(module, _) => module.inputs,
            _ => None,
        }
    }
}

/// Values of any float or block type.
fn to_f32(info: &TensorInfo, bytes: &[u8], count: usize) -> Result<Vec<f32>, FormatError> {
    let mut values = vec![0.0; count];
    gguf::dequantize(info.dtype, bytes, &mut values).map_err(|error| {
        FormatError::malformed(format!("tensor {}", info.name), error.to_string())
    })?;
    Ok(values)
}

fn check_finite(tensor: &str, values: &[f32]) -> Result<(), FormatError> {
    let Some(first) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let count = values.iter().filter(|value| !value.is_finite()).count();
    Err(FormatError::NotFinite { tensor: tensor.to_owned(), count, first })
}
