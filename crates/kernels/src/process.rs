//! What the operating system does to the process.

/// Makes a write above the limit on the size of files (`ulimit -f`) an error like any other; by
/// default the system ends the process there, without a word.
pub fn survive_file_size_limit() {
    #[cfg(unix)]
    // SAFETY: sets a disposition, not a handler: no code of ours runs in a signal's context.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
