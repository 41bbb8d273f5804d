//! A slice that several tasks write at once, each its own part.

use std::marker::PhantomData;

/// A mutable slice whose parts are handed out by [`slice_mut`](Self::slice_mut), for outputs whose
/// parts are not contiguous (a block of columns of a row-major matrix).
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    length: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: sharing it gives access to elements only through `slice_mut`, whose caller promises that
// no element is reached twice at once; the elements themselves may be sent.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), lifetime: PhantomData }
    }

    /// The `length` elements from `first` on.
    ///
    /// # Safety
    /// While the answer lives, no other answer holds any of its elements.
    ///
    /// # Panics
    /// If the range lies outside the slice.
    #[expect(clippy::mut_from_ref, reason = "handing out disjoint parts is what this type is for")]
    pub(crate) unsafe fn slice_mut(&self, first: usize, length: usize) -> &mut [T] {
        // SAFETY: the range is inside the slice, and the caller promises that it is not shared.
        unsafe { std::slice::from_raw_parts_mut(self.part(first, length), length) }
    }

    /// Where the `length` elements from `first` on begin.
    ///
    /// # Panics
    /// If the range lies outside the slice.
    pub(crate) fn part(&self, first: usize, length: usize) -> *mut T {
        assert!(first <= self.length && length <= self.length - first, "a part outside the slice");
        // SAFETY: inside the slice, or at its end.
        unsafe { self.start.add(first) }
    }
}
