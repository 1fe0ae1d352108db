//! Atomic operations on map memory. The compiler's own are not offered for this target, which it takes for one
//! without them; every kernel since 5.12 has them.

use core::arch::asm;

/// Adds to the value and gives what it was.
///
/// # Safety
/// `value` is valid and aligned, and changed by nothing but these functions.
#[inline(always)]
pub unsafe fn fetch_add(value: *mut u64, mut summand: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{summand} = atomic_fetch_add((u64 *)({value} + 0), {summand})",
            value = in(reg) value,
            summand = inout(reg) summand,
            options(nostack),
        );
    }
    summand
}

/// Replaces the value and gives what it was.
///
/// # Safety
/// As for `fetch_add`.
#[inline(always)]
pub unsafe fn swap(value: *mut u64, mut new: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{new} = xchg_64({value} + 0, {new})",
            value = in(reg) value,
            new = inout(reg) new,
            options(nostack),
        );
    }
    new
}
