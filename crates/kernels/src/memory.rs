//! What the allocator keeps of freed memory.

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

/// Gives back what was freed and is only kept for later use: at the end of the heap, and in holes. For
/// the moments between two kinds of work, when the next needs other sizes than the last.
pub fn return_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time from any thread; it changes no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
}
