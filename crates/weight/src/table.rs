//! Codebooks that formats know by name, of which nothing is stored.

use crate::Grouping;
use serde::{Deserialize, Serialize};

/// A codebook with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// The 16 levels of llama.cpp's `IQ4_NL` and `IQ4_XS`, denser around zero.
    Iq4Nl,
    /// −1, 0 and 1 in two bits each.
    Ternary,
    /// −1, 0 and 1, the codes of a group five to a byte: `Σ codeᵢ · 3^(4−i)`.
    Trits,
}

/// Codes in a byte of [`Table::Trits`].
const TRITS: usize = 5;

impl Table {
    /// Bits of a code, as it stands in memory.
    pub fn bits(self) -> u8 {
        match self {
            Self::Iq4Nl => 4,
            Self::Ternary | Self::Trits => 2,
        }
    }

    /// The levels that have codes.
    pub fn levels(self) -> &'static [f32] {
        const IQ4_NL: [f32; 16] = [
            -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0,
            69.0, 89.0, 113.0,
        ];
        match self {
            Self::Iq4Nl => &IQ4_NL,
            Self::Ternary | Self::Trits => &[-1.0, 0.0, 1.0],
        }
    }

    /// A value for every code of so many bits; zero in the place of one that stands for none.
    pub fn book(self) -> Vec<f32> {
        let mut book = self.levels().to_vec();
        book.resize(1 << self.bits(), 0.0);
        book
    }

    /// Stored symbols of a row of `cols` codes, and the bits of each.
    pub(crate) fn symbols(self, grouping: Option<Grouping>, cols: usize) -> (usize, u8) {
        if self != Self::Trits {
            return (cols, self.bits());
        }
        let width = grouping.map_or(cols, |grouping| grouping.width(cols)).max(1);
        (cols / width * width.div_ceil(TRITS) + (cols % width).div_ceil(TRITS), 8)
    }

    /// The symbols of codes, in rows of `cols`.
    pub(crate) fn pack(self, grouping: Option<Grouping>, cols: usize, codes: &[u8]) -> Vec<u8> {
        if self != Self::Trits {
            return codes.to_vec();
        }
        let width = grouping.map_or(cols, |grouping| grouping.width(cols)).max(1);
        let byte = |codes: &[u8]| (0..TRITS).fold(0, |all, i| 3 * all + codes.get(i).unwrap_or(&0));
        let groups = codes.chunks(cols.max(1)).flat_map(|row| row.chunks(width));
        groups.flat_map(|group| group.chunks(TRITS).map(byte)).collect()
    }

    /// The codes of symbols: [`pack`](Self::pack) undone. A symbol that is none gives codes that are
    /// none.
    pub(crate) fn unpack(self, grouping: Option<Grouping>, cols: usize, symbols: &[u8]) -> Vec<u8> {
        if self != Self::Trits {
            return symbols.to_vec();
        }
        let width = grouping.map_or(cols, |grouping| grouping.width(cols)).max(1);
        let (per_row, _) = self.symbols(grouping, cols);
        let group = |symbols: &[u8], count: usize| -> Vec<u8> {
            let code = |i: usize| match symbols[i / TRITS] {
                symbol @ 0..243 => symbol / 3_u8.pow((TRITS - 1 - i % TRITS) as u32) % 3,
                _ => 3,
            };
            (0..count).map(code).collect()
        };
        let rows = symbols.chunks_exact(per_row.max(1));
        rows.flat_map(|row| {
            let groups = row.chunks(width.div_ceil(TRITS)).enumerate();
            groups.flat_map(|(at, symbols)| group(symbols, width.min(cols - at * width)))
        })
        .collect()
    }
}
