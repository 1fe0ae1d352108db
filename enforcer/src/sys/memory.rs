//! Memory that was needed once.

/// Gives free memory back to the kernel. A reload frees what it needed for the rules before; without this a daemon
/// that read a million names would hold their memory for good.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
