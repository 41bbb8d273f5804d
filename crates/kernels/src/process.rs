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

/// The most memory this process has held so far, in bytes; `None` where the system does not say.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// The memory this process holds now, in bytes; `None` where the system does not say.
pub fn held_memory() -> Option<u64> {
    status("VmRSS:")
}

/// A line of what Linux tells of the process, in bytes.
fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}
