//! Handing freed memory back to the operating system.

/// Gives back what was freed and is only kept for later use, where the allocator keeps much: glibc's
/// holds on to up to 64 MB at the end of its heap, and to any hole. For the moments between two kinds
/// of work, when the next needs other sizes than the last.
pub fn return_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time from any thread; it changes no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
}
