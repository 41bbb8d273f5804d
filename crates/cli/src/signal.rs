//! Ctrl-C and termination: the first asks the job to stop at the next safe point.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that a signal sets. A second signal ends the process at once; what was committed stays.
pub(crate) fn stop_flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let handler = {
        let flag = Arc::clone(&flag);
        move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    };
    // Without a handler a signal kills the process, which loses no committed block either.
    let _ = ctrlc::set_handler(handler);
    flag
}
