//! Integers of 1 to 8 bits, in words or in bytes.
//!
//! `pack-quantized`: `weight_packed` (I32, each row a dense stream of codes), `weight_scale`,
//! `weight_shape` (I64 `[2]`), and with zero points `weight_zero_point` (I32, packed along the rows).
//! Codes are stored as `q + 2^(bits−1)`, which is what an affine term holds. Until June 2026 codes of
//! 3, 5, 6 and 7 bits were packed without crossing words; the width tells.
//!
//! `int-quantized`: `weight` and `weight_zero_point` hold `q` itself, I8, zero points in the shape of
//! the scales.

use crate::folder::{bytes_to_words, words_to_bytes};
use crate::{FormatError, ReadTensor, float_dtype};
use lapidary_kernels::pack;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{Affine, FloatType, GroupFloats, Grouping, Term, Weight, Zeros};

pub(super) const PACKED: &str = "pack-quantized";

/// A layer of integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Integers {
    pub(super) bits: u8,
    pub(super) grouping: Grouping,
    pub(super) symmetric: bool,
    pub(super) scale_type: FloatType,
    /// In words, not in bytes.
    pub(super) packed: bool,
}

impl Integers {
    /// The tensors of a layer, in the order of [`encode`](Self::encode).
    pub(super) fn tensors(&self, module: &str, (rows, cols): (usize, usize)) -> Vec<TensorSpec> {
        let groups = self.grouping.per_row(cols);
        let words = |codes| pack::Layout::Dense.words(codes, u32::from(self.bits));
        let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        let scale_shape = self.grouping.scale_shape(rows, cols);
        let scales = spec("weight_scale", float_dtype(self.scale_type), scale_shape.clone());
        let mut tensors = match self.packed {
            true => vec![
                spec("weight_packed", Dtype::I32, vec![rows, words(cols)]),
                scales,
                spec("weight_shape", Dtype::I64, vec![2]),
            ],
            false => vec![spec("weight", Dtype::I8, vec![rows, cols]), scales],
        };
        if !self.symmetric {
            let (dtype, shape) = match self.packed {
                true => (Dtype::I32, vec![words(rows), groups]),
                false => (Dtype::I8, scale_shape),
            };
            tensors.push(spec("weight_zero_point", dtype, shape));
        }
        tensors
    }

    /// Their bytes; `None` for a weight of another kind.
    pub(super) fn encode(&self, weight: &Weight) -> Option<Vec<Vec<u8>>> {
        let [Term::Affine(affine)] = weight.terms() else { return None };
        let (rows, cols, bits) = (weight.rows(), weight.cols(), u32::from(self.bits));
        let scales = self.scale_type.encode(&affine.scales);
        if !self.packed {
            let mut tensors = vec![self.centred(&affine.codes), scales];
            if let Zeros::Codes(zeros) = &affine.zeros {
                tensors.push(self.centred(zeros));
            }
            return Some(tensors);
        }
        let words = |codes| pack::Layout::Dense.words(codes, bits);
        let mut packed = vec![0; rows * words(cols)];
        pack::pack_rows(&affine.codes, cols, bits, &mut packed).ok()?;
        let shape = [rows as u64, cols as u64];
        let shape = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
        let mut tensors = vec![words_to_bytes(&packed), scales, shape];
        if let Zeros::Codes(zeros) = &affine.zeros {
            let groups = self.grouping.per_row(cols);
            let mut packed = vec![0; words(rows) * groups];
            pack::pack_columns(zeros, groups, bits, &mut packed).ok()?;
            tensors.push(words_to_bytes(&packed));
        }
        Some(tensors)
    }

    /// Codes less their middle, as bytes of I8.
    fn centred(&self, codes: &[u8]) -> Vec<u8> {
        let middle = 1_u8 << (self.bits - 1);
        codes.iter().map(|code| code.wrapping_sub(middle)).collect()
    }

    /// The codes of bytes of I8; one out of range stays out of range, which the term refuses.
    fn uncentred(&self, bytes: &[u8]) -> Vec<u8> {
        let middle = 1_u8 << (self.bits - 1);
        bytes.iter().map(|byte| byte.wrapping_add(middle)).collect()
    }

    /// The term of these tensors, its lengths still to be checked.
    pub(super) fn decode(
        &self,
        module: &str,
        (rows, cols): (usize, usize),
        read: ReadTensor<'_>,
    ) -> Result<Term, FormatError> {
        let bits = self.bits;
        let get = |part: &str| read(&format!("{module}.{part}"));
        let wrong_length = |part: &str| {
            let what = format!("its length is not that of {bits}-bit codes");
            FormatError::malformed(format!("{module}.{part}"), what)
        };
        let unpacked = |part: &str, along_rows: bool, columns: usize| {
            let words = bytes_to_words(&get(part)?);
            let (streams, per_stream) = if along_rows { (columns, rows) } else { (rows, columns) };
            let length = words.len().checked_div(streams).unwrap_or(0);
            let layout = layout(per_stream, bits, length).ok_or_else(|| wrong_length(part))?;
            let mut codes = vec![0; rows * columns];
            let unpack = if along_rows { pack::unpack_columns } else { pack::unpack_rows };
            unpack(&words, layout, columns, u32::from(bits), &mut codes)
                .map_err(|_| wrong_length(part))?;
            Ok::<_, FormatError>(codes)
        };
        let zeros = "weight_zero_point";
        let affine = Affine {
            bits,
            grouping: self.grouping,
            codes: match self.packed {
                true => unpacked("weight_packed", false, cols)?,
                false => self.uncentred(&get("weight")?),
            },
            scales: GroupFloats::plain(
                self.scale_type.decode(&get("weight_scale")?),
                self.scale_type,
            ),
            zeros: match (self.symmetric, self.packed) {
                (true, _) => Zeros::Middle,
                (_, true) => Zeros::Codes(unpacked(zeros, true, self.grouping.per_row(cols))?),
                (_, false) => Zeros::Codes(self.uncentred(&get(zeros)?)),
            },
        };
        Ok(Term::Affine(affine))
    }
}

/// How a stream of codes lies in so many words.
pub(super) fn layout(codes: usize, bits: u8, words: usize) -> Option<pack::Layout> {
    pack::Layout::of(codes, u32::from(bits), words)
}
