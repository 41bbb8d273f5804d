//! Codes of a trellis: columns coded as sequences, each with its own number of bits a value.

use crate::part::Parts;
use crate::term::{check_finite, check_length};
use crate::{FloatType, Part, TermOutline, WeightError};
use lapidary_kernels::trellis::{MOST_BITS, STATE_BITS, Trellis as Code};

const TERM: &str = "trellis";

/// `W[r, c] = scale · row_scale[r] · column_scale[c] · value(state)`, where the state is what the
/// codes of column `c` leave in the register on their way down to row `r`. The register starts anew
/// at every column of a strip of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Trellis {
    /// Bits of the register.
    pub state_bits: u8,
    /// Rows of a strip; the last one has those that are left.
    pub strip: usize,
    /// Bits of a code in each column, 0 to 8; a column of 0 bits is zero.
    pub rates: Vec<u8>,
    /// Row-major codes, one a byte, each below `2^rate`.
    pub codes: Vec<u8>,
    /// Exponents of the rows' scales, see [`Trellis::stretch`].
    pub row_scales: Vec<u8>,
    /// Exponents of the columns' scales.
    pub column_scales: Vec<u8>,
    /// Common factor.
    pub scale: f32,
}

/// Bits that a rate is stored in.
const RATE_BITS: u8 = 4;
/// Bits that a scale's exponent is stored in.
const SCALE_BITS: u8 = 8;
/// The exponent of 1.
const MIDDLE: i32 = 128;

/// `2^(k/8)`.
const EIGHTHS: [f32; 8] = [
    1.0,
    1.090_507_7,
    1.189_207_1,
    1.296_839_6,
    std::f32::consts::SQRT_2,
    1.542_210_8,
    1.681_792_9,
    1.834_008_1,
];

impl Trellis {
    /// The scale that an exponent stands for: `2^((exponent − 128) / 8)`, from 2⁻¹⁶ to almost 2¹⁶.
    pub fn stretch(exponent: u8) -> f32 {
        let eighths = i32::from(exponent) - MIDDLE;
        EIGHTHS[eighths.rem_euclid(8) as usize] * 2.0_f32.powi(eighths.div_euclid(8))
    }

    /// The exponent of the scale nearest to a positive number.
    pub fn exponent(scale: f32) -> u8 {
        let eighths = (8.0 * scale.max(f32::MIN_POSITIVE).log2()).round() as i32;
        (eighths + MIDDLE).clamp(0, 255) as u8
    }

    /// Number of a column's sequence in the strip that holds `row`: the key of its first state.
    pub fn sequence(row: usize, strip: usize, column: usize) -> u64 {
        ((row / strip.max(1)) as u64) << 32 | column as u64
    }

