//! Compiles one safe loop for several instruction sets and picks one at run time.
//!
//! A [`Job`] is an `inline(always)` function of its fields over fixed-width lanes. The compiler
//! vectorises it for the instruction set of the wrapper it is inlined into. Without fused
//! multiply-add (Rust never contracts) every instruction set gives the same bits.

use crate::isa::Isa;

/// Independent sums kept by a loop, so that it can be vectorised.
pub(crate) const LANES: usize = 16;

/// A loop to run.
pub(crate) trait Job {
    /// What it returns.
    type Output;
    /// The loop; `#[inline(always)]` in every implementation.
    fn run(self) -> Self::Output;
}

/// Runs a job with the widest instructions of this machine.
pub(crate) fn dispatch<J: Job>(job: J) -> J::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if Isa::detect() >= Isa::Avx512 {
            // SAFETY: the level is detected, so the processor has these features.
            return unsafe { avx512(job) };
        }
        if Isa::detect() >= Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(job) };
        }
    }
    job.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<J: Job>(job: J) -> J::Output {
    job.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<J: Job>(job: J) -> J::Output {
    job.run()
}
