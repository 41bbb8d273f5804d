//! What a job tells the people who wait for it.

/// Receives the course of a job. All methods have empty defaults.
pub trait Progress: Sync {
    /// A phase begins; it has `steps` steps, 0 when their number is not known.
    fn begin(&self, _phase: &str, _steps: u64) {}
    /// `done` steps of the phase are done; `detail` says what is being done now.
    fn advance(&self, _done: u64, _detail: &str) {}
    /// The phase is over.
    fn end(&self) {}
    /// Something worth knowing happened: a fallback, a resumed job.
    fn note(&self, _what: &str) {}
}

/// Tells no one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
