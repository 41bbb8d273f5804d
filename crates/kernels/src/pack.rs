//! Dense bit packing: codes of `b` bits (1 to 8) as a little-endian stream in 32-bit words.
//!
//! Code `i` of a stream stands at bits `[i·b, (i+1)·b)`, bit `k` of the stream being bit `k mod 32`
//! of word `k / 32`; a code may cross into the next word, and a stream ends with the last word that
//! holds one of its bits, the rest of that word being zero. This is the integer layout of
//! compressed-tensors and of MLX, where every row is one stream ([`pack_rows`]); compressed-tensors
//! stores zero points, and GPTQ its weights, with one stream a column ([`pack_columns`]).
//!
//! Until June 2026 compressed-tensors gave every word `⌊32/b⌋` whole codes and left its top bits
//! unused. The two layouts are one for 1, 2, 4 and 8 bits; for the other widths [`Layout`] tells
//! them apart by the number of words, and both can be read.
//!
//! Codes are unsigned bytes below `2^b`: signed ones are stored by these formats as `q + 2^(b-1)`.

/// Codes in the smallest stretch of a dense stream that ends on a word: `b` words.
const GROUP: usize = 32;

/// How the codes of a stream lie in its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One bit after the other, across the words.
    Dense,
    /// `⌊32/b⌋` codes a word, from its lowest bit; no code crosses a word. Only for reading.
    WholeCodes,
}

impl Layout {
    /// Words that a stream of `codes` codes of `bits` bits takes.
    #[must_use]
    pub fn words(self, codes: usize, bits: u32) -> usize {
        match self {
            // Not `(codes * bits).div_ceil(32)`, which overflows long before the words do.
            Self::Dense => {
                let bits = bits as usize;
                let tail = (codes % GROUP).saturating_mul(bits).div_ceil(32);
                (codes / GROUP).saturating_mul(bits).saturating_add(tail)
            }
            Self::WholeCodes => codes.div_ceil((32 / bits.max(1)).max(1) as usize),
        }
    }

    /// The layout in which `codes` codes of `bits` bits take `words` words; [`Layout::Dense`] where
    /// both do, and `None` where neither does.
    #[must_use]
    pub fn of(codes: usize, bits: u32, words: usize) -> Option<Self> {
        [Self::Dense, Self::WholeCodes]
            .into_iter()
            .find(|layout| layout.words(codes, bits) == words)
    }
}

/// Why codes could not be packed or unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The width of a code is not between 1 and 8 bits.
    #[error("codes of {0} bits cannot be packed; use 1 to 8 bits")]
    Bits(u32),
    /// The codes given (or asked for) are not a whole number of rows.
    #[error("{codes} codes are not a whole number of rows of {columns}; pass complete rows")]
    Ragged {
        /// Codes given.
        codes: usize,
        /// Codes in a row.
        columns: usize,
    },
    /// The slice of words does not have the length that the codes need.
    #[error("{have} words for codes that take {need}; compare the packed tensor's shape")]
    Words {
        /// Words given.
        have: usize,
        /// Words needed.
        need: usize,
    },
    /// A code does not fit its width, and would have run into its neighbour.
    #[error("a code does not fit into {bits} bits; clamp the codes before packing")]
    CodeTooLarge {
        /// Bits a code has.
        bits: u32,
    },
}

/// Packs each row of `codes` (`[rows, columns]`, row-major) into a dense stream of its own:
/// `words` is `[rows, ⌈columns·bits/32⌉]`.
///
/// # Errors
/// When the width, a length or a code is out of range; `words` is then unspecified.
pub fn pack_rows(
    codes: &[u8],
    columns: usize,
    bits: u32,
    words: &mut [u32],
) -> Result<(), PackError> {
    let rows = rows(codes.len(), columns, bits)?;
    let width = Layout::Dense.words(columns, bits);
    expect_words(words.len(), rows.checked_mul(width))?;
    if columns == 0 {
        return Ok(());
    }
    let mut seen = 0;
    for (codes, words) in codes
        .chunks_exact(columns)
        .zip(words.chunks_exact_mut(width))
    {
        seen |= with_width!(bits, pack_stream(codes, words));
    }
    expect_fit(seen, bits)
}

/// The inverse of [`pack_rows`], for either layout: `words` is `[rows, layout.words(columns, bits)]`
/// and `codes` receives `[rows, columns]`. Bits of `words` that hold no code are not looked at.
///
/// # Errors
/// When the width or a length is out of range.
pub fn unpack_rows(
    words: &[u32],
    layout: Layout,
    columns: usize,
    bits: u32,
    codes: &mut [u8],
) -> Result<(), PackError> {
    let rows = rows(codes.len(), columns, bits)?;
    let width = layout.words(columns, bits);
    expect_words(words.len(), rows.checked_mul(width))?;
    if columns == 0 {
        return Ok(());
    }
    for (codes, words) in codes
        .chunks_exact_mut(columns)
        .zip(words.chunks_exact(width))
    {
        match layout {
            Layout::Dense => with_width!(bits, unpack_stream(words, codes)),
            Layout::WholeCodes => unpack_whole_codes(words, bits, codes),
        }
    }
    Ok(())
}

