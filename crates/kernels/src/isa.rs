//! What this processor can compute with, found once per process.
//!
//! Every kernel takes its level from [`Isa::detect`]; the `…_with` twins take it as an argument, so
//! that tests and benches can run the levels below the machine's own. A level above the machine's is
//! lowered to it, which is what makes those twins safe to call.

use std::sync::OnceLock;

/// A level of vector instructions. Each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the compiler may assume of the target: SSE2 on x86-64, NEON on aarch64.
    Portable,
    /// NEON with dot products of bytes (ARMv8.4, and most processors since 2018).
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// AVX2 with fused multiply-add and half-precision conversion.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with dot products of bfloat16 pairs.
    Avx512Bf16,
    /// Tiles of Intel's AMX with bfloat16 products, allowed by the operating system.
    Amx,
}

impl Isa {
    /// All levels of this kind of processors, lowest first.
    pub const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "aarch64")]
        Self::NeonDot,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::Amx,
    ];

    /// The highest level this processor and operating system support.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }

    /// The levels this machine can run, lowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|level| *level <= Self::detect())
    }

    /// This level, or the machine's own where that is lower.
    pub(crate) fn supported(self) -> Self {
        self.min(Self::detect())
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        return Isa::Portable;
    }
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
        return Isa::Avx2;
    }
    if !has!("avx512bf16") {
        return Isa::Avx512;
    }
    if !(processor_has_amx_bf16() && tiles_allowed()) {
        return Isa::Avx512Bf16;
    }
    Isa::Amx
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Isa {
    // The kernels read bytes of words in the order in which all common systems store them.
    let has_dot = std::arch::is_aarch64_feature_detected!("dotprod");
    if has_dot && cfg!(target_endian = "little") { Isa::NeonDot } else { Isa::Portable }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Isa {
    Isa::Portable
}

/// Leaf 7 of CPUID, register EDX: bit 22 is `amx-bf16`, bit 24 is `amx-tile`.
#[cfg(target_arch = "x86_64")]
fn processor_has_amx_bf16() -> bool {
    use std::arch::x86_64::__cpuid_count;
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    #[allow(unused_unsafe, reason = "the intrinsic became safe after our oldest compiler")]
    // SAFETY: every x86-64 processor has CPUID, and one with AVX2 has leaf 7.
    let leaf = unsafe { __cpuid_count(7, 0) };
    leaf.edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE
}

/// Asks Linux to let this process use tile registers, whose 8 KiB of state it saves only for
/// processes that asked. Permission holds for all threads, those to come included.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_allowed() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_STATE_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let answer: i64;
    // SAFETY: this system call takes two integers and touches no memory of ours; the kernel
    // overwrites rcx and r11, which are declared.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") REQUEST_STATE_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles_allowed() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered_and_a_level_above_the_machine_is_lowered() {
        assert!(Isa::ALL.is_sorted());
        assert_eq!(Isa::available().last(), Some(Isa::detect()));
        for level in Isa::ALL.iter().copied() {
            assert!(level.supported() <= Isa::detect());
        }
    }
}
