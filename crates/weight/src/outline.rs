//! A weight without its data: kinds of terms, widths, groups. Sizes follow from it.

use crate::{BookType, FloatType, GroupType, Grouping, Places, Trellis, WeightError};
use serde::{Deserialize, Deserializer, Serialize};

/// What the codes of an affine term are counted from, without the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroType {
    /// The middle code, `2^(bits−1)`.
    Middle,
    /// A code a group.
    Codes,
    /// A real number a group, in steps: `scale · (code − zero)`.
    Floats(GroupType),
    /// A real number a group, in the unit of the weights: `scale · code − minimum`.
    Minima(GroupType),
}

/// Reads the kind of zeros, or what folders of version 0.1 have in its place, `symmetric: bool`.
fn read_zeros<'de, D: Deserializer<'de>>(from: D) -> Result<ZeroType, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Symmetric(bool),
        Zeros(ZeroType),
    }
    Ok(match Written::deserialize(from)? {
        Written::Symmetric(true) => ZeroType::Middle,
        Written::Symmetric(false) => ZeroType::Codes,
        Written::Zeros(zeros) => zeros,
    })
}

/// One term without its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "term", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TermOutline {
    /// Plain floats.
    Dense {
        /// Type of the values.
        values: FloatType,
    },
    /// `scale · (code − zero)`, or `scale · code − minimum`.
    Affine {
        /// Bits of a code, 1 to 8.
        bits: u8,
        /// What shares a scale.
        grouping: Grouping,
        /// What codes are counted from.
        #[serde(alias = "symmetric", deserialize_with = "read_zeros")]
        zeros: ZeroType,
        /// How the scales are stored.
        scales: GroupType,
    },
    /// `scale · book[code]`.
    Lookup {
        /// Bits of a code, 1 to 8.
        bits: u8,
        /// What shares a scale; `None` when the book holds the values themselves.
        grouping: Option<Grouping>,
        /// A codebook of its own for each row, or one for the matrix.
        book_per_row: bool,
        /// Storage of the books: the type of their floats, or what names their numbers.
        books: BookType,
        /// How the scales are stored; the type of the books when there are none.
        scales: GroupType,
    },
    /// `Σ alpha · sign`, with an offset or without.
    Planes {
        /// Planes of signs, 1 to 8.
        planes: u8,
        /// What shares a set of alphas.
        grouping: Grouping,
        /// Whether each group has an offset.
        offsets: bool,
        /// Type of alphas and offsets.
        scales: FloatType,
    },
    /// Values at explicit places.
    Sparse {
        /// Stored values.
        nonzeros: usize,
        /// Type of the values.
        values: FloatType,
        /// How the places are stored; listed where a folder does not say.
        #[serde(default, skip_serializing_if = "Places::is_listed")]
        places: Places,
    },
    /// Some whole columns.
    Columns {
        /// Stored columns.
        count: usize,
        /// Type of the values.
        values: FloatType,
    },
    /// `left · right`.
    LowRank {
        /// Inner dimension.
        rank: usize,
        /// Type of both factors.
        values: FloatType,
    },
    /// Columns coded as sequences, each with its own number of bits.
    Trellis {
        /// Bits of a row: the sum of the columns' bits a code.
        row_bits: u32,
        /// Bits of the register.
        state_bits: u8,
        /// Rows of a sequence.
        strip: usize,
    },
}

