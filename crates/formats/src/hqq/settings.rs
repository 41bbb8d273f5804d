//! The settings of one layer, which stand beside it as tensors, and how its codes are packed.

use crate::FormatError;
use crate::folder::{Bytes, Grid, Parts};
use lapidary_store::Dtype;
use lapidary_weight::{FloatType, Grouping, Outline, ZeroType};
use std::num::NonZeroUsize;

/// Names of the settings.
pub(super) const NAMES: [&str; 16] = [
    "nbits",
    "group_size",
    "shape",
    "axis",
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
];

/// Longest text that is believed to be a setting.
const MOST_TEXT: usize = 64;

/// How codes lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    name: &'static str,
    /// Codes in a word.
    pub(super) parts: usize,
    /// Bits from one to the next.
    step: u32,
    pub(super) dtype: Dtype,
}

impl Packing {
    pub(super) const THREE: Self = Self { name: "3bit_32", parts: 10, step: 3, dtype: Dtype::I32 };
    const ALL: [Self; 5] = [
        Self { name: "8bit_u8", parts: 1, step: 8, dtype: Dtype::U8 },
        Self { name: "4bit_u8", parts: 2, step: 4, dtype: Dtype::U8 },
        Self::THREE,
        Self { name: "2bit_u8", parts: 4, step: 2, dtype: Dtype::U8 },
        Self { name: "1bit_u8", parts: 8, step: 1, dtype: Dtype::U8 },
    ];

    /// That of codes of so many bits.
    pub(super) fn of(bits: u8) -> Option<Self> {
        let step = if matches!(bits, 5 | 6) { 8 } else { u32::from(bits) };
        Self::ALL.into_iter().find(|packing| packing.step == step)
    }

    fn word_bytes(self) -> usize {
        if self.dtype == Dtype::I32 { 4 } else { 1 }
    }

    /// Bit at which part number `part` of a word begins: the first part stands highest.
    fn shift(self, part: usize) -> u32 {
        self.step * (self.parts - 1 - part) as u32
    }

    /// Rows of `width` codes; each part has as many rows as the words have.
    pub(super) fn pack(self, codes: &[u8], width: usize) -> Vec<u8> {
        let rows = codes.len() / width.max(1);
        let mut words = vec![0_u32; rows.div_ceil(self.parts) * width];
        for (part, codes) in codes.chunks(words.len().max(1)).enumerate() {
            let shift = self.shift(part);
            words.iter_mut().zip(codes).for_each(|(word, code)| *word |= u32::from(*code) << shift);
        }
        match self.word_bytes() {
            4 => words.iter().flat_map(|word| word.to_le_bytes()).collect(),
            _ => words.iter().map(|word| *word as u8).collect(),
        }
    }

    /// The inverse of [`pack`](Self::pack), for `count` codes.
    pub(super) fn unpack(
        self,
        bytes: &[u8],
        count: usize,
        width: usize,
    ) -> Result<Vec<u8>, String> {
        let words: Vec<u32> = match self.word_bytes() {
            4 => bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect(),
            _ => bytes.iter().map(|byte| u32::from(*byte)).collect(),
        };
        let need = (count / width.max(1)).div_ceil(self.parts) * width;
        if words.len() != need || !count.is_multiple_of(width.max(1)) {
            return Err(format!("holds {} words where {need} are needed", words.len()));
        }
        let mask = (1_u32 << self.step) - 1;
        let part =
            |part: usize| words.iter().map(move |word| (word >> self.shift(part) & mask) as u8);
        Ok((0..self.parts).flat_map(part).take(count).collect())
    }
}

/// The settings that matter.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: u8,
    pub(super) group_size: usize,
    pub(super) axis: u8,
    pub(super) packing: Packing,
    /// Type of the scales, for what is written.
    float: FloatType,
}

/// Whoever has the tensors of a layer.
pub(super) trait Tensors {
    fn bytes(&self, part: &str) -> Result<Vec<u8>, FormatError>;
    fn complaint(&self, part: &str, what: String) -> FormatError;
}

impl Tensors for Bytes<'_> {
    fn bytes(&self, part: &str) -> Result<Vec<u8>, FormatError> {
        self.get(part)
    }

    fn complaint(&self, part: &str, what: String) -> FormatError {
        self.wrong(part, what)
    }
}

impl Tensors for Parts<'_> {
    /// Types and lengths are checked before anything is read.
    fn bytes(&self, part: &str) -> Result<Vec<u8>, FormatError> {
        let (dtype, shape) = self.spec(part)?;
        let fits = match part {
            "shape" => dtype == Dtype::I64 && shape == [2],
            "packing" => dtype == Dtype::U8 && shape.len() == 1 && shape[0] <= MOST_TEXT,
            "nbits" | "group_size" | "axis" => dtype == Dtype::I32 && shape.iter().all(|s| *s == 1),
            _ => dtype == Dtype::U8 && shape.iter().all(|size| *size == 1),
        };
        if fits { self.read(part) } else { self.wrong(part, format!("is {dtype:?} {shape:?}")) }
    }

    fn complaint(&self, part: &str, what: String) -> FormatError {
        FormatError::malformed(self.name(part), what)
    }
}

