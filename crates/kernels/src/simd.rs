//! One source, compiled once for each level of vector instructions.

/// Defines a function that takes an [`Isa`](crate::isa::Isa) first and runs its body as compiled for
/// that level.
///
/// The body is plain Rust over slices and arrays. Rust neither reorders floating-point operations
/// nor fuses them, and sums are kept in [`LANES`] partial sums whatever the width of the registers:
/// so that all levels, and all kinds of processors, give the same bits.
macro_rules! vectorized {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $(-> $answer:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $visibility fn $name(isa: $crate::isa::Isa, $($argument: $kind),*) $(-> $answer)? {
            #[inline(always)]
            fn body($($argument: $kind),*) $(-> $answer)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c,fma")]
                fn avx512($($argument: $kind),*) $(-> $answer)? {
                    body($($argument),*)
                }
                #[target_feature(enable = "avx2,f16c,fma")]
                fn avx2($($argument: $kind),*) $(-> $answer)? {
                    body($($argument),*)
                }
                match isa.supported() {
                    $crate::isa::Isa::Portable => {}
                    // SAFETY: the processor has this level.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($argument),*) },
                    // SAFETY: the processor has this level or a higher one.
                    _ => return unsafe { avx512($($argument),*) },
                }
            }
            let _ = isa;
            body($($argument),*)
        }
    };
}

pub(crate) use vectorized;

/// Asks for the cache line at an address that will be read; nothing where there is no such instruction.
#[inline(always)]
pub(crate) fn prefetch<T>(ahead: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect on memory and cannot fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ahead;
}

/// Partial sums that a long sum is kept in: the f32 lanes of the widest registers.
pub(crate) const LANES: usize = 16;

/// Adds partial sums pairwise, in a fixed order; their number is a power of two.
#[inline(always)]
pub(crate) fn add_lanes<const N: usize>(lanes: [f32; N]) -> f32 {
    reduce(lanes, |a, b| a + b)
}

/// The larger number, or the first where the second is NaN: one instruction, where [`f32::max`] takes
/// four.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The smaller number, or the first where the second is NaN.
#[inline(always)]
pub(crate) fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// Combines the upper half with the lower until one is left; their number is a power of two.
#[inline(always)]
pub(crate) fn reduce<const N: usize>(
    mut lanes: [f32; N],
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Elements below which a loop over memory is not worth dividing among threads.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;

/// The number of rows of `width` that make a task of a reasonable size.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (ELEMENTS_PER_TASK / width.max(1)).max(1)
}
