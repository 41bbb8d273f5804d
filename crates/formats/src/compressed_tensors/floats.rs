//! FP8, MXFP8, MXFP4 and NVFP4 layers.
//!
//! E4M3 is a byte a weight in `weight`; E2M1 two a byte in `weight_packed`, the even column in the low
//! bits. NVFP4's scales are divided by `weight_global_scale`.

use crate::{FormatError, ReadTensor, float_dtype};
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    BookType, FloatType, GroupFloats, Grouping, Lookup, Outline, SmallFloat, Term, TermOutline,
    Weight,
};

/// A layer of small floats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Floats {
    pub(super) float: SmallFloat,
    pub(super) grouping: Grouping,
    pub(super) scales: Scales,
}

/// How its scales are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scales {
    /// As floats.
    Plain(FloatType),
    /// As E8M0 in U8.
    PowersOfTwo,
    /// As E4M3 over one F32.
    Divided,
}

/// The name of the divisor.
const GLOBAL: &str = "weight_global_scale";

impl Floats {
    /// Name and type of the tensor of codes, and codes in a byte.
    fn codes(&self) -> (&'static str, Dtype, usize) {
        match self.float {
            SmallFloat::E2M1 => ("weight_packed", Dtype::U8, 2),
            SmallFloat::E4M3 | SmallFloat::E8M0 => ("weight", Dtype::F8E4M3, 1),
        }
    }

    /// The tensors of a layer, in the order of [`encode`](Self::encode).
    pub(super) fn tensors(&self, module: &str, (rows, cols): (usize, usize)) -> Vec<TensorSpec> {
        let spec =
            |part: &str, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        let (codes, dtype, per_byte) = self.codes();
        let scale_type = match self.scales {
            Scales::Plain(float) => float_dtype(float),
            Scales::PowersOfTwo => Dtype::U8,
            Scales::Divided => Dtype::F8E4M3,
        };
        let mut tensors = vec![
            spec(codes, dtype, vec![rows, cols / per_byte]),
            spec("weight_scale", scale_type, self.grouping.scale_shape(rows, cols)),
        ];
        if self.scales == Scales::Divided {
            tensors.push(spec(GLOBAL, Dtype::F32, vec![1]));
        }
        tensors
    }

    /// Their bytes; `None` for a weight of another kind.
    pub(super) fn encode(&self, weight: &Weight) -> Option<Vec<Vec<u8>>> {
        let [Term::Lookup(Lookup { codes, scales: Some((_, scales)), .. })] = weight.terms() else {
            return None;
        };
        let codes = match self.codes() {
            (_, _, 1) => codes.clone(),
            _ => codes.as_chunks().0.iter().map(|[even, odd]| even | odd << 4).collect(),
        };
        let mut tensors = vec![codes];
        match (self.scales, scales.small_codes()) {
            (Scales::Plain(float), None) => tensors.push(float.encode(scales)),
            (Scales::PowersOfTwo, Some((codes, None))) => tensors.push(codes.to_vec()),
            (Scales::Divided, Some((codes, Some(divisor)))) => {
                tensors.push(codes.to_vec());
                tensors.push(divisor.to_le_bytes().to_vec());
            }
            _ => return None,
        }
        Some(tensors)
    }

    /// The weight of an outline of small floats.
    ///
    /// # Errors
    /// When it is of another kind, or the tensors hold what it does not allow.
    pub(crate) fn decode_outline(
        module: &str,
        outline: &Outline,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        let Outline { rows, cols, ref terms } = *outline;
        let [
            TermOutline::Lookup {
                grouping: Some(grouping),
                books: BookType::Fixed(float),
                scales,
                ..
            },
        ] = terms[..]
        else {
            return Err(FormatError::malformed(module, "is not of small floats with scales"));
        };
        let scales = Scales::stored(scales).map_err(|what| FormatError::malformed(module, what))?;
        let term = Self { float, grouping, scales }.decode(module, (rows, cols), read)?;
        Weight::new(rows, cols, vec![term])
            .map_err(|error| FormatError::Weight { module: module.to_owned(), error })
    }

    /// The term of these tensors, its lengths still to be checked.
    pub(super) fn decode(
        &self,
        module: &str,
        (rows, cols): (usize, usize),
        read: ReadTensor<'_>,
    ) -> Result<Term, FormatError> {
        let get = |part: &str| read(&format!("{module}.{part}"));
        let wrong = |error| FormatError::Weight { module: module.to_owned(), error };
        let (name, _, per_byte) = self.codes();
        let bytes = get(name)?;
        if bytes.len() != rows * cols / per_byte {
            let what = format!("has {} bytes for [{rows}, {cols}] codes", bytes.len());
            return Err(FormatError::malformed(format!("{module}.{name}"), what));
        }
        let codes = match per_byte {
            1 => bytes,
            _ => bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
        };
        let scales = get("weight_scale")?;
        let scales = match self.scales {
            Scales::Plain(float) => GroupFloats::plain(float.decode(&scales), float),
            Scales::PowersOfTwo => {
                GroupFloats::small(SmallFloat::E8M0, scales, None).map_err(wrong)?
            }
            Scales::Divided => {
                let divisor = FloatType::F32.decode(&get(GLOBAL)?);
                let [divisor] = divisor[..] else {
                    let what = format!("holds {} numbers, where one is needed", divisor.len());
                    return Err(FormatError::malformed(format!("{module}.{GLOBAL}"), what));
                };
                GroupFloats::small(SmallFloat::E4M3, scales, Some(divisor)).map_err(wrong)?
            }
        };
        Ok(Term::Lookup(Lookup::of_small_floats(self.float, codes, self.grouping, scales)))
    }
}