impl Settings {
    /// Those of a layer of this outline, which is one affine term.
    pub(super) fn new(outline: &Outline, grid: &Grid, packing: Packing) -> Self {
        let Outline { rows, cols, .. } = *outline;
        let group_size = grid.grouping.width(cols);
        Self { rows, cols, bits: grid.bits, group_size, axis: 1, packing, float: grid.scales }
    }

    /// Those that stand beside a layer.
    pub(super) fn read(tensors: &impl Tensors) -> Result<Self, FormatError> {
        let wrong = |part: &str, what: &str| Err(tensors.complaint(part, what.to_owned()));
        let number = |part: &str| {
            let bytes = tensors.bytes(part)?;
            let number = bytes.as_chunks().0.first().map(|bytes| i32::from_le_bytes(*bytes));
            let number = number.and_then(|number| usize::try_from(number).ok());
            number.ok_or_else(|| tensors.complaint(part, "is no size".to_owned()))
        };
        let shape = tensors.bytes("shape")?;
        let shape: Vec<usize> = shape
            .as_chunks()
            .0
            .iter()
            .filter_map(|bytes| usize::try_from(i64::from_le_bytes(*bytes)).ok())
            .collect();
        let [rows, cols] = shape[..] else { return wrong("shape", "is not that of a matrix") };
        let count = rows.checked_mul(cols).filter(|count| *count > 0);
        let Some(count) = count.filter(|count| *count < 1 << 48) else {
            return wrong("shape", &format!("[{rows}, {cols}] is no size of a matrix"));
        };
        let text = tensors.bytes("packing")?;
        let packing = Packing::ALL.into_iter().find(|packing| packing.name.as_bytes() == text);
        let Some(packing) = packing else {
            return wrong("packing", &format!("{:?} is not known", String::from_utf8_lossy(&text)));
        };
        let bits = number("nbits")?;
        let Some(bits) = u8::try_from(bits).ok().filter(|b| Packing::of(*b) == Some(packing))
        else {
            return wrong("nbits", &format!("{bits} is not packed as {}", packing.name));
        };
        let (group_size, axis) = (number("group_size")?, number("axis")?);
        if group_size == 0 || !count.is_multiple_of(group_size) {
            return wrong("group_size", &format!("{group_size} does not divide [{rows}, {cols}]"));
        }
        if axis > 1 {
            return wrong("axis", &format!("{axis} is neither 0 nor 1"));
        }
        for (part, what) in [
            ("view_as_float", "is true: codes in the place of floats cannot be read"),
            ("quant_scale", "is true: quantized scales cannot be read"),
            ("quant_zero", "is true: quantized zeros cannot be read"),
        ] {
            if tensors.bytes(part)? != [0] {
                return wrong(part, what);
            }
        }
        let (axis, float) = (axis as u8, FloatType::F16);
        Ok(Self { rows, cols, bits, group_size, axis, packing, float })
    }

    /// Groups of the matrix.
    pub(super) fn groups(&self) -> usize {
        self.rows * self.cols / self.group_size
    }

    /// Columns of the reshaped matrix that is packed.
    pub(super) fn width(&self) -> usize {
        if self.axis == 1 { self.group_size } else { self.groups() }
    }

    /// The term that holds the layer; `None` where its groups are no groups of columns.
    pub(super) fn grid(&self, scales: FloatType) -> Option<Grid> {
        if self.axis != 1 {
            return None;
        }
        // Groups that run across the ends of rows are cut where rows and groups begin.
        let (mut width, mut rest) = (self.cols, self.group_size);
        while rest > 0 {
            (width, rest) = (rest, width % rest);
        }
        let columns = NonZeroUsize::new(width).filter(|width| width.get() < self.cols);
        let grouping = columns.map_or(Grouping::Row, Grouping::Columns);
        Some(Grid { bits: self.bits, grouping, zeros: ZeroType::Floats(scales.into()), scales })
    }

    /// The settings as tensors, with their bytes.
    pub(super) fn tensors(&self) -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
        let number = |value: usize| (Dtype::I32, vec![], (value as i32).to_le_bytes().to_vec());
        let truth = |value: bool| (Dtype::U8, vec![], vec![u8::from(value)]);
        let text = |text: &str| (Dtype::U8, vec![text.len()], text.as_bytes().to_vec());
        let shape = [self.rows as u64, self.cols as u64];
        let shape = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
        let view = if self.packing.dtype == Dtype::I32 { "torch.int32" } else { "torch.uint8" };
        let compute = match self.float {
            FloatType::F32 => "torch.float32",
            FloatType::F16 => "torch.float16",
            FloatType::Bf16 => "torch.bfloat16",
        };
        let value = |name: &'static str| match name {
            "nbits" => number(usize::from(self.bits)),
            "group_size" => number(self.group_size),
            "shape" => (Dtype::I64, vec![2], Vec::clone(&shape)),
            "axis" => number(usize::from(self.axis)),
            "packing" => text(self.packing.name),
            "unpack_view_dtype" => text(view),
            "compute_dtype" => text(compute),
            name => {
                let is_set =
                    ["encoded_state_dict", "stores_quant_config", "channel_wise", "optimize"];
                truth(is_set.contains(&name))
            }
        };
        let with_name = |name| {
            let (dtype, shape, bytes) = value(name);
            (name, dtype, shape, bytes)
        };
        NAMES.into_iter().map(with_name).collect()
    }
}
