//! Working memory of a model: matrices of a common number of rows, whose rows threads may write at
//! once.

use std::ops::Range;

use crate::pool::Pool;
use crate::shared::SharedSlice;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Matrices of as many rows each, every one of a width of its own, allocated once.
#[derive(Debug)]
pub struct RowBuffers {
    values: Vec<f32>,
    /// Where each matrix begins, and the width of its rows.
    places: Vec<(usize, usize)>,
    rows: usize,
}

impl RowBuffers {
    /// Matrices of these widths.
    pub fn new(rows: usize, widths: &[usize]) -> Self {
        let lengths = widths.iter().map(|width| (rows * width).next_multiple_of(LINE));
        let values = vec![0.0_f32; LINE + lengths.clone().sum::<usize>()];
        // Rows begin on cache lines where their width allows it: what is written a line at a time would
        // else be two halves.
        let mut start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let mut places = vec![];
        for (width, length) in widths.iter().zip(lengths) {
            places.push((start, *width));
            start += length;
        }
        Self { values, places, rows }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// The first `rows` rows of a matrix.
    ///
    /// # Panics
    /// Here and below: if there is no such matrix, or it has fewer rows.
    pub fn get(&self, buffer: usize, rows: usize) -> &[f32] {
        assert!(rows <= self.rows, "more rows than there are");
        let (start, width) = self.places[buffer];
        &self.values[start..][..rows * width]
    }

    /// The first `rows` rows of a matrix, to be written.
    pub fn get_mut(&mut self, buffer: usize, rows: usize) -> &mut [f32] {
        assert!(rows <= self.rows, "more rows than there are");
        let (start, width) = self.places[buffer];
        &mut self.values[start..][..rows * width]
    }

    /// One row of a matrix.
    pub fn row(&self, buffer: usize, row: usize) -> &[f32] {
        let (_, width) = self.places[buffer];
        &self.get(buffer, row + 1)[row * width..]
    }

    /// One row of a matrix, to be written.
    pub fn row_mut(&mut self, buffer: usize, row: usize) -> &mut [f32] {
        let (_, width) = self.places[buffer];
        &mut self.get_mut(buffer, row + 1)[row * width..]
    }

    /// The first `rows` rows of up to `N` matrices, to be written.
    ///
    /// # Panics
    /// If there are more than `N`, or one stands twice.
    pub fn several_mut<const N: usize>(
        &mut self,
        buffers: &[usize],
        rows: usize,
    ) -> [Option<&mut [f32]>; N] {
        assert!(rows <= self.rows && buffers.len() <= N, "more than there is room for");
        let values = SharedSlice::new(&mut self.values);
        std::array::from_fn(|index| {
            let buffer = *buffers.get(index)?;
            assert!(!buffers[..index].contains(&buffer), "a matrix that is written twice");
            let (start, width) = self.places[buffer];
            let part = values.part(start, rows * width);
            // SAFETY: inside the slice, as `part` checked; matrices do not overlap, none stands
            // twice, and the answer borrows all of them.
            Some(unsafe { std::slice::from_raw_parts_mut(part, rows * width) })
        })
    }

    /// The first `rows` rows of a matrix to be written, with those of others to be read.
    ///
    /// # Panics
    /// If the matrix to be written is among the others.
    pub fn write<const N: usize>(
        &mut self,
        target: usize,
        sources: [usize; N],
        rows: usize,
    ) -> (&mut [f32], [&[f32]; N]) {
        assert!(rows <= self.rows, "more rows than there are");
        let all = SharedSlice::new(&mut self.values);
        let chunk = RowsMut { values: &all, places: &self.places, rows: 0..rows };
        // SAFETY: `self` is borrowed as long as the answer, and the chunk is dropped here.
        unsafe { chunk.parts(target, sources, 0..rows) }
    }

    /// Calls `body` with `rows` rows of all matrices, divided into runs of `run` rows among the
    /// threads of the pool.
    pub fn divide(
        &mut self,
        pool: &mut Pool,
        rows: usize,
        run: usize,
        body: impl Fn(&mut RowsMut<'_>) + Sync,
    ) {
        assert!(rows <= self.rows, "more rows than there are");
        let values = SharedSlice::new(&mut self.values);
        let places = &self.places;
        pool.run(rows.div_ceil(run), |unit| {
            let rows = unit * run..((unit + 1) * run).min(rows);
            body(&mut RowsMut { values: &values, places, rows });
        });
    }
}

/// Some rows of all matrices, which no one else holds.
pub struct RowsMut<'a> {
    values: &'a SharedSlice<'a, f32>,
    places: &'a [(usize, usize)],
    rows: Range<usize>,
}

impl RowsMut<'_> {
    /// Which rows these are.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// A row of a matrix to be written, with the same row of others to be read.
    ///
    /// # Panics
    /// If the row is not among these, there is no such matrix, or the matrix to be written is among
    /// the others.
    pub fn row<const N: usize>(
        &mut self,
        target: usize,
        sources: [usize; N],
        row: usize,
    ) -> (&mut [f32], [&[f32]; N]) {
        // SAFETY: the answer borrows `self`, which holds these rows alone.
        unsafe { self.parts(target, sources, row..row + 1) }
    }

    /// # Safety
    /// While the answer lives, nothing else reads or writes these rows.
    unsafe fn parts<'b, const N: usize>(
        &self,
        target: usize,
        sources: [usize; N],
        rows: Range<usize>,
    ) -> (&'b mut [f32], [&'b [f32]; N]) {
        assert!(rows.start >= self.rows.start && rows.end <= self.rows.end, "rows of others");
        assert!(!sources.contains(&target), "a matrix read while it is written");
        let part = |buffer: usize| {
            let (start, width) = self.places[buffer];
            let length = rows.len() * width;
            (self.values.part(start + rows.start * width, length), length)
        };
        let (pointer, length) = part(target);
        // SAFETY: inside the slice, as `part` checked; matrices do not overlap, and these rows are
        // the caller's alone.
        let written = unsafe { std::slice::from_raw_parts_mut(pointer, length) };
        let read = sources.map(|source| {
            let (pointer, length) = part(source);
            // SAFETY: as above; no source is the target, so that they are only read.
            unsafe { std::slice::from_raw_parts(pointer.cast_const(), length) }
        });
        (written, read)
    }
}