impl TermOutline {
    /// Name of the kind, as it is written in a native folder.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dense { .. } => "dense",
            Self::Affine { .. } => "affine",
            Self::Lookup { .. } => "lookup",
            Self::Planes { .. } => "planes",
            Self::Sparse { .. } => "sparse",
            Self::Columns { .. } => "columns",
            Self::LowRank { .. } => "low-rank",
            Self::Trellis { .. } => "trellis",
        }
    }

    /// Exact size of this term in a matrix of this shape, in bits.
    pub fn bits(&self, rows: usize, cols: usize) -> u64 {
        let elements = as_bits(rows) * as_bits(cols);
        match *self {
            Self::Dense { values } => elements * values.bits(),
            Self::Affine { bits, grouping, zeros, scales } => {
                let zeros = match zeros {
                    ZeroType::Middle => 0,
                    ZeroType::Codes => as_bits(grouping.count(rows, cols)) * u64::from(bits),
                    ZeroType::Floats(kind) | ZeroType::Minima(kind) => {
                        kind.bits(grouping, rows, cols)
                    }
                };
                elements * u64::from(bits) + scales.bits(grouping, rows, cols) + zeros
            }
            Self::Lookup { bits, grouping, book_per_row, books, scales } => {
                let scales = grouping.map_or(0, |grouping| scales.bits(grouping, rows, cols));
                let count = if book_per_row { rows } else { 1 };
                let (symbols, symbol_bits) = books.symbols(bits, grouping, cols);
                let codes = as_bits(rows) * as_bits(symbols) * u64::from(symbol_bits);
                codes + books.bits(count, bits) + scales
            }
            Self::Planes { planes, grouping, offsets, scales } => {
                let floats = u64::from(planes) + u64::from(offsets);
                elements * u64::from(planes)
                    + as_bits(grouping.count(rows, cols)) * floats * scales.bits()
            }
            Self::Sparse { nonzeros, values, places } => {
                as_bits(nonzeros) * values.bits() + places.bits(rows, cols, nonzeros)
            }
            Self::Columns { count, values } => {
                as_bits(count) * (32 + as_bits(rows) * values.bits())
            }
            Self::LowRank { rank, values } => {
                as_bits(rank) * (as_bits(rows) + as_bits(cols)) * values.bits()
            }
            Self::Trellis { row_bits, .. } => {
                as_bits(rows) * u64::from(row_bits) + Trellis::overhead(rows, cols)
            }
        }
    }

    /// Refuses widths that no term can hold.
    pub(crate) fn validate(&self) -> Result<(), WeightError> {
        match *self {
            Self::Affine { bits, .. }
            | Self::Lookup { bits, .. }
            | Self::Planes { planes: bits, .. }
                if !(1..=8).contains(&bits) =>
            {
                Err(WeightError::Outline {
                    term: self.kind(),
                    what: format!("{bits} bits a code, where 1 to 8 are possible"),
                })
            }
            Self::Affine { zeros, scales, .. } => {
                if let ZeroType::Floats(kind) | ZeroType::Minima(kind) = zeros {
                    kind.check()?;
                }
                scales.check()
            }
            Self::Lookup { bits, books, book_per_row, scales, .. } => {
                books.check(bits, book_per_row)?;
                scales.check()
            }
            Self::Trellis { state_bits, strip, .. } => {
                crate::trellis::validate_outline(state_bits, strip)
            }
            _ => Ok(()),
        }
    }
}

/// A weight without its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outline {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The terms of the sum.
    pub terms: Vec<TermOutline>,
}

/// Sizes above this are a corrupt or hostile outline, not a weight. Below it no count of elements,
/// bytes or bits overflows.
const LARGEST_SIZE: usize = 1 << 24;

/// More terms than any sum has.
const MOST_TERMS: usize = 256;

