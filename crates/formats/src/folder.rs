//! What the formats of other tools share: words and bytes, transposed arrays, tensors whose types and
//! shapes are checked before they are read.

use crate::{FormatError, ReadTensor, TensorIndex};
use lapidary_store::Dtype;
use lapidary_weight::{
    FloatType, GroupType, Grouping, Outline, Term, TermOutline, Weight, ZeroType,
};

/// Rows that are transposed at a time, so that what is written of them stays in the cache.
const STRIP: usize = 32;

pub(crate) fn words_to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn bytes_to_words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// A row-major matrix of `cols` columns, column by column.
pub(crate) fn transpose<T: Copy + Default>(values: &[T], cols: usize) -> Vec<T> {
    let rows = values.len().checked_div(cols).unwrap_or(0);
    let mut columns = vec![T::default(); values.len()];
    for (strip, values) in values.chunks(STRIP * cols.max(1)).enumerate() {
        for col in 0..cols {
            for (row, values) in values.chunks_exact(cols).enumerate() {
                columns[col * rows + strip * STRIP + row] = values[col];
            }
        }
    }
    columns
}

/// The float type that a tensor's type is.
pub(crate) fn float_type(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::F32 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::BF16 => Some(FloatType::Bf16),
        _ => None,
    }
}

/// One affine term with plain scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grid {
    pub(crate) bits: u8,
    pub(crate) grouping: Grouping,
    pub(crate) zeros: ZeroType,
    pub(crate) scales: FloatType,
}

impl Grid {
    /// The one term of an outline.
    ///
    /// # Errors
    /// The reason why there is none, for users.
    pub(crate) fn of(outline: &Outline) -> Result<Self, String> {
        let [TermOutline::Affine { bits, grouping, zeros, scales }] = outline.terms[..] else {
            return Err(format!("it holds one affine term, not {}", outline.describe()));
        };
        let GroupType::Plain(scales) = scales else {
            return Err(format!("its scales are plain floats, not {}", outline.describe()));
        };
        if let Grouping::Blocks { .. } = grouping {
            return Err(format!("it has no scales for rectangles, as {}", outline.describe()));
        }
        if let Grouping::Columns(width) = grouping
            && outline.cols % width != 0
        {
            let cols = outline.cols;
            return Err(format!("groups of {width} do not divide the {cols} columns"));
        }
        Ok(Self { bits, grouping, zeros, scales })
    }

    /// The outline of this term alone.
    pub(crate) fn outline(self, rows: usize, cols: usize) -> Outline {
        let Self { bits, grouping, zeros, scales } = self;
        let term = TermOutline::Affine { bits, grouping, zeros, scales: scales.into() };
        Outline { rows, cols, terms: vec![term] }
    }

    /// Whether there is a zero point a group: not where it is the middle code.
    ///
    /// # Errors
    /// The reason why an integer cannot stand for it.
    pub(crate) fn has_integer_zeros(&self, outline: &Outline) -> Result<bool, String> {
        match self.zeros {
            ZeroType::Middle => Ok(false),
            ZeroType::Codes => Ok(true),
            ZeroType::Floats(_) | ZeroType::Minima(_) => {
                Err(format!("its zero points are integers, not {}", outline.describe()))
            }
        }
    }

    /// The grouping as a group size, −1 for one scale a row.
    pub(crate) fn group_size(&self) -> i64 {
        match self.grouping {
            Grouping::Columns(width) => width.get() as i64,
            Grouping::Row | Grouping::Tensor | Grouping::Blocks { .. } => -1,
        }
    }
}

