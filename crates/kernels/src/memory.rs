//! What the allocator keeps of freed memory, and which memory lies in large pages.

/// Blocks from this size on are the operating system's, and go back when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_BLOCK: i32 = 16 << 20;
/// Freed memory at the end of the heap that is kept for the next use.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = 64 << 20;

/// Keeps large matrices out of the heap, where each would leave a hole that the next of another size
/// cannot use. glibc otherwise moves its limit up to 32 MB as it goes. To be called once, at the start.
pub fn keep_large_blocks_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two parameters of the allocator, which may be done at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Allocates with blocks from so many bytes on being the operating system's. What other threads allocate
/// meanwhile may be too, which does them no harm.
fn apart_from<T>(bytes: usize, allocate: impl FnOnce() -> T) -> T {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a parameter of the allocator, which may be done at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes as libc::c_int);
    }
    let _ = bytes;
    let allocated = allocate();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_BLOCK);
    }
    allocated
}

/// Gives back what was freed and is only kept for later use: at the end of the heap, and in holes. For
/// the moments between two kinds of work, when the next needs other sizes than the last.
pub fn return_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time from any thread; it changes no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// A vector with room for so many numbers, in pages of 2 MB where it is large and the system has them:
/// finding the place of each page of 4 kB costs a tenth of the time of reading from one end to the other,
/// and more in virtual machines.
pub fn with_large_pages<T>(capacity: usize) -> Vec<T> {
    if capacity.saturating_mul(size_of::<T>()) < LARGE_PAGE {
        return Vec::with_capacity(capacity);
    }
    // In the heap it would lie where small pages have been.
    let numbers: Vec<T> = apart_from(LARGE_PAGE, || Vec::with_capacity(capacity));
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4 << 10;
        let first = numbers.as_ptr().addr();
        let begin = first.next_multiple_of(PAGE);
        let end = (first + capacity * size_of::<T>()) / PAGE * PAGE;
        let length = end.saturating_sub(begin);
        // SAFETY: advice changes no contents, and what cannot be followed is left undone.
        unsafe {
            let begin = numbers.as_ptr().with_addr(begin).cast_mut().cast();
            libc::madvise(begin, length, libc::MADV_HUGEPAGE);
        }
    }
    numbers
}
