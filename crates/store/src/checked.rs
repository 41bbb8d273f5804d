//! Integers that come from files, usable only through checked operations.
//!
//! Most holes in model loaders are one unchecked sum or product of file integers. Here a number
//! from a file is a [`FileInt`], whose operations all return `Option`, and a byte range is a
//! [`Span`], which can only be made against the real length of a file.

use std::fmt;

/// An unsigned integer read from a file. All its arithmetic is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileInt(u64);

impl FileInt {
    /// Wraps a number.
    pub fn new(value: u64) -> Self {
        Self(value)
    }

    /// The bare number, for comparisons and messages.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The sum, unless it exceeds 64 bits.
    pub fn plus(self, other: u64) -> Option<Self> {
        self.0.checked_add(other).map(Self)
    }

    /// The product, unless it exceeds 64 bits.
    pub fn times(self, other: u64) -> Option<Self> {
        self.0.checked_mul(other).map(Self)
    }

    /// The next multiple of `alignment`; `None` if `alignment` is zero or the result exceeds 64
    /// bits.
    pub fn align_up(self, alignment: u64) -> Option<Self> {
        self.0.checked_next_multiple_of(alignment).map(Self)
    }

    /// The number as a `usize`, if it fits and is at most `bound`.
    pub fn at_most(self, bound: u64) -> Option<usize> {
        (self.0 <= bound).then(|| usize::try_from(self.0).ok()).flatten()
    }
}

impl From<u64> for FileInt {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl fmt::Display for FileInt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A range of bytes that lies within a file (or within another span), checked when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// The span of `length` bytes at `start`, if it lies within a file of `file_length` bytes.
    pub fn within(file_length: u64, start: FileInt, length: FileInt) -> Option<Self> {
        let end = start.plus(length.get())?.get();
        (end <= file_length).then_some(Self { start: start.get(), end })
    }

    /// Offset of the first byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Offset after the last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the span holds no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The span of the bytes `start..end` of this one, if they lie within it.
    pub fn part(self, start: u64, end: u64) -> Option<Self> {
        let length = end.checked_sub(start)?;
        let inner = Self::within(self.len(), FileInt::new(start), FileInt::new(length))?;
        let start = self.start.checked_add(inner.start)?;
        let end = self.start.checked_add(inner.end)?;
        Some(Self { start, end })
    }
}

/// The number of elements of a shape; 1 for the empty shape. `None` if it exceeds 64 bits.
pub fn element_count(shape: &[usize]) -> Option<u64> {
    shape
        .iter()
        .try_fold(1_u64, |count, &dimension| count.checked_mul(u64::try_from(dimension).ok()?))
}

/// A zeroed buffer of `length` bytes, or `None` if memory for it cannot be had.
///
/// `length` must have been checked against the real length of the file it came from.
pub fn buffer(length: u64) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok()?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).ok()?;
    bytes.resize(length, 0);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_cannot_leave_its_file() {
        let int = FileInt::new;
        assert!(Span::within(10, int(0), int(10)).is_some());
        assert!(Span::within(10, int(10), int(0)).is_some());
        assert!(Span::within(10, int(1), int(10)).is_none());
        assert!(Span::within(10, int(u64::MAX), int(2)).is_none());
        assert!(Span::within(u64::MAX, int(u64::MAX), int(1)).is_none());
    }

    #[test]
    fn a_part_cannot_leave_its_span() {
        let span = Span::within(100, FileInt::new(10), FileInt::new(20)).unwrap();
        let part = span.part(5, 20).unwrap();
        assert_eq!((part.start(), part.end(), part.len()), (15, 30, 15));
        assert!(span.part(5, 21).is_none());
        assert!(span.part(6, 5).is_none());
        assert!(span.part(u64::MAX, u64::MAX).is_none());
    }

    #[test]
    fn products_of_shapes_do_not_wrap() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[3, 0, 5]), Some(0));
        assert_eq!(element_count(&[1 << 40, 1 << 40]), None);
    }

    #[test]
    fn alignment_by_zero_is_no_panic() {
        assert_eq!(FileInt::new(5).align_up(0), None);
        assert_eq!(FileInt::new(5).align_up(32), Some(FileInt::new(32)));
        assert_eq!(FileInt::new(u64::MAX).align_up(32), None);
    }

    #[test]
    fn an_impossible_buffer_is_refused() {
        assert!(buffer(u64::MAX).is_none());
        assert!(buffer(1 << 62).is_none());
        assert_eq!(buffer(3).unwrap(), [0, 0, 0]);
    }
}