/// The value that most of them have, the first of several; `None` where there are none.
pub(crate) fn most_common<T: PartialEq + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: Vec<(T, usize)> = vec![];
    for value in values {
        match counts.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    // Of equal counts `max_by_key` takes the last.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// One term as a weight, checked.
pub(crate) fn weight(
    module: &str,
    rows: usize,
    cols: usize,
    term: Term,
) -> Result<Weight, FormatError> {
    Weight::new(rows, cols, vec![term])
        .map_err(|error| FormatError::Weight { module: module.to_owned(), error })
}

/// An outline from outside, refused where no weight has such sizes.
pub(crate) fn checked(module: &str, outline: Outline) -> Result<Outline, FormatError> {
    match outline.check() {
        Ok(()) => Ok(outline),
        Err(error) => Err(FormatError::Weight { module: module.to_owned(), error }),
    }
}

/// The tensors of one module.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) module: &'a str,
    pub(crate) tensors: &'a dyn TensorIndex,
}

impl Parts<'_> {
    pub(crate) fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.module)
    }

    pub(crate) fn wrong<T>(&self, part: &str, what: impl Into<String>) -> Result<T, FormatError> {
        Err(FormatError::malformed(self.name(part), what))
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.tensors.spec(&self.name(part)).is_some()
    }

    pub(crate) fn spec(&self, part: &str) -> Result<(Dtype, Vec<usize>), FormatError> {
        let missing = || FormatError::malformed(self.name(part), "is missing");
        self.tensors.spec(&self.name(part)).ok_or_else(missing)
    }

    /// Rows and columns of a matrix of this type; neither is zero, so that the file bounds both.
    pub(crate) fn matrix(&self, part: &str, dtype: Dtype) -> Result<[usize; 2], FormatError> {
        match self.spec(part)? {
            (have, shape) if have == dtype && !shape.contains(&0) && shape.len() == 2 => {
                Ok([shape[0], shape[1]])
            }
            (have, shape) => self
                .wrong(part, format!("is {have:?} {shape:?}, where a {dtype:?} matrix is needed")),
        }
    }

    /// Refuses a tensor of another type or shape.
    pub(crate) fn expect(
        &self,
        part: &str,
        dtype: Dtype,
        need: &[usize],
    ) -> Result<(), FormatError> {
        let (have, shape) = self.spec(part)?;
        if have == dtype && shape == need {
            return Ok(());
        }
        self.wrong(part, format!("is {have:?} {shape:?} where {dtype:?} {need:?} is needed"))
    }

    /// The type of a tensor of floats of this shape.
    pub(crate) fn floats(&self, part: &str, need: &[usize]) -> Result<FloatType, FormatError> {
        let (dtype, shape) = self.spec(part)?;
        match float_type(dtype) {
            Some(float) if shape == need => Ok(float),
            Some(_) => self.wrong(part, format!("is {shape:?} where {need:?} is needed")),
            None => self.wrong(part, format!("is {dtype:?}, where F16, BF16 or F32 is needed")),
        }
    }

    /// The bytes of a tensor.
    pub(crate) fn read(&self, part: &str) -> Result<Vec<u8>, FormatError> {
        self.tensors.read(&self.name(part))
    }
}

/// Reads the tensors of one module by the last part of their names.
pub(crate) struct Bytes<'a> {
    pub(crate) module: &'a str,
    pub(crate) read: ReadTensor<'a>,
}

impl Bytes<'_> {
    pub(crate) fn get(&self, part: &str) -> Result<Vec<u8>, FormatError> {
        (self.read)(&format!("{}.{part}", self.module))
    }

    pub(crate) fn words(&self, part: &str) -> Result<Vec<u32>, FormatError> {
        Ok(bytes_to_words(&self.get(part)?))
    }

    pub(crate) fn floats(&self, part: &str, float: FloatType) -> Result<Vec<f32>, FormatError> {
        Ok(float.decode(&self.get(part)?))
    }

    pub(crate) fn wrong(&self, part: &str, what: impl Into<String>) -> FormatError {
        FormatError::malformed(format!("{}.{part}", self.module), what)
    }

    /// Refuses a part of another length: whoever reads it counts on that.
    pub(crate) fn expect<T>(
        &self,
        part: &str,
        values: &[T],
        need: usize,
    ) -> Result<(), FormatError> {
        if values.len() == need {
            return Ok(());
        }
        let have = values.len();
        Err(self.wrong(part, format!("holds {have} elements where {need} are needed")))
    }
}