    /// Bits of everything but codes in a matrix of this shape.
    pub fn overhead(rows: usize, cols: usize) -> u64 {
        let (rows, cols) = (rows as u64, cols as u64);
        cols * u64::from(RATE_BITS + SCALE_BITS) + rows * u64::from(SCALE_BITS) + 32
    }

    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Trellis {
            row_bits: self.rates.iter().map(|rate| u32::from(*rate)).sum(),
            state_bits: self.state_bits,
            strip: self.strip,
        }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        check_length(TERM, "codes", self.codes.len(), rows * cols)?;
        check_length(TERM, "rates", self.rates.len(), cols)?;
        check_length(TERM, "row_scales", self.row_scales.len(), rows)?;
        check_length(TERM, "column_scales", self.column_scales.len(), cols)?;
        check_finite(TERM, "scale", &[self.scale])?;
        let range = |part, value: u8, limit: u64| {
            Err(WeightError::Range { term: TERM, part, value: u64::from(value), limit })
        };
        if let Some(rate) = self.rates.iter().find(|rate| u32::from(**rate) > MOST_BITS) {
            return range("rates", *rate, u64::from(MOST_BITS) + 1);
        }
        for codes in self.codes.chunks_exact(cols.max(1)) {
            for (code, rate) in codes.iter().zip(&self.rates) {
                if u32::from(*code) >> rate != 0 {
                    return range("codes", *code, 1 << rate);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let (cols, code) = (out.len(), code(self.state_bits));
        let row_scale = self.scale * Self::stretch(self.row_scales[row]);
        let first = row - row % self.strip.max(1);
        for (column, out) in out.iter_mut().enumerate() {
            let rate = u32::from(self.rates[column]);
            if rate == 0 {
                continue;
            }
            // What came in earlier has left the register.
            let memory = (u32::from(self.state_bits) / rate) as usize;
            let begin = first.max(row.saturating_sub(memory));
            let mut state = match begin == first {
                true => code.start(Self::sequence(row, self.strip, column)),
                false => 0,
            };
            for row in begin..=row {
                state = code.next(state, self.codes[row * cols + column], rate);
            }
            let column_scale = Self::stretch(self.column_scales[column]);
            *out += row_scale * column_scale * code.value(state);
        }
    }

    /// The codes as one stream: strip by strip, in it column by column, in it down the rows.
    fn pack(&self, rows: usize, cols: usize) -> Vec<u32> {
        let mut stream = vec![];
        let (mut word, mut filled) = (0_u64, 0);
        for (row, column) in order(rows, cols, self.strip) {
            let rate = u32::from(self.rates[column]);
            word |= u64::from(self.codes[row * cols + column]) << filled;
            filled += rate;
            if filled >= 32 {
                stream.push(word as u32);
                (word, filled) = (word >> 32, filled - 32);
            }
        }
        stream.extend((filled > 0).then_some(word as u32));
        stream
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        vec![
            Part::indices("codes", &self.pack(rows, cols)),
            Part::codes("rates", &self.rates, cols, RATE_BITS),
            Part::codes("row_scales", &self.row_scales, rows, SCALE_BITS),
            Part::codes("column_scales", &self.column_scales, cols, SCALE_BITS),
            Part::floats("scale", FloatType::F32, vec![1], &[self.scale]),
        ]
    }

    pub(crate) fn from_parts(
        (row_bits, state_bits, strip): (u32, u8, usize),
        rows: usize,
        cols: usize,
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let rates = parts.codes("rates", cols, RATE_BITS)?;
        check_length(TERM, "rates", rates.len(), cols)?;
        let sum: usize = rates.iter().map(|rate| usize::from(*rate)).sum();
        check_length(TERM, "rates (their sum)", sum, row_bits as usize)?;
        let words = parts.indices("codes")?;
        check_length(TERM, "codes", words.len(), (rows * sum).div_ceil(32))?;
        let mut codes = vec![0; rows * cols];
        let mut bit = 0;
        for (row, column) in order(rows, cols, strip) {
            let rate = usize::from(rates[column]);
            let (word, shift) = (bit / 32, bit % 32);
            let low = words.get(word).map_or(0, |word| u64::from(*word));
            let high = words.get(word + 1).map_or(0, |word| u64::from(*word));
            let window = (high << 32 | low) >> shift;
            codes[row * cols + column] = (window & ((1 << rate) - 1)) as u8;
            bit += rate;
        }
        let scale = parts.floats("scale", FloatType::F32)?;
        check_length(TERM, "scale", scale.len(), 1)?;
        Ok(Self {
            state_bits,
            strip,
            rates,
            codes,
            row_scales: parts.codes("row_scales", rows, SCALE_BITS)?,
            column_scales: parts.codes("column_scales", cols, SCALE_BITS)?,
            scale: scale[0],
        })
    }
}

/// Whether there is such a register and such a strip.
pub(crate) fn validate_outline(state_bits: u8, strip: usize) -> Result<(), WeightError> {
    match STATE_BITS.contains(&u32::from(state_bits)) && strip > 0 {
        true => Ok(()),
        false => Err(WeightError::Outline {
            term: TERM,
            what: format!(
                "a register of {state_bits} bits and strips of {strip} rows do not exist"
            ),
        }),
    }
}

/// Row and column of each code of the stream.
fn order(rows: usize, cols: usize, strip: usize) -> impl Iterator<Item = (usize, usize)> {
    let strip = strip.max(1);
    (0..rows).step_by(strip).flat_map(move |first| {
        let last = rows.min(first + strip);
        (0..cols).flat_map(move |column| (first..last).map(move |row| (row, column)))
    })
}

/// The tables of registers, made once each.
fn code(state_bits: u8) -> &'static Code {
    use std::sync::OnceLock;
    static CODES: [OnceLock<Code>; 5] = [const { OnceLock::new() }; 5];
    let index = u32::from(state_bits).clamp(*STATE_BITS.start(), *STATE_BITS.end());
    CODES[(index - STATE_BITS.start()) as usize].get_or_init(|| Code::new(index))
}