impl Outline {
    /// Refuses widths and sizes that no weight has: what must be done with an outline from outside
    /// before anything is computed from it.
    ///
    /// # Errors
    /// When there are too many terms, a dimension or rank exceeds 2^24, a code is not of 1 to 8
    /// bits, or there are more nonzeros than elements or more columns than columns.
    pub fn check(&self) -> Result<(), WeightError> {
        let refuse = |term, what| Err(WeightError::Outline { term, what });
        if self.rows > LARGEST_SIZE || self.cols > LARGEST_SIZE || self.terms.len() > MOST_TERMS {
            let (rows, cols, terms) = (self.rows, self.cols, self.terms.len());
            return refuse(
                "any",
                format!("{terms} terms of [{rows}, {cols}] are beyond all sense"),
            );
        }
        for term in &self.terms {
            term.validate()?;
            match *term {
                TermOutline::LowRank { rank, .. } if rank > LARGEST_SIZE => {
                    return refuse(term.kind(), format!("a rank of {rank} is beyond all sense"));
                }
                TermOutline::Columns { count, .. } if count > self.cols => {
                    let what = format!("{count} columns of {}", self.cols);
                    return refuse(term.kind(), what);
                }
                TermOutline::Sparse { nonzeros, .. } if nonzeros > self.rows * self.cols => {
                    let (rows, cols) = (self.rows, self.cols);
                    let what = format!("{nonzeros} values do not fit [{rows}, {cols}]");
                    return refuse(term.kind(), what);
                }
                TermOutline::Sparse { nonzeros, places, .. } => {
                    places.check(self.rows, self.cols, nonzeros)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Exact size in bits of everything stored.
    pub fn bits(&self) -> u64 {
        self.terms.iter().map(|term| term.bits(self.rows, self.cols)).sum()
    }

    /// A short description for tables, for instance `affine 4 bits, groups of 64`.
    pub fn describe(&self) -> String {
        let terms: Vec<String> = self.terms.iter().map(describe).collect();
        terms.join(" + ")
    }
}

fn describe(term: &TermOutline) -> String {
    let shared = |grouping: Grouping| match grouping {
        Grouping::Tensor => "one scale".to_owned(),
        Grouping::Row => "a scale a row".to_owned(),
        Grouping::Columns(width) => format!("groups of {width}"),
        Grouping::Blocks { rows, columns } => format!("blocks of {rows}x{columns}"),
    };
    let levels = |scales: GroupType| match scales {
        GroupType::Plain(_) => String::new(),
        GroupType::TwoLevel(kind) => format!(", scales of {} bits", kind.bits),
        GroupType::Small(kind) => format!(", scales in {:?}", kind.float).to_lowercase(),
    };
    match *term {
        TermOutline::Dense { values } => format!("dense {values:?}").to_lowercase(),
        TermOutline::Affine { bits, grouping, zeros, scales } => {
            let zeros = match zeros {
                ZeroType::Middle => "",
                ZeroType::Codes => ", asymmetric",
                ZeroType::Floats(_) => ", float zeros",
                ZeroType::Minima(_) => ", minima",
            };
            format!("affine {bits} bits, {}{}{zeros}", shared(grouping), levels(scales))
        }
        TermOutline::Lookup { bits, grouping, books, scales, .. } => {
            let shared = grouping.map_or_else(|| "no scales".to_owned(), shared);
            if let BookType::Fixed(float) = books {
                let float = format!("{float:?}").to_lowercase();
                return format!("floats {float}, {shared}{}", levels(scales));
            }
            if let BookType::Table(table) = books {
                let table = format!("{table:?}").to_lowercase();
                return format!("lookup {table}, {shared}{}", levels(scales));
            }
            format!("lookup {bits} bits, {shared}{}", levels(scales))
        }
        TermOutline::Planes { planes, grouping, .. } => {
            format!("{planes} binary planes, {}", shared(grouping))
        }
        TermOutline::Sparse { nonzeros, places: Places::Listed, .. } => {
            format!("sparse {nonzeros} values")
        }
        TermOutline::Sparse { nonzeros, values, places } => {
            let values = format!("{values:?}").to_lowercase();
            let places = match places {
                Places::Groups { width, kept } => format!("{kept} of every {width} columns"),
                _ => "a bitmap".to_owned(),
            };
            format!("sparse {nonzeros} values {values}, {places}")
        }
        TermOutline::Columns { count, .. } => format!("{count} columns"),
        TermOutline::LowRank { rank, .. } => format!("low rank {rank}"),
        TermOutline::Trellis { row_bits, state_bits, .. } => {
            format!("trellis of {state_bits} bits, {row_bits} bits a row")
        }
    }
}

/// Sizes of arrays in memory fit 64 bits.
fn as_bits(count: usize) -> u64 {
    count as u64
}