/// Packs each column of `codes` (`[rows, columns]`, row-major) into a dense stream of its own:
/// `words` is `[⌈rows·bits/32⌉, columns]`.
///
/// # Errors
/// When the width, a length or a code is out of range; `words` is then unspecified.
pub fn pack_columns(
    codes: &[u8],
    columns: usize,
    bits: u32,
    words: &mut [u32],
) -> Result<(), PackError> {
    let rows = rows(codes.len(), columns, bits)?;
    expect_words(
        words.len(),
        Layout::Dense.words(rows, bits).checked_mul(columns),
    )?;
    if columns == 0 {
        return Ok(());
    }
    words.fill(0);
    let mut seen = 0;
    for (row, codes) in codes.chunks_exact(columns).enumerate() {
        let (word, shift) = place(Layout::Dense, row, bits);
        // The word the code starts in, and the next one, empty after the last.
        let (low, high) = words[word * columns..].split_at_mut(columns);
        for (low, &code) in low.iter_mut().zip(codes) {
            seen |= code;
            *low |= u32::from(code) << shift;
        }
        if shift + bits > 32 {
            for (high, &code) in high.iter_mut().zip(codes) {
                *high |= u32::from(code) >> (32 - shift);
            }
        }
    }
    expect_fit(seen, bits)
}

/// The inverse of [`pack_columns`], for either layout: `words` is
/// `[layout.words(rows, bits), columns]` and `codes` receives `[rows, columns]`.
///
/// # Errors
/// When the width or a length is out of range.
pub fn unpack_columns(
    words: &[u32],
    layout: Layout,
    columns: usize,
    bits: u32,
    codes: &mut [u8],
) -> Result<(), PackError> {
    let rows = rows(codes.len(), columns, bits)?;
    expect_words(words.len(), layout.words(rows, bits).checked_mul(columns))?;
    if columns == 0 {
        return Ok(());
    }
    let mask = mask(bits);
    for (row, codes) in codes.chunks_exact_mut(columns).enumerate() {
        let (word, shift) = place(layout, row, bits);
        let (low, high) = words[word * columns..].split_at(columns);
        for (code, &low) in codes.iter_mut().zip(low) {
            *code = (low >> shift) as u8 & mask;
        }
        if shift + bits > 32 {
            for (code, &high) in codes.iter_mut().zip(high) {
                *code |= (high << (32 - shift)) as u8 & mask;
            }
        }
    }
    Ok(())
}

/// Calls a function generic over the width with the width as a constant.
macro_rules! with_width {
    ($bits:expr, $function:ident($($argument:expr),*)) => {
        match $bits {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            3 => $function::<3>($($argument),*),
            4 => $function::<4>($($argument),*),
            5 => $function::<5>($($argument),*),
            6 => $function::<6>($($argument),*),
            7 => $function::<7>($($argument),*),
            _ => $function::<8>($($argument),*),
        }
    };
}
use with_width;

/// Packs one stream and returns the bitwise or of its codes.
fn pack_stream<const BITS: usize>(codes: &[u8], words: &mut [u32]) -> u8 {
    let mut seen = 0;
    let (groups, tail) = codes.as_chunks::<GROUP>();
    let (full, rest) = words.split_at_mut(groups.len() * BITS);
    for (group, words) in groups.iter().zip(full.chunks_exact_mut(BITS)) {
        seen |= pack_group::<BITS>(group, words);
    }
    if !tail.is_empty() {
        let mut group = [0; GROUP];
        group[..tail.len()].copy_from_slice(tail);
        let mut words = [0; 8];
        seen |= pack_group::<BITS>(&group, &mut words[..BITS]);
        rest.copy_from_slice(&words[..rest.len()]);
    }
    seen
}

/// Packs 32 codes into `BITS` words, and returns the bitwise or of the codes.
#[inline(always)]
fn pack_group<const BITS: usize>(codes: &[u8; GROUP], words: &mut [u32]) -> u8 {
    let mut seen = 0;
    let mut pending = 0u128;
    let mut filled = 0;
    let mut words = words.iter_mut();
    for eight in codes.as_chunks::<8>().0 {
        let eight = u64::from_le_bytes(*eight);
        seen |= eight;
        pending |= u128::from(gather::<BITS>(eight)) << filled;
        filled += 8 * BITS;
        while filled >= 32 {
            if let Some(word) = words.next() {
                *word = pending as u32;
            }
            pending >>= 32;
            filled -= 32;
        }
    }
    seen.to_le_bytes()
        .into_iter()
        .fold(0, |all, code| all | code)
}

/// Unpacks one dense stream.
fn unpack_stream<const BITS: usize>(words: &[u32], codes: &mut [u8]) {
    let (groups, tail) = codes.as_chunks_mut::<GROUP>();
    let (full, rest) = words.split_at(groups.len() * BITS);
    for (group, words) in groups.iter_mut().zip(full.chunks_exact(BITS)) {
        unpack_group::<BITS>(words, group);
    }
    if !tail.is_empty() {
        let mut words = [0; 8];
        words[..rest.len()].copy_from_slice(rest);
        let mut group = [0; GROUP];
        unpack_group::<BITS>(&words[..BITS], &mut group);
        tail.copy_from_slice(&group[..tail.len()]);
    }
}

/// Unpacks 32 codes from `BITS` words.
#[inline(always)]
fn unpack_group<const BITS: usize>(words: &[u32], codes: &mut [u8; GROUP]) {
    let mut pending = 0u128;
    let mut filled = 0;
    let mut words = words.iter();
    for eight in codes.as_chunks_mut::<8>().0 {
        while filled < 8 * BITS {
            pending |= u128::from(words.next().copied().unwrap_or(0)) << filled;
            filled += 32;
        }
        *eight = spread::<BITS>(pending as u64).to_le_bytes();
        pending >>= 8 * BITS;
        filled -= 8 * BITS;
    }
}

/// Eight bytes of `BITS` used bits each, closed up to `8·BITS` bits: neighbours are joined three
/// times, in lanes of 16, 32 and 64 bits.
#[inline(always)]
const fn gather<const BITS: usize>(bytes: u64) -> u64 {
    let (even, odd) = (0x00ff_00ff_00ff_00ff, 8 - BITS);
    let pairs = (bytes & even) | ((bytes & !even) >> odd);
    let (even, odd) = (0x0000_ffff_0000_ffff, 16 - 2 * BITS);
    let fours = (pairs & even) | ((pairs & !even) >> odd);
    let (even, odd) = (0x0000_0000_ffff_ffff, 32 - 4 * BITS);
    (fours & even) | ((fours & !even) >> odd)
}

/// The inverse of [`gather`]; bits above the lowest `8·BITS` are dropped.
#[inline(always)]
const fn spread<const BITS: usize>(bits: u64) -> u64 {
    let low = (1 << (4 * BITS)) - 1;
    let fours = (bits & low) | ((bits >> (4 * BITS) & low) << 32);
    let low = 0x0000_0001_0000_0001 * ((1 << (2 * BITS)) - 1);
    let pairs = (fours & low) | ((fours >> (2 * BITS) & low) << 16);
    let low = 0x0001_0001_0001_0001 * ((1 << BITS) - 1);
    (pairs & low) | ((pairs >> BITS & low) << 8)
}

/// Unpacks one stream of `⌊32/bits⌋` codes a word.
fn unpack_whole_codes(words: &[u32], bits: u32, codes: &mut [u8]) {
    let mask = mask(bits);
    for (&word, codes) in words.iter().zip(codes.chunks_mut((32 / bits) as usize)) {
        for (code, shift) in codes.iter_mut().zip((0..).step_by(bits as usize)) {
            *code = (word >> shift) as u8 & mask;
        }
    }
}

/// The word of a stream in which its code number `index` starts, and the bit of that word.
fn place(layout: Layout, index: usize, bits: u32) -> (usize, u32) {
    match layout {
        Layout::Dense => {
            let bit = index % GROUP * bits as usize;
            (index / GROUP * bits as usize + bit / 32, (bit % 32) as u32)
        }
        Layout::WholeCodes => {
            let each = (32 / bits) as usize;
            (index / each, (index % each) as u32 * bits)
        }
    }
}

/// The largest code of `bits` bits.
fn mask(bits: u32) -> u8 {
    u8::MAX >> (8 - bits)
}

/// Rows of `columns` codes in `codes` codes, and a check of the width.
fn rows(codes: usize, columns: usize, bits: u32) -> Result<usize, PackError> {
    if !(1..=8).contains(&bits) {
        return Err(PackError::Bits(bits));
    }
    match codes.checked_rem(columns) {
        Some(0) => Ok(codes / columns),
        None if codes == 0 => Ok(0),
        _ => Err(PackError::Ragged { codes, columns }),
    }
}

/// Compares a length with the one needed; `None` is one beyond the address space.
fn expect_words(have: usize, need: Option<usize>) -> Result<(), PackError> {
    if need == Some(have) {
        return Ok(());
    }
    Err(PackError::Words {
        have,
        need: need.unwrap_or(usize::MAX),
    })
}

/// Refuses codes, given by their bitwise or, of which one is too large.
fn expect_fit(seen: u8, bits: u32) -> Result<(), PackError> {
    if seen > mask(bits) {
        return Err(PackError::CodeTooLarge { bits });
    }
    Ok(())
}
